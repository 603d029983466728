//! A cluster of thousands: its IPv4 routes use next hop objects and its IPv6 routes do not. No packet is lost on the way there
//! and back. A deleted object of thousands is repaired as quickly as one of two.

use std::time::{Duration, Instant};

use lab::{Lab, Node, PingStream, Timing, Topology};

use crate::cluster::{self, SOON};

const VXLAN: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48","IPv6SubnetMin":"fd00:244:0:f000::","IPv6SubnetMax":"fd00:244:0:ff00::","Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48","IPv6SubnetMin":"fd00:244:0:f000::","IPv6SubnetMax":"fd00:244:0:ff00::","Backend":{"Type":"host-gw"}}"#;
const FLAGS: &[&str] = &["--iface=eth0", "--shrink-grace=1s"];
/// Number of peers that exist as leases only.
const CROWD: usize = 3000;

fn subnet(number: usize) -> String {
    format!("10.{}.{}.0", 1 + number / 200, number % 200)
}

fn subnet6(number: usize) -> String {
    format!("fd00:244:0:{:x}::", 1 + number)
}

fn mac(family: u8, number: usize) -> String {
    format!("0a:0{family}:00:00:{:02x}:{:02x}", number / 200, number % 200)
}

fn lease(config: &str, number: usize) -> (String, String) {
    let vtep = |family| format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(family, number));
    let announced = if config == VXLAN {
        format!(r#""vxlan","BackendData":{},"BackendV6Data":{}"#, vtep(4), vtep(6))
    } else {
        r#""host-gw""#.to_owned()
    };
    let (ip, ip6) = (format!("192.168.100.{}", 50 + number % 150), format!("fd00:100::f:{number:x}"));
    let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":"{ip6}","BackendType":{announced}}}"#);
    (format!("{}-24&{}-64", subnet(number), subnet6(number)), value)
}

fn crowd(lab: &Lab, config: &str) -> Vec<(String, String)> {
    let leases: Vec<_> = (0..CROWD).map(|number| lease(config, number)).collect();
    lab.store.put_leases(&leases);
    leases
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Ipv4,
    Ipv6,
}

/// Number of routes to peers, by kind.
#[derive(Debug, PartialEq)]
struct Shape {
    objects: usize,
    by_object: usize,
    plain: usize,
    plain6: usize,
}

impl Shape {
    fn of(node: &Node) -> Self {
        let count = |text: &str, word| text.lines().filter(|line| line.contains(word)).count();
        let routes = node.ns.run("ip route show proto 84");
        let by_object = count(&routes, " nhid ");
        Self {
            objects: count(&node.ns.run("ip nexthop"), "proto 84"),
            by_object,
            plain: count(&routes, " via ") - by_object,
            plain6: count(&node.ns.run("ip -6 route show proto 84"), " via "),
        }
    }

    fn objects(peers: usize) -> Self {
        Self { objects: peers, by_object: peers, plain: 0, plain6: peers }
    }

    fn plain(peers: usize) -> Self {
        Self { objects: 0, by_object: 0, plain: peers, plain6: peers }
    }
}

fn takes(nodes: &[Node], shape: &Shape) {
    for node in nodes {
        lab::wait_for(&format!("{shape:?}"), 2 * SOON, || Shape::of(node) == *shape);
    }
}

fn there_and_back(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (mut daemons, pods) = (lab.start_all(FLAGS), lab.pods());
    cluster::reach_each_other(&pods);
    let pings = pods[1].ips().map(|ip| PingStream::every(&pods[0].ns, ip, Duration::from_millis(10)));
    let pings: Vec<_> = pings.collect();
    takes(lab.nodes(), &Shape::plain(1));
    let mut leases = crowd(&lab, config);
    takes(lab.nodes(), &Shape::objects(CROWD + 1));
    let node = lab.node(1);
    daemons[0].kill9();
    daemons[0].restart();
    daemons[0].wait_ready();
    assert_eq!(cluster::ops_asked(node), 0.0, "the next start finds all as it should be");
    daemons[0].terminate();
    node.twill(&["uninstall", "--hand-over"]);
    assert_eq!(Shape::of(node), Shape::plain(CROWD + 1), "flannel knows no objects");
    daemons[0] = node.start(FLAGS);
    daemons[0].wait_ready();
    takes(lab.nodes(), &Shape::objects(CROWD + 1));
    for (left, shape) in [(1200, Shape::objects(1201)), (800, Shape::plain(801))] {
        leases.drain(left..).for_each(|(name, _)| lab.store.remove_lease(&name));
        takes(lab.nodes(), &shape);
    }
    for ping in pings {
        let report = ping.stop();
        assert!(report.sent > 100, "{report:?}");
        assert_eq!(report.lost, 0, "{report:?}");
    }
}

#[test]
fn vxlan_switches_to_next_hop_objects_and_back() {
    lab::test(Timing::Free, || there_and_back(VXLAN));
}

#[test]
fn host_gw_switches_to_next_hop_objects_and_back() {
    lab::test(Timing::Free, || there_and_back(HOST_GW));
}

/// Commands that show what the kernel holds for one peer, and that delete it.
const IPV4: [[&str; 2]; 2] = [
    ["ip nexthop show id ID", "ip nexthop del id ID"],
    ["ip route show SUBNET/24", "ip route del SUBNET/24"],
];
const IPV4_TUNNEL: [[&str; 2]; 2] = [
    ["bridge fdb show dev flannel.1 | grep MAC", "bridge fdb del MAC dev flannel.1 self"],
    ["ip neigh show SUBNET dev flannel.1", "ip neigh del SUBNET dev flannel.1"],
];
const IPV6: [[&str; 2]; 1] = [["ip -6 route show SUBNET6/64", "ip -6 route del SUBNET6/64"]];
const IPV6_TUNNEL: [[&str; 2]; 2] = [
    ["bridge fdb show dev flannel-v6.1 | grep MAC6", "bridge fdb del MAC6 dev flannel-v6.1 self"],
    ["ip -6 neigh show SUBNET6 dev flannel-v6.1", "ip -6 neigh del SUBNET6 dev flannel-v6.1"],
];

fn is_at_rest(node: &Node) -> bool {
    let passes = || {
        let metrics = node.get("/metrics").unwrap().body;
        metrics.lines().find(|line| line.starts_with("twill_passes_total")).map(str::to_owned)
    };
    let before = passes();
    std::thread::sleep(Duration::from_millis(300));
    passes() == before
}

/// Deletes one object of each kind of one peer in a crowd, one at a time. The crowd has that family only.
fn each_comes_back(config: &str, family: Family, kinds: &[[&str; 2]]) {
    let (alone, shape) = match family {
        Family::Ipv4 => ("", Shape { plain6: 0, ..Shape::objects(CROWD) }),
        Family::Ipv6 => {
            (r#""EnableIPv4":false,"EnableIPv6":true,"#, Shape { plain: 0, ..Shape::plain(CROWD) })
        }
    };
    let lab = cluster::lab(Topology::flat(1), &config.replace(r#""EnableIPv6":true,"#, alone));
    let _daemons = lab.start_all(FLAGS);
    let node = lab.node(1);
    for (key, value) in (0..CROWD).map(|number| lease(config, number)) {
        let (ipv4, ipv6) = key.split_once('&').unwrap();
        let key = if family == Family::Ipv4 { ipv4.to_owned() } else { format!("0.0.0.0-0&{ipv6}") };
        lab.store.put_lease(&key, &value);
    }
    takes(lab.nodes(), &shape);
    let number = CROWD / 2;
    let route = node.ns.run(&format!("ip route show {}/24", subnet(number)));
    let id = route.split(' ').skip_while(|word| *word != "nhid").nth(1).unwrap_or_default();
    let of_it = |line: &str| {
        let line = line.replace("SUBNET6", &subnet6(number)).replace("SUBNET", &subnet(number));
        line.replace("MAC6", &mac(6, number)).replace("MAC", &mac(4, number)).replace("ID", id)
    };
    let rows =
        || kinds.iter().map(|[row, _]| node.ns.run(&format!("{} || true", of_it(row)))).collect::<String>();
    let before = rows();
    for [_, harm] in kinds {
        // A dump in progress may see one half of a change only, which needs a second pass.
        lab::wait_for("no pass is under way", SOON, || is_at_rest(node));
        node.ns.run(&of_it(harm));
        let begun = Instant::now();
        lab::wait_for(&format!("all is as before `{harm}`"), SOON, || rows() == before);
        let took = begun.elapsed();
        println!("{took:?} after {harm}");
        lab::in_time(&format!("the repair after {harm}"), took, Duration::from_secs(1));
    }
    assert_eq!(Shape::of(node), shape);
}

#[test]
fn vxlan_restores_one_ipv4_peer_among_thousands_at_once() {
    lab::test(Timing::Timed, || each_comes_back(VXLAN, Family::Ipv4, &[IPV4, IPV4_TUNNEL].concat()));
}

#[test]
fn vxlan_restores_one_ipv6_peer_among_thousands_at_once() {
    lab::test(Timing::Timed, || each_comes_back(VXLAN, Family::Ipv6, &[&IPV6[..], &IPV6_TUNNEL].concat()));
}

#[test]
fn host_gw_restores_one_ipv4_peer_among_thousands_at_once() {
    lab::test(Timing::Timed, || each_comes_back(HOST_GW, Family::Ipv4, &IPV4));
}

#[test]
fn host_gw_restores_one_ipv6_peer_among_thousands_at_once() {
    lab::test(Timing::Timed, || each_comes_back(HOST_GW, Family::Ipv6, &IPV6));
}
