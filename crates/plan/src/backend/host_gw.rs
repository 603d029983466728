//! host-gw: one route per peer, straight to the peer's address on the shared layer-2 segment (flannel-compat 6.2). It
//! must never fall through to the default route: a peer off the segment gets `unreachable`, and a note says so.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::LinkName;
use crate::lease::Announced;
use crate::owned::PROTOCOL;
use crate::state::{Route, RoutePath};

/// What a host-gw node writes into its lease.
pub fn announced() -> Announced {
    Announced::HostGw
}

/// The route to a peer that is on the uplink's segment; also vxlan's `DirectRouting`.
pub fn direct(table: u32, destination: IpNet, next_hop: IpAddr, uplink: LinkName) -> Route {
    let path = RoutePath::Via { gateway: next_hop, link: uplink, onlink: false };
    Route { table, destination, path, protocol: PROTOCOL, unknown: None }
}

/// The route to a peer that is not: an error to the sender instead of silence.
pub fn unreachable(table: u32, destination: IpNet) -> Route {
    Route { table, destination, path: RoutePath::Unreachable, protocol: PROTOCOL, unknown: None }
}
