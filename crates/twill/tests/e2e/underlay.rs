//! Realistic networks between nodes: nodes inside the pod network, two cards, default routes of every shape, an
//! address on lo.

use std::fs::File;
use std::time::{Duration, UNIX_EPOCH};

use lab::{Daemon, Lab, Node, Pod, Timing, Topology, View};

use crate::cluster::{self, HOST_GW, SOON, VXLAN, VXLAN_DUAL, VXLAN_IPV6};

/// Returns flannel's own example config, with this backend.
fn shared(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{{"Type":"{backend}"}}}}"#
    )
}

/// Gives the node that address in place of its own.
fn readdress(node: &Node, address: &str, gateway: &str) {
    node.ns.run(&format!(
        "ip address flush dev eth0 scope global; ip address add {address} dev eth0 nodad; ip route replace default via {gateway}"
    ));
}

/// Builds two nodes in 10.132.0.0/20, where no subnet is leased.
fn inside(config: &str) -> Lab {
    let lab = cluster::lab(Topology::flat(2), config);
    for node in lab.nodes() {
        readdress(node, &format!("10.132.0.1{}/20", node.index), "10.132.0.1");
    }
    lab
}

fn start<'lab>(lab: &'lab Lab, flags: &[&str]) -> (Vec<Daemon<'lab>>, Vec<Pod>) {
    let daemons = lab.start_all(flags);
    let pods = lab.pods();
    cluster::reach_each_other(&pods);
    (daemons, pods)
}

fn status(node: &Node) -> String {
    node.twill(&["status"])
}

fn leases(lab: &Lab) -> String {
    lab.store.leases().into_values().collect()
}

/// Asserts that the daemon ends with these words, and has touched nothing.
fn is_refused(lab: &Lab, flags: &[&str], words: &[&str]) {
    let node = lab.node(1);
    let before = View::of(&node.ns);
    let mut daemon = node.start(flags);
    assert_eq!(daemon.wait_exit().code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    let reported = log.lines().rfind(|line| line.starts_with("twill: ")).unwrap_or_default();
    assert!(words.iter().all(|words| reported.contains(words)), "{reported}");
    assert_eq!(before.diff(&View::of(&node.ns)), "");
    assert!(lab.store.leases().is_empty() && node.subnet_env().is_none());
}

#[test]
fn nodes_inside_the_pod_network_work_with_host_gw() {
    lab::test(Timing::Free, || {
        let lab = inside(&shared("host-gw"));
        let node = lab.node(1);
        // An administrator wrote these routes to other nodes of the network.
        node.ns.run("ip route add 10.140.0.0/16 via 10.132.0.1; ip route add 10.150.0.0/20 via 10.132.0.1");
        let (_daemons, _pods) = start(&lab, &[]);
        let routes = node.ns.run("ip route");
        assert!(routes.contains(&format!("{} via 10.132.0.12 dev eth0", lab.node(2).subnet())), "{routes}");
        assert!(routes.contains("10.140.0.0/16 via 10.132.0.1 dev eth0"), "{routes}");
        let status = status(node);
        assert!(!status.contains("If nothing needs it"), "{status}");
        assert!(leases(&lab).contains(r#""PublicIP":"10.132.0.11""#), "{}", leases(&lab));
    });
}

#[test]
fn nodes_inside_the_pod_network_work_with_vxlan_and_all_rules() {
    lab::test(Timing::Free, || {
        let config = shared("vxlan").replace(r#""vxlan""#, r#""vxlan","VxlanSourceFilter":"drop""#);
        let lab = inside(&config);
        let (_daemons, pods) = start(&lab, &["--ip-masq"]);
        // A node and a pod of its peer reach each other.
        assert!(lab.node(1).ping(pods[1].ip()).is_some());
        lab::wait_for("a pod reaches the other node", SOON, || pods[0].ping([10, 132, 0, 12]).is_some());
        for node in lab.nodes() {
            let status = status(node);
            assert!(!status.contains("no peer has that address"), "{status}");
        }
    });
}

#[test]
fn nodes_inside_the_pod_network_work_with_ipv6() {
    lab::test(Timing::Free, || {
        let config = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/16","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:0:0:1000::","IPv6SubnetMax":"fd00:0:0:1fff::","Backend":{"Type":"host-gw"}}"#;
        let lab = cluster::lab(Topology::flat(2), config);
        let (_daemons, _pods) = start(&lab, &[]);
        let routes = lab.node(1).ns.run("ip -6 route");
        assert!(routes.contains(&format!("{} via fd00:100::12 dev eth0", lab.node(2).subnet6())), "{routes}");
    });
}

#[test]
fn a_node_inside_the_leased_range_is_refused_with_the_reason() {
    lab::test(Timing::Free, || {
        let range = "pods' subnets are leased from 10.10.0.0 to 10.99.15.255. Set SubnetMin and SubnetMax";
        for (address, why) in [
            ("10.20.0.11/20", "eth0 has 10.20.0.11/20, which is a pod's address"),
            ("10.132.0.11/8", "eth0 has 10.132.0.11/8, whose network is the pods' too"),
            ("10.100.0.11/10", "eth0 has 10.100.0.11/10, whose network is the pods' too"),
        ] {
            for flags in
                [&[][..], &["--iface=eth0"], &[&*format!("--iface={}", address.split_once('/').unwrap().0)]]
            {
                let lab = cluster::lab(Topology::flat(1), &shared("host-gw"));
                readdress(lab.node(1), address, address.split_once(".11/").unwrap().0.to_owned().as_str());
                lab.node(1).ns.run("ip route replace default dev eth0");
                is_refused(&lab, flags, &[why, range]);
            }
        }
    });
}

/// The node stays ready, since its pods work as long as no node has that subnet.
#[test]
fn another_interfaces_network_among_the_pods_is_reported() {
    lab::test(Timing::Free, || {
        let lab = inside(&shared("vxlan"));
        let node = lab.node(1);
        node.ns.run(
            "ip link add docker0 type bridge; ip address add 10.98.0.1/16 dev docker0; ip link set docker0 up
             ip link add d0 type bridge; ip address add 10.200.0.1/16 dev d0; ip link set d0 up",
        );
        let (_daemons, _pods) = start(&lab, &[]);
        let status = status(node);
        let reported =
            "docker0 has 10.98.0.1/16, and pods' subnets are leased from 10.10.0.0 to 10.99.15.255";
        assert!(
            status.contains(reported) && !status.contains("d0 has") && !status.contains("cni0 has"),
            "{status}"
        );
        assert_eq!(node.get("/readyz").unwrap().status, 200);
    });
}

#[test]
fn leases_that_overlap_the_nodes_network_are_left_out() {
    lab::test(Timing::Free, || {
        let lab = inside(&shared("host-gw"));
        let lease = |ip: &str| format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
        // Of leases that share an address, and of which none replies, the last written one counts.
        let put = |name: &str, ip: &str, second: u64| {
            lab.store.put_lease(name, &lease(ip));
            let file = File::options().write(true).open(lab.store.path().join("subnets").join(name)).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(second)).unwrap();
        };
        // Three leases: the nodes' own segment, a node with a pod's address, a node inside a lease out of range.
        lab.store.put_lease("10.132.0.0-20", &lease("10.132.0.77"));
        put("10.200.0.0-20", "10.132.0.78", 2);
        lab.store.put_lease("10.200.16.0-20", &lease("10.20.0.5"));
        put("10.200.32.0-20", "10.200.0.5", 1);
        // The first subnet contains the node of a newer lease.
        put("10.202.0.0-20", "10.132.0.79", 1);
        put("10.201.0.0-20", "10.202.0.5", 2);
        let (_daemons, _pods) = start(&lab, &[]);
        let (status, routes) = (status(lab.node(1)), lab.node(1).ns.run("ip route"));
        assert!(
            status.contains("its subnet overlaps 10.132.0.0/20, a network of the nodes on eth0"),
            "{status}"
        );
        assert!(
            status.contains("its subnet overlaps 10.202.0.5/32, a network of the nodes on eth0"),
            "{status}"
        );
        for ip in ["10.20.0.5", "10.200.0.5"] {
            assert!(status.contains(&format!("it announces {ip}, which no node can have")), "{status}");
        }
        assert!(routes.contains("10.200.0.0/20 via 10.132.0.78 dev eth0"), "{routes}");
        assert!(!routes.contains("10.200.16.0/20") && !routes.contains("10.200.32.0/20"), "{routes}");
        assert!(routes.contains("10.132.0.0/20 dev eth0 proto kernel"), "{routes}");
    });
}

/// Builds two nodes with two cards on one segment: on node k, eth0 has .1k and eth1 has .2k.
fn two_cards(config: &str) -> Lab {
    let lab = cluster::lab(Topology::flat(2), config);
    for node in lab.nodes() {
        node.second_card();
        // Each card answers only for its own addresses.
        node.ns.sysctl(&[("net.ipv4.conf.all.arp_ignore", "1"), ("net.ipv4.conf.all.arp_announce", "2")]);
        node.ns.run(&format!(
            "ip address add 192.168.100.2{k}/24 dev eth1; ip address add fd00:100::2{k}/64 dev eth1 nodad",
            k = node.index
        ));
    }
    lab
}

fn goes_direct_by_the_second_card(node: &Node, peer: &Node) {
    let route = format!("{} via 192.168.100.2{} dev eth1", peer.subnet(), peer.index);
    lab::wait_for("the direct route", SOON * 2, || node.ns.run("ip route").contains(&route));
    assert_eq!(node.get("/readyz").unwrap().status, 200);
    let status = status(node);
    assert!(
        !status.contains("no route to its segment") && !status.contains("is not on the layer-2"),
        "{status}"
    );
}

#[test]
fn host_gw_uses_the_second_card_of_two_on_one_segment() {
    lab::test(Timing::Free, || {
        let lab = two_cards(HOST_GW);
        let (_daemons, _pods) = start(&lab, &["--iface=eth1"]);
        goes_direct_by_the_second_card(lab.node(1), lab.node(2));
    });
}

#[test]
fn host_gw_uses_the_second_card_despite_a_worse_metric() {
    lab::test(Timing::Free, || {
        let lab = two_cards(HOST_GW);
        for node in lab.nodes() {
            // NetworkManager sets such metrics.
            for (card, metric) in [("eth0", 100), ("eth1", 101)] {
                node.ns.run(&format!(
                    "ip route del 192.168.100.0/24 dev {card}; ip route add 192.168.100.0/24 dev {card} metric {metric}"
                ));
            }
        }
        let (_daemons, _pods) = start(&lab, &["--iface=192.168.100.21", "--iface=192.168.100.22"]);
        goes_direct_by_the_second_card(lab.node(1), lab.node(2));
    });
}

#[test]
fn auto_uses_the_second_card_of_two_on_one_segment() {
    lab::test(Timing::Free, || {
        let lab = two_cards(&VXLAN.replace("vxlan", "auto"));
        let (_daemons, pods) = start(&lab, &["--iface=eth1"]);
        goes_direct_by_the_second_card(lab.node(1), lab.node(2));
        cluster::reach_each_other(&pods);
    });
}

#[test]
fn a_waiting_direct_path_delays_no_tunnel() {
    lab::test(Timing::Free, || {
        for backend in [r#""auto""#, r#""vxlan","DirectRouting":true,"VerifyDirect":false"#] {
            let lab = two_cards(&VXLAN.replace(r#""vxlan""#, backend));
            for node in lab.nodes() {
                node.ns.run("ip route del 192.168.100.0/24 dev eth1");
            }
            let daemons: Vec<_> = lab.nodes().iter().map(|node| node.start(&["--iface=eth1"])).collect();
            daemons.iter().for_each(Daemon::wait_ready);
            let pods = lab.pods();
            cluster::reach_each_other(&pods);
            let status = status(lab.node(1));
            assert!(status.contains("but no route to its segment"), "{status}");
            let routes = lab.node(1).ns.run("ip route");
            assert!(routes.contains(&format!("{subnet} via", subnet = lab.node(2).subnet())), "{routes}");
            assert!(routes.contains("dev flannel.1"), "{routes}");
        }
    });
}

/// Moves the routes of eth0 to table 100, as NetworkManager does with `ipv4.route-table=100`, and adds a rule for it.
fn routes_elsewhere(node: &Node) {
    node.ns.run(&format!(
        "ip route add 192.168.100.0/24 dev eth0 src 192.168.100.1{k} table 100; ip rule add pref 100 lookup 100
         ip route del 192.168.100.0/24 dev eth0",
        k = node.index
    ));
}

#[test]
fn a_segment_in_another_table_is_the_uplinks() {
    lab::test(Timing::Free, || {
        for config in [HOST_GW.to_owned(), VXLAN.replace("vxlan", "auto")] {
            let lab = cluster::lab(Topology::flat(2), &config);
            lab.nodes().iter().for_each(routes_elsewhere);
            let (_daemons, pods) = start(&lab, &["--iface=eth0"]);
            let node = lab.node(1);
            let direct = format!("{} via 192.168.100.12 dev eth0", lab.node(2).subnet());
            let has = || node.ns.run("ip route").contains(&direct);
            lab::wait_for("the direct route", SOON * 2, has);
            assert!(!status(node).contains("no route to its segment"), "{}", status(node));
            assert_eq!(node.get("/readyz").unwrap().status, 200);
            // Without a route in any table the peer waits, until the route is back.
            node.ns.run("ip route del 192.168.100.0/24 dev eth0 table 100");
            lab::wait_for("it is reported", SOON, || status(node).contains("no route to its segment"));
            node.ns.run("ip route add 192.168.100.0/24 dev eth0 src 192.168.100.11 table 100");
            lab::wait_for("it is back", SOON, || !status(node).contains("no route to its segment"));
            cluster::reach_each_other(&pods);
        }
    });
}

/// Starts daemons for vxlan on the second of two cards on one segment, with the kernel's strict source check.
#[test]
fn a_strict_source_check_that_drops_peers_packets_is_named_and_its_cure_works() {
    lab::test(Timing::Free, || {
        let lab = two_cards(VXLAN);
        let strict = [("net.ipv4.conf.all.rp_filter", "1"), ("net.ipv4.conf.eth1.rp_filter", "0")];
        lab.nodes().iter().for_each(|node| node.ns.sysctl(&strict));
        let daemons: Vec<_> = lab.nodes().iter().map(|node| node.start(&["--iface=eth1"])).collect();
        daemons.iter().for_each(Daemon::wait_ready);
        let pods = lab.pods();
        for node in lab.nodes() {
            let dropped = "this node drops packets of peers that come in by eth1";
            lab::wait_for("the source check is named", SOON, || status(node).contains(dropped));
            assert!(pods[0].ping(pods[1].ip()).is_none(), "the packets are dropped");
            let status = status(node);
            assert!(
                status.contains("the way back to 192.168.100.2") && status.contains("leaves by eth0"),
                "{status}"
            );
            let (_, command) = status.split_once("leaves by eth0. Run: ").unwrap();
            node.ns.run(command.lines().next().unwrap());
            lab::wait_for("the warning goes", SOON, || !self::status(node).contains(dropped));
        }
        cluster::reach_each_other(&pods);
    });
}

#[test]
fn a_node_whose_only_ipv6_address_is_link_local_is_refused_with_the_reason() {
    lab::test(Timing::Free, || {
        for config in [VXLAN_DUAL, VXLAN_IPV6] {
            let lab = cluster::lab(Topology::flat(1), config);
            lab.node(1).ns.run("ip -6 address flush dev eth0 scope global");
            is_refused(&lab, &["--iface=eth0"], &["eth0 has no usable IPv6 address: fe80::", "unique local"]);
        }
    });
}

/// Asserts that a node with these default routes in place of its own finds eth0.
fn finds_its_uplink(config: &str, routes: &str) {
    let lab = cluster::lab(Topology::flat(1), config);
    let node = lab.node(1);
    node.ns.run(&format!("ip route del default; ip -6 route del default; {routes}"));
    let daemon = node.start(&[]);
    daemon.wait_ready();
    let status = status(node);
    assert!(
        status.contains("eth0 192.168.100.11") && status.contains("the default route leaves through it"),
        "{status}"
    );
}

const HOPS: &str =
    "ip route add default nexthop via 192.168.100.1 dev eth0 nexthop via 192.168.100.2 dev eth0 weight 3";
const HOPS6: &str =
    "ip -6 route add default nexthop via fd00:100::1 dev eth0 nexthop via fd00:100::2 dev eth0";
const OBJECTS: &str = "echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode; ip nexthop add id 1 via 192.168.100.1 dev eth0; \
                       ip nexthop add id 2 via 192.168.100.2 dev eth0; ip nexthop add id 3 group 1/2,5; \
                       ip nexthop add id 6 via fd00:100::1 dev eth0; ip nexthop add id 7 via fd00:100::2 dev eth0; \
                       ip nexthop add id 8 group 6/7";

#[test]
fn a_default_route_with_several_next_hops_finds_the_uplink() {
    lab::test(Timing::Free, || {
        finds_its_uplink(VXLAN, HOPS);
        finds_its_uplink(VXLAN_DUAL, &format!("{HOPS}; {HOPS6}"));
        finds_its_uplink(
            VXLAN,
            &format!("{HOPS} ; ip route add default via 192.168.100.3 dev eth0 metric 50"),
        );
    });
}

#[test]
fn a_default_route_by_next_hop_object_finds_the_uplink() {
    lab::test(Timing::Free, || {
        finds_its_uplink(VXLAN, &format!("{OBJECTS}; ip route add default nhid 1"));
        finds_its_uplink(VXLAN, &format!("{OBJECTS}; ip route add default nhid 3"));
        let dual = format!("{OBJECTS}; ip route add default nhid 3; ip -6 route add default nhid 8");
        finds_its_uplink(VXLAN_DUAL, &dual);
    });
}

#[test]
fn default_routes_in_halves_or_another_table_find_the_uplink() {
    lab::test(Timing::Free, || {
        finds_its_uplink(
            VXLAN,
            "ip route add 0.0.0.0/1 via 192.168.100.1; ip route add 128.0.0.0/1 via 192.168.100.1",
        );
        finds_its_uplink(
            VXLAN,
            "ip route add default via 192.168.100.1 table 100; ip rule add pref 100 lookup 100",
        );
    });
}

#[test]
fn an_ambiguous_default_route_is_refused_with_both_cards() {
    lab::test(Timing::Free, || {
        let lab = two_cards(VXLAN);
        let hops = "nexthop via 192.168.100.1 dev eth0 nexthop via 192.168.100.1 dev eth1";
        lab.node(1).ns.run(&format!("ip route del default; ip route add default {hops}"));
        let why = "the IPv4 default route has several next hops, which leave through eth0 and eth1; name one with --iface";
        is_refused(&lab, &[], &[why]);
        // The route's source address is the node's address.
        lab.node(1).ns.run(&format!("ip route replace default src 192.168.100.21 {hops}"));
        let daemon = lab.node(1).start(&[]);
        daemon.wait_ready();
        assert!(status(lab.node(1)).contains("eth1 192.168.100.21"));
    });
}

/// Builds two nodes with their addresses on lo; two cards lead to the peer and to the default route.
fn on_no_wire(config: &str, mtus: [u32; 2]) -> Lab {
    let lab = cluster::lab(Topology::flat(2), config);
    for node in lab.nodes() {
        node.second_card();
        let (k, other, [one, two]) = (node.index, 3 - node.index, mtus);
        node.ns.run(&format!(
            "ip address flush dev eth0 scope global
             ip link set eth0 mtu {one}; ip link set eth1 mtu {two}
             ip address add 10.255.0.1{k}/32 dev lo
             ip address add 172.16.1.{k}/30 dev eth0; ip address add 172.16.2.{k}/30 dev eth1
             ip route replace default nexthop via 172.16.1.{other} dev eth0 nexthop via 172.16.2.{other} dev eth1"
        ));
    }
    lab
}

fn has_mtu(node: &Node, mtu: u32) -> bool {
    let device = node.ns.run("ip link show flannel.1");
    device.contains(&format!(" mtu {mtu} ")) && node.subnet_env().is_some_and(|env| env.mtu() == Some(mtu))
}

#[test]
fn an_address_on_loopback_gets_the_mtu_of_the_cards() {
    lab::test(Timing::Free, || {
        for (mtus, expected) in [([1500, 1500], 1450), ([1500, 1400], 1350)] {
            let lab = on_no_wire(VXLAN, mtus);
            let flags = [["--iface=10.255.0.11"], ["--iface=10.255.0.12"]];
            let daemons: Vec<_> =
                lab.nodes().iter().zip(flags).map(|(node, flags)| node.start(&flags)).collect();
            daemons.iter().for_each(Daemon::wait_ready);
            let pods = lab.pods();
            cluster::reach_each_other(&pods);
            let node = lab.node(1);
            assert!(has_mtu(node, expected), "{}", node.ns.run("ip link"));
            let to = pods[1].ip();
            pods[0].ns.run(&format!("ping -n -c 3 -i 0.2 -W 2 -M do -s {} {to}", expected - 28));
            // The MTU of one card changes, and the pods' MTU with it.
            node.ns.run("ip link set eth1 mtu 1300");
            lab::wait_for("the MTU follows", SOON, || has_mtu(node, 1250));
        }
    });
}

#[test]
fn a_route_mtu_below_the_interface_mtu_counts() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, _pods) = cluster::start(&lab);
        let node = lab.node(1);
        for (change, mtu) in [
            (
                "ip route change 192.168.100.0/24 dev eth0 proto kernel scope link src 192.168.100.11 mtu lock 1400",
                1350,
            ),
            ("ip route change 192.168.100.0/24 dev eth0 proto kernel scope link src 192.168.100.11", 1450),
            ("ip route add 192.168.100.12 dev eth0 mtu 1380", 1330),
            ("ip route del 192.168.100.12 dev eth0", 1450),
            // No peer is behind this route.
            ("ip route add 192.168.100.99 dev eth0 mtu 1380", 1450),
        ] {
            node.ns.run(change);
            lab::wait_for(change, SOON, || has_mtu(node, mtu));
        }
        // A lease that is not admitted has an address behind that route; then one that is.
        let lease = r#"{"PublicIP":"192.168.100.99","BackendType":"host-gw"}"#;
        lab.store.put_lease("10.99.0.0-24", lease);
        lab::wait_for("it is named", SOON, || status(node).contains("10.99.0.0-24"));
        assert!(has_mtu(node, 1450), "{}", node.ns.run("ip link"));
        lab.store.put_lease("10.244.5.0-24", lease);
        lab::wait_for("the MTU follows", SOON, || has_mtu(node, 1330));
    });
}

#[test]
fn an_uplink_bridge_uses_the_mtu_of_its_card() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        // A bridge whose MTU was set by hand does not follow its ports.
        node.ns.run(
            "ip address flush dev eth0 scope global; ip link add br0 type bridge; ip link set br0 up
             ip link set eth0 mtu 1400; ip link set eth0 master br0; ip link set br0 mtu 1400; ip link set eth0 mtu 1300
             ip link set br0 mtu 1400; ip address add 192.168.100.11/24 dev br0; ip route add default via 192.168.100.1",
        );
        let flags = [["--iface=br0"], ["--iface=eth0"]];
        let daemons: Vec<_> = lab.nodes().iter().zip(flags).map(|(node, flags)| node.start(&flags)).collect();
        daemons.iter().for_each(Daemon::wait_ready);
        lab::wait_for("the card's MTU", SOON, || has_mtu(node, 1250));
    });
}

/// A router's advertisement sets that sysctl.
#[test]
fn an_ipv6_mtu_below_the_uplinks_counts_with_ipv6() {
    lab::test(Timing::Free, || {
        for (config, devices) in [
            (VXLAN_DUAL, &[("flannel.1", 1350), ("flannel-v6.1", 1330)][..]),
            (VXLAN, &[("flannel.1", 1450)]),
        ] {
            let lab = cluster::lab(Topology::flat(2), config);
            lab.nodes().iter().for_each(|node| node.ns.sysctl(&[("net.ipv6.conf.eth0.mtu", "1400")]));
            let (_daemons, pods) = start(&lab, &["--iface=eth0"]);
            for (device, mtu) in devices {
                let link = lab.node(1).ns.run(&format!("ip link show {device}"));
                assert!(link.contains(&format!(" mtu {mtu} ")), "{link}");
            }
            let least = devices.iter().map(|(_, mtu)| *mtu).min();
            assert_eq!(lab.node(1).subnet_env().unwrap().mtu(), least);
            cluster::reach_each_other(&pods);
        }
    });
}

/// Only packets can show where policy routing leads past the main table.
#[test]
fn a_full_size_packet_that_the_kernel_does_not_send_is_reported() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        let lab = two_cards(VXLAN);
        let node = lab.node(1);
        node.ns.run(
            "ip link set eth1 mtu 1300; ip route add 192.168.100.12 dev eth1 table 100
             ip rule add pref 100 to 192.168.100.12 lookup 100",
        );
        let (_daemons, _pods) = start(&lab, &["--iface=eth0"]);
        let reported = |status: &str| status.contains("fragmented") || status.contains("large packets lost");
        lab::wait_for("it is reported", SOON * 3, || reported(&status(node)));
    });
}
