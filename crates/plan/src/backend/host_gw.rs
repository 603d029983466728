//! Backend host-gw: one route per peer, straight to the peer's address on the shared layer-2 segment (flannel-compat
//! 6.2). Packets must never take the default route instead: a peer off the segment gets an `unreachable` route and a
//! warning.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::family::Family;
use crate::marks::PROTOCOL;
use crate::name::LinkName;
use crate::node::Uplink;
use crate::state::{Route, RoutePath};

/// Checks that the announced address is the uplink's own, since peers use it as next hop. The error names the flag to
/// change.
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

/// Returns the route to a peer on the uplink's segment, also for vxlan's `DirectRouting`.
pub fn direct(table: u32, destination: IpNet, next_hop: IpAddr, uplink: LinkName) -> Route {
    let path = RoutePath::Via { gateway: next_hop, link: uplink, onlink: false };
    Route { table, destination, path, protocol: PROTOCOL, metric: 0, unknown: None }
}

/// Returns the route to a peer off the segment, which gives the sender an error instead of silence.
pub fn unreachable(table: u32, destination: IpNet) -> Route {
    Route { table, destination, path: RoutePath::Unreachable, protocol: PROTOCOL, metric: 0, unknown: None }
}
