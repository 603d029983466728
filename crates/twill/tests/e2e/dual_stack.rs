//! Both families side by side: each pod has two addresses and reaches every other pod by both. A fault of one
//! family's lease or address does not affect the second family.

use std::time::{Duration, Instant};

use lab::view::Row;
use lab::{Lab, Monitors, Node, PingStream, Timing, Topology, View};

use crate::cluster::{self, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL};

/// Returns the key of a node's lease.
fn key_of(lab: &Lab, node: &Node) -> String {
    let leases = lab.store.leases();
    let mut own = leases.iter().filter(|(_, json)| json.contains(&node.ip.to_string()));
    own.next().unwrap().0.clone()
}

fn connects(topology: Topology, config: &str, mtu: u32) -> View {
    let lab = cluster::lab(topology, config);
    let (_daemons, pods) = cluster::start(&lab);
    cluster::reach_each_other(&pods);
    for node in lab.nodes() {
        let key = key_of(&lab, node);
        let (subnet, subnet6) = key.split_once('&').unwrap();
        let first = subnet.replace(".0-24", ".1/24");
        let first6 = subnet6.replace("::-64", "::1/64");
        let expected = format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={first}\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n\
             FLANNEL_IPV6_SUBNET={first6}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
        );
        let subnet_env = std::fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
        assert_eq!(subnet_env, expected, "{key}");
    }
    View::of(&lab.node(1).ns)
}

fn mtu_of(view: &View, device: &str) -> u64 {
    view.link(device).unwrap().fields["mtu"].as_u64().unwrap()
}

#[test]
fn vxlan_on_one_segment() {
    lab::test(Timing::Free, || {
        let view = connects(Topology::flat(3), VXLAN_DUAL, 1430);
        assert_eq!((mtu_of(&view, "flannel.1"), mtu_of(&view, "flannel-v6.1")), (1450, 1430));
    });
}

#[test]
fn vxlan_across_a_router() {
    lab::test(Timing::Free, || {
        connects(Topology::routed(2, 1), VXLAN_DUAL, 1430);
    });
}

#[test]
fn direct_routing_goes_by_each_familys_segment() {
    lab::test(Timing::Free, || {
        let config = VXLAN_DUAL.replace(r#""vxlan""#, r#""vxlan","DirectRouting":true"#);
        let lab = cluster::lab(Topology::routed(2, 1), &config);
        let (_daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        for (kind, network, tunnel) in
            [("route4", "10.244.", "flannel.1"), ("route6", "fd00:244:", "flannel-v6.1")]
        {
            lab::wait_for("direct on the segment, once that is proven", SOON, || {
                let view = View::of(&lab.node(1).ns);
                let peers = view.of_kind(kind).filter(|route| route.text("dst").starts_with(network));
                let mut devices: Vec<&str> =
                    peers.filter(|route| !route.text("gateway").is_empty()).map(Row::device).collect();
                devices.sort();
                devices == ["eth0", tunnel]
            });
        }
        cluster::reach_each_other(&pods);
    });
}

#[test]
fn host_gw_on_one_segment() {
    lab::test(Timing::Free, || {
        let view = connects(Topology::flat(3), HOST_GW_DUAL, 1500);
        assert!(view.link("flannel.1").or(view.link("flannel-v6.1")).is_none(), "host-gw needs no device");
    });
}

#[test]
fn full_size_packets_are_not_fragmented() {
    lab::test(Timing::Free, || {
        for config in [VXLAN_DUAL, HOST_GW_DUAL] {
            let lab = cluster::lab(Topology::flat(2), config);
            let (_daemons, pods) = cluster::start(&lab);
            cluster::full_size_passes(lab.node(1), (&pods[0], &pods[1]), 1514);
        }
    });
}

#[test]
fn host_gw_refuses_both_families_of_a_peer_behind_a_router() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(2, 1), HOST_GW_DUAL);
        let (daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods[..2]);
        let (node, far) = (lab.node(1), lab.node(3));
        let ping = format!("ping -n -c 1 -W 1 {}", pods[2].ip6.unwrap());
        lab::wait_for("an error instead of silence", SOON, || {
            String::from_utf8_lossy(&pods[0].ns.output(&ping).stdout).contains("Destination unreachable")
        });
        let routes = node.ns.run("ip route; ip -6 route");
        for (subnet, address) in [(far.subnet(), far.ip.to_string()), (far.subnet6(), far.ip6.to_string())] {
            assert!(routes.contains(&format!("unreachable {subnet}")), "{routes}");
            let why = format!("peer {subnet}: {address} is not on the layer-2 segment of eth0");
            // The kernel has the routes before the reconcile pass is over and reports them.
            lab::wait_for(&why, SOON, || daemons[0].log().contains(&why));
            assert!(node.twill(&["status"]).contains(&why), "{why}");
        }
        assert_eq!(node.get("/readyz").unwrap().status, 200, "a peer's trouble is not this node's");
    });
}

/// Returns the lease of a node that has one family only, made from a lease that has both.
fn one_family(key: &str, lease: &str, ipv4: bool) -> (String, String) {
    let mut fields: serde_json::Value = serde_json::from_str(lease).unwrap();
    let (subnet, subnet6) = key.split_once('&').unwrap();
    let gone = if ipv4 { "BackendV6Data" } else { "BackendData" };
    fields.as_object_mut().unwrap().remove(gone);
    if ipv4 {
        fields["PublicIPv6"] = serde_json::Value::Null;
        return (subnet.to_owned(), fields.to_string());
    }
    fields["PublicIP"] = "0.0.0.0".into();
    (format!("0.0.0.0-0&{subnet6}"), fields.to_string())
}

#[test]
fn a_peer_with_one_family_is_used_for_that_family() {
    lab::test(Timing::Free, || {
        for config in [VXLAN_DUAL, HOST_GW_DUAL] {
            let lab = cluster::lab(Topology::flat(2), config);
            let (mut daemons, pods) = cluster::start(&lab);
            cluster::reach_each_other(&pods);
            let (node, peer) = (lab.node(1), lab.node(2));
            let (subnet, subnet6) = (peer.subnet(), peer.subnet6());
            let routes = || node.ns.run("ip route; ip -6 route");
            let key = key_of(&lab, peer);
            let lease = lab.store.leases()[&key].clone();
            daemons[1].terminate();
            for ipv4 in [true, false] {
                let (one, json) = one_family(&key, &lease, ipv4);
                lab.store.put_lease(&one, &json);
                lab.store.remove_lease(&key);
                let (has, lacks) = if ipv4 { (&subnet, &subnet6) } else { (&subnet6, &subnet) };
                lab::wait_for("the other family goes", SOON, || !routes().contains(lacks.as_str()));
                assert!(routes().contains(has.as_str()), "{}", routes());
                let reached = pods[1].ips().find(|ip| ip.is_ipv4() == ipv4).unwrap();
                assert!(pods[0].reaches(reached, SOON).is_some(), "{one}");
                lab::wait_for("it lacks nothing", SOON, || !node.twill(&["status"]).contains("\nwarnings:"));
                lab.store.put_lease(&key, &lease);
                lab.store.remove_lease(&one);
                lab::wait_for("both are back", SOON, || cluster::answers(&pods[0], &pods[1]));
            }
        }
    });
}

/// Gives a peer another MAC for one family; nothing is written on this node's device of the second family.
fn follows_a_new_mac(device: &str, other: &str) {
    let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
    let (mut daemons, pods) = cluster::start(&lab);
    cluster::reach_each_other(&pods);
    let (node, peer) = (lab.node(1), lab.node(2));
    let key = key_of(&lab, peer);
    let lease = lab.store.leases()[&key].clone();
    let old = View::of(&peer.ns).link(device).unwrap().text("address").to_owned();
    let new = "0a:00:00:00:00:42";
    daemons[1].terminate();
    peer.ns.run(&format!("ip link set {device} address {new}"));
    let monitors = Monitors::start(&node.ns);
    let begun = Instant::now();
    lab.store.put_lease(&key, &lease.replace(&old, new));
    let followed = || {
        let view = View::now(&node.ns).to_string();
        view.contains(new) && !view.contains(&old)
    };
    let took = lab::until(SOON, || followed().then(|| begun.elapsed()));
    let took = took.unwrap_or_else(|| panic!("the new MAC of {device} is not followed"));
    println!("{took:?}");
    lab::in_time("following the new MAC", took, Duration::from_millis(500));
    assert_eq!(monitors.lines_about(&[other]), Vec::<String>::new());
    daemons[1].restart();
    cluster::reach_each_other(&pods);
    assert_eq!(monitors.lines_about(&[other]), Vec::<String>::new());
}

#[test]
fn a_new_mac_for_ipv4_leaves_the_ipv6_device_alone() {
    lab::test(Timing::Timed, || follows_a_new_mac("flannel.1", "flannel-v6.1"));
}

#[test]
fn a_new_mac_for_ipv6_leaves_the_ipv4_device_alone() {
    lab::test(Timing::Timed, || follows_a_new_mac("flannel-v6.1", "flannel.1"));
}

/// By default, an uplink that was down comes up without its IPv6 addresses until the network manager restores them. Its IPv4
/// addresses stay.
#[test]
fn an_uplink_without_its_ipv6_address_serves_ipv4() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW_DUAL);
        let (_daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let (node, [ip4, ip6]) = (lab.node(1), [0, 1].map(|nth| pods[1].ips().nth(nth).unwrap()));
        let before = View::of(&node.ns);
        node.ns.sysctl(&[
            ("net.ipv6.conf.all.keep_addr_on_down", "0"),
            ("net.ipv6.conf.eth0.keep_addr_on_down", "0"),
        ]);
        node.ns.run("ip link set eth0 down");
        lab::wait_for("the routes are gone", SOON, || !node.ns.run("ip route").contains("eth0"));
        let heals = |what: &str, ip| {
            node.ns.run(what);
            let took = pods[0].reaches(ip, SOON);
            let took = took.unwrap_or_else(|| panic!("{ip} is not reached after: {what}"));
            println!("{took:?} after: {what}");
            lab::in_time(&format!("the repair after: {what}"), took, Duration::from_secs(1));
        };
        let gateway = node.gateway();
        heals(&format!("ip link set eth0 up; ip route replace default via {gateway} dev eth0"), ip4);
        assert!(pods[0].ping(ip6).is_none());
        let lost = format!("uplink eth0 has lost our address {}", node.ip6);
        assert!(node.twill(&["status"]).contains(&lost), "{}", node.twill(&["status"]));
        let (own, gateway) = (node.ip6, node.gateway6());
        heals(
            &format!("ip addr add {own}/64 dev eth0; ip route replace default via {gateway} dev eth0"),
            ip6,
        );
        lab::wait_for("all is as before", SOON, || View::now(&node.ns) == before);
    });
}

/// A restart turns IPv6 on: subnets, pods and packets of IPv4 stay.
#[test]
fn ipv6_is_added_to_a_running_cluster() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let subnets = || lab.nodes().iter().map(Node::subnet).collect::<Vec<_>>();
        let before = subnets();
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab::wait_for("the ping runs", SOON, || ping.received() > 10);
        lab.store.config(VXLAN_DUAL);
        for daemon in &mut daemons {
            daemon.restart();
            daemon.wait_ready();
        }
        let routes = || lab.node(1).ns.run("ip -6 route");
        lab::wait_for("the peer by IPv6", SOON, || routes().contains(&lab.node(2).subnet6()));
        assert_eq!(subnets(), before);
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}
