//! Settings of a node by flanneld's names: on the command line, in the environment, in the options file.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use lab::{Daemon, Lab, Node, Timing, Topology};

use crate::cluster::{self, FLAGS, HOST_GW, SOON, VXLAN};

const TWILL: &str = env!("CARGO_BIN_EXE_twill");

/// Links our binary under flannel's name, where this node's programs find it.
fn flanneld(node: &Node) -> &'static str {
    std::os::unix::fs::symlink(TWILL, node.run_dir().join("flanneld")).unwrap();
    "/run/flannel/flanneld"
}

fn start_flanneld(node: &Node) -> Daemon<'_> {
    // This line runs in place of `twill daemon`.
    let exec = format!("shift 2; exec {} \"$@\"", flanneld(node));
    node.start_under(&["sh", "-c", &exec, "sh"], &["-iface", "eth0", "--ip-masq=T", "-v=0x1"])
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn backend(node: &Node) -> String {
    let status = node.twill(&["status"]);
    let line = status.lines().find_map(|line| line.strip_prefix("backend"));
    line.unwrap_or_else(|| panic!("{status}")).trim().to_owned()
}

#[test]
fn a_binary_named_flanneld_is_the_daemon() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let mut daemons: Vec<_> = lab.nodes().iter().map(start_flanneld).collect();
        daemons.iter().for_each(Daemon::wait_ready);
        cluster::reach_each_other(&lab.pods());
        assert_eq!(lab.node(1).subnet_env().unwrap().get("FLANNEL_IPMASQ"), Some("true"));
        assert_eq!(daemons[0].terminate().code(), Some(0));
    });
}

#[test]
fn exit_codes_distinguish_wrong_arguments_from_a_failed_start() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let (flanneld, store) = (flanneld(node), lab.store.path().display().to_string());
        let run = |args: &[&str]| output(&mut node.command(&[&[flanneld], args].concat()));
        for (args, code, word) in [
            (&["--bogus"][..], 2, "--bogus"),
            (&["--ip-masq=maybe"], 2, "--ip-masq"),
            (&["--healthz-port"], 2, "--healthz-port"),
            (&["--backend-type=udp", "--store", &store], 2, "host-gw"),
            (&["--kube-subnet-mgr"], 1, "--store DIR"),
            (&["--etcd-endpoints="], 1, "--etcd-endpoints"),
            (&["--store", &store, "--subnet-lease-renew-margin=1440"], 1, "1439"),
            (&["--store", &store, "--iface=eth7"], 1, "eth7"),
        ] {
            let (got, stdout, stderr) = run(args);
            assert_eq!((got, &*stdout), (Some(code), ""), "{args:?}: {stderr}");
            assert!(stderr.contains(word), "{args:?}: {stderr}");
            assert_eq!(stderr.contains("flanneld --help"), code == 2, "{args:?}: {stderr}");
        }
        let (code, stdout, stderr) = run(&["-help"]);
        assert!(code == Some(0) && stdout.contains("--etcd-endpoints=") && stderr.is_empty(), "{stderr}");
        let (code, stdout, stderr) = run(&["--version"]);
        let is_version = |text: &str| text.trim_end().split('.').all(|part| part.parse::<u32>().is_ok());
        assert!(code == Some(0) && stdout == stderr && is_version(&stdout), "{stdout:?} {stderr:?}");
        // A wrong value in the environment is reported and ignored.
        let bad = ["env", "FLANNELD_IP_MASQ=maybe", flanneld, "--store", &store, "--iface=eth7"];
        let (code, _, stderr) = output(&mut node.command(&bad));
        assert!(
            code == Some(1) && stderr.contains("ERROR ignored: environment: FLANNELD_IP_MASQ"),
            "{stderr}"
        );
    });
}

/// Three nodes get their backend from a different source each, and the fourth follows the config.
#[test]
fn the_first_source_decides_the_backend_and_status_names_it() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(4), VXLAN);
        let variable = "FLANNELD_BACKEND_TYPE";
        let options = |node: &Node, backend: &str| {
            let text = format!("# for this node\nexport {variable}=\"{backend}\"\nhunter2\n");
            fs::write(node.run_dir().join("options.env"), text).unwrap();
        };
        options(lab.node(1), "host-gw");
        options(lab.node(2), "vxlan");
        options(lab.node(3), "vxlan");
        let by_environment = format!("{variable}=host-gw");
        let against = format!("{variable}=vxlan");
        let daemons = [
            lab.node(1).start(FLAGS),
            lab.node(2).start_under(&["env", &by_environment], FLAGS),
            lab.node(3).start_under(&["env", &against], &["--iface=eth0", "--backend-type=host-gw"]),
            lab.node(4).start(FLAGS),
        ];
        daemons.iter().for_each(Daemon::wait_ready);
        let backends = || lab.nodes().iter().map(backend).collect::<Vec<_>>();
        let reported = ["host-gw (options.env)", "host-gw (environment)", "host-gw (command line)"];
        assert_eq!(backends(), [&reported[..], &["vxlan (network config)"]].concat());
        let leases = lab.store.leases();
        assert_eq!(leases.values().filter(|lease| lease.contains(r#""BackendType":"host-gw""#)).count(), 3);
        let log = daemons[0].log();
        assert!(log.contains("backend host-gw (options.env)"), "{log}");
        assert!(
            log.contains("ERROR ignored: /run/flannel/options.env:3: ") && !log.contains("hunter2"),
            "{log}"
        );
        cluster::reach_each_other(&lab.pods());
        follows_the_config(&lab, &backends, &reported);
    });
}

/// A node with a backend of its own keeps it whatever the config names; a node without one follows.
fn follows_the_config(lab: &Lab, backends: &dyn Fn() -> Vec<String>, reported: &[&str]) {
    for (config, fourth) in [
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#, "vxlan (network config)"),
        (r#"{"Network":"10.244.0.0/16"}"#, "vxlan (default)"),
        (HOST_GW, "host-gw (network config)"),
    ] {
        lab.store.config(config);
        let expected = [reported, &[fourth]].concat();
        lab::wait_for(config, SOON, || backends() == expected);
    }
    // A type that twill does not have does not matter to nodes that do not use it.
    lab.store.config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#);
    let is_unusable = |k| lab.node(k).twill(&["status"]).contains("\"udp\"");
    lab::wait_for("the fourth says so", SOON, || is_unusable(4));
    lab::holds_for("the others do not", Duration::from_secs(1), || [1, 2, 3].map(is_unusable) == [false; 3]);
}

#[test]
fn the_backend_of_the_flag_is_in_force_without_the_store_too() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, _pods) = cluster::start(&lab);
        let node = lab.node(1);
        let kept = node.cache_dir().join("run-flannel-subnet.env.leases");
        lab::wait_for("it is remembered", 2 * SOON, || kept.exists());
        daemons[0].kill9();
        fs::rename(lab.store.path(), lab.store.path().with_extension("away")).unwrap();
        let daemon = node.start(&["--iface=eth0", "--backend-type=host-gw"]);
        daemon.wait_ready();
        assert_eq!(backend(node), "host-gw (command line)");
        let log = daemon.log();
        assert!(log.contains("from the leases cache"), "{log}");
    });
}

/// A node's log begins with the settings that differ from the defaults.
#[test]
fn the_first_log_line_lists_changed_flags_and_at_debug_the_next_one_all() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (short, long) = (lab.node(1).start(FLAGS), lab.node(2).start(&[FLAGS, &["-v=1"]].concat()));
        [&short, &long].iter().for_each(|daemon| daemon.wait_ready());
        let lines = |daemon: &Daemon| daemon.log().lines().map(String::from).collect::<Vec<_>>();
        let (short, long) = (lines(&short), lines(&long));
        for line in [&short[0], &long[0]] {
            assert!(line.contains(" starts: ") && line.contains("iface=eth0 (command line)"), "{line}");
            assert!(line.contains("healthz-port=8081 (command line)"), "{line}");
            for absent in ["iface-regex=", "etcd-endpoints=", "subnet-file=", "config-reload=", "version="] {
                assert!(!line.contains(absent), "{absent} has its default: {line}");
            }
        }
        assert!(!short.iter().any(|line| line.contains("etcd-endpoints=")), "{short:#?}");
        let all = &long[1];
        for flag in ["etcd-endpoints=http://127.0.0.1:4001", "config-reload=true", "v=1 (command line)"] {
            assert!(all.contains("DEBUG") && all.contains(flag), "{flag}: {all}");
        }
    });
}

#[test]
fn a_password_is_in_no_log_and_no_report() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        fs::write(
            node.run_dir().join("options.env"),
            "FLANNELD_ETCD_USERNAME=root\nFLANNELD_PASSWORD=hunter2\n",
        )
        .unwrap();
        let words = ["env", "FLANNELD_ETCD_PASSWORD=hunter2"];
        let daemon = node.start_under(&words, &["--iface=eth0", "-v=9"]);
        daemon.wait_ready();
        let log = daemon.log();
        assert!(log.contains("etcd-password=*** (environment)"), "{log}");
        assert!(log.contains("etcd-username=root (options.env)"), "{log}");
        assert!(log.contains("WARN --etcd-password (environment): not used"), "{log}");
        let status = [node.twill(&["status"]), node.twill(&["status", "--json"])].concat();
        let pages = ["/readyz", "/metrics", "/healthz"].map(|path| node.get(path).unwrap().body).concat();
        assert!(![log, status, pages].concat().contains("hunter2"));
    });
}

#[test]
fn the_log_has_the_requested_verbosity_and_format() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let vmodule = "--vmodule=kube=2";
        let logs = [
            (["env", "-u", "RUST_LOG"], &["--log-format=json", "-v=1", vmodule]),
            (["env", "-u", "RUST_LOG"], &["--log-format=text", "-v=0", vmodule]),
            (["env", "RUST_LOG=error", "A=1"], &["--log-format=text", "-v=4", vmodule]),
        ];
        let daemons: Vec<_> = lab
            .nodes()
            .iter()
            .zip(&logs)
            .map(|(node, (words, args))| node.start_under(words, *args))
            .collect();
        daemons.iter().for_each(Daemon::wait_ready);
        let [json, text, errors] = &daemons[..] else { panic!() };
        let lines: Vec<serde_json::Value> =
            json.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let debug: Vec<_> = lines.iter().filter(|line| line["level"] == "DEBUG").collect();
        assert!(
            debug.iter().any(|line| line["message"].as_str().unwrap().contains("--vmodule")),
            "{lines:?}"
        );
        let text = text.log();
        assert!(text.contains(" INFO ready: ") && !text.contains("DEBUG"), "{text}");
        assert_eq!(errors.log(), "");
    });
}

#[test]
fn docker_opts_come_from_the_subnet_file() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, _pods) = cluster::start(&lab);
        let node = lab.node(1);
        let out = node.run_dir().join("docker");
        let file = |args: &[&str]| {
            node.twill(&[&["docker-opts", "-d", "/run/flannel/docker"], args].concat());
            fs::read_to_string(&out).unwrap()
        };
        let (bridge, len) = node.subnet_env().unwrap().gateway4().unwrap();
        let all = format!(" --bip={bridge}/{len} --ip-masq=true --mtu=1450");
        let each = format!(
            "DOCKER_OPT_BIP=\"--bip={bridge}/{len}\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n"
        );
        assert_eq!(file(&[]), format!("{each}DOCKER_OPTS=\"{all}\"\n"));
        assert_eq!(file(&["-ck", "DOCKER_NETWORK_OPTIONS"]), format!("DOCKER_NETWORK_OPTIONS=\"{all}\"\n"));
        // The subnet belongs to another node, as a route to it shows.
        let theirs = lab.node(2).run_dir().join("subnet.env");
        let written = fs::read_to_string(&out).unwrap();
        let theirs = theirs.to_str().unwrap();
        let (code, _, stderr) =
            output(&mut node.twill_command(&["docker-opts", "-d", "/run/flannel/docker", "-f", theirs]));
        assert!(code == Some(1) && stderr.contains(&lab.node(2).subnet()), "{stderr}");
        let missing = output(&mut node.twill_command(&["docker-opts", "-f", "/run/flannel/none"]));
        assert!(missing.0 == Some(1) && missing.2.contains("/run/flannel/none"), "{missing:?}");
        assert_eq!(fs::read_to_string(&out).unwrap(), written, "nothing is written again");
    });
}
