//! Foreign rows, which every plan must leave alone.

use std::net::IpAddr;

use ipnet::IpNet;
use plan::state::{
    Address, FdbEntry, Link, LinkKind, Neighbour, Nexthop, Route, RoutePath, Rule, Sysctl, Vxlan,
};
use plan::{LinkName, Mac};

use super::half::unknown;
use super::left_over::{is_v6, nobodys};
use super::scene::{Scene, other_kind};
use super::tape::Tape;
use super::world::{NEXTHOPS, PROTOCOL, World, name, net4, net6, pod6, subnet, v4};

/// Id of a next hop object outside our range.
pub(crate) const FOREIGN_NEXTHOP: u32 = 7;

const MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 0xf0]);
const BIRD: u8 = 12;

pub(crate) fn draw(scene: &mut Scene, tape: &mut Tape, world: &World) {
    links(scene, tape, world);
    for link in scene.our_devices() {
        on_our_device(scene, tape, link);
    }
    on_other_devices(scene, tape);
    for &link in &world.foreign_devices {
        under_our_name(scene, tape, world, link);
    }
    for v6 in [false, true] {
        let configured = if v6 { world.config.ipv6.is_some() } else { world.config.ipv4.is_some() };
        routes(scene, tape, world, v6);
        if !configured {
            without_the_family(scene, tape, world, v6);
        }
        nexthops_and_rules(scene, tape, v6);
    }
}

fn links(scene: &mut Scene, tape: &mut Tape, world: &World) {
    let rows = &mut scene.foreign;
    let vxlan = |name: LinkName| {
        let kind = LinkKind::Vxlan(Vxlan {
            vni: 1,
            local: v4([192, 0, 2, 1]),
            uplink: Some(world.node.uplink.link),
            port: 8472,
            learning: false,
            gbp: false,
        });
        Link { name, kind, mac: MAC, mtu: 1450, up: true, unknown: None }
    };
    rows.links.push(vxlan(name("vxlan.calico")));
    if tape.once_in(2) {
        rows.links.push(vxlan(name("flannel.99")));
        let path = "net/ipv6/conf/flannel.99/accept_ra";
        rows.sysctls.push(Sysctl { path: path.into(), value: "1".into() });
    }
    if tape.once_in(3) {
        rows.links.push(other_kind(name("docker0")));
    }
    if tape.once_in(3) {
        rows.sysctls.push(Sysctl { path: "net/ipv4/ip_forward".into(), value: "1".into() });
    }
}

fn address(link: LinkName, address: impl Into<IpNet>) -> Address {
    Address { link, address: address.into(), unknown: None }
}

/// Adds rows that an administrator or the kernel itself may put on our devices.
fn on_our_device(scene: &mut Scene, tape: &mut Tape, link: LinkName) {
    let rows = &mut scene.foreign;
    let v6 = is_v6(link);
    if tape.once_in(2) {
        rows.addresses.push(address(link, net6("fe80::1".parse().unwrap(), 64)));
    }
    if !v6 && tape.once_in(3) {
        let outside =
            tape.pick(&[net4([192, 168, 7, 7], 24), net4([10, 245, 0, 0], 32), net4([10, 243, 0, 1], 8)]);
        rows.addresses.push(address(link, outside));
    }
    if !v6 && tape.once_in(3) {
        rows.addresses.push(address(link, net6("2001:db8:77::1".parse().unwrap(), 64)));
    }
    if tape.once_in(3) {
        let text = unknown("not permanent");
        rows.fdb.push(FdbEntry { link, mac: MAC, remote: v4([192, 0, 2, 200]), port: None, unknown: text });
    }
    if tape.once_in(3) {
        let text = unknown("reachable");
        rows.neighbours.push(Neighbour { link, address: nobodys(v6, 9).addr(), mac: MAC, unknown: text });
    }
    let (gateway, id) = (nobodys(v6, 9).addr(), FOREIGN_NEXTHOP + 1 + u32::from(v6));
    // A kernel has each id only once, for any device.
    if rows.nexthops.iter().all(|row| row.id != id) && tape.once_in(3) {
        rows.nexthops.push(Nexthop { id, gateway, link, onlink: true, protocol: BIRD, unknown: None });
        rows.routes.push(route(nobodys(v6, 20), RoutePath::Nexthop(id), BIRD));
    }
    if tape.once_in(3) {
        rows.routes.push(route(nobodys(v6, 21), RoutePath::Link(link), BIRD));
    }
}

fn on_other_devices(scene: &mut Scene, tape: &mut Tape) {
    let rows = &mut scene.foreign;
    let calico = name("vxlan.calico");
    if tape.once_in(2) {
        let link = tape.pick(&[name("cni0"), name("eth0"), calico]);
        rows.addresses.push(address(link, net4([10, 244, 1, 1], 24)));
        rows.addresses.push(address(link, net6(pod6(1, 1), 64)));
    }
    if tape.once_in(3) {
        rows.fdb.push(FdbEntry {
            link: calico,
            mac: MAC,
            remote: v4([192, 0, 2, 2]),
            port: None,
            unknown: None,
        });
    }
    if tape.once_in(3) {
        let link = tape.pick(&[name("eth0"), calico]);
        rows.neighbours.push(Neighbour { link, address: v4([10, 244, 2, 0]), mac: MAC, unknown: None });
    }
}

/// Adds rows on a device of another kind under our name, which is foreign with all its rows.
fn under_our_name(scene: &mut Scene, tape: &mut Tape, world: &World, link: LinkName) {
    let rows = &mut scene.foreign;
    let v6 = is_v6(link);
    let there = nobodys(v6, 10);
    if tape.once_in(2) {
        rows.addresses.push(address(link, there));
    }
    if tape.once_in(2) {
        rows.neighbours.push(Neighbour { link, address: there.addr(), mac: MAC, unknown: None });
    }
    if tape.once_in(2) {
        rows.fdb.push(FdbEntry { link, mac: MAC, remote: v4([192, 0, 2, 2]), port: None, unknown: None });
    }
    if tape.once_in(2) {
        let path = RoutePath::Link(link);
        rows.routes.push(Route { table: world.config.table, ..route(there, path, PROTOCOL) });
    }
}

fn route(destination: IpNet, path: RoutePath, protocol: u8) -> Route {
    Route { table: 254, destination, path, protocol, metric: 0, unknown: None }
}

fn routes(scene: &mut Scene, tape: &mut Tape, world: &World, v6: bool) {
    let rows = &mut scene.foreign.routes;
    let table = world.config.table;
    let gateway: IpAddr = if v6 { "2001:db8::200".parse().unwrap() } else { v4([192, 0, 2, 200]) };
    let via = |link: &str| RoutePath::Via { gateway, link: name(link), onlink: false };
    if tape.once_in(3) {
        // Of all routes with the worst metric, only a blackhole is ours.
        let worst = Route { metric: u32::MAX, ..route(nobodys(v6, 16), RoutePath::Unreachable, PROTOCOL) };
        rows.push(Route { table, ..worst });
    }
    if tape.once_in(3) {
        // The kernel's own route to our pods has the default metric, unlike our blackhole.
        let (ipv4, ipv6) = subnet(1);
        let ours = if v6 { ipv6.into() } else { ipv4.into() };
        rows.push(Route { table, ..route(ours, RoutePath::Link(name("cni0")), 2) });
    }
    let mut push =
        |destination, path, protocol| rows.push(Route { table, ..route(destination, path, protocol) });
    if tape.once_in(3) {
        // The route may share its key with a left-over of ours.
        push(nobodys(v6, tape.below(4) as u8), via("eth0"), tape.pick(&[3, 4, BIRD, PROTOCOL + 1]));
    }
    if tape.once_in(3) {
        push(
            outside(tape, v6),
            tape.pick(&[via("eth0"), RoutePath::Unreachable, RoutePath::Blackhole]),
            PROTOCOL,
        );
    }
    if tape.once_in(3) {
        push(nobodys(v6, 11), via("eth1"), PROTOCOL);
    }
    if tape.once_in(3) {
        push(nobodys(v6, 12), RoutePath::Link(name("cni0")), PROTOCOL);
        push(nobodys(v6, 12), RoutePath::Blackhole, BIRD);
    }
    if tape.once_in(3) {
        push(nobodys(v6, 13), RoutePath::Other, PROTOCOL);
    }
    if tape.once_in(3) {
        push(nobodys(v6, 14), RoutePath::Nexthop(FOREIGN_NEXTHOP), PROTOCOL);
    }
    if tape.once_in(3) {
        let other = if table == 254 { 100 } else { 254 };
        let peers = nobodys(v6, tape.below(6) as u8);
        let configured = if v6 { world.config.ipv6.is_some() } else { world.config.ipv4.is_some() };
        let is_former = configured
            && (world.memory.former.tables.contains(&other) || other == 254 && world.config.blackhole);
        let rows = if is_former { &mut scene.left_over.routes } else { &mut scene.foreign.routes };
        rows.push(Route { table: other, ..route(peers, RoutePath::Unreachable, PROTOCOL) });
    }
}

/// Returns a network outside the pod network, next to it, or around it.
fn outside(tape: &mut Tape, v6: bool) -> IpNet {
    let v4s = [
        net4([10, 99, 0, 0], 24),
        net4([10, 245, 0, 0], 24),
        net4([10, 244, 0, 0], 15),
        net4([0, 0, 0, 0], 0),
        net4([10, 243, 255, 255], 32),
    ];
    let v6s = [
        net6("fd00:245::".parse().unwrap(), 48),
        net6("fd00:244::".parse().unwrap(), 47),
        net6("::".parse().unwrap(), 0),
    ];
    if v6 { tape.pick(&v6s).into() } else { tape.pick(&v4s).into() }
}

/// Adds rows that would be ours if the family were configured.
fn without_the_family(scene: &mut Scene, tape: &mut Tape, world: &World, v6: bool) {
    if tape.once_in(3) {
        let path = RoutePath::Unreachable;
        let row = Route { table: world.config.table, ..route(nobodys(v6, 15), path, PROTOCOL) };
        scene.foreign.routes.push(row);
    }
    if tape.once_in(3) {
        let to = nobodys(v6, 15);
        scene.foreign.rules.push(Rule { priority: 5000, to, table: 100, protocol: PROTOCOL, unknown: None });
    }
}

fn nexthops_and_rules(scene: &mut Scene, tape: &mut Tape, v6: bool) {
    let rows = &mut scene.foreign;
    let gateway: IpAddr = if v6 { "2001:db8::200".parse().unwrap() } else { v4([192, 0, 2, 200]) };
    let mut nexthop = |id, protocol| {
        let link = name("eth1");
        rows.nexthops.push(Nexthop { id, gateway, link, onlink: false, protocol, unknown: None });
    };
    if v6 {
        nexthop(FOREIGN_NEXTHOP, PROTOCOL);
    } else if tape.once_in(2) {
        nexthop(NEXTHOPS.start() - 1, PROTOCOL);
        nexthop(NEXTHOPS.end() + 1, PROTOCOL);
        nexthop(NEXTHOPS.start() + 0x3000, BIRD);
    }
    let mut rule = |to, protocol| {
        rows.rules.push(Rule { priority: 5000, to, table: 100, protocol, unknown: None });
    };
    if tape.once_in(3) {
        // The rule may share its key with a left-over of ours.
        rule(nobodys(v6, 0), tape.pick(&[0, 3, BIRD]));
    }
    if tape.once_in(3) {
        rule(outside(tape, v6), PROTOCOL);
    }
    if tape.once_in(3) {
        // The destination is a peer's; only the priority tells this rule from ours.
        let (ipv4, ipv6) = subnet(2 + tape.below(5) as u8);
        let (to, protocol) = (if v6 { ipv6.into() } else { ipv4.into() }, tape.pick(&[0, 3, BIRD]));
        rows.rules.push(Rule { priority: 100, to, table: 100, protocol, unknown: None });
    }
}
