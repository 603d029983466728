//! The lab's etcd does everything that a test of twill may ask of it. How twill handles it is not tested here.

use std::process::Command;
use std::time::Duration;

use lab::{EtcdSetup, Lab, Lines, Node, Timing, Topology, until};

const CONFIG: &str = "/coreos.com/network/config";
const LEASE: &str = "10.244.34.0-24";
const SOON: Duration = Duration::from_secs(5);
const SECOND: &str = "LAB_SECOND";

fn with(setup: EtcdSetup) -> Lab {
    Topology::flat(1).etcd(setup).build()
}

/// Runs etcdctl on a node, as any program there could.
fn from(node: &Node, args: &str) -> Result<String, String> {
    let line = format!("ETCDCTL_API=3 etcdctl --dial-timeout=2s --command-timeout=2s {args}");
    let out = node.ns.output(&line);
    let [said, complaint] = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if out.status.success() { Ok(said) } else { Err(said + &complaint) }
}

fn key(k: usize) -> (String, String) {
    let json = format!(r#"{{"PublicIP":"10.0.0.{k}","BackendType":"it's a \\"}}"#);
    (format!("/coreos.com/network/subnets/10.{}.{}.0-24", k / 250, k % 250), json)
}

#[test]
fn the_store_is_etcd_and_both_segments_reach_it() {
    lab::test(Timing::Free, || {
        let lab = Topology::routed(1, 1).etcd(EtcdSetup::http()).build();
        let (store, etcd) = (&lab.store, lab.etcd());
        assert_eq!(etcd.flags(), ["--etcd-endpoints=http://192.168.100.5:2379"]);
        store.config(r#"{"Network":"10.244.0.0/16"}"#);
        store.put_lease(LEASE, "it's \"one\"");
        for node in lab.nodes() {
            for endpoint in [etcd.endpoint(), etcd.endpoint6()] {
                let got = from(node, &format!("--endpoints={endpoint} get --print-value-only {CONFIG}"));
                assert_eq!(got.expect("an answer").trim(), r#"{"Network":"10.244.0.0/16"}"#);
            }
        }
        assert_eq!(store.leases().into_iter().collect::<Vec<_>>(), [(LEASE.into(), "it's \"one\"".into())]);
        store.remove_lease(LEASE);
        assert!(store.leases().is_empty() && etcd.get(CONFIG).is_some() && etcd.get("/none").is_none());
    });
}

#[test]
fn the_daemon_gets_the_flags_of_etcd_instead_of_a_directory() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).etcd(EtcdSetup::http()).twill("/bin/echo").build();
        let mut daemon = lab.node(1).start(&["--iface=eth0"]);
        assert!(daemon.wait_exit().success());
        let said = daemon.log();
        assert!(said.contains("--etcd-endpoints=http://192.168.100.5:2379 "), "{said}");
        assert!(said.trim_end().ends_with("--iface=eth0"), "{said}");
        assert!(!said.contains("--store"), "{said}");
    });
}

#[test]
fn a_key_and_its_lease_are_returned_in_full() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::http());
        let etcd = lab.etcd();
        let granted = etcd.ctl(&["lease", "grant", "1000"]);
        let hex = granted.split(' ').nth(1).expect("lease ID granted with TTL");
        let before = etcd.revision();
        for value in ["first", "second"] {
            etcd.ctl(&["put", "--lease", hex, &format!("/coreos.com/network/subnets/{LEASE}"), value]);
        }
        let entry = &etcd.leases()[LEASE];
        assert_eq!((entry.value.as_str(), entry.version), ("second", 2));
        assert_eq!((entry.create_revision, entry.mod_revision), (before + 1, before + 2));
        assert_eq!(format!("{:x}", entry.lease), hex);
        let ttl = etcd.ttl(entry.lease).expect("it lives");
        assert!(ttl.granted == 1000 && (900..=1000).contains(&ttl.remaining), "{ttl:?}");
        etcd.ctl(&["lease", "revoke", hex]);
        assert!(etcd.ttl(entry.lease).is_none() && etcd.leases().is_empty());
    });
}

#[test]
fn etcd_requires_a_client_certificate_and_a_user() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::mutual_tls().with_auth());
        let (etcd, node) = (lab.etcd(), lab.node(1));
        let flag = |name: &str| {
            let flags = etcd.flags();
            let value = flags.iter().find_map(|flag| flag.strip_prefix(&format!("--etcd-{name}=")));
            value.unwrap_or_else(|| panic!("no {name} in {flags:?}")).to_owned()
        };
        let trusted = format!("--endpoints={} --cacert={}", flag("endpoints"), flag("cafile"));
        let known = format!("{trusted} --cert={} --key={}", flag("certfile"), flag("keyfile"));
        let user = format!("{known} --user={}:{}", flag("username"), flag("password"));
        let own = key(1);
        from(node, &format!("{user} put {} {{}}", own.0)).expect("the daemon's own");
        assert_eq!(etcd.get(&own.0).as_deref(), Some("{}"));

        let refused = |args: &str| from(node, args).expect_err("must be refused");
        refused(&format!("{trusted} get {CONFIG}"));
        for said in [
            refused(&format!("{known} get {CONFIG}")),
            refused(&format!("{user} put {CONFIG} {{}}")),
            refused(&format!("{user} put /elsewhere 1")),
            etcd.try_ctl_as_daemon(&["get", "/elsewhere"]).expect_err("not the daemon's"),
        ] {
            assert!(said.contains("permission denied"), "{said}");
        }
        etcd.put(CONFIG, "{}");
        etcd.put("/elsewhere", "1");
        etcd.put_all(&[key(1)]);
        assert_eq!(etcd.leases().len(), 1);

        etcd.expire_certificate();
        let said = refused(&format!("{user} get {CONFIG}"));
        assert!(said.contains("expired") || said.contains("deadline exceeded"), "{said}");
        let verify =
            format!("openssl verify -CAfile {} {}", flag("cafile"), flag("cafile").replace("ca.", "server."));
        let out = node.ns.output(&verify);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("certificate has expired"), "{said}");
        assert_eq!(etcd.get(CONFIG).as_deref(), Some("{}"), "the lab's hand still reaches in");
        etcd.renew_certificate();
        from(node, &format!("{user} get {CONFIG}")).expect("the daemon's own again");

        etcd.kill9();
        etcd.start_empty();
        from(node, &format!("{user} put {} {{}}", own.0)).expect("users are made anew in an empty etcd");
    });
}

#[test]
fn data_outlives_the_process_but_not_the_disk() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::tls());
        let etcd = lab.etcd();
        etcd.put(CONFIG, "{}");
        etcd.kill9();
        assert!(etcd.try_ctl(&["get", CONFIG]).is_err());
        etcd.start();
        assert_eq!(etcd.get(CONFIG).as_deref(), Some("{}"));
        etcd.stop();
        etcd.start_empty();
        assert_eq!((etcd.get(CONFIG), etcd.revision()), (None, 1));
    });
}

#[test]
fn a_restored_etcd_is_back_at_the_revision_of_the_snapshot() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::http().with_auth());
        let etcd = lab.etcd();
        etcd.put(CONFIG, "old");
        let (then, snapshot) = (etcd.revision(), etcd.snapshot());
        etcd.put(CONFIG, "new");
        assert!(etcd.revision() > then);
        etcd.restore(&snapshot);
        assert_eq!((etcd.get(CONFIG).as_deref(), etcd.revision()), (Some("old"), then));
    });
}

#[test]
fn a_paused_etcd_does_not_reply_until_resumed() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::http());
        let etcd = lab.etcd();
        etcd.put(CONFIG, "{}");
        etcd.pause();
        let said = etcd.try_ctl(&["get", CONFIG]).expect_err("no answer");
        assert!(said.contains("deadline exceeded"), "{said}");
        etcd.resume();
        let answer = until(SOON, || etcd.try_ctl(&["get", "--print-value-only", CONFIG]).ok());
        assert_eq!(answer.as_deref(), Some("{}\n"));
    });
}

#[test]
fn a_watch_from_a_compacted_revision_fails() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::http());
        let etcd = lab.etcd();
        (0..3).for_each(|n| etcd.put(CONFIG, &n.to_string()));
        let watch = || {
            let mut command = lab.node(1).ns.command("etcdctl");
            command.arg(format!("--endpoints={}", etcd.endpoint())).args(["watch", "--rev=2", CONFIG]);
            command.env("ETCDCTL_API", "3");
            Lines::start(command)
        };
        assert!(watch().wait_for(SOON, |line| line == "PUT"), "history is there");
        etcd.compact();
        let watch = watch();
        assert!(watch.wait_for(SOON, |line| line.contains("has been compacted")), "{:?}", watch.all());
    });
}

#[test]
fn put_all_writes_thousands_of_keys() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::http());
        let keys: Vec<_> = (0..5000).map(key).collect();
        let start = std::time::Instant::now();
        lab.etcd().put_all(&keys);
        println!("5000 keys in {:?}", start.elapsed());
        let leases = lab.store.leases();
        assert_eq!(leases.len(), 5000);
        assert_eq!(leases["10.19.249.0-24"], key(4999).1);
    });
}

#[test]
fn two_labs_at_once_have_an_etcd_each() {
    lab::test(Timing::Free, || {
        let lab = with(EtcdSetup::http());
        assert_eq!(lab.etcd().get(CONFIG), None);
        lab.etcd().put(CONFIG, "{}");
        if std::env::var_os(SECOND).is_some() {
            return;
        }
        // A lab inside the lab has the same names and addresses, and its etcd starts while the first one serves.
        let mut second = Command::new(std::env::current_exe().expect("own executable"));
        second.args(["--exact", "etcd::two_labs_at_once_have_an_etcd_each", "--nocapture"]);
        let out = second.env(SECOND, "1").output().expect("it starts");
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(said.contains("test result: ok. 1 passed;"), "{said}");
        assert_eq!(lab.etcd().revision(), 2, "nobody else wrote here");
    });
}
