//! Asks the kernel for the table with the uplink's segment, where the main table has no route to it. The
//! uplink may be in a VRF, and a policy rule may lead to the table of a network manager.

use std::net::IpAddr;

use ipnet::IpNet;
use libc::{RTA_DST, RTA_OIF, RTA_TABLE};
use plan::LinkName;
use plan::owned::Owned;
use plan::state::MAIN_TABLE;
use plan::underlay::{AddressFacts, RouteFacts};

use crate::error::{Cause, Error};
use crate::message::{Attribute, Message, family_of};
use crate::reading::Reading;
use crate::route;
use crate::socket::Netlink;

const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
/// Table of the node's own addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;

/// Returns the other tables in which the kernel finds segments of the uplink, and their routes through the uplink. The
/// main table must have been read.
pub(crate) fn beside(reading: &mut Reading<'_>, owned: &Owned) -> Result<(Vec<u32>, Vec<RouteFacts>), Error> {
    let uplink = owned.uplink;
    let Some(index) = reading.devices.index(uplink) else { return Ok(Default::default()) };
    let (mut tables, mut found) = (Vec::new(), Vec::new());
    for neighbour in unrouted(reading, uplink) {
        let table = match table_of(reading.netlink, neighbour, index) {
            Ok(Some(table)) if ![0, MAIN_TABLE, LOCAL_TABLE].contains(&table) => table,
            Ok(_) => continue,
            Err(cause) => return Err(Error::new(format!("look up the route to {neighbour}"), cause)),
        };
        let place = (family_of(neighbour), table);
        if !tables.contains(&place) {
            tables.push(place);
            found.extend(route::through(reading, place, uplink, &owned.pods)?);
        }
    }
    Ok((tables.into_iter().map(|(_, table)| table).collect(), found))
}

/// Returns one address of each segment of the uplink to which the main table has no route through it.
fn unrouted(reading: &Reading<'_>, uplink: LinkName) -> Vec<IpAddr> {
    let is_routed = |address: &IpNet| {
        let covers = |route: &RouteFacts| {
            route.destination.contains(&address.addr())
                && route.hops().any(|hop| hop.link == Some(uplink) && hop.gateway.is_none())
        };
        reading.routes.iter().any(covers)
    };
    let of_uplink = |facts: &&AddressFacts| facts.link == uplink && !facts.is_of_host_alone();
    let addresses = reading.addresses.iter().map(|found| &found.facts).filter(of_uplink);
    let unrouted = addresses.map(|facts| facts.address).filter(|address| !is_routed(address));
    unrouted.filter_map(neighbour).collect()
}

/// Returns an address that another machine of the segment may have.
fn neighbour(own: IpNet) -> Option<IpAddr> {
    let beside = |by: u8| -> IpAddr {
        match own.addr() {
            IpAddr::V4(ip) => (u32::from(ip) ^ u32::from(by)).to_be_bytes().into(),
            IpAddr::V6(ip) => (u128::from(ip) ^ u128::from(by)).to_be_bytes().into(),
        }
    };
    let is_pair = own.max_prefix_len() - own.prefix_len() == 1;
    let is_host =
        |ip: &IpAddr| own.contains(ip) && (is_pair || (*ip != own.network() && *ip != own.broadcast()));
    (1..4).map(beside).find(is_host)
}

/// Returns the table that holds the kernel's route to that address out of that device, or `None`.
fn table_of(netlink: &mut Netlink, to: IpAddr, device: u32) -> Result<Option<u32>, Cause> {
    let (bits, flags) = if to.is_ipv4() { (32, RTM_F_LOOKUP_TABLE) } else { (128, 0) };
    let header = [family_of(to), bits, 0, 0, 0, 0, 0, 0];
    let mut request = Message::new(libc::RTM_GETROUTE, 0, &[&header, &flags.to_ne_bytes()]);
    request.ip(RTA_DST, to).u32(RTA_OIF, device);
    let mut table = None;
    let asked = netlink.ask(&mut request, |part| {
        let find = |kind| part.body.attributes(12).find(|attribute| attribute.kind == kind);
        let is_on_link = find(libc::RTA_GATEWAY).is_none();
        table = is_on_link.then(|| find(RTA_TABLE).map_or(u32::from(part.body.u8(4)), Attribute::u32));
    });
    match asked {
        Ok(_) => Ok(table),
        Err(Cause::Refused { .. }) => Ok(None),
        Err(cause) => Err(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_another_host_of_the_segment() {
        for (own, expected) in [
            ("192.0.2.1/24", Some("192.0.2.3")),
            ("192.0.2.11/24", Some("192.0.2.10")),
            ("192.0.2.254/24", Some("192.0.2.252")),
            ("192.0.2.1/31", Some("192.0.2.0")),
            ("192.0.2.1/30", Some("192.0.2.2")),
            ("192.0.2.1/32", None),
            ("2001:db8::b/64", Some("2001:db8::a")),
        ] {
            assert_eq!(neighbour(own.parse().unwrap()), expected.map(|ip| ip.parse().unwrap()), "{own}");
        }
    }
}
