//! Tests of facts about the underlay.

use std::time::{Duration, Instant};

use lab::Timing::{Free, Timed};
use plan::owned::Owned;
use plan::passage::{Packet, Passage, Payload};
use plan::range::Range;
use plan::underlay::{
    AddressFacts, LinkFacts, NextHop, RouteAnswer, RouteDetails, RouteFacts, RouteLookup, Underlay,
};

use crate::scene::*;

fn pods() -> Vec<Range> {
    owned().pods
}

#[test]
fn the_underlay_lists_devices_and_addresses() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip addr add 192.0.2.77/24 dev eth0 valid_lft 900 preferred_lft 0");
        let underlay = kernel.underlay(&pods()).unwrap();
        assert_eq!(underlay, Underlay { sysctls: Vec::new(), ..seen(&mut kernel).underlay });

        let names: Vec<_> = underlay.links.iter().map(|link| link.name.to_string()).collect();
        assert_eq!(names[0], "lo");
        let tunnel = underlay.link(name("flannel.1")).unwrap();
        let facts = LinkFacts {
            name: name("flannel.1"),
            kind: "vxlan".into(),
            mac: OUR_MAC,
            mtu: 1450,
            up: true,
            carrier: true,
            local: Some([192, 0, 2, 1].into()),
            ..LinkFacts::default()
        };
        assert_eq!(*tunnel, facts);

        let fact = |address: &str| {
            let address: ipnet::IpNet = address.parse().unwrap();
            underlay.addresses.iter().find(|facts| facts.address == address).cloned().unwrap()
        };
        let plain = AddressFacts {
            link: name("eth0"),
            address: "192.0.2.1/24".parse().unwrap(),
            permanent: true,
            temporary: false,
            deprecated: false,
            tentative: false,
            duplicate: false,
        };
        assert_eq!(fact("192.0.2.1/24"), plain);
        let dying = fact("192.0.2.77/24");
        assert_eq!((dying.permanent, dying.deprecated, dying.temporary), (false, true, false));
        let order: Vec<_> = underlay.addresses.iter().map(|facts| facts.link).collect();
        let mut sorted = order.clone();
        sorted.sort_by_key(|link| names.iter().position(|name| *name == link.to_string()));
        assert_eq!(order, sorted, "by the index of the device");
    });
}

#[test]
fn the_underlay_lists_routes_outside_the_pod_networks() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip route add default via 192.0.2.254; ip route add 198.51.100.0/24 via 192.0.2.9 metric 30
            ip route add 203.0.113.0/24 nexthop via 192.0.2.8 nexthop via 192.0.2.9
            ip route add 198.51.100.0/25 via inet6 2001:db8::9 dev eth0
            ip -6 route add default via 2001:db8::254; ip route add 10.244.7.0/24 via 192.0.2.7
            ip route add 100.64.0.0/10 via 192.0.2.7 table 7777; ip route add unreachable 100.65.0.0/16");
        let underlay = kernel.underlay(&pods()).unwrap();
        let routes =
            underlay.routes.iter().filter(|route| !route.destination.to_string().starts_with("fe80"));
        let routes: Vec<_> = routes.cloned().collect();
        let route = |to: &str, gateway: Option<&str>, link: Option<&str>| RouteFacts {
            destination: to.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            link: link.map(name),
            ..RouteFacts::default()
        };
        let with = |metric, more: Option<&str>, route: RouteFacts| {
            let hop = |gateway: &str| NextHop { gateway: gateway.parse().ok(), link: Some(name("eth0")) };
            let details = more.map(|more| RouteDetails { more: vec![hop(more)], ..RouteDetails::default() });
            RouteFacts { metric, details: details.map(Box::new), ..route }
        };
        assert_eq!(
            routes,
            [
                route("0.0.0.0/0", Some("192.0.2.254"), Some("eth0")),
                route("192.0.2.0/24", None, Some("eth0")),
                route("198.51.100.0/25", Some("2001:db8::9"), Some("eth0")),
                with(30, None, route("198.51.100.0/24", Some("192.0.2.9"), Some("eth0"))),
                with(0, Some("192.0.2.9"), route("203.0.113.0/24", Some("192.0.2.8"), Some("eth0"))),
                with(256, None, route("2001:db8::/64", None, Some("eth0"))),
                with(1024, None, route("::/0", Some("2001:db8::254"), Some("eth0"))),
            ]
        );
    });
}

#[test]
fn a_route_by_next_hop_object_is_read_with_its_gateways() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode
            ip link add eth1 type veth peer name wire1; ip link set wire1 up; ip link set eth1 up; ip addr add 198.51.100.1/24 dev eth1
            ip nexthop add id 7 via 192.0.2.254 dev eth0; ip nexthop add id 8 via 198.51.100.254 dev eth1
            ip nexthop add id 9 group 7/8; ip nexthop add id 6 via 2001:db8::254 dev eth0
            ip route add default nhid 7; ip route add 203.0.113.0/24 nhid 9; ip -6 route add default nhid 6
            ip route add 203.0.113.0/25 via 192.0.2.9 src 192.0.2.1 mtu lock 1400
            ip route add 203.0.113.128/25 nexthop via 192.0.2.9 nexthop via 198.51.100.9");
        let underlay = kernel.underlay(&pods()).unwrap();
        let hops = |to: &str| {
            let mut routes = underlay.routes.iter();
            let route = routes.find(|route| route.destination == to.parse().unwrap()).unwrap();
            let shown = |hop: NextHop| format!("{} {}", hop.gateway.unwrap(), hop.link.unwrap());
            (route.hops().map(shown).collect::<Vec<_>>().join(", "), route.mtu(), route.source())
        };
        let plain = |hops: &str| (hops.to_owned(), None, None);
        assert_eq!(hops("0.0.0.0/0"), plain("192.0.2.254 eth0"));
        assert_eq!(hops("::/0"), plain("2001:db8::254 eth0"));
        assert_eq!(hops("203.0.113.0/24"), plain("192.0.2.254 eth0, 198.51.100.254 eth1"));
        assert_eq!(hops("203.0.113.128/25"), plain("192.0.2.9 eth0, 198.51.100.9 eth1"));
        assert_eq!(hops("203.0.113.0/25"), ("192.0.2.9 eth0".into(), Some(1400), None));
        sh("ip route replace default via 192.0.2.254 src 192.0.2.1");
        let underlay = kernel.underlay(&pods()).unwrap();
        let source = underlay.routes.iter().find(|route| route.is_default()).unwrap().source();
        assert_eq!(source, Some([192, 0, 2, 1].into()));
    });
}

#[test]
fn underlay_routes_come_from_the_main_table_only() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip route add default via 192.0.2.254; ip route add 100.64.0.0/10 via 192.0.2.7 table 7777
            ip route add 10.244.9.0/24 via 192.0.2.9; ip route add 10.244.8.0/24 via 192.0.2.8 table 7777");
        let owned = plan::owned::Owned { table: 7777, ..owned() };
        let read = kernel.dump(&owned).unwrap();
        let of_none = Underlay { sysctls: Vec::new(), ..read.underlay };
        assert_eq!(of_none, kernel.underlay(&pods()).unwrap());
        let rows: Vec<_> = read.state.routes.iter().map(|row| row.destination.to_string()).collect();
        assert_eq!(rows, ["10.244.8.0/24"]);
    });
}

#[test]
fn the_uplinks_segment_is_found_in_the_table_that_a_rule_leads_to() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let mut beside = || -> Vec<String> {
            let underlay = seen(&mut kernel).underlay;
            underlay.beside.iter().map(|route| route.destination.to_string()).collect()
        };
        sh("ip link add eth1 type veth peer name wire1; ip link set wire1 up; ip link set eth1 up
            ip route add 198.51.100.0/24 dev eth1 table 100; ip route add 203.0.113.0/24 via 192.0.2.9 table 100
            ip route add 192.0.2.0/24 dev eth0 table 100; ip -6 route add 2001:db8::/64 dev eth0 table 100");
        assert_eq!(beside(), [""; 0], "the main table has the segments");
        sh("ip route del 192.0.2.0/24 dev eth0; ip -6 route del 2001:db8::/64 dev eth0");
        assert_eq!(beside(), [""; 0], "nothing leads to that table");
        sh("ip rule add pref 100 lookup 100");
        assert_eq!(beside(), ["192.0.2.0/24", "203.0.113.0/24"]);
        sh("ip -6 rule add pref 100 lookup 100");
        assert_eq!(beside(), ["192.0.2.0/24", "203.0.113.0/24", "2001:db8::/64"]);
        sh("ip route add 192.0.2.0/24 dev eth0");
        assert_eq!(beside(), ["2001:db8::/64"]);
    });
}

#[test]
fn route_to_finds_gateway_link_and_source() {
    lab::test(Free, || {
        let mut kernel = node();
        sh("ip route add 198.51.100.0/24 via 192.0.2.9; ip -6 route add 2001:db8:9::/64 via 2001:db8::9");
        let found = kernel.route_to("198.51.100.7".parse().unwrap()).unwrap();
        assert_eq!(found.route.gateway, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(
            (found.route.link, found.source),
            (Some(name("eth0")), Some("192.0.2.1".parse().unwrap()))
        );
        let found = kernel.route_to("192.0.2.9".parse().unwrap()).unwrap();
        assert_eq!((found.route.gateway, found.route.link), (None, Some(name("eth0"))));
        let found = kernel.route_to("2001:db8:9::1".parse().unwrap()).unwrap();
        assert_eq!(found.route.gateway, Some("2001:db8::9".parse().unwrap()));
        assert_eq!(found.source, Some("2001:db8::1".parse().unwrap()));
        let error = kernel.route_to("203.0.113.1".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "look up the route to 203.0.113.1: Network is unreachable (os error 101)");
    });
}

#[test]
fn before_the_first_pod_the_kernel_is_asked_from_our_first_pod_address() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip addr add 10.244.1.0/32 dev flannel.1
            ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
            ip link add vpn0 type veth peer name vpn1; ip link set vpn0 up; ip link set vpn1 up
            ip route add 10.0.0.0/8 dev vpn0 table 52");
        let [own, peer] = ["10.244.1.0/24", "10.244.2.0/24"].map(|subnet| subnet.parse().unwrap());
        let owned = Owned { passages: vec![Passage { own, peer, link: name("flannel.1") }], ..owned() };
        let mut local = || {
            let lookups = kernel.dump(&owned).unwrap().underlay.lookups;
            lookups.into_iter().find(|lookup| lookup.packet.is_local())
        };
        let leaves_by = |lookup: &RouteLookup, device: &str| matches!(&lookup.answer, RouteAnswer::Via { link, .. } if *link == Some(name(device)));
        let lookup = local().unwrap();
        assert!(leaves_by(&lookup, "flannel.1") && lookup.rule.is_none(), "{lookup:?}");
        sh("ip rule add pref 5270 lookup 52");
        let lookup = local().unwrap();
        assert!(leaves_by(&lookup, "vpn0"), "{lookup:?}");
        let rule = lookup.rule.unwrap();
        assert_eq!((rule.priority, &*rule.words), (5270, "5270: from all lookup 52"));
        sh("ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; ip link set cni0 up");
        assert_eq!(local(), None, "packets of pods are asked for");
    });
}

#[test]
fn a_packet_that_the_source_check_drops_is_told_from_one_that_a_blackhole_takes() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip link add eth1 type veth peer name wire1; ip link set wire1 up; ip link set eth1 up
            ip addr add 192.0.2.21/24 dev eth1; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter
            echo 1 > /proc/sys/net/ipv4/ip_forward");
        let packet = |inbound: &str, destination: [u8; 4]| Packet {
            source: [192, 0, 2, 2].into(),
            destination: destination.into(),
            inbound: name(inbound),
            outbound: name("lo"),
            payload: Payload::Tunnel(8472),
        };
        let mut answer = |inbound: &str, destination| {
            let between_nodes = vec![packet(inbound, destination)];
            let lookups = kernel.dump(&Owned { between_nodes, ..owned() }).unwrap().underlay.lookups;
            lookups[0].answer.clone()
        };
        let is_sent_to = |answer: &RouteAnswer, link: &str| matches!(answer, RouteAnswer::Via { link: Some(found), .. } if *found == name(link));
        // The way back leaves by eth0, whose route is older.
        assert!(is_sent_to(&answer("eth0", [192, 0, 2, 21]), "lo"));
        assert_eq!(answer("eth1", [192, 0, 2, 21]), RouteAnswer::Refused(libc::EXDEV));
        sh("ip route add blackhole 198.51.100.0/24");
        assert_eq!(answer("eth0", [198, 51, 100, 7]), RouteAnswer::Refused(libc::EINVAL));
        sh("echo 2 > /proc/sys/net/ipv4/conf/eth1/rp_filter");
        assert!(is_sent_to(&answer("eth1", [192, 0, 2, 21]), "lo"));
    });
}

#[test]
fn a_dump_with_100000_foreign_routes_takes_under_a_second() {
    lab::test(Timed, || {
        let mut kernel = tunnelled();
        let lines: String = (0..100_000_u32)
            .map(|k| {
                format!("route add 20.{}.{}.{}/32 via 192.0.2.9 proto bgp\n", k >> 16, k >> 8 & 255, k & 255)
            })
            .collect();
        ip_batch(&lines);
        sh("ip route add 10.244.2.0/24 via 192.0.2.2");
        let start = Instant::now();
        let seen = seen(&mut kernel);
        println!("dump beside 100,000 foreign routes: {:?}", start.elapsed());
        assert_eq!((seen.state.routes.len(), seen.underlay.routes.len() > 100_000), (1, true));
        lab::in_time("the dump", start.elapsed(), Duration::from_secs(1));
    });
}
