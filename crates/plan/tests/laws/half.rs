//! Desired rows with one fault: the same key, but one wrong attribute.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use plan::state::{
    Address, FdbEntry, Link, LinkKind, Neighbour, Nexthop, Route, RoutePath, Rule, Unknown, Vxlan,
};
use plan::{LinkName, Mac};

use super::foreign::FOREIGN_NEXTHOP;
use super::scene::{Fate, other_kind};
use super::tape::Tape;
use super::world::{PROTOCOL, name, v4};

const OTHER_MAC: Mac = Mac([0x06, 0, 0, 0, 0, 0x66]);

/// UDP port of no device and no peer.
pub(crate) const OTHER_PORT: u16 = 7777;

/// Protocols of foreign routes: `boot`, which flannel and a plain `ip route` use, `static` and BGP.
const OTHER_PROTOCOLS: [u8; 3] = [3, 4, 186];

pub(crate) fn unknown(text: &str) -> Unknown {
    Some(text.into())
}

pub(crate) fn fate(tape: &mut Tape) -> Fate {
    match tape.below(12) {
        0..=3 => Fate::Kept,
        4 | 5 => Fate::New,
        6 => Fate::Changed { mac: false },
        7 | 8 => Fate::Changed { mac: true },
        9 | 10 => Fate::Remade,
        _ => Fate::Squatted,
    }
}

/// Returns the device as found in the kernel.
pub(crate) fn device(tape: &mut Tape, want: &Link, fate: Fate) -> Option<Link> {
    let LinkKind::Vxlan(kind) = &want.kind else { return None };
    let mut have = want.clone();
    match fate {
        Fate::New | Fate::Stale => return None,
        Fate::Squatted => return Some(other_kind(want.name)),
        Fate::Kept => {}
        Fate::Changed { mac } => {
            changed(tape, &mut have, kind);
            if mac {
                have.mac = OTHER_MAC;
            } else if have == *want {
                have.mtu = 1280;
            }
        }
        Fate::Remade => {
            if tape.once_in(2) {
                changed(tape, &mut have, kind);
            }
            remade(tape, &mut have, kind);
        }
    }
    Some(have)
}

/// Changes some attributes that can be changed in place. A device that shall be down stays down.
fn changed(tape: &mut Tape, have: &mut Link, kind: &Vxlan) {
    let mut kind = kind.clone();
    kind.learning ^= tape.once_in(3);
    if tape.once_in(3) {
        kind.local = match kind.local {
            IpAddr::V4(_) => v4([192, 0, 2, 99]),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99).into(),
        };
    }
    have.kind = LinkKind::Vxlan(kind);
    have.mtu = tape.pick(&[have.mtu, have.mtu, 1280]);
    have.up &= !tape.once_in(2);
}

/// Changes one attribute that cannot be changed in place.
fn remade(tape: &mut Tape, have: &mut Link, kind: &Vxlan) {
    let mut kind = if let LinkKind::Vxlan(kind) = &have.kind { kind.clone() } else { kind.clone() };
    match tape.below(7) {
        0 => kind.vni += 1,
        1 => kind.port = 14789,
        2 => kind.gbp = !kind.gbp,
        3 => kind.uplink = None,
        4 => kind.uplink = Some(name("eth1")),
        5 => {
            kind.local = match kind.local {
                IpAddr::V4(_) => Ipv6Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
            };
        }
        _ => have.unknown = unknown("ttl 7"),
    }
    have.kind = LinkKind::Vxlan(kind);
}

pub(crate) fn address(tape: &mut Tape, row: &Address) -> Address {
    let text = tape.pick(&["peer 10.9.9.9", "peer 10.0.0.1", "noprefixroute"]);
    Address { unknown: unknown(text), ..row.clone() }
}

pub(crate) fn fdb(tape: &mut Tape, row: &FdbEntry) -> FdbEntry {
    match tape.below(5) {
        0 => FdbEntry { remote: v4([203, 0, 113, 1]), ..row.clone() },
        1 => FdbEntry { unknown: unknown("vni 7"), ..row.clone() },
        2 => FdbEntry { port: Some(OTHER_PORT), ..row.clone() },
        3 if row.port.is_some() => FdbEntry { port: None, ..row.clone() },
        _ => FdbEntry { unknown: unknown("not permanent"), ..row.clone() },
    }
}

pub(crate) fn neighbour(tape: &mut Tape, row: &Neighbour) -> Neighbour {
    match tape.below(2) {
        0 => Neighbour { mac: OTHER_MAC, ..row.clone() },
        _ => Neighbour { unknown: unknown("stale"), ..row.clone() },
    }
}

/// Returns an address of the same family that is no peer's.
fn other_address(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => v4([192, 0, 2, 250]),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x250).into(),
    }
}

fn other_device(tape: &mut Tape) -> LinkName {
    name(tape.pick(&["eth1", "eth0", "flannel.1", "flannel-v6.1"]))
}

pub(crate) fn nexthop(tape: &mut Tape, row: &Nexthop) -> Nexthop {
    match tape.below(5) {
        0 => Nexthop { gateway: other_address(row.gateway), ..row.clone() },
        1 => Nexthop { link: other_device(tape), ..row.clone() },
        2 => Nexthop { onlink: !row.onlink, ..row.clone() },
        3 => Nexthop { protocol: tape.pick(&OTHER_PROTOCOLS), ..row.clone() },
        _ => Nexthop { unknown: unknown("encap mpls"), ..row.clone() },
    }
}

pub(crate) fn route(tape: &mut Tape, row: &Route) -> Route {
    let mut route = row.clone();
    let family = other_address(row.destination.addr());
    let (gateway, link, onlink) = match row.path {
        RoutePath::Via { gateway, link, onlink } => (gateway, link, onlink),
        _ => (family, name("eth0"), false),
    };
    match tape.below(10) {
        0 => route.protocol = tape.pick(&OTHER_PROTOCOLS),
        1 => route.path = RoutePath::Via { gateway: family, link, onlink },
        2 => route.path = RoutePath::Via { gateway, link: other_device(tape), onlink },
        3 => route.path = RoutePath::Via { gateway, link, onlink: !onlink },
        4 => route.path = RoutePath::Link(other_device(tape)),
        5 => route.path = RoutePath::Nexthop(FOREIGN_NEXTHOP + tape.below(3) as u32),
        6 if row.path != RoutePath::Unreachable => route.path = RoutePath::Unreachable,
        6 | 7 => route.path = RoutePath::Blackhole,
        8 => (route.path, route.unknown) = (RoutePath::Other, unknown("nexthops 2")),
        _ => route.unknown = unknown("src 192.0.2.1"),
    }
    if route.protocol == PROTOCOL {
        route.protocol = tape.pick(&[PROTOCOL, 3]);
    }
    if route == *row {
        route.unknown = unknown("mtu 1300");
    }
    route
}

pub(crate) fn rule(tape: &mut Tape, row: &Rule) -> Rule {
    match tape.below(3) {
        0 => Rule { table: 253, ..row.clone() },
        1 => Rule { protocol: tape.pick(&OTHER_PROTOCOLS), ..row.clone() },
        _ => Rule { unknown: unknown("fwmark 0x1"), ..row.clone() },
    }
}
