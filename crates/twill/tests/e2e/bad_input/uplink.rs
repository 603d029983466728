//! An uplink that cannot be chosen, and one without a carrier.

use lab::{Timing, Topology, View};

use crate::cluster::{self, FLAGS, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL};

/// A fault that a restart cannot correct ends the daemon before it requests a lease or touches the kernel.
#[test]
fn without_an_acceptable_uplink_the_start_ends_with_a_list_of_interfaces() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        node.ns.run("ip link add bare type bridge && ip link set bare up && ip -4 route del default");
        let before = View::of(&node.ns);
        for (flags, why) in [
            (&["--iface=eth7"][..], "--iface eth7: there is no such interface; "),
            (&["--iface=192.0.2.77"], "--iface 192.0.2.77: no interface has it; "),
            (&["--public-ip=192.0.2.77"], "--public-ip 192.0.2.77: no interface has it; "),
            (&["--iface=bare"], "--iface bare: bare has no usable IPv4 address; "),
            (&[], "there is no IPv4 default route; "),
        ] {
            let mut daemon = node.start(flags);
            assert_eq!(daemon.wait_exit().code(), Some(1), "{}", daemon.log());
            let log = daemon.log();
            let there = format!("those with addresses are: eth0 ({}, {})", node.ip, node.ip6);
            let expected = format!("twill: choosing the interface: {why}name one with --iface; {there}");
            assert_eq!(log.lines().last(), Some(&*expected));
        }
        assert_eq!(before.diff(&View::of(&node.ns)), "");
        assert!(lab.store.leases().is_empty() && node.subnet_env().is_none());
    });
}

/// Everything stays and is still repaired; the node reports the missing carrier once, and is not ready meanwhile.
fn loses_its_carrier(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (daemons, pods) = cluster::start(&lab);
    let (node, peer) = (lab.node(1), lab.node(2));
    lab::wait_for("both ways", SOON, || cluster::answers(&pods[0], &pods[1]));
    let (before, asked) = (View::of(&node.ns), cluster::ops_asked(node));
    node.unplug();
    let said = "uplink eth0 has no carrier";
    lab::wait_for("it is not ready", SOON, || {
        node.get("/readyz").is_some_and(|reply| reply.status == 503 && reply.body.contains(said))
    });
    assert!(node.twill(&["status"]).contains(said));
    assert_eq!(cluster::ops_asked(node), asked, "nothing is withdrawn, nothing is written");
    let routes = |subnet: &str| node.ns.run(&format!("ip route show {subnet}"));
    node.ns.run(&format!("ip route del {}", peer.subnet()));
    lab::wait_for("repaired", SOON, || routes(&peer.subnet()).contains("proto 84"));
    node.plug();
    daemons[0].wait_ready();
    lab::wait_for("all is as before", SOON, || View::of(&node.ns) == before);
    lab::wait_for("both ways", SOON, || cluster::answers(&pods[0], &pods[1]));
    assert!(!node.twill(&["status"]).contains(said));
    let log = daemons[0].log();
    assert_eq!(
        log.lines().filter(|line| line.contains("WARN uplink eth0 has no carrier")).count(),
        1,
        "{log}"
    );
}

#[test]
fn vxlan_withdraws_nothing_while_the_carrier_is_lost() {
    lab::test(Timing::Free, || loses_its_carrier(VXLAN_DUAL));
}

#[test]
fn host_gw_withdraws_nothing_while_the_carrier_is_lost() {
    lab::test(Timing::Free, || loses_its_carrier(HOST_GW_DUAL));
}

/// The node sets up all that pods need at once; only the carrier is missing.
fn starts_without_a_carrier(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (node, peer) = (lab.node(1), lab.node(2));
    node.unplug();
    lab::wait_for("the carrier is gone", SOON, || node.ns.run("ip link show eth0").contains("NO-CARRIER"));
    let (daemon, other) = (node.start(FLAGS), peer.start(FLAGS));
    other.wait_ready();
    lab::wait_for("it says so", SOON, || {
        let reply = node.get("/readyz");
        reply.is_some_and(|reply| reply.status == 503 && reply.body.contains("uplink eth0 has no carrier"))
    });
    let both = [(peer.subnet(), "ip route show"), (peer.subnet6(), "ip -6 route show")];
    lab::wait_for("the routes to the peer are there", SOON, || {
        both.iter().all(|(subnet, show)| node.ns.run(&format!("{show} {subnet}")).contains("proto 84"))
    });
    node.plug();
    daemon.wait_ready();
    let asked = cluster::ops_asked(node);
    let pods = lab.pods();
    cluster::reach_each_other(&pods);
    assert_eq!(cluster::ops_asked(node), asked, "nothing was left to be done");
}

#[test]
fn vxlan_starts_without_a_carrier() {
    lab::test(Timing::Free, || starts_without_a_carrier(VXLAN_DUAL));
}

#[test]
fn host_gw_starts_without_a_carrier() {
    lab::test(Timing::Free, || starts_without_a_carrier(HOST_GW_DUAL));
}
