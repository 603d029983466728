//! Tests of reconcile passes: after any damage, the ops of one pass leave nothing to do.

use kernel::{Kernel, Outcome};
use lab::Timing::Free;
use plan::State;
use plan::owned::Owned;
use plan::state::{
    Address, FdbEntry, Link, LinkKind, Neighbour, Nexthop, Route, RoutePath, Rule, Sysctl, Vxlan,
};

use crate::scene::*;

const TABLE: u32 = 7777;

fn bounds() -> Owned {
    let sysctls = vec!["net/ipv6/conf/flannel.1/accept_ra".into()];
    Owned { table: TABLE, sysctls, ..owned() }
}

/// Returns two devices, a tunnelled and a direct peer, and at least one row of every other kind.
fn wanted() -> State {
    let (four, six) = (name("flannel.1"), name("flannel-v6.1"));
    let LinkKind::Vxlan(vxlan) = flannel().kind else { panic!("a vxlan") };
    let vxlan = Vxlan { local: "2001:db8::1".parse().unwrap(), ..vxlan };
    let second = Link { name: six, mtu: 1430, kind: LinkKind::Vxlan(vxlan), ..flannel() };
    let address = |link, text: &str| Address { link, address: text.parse().unwrap(), unknown: None };
    let mac = plan::Mac([2, 0, 0, 0, 0, 2]);
    let fdb = |link, remote: &str, port| {
        let remote = remote.parse().unwrap();
        FdbEntry { link, mac, remote, port, unknown: None }
    };
    let neighbour = |link, text: &str| Neighbour { link, address: text.parse().unwrap(), mac, unknown: None };
    let id = *plan::marks::NEXTHOPS.start();
    let nexthop = Nexthop {
        id,
        gateway: [10, 244, 4, 0].into(),
        link: four,
        onlink: true,
        protocol: 84,
        unknown: None,
    };
    let rule =
        |to: &str| Rule { priority: 500, to: to.parse().unwrap(), table: TABLE, protocol: 84, unknown: None };
    let routes = [
        via("10.244.2.0/24", "10.244.2.0", "flannel.1", true),
        via("10.244.3.0/24", "192.0.2.3", "eth0", false),
        route("10.244.4.0/24", RoutePath::Nexthop(id)),
        route("10.244.5.0/24", RoutePath::Unreachable),
        via("fd00:10:244:2::/64", "fd00:10:244:2::", "flannel-v6.1", true),
        via("fd00:10:244:3::/64", "2001:db8::3", "eth0", false),
        route("fd00:10:244:5::/64", RoutePath::Unreachable),
    ];
    State {
        sysctls: vec![Sysctl { path: bounds().sysctls[0].clone(), value: "0".into() }].into(),
        links: vec![flannel(), second].into(),
        addresses: vec![address(four, "10.244.1.0/32"), address(six, "fd00:10:244:1::/128")].into(),
        fdb: vec![fdb(four, "192.0.2.2", None), fdb(six, "2001:db8::2", Some(4789))].into(),
        neighbours: vec![neighbour(four, "10.244.2.0"), neighbour(six, "fd00:10:244:2::")].into(),
        nexthops: vec![nexthop].into(),
        routes: routes.map(|row| Route { table: TABLE, ..row }).into_iter().collect(),
        rules: vec![rule("10.244.0.0/16"), rule("fd00:10:244::/48")].into(),
        ..State::default()
    }
}

fn ask(kernel: &mut Kernel) -> Vec<plan::Op> {
    plan::diff(&wanted(), &kernel.dump(&bounds()).unwrap().state, &bounds())
}

/// Carries out one reconcile pass and returns its errors and the ops that are still to be done.
#[track_caller]
fn round(kernel: &mut Kernel, harm: &str) -> Vec<String> {
    let ops = ask(kernel);
    assert!(!ops.is_empty(), "nothing harmed: {harm}");
    let outcomes = kernel.apply(&ops);
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).map(complaint);
    failed.chain(ask(kernel).iter().map(ToString::to_string)).collect()
}

fn more(kernel: &mut Kernel) {
    for _ in 0..3 {
        let ops = ask(kernel);
        kernel.apply(&ops);
    }
}

#[test]
fn a_pass_on_an_empty_node_leaves_nothing_to_do() {
    lab::test(Free, || assert_eq!(round(&mut node(), "all"), Vec::<String>::new()));
}

#[test]
fn a_pass_after_any_damage_leaves_nothing_to_do() {
    lab::test(Free, || {
        let mut kernel = node();
        round(&mut kernel, "all");
        let mut left = Vec::new();
        for harm in HARMS.lines().map(str::trim).filter(|line| !line.is_empty()) {
            sh(harm);
            let rest = round(&mut kernel, harm);
            if !rest.is_empty() {
                left.push((harm, rest));
                more(&mut kernel);
                if !ask(&mut kernel).is_empty() {
                    println!(
                        "never healed: {harm}: {:?}",
                        ask(&mut kernel).iter().map(ToString::to_string).collect::<Vec<_>>()
                    );
                    sh(
                        "ip link del flannel.1; ip link del flannel-v6.1; ip nexthop flush; ip rule flush; ip -6 rule flush; ip rule add lookup main; ip -6 rule add lookup main",
                    );
                    more(&mut kernel);
                }
            }
        }
        assert_eq!(left, [], "not healed in one round");
    });
}

const HARMS: &str = "
    echo 2 > /proc/sys/net/ipv6/conf/flannel.1/accept_ra
    ip link del flannel.1
    ip link del flannel-v6.1
    ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning l2miss
    ip link del flannel.1; ip link add flannel.1 type vxlan id 9 dev eth0 local 192.0.2.1 dstport 8472 nolearning
    ip link set flannel.1 down
    ip link set flannel-v6.1 down
    ip link set flannel.1 address 02:00:00:00:00:99
    ip link set flannel-v6.1 address 02:00:00:00:00:99
    ip link set flannel.1 mtu 1300
    ip link set flannel-v6.1 mtu 1300
    ip link set flannel-v6.1 mtu 1279
    ip link set flannel.1 type vxlan learning
    ip link set flannel.1 type vxlan local 192.0.2.9
    ip link set eth0 down; ip link set eth0 up; ip -6 addr add 2001:db8::1/64 dev eth0
    ip addr flush dev flannel.1
    ip addr add 10.244.77.1/32 dev flannel.1
    ip addr del 10.244.1.0/32 dev flannel.1; ip addr add 10.244.1.0/32 dev flannel.1 scope link
    ip addr change 10.244.1.0/32 dev flannel.1 valid_lft 900 preferred_lft 900
    ip addr change fd00:10:244:1::/128 dev flannel-v6.1 valid_lft 900 preferred_lft 900
    ip addr change fd00:10:244:1::/128 dev flannel-v6.1 noprefixroute
    ip addr add fd00:10:244:7::/128 dev flannel-v6.1
    bridge fdb del 02:00:00:00:00:02 dev flannel.1
    bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.9
    bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 port 99
    bridge fdb replace 02:00:00:00:00:02 dev flannel-v6.1 dst 2001:db8::2
    bridge fdb replace 02:00:00:00:00:02 dev flannel-v6.1 dst 2001:db8::2 port 99
    bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.2; bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.2 port 99
    bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 dynamic
    bridge fdb add 02:00:00:00:00:77 dev flannel.1 dst 192.0.2.7
    ip neigh flush dev flannel.1 nud permanent
    ip neigh replace 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:09 nud permanent
    ip neigh replace 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 nud reachable
    ip neigh replace 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 nud permanent extern_learn
    ip neigh add 10.244.77.0 dev flannel.1 lladdr 02:00:00:00:00:09 nud permanent
    ip nexthop flush
    ip nexthop replace id 1953955840 via 192.0.2.9 dev eth0 proto 84
    ip nexthop add id 1953955841 via 192.0.2.9 dev eth0 proto 84
    ip nexthop replace id 1953955840 blackhole
    ip nexthop flush; ip route flush table 7777
    ip -6 route flush table 7777
    ip route del 10.244.2.0/24 table 7777
    ip route replace 10.244.2.0/24 via 192.0.2.9 table 7777
    ip route replace 10.244.2.0/24 via 192.0.2.9 table 7777 proto 84 mtu 1400
    ip route append 10.244.2.0/24 via 192.0.2.9 table 7777
    ip route append 10.244.2.0/24 via 192.0.2.9 table 7777 proto 84
    ip route prepend 10.244.2.0/24 via 192.0.2.9 table 7777
    ip route append unreachable 10.244.2.0/24 table 7777
    ip route replace unreachable 10.244.2.0/24 table 7777
    ip route replace 10.244.4.0/24 via 192.0.2.9 table 7777
    ip route replace 10.244.5.0/24 via 192.0.2.9 table 7777
    ip route add 10.244.9.0/24 via 192.0.2.9 proto 84 table 7777
    ip route replace 10.244.2.0/24 table 7777 nexthop via 192.0.2.8 nexthop via 192.0.2.9
    ip -6 route replace fd00:10:244:2::/64 via 2001:db8::9 table 7777
    ip -6 route replace fd00:10:244:2::/64 dev eth0 table 7777
    ip -6 route replace unreachable fd00:10:244:2::/64 table 7777
    ip -6 route append fd00:10:244:2::/64 via 2001:db8::9 table 7777
    ip -6 route append fd00:10:244:2::/64 dev eth0 table 7777
    ip -6 route append fd00:10:244:3::/64 dev eth0 table 7777
    ip -6 route replace fd00:10:244:3::/64 via 2001:db8::9 table 7777
    ip -6 route replace fd00:10:244:3::/64 table 7777 nexthop via 2001:db8::9 nexthop via 2001:db8::8
    ip -6 route replace fd00:10:244:5::/64 via 2001:db8::9 table 7777
    ip -6 route add fd00:10:244:9::/64 via 2001:db8::9 table 7777 proto 84
    ip rule del priority 500
    ip rule del priority 500; ip rule add to 10.244.0.0/16 lookup 42 priority 500 proto 84
    ip rule del priority 500; ip rule add to 10.244.0.0/16 lookup 7777 priority 500
    ip rule del priority 500; ip rule add to 10.244.0.0/16 fwmark 5 lookup 7777 priority 500 proto 84
    ip rule add to 10.244.0.0/16 lookup 42 priority 500 proto 84
    ip rule add to 10.244.0.0/16 lookup 7777 priority 900 proto 84
    ip -6 rule del priority 500
";
