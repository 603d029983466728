//! A cluster without any IPv4, neither for pods nor between nodes.

use lab::{Lab, Timing, Topology, View};

use crate::cluster::{self, HOST_GW_IPV6, SOON, VXLAN_IPV6};

fn without_ipv4(topology: Topology, config: &str) -> Lab {
    let lab = cluster::lab(topology, config);
    lab.nodes().iter().for_each(|node| _ = node.ns.run("ip -4 addr flush dev eth0"));
    lab
}

/// Starts daemons without flags: the interface is found by the IPv6 default route.
fn connects(topology: Topology, config: &str, mtu: u32) -> View {
    let lab = without_ipv4(topology, config);
    let daemons = lab.start_all(&[]);
    let pods = lab.pods();
    cluster::reach_each_other(&pods);
    cluster::full_size_passes(lab.node(1), (&pods[0], pods.last().unwrap()), 1514);
    let leases = lab.store.leases();
    for (node, daemon) in lab.nodes().iter().zip(&daemons) {
        let own = leases.iter().find(|(_, json)| json.contains(&format!("\"{}\"", node.ip6)));
        let (key, json) = own.unwrap();
        let subnet = key.strip_prefix("0.0.0.0-0&").unwrap();
        assert!(json.starts_with(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:10"#), "{json}");
        assert!(!json.contains("BackendData"), "{json}");
        let expected = format!(
            "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET={}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n",
            subnet.replace("::-64", "::1/64")
        );
        assert_eq!(std::fs::read_to_string(node.run_dir().join("subnet.env")).unwrap(), expected);
        assert_eq!(node.ns.run("ip -4 route"), "", "IPv4 is left alone");
        assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    }
    View::of(&lab.node(1).ns)
}

fn has_its_device_alone(view: &View) {
    assert!(view.link("flannel.1").is_none());
    assert_eq!(view.link("flannel-v6.1").unwrap().fields["mtu"], 1430);
}

#[test]
fn vxlan_on_one_segment() {
    lab::test(Timing::Free, || has_its_device_alone(&connects(Topology::flat(3), VXLAN_IPV6, 1430)));
}

#[test]
fn vxlan_across_a_router() {
    lab::test(Timing::Free, || has_its_device_alone(&connects(Topology::routed(2, 1), VXLAN_IPV6, 1430)));
}

#[test]
fn host_gw_on_one_segment() {
    lab::test(Timing::Free, || {
        let view = connects(Topology::flat(3), HOST_GW_IPV6, 1500);
        assert!(!view.of_kind("link").any(|link| link.text("ifname").starts_with("flannel")));
    });
}

#[test]
fn host_gw_refuses_a_peer_behind_a_router() {
    lab::test(Timing::Free, || {
        let lab = without_ipv4(Topology::routed(1, 1), HOST_GW_IPV6);
        let _daemons = lab.start_all(&[]);
        let (node, far) = (lab.node(1), lab.node(2));
        let why = format!("peer {}: {} is not on the layer-2 segment of eth0", far.subnet6(), far.ip6);
        lab::wait_for("status says so", SOON, || node.twill(&["status"]).contains(&why));
        assert!(node.ns.run("ip -6 route").contains(&format!("unreachable {}", far.subnet6())));
    });
}
