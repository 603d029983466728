//! Left-over rows: ours by every sign, but no longer desired. They are of peers that left, of a former config, or of a crash.

use std::net::IpAddr;

use ipnet::IpNet;
use plan::state::{Address, FdbEntry, Neighbour, Nexthop, Route, RoutePath, Rule};
use plan::{LinkName, Mac};

use super::half::OTHER_PORT;
use super::scene::Scene;
use super::tape::Tape;
use super::world::{NEXTHOPS, PROTOCOL, World, name, net4, net6, pod6, subnet, v4};

/// Number of the first subnet that belongs to no peer.
pub(crate) const NOBODYS: u8 = 70;

/// Returns true for a device of IPv6.
pub(crate) fn is_v6(link: LinkName) -> bool {
    link.as_str().contains("v6")
}

/// Returns the unused subnet number `at` of IPv4 or IPv6.
pub(crate) fn nobodys(v6: bool, at: u8) -> IpNet {
    let (ipv4, ipv6) = subnet(NOBODYS + at);
    if v6 { ipv6.into() } else { ipv4.into() }
}

pub(crate) fn draw(scene: &mut Scene, tape: &mut Tape, world: &World) {
    for link in scene.our_devices() {
        on_device(scene, tape, world, link);
    }
    let families = [world.config.ipv4.map(|_| false), world.config.ipv6.map(|_| true)];
    for v6 in families.into_iter().flatten() {
        elsewhere(scene, tape, world, v6);
    }
}

fn on_device(scene: &mut Scene, tape: &mut Tape, world: &World, link: LinkName) {
    let v6 = is_v6(link);
    let rows = &mut scene.left_over;
    let former = nobodys(v6, 0);
    if tape.once_in(3) {
        let v4s: [IpNet; 3] = [
            net4([10, 244, 77, 0], 32).into(),
            net4([10, 244, 77, 9], 24).into(),
            net4([10, 244, 1, 0], 24).into(),
        ];
        let v6s: [IpNet; 3] = [
            net6(pod6(77, 0), 128).into(),
            net6("2001:db8:77::1".parse().unwrap(), 64).into(),
            net6(pod6(1, 0), 64).into(),
        ];
        let address = if v6 { tape.pick(&v6s) } else { tape.pick(&v4s) };
        rows.addresses.push(Address { link, address, unknown: None });
    }
    if tape.once_in(3) {
        let row =
            |mac, last, port| FdbEntry { link, mac, remote: v4([192, 0, 2, last]), port, unknown: None };
        rows.fdb.push(row(Mac([0x0e, 0, 0, 0, 0, 7]), 77, tape.pick(&[None, Some(OTHER_PORT)])));
        // The kernel keeps several remotes only for the all-zero MAC address.
        let others = [(78, None), (78, Some(OTHER_PORT)), (79, None)].into_iter().skip(tape.below(4));
        rows.fdb.extend(others.map(|(last, port)| row(Mac::default(), last, port)));
    }
    if tape.once_in(3) {
        let mac = Mac([0x0e, 0, 0, 0, 0, 7]);
        rows.neighbours.push(Neighbour { link, address: former.addr(), mac, unknown: None });
    }
    let table = world.config.table;
    let mut route = |destination, path| {
        rows.routes.push(Route { table, destination, path, protocol: PROTOCOL, metric: 0, unknown: None });
    };
    if tape.once_in(3) {
        route(former, RoutePath::Via { gateway: former.addr(), link, onlink: true });
    }
    if tape.once_in(3) {
        route(nobodys(v6, 1), RoutePath::Link(link));
    }
    let id = NEXTHOPS.start() + 0x1000 + u32::from(v6);
    // A kernel has each id only once, for any device.
    let is_free = rows.nexthops.iter().all(|row| row.id != id);
    if is_free && tape.once_in(3) {
        route(nobodys(v6, 2), RoutePath::Nexthop(id));
        // A route through a desired object, if there is one.
        route(nobodys(v6, 7), RoutePath::Nexthop(*NEXTHOPS.start()));
        let gateway = former.addr();
        rows.nexthops.push(Nexthop { id, gateway, link, onlink: true, protocol: PROTOCOL, unknown: None });
    }
}

fn elsewhere(scene: &mut Scene, tape: &mut Tape, world: &World, v6: bool) {
    let rows = &mut scene.left_over;
    let table = world.config.table;
    let mut route = |destination, path| {
        rows.routes.push(Route { table, destination, path, protocol: PROTOCOL, metric: 0, unknown: None });
    };
    let gateway: IpAddr = if v6 { "2001:db8::77".parse().unwrap() } else { v4([192, 0, 2, 77]) };
    let uplink = world.node.uplink.link;
    if tape.once_in(4) {
        route(nobodys(v6, 3), RoutePath::Via { gateway, link: uplink, onlink: false });
    }
    if tape.once_in(4) {
        route(nobodys(v6, 4), RoutePath::Link(uplink));
    }
    if tape.once_in(4) {
        route(nobodys(v6, 5), RoutePath::Unreachable);
    }
    if tape.once_in(4) {
        route(nobodys(v6, 6), RoutePath::Blackhole);
    }
    if tape.once_in(4) {
        // Half of a peer's subnet and the whole network are different keys.
        let half: [IpNet; 2] = if v6 {
            [net6(pod6(2, 0), 65).into(), net6(pod6(0, 0), 48).into()]
        } else {
            [net4([10, 244, 2, 0], 25).into(), net4([10, 244, 0, 0], 16).into()]
        };
        route(tape.pick(&half), RoutePath::Unreachable);
    }
    if tape.once_in(4) {
        let (destination, path, metric) = (nobodys(v6, 5), RoutePath::Blackhole, u32::MAX);
        rows.routes.push(Route { table, destination, path, protocol: PROTOCOL, metric, unknown: None });
    }
    if tape.once_in(4) {
        let (first, last) = (*NEXTHOPS.start() + 0x2000, *NEXTHOPS.end() - 1);
        let id = tape.pick(&[first, last]) + u32::from(v6);
        let link = tape.pick(&[uplink, name("eth1")]);
        rows.nexthops.push(Nexthop { id, gateway, link, onlink: false, protocol: PROTOCOL, unknown: None });
    }
    if tape.once_in(4) {
        let to = nobodys(v6, 0);
        rows.rules.push(Rule { priority: 5000, to, table: 100, protocol: PROTOCOL, unknown: None });
    }
}
