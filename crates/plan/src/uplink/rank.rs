//! Ranks the addresses of one interface. The node's own address is the one by which it was known before, if it is there.
//! A virtual address comes and goes, and is sometimes the first one.

use std::net::IpAddr;

use crate::family::Family;
use crate::ip_address::is_link_local;
use crate::lease::Lease;
use crate::subnet::Subnet;
use crate::underlay::{AddressFacts, Underlay};

/// Suitability of an address for a node, whatever its place in the list: the smaller, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    link_local: bool,
    deprecated: bool,
    /// True for an address without a network of its own, as virtual addresses mostly are.
    of_host_alone: bool,
    temporary: bool,
}

impl Class {
    pub(super) fn is_makeshift(self) -> bool {
        self.link_local || self.deprecated || self.of_host_alone
    }

    pub(crate) fn of(facts: &AddressFacts) -> Self {
        Self {
            link_local: is_link_local(facts.address.addr()),
            deprecated: facts.deprecated,
            of_host_alone: facts.is_of_host_alone(),
            temporary: facts.temporary,
        }
    }
}

/// Returns the rank of an address among those of one interface: the smallest is the best. `source` is the default route's
/// preferred source address.
pub(super) fn of(facts: &AddressFacts, remembered: &[IpAddr], source: Option<IpAddr>) -> impl Ord + use<> {
    let address = facts.address.addr();
    let Class { link_local, deprecated, of_host_alone, temporary } = Class::of(facts);
    let known = remembered.iter().position(|known| *known == address).unwrap_or(remembered.len());
    let is_source = source == Some(address);
    // In IPv4 a lifetime says nothing against an address: a DHCP client's has one, and virtual addresses have none.
    let expires = !facts.permanent && address.is_ipv6();
    ((link_local, deprecated, known, facts.tentative), (!is_source, of_host_alone, expires, temporary))
}

/// Returns the addresses of this node that leases announce, most likely its own first. The order is: address in the
/// lease of the previous subnet, address with a network, address in the oldest lease. Another node may have announced
/// a virtual address.
pub fn leased(leases: &[Lease], underlay: &Underlay, previous: Option<Subnet>) -> Vec<IpAddr> {
    let announced = leases.iter().flat_map(|lease| {
        Family::ALL.into_iter().filter_map(move |family| Some((lease, lease.public(family)?)))
    });
    let mut all: Vec<_> = announced
        .filter_map(|(lease, address)| {
            let facts = underlay.addresses.iter().find(|facts| facts.address.addr() == address)?;
            Some(((Some(lease.subnet) != previous, Class::of(facts), lease.born), address))
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, address)| address).collect()
}
