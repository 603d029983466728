//! Addresses: all of them as facts, the ones of our links as rows. Also the messages that add and delete ours.

use std::net::IpAddr;

use ipnet::IpNet;
use libc::{IFA_ADDRESS, IFA_LOCAL};
use plan::owned::Owned;
use plan::state::Address;
use plan::underlay::AddressFacts;
use plan::{Kind, LinkName, Verb};

use crate::devices::Devices;
use crate::error::{Cause, Error};
use crate::filter::{Notifications, OwnWrites, by_index};
use crate::kind::{NetlinkKind, Prepared, Writable};
use crate::message::{Message, Odd, Part, family_of};
use crate::reading::{FoundAddress, Reading};
use crate::socket::Netlink;

const IFA_RT_PRIORITY: u16 = 9;

/// Flags that an administrator sets, with their names. Flags that report a state, such as `tentative`, are not listed.
const ODD_FLAGS: [(u32, &str); 6] = [
    (libc::IFA_F_SECONDARY, "secondary"),
    (libc::IFA_F_NODAD, "nodad"),
    (libc::IFA_F_HOMEADDRESS, "home"),
    (libc::IFA_F_DEPRECATED, "deprecated"),
    (libc::IFA_F_MANAGETEMPADDR, "mngtmpaddr"),
    (libc::IFA_F_NOPREFIXROUTE, "noprefixroute"),
];

impl NetlinkKind for Address {
    const NOTIFICATIONS: Option<Notifications> = Some(Notifications {
        name: Self::NAME,
        groups: &[libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR],
        types: [libc::RTM_NEWADDR, libc::RTM_DELADDR],
        own_writes: OwnWrites::Reported,
        selection: Some(|interest| by_index(interest.devices())),
    });

    /// Picks the addresses of our links, which were read before.
    fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<Vec<Self>, Error> {
        let ours = reading.addresses.iter().filter(|found| owned.links.contains(&found.facts.link));
        Ok(ours.map(FoundAddress::row).collect())
    }
}

impl Writable for Address {
    fn stands_alone(&self, verb: Verb) -> bool {
        verb == Verb::Replace
    }

    fn prepare<'a>(&'a self, verb: Verb, devices: &'a Devices) -> Result<Prepared<'a>, LinkName> {
        let index = devices.need(self.link)?;
        Ok(match verb {
            Verb::Add => Prepared::Send(add(self, index)),
            Verb::Replace => Prepared::alone(move |netlink| replace(netlink, self, index, devices)),
            Verb::Recreate | Verb::Delete => Prepared::Send(delete(self, index)),
        })
    }

    fn advice(&self, _: Verb, errno: i32, _: &Devices) -> Option<String> {
        let link = self.link;
        let refused = self.address.addr().is_ipv6() && [libc::EACCES, libc::EINVAL].contains(&errno);
        refused.then(|| {
            format!(
                "; IPv6 is off on {link}, or its MTU is below 1280: check sysctl net.ipv6.conf.{link}.disable_ipv6 and \
                 ip link show {link}"
            )
        })
    }
}

/// Replaces an address. In place, the kernel changes lifetimes and little else. A device's routes go with its last
/// address. So the address is deleted only if it still differs from the desired one.
fn replace(netlink: &mut Netlink, row: &Address, index: u32, devices: &Devices) -> Result<(), Cause> {
    netlink.ask_each([add(row, index)])?;
    let now = read(netlink, devices).map_err(|error| error.cause)?;
    if now.iter().any(|found| found.row() == *row) {
        return Ok(());
    }
    netlink.ask_each([delete(row, index), add(row, index)])
}

/// Reads all addresses, in the order of their devices. Fails if the dump fails or changes during each reading.
pub(crate) fn read(netlink: &mut Netlink, devices: &Devices) -> Result<Vec<FoundAddress>, Error> {
    let mut all = netlink.rows("read the addresses", dump_request(), |part| decode(part, devices))?;
    all.sort_by_key(|found| found.index);
    Ok(all)
}

pub(crate) fn dump_request() -> Message {
    Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[&[0; 8]])
}

/// Decodes an address. Returns `None` if its device appeared after the devices were read.
pub(crate) fn decode(part: Part<'_>, devices: &Devices) -> Option<FoundAddress> {
    let (prefix, scope, index) = (part.body.u8(1), part.body.u8(3), part.body.u32(4));
    let (mut local, mut peer, mut flags) = (None, None, u32::from(part.body.u8(2)));
    let mut odd = Odd::default();
    let link = devices.name(index)?;
    for attribute in part.body.attributes(8) {
        match attribute.kind {
            IFA_LOCAL => local = attribute.ip(),
            IFA_ADDRESS => peer = attribute.ip(),
            libc::IFA_FLAGS => flags = attribute.u32(),
            libc::IFA_LABEL if attribute.text() != link.as_str() => odd.note("label"),
            libc::IFA_BROADCAST => odd.note("broadcast"),
            IFA_RT_PRIORITY if attribute.u32() != 0 => odd.note("metric"),
            _ => {}
        }
    }
    // With a peer, IFA_ADDRESS is the peer's address. Without a peer, IPv6 has no IFA_LOCAL, and IPv4 has the address
    // in both.
    let address = local.or(peer)?;
    if let Some(peer) = peer.filter(|peer| *peer != address) {
        odd.note(format_args!("peer {peer}"));
    }
    if scope != usual_scope(address) {
        odd.note(format_args!("scope {scope}"));
    }
    if flags & libc::IFA_F_PERMANENT == 0 {
        odd.note("finite lifetime");
    }
    ODD_FLAGS.iter().filter(|(flag, _)| flags & flag != 0).for_each(|(_, name)| odd.note(name));
    let has_peer = peer.is_some_and(|peer| peer != address);
    let row = IpNet::new(address, prefix).ok()?;
    let facts = AddressFacts {
        link,
        // The prefix is the peer's network, which does not contain this address.
        address: if has_peer { address.into() } else { row },
        permanent: flags & libc::IFA_F_PERMANENT != 0,
        temporary: address.is_ipv6() && flags & libc::IFA_F_TEMPORARY != 0,
        deprecated: flags & libc::IFA_F_DEPRECATED != 0,
        tentative: flags & libc::IFA_F_TENTATIVE != 0,
        duplicate: flags & libc::IFA_F_DADFAILED != 0,
    };
    Some(FoundAddress { index, facts, address: row, odd })
}

/// Returns the scope of an address that was added without one.
fn usual_scope(address: IpAddr) -> u8 {
    match address {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => libc::RT_SCOPE_LINK,
        ip if ip.is_loopback() => libc::RT_SCOPE_HOST,
        _ => libc::RT_SCOPE_UNIVERSE,
    }
}

fn add(row: &Address, index: u32) -> Message {
    message(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, row, index)
}

/// Returns a request to add no address. The kernel refuses it as invalid if the sender may add one.
pub(crate) fn none_to_add() -> Message {
    Message::new(libc::RTM_NEWADDR, 0, &[&[libc::AF_INET as u8, 0, 0, 0], &[0; 4]])
}

fn delete(row: &Address, index: u32) -> Message {
    message(libc::RTM_DELADDR, 0, row, index)
}

fn message(kind: u16, flags: libc::c_int, row: &Address, index: u32) -> Message {
    let (ip, prefix) = (row.address.addr(), row.address.prefix_len());
    let header: [&[u8]; 2] = [&[family_of(ip), prefix, 0, usual_scope(ip)], &index.to_ne_bytes()];
    let mut message = Message::new(kind, flags, &header);
    // IPv4 finds the address to delete by IFA_LOCAL alone, even if it has a peer.
    message.ip(IFA_LOCAL, ip);
    if kind == libc::RTM_NEWADDR || ip.is_ipv6() {
        message.ip(IFA_ADDRESS, ip);
    }
    message
}
