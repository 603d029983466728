//! Many at once: thousands of leases in a second, a daemon that is suspended meanwhile, fifty nodes that start together. Tests
//! that fill the machine run alone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lab::{EtcdSetup, Lab, Node, Timing, Topology};

use super::{SUBNETS, Vigil, additions, calm, lab, named, start};
use crate::cluster::{self, FLAGS, SOON};

/// Network config with room for all planted leases, apart from the range of the nodes' own subnets.
const WIDE: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"vxlan"}}"#;
/// Maximum resident memory of a debug build, in bytes.
const MEMORY: u64 = 60 << 20;

fn wide(nodes: usize) -> Lab {
    cluster::lab(Topology::flat(nodes).etcd(EtcdSetup::http()), WIDE)
}

/// Returns `count` good leases of nodes that do not exist.
fn strangers(count: usize) -> Vec<(String, String)> {
    let stranger = |n: usize| {
        let (high, low) = (n / 250, n % 250);
        let value = format!(
            r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:77:00:00:{high:02x}:{low:02x}"}}}}"#
        );
        (format!("{SUBNETS}10.{}.{low}.0-24", 100 + high), value)
    };
    (0..count).map(stranger).collect()
}

/// Returns the number of these leases that are completely programmed in the node's kernel.
fn programmed(node: &Node) -> usize {
    let count = |line: &str| node.ns.run(line).trim().parse().unwrap();
    [
        "ip route show proto 84 | grep -c '^10.1[0-9][0-9]\\.' || true",
        "ip neigh show dev flannel.1 | grep -c '^10.1[0-9][0-9]\\.' || true",
        "bridge fdb show dev flannel.1 | grep -c '^02:77:' || true",
    ]
    .map(count)
    .into_iter()
    .min()
    .unwrap()
}

#[test]
fn five_thousand_new_leases_leave_the_daemon_responsive() {
    lab::test(Timing::Timed, || {
        let lab = wide(2);
        let (mut daemons, pods) = start(&lab);
        let (etcd, node) = (lab.etcd(), lab.node(1));
        let vigil = Vigil::begin(&lab, &pods);
        let foreign: Vec<_> =
            (0..5000).map(|n| (format!("/coreos.com/network/n{n}"), "{half".to_owned())).collect();
        etcd.put_all(&foreign);
        etcd.put_all(&strangers(5000));
        let mut slowest = Duration::ZERO;
        lab::wait_for("all of them are programmed", 3 * SOON, || {
            let asked = Instant::now();
            assert!(node.twill(&["status"]).contains("store     in sync"));
            slowest = slowest.max(asked.elapsed());
            lab.nodes().iter().all(|node| programmed(node) == 5000)
        });
        lab::in_time("the slowest status", slowest, Duration::from_secs(2));
        for daemon in &daemons {
            assert!(daemon.rss() < MEMORY, "{} MB", daemon.rss() >> 20);
        }
        calm(lab.nodes());
        vigil.end(&mut daemons, additions);
    });
}

#[test]
fn a_suspended_daemon_catches_up() {
    lab::test(Timing::Free, || {
        let lab = wide(2);
        let (mut daemons, pods) = start(&lab);
        let etcd = lab.etcd();
        let vigil = Vigil::begin(&lab, &pods);
        daemons[0].pause();
        let all = strangers(3000);
        etcd.put_all(&all);
        etcd.delete(&all[2999].0);
        etcd.compact();
        lab::holds_for("the other one goes on", Duration::from_secs(10), || {
            lab.node(2).twill(&["status"]).contains("store     in sync")
        });
        assert_eq!(programmed(lab.node(1)), 0);
        daemons[0].resume();
        for node in lab.nodes() {
            lab::wait_for("it has caught up", 2 * SOON, || programmed(node) == 2999);
        }
        calm(lab.nodes());
        vigil.end(&mut daemons, |line| {
            additions(line) || line.contains("172.16.11.249") || line.contains("10.111.249.0")
        });
    });
}

#[test]
fn fifty_nodes_that_start_at_once_get_distinct_subnets() {
    lab::test(Timing::Timed, || {
        let lab = lab(50, EtcdSetup::http());
        let mut daemons: Vec<_> = lab.nodes().iter().map(|node| node.start(FLAGS)).collect();
        daemons.iter().for_each(lab::Daemon::wait_ready);
        let subnets: BTreeSet<_> = lab.nodes().iter().map(Node::subnet).collect();
        assert_eq!(subnets.len(), 50);
        let leases = lab.store.leases();
        let held: BTreeSet<_> = leases.keys().map(|key| key.replace('-', "/")).collect();
        assert_eq!(held, subnets, "nobody has left one behind");
        for node in lab.nodes() {
            let own = &leases[&cluster::lease_name(&node.subnet())];
            assert!(own.contains(&format!("\"{}\"", node.ip)), "{own}");
            lab::wait_for("it has all peers", SOON, || {
                node.ns.run("ip route show proto 84").lines().count() == 49
            });
        }
        assert!(daemons.iter_mut().all(lab::Daemon::is_alive));
        named(lab.nodes(), "state     ready");
    });
}
