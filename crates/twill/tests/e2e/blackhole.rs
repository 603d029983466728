//! `--ip-blackhole-route`: packets for missing pods of this node are dropped here, and nothing else is. No existing pod loses
//! packets, and the route goes when its reason does.

use std::fs;

use lab::{Capture, Lab, Node, Timing, Topology};

use crate::cluster::{self, HOST_GW, SOON, VXLAN, VXLAN_DUAL};

const FLAGS: &[&str] = &["--iface=eth0", "--ip-blackhole-route"];

/// Returns lines of ip, one for each blackhole route of either family in any table.
fn blackholes(node: &Node) -> Vec<String> {
    let shown = node
        .ns
        .run("ip -4 -o route show table all type blackhole; ip -6 -o route show table all type blackhole");
    shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Returns the blackhole routes of a healthy node.
fn ours(node: &Node, both: bool) -> Vec<String> {
    let ipv4 = format!("blackhole {} proto 84 metric 4294967295", node.subnet());
    let ipv6 =
        both.then(|| format!("blackhole {} dev lo proto 84 metric 4294967295 pref medium", node.subnet6()));
    [ipv4].into_iter().chain(ipv6).collect()
}

/// Returns an address of this node's subnet that no pod has.
fn nobody(node: &Node) -> String {
    node.subnet().replace(".0/24", ".77")
}

/// Returns true if packets that the node sends to `address` leave through its uplink.
fn leaks(node: &Node, address: &str) -> bool {
    let wire = Capture::start(&node.ns, "eth0", &[&format!("host {address}")]);
    let _ = node.ns.output(&format!("ping -n -c 3 -i 0.01 -W 1 {address}"));
    !wire.stop().is_empty()
}

#[test]
fn packets_for_missing_pods_are_dropped_and_a_later_bridge_has_precedence() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        // Each node has the other as its router, which sends such packets back.
        for (node, router) in [(lab.node(1), lab.node(2)), (lab.node(2), lab.node(1))] {
            node.ns.run(&format!("ip route replace default via {}", router.ip));
        }
        let mut plain = lab.node(1).start(cluster::FLAGS);
        plain.wait_ready();
        assert!(leaks(lab.node(1), &nobody(lab.node(1))), "the default route takes it");
        plain.kill9();
        drop(plain);
        let daemons = lab.start_all(FLAGS);
        for node in lab.nodes() {
            assert_eq!(blackholes(node), ours(node, true));
        }
        assert!(!leaks(lab.node(1), &nobody(lab.node(1))));
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        assert!(pods[0].ips().all(|ip| lab.node(1).ping(ip).is_some()), "the node itself reaches its pod");
        // A deleted route comes back, like every object of ours.
        let node = lab.node(1);
        node.ns.run(&format!("ip route del blackhole {}", node.subnet()));
        lab::wait_for("it is back", SOON, || blackholes(node) == ours(node, true));
        let asked = cluster::ops_asked(node);
        assert!(node.twill_output(&["diff"]).status.success(), "{}", daemons[0].log());
        assert_eq!(cluster::ops_asked(node), asked);
    });
}

#[test]
fn without_the_flag_the_route_goes() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW);
        let daemons = lab.start_all(FLAGS);
        assert_eq!(blackholes(lab.node(1)), ours(lab.node(1), false));
        drop(daemons);
        assert_eq!(blackholes(lab.node(1)), ours(lab.node(1), false), "it stays as all that is ours");
        let (_daemons, _pods) = cluster::start(&lab);
        lab.nodes().iter().for_each(|node| assert_eq!(blackholes(node), [""; 0]));
    });
}

/// Gives the node's lease to another address, so that its next start takes another subnet. Returns the old subnet.
fn lose_the_subnet(lab: &Lab, node: &Node) -> String {
    let old = node.subnet();
    let name = cluster::lease_name(&old);
    let lease = lab.store.leases()[&name].clone();
    let theirs = lease.replace(&node.ip.to_string(), "192.168.100.77");
    assert_ne!(lease, theirs);
    lab.store.put_lease(&name, &theirs);
    fs::remove_file(node.run_dir().join("subnet.env")).unwrap();
    // The leases cache would show that the other node has overwritten our lease.
    fs::remove_dir_all(node.cache_dir()).unwrap();
    old
}

#[test]
fn after_a_change_of_the_subnet_the_old_one_is_not_dropped() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW);
        let node = lab.node(1);
        let mut daemon = node.start(FLAGS);
        daemon.wait_ready();
        daemon.kill9();
        let old = lose_the_subnet(&lab, node);
        // flannel has left a route for the same subnet.
        node.ns.run(&format!("ip route add blackhole {old}"));
        daemon.restart();
        daemon.wait_ready();
        assert_ne!(node.subnet(), old);
        assert_eq!(blackholes(node), ours(node, false));
        let way = node.ns.run(&format!("ip route get {}", old.replace(".0/24", ".7")));
        assert!(way.contains("via 192.168.100.77"), "{way}");
    });
}

#[test]
fn flannels_route_goes_and_one_of_unknown_origin_is_reported() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let node = lab.node(1);
        let mut daemon = node.start(cluster::FLAGS);
        daemon.wait_ready();
        assert!(daemon.terminate().success());
        let (own, own6) = (node.subnet(), node.subnet6());
        // Pods could have this subnet, since it may be leased.
        let other = if own == "10.244.30.0/24" { "10.244.31.0/24" } else { "10.244.30.0/24" };
        // flannel leaves it like this; a bridge's route comes second.
        node.ns.run(&format!(
            "ip route add blackhole {own}; ip -6 route add blackhole {own6}; ip route add blackhole {other}"
        ));
        let dead = node.pod();
        assert!(node.ping(dead.ip()).is_none(), "flannel's blackhole goes before the bridge");
        daemon.restart();
        daemon.wait_ready();
        assert!(dead.ips().all(|ip| node.ping(ip).is_some()));
        assert_eq!(blackholes(node), [format!("blackhole {other}")]);
        let status = node.twill(&["status"]);
        let reported = format!("If nothing needs it: ip route del blackhole {other}");
        assert!(status.contains(&reported), "{status}");
        // With the flag our own route replaces it.
        daemon.kill9();
        node.ns.run(&format!("ip route del blackhole {other}; ip -6 route add blackhole {own6} metric 1024"));
        drop(daemon);
        let daemon = node.start(FLAGS);
        daemon.wait_ready();
        assert_eq!(blackholes(node), ours(node, true));
        assert!(dead.ips().all(|ip| node.ping(ip).is_some()));
    });
}

#[test]
fn uninstall_and_hand_over_remove_the_route() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let mut daemons = lab.start_all(FLAGS);
        for (daemon, (node, extent)) in daemons
            .iter_mut()
            .zip(lab.nodes().iter().zip([&["uninstall"][..], &["uninstall", "--hand-over"]]))
        {
            assert!(daemon.terminate().success());
            assert_eq!(blackholes(node).len(), 2);
            node.twill(extent);
            assert_eq!(blackholes(node), [""; 0], "{extent:?}");
        }
    });
}

/// The rule for our table is looked up before the main table, which has the bridge's route. Therefore the blackhole route is in
/// the main table.
#[test]
fn with_a_table_of_our_own_the_route_is_in_the_main_table() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        lab.node(1).ns.run(&format!("ip route replace default via {}", lab.node(2).ip));
        let flags = [FLAGS, &["--route-table=flannel"]].concat();
        let mut daemons = lab.start_all(&flags);
        let node = lab.node(1);
        assert_eq!(blackholes(node), ours(node, false), "in the main table, which ip does not name");
        cluster::reach_each_other(&lab.pods());
        assert!(!leaks(node, &nobody(node)));
        // The repair also works after flannel's leftovers were swept.
        node.ns.run(&format!("ip route del blackhole {}", node.subnet()));
        lab::wait_for("it is back", SOON, || blackholes(node) == ours(node, false));
        assert_eq!(node.get("/readyz").map(|reply| reply.status), Some(200));
        assert!(daemons[0].terminate().success());
        drop(daemons);
        let daemon = node.start(&["--iface=eth0", "--route-table=flannel"]);
        daemon.wait_ready();
        assert_eq!(blackholes(node), [""; 0]);
        drop(daemon);
        let mut daemon = node.start(&flags);
        daemon.wait_ready();
        assert_eq!(blackholes(node), ours(node, false));
        assert!(daemon.terminate().success());
        node.twill(&["uninstall"]);
        assert_eq!(blackholes(node), [""; 0]);
    });
}
