//! Every harm to an object of ours is undone in less than a second. Then ip and bridge show the same as before, and a
//! ping between pods passes. Each test runs alone, since it has a time limit.

use std::time::{Duration, Instant};

use lab::{Harm, Node, Timing, Topology, View};

use crate::cluster::{self, DIRECT_BY_ADDRESS, HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL};

const LIMIT: Duration = Duration::from_secs(1);

/// Harms node 1, with foreign objects planted beside ours, and asserts that the repair takes less than [`LIMIT`].
fn heals(config: &str, harm: impl Fn(&Node) -> Harm) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (node, peer) = (lab.node(1), lab.node(2));
    // With the kernel's own default, unlike the lab's, a device that goes down loses its IPv6 addresses.
    node.ns.sysctl(&[
        ("net.ipv6.conf.all.keep_addr_on_down", "0"),
        ("net.ipv6.conf.default.keep_addr_on_down", "0"),
    ]);
    let (_daemons, pods) = cluster::start(&lab);
    lab::foreign::plant(node, &peer.subnet());
    if pods[0].ip6.is_some() {
        lab::foreign::plant6(node, &peer.subnet6());
    }
    let before = View::of(&node.ns);
    let harm = harm(peer);
    let took = lab::time_to_repair(node, &before, &harm, || cluster::answers(&pods[0], &pods[1]));
    println!("{took:?} after: {}", harm.command(node));
    lab::in_time(&format!("the repair after `{}`", harm.command(node)), took, LIMIT);
}

fn flannel_1() -> String {
    "flannel.1".into()
}

fn flannel_v6_1() -> String {
    "flannel-v6.1".into()
}

macro_rules! harms {
    ($($name:ident: $config:expr, $harm:expr;)*) => {$(
        #[test]
        fn $name() {
            lab::test(Timing::Timed, || heals($config, $harm));
        }
    )*};
}

harms! {
    vxlan_route_deleted: VXLAN, |peer| Harm::RouteDeleted { subnet: peer.subnet() };
    vxlan_route_replaced: VXLAN, wrong_route;
    vxlan_fdb_flushed: VXLAN, |_| Harm::FdbFlushed { dev: flannel_1() };
    vxlan_neighbours_flushed: VXLAN, |_| Harm::NeighboursFlushed { dev: flannel_1() };
    vxlan_device_deleted: VXLAN, |_| Harm::DeviceDeleted { dev: flannel_1() };
    vxlan_device_down: VXLAN, |_| Harm::DeviceDown { dev: flannel_1() };
    vxlan_mac_changed: VXLAN, |_| Harm::MacChanged { dev: flannel_1(), mac: "02:00:00:00:ba:ad".into() };
    vxlan_address_flushed: VXLAN, |_| Harm::AddressFlushed { dev: flannel_1() };
    direct_route_replaced: DIRECT_BY_ADDRESS, wrong_route;
    direct_device_deleted: DIRECT_BY_ADDRESS, |_| Harm::DeviceDeleted { dev: flannel_1() };
    direct_route_deleted: DIRECT_BY_ADDRESS, |peer| Harm::RouteDeleted { subnet: peer.subnet() };
    host_gw_route_deleted: HOST_GW, |peer| Harm::RouteDeleted { subnet: peer.subnet() };
    host_gw_route_replaced: HOST_GW, wrong_route;
    vxlan_ipv6_route_deleted: VXLAN_DUAL, |peer| Harm::RouteDeleted { subnet: peer.subnet6() };
    vxlan_ipv6_route_replaced: VXLAN_DUAL, wrong_route6;
    vxlan_ipv6_fdb_flushed: VXLAN_DUAL, |_| Harm::FdbFlushed { dev: flannel_v6_1() };
    vxlan_ipv6_neighbours_flushed: VXLAN_DUAL, |_| Harm::NeighboursFlushed { dev: flannel_v6_1() };
    vxlan_ipv6_device_deleted: VXLAN_DUAL, |_| Harm::DeviceDeleted { dev: flannel_v6_1() };
    vxlan_ipv6_device_down: VXLAN_DUAL, |_| Harm::DeviceDown { dev: flannel_v6_1() };
    vxlan_ipv6_mac_changed: VXLAN_DUAL, |_| Harm::MacChanged { dev: flannel_v6_1(), mac: "02:00:00:00:ba:ad".into() };
    vxlan_ipv6_address_flushed: VXLAN_DUAL, |_| Harm::AddressFlushed { dev: flannel_v6_1() };
    host_gw_ipv6_route_deleted: HOST_GW_DUAL, |peer| Harm::RouteDeleted { subnet: peer.subnet6() };
    host_gw_ipv6_route_replaced: HOST_GW_DUAL, wrong_route6;
}

fn wrong_route(peer: &Node) -> Harm {
    Harm::RouteReplaced { subnet: peer.subnet(), via: peer.gateway().to_string(), dev: "eth0".into() }
}

fn wrong_route6(peer: &Node) -> Harm {
    Harm::RouteReplaced { subnet: peer.subnet6(), via: peer.gateway6().to_string(), dev: "eth0".into() }
}

/// Sets the uplink down for a second; the time counts from when it is up again.
fn uplink_comes_back(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (_daemons, pods) = cluster::start(&lab);
    let node = lab.node(1);
    let before = View::of(&node.ns);
    Harm::UplinkDown.apply(node);
    lab::holds_for("pods are cut off", Duration::from_secs(1), || pods[0].ping(pods[1].ip()).is_none());
    let up = Instant::now();
    Harm::UplinkUp.apply(node);
    let healed = || View::of(&node.ns) == before && cluster::answers(&pods[0], &pods[1]);
    let took = lab::until(SOON, || healed().then(|| up.elapsed()));
    let took = took.unwrap_or_else(|| panic!("not as before:\n{}", before.diff(&View::of(&node.ns))));
    println!("{took:?} after the uplink is up");
    lab::in_time("the repair after the uplink is up", took, LIMIT);
}

#[test]
fn vxlan_recovers_after_the_uplink_was_down() {
    lab::test(Timing::Timed, || uplink_comes_back(VXLAN));
}

#[test]
fn host_gw_recovers_after_the_uplink_was_down() {
    lab::test(Timing::Timed, || uplink_comes_back(HOST_GW));
}

#[test]
fn vxlan_in_dual_stack_recovers_after_the_uplink_was_down() {
    lab::test(Timing::Timed, || uplink_comes_back(VXLAN_DUAL));
}

#[test]
fn host_gw_in_dual_stack_recovers_after_the_uplink_was_down() {
    lab::test(Timing::Timed, || uplink_comes_back(HOST_GW_DUAL));
}

/// A peer's VTEP gets another MAC: this node follows at once, and nothing of the old one stays.
#[test]
fn vxlan_follows_a_peers_new_mac_at_once() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let (node, peer) = (lab.node(1), lab.node(2));
        let (name, lease) =
            lab.store.leases().into_iter().find(|(_, json)| json.contains(&peer.ip.to_string())).unwrap();
        let old = View::of(&peer.ns).link("flannel.1").unwrap().text("address").to_owned();
        let new = "0a:00:00:00:00:42";
        daemons[1].terminate();
        peer.ns.run(&format!("ip link set flannel.1 address {new}"));
        let begun = Instant::now();
        lab.store.put_lease(&name, &lease.replace(&old, new));
        let followed = || {
            let view = View::of(&node.ns).to_string();
            view.contains(new) && !view.contains(&old)
        };
        let took = lab::until(SOON, || followed().then(|| begun.elapsed())).expect("the new MAC is followed");
        lab::in_time("following the new MAC", took, LIMIT / 2);
        daemons[1].restart();
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
    });
}
