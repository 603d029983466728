//! Rows left by flannel or by an earlier config: ours during a take-over, foreign otherwise.

use std::net::IpAddr;

use ipnet::IpNet;
use plan::owned::Writer;
use plan::state::{Address, Route, RoutePath};

use super::left_over::{is_v6, nobodys};
use super::scene::Scene;
use super::tape::Tape;
use super::world::{FORMER_NETWORKS, PROTOCOL, World, name, v4};

/// Protocol `boot`, which flannel's routes have.
const BOOT: u8 = 3;

pub(crate) fn draw(scene: &mut Scene, tape: &mut Tape, world: &World) {
    let families = [world.config.ipv4.map(|_| false), world.config.ipv6.map(|_| true)];
    for v6 in families.into_iter().flatten() {
        of_former_networks(scene, tape, world, v6);
        for at in 1..=7 {
            if tape.once_in(4) {
                by_flannel(scene, tape, world, (v6, at));
            }
        }
    }
}

fn of_former_networks(scene: &mut Scene, tape: &mut Tape, world: &World, v6: bool) {
    let there: IpNet = FORMER_NETWORKS[usize::from(v6)].parse().unwrap();
    let subnet = there.subnets(if v6 { 64 } else { 24 }).unwrap().nth(7).unwrap();
    let is_former = world.memory.former.networks.contains(&there);
    let links = scene.our_devices();
    let rows = if is_former { &mut scene.left_over } else { &mut scene.foreign };
    let path = RoutePath::Unreachable;
    if tape.once_in(3) {
        let table = world.config.table;
        rows.routes.push(Route {
            table,
            destination: subnet,
            path,
            protocol: PROTOCOL,
            metric: 0,
            unknown: None,
        });
    }
    if tape.once_in(3)
        && !v6
        && let Some(&link) = links.iter().find(|link| !is_v6(**link))
    {
        let address = IpNet::new(subnet.addr(), 32).unwrap();
        rows.addresses.push(Address { link, address, unknown: None });
    }
}

/// Adds routes in flannel's shapes, and routes that differ from them in one respect.
fn by_flannel(scene: &mut Scene, tape: &mut Tape, world: &World, (v6, at): (bool, u8)) {
    let uplink = world.node.uplink.link;
    let link = scene.our_devices().into_iter().find(|link| is_v6(*link) == v6);
    let destination = nobodys(v6, 30 + at);
    let stranger: IpAddr = if v6 { "2001:db8::201".parse().unwrap() } else { v4([192, 0, 2, 201]) };
    let (path, flannels) = match (at, link) {
        (1, Some(link)) => (RoutePath::Via { gateway: destination.addr(), link, onlink: true }, true),
        (2, Some(link)) => (RoutePath::Via { gateway: stranger, link, onlink: true }, false),
        (3, _) => (RoutePath::Via { gateway: stranger, link: uplink, onlink: false }, false),
        (5, _) => (RoutePath::Blackhole, world.memory.former.subnets.contains(&destination)),
        (6, _) => (RoutePath::Blackhole, false),
        (4, Some(link)) => (RoutePath::Via { gateway: destination.addr(), link, onlink: false }, false),
        (7, _) => (RoutePath::Via { gateway: destination.addr(), link: name("eth1"), onlink: true }, false),
        _ => return,
    };
    let ours = flannels && world.memory.former.writer == Writer::Flannel;
    let rows = if ours { &mut scene.left_over } else { &mut scene.foreign };
    let table = world.config.table;
    rows.routes.push(Route { table, destination, path, protocol: BOOT, metric: 0, unknown: None });
    if tape.once_in(8) {
        // The next hop is the address of a peer with another subnet.
        let table = world.config.table;
        let path = RoutePath::Via { gateway: v4([192, 0, 2, 2]), link: uplink, onlink: false };
        if !v6 {
            let destination = nobodys(v6, 40 + at);
            scene.foreign.routes.push(Route {
                table,
                destination,
                path,
                protocol: BOOT,
                metric: 0,
                unknown: None,
            });
        }
    }
}
