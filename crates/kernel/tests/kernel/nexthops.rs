//! Tests of next hop objects and the routes through them.

use kernel::Outcome;
use lab::Timing::Free;
use plan::marks::{NEXTHOPS, PROTOCOL};
use plan::state::{Nexthop, RoutePath};

use crate::scene::*;

fn nexthop(number: u32, gateway: &str) -> Nexthop {
    Nexthop {
        id: NEXTHOPS.start() + number,
        gateway: gateway.parse().unwrap(),
        link: name("flannel.1"),
        onlink: true,
        protocol: PROTOCOL,
        unknown: None,
    }
}

#[test]
fn our_next_hops_equal_those_that_ip_adds() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let plain = Nexthop { link: name("eth0"), onlink: false, ..nexthop(3, "192.0.2.3") };
        let want = [nexthop(1, "10.244.2.0"), nexthop(2, "fd00:10:244:2::"), plain];
        applies(&mut kernel, &want.clone().map(add));
        assert_eq!(seen(&mut kernel).state.nexthops.to_vec(), want);
        let made = sh("ip nexthop");
        assert!(made.contains(&format!("id {} via 10.244.2.0 dev flannel.1", want[0].id)), "{made}");
        applies(&mut kernel, &want.clone().map(delete));
        assert_eq!(kernel.apply(&want.clone().map(delete)), vec![Outcome::Gone; 3]);
        for Nexthop { id, gateway, link, onlink, .. } in &want {
            let onlink = if *onlink { "onlink" } else { "" };
            sh(&format!("ip nexthop add id {id} via {gateway} dev {link} {onlink} proto {PROTOCOL}"));
        }
        sh("ip nexthop add id 5 via 192.0.2.5 dev eth0");
        assert_eq!(seen(&mut kernel).state.nexthops.to_vec(), want);
        sh("ip nexthop del id 5");
        assert_eq!(sh("ip nexthop"), made);
        let moved = nexthop(1, "10.244.7.0");
        applies(&mut kernel, &[replace(moved.clone())]);
        assert_eq!(seen(&mut kernel).state.nexthops[0], moved);
    });
}

#[test]
fn a_route_names_its_object_only() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let objects = [nexthop(1, "10.244.2.0"), nexthop(2, "fd00:10:244:2::")];
        let routes = [("10.244.2.0/24", 0), ("fd00:10:244:2::/64", 1)];
        let want =
            routes.map(|(to, object): (&str, usize)| route(to, RoutePath::Nexthop(objects[object].id)));
        applies(&mut kernel, &objects.clone().map(add));
        applies(&mut kernel, &want.clone().map(add));
        assert_eq!(seen(&mut kernel).state.routes.to_vec(), want);
        assert!(sh("ip route").contains(&format!("nhid {} via 10.244.2.0 dev flannel.1", objects[0].id)));
        sh("echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode");
        assert_eq!(seen(&mut kernel).state.routes.to_vec(), want);
        // Routes change to a plain gateway and back, in place.
        let plain = [
            via("10.244.2.0/24", "10.244.2.0", "flannel.1", true),
            via("fd00:10:244:2::/64", "fd00:10:244:2::", "flannel.1", true),
        ];
        applies(&mut kernel, &plain.clone().map(replace));
        assert_eq!(seen(&mut kernel).state.routes.to_vec(), plain);
        applies(&mut kernel, &want.clone().map(replace));
        assert_eq!(seen(&mut kernel).state.routes.to_vec(), want);
        assert_eq!(kernel.apply(&[delete(plain[0].clone())]), [Outcome::Gone], "that route is not there");
        applies(&mut kernel, &want.map(delete));
    });
}

#[test]
fn next_hop_groups_and_blackholes_are_unknown() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let first = NEXTHOPS.start();
        sh(&format!(
            "ip nexthop add id {first} via 10.244.2.0 dev flannel.1 onlink proto {PROTOCOL}
             ip nexthop add id $(({first} + 3)) dev eth0
             ip nexthop add id $(({first} + 2)) blackhole
             ip nexthop add id $(({first} + 1)) group {first}/$(({first} + 3))"
        ));
        let unknown: Vec<_> =
            seen(&mut kernel).state.nexthops.iter().map(|row| row.unknown.clone()).collect();
        let told =
            ["group, no gateway and device", "blackhole, no gateway and device", "no gateway and device"];
        let told = told.map(|text| Some(Box::from(text)));
        assert_eq!(unknown, [vec![None], told.to_vec()].concat());
        // The row of a route names the group, not its members.
        sh(&format!("ip route add 10.244.2.0/24 nhid $(({first} + 1)) proto {PROTOCOL}"));
        let want = route("10.244.2.0/24", RoutePath::Nexthop(first + 1));
        assert_eq!(seen(&mut kernel).state.routes.to_vec(), [want]);
    });
}
