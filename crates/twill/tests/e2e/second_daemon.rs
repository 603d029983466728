//! Two daemons on one node. A daemon that would conflict is refused, and the message names the owner. Otherwise both
//! run side by side, with the three flags that flannel needs for it.

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command, Stdio};

use lab::{EtcdSetup, Lab, Node, Ns, Timing, Topology, View, view};

use crate::cluster::{self, SOON, VXLAN};

const SECOND: &str = r#"{"Network":"10.250.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
const SECOND_FILE: &str = "--subnet-file=/run/flannel/second.env";
const OTHER_SOCKET: &str = "--socket=/run/flannel/other.sock";

/// A process that is killed with its owner, even if the test fails.
struct Running(Child);

impl Running {
    fn start(mut command: Command, log: &std::path::Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let streams = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(streams.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the command of a daemon beside the first one, with a store of its own that holds `config`.
fn second(node: &Node, config: &str, flags: &[&str]) -> Command {
    let store = node.run_dir().with_file_name(format!("second-store-{}", node.index));
    fs::create_dir_all(&store).unwrap();
    fs::write(store.join("config"), config).unwrap();
    let store = format!("--store={}", store.display());
    let mut args = vec!["daemon", &store, "--cache-dir=", "--iface=eth0"];
    args.extend_from_slice(flags);
    node.twill_command(&args)
}

/// Runs a daemon that must not start, and returns its last message.
fn refusal(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it has started: {said}");
    said.lines().last().unwrap_or_default().to_owned()
}

/// Returns the command `twill daemon` with the lab's etcd and these flags only. Its default cache is the node's own.
fn plain(lab: &Lab, node: &Node, flags: &[&str]) -> Command {
    let (twill, cache) = (env!("CARGO_BIN_EXE_twill"), node.cache_dir().display());
    let line = format!("mkdir -p {cache} && mount --bind {cache} /var/cache && exec {twill} daemon \"$@\"");
    let endpoint = format!("--etcd-endpoints={}", lab.etcd().endpoint());
    node.command(&[&["sh", "-c", &*line, "sh", &*endpoint], flags].concat())
}

fn is_ready(node: &Node, flags: &[&str]) -> bool {
    let output = node.twill_output(&[&["status"], flags].concat());
    String::from_utf8_lossy(&output.stdout).lines().any(|line| line == "state     ready")
}

/// Makes a pod of the second network: a namespace with a cable to a bridge of that network. Returns it with its address.
fn second_pod(node: &Node) -> (Ns, String) {
    let text = fs::read_to_string(node.run_dir().join("second.env")).unwrap();
    let gateway = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).unwrap();
    let address = gateway.replace(".1/", ".2/");
    let name = format!("second{}", node.index);
    node.ns.run(&format!(
        "ip netns add {name} && ip link add cni1 type bridge && ip link set cni1 up && ip address add {gateway} dev cni1 &&
         ip link add {name} type veth peer name eth0 netns {name} && ip link set {name} master cni1 up"
    ));
    let pod = Ns::named(&name);
    let (via, _) = gateway.split_once('/').unwrap();
    pod.run(&format!(
        "ip link set lo up; ip link set eth0 up; ip address add {address} dev eth0; ip route add default via {via}"
    ));
    (pod, address.split('/').next().unwrap().to_owned())
}

fn wait_ping(from: &Ns, to: &str) {
    lab::wait_for(&format!("{} reaches {to}", from.name()), SOON, || {
        from.output(&format!("ping -n -c 1 -W 1 {to}")).status.success()
    });
}

#[test]
fn a_second_network_needs_three_flags_and_a_file_of_its_own() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2).etcd(EtcdSetup::http()), VXLAN);
        lab.etcd().put("/second/network/config", SECOND);
        let three = [SECOND_FILE, "--etcd-prefix=/second/network"];
        let start = |node: &Node, flags: &[&str]| {
            Running::start(plain(&lab, node, flags), &node.run_dir().join(format!("{}.log", flags.len())))
        };
        let first: Vec<Running> = lab.nodes().iter().map(|node| start(node, &[])).collect();
        lab.nodes().iter().for_each(|node| lab::wait_for("first", SOON, || is_ready(node, &[])));
        let mut beside: Vec<Running> = lab.nodes().iter().map(|node| start(node, &three)).collect();
        lab.nodes().iter().for_each(|node| lab::wait_for("second", SOON, || is_ready(node, &[SECOND_FILE])));
        cluster::reach_each_other(&lab.pods());
        let (one, other) = (second_pod(lab.node(1)), second_pod(lab.node(2)));
        wait_ping(&one.0, &other.1);
        wait_ping(&other.0, &one.1);

        let node = lab.node(1);
        for flags in [&[][..], &[SECOND_FILE]] {
            lab::wait_for("nothing is to be done", SOON, || {
                node.twill_output(&[&["diff"], flags].concat()).status.success()
            });
        }
        let cached = |name: &str| node.cache_dir().join("twill").join(name).exists();
        assert!(cached("run-flannel-subnet.env.leases") && cached("run-flannel-second.env.leases"));

        let third = ["--etcd-prefix=/third/network", "--socket=/run/flannel/third.sock"];
        for (flag, owner) in [("--subnet-file=/run/flannel/subnet.env", &first[0]), (SECOND_FILE, &beside[0])]
        {
            let said = refusal(plain(&lab, node, &[&third[..], &[flag]].concat()));
            let by = format!("another daemon of this node (pid {}) writes", owner.pid());
            assert!(said.contains(&by) && said.contains("another --subnet-file"), "{said}");
        }
        // A daemon that was killed holds nothing, and its files do not name it for long.
        beside.remove(0);
        let again = start(node, &three);
        lab::wait_for("second again", SOON, || is_ready(node, &[SECOND_FILE]));
        let said = refusal(plain(&lab, node, &three));
        assert!(said.contains(&format!("(pid {}) writes", again.pid())), "{said}");
        drop(again);
        node.twill(&["uninstall", SECOND_FILE, "--cache-dir="]);
        assert!(View::of(&node.ns).link("flannel.7").is_none());
        assert!(is_ready(node, &[]) && View::of(&node.ns).link("flannel.1").is_some());
    });
}

#[test]
fn with_the_same_file_network_vni_port_or_socket_it_is_refused_and_the_owner_named() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let daemons = lab.start_all(cluster::FLAGS);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        let around = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"host-gw"}}"#;
        let vni_1 = r#"{"Network":"10.250.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let pid = daemons[0].pid();
        let by = format!("another daemon of this node (pid {pid}, --subnet-file /run/flannel/subnet.env)");
        let socket = "--socket=/run/flannel/twill.sock";
        let port = ["--healthz-ip=127.0.0.1", "--healthz-port=8081"];
        let any_address = ["--healthz-port=8081"];
        for (config, flags, by, words) in [
            (VXLAN, &[][..], &*format!("another daemon of this node (pid {pid})"), "another --subnet-file"),
            (VXLAN, &[SECOND_FILE], &by, "has network 10.244.0.0/16"),
            (VXLAN, &[SECOND_FILE], &by, "--etcd-prefix (or --store) with another Network"),
            (around, &[SECOND_FILE], &by, "has network 10.244.0.0/16, which overlaps 10.0.0.0/8"),
            (vni_1, &[SECOND_FILE], &by, "has VNI 1: stop it, or give one of them another VNI"),
            (SECOND, &[SECOND_FILE, socket], &by, "another --socket"),
            (SECOND, &[&[SECOND_FILE][..], &port].concat(), &by, "another --healthz-port"),
            (SECOND, &[&[SECOND_FILE][..], &any_address].concat(), &by, "another --healthz-port"),
        ] {
            let said = refusal(second(node, config, flags));
            assert!(said.contains(by) && said.contains(words), "{flags:?}: {said}");
            assert!(node.twill(&["status"]).contains("ready"), "the first one still answers");
        }
        assert_eq!(before.diff(&View::of(&node.ns)), "");
        assert_eq!(node.get("/readyz").unwrap().status, 200);
        // Without a daemon for that file, the message names the existing daemons.
        let nobody = node.twill_output(&["status", "--subnet-file=/run/flannel/third.env"]);
        let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
        assert!(said.contains("/run/flannel/third.env.sock"), "{said}");
        assert!(said.contains("--subnet-file /run/flannel/subnet.env"), "{said}");
    });
}

/// A DaemonSet's daemon has a process id of its own pid namespace, which means nothing in this one.
#[test]
fn a_daemon_of_another_pid_namespace_is_named_as_such() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let contained = ["unshare", "--pid", "--fork", "--kill-child=KILL"];
        let daemon = lab.node(1).start_under(&contained, cluster::FLAGS);
        daemon.wait_ready();
        let elsewhere = "pid 1 of another pid namespace";
        let said = refusal(second(lab.node(1), SECOND, &[]));
        assert!(said.contains(elsewhere) && said.contains("another --subnet-file"), "{said}");
        let said = refusal(second(lab.node(1), VXLAN, &[SECOND_FILE]));
        assert!(said.contains(elsewhere) && said.contains("subnet.env"), "{said}");
        let said = refusal(second(lab.node(1), SECOND, &[SECOND_FILE, "--socket=/run/flannel/twill.sock"]));
        assert!(said.contains("(--socket)") && said.contains("another --socket"), "{said}");
    });
}

/// An abstract address of another program may be any bytes.
#[test]
fn foreign_socket_names_that_are_not_text_do_no_harm() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let _odd = node.ns.within(|| {
            [
                &b"\xff\xfe"[..],
                b"twill network \xff",
                b"twill pid x of y has VNI 1",
                b"twill pid 1 of 2 has \n",
            ]
            .map(|name| UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap())
        });
        let _first = lab.start_all(cluster::FLAGS);
        let said = refusal(second(node, SECOND.replace('7', "1").as_str(), &[SECOND_FILE]));
        assert!(said.contains("has VNI 1: stop it"), "{said}");
    });
}

#[test]
fn with_different_settings_both_work_and_leave_each_other_alone() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        let config = r#"{"Network":"10.250.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#;
        // Options of the first daemon do not apply to the second.
        fs::write(node.run_dir().join("options.env"), format!("FLANNELD_{}\n", "HEALTHZ_PORT=8081")).unwrap();
        fs::write(node.run_dir().join("second.env.options"), "FLANNELD_V=1\n").unwrap();
        let log = node.run_dir().join("second.log");
        let beside = Running::start(second(node, config, &[SECOND_FILE]), &log);
        lab::wait_for("the second is ready", SOON, || is_ready(node, &[SECOND_FILE]));
        let said = fs::read_to_string(&log).unwrap();
        let first_line = said.lines().next().unwrap();
        assert!(first_line.contains("v=1 (options.env)"), "{first_line}");
        assert!(
            first_line.contains("socket=/run/flannel/second.env.sock (beside the subnet file)"),
            "{first_line}"
        );
        let now = View::of(&node.ns);
        assert!(now.link("flannel.7").is_some());
        let of_first = |view: &View| {
            view::ours(view)
                .filter(|row| row.device() != "flannel.7")
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(of_first(&before), of_first(&now));
        let note =
            format!("(pid {}, --subnet-file /run/flannel/subnet.env) keeps the traffic", daemons[0].pid());
        let page = node.twill(&["status", SECOND_FILE]);
        assert!(page.contains(&note) && page.contains("--iptables-forward-rules=false"), "{page}");
        daemons[0].kill9();
        daemons[0].restart();
        daemons[0].wait_ready();
        assert_eq!(now.diff(&View::of(&node.ns)), "");
        drop(beside);
        assert!(pods[0].ping(pods[1].ip()).is_some());
    });
}

#[test]
fn a_given_socket_is_used_instead_of_the_derived_one() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let _first = lab.start_all(cluster::FLAGS);
        let log = node.run_dir().join("second.log");
        let _beside = Running::start(second(node, SECOND, &[SECOND_FILE, OTHER_SOCKET]), &log);
        lab::wait_for("the second is ready", SOON, || is_ready(node, &[OTHER_SOCKET]));
        assert!(!is_ready(node, &[SECOND_FILE]), "nobody listens beside the subnet file");
        assert!(is_ready(node, &[SECOND_FILE, OTHER_SOCKET]), "what is given goes before what is derived");
    });
}
