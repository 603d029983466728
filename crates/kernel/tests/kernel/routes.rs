//! Tests of routes.

use std::time::Duration;

use kernel::Outcome;
use lab::Timing::Free;
use plan::marks::PROTOCOL;
use plan::state::{Route, RoutePath};

use crate::scene::*;

const SOON: Duration = Duration::from_secs(5);

/// Returns a route of every shape, in the order of a dump, with its words in ip-route(8).
fn shapes() -> Vec<(Route, &'static str)> {
    vec![
        (
            via("10.244.2.0/24", "10.244.2.0", "flannel.1", true),
            "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        ),
        (via("10.244.3.0/24", "192.0.2.3", "eth0", false), "10.244.3.0/24 via 192.0.2.3 dev eth0"),
        (route("10.244.4.0/24", RoutePath::Link(name("flannel.1"))), "10.244.4.0/24 dev flannel.1"),
        (route("10.244.5.0/24", RoutePath::Unreachable), "unreachable 10.244.5.0/24"),
        (route("10.244.6.0/24", RoutePath::Blackhole), "blackhole 10.244.6.0/24"),
        (
            via("fd00:10:244:2::/64", "fd00:10:244:2::", "flannel.1", true),
            "fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel.1 onlink",
        ),
        (
            via("fd00:10:244:3::/64", "2001:db8::3", "eth0", false),
            "fd00:10:244:3::/64 via 2001:db8::3 dev eth0",
        ),
        (route("fd00:10:244:4::/64", RoutePath::Link(name("flannel.1"))), "fd00:10:244:4::/64 dev flannel.1"),
        (route("fd00:10:244:5::/64", RoutePath::Unreachable), "unreachable fd00:10:244:5::/64"),
        (route("fd00:10:244:6::/64", RoutePath::Blackhole), "blackhole fd00:10:244:6::/64"),
    ]
}

fn rows(kernel: &mut kernel::Kernel, table: u32) -> Vec<Route> {
    let owned = plan::owned::Owned { table, ..owned() };
    kernel.dump(&owned).unwrap().state.routes.to_vec()
}

#[test]
fn our_routes_equal_those_that_ip_adds_in_any_table() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        for table in [254, 200, 7777] {
            let want: Vec<Route> = shapes().into_iter().map(|(row, _)| Route { table, ..row }).collect();
            let ops: Vec<_> = want.iter().cloned().map(add).collect();
            applies(&mut kernel, &ops);
            assert_eq!(rows(&mut kernel, table), want);
            let show = format!(
                "ip -o route show table {table} proto {PROTOCOL}; ip -o -6 route show table {table} proto {PROTOCOL}"
            );
            let made = sh(&show);
            // A replacement by an equal route changes nothing and does not fail.
            applies(&mut kernel, &ops);
            assert_eq!(rows(&mut kernel, table), want);
            let deletes: Vec<_> = want.iter().cloned().map(delete).collect();
            applies(&mut kernel, &deletes);
            assert_eq!(rows(&mut kernel, table), []);
            assert_eq!(kernel.apply(&deletes), vec![Outcome::Gone; want.len()]);

            let lines: Vec<String> = shapes()
                .iter()
                .map(|(_, words)| {
                    let six = if words.contains("fd00") { "-6" } else { "" };
                    format!("ip {six} route add {words} table {table} proto {PROTOCOL}")
                })
                .collect();
            sh(&lines.join(" && "));
            assert_eq!(rows(&mut kernel, table), want);
            assert_eq!(sh(&show), made);
            applies(&mut kernel, &deletes);
        }
    });
}

#[test]
fn a_route_of_another_shape_is_unknown_and_replaced() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip addr add 10.244.1.0/32 dev flannel.1; ip link add eth1 type bridge; ip link set eth1 up
            ip addr add 198.51.100.1/24 dev eth1");
        let four = "10.244.2.0/24 via 192.0.2.2 dev eth0";
        let six = "fd00:10:244:2::/64 via 2001:db8::2 dev eth0";
        for (words, told) in [
            (format!("{four} src 192.0.2.1"), "src 192.0.2.1"),
            (format!("{four} mtu 1400"), "metrics"),
            (format!("{four} realms 5"), "realm"),
            ("10.244.2.0/24 via inet6 2001:db8::2 dev eth0".into(), "via another family"),
            ("10.244.2.0/24 nexthop via 192.0.2.2 nexthop via 198.51.100.2".into(), "multipath"),
            ("10.244.2.0/24 dev eth0 scope global".into(), "scope 0"),
            ("prohibit 10.244.2.0/24".into(), "type 8"),
            ("throw 10.244.2.0/24".into(), "type 9"),
            (format!("{six} src 2001:db8::1"), "src 2001:db8::1"),
            (format!("{six} mtu 1400"), "metrics"),
            (format!("{six} pref high"), "pref"),
            (format!("{six} expires 600"), "expires"),
            (
                "fd00:10:244:2::/64 nexthop via 2001:db8::2 dev eth0 nexthop via 2001:db8::3 dev eth0".into(),
                "multipath",
            ),
            ("prohibit fd00:10:244:2::/64".into(), "type 8"),
        ] {
            let (family, want) = if words.contains("fd00") {
                ("-6", via("fd00:10:244:2::/64", "fd00:10:244:2::", "flannel.1", true))
            } else {
                ("-4", via("10.244.2.0/24", "10.244.2.0", "flannel.1", true))
            };
            sh(&format!("ip {family} route add {words}"));
            let read = rows(&mut kernel, 254);
            assert_eq!(read.len(), 1, "{words}: {read:?}");
            assert_eq!(read[0].unknown.as_deref(), Some(told), "{words}");
            assert_ne!(read[0].protocol, PROTOCOL);
            applies(&mut kernel, &[replace(want.clone())]);
            assert_eq!(rows(&mut kernel, 254), std::slice::from_ref(&want), "{words}");
            applies(&mut kernel, &[delete(want)]);
            // The route can also be deleted as it was read.
            sh(&format!("ip {family} route add {words}"));
            applies(&mut kernel, &[delete(read[0].clone())]);
            assert_eq!(rows(&mut kernel, 254), [], "{words}");
        }
    });
}

#[test]
fn routes_with_another_metric_tos_or_table_are_ignored() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 84 metric 100
            ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 84 tos 4
            ip route add 10.244.2.0/24 via 192.0.2.2 table 7777; ip route add 10.0.0.0/8 via 192.0.2.2
            ip -6 route add fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel.1 onlink proto 84 metric 100
            ip -6 route add fd00:10:244:2::/64 from 2001:db8:7::/64 via 2001:db8::2 || true");
        assert_eq!(rows(&mut kernel, 254), []);
        assert_eq!(rows(&mut kernel, 7777).len(), 1);
        assert_eq!(rows(&mut kernel, 7778), [], "a table that is not there holds nothing");
        // Our routes can exist beside them.
        let ours = [
            via("10.244.2.0/24", "10.244.2.0", "flannel.1", true),
            via("fd00:10:244:2::/64", "fd00:10:244:2::", "flannel.1", true),
        ];
        let before = sh("ip route; ip -6 route");
        applies(&mut kernel, &ours.clone().map(replace));
        assert_eq!(rows(&mut kernel, 254), ours);
        applies(&mut kernel, &ours.map(delete));
        assert_eq!(sh("ip route; ip -6 route"), before);
    });
}

#[test]
fn a_route_row_does_not_change_with_the_device_state() {
    lab::test(Free, || {
        let mut kernel = node();
        sh("ip link add eth1 type veth peer name eth2; ip link set eth1 up; ip link set eth2 up
            ip addr add 198.51.100.1/24 dev eth1; ip route add 10.244.2.0/24 via 198.51.100.2");
        let before = rows(&mut kernel, 254);
        sh("ip link set eth2 down");
        lab::wait_for("linkdown", SOON, || sh("ip route show 10.244.2.0/24").contains("linkdown"));
        assert_eq!(rows(&mut kernel, 254), before);
    });
}

#[test]
fn deleting_a_route_keeps_a_second_route_to_the_prefix() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let ours = via("10.244.2.0/24", "10.244.2.0", "flannel.1", true);
        let others = [
            via("10.244.2.0/24", "192.0.2.2", "eth0", false),
            via("10.244.2.0/24", "192.0.2.3", "eth0", false),
            Route { protocol: 3, ..via("10.244.2.0/24", "192.0.2.2", "eth0", false) },
            route("10.244.2.0/24", RoutePath::Unreachable),
        ];
        for other in others {
            for (stays, goes) in [(&ours, &other), (&other, &ours)] {
                sh("ip route flush 10.244.2.0/24");
                applies(&mut kernel, &[add(ours.clone())]);
                let mut words = match other.path {
                    RoutePath::Via { gateway, .. } => format!("10.244.2.0/24 via {gateway} dev eth0"),
                    _ => "unreachable 10.244.2.0/24".into(),
                };
                words += &format!(" proto {}", other.protocol);
                sh(&format!("ip route append {words}"));
                assert_eq!(rows(&mut kernel, 254).len(), 2, "{words}");
                applies(&mut kernel, &[delete(goes.clone())]);
                assert_eq!(rows(&mut kernel, 254), std::slice::from_ref(stays));
            }
        }
        // The two routes differ only in their protocol.
        sh("ip route flush 10.244.2.0/24; ip route add 10.244.2.0/24 via 192.0.2.2 proto 3
            ip route append 10.244.2.0/24 via 192.0.2.2 proto 84");
        applies(&mut kernel, &[delete(via("10.244.2.0/24", "192.0.2.2", "eth0", false))]);
        assert_eq!(rows(&mut kernel, 254)[0].protocol, 3);
    });
}

#[test]
fn deleting_an_ipv6_route_keeps_a_second_one_to_the_prefix() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let to = "fd00:10:244:2::/64";
        let ours = via(to, "fd00:10:244:2::", "flannel.1", true);
        let link = route(to, RoutePath::Link(name("eth0")));
        let refused = route(to, RoutePath::Unreachable);
        for (stays, goes) in
            [(&ours, &link), (&link, &ours), (&ours, &refused), (&refused, &ours), (&link, &refused)]
        {
            // The route with the gateway comes first: ip refuses it once another device leads to the gateway.
            let mut both = [stays, goes];
            both.sort();
            for row in both {
                let words = match row.path {
                    RoutePath::Via { .. } => format!("{to} via fd00:10:244:2:: dev flannel.1 onlink"),
                    RoutePath::Link(_) => format!("{to} dev eth0"),
                    _ => format!("unreachable {to}"),
                };
                sh(&format!("ip -6 route append {words} proto {PROTOCOL}"));
            }
            let both = rows(&mut kernel, 254);
            assert_eq!(both.len(), 2, "{both:?}");
            applies(&mut kernel, &[delete(goes.clone())]);
            assert_eq!(rows(&mut kernel, 254), std::slice::from_ref(stays));
            applies(&mut kernel, &[delete(stays.clone())]);
        }
    });
}

/// A blackhole route of the worst metric is chosen after every other route to its prefix, whatever their order.
#[test]
fn a_route_of_the_worst_metric_is_a_row_of_its_own() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let clean = sh("ip route; ip -6 route");
        let last = ["10.244.1.0/24", "fd00:10:244:1::/64"]
            .map(|subnet| Route { metric: u32::MAX, ..route(subnet, RoutePath::Blackhole) });
        applies(&mut kernel, &last.clone().map(add));
        assert_eq!(rows(&mut kernel, 254), last);
        let shown = sh("ip route show type blackhole; ip -6 route show type blackhole");
        assert_eq!(
            shown
                .lines()
                .map(|line| line.split_whitespace().take(6).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>(),
            [
                "blackhole 10.244.1.0/24 proto 84 metric 4294967295",
                "blackhole fd00:10:244:1::/64 dev lo proto 84"
            ]
        );
        assert_eq!(shown.matches("metric 4294967295").count(), 2, "{shown}");
        // A replacement adds no second route.
        applies(&mut kernel, &last.clone().map(replace));
        assert_eq!(rows(&mut kernel, 254), last);
        sh("ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.1.1/24 dev cni0
            ip addr add fd00:10:244:1::1/64 dev cni0 nodad");
        for address in ["10.244.1.7", "fd00:10:244:1::7"] {
            let way = sh(&format!("ip route get {address}"));
            assert!(way.contains("dev cni0"), "the bridge that came later goes before: {way}");
        }
        sh("ip link del cni0");
        // A route of the same prefix and the default metric is another row; deleting one leaves the other.
        sh("ip route add blackhole 10.244.1.0/24; ip -6 route add blackhole fd00:10:244:1::/64");
        let plain = rows(&mut kernel, 254).into_iter().filter(|row| row.metric == 0 && row.protocol == 3);
        let plain: Vec<Route> = plain.collect();
        assert_eq!(plain.len(), 2, "{plain:?}");
        applies(&mut kernel, &[delete(plain[0].clone()), delete(plain[1].clone())]);
        let left: Vec<Route> =
            rows(&mut kernel, 254).into_iter().filter(|row| row.path == RoutePath::Blackhole).collect();
        assert_eq!(left, last);
        applies(&mut kernel, &last.map(delete));
        assert_eq!(sh("ip route; ip -6 route"), clean);
    });
}
