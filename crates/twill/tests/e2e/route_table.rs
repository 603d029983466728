//! `--route-table`: pods' routes are in a table of their own, and a rule leads there. Both have the names that `make install`
//! gives them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::{Daemon, Lab, Node, Pod, Timing, Topology, View};

use crate::cluster::{self, HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL};

const FLAGS: &[&str] = &["--iface=eth0", "--route-table=flannel"];

/// Returns the output of an ip command where the names are installed.
fn named(node: &Node, line: &str) -> String {
    let names = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/iproute2");
    let dir = node.run_dir().join("iproute2");
    for (file, name) in [("rt_tables", "rt_tables.conf"), ("rt_protos", "rt_protos.conf")] {
        let parts = dir.join(format!("{file}.d"));
        fs::create_dir_all(&parts).unwrap();
        fs::copy(Path::new("/etc/iproute2").join(file), dir.join(file)).unwrap();
        fs::copy(names.join(name), parts.join("twill.conf")).unwrap();
    }
    let dir = dir.display();
    node.ns.run(&format!("unshare --mount sh -c 'mount --bind {dir} /etc/iproute2 && {line}'"))
}

fn start(config: &str) -> (Lab, String) {
    let lab = cluster::lab(Topology::flat(2), config);
    let first = lab.node(1).ip.to_string();
    (lab, first)
}

fn reached(lab: &Lab) -> (Vec<Daemon<'_>>, Vec<Pod>) {
    let (daemons, pods) = (lab.start_all(FLAGS), lab.pods());
    cluster::reach_each_other(&pods);
    (daemons, pods)
}

/// Asserts that `ip route show table flannel` prints exactly these lines. The main table must have no route to the peer.
fn holds(lab: &Lab, lines: impl Fn(&Node) -> Vec<String>, family: &str) {
    let (node, peer) = (lab.node(1), lab.node(2));
    let shown = named(node, &format!("ip {family} route show table flannel"));
    assert_eq!(shown.lines().map(str::trim_end).collect::<Vec<_>>(), lines(peer));
    let subnet = if family == "-6" { peer.subnet6() } else { peer.subnet() };
    assert!(!node.ns.run(&format!("ip {family} route show table main")).contains(&subnet));
    let network = if family == "-6" { "fd00:244::/48" } else { "10.244.0.0/16" };
    let rules = named(node, &format!("ip {family} rule show"));
    let ours = format!("5000:\tfrom all to {network} lookup flannel proto twill");
    assert_eq!(
        rules.lines().filter(|line| line.contains("lookup flannel")).collect::<Vec<_>>(),
        [&ours],
        "{rules}"
    );
}

#[test]
fn the_table_has_only_routes_via_nodes_with_host_gw() {
    lab::test(Timing::Free, || {
        let (lab, _) = start(HOST_GW);
        let _running = reached(&lab);
        holds(&lab, |peer| vec![format!("{} via {} dev eth0 proto twill", peer.subnet(), peer.ip)], "-4");
    });
}

#[test]
fn the_table_has_only_routes_via_vteps_with_vxlan() {
    lab::test(Timing::Free, || {
        let (lab, _) = start(VXLAN);
        let _running = reached(&lab);
        let line = |subnet: String| {
            let vtep = subnet.split('/').next().unwrap();
            vec![format!("{subnet} via {vtep} dev flannel.1 proto twill onlink")]
        };
        holds(&lab, |peer| line(peer.subnet()), "-4");
    });
}

#[test]
fn the_table_has_routes_of_both_families_in_dual_stack() {
    lab::test(Timing::Free, || {
        let (lab, _) = start(HOST_GW_DUAL);
        let _running = reached(&lab);
        holds(&lab, |peer| vec![format!("{} via {} dev eth0 proto twill", peer.subnet(), peer.ip)], "-4");
        let line = |peer: &Node| {
            vec![format!("{} via {} dev eth0 proto twill metric 1024 pref medium", peer.subnet6(), peer.ip6)]
        };
        holds(&lab, line, "-6");
    });
}

#[test]
fn rule_and_table_are_repaired() {
    lab::test(Timing::Timed, || {
        let (lab, _) = start(VXLAN_DUAL);
        let (_daemons, pods) = reached(&lab);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        for harm in [
            "ip rule del priority 5000",
            "ip -6 rule del priority 5000",
            "ip route flush table 8472",
            "ip -6 route flush table 8472",
        ] {
            node.ns.run(harm);
            let healed = || before.diff(&View::now(&node.ns)).is_empty().then_some(());
            lab::until(Duration::from_secs(1), healed)
                .unwrap_or_else(|| panic!("{harm}: {}", before.diff(&View::now(&node.ns))));
        }
        cluster::reach_each_other(&pods);
    });
}

#[test]
fn back_in_the_main_table_no_rule_or_route_of_the_old_table_is_left() {
    lab::test(Timing::Free, || {
        let (lab, _) = start(VXLAN_DUAL);
        let (daemons, pods) = reached(&lab);
        drop(daemons);
        let _daemons = lab.start_all(cluster::FLAGS);
        for node in lab.nodes() {
            lab::wait_for("table and rules are gone", SOON, || {
                let all =
                    node.ns.run("ip route show table 8472; ip -6 route show table 8472; ip rule; ip -6 rule");
                !all.contains("10.244.") && !all.contains("fd00:244")
            });
        }
        cluster::reach_each_other(&pods);
    });
}
