//! The uplink changes while pods talk: address, MTU, card, name. The node follows with the same subnet, and its peers follow, in
//! less than two seconds.

use std::net::IpAddr;
use std::time::Duration;

use lab::{Lab, Node, PingStream, Pod, Timing, Topology, View};

use crate::cluster::{self, HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL, lease_name};

const LIMIT: Duration = Duration::from_secs(2);

/// Asserts that pods of both nodes are cut off for less than [`LIMIT`], at each address, when `change` is made.
fn heals(what: &str, pods: &[Pod], change: impl FnOnce()) {
    let pairs = [(&pods[0], &pods[1]), (&pods[1], &pods[0])];
    let streams =
        |(from, to): (&Pod, &Pod)| to.ips().map(|ip| PingStream::start(&from.ns, ip)).collect::<Vec<_>>();
    let pings: Vec<PingStream> = pairs.into_iter().flat_map(streams).collect();
    lab::wait_for("the pods talk", SOON, || pings.iter().all(|ping| ping.received() > 5));
    change();
    let seen: Vec<u64> = pings.iter().map(PingStream::received).collect();
    lab::wait_for(what, SOON, || pings.iter().zip(&seen).all(|(ping, seen)| ping.received() > seen + 5));
    let gaps: Vec<Duration> = pings.into_iter().map(|ping| ping.stop().longest_gap).collect();
    println!("{what}: {gaps:?}");
    gaps.into_iter().for_each(|gap| lab::in_time(&format!("{what}: the longest gap"), gap, LIMIT));
}

fn lease(lab: &Lab, node: &Node) -> String {
    let leases = lab.store.leases();
    let subnet = lease_name(&node.subnet());
    leases.into_iter().find(|(name, _)| name.starts_with(&subnet)).unwrap().1
}

/// Changes the address, as a DHCP client does that has lost its lease.
fn another_address(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (_daemons, pods) = cluster::start(&lab);
    let (node, peer, subnet) = (lab.node(1), lab.node(2), lab.node(1).subnet());
    let mut changes = vec![(IpAddr::from(node.ip), "192.168.100.51".to_owned(), 24)];
    if pods[0].ips().count() > 1 {
        changes.push((node.ip6.into(), "fd00:100::51".to_owned(), 64));
    }
    for (old, new, length) in &changes {
        heals(&format!("{old} -> {new}"), &pods, || {
            node.ns.run(&format!(
                "ip address del {old}/{length} dev eth0; ip address add {new}/{length} dev eth0"
            ));
        });
        lab::wait_for("the lease says so", SOON, || lease(&lab, node).contains(new.as_str()));
        assert!(!lease(&lab, node).contains(&format!("\"{old}\"")), "{}", lease(&lab, node));
        let left = || peer.ns.run("ip route; ip -6 route; bridge fdb") + &node.ns.run("ip -d link");
        lab::wait_for("nothing of the old is left", SOON, || !left().contains(&format!("{old} ")));
        let gateway = if old.is_ipv4() { node.gateway().to_string() } else { node.gateway6().to_string() };
        node.ns.run(&format!("ip route replace default via {gateway} dev eth0"));
    }
    assert_eq!((node.subnet(), lab.store.leases().len()), (subnet, 2), "the same subnet, and no other lease");
    assert!(node.twill(&["status"]).contains("192.168.100.51"));
    assert_eq!(node.get("/readyz").unwrap().status, 200);
}

#[test]
fn vxlan_follows_another_address() {
    lab::test(Timing::Timed, || another_address(VXLAN));
}

#[test]
fn vxlan_in_dual_stack_follows_another_address() {
    lab::test(Timing::Timed, || another_address(VXLAN_DUAL));
}

#[test]
fn host_gw_follows_another_address() {
    lab::test(Timing::Timed, || another_address(HOST_GW));
}

#[test]
fn host_gw_in_dual_stack_follows_another_address() {
    lab::test(Timing::Timed, || another_address(HOST_GW_DUAL));
}

/// The address changed while the daemon was down, and pods run in the subnet.
#[test]
fn a_node_restarted_with_a_new_address_keeps_its_subnet() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let (node, subnet) = (lab.node(1), lab.node(1).subnet());
        daemons[0].kill9();
        node.ns.run(&format!(
            "ip address del {}/24 dev eth0; ip address add 192.168.100.51/24 dev eth0",
            node.ip
        ));
        // A different node had that address, and has left a lease.
        let stale = r#"{"PublicIP":"192.168.100.51","PublicIPv6":null,"BackendType":"host-gw"}"#;
        lab.store.put_lease("10.244.0.0-24", stale);
        daemons[0].restart();
        daemons[0].wait_ready();
        cluster::reach_each_other(&pods);
        assert_eq!(node.subnet(), subnet);
        assert!(lease(&lab, node).contains("192.168.100.51"));
    });
}

#[test]
fn a_new_mtu_reaches_the_device_and_the_subnet_file() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        heals("mtu 1400", &pods, || {
            node.ns.run("ip link set eth0 mtu 1400");
            let follows = || {
                node.ns.run("ip link show flannel.1").contains("mtu 1350 ")
                    && node.subnet_env().is_some_and(|env| env.mtu() == Some(1350))
            };
            lab::wait_for("the device and the file", SOON, follows);
        });
        node.ns.run("ip link set eth0 mtu 9000");
        lab::wait_for("and back up", SOON, || node.ns.run("ip link show flannel.1").contains("mtu 8950 "));
    });
}

fn another_card(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (_daemons, pods) = cluster::start(&lab);
    let node = lab.node(1);
    let before = View::of(&node.ns);
    heals("another card", &pods, || node.replug());
    lab::wait_for("all is as before", SOON, || before.diff(&View::of(&node.ns)).is_empty());
}

#[test]
fn vxlan_follows_another_card() {
    lab::test(Timing::Timed, || another_card(VXLAN_DUAL));
}

#[test]
fn host_gw_follows_another_card() {
    lab::test(Timing::Timed, || another_card(HOST_GW_DUAL));
}

fn another_name(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (_daemons, pods) = cluster::start(&lab);
    let (node, subnet) = (lab.node(1), lab.node(1).subnet());
    heals("another name", &pods, || {
        node.ns.run("ip link set eth0 down; ip link set eth0 name ens3; ip link set ens3 up");
    });
    lab::wait_for("it is shown", SOON, || node.twill(&["status"]).contains("ens3 192.168.100.11"));
    // The new uplink is watched as well: a change after the change is noticed.
    let peer = lab.node(2).subnet();
    node.ns.run(&format!("ip route del {peer}"));
    lab::wait_for("repaired", SOON, || node.ns.run("ip route").contains(&peer));
    assert_eq!(node.subnet(), subnet);
}

#[test]
fn vxlan_follows_another_name() {
    lab::test(Timing::Timed, || another_name(VXLAN));
}

#[test]
fn host_gw_follows_another_name() {
    lab::test(Timing::Timed, || another_name(HOST_GW));
}
