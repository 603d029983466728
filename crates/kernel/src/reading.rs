//! A reading of the kernel under way: what has been read so far, for the kinds that are read later.

use std::collections::BTreeMap;

use ipnet::IpNet;
use plan::state::Address;
use plan::underlay::{AddressFacts, NextHop, RouteFacts};

use crate::devices::Devices;
use crate::message::Odd;
use crate::socket::Netlink;

/// Socket of a reading, and facts about the underlay that came with the rows.
pub(crate) struct Reading<'a> {
    pub(crate) netlink: &'a mut Netlink,
    pub(crate) devices: Devices,
    /// Addresses of all devices, in the order of the devices.
    pub(crate) addresses: Vec<FoundAddress>,
    /// Next hop objects of others; empty before the kind is read.
    pub(crate) objects: Objects,
    /// Routes of the underlay; empty before the kind is read.
    pub(crate) routes: Vec<RouteFacts>,
}

/// An address as read: the index of its link, which orders the list, the facts, and its unexpected properties.
pub(crate) struct FoundAddress {
    pub(crate) index: u32,
    pub(crate) facts: AddressFacts,
    /// Address with the prefix length that it was added with. For an address with a peer, that is the peer's prefix
    /// length.
    pub(crate) address: IpNet,
    pub(crate) odd: Odd,
}

impl FoundAddress {
    pub(crate) fn row(&self) -> Address {
        Address { link: self.facts.link, address: self.address, unknown: self.odd.to_unknown() }
    }
}

/// Next hop objects of others, which routes of the underlay may use.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) single: BTreeMap<u32, NextHop>,
    pub(crate) groups: BTreeMap<u32, Vec<u32>>,
}

impl Objects {
    /// Returns the next hops of an object or of a group's members; empty for an unknown object.
    pub(crate) fn hops(&self, id: u32) -> Vec<NextHop> {
        let one = [id];
        let members = self.groups.get(&id).map_or(&one[..], |members| &members[..]);
        members.iter().filter_map(|member| self.single.get(member).copied()).collect()
    }
}

/// Appends `more`, and takes it over without copying if `all` is empty.
pub(crate) fn append<T>(all: &mut Vec<T>, mut more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.append(&mut more);
    }
}
