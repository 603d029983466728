//! host-gw: one route per peer, straight to the peer's address on the shared layer-2 segment (flannel-compat 6.2). It
//! must never fall through to the default route: a peer off the segment gets `unreachable`, and a note says so.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::LinkName;
use crate::input::{Family, Uplink};
use crate::lease::Announced;
use crate::owned::PROTOCOL;
use crate::state::{Route, RoutePath};

/// What a host-gw node writes into its lease.
pub fn announced() -> Announced {
    Announced::HostGw
}

/// Peers take the announced address for the next hop, so it must be the uplink's own.
pub fn check(uplink: &Uplink) -> Result<(), String> {
    for (family, flag) in [(Family::Ipv4, "--public-ip"), (Family::Ipv6, "--public-ipv6")] {
        if let Some((own, public)) = uplink.address(family).zip(uplink.public(family)).filter(|(a, b)| a != b)
        {
            let link = uplink.link;
            return Err(format!(
                "host-gw needs the uplink's own address as next hop, {own} of {link}, but {flag} is {public}: leave it out or use \
                 vxlan"
            ));
        }
    }
    Ok(())
}

/// The route to a peer that is on the uplink's segment; also vxlan's `DirectRouting`.
pub fn direct(table: u32, destination: IpNet, next_hop: IpAddr, uplink: LinkName) -> Route {
    let path = RoutePath::Via { gateway: next_hop, link: uplink, onlink: false };
    Route { table, destination, path, protocol: PROTOCOL, metric: 0, unknown: None }
}

/// The route to a peer that is not: an error to the sender instead of silence.
pub fn unreachable(table: u32, destination: IpNet) -> Route {
    Route { table, destination, path: RoutePath::Unreachable, protocol: PROTOCOL, metric: 0, unknown: None }
}
