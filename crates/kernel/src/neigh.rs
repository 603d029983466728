//! Neighbours (ARP and ND entries) of our links. A permanent entry is a plain row; any other state goes into `unknown`.

use std::net::IpAddr;

use libc::{NDA_DST, NDA_LLADDR};
use plan::owned::Owned;
use plan::state::Neighbour;
use plan::{Kind, LinkName, Mac, Verb};

use crate::devices::Devices;
use crate::error::Error;
use crate::filter::{Notifications, OwnWrites, by_index};
use crate::kind::{NetlinkKind, Prepared, Writable};
use crate::message::{Message, Odd, Part, family_of};
use crate::reading::{Reading, append};
use crate::socket::Netlink;

const NDA_FLAGS_EXT: u16 = 15;
const NTF_OFFLOADED: u8 = 0x20;

/// States `NUD_*` other than permanent, with their names in ip(8).
const STATES: [(u16, &str); 7] = [
    (libc::NUD_INCOMPLETE, "incomplete"),
    (libc::NUD_REACHABLE, "reachable"),
    (libc::NUD_STALE, "stale"),
    (libc::NUD_DELAY, "delay"),
    (libc::NUD_PROBE, "probe"),
    (libc::NUD_FAILED, "failed"),
    (libc::NUD_NOARP, "noarp"),
];

impl NetlinkKind for Neighbour {
    const NOTIFICATIONS: Option<Notifications> = Some(Notifications {
        name: Self::NAME,
        // Neighbours of all families, with AF_BRIDGE: the FDB.
        groups: &[libc::RTNLGRP_NEIGH],
        types: [libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH],
        own_writes: OwnWrites::Dropped,
        selection: Some(|interest| by_index(interest.links.iter().copied())),
    });

    fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<Vec<Self>, Error> {
        let links = reading.devices.indexes(&owned.links);
        entries(reading.netlink, "read the neighbours", libc::AF_UNSPEC as u8, &links, decode)
    }
}

impl Writable for Neighbour {
    fn prepare(&self, verb: Verb, devices: &Devices) -> Result<Prepared<'_>, LinkName> {
        let mut message = request(verb, family_of(self.address), devices.need(self.link)?, 0);
        message.ip(NDA_DST, self.address);
        if !verb.deletes() {
            message.put(NDA_LLADDR, &self.mac.0);
        }
        Ok(Prepared::Send(message))
    }
}

/// Reads neighbours or FDB entries, one device at a time: foreign ones may be very many.
pub(crate) fn entries<T>(
    netlink: &mut Netlink,
    what: &'static str,
    family: u8,
    links: &[(LinkName, u32)],
    decode: fn(Part<'_>, LinkName) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut all = Vec::new();
    for &(name, of_it) in links {
        let decode = |part: Part<'_>| decode(part, name).filter(|_| index(part) == of_it);
        append(&mut all, netlink.rows(what, dump_request(family, of_it), decode)?);
    }
    Ok(all)
}

/// Starts the request of an op on a neighbour or FDB entry of a device: `struct ndmsg`, without attributes.
pub(crate) fn request(verb: Verb, family: u8, index: u32, ntf: u8) -> Message {
    let (kind, flags) = if verb.deletes() {
        (libc::RTM_DELNEIGH, 0)
    } else {
        (libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
    };
    let [low, high] = libc::NUD_PERMANENT.to_ne_bytes();
    Message::new(kind, flags, &[&[family, 0, 0, 0], &index.to_ne_bytes(), &[low, high, ntf, 0]])
}

/// Asks for the entries of one device. `family` is 0 for both IP families, `AF_BRIDGE` for the FDB.
pub(crate) fn dump_request(family: u8, index: u32) -> Message {
    let mut message = Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &[&[family], &[0; 11]]);
    message.u32(libc::NDA_IFINDEX, index);
    message
}

/// Returns the index of an entry's device.
pub(crate) fn index(part: Part<'_>) -> u32 {
    part.body.u32(4)
}

/// Returns the name of a state.
fn state_name(state: u16) -> &'static str {
    STATES.iter().find(|(bit, _)| state & bit != 0).map_or("none", |(_, name)| name)
}

/// Decodes a neighbour. Returns `None` if the kernel derived it from the address itself (multicast and broadcast).
pub(crate) fn decode(part: Part<'_>, link: LinkName) -> Option<Neighbour> {
    let (state, flags, kind) = (part.body.u16(8), part.body.u8(10), part.body.u8(11));
    let (mut address, mut mac, mut odd) = (None::<IpAddr>, Mac::default(), Odd::default());
    if state != libc::NUD_PERMANENT {
        odd.note(state_name(state));
    }
    if flags & !(NTF_OFFLOADED | libc::NTF_ROUTER) != 0 {
        odd.note(format_args!("flags {flags:#x}"));
    }
    for attribute in part.body.attributes(12) {
        match attribute.kind {
            NDA_DST => address = attribute.ip(),
            NDA_LLADDR => mac = attribute.mac().unwrap_or_default(),
            NDA_FLAGS_EXT if attribute.u32() != 0 => odd.note(format_args!("flags {:#x}00", attribute.u32())),
            _ => {}
        }
    }
    let derived = state & libc::NUD_NOARP != 0 && matches!(kind, libc::RTN_MULTICAST | libc::RTN_BROADCAST);
    let address = address.filter(|_| !derived)?;
    Some(Neighbour { link, address, mac, unknown: odd.to_unknown() })
}

/// A neighbour on a link whose MAC is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownNeighbour {
    pub ip: IpAddr,
    pub mac: Mac,
    /// True if somebody has set the entry, so that the kernel never sends a request for it.
    pub is_static: bool,
}

/// Returns an entry whose MAC has answered, or was set by somebody. The MAC is a unicast one.
pub(crate) fn known_neighbour(part: Part<'_>) -> Option<KnownNeighbour> {
    const STATIC: u16 = libc::NUD_PERMANENT | libc::NUD_NOARP;
    const KNOWN: u16 = libc::NUD_REACHABLE | libc::NUD_STALE | libc::NUD_DELAY | libc::NUD_PROBE | STATIC;
    let state = part.body.u16(8);
    let (address, mac) = address_and_mac(part);
    let known = KnownNeighbour { ip: address?, mac: mac?, is_static: state & STATIC != 0 };
    (state & KNOWN != 0 && known.mac.is_unicast()).then_some(known)
}

/// Returns the address of an entry that has failed (no MAC), or of a known one (with its MAC).
pub(crate) fn neighbour_event(part: Part<'_>) -> Option<(IpAddr, Option<Mac>)> {
    let failed = part.body.u16(8) & libc::NUD_FAILED != 0;
    if failed {
        Some((address_and_mac(part).0?, None))
    } else {
        known_neighbour(part).map(|it| (it.ip, Some(it.mac)))
    }
}

fn address_and_mac(part: Part<'_>) -> (Option<IpAddr>, Option<Mac>) {
    let (mut address, mut mac) = (None, None);
    for attribute in part.body.attributes(12) {
        match attribute.kind {
            NDA_DST => address = attribute.ip(),
            NDA_LLADDR => mac = attribute.mac(),
            _ => {}
        }
    }
    (address, mac)
}
