//! Output for people and probes: `twill status`, /healthz and /readyz.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use lab::{Node, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON, VXLAN};

#[test]
fn without_a_config_the_node_waits_and_names_it() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).twill(env!("CARGO_BIN_EXE_twill")).build();
        let node = lab.node(1);
        let daemon = node.start(FLAGS);
        lab::wait_for("readyz says so", SOON, || {
            node.get("/readyz").is_some_and(|reply| {
                reply.status == 503 && reply.body.contains("waiting for the network config")
            })
        });
        assert_eq!(node.get("/healthz").unwrap().status, 200);
        assert_eq!(
            node.get("/status").unwrap().status,
            404,
            "the port answers with health and metrics alone"
        );
        lab.store.config(VXLAN);
        daemon.wait_ready();
    });
}

/// An exhausted pool is named, and a larger one is taken up though the daemon still waits for a lease.
#[test]
fn a_node_without_a_subnet_waits_and_follows_the_config_meanwhile() {
    lab::test(Timing::Free, || {
        let small = r#"{"Network":"10.244.0.0/24","SubnetLen":26,"Backend":{"Type":"vxlan"}}"#;
        let lab = cluster::lab(Topology::flat(1), small);
        for (at, first) in [64, 128, 192].into_iter().enumerate() {
            let lease = format!(
                r#"{{"PublicIP":"192.168.100.{}","PublicIPv6":null,"BackendType":"host-gw"}}"#,
                90 + at
            );
            lab.store.put_lease(&format!("10.244.0.{first}-26"), &lease);
        }
        let node = lab.node(1);
        let daemon = node.start(FLAGS);
        lab::wait_for("it says so", SOON, || {
            node.get("/readyz")
                .is_some_and(|reply| reply.status == 503 && reply.body.contains("out of subnets"))
        });
        lab.store.config(VXLAN);
        daemon.wait_ready();
        assert!(node.subnet().ends_with("/24"));
    });
}

#[test]
fn status_is_a_table_for_people_and_json_for_machines() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (_daemons, _pods) = cluster::start(&lab);
        let node = lab.node(1);
        lab::wait_for("both peers", SOON, || node.twill(&["status"]).contains("\n2 peers: "));
        let page = node.twill(&["status"]);
        assert!(page.contains("\nbackend   vxlan (network config)\n"), "{page}");
        let start = page.find("ADDRESS ").unwrap();
        let rows: Vec<Vec<&str>> =
            page[start..].lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0][..5], ["ADDRESS", "SUBNET", "BACKEND", "PATH", "HEALTH"]);
        let of = |node: &lab::Node| [node.ip.to_string(), node.subnet(), "vxlan".into(), "vxlan".into()];
        let mut expected = [2, 3].map(|k| of(lab.node(k)));
        expected.sort();
        let mut shown = [1, 2].map(|k| [0, 1, 2, 3].map(|cell| rows[k][cell].to_owned()));
        shown.sort();
        assert_eq!(shown, expected);
        let json: serde_json::Value = serde_json::from_str(&node.twill(&["status", "--json"])).unwrap();
        assert_eq!(json["format"], 1);
        let peers = json["peers"].as_array().unwrap();
        assert_eq!(peers.len(), 2);
        assert!(
            peers.iter().all(|peer| peer["path"] == "vxlan" && peer["health"]["fault"] == false),
            "{json}"
        );
        let mode = node.ns.run(&format!("stat -c %a {}", node.run_dir().join("twill.sock").display()));
        assert_eq!(mode.trim(), "600");
    });
}

fn watch(node: &Node) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = node.twill_command(&["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn wait_for_line(lines: &mut Lines<BufReader<ChildStdout>>, start: &str) {
    assert!(lines.any(|line| line.unwrap().starts_with(start)), "{start}");
}

/// It prints page after page, also while the daemon is away. It ends with Ctrl-C or with its reader, and neither is a failure.
#[test]
fn status_is_repeated_until_its_reader_ends() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        let daemons = lab.start_all(FLAGS);
        let (mut child, mut lines) = watch(node);
        wait_for_line(&mut lines, "1 peer: ");
        wait_for_line(&mut lines, "1 peer: ");
        drop(daemons);
        wait_for_line(&mut lines, "twill: cannot reach the daemon");
        let _daemons = lab.start_all(FLAGS);
        wait_for_line(&mut lines, "1 peer: ");
        node.ns.run(&format!("kill -INT {}", child.id()));
        assert!(child.wait().unwrap().success(), "ctrl-c");
        let (mut child, mut lines) = watch(node);
        wait_for_line(&mut lines, "1 peer: ");
        drop(lines);
        assert!(child.wait().unwrap().success(), "a pipe that is closed");
    });
}

/// A daemon that accepts the connection and never answers does not keep the command from ending with Ctrl-C.
#[test]
fn ctrl_c_ends_a_watch_of_a_mute_daemon_at_once() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).twill(env!("CARGO_BIN_EXE_twill")).build();
        let node = lab.node(1);
        let socket = node.run_dir().join("mute.sock");
        let daemon = UnixListener::bind(&socket).unwrap();
        let socket = socket.display().to_string();
        let mut watch = node.twill_command(&["status", "--watch", "--socket", &socket]).spawn().unwrap();
        let _request = daemon.accept().unwrap();
        node.ns.run(&format!("kill -INT {}", watch.id()));
        let began = Instant::now();
        assert!(watch.wait().unwrap().success());
        assert!(began.elapsed() < Duration::from_secs(5), "it waited for the daemon: {:?}", began.elapsed());
    });
}

/// A foreign device has our VNI and port. The node is not ready from the start, gives the reason, and writes no
/// subnet file. Once the device is gone it is ready.
#[test]
fn a_device_that_cannot_be_created_makes_the_node_unready() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        node.ns.run("ip link add squatter type vxlan id 1 dev eth0 dstport 8472");
        let daemon = node.start(FLAGS);
        lab::wait_for("it says why", SOON, || {
            node.get("/readyz").is_some_and(|reply| reply.body.contains("flannel.1"))
        });
        // The span is longer than the op is retried at once, so the op is delayed meanwhile.
        lab::holds_for("it is not ready", std::time::Duration::from_secs(8), || {
            node.get("/readyz").is_some_and(|reply| reply.status == 503) && node.subnet_env().is_none()
        });
        // Each refusal is reported once, though each op was tried a dozen times.
        let log = daemon.log();
        let refusals = log.lines().filter(|line| line.contains("flannel.1")).count();
        assert!(log.lines().count() < 24 && refusals < 12, "{log}");
        node.ns.run("ip link del squatter");
        daemon.wait_ready();
        assert!(node.ns.run("ip -d link show flannel.1").contains("vxlan id 1 "));
        assert_eq!(node.ns.run("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra").trim(), "0");
    });
}

/// A peer announces a VNI for which no device can be made here: that is the peer's fault.
#[test]
fn a_device_refused_for_a_peers_vni_leaves_the_node_ready() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        node.ns.run(
            "ip link add squatter type vxlan id 7 dev eth0 dstport 8472; ip link add flannel.9 type bridge",
        );
        for (vni, at) in [(7, 7), (9, 9)] {
            let mac = format!("02:00:00:00:0d:{vni:02x}");
            let data = format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#);
            let lease = format!(
                r#"{{"PublicIP":"192.168.100.{at}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
            );
            lab.store.put_lease(&format!("10.244.{at}.0-24"), &lease);
        }
        lab::wait_for("both are tried", SOON, || {
            let status = node.twill(&["status"]);
            status.contains("flannel.7") && status.contains("flannel.9 exists")
        });
        // The span is longer than a repair may take before readiness turns off.
        lab::holds_for("it is ready", std::time::Duration::from_secs(7), || {
            node.get("/readyz").is_some_and(|reply| reply.status == 200)
        });
        assert!(pods[0].ping(pods[1].ip()).is_some());
    });
}
