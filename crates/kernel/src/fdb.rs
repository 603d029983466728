//! Forwarding entries of our vxlan devices. A permanent entry of our shape is a plain row; differences go into
//! `unknown`.

use std::net::{IpAddr, Ipv4Addr};

use libc::{NDA_DST, NDA_LLADDR, NDA_PORT};
use plan::owned::Owned;
use plan::state::FdbEntry;
use plan::{LinkName, Mac, Verb};

use crate::devices::Devices;
use crate::error::Error;
use crate::filter::Notifications;
use crate::kind::{NetlinkKind, Prepared, Writable};
use crate::message::{Odd, Part};
use crate::neigh;
use crate::reading::Reading;

pub(crate) const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

const NTF_OFFLOADED: u8 = 0x20;

/// Attributes that divert a packet: another VNI, another device than the uplink, or a next hop object instead of
/// `NDA_DST`.
const DETOURS: [(u16, &str); 4] =
    [(libc::NDA_VNI, "vni"), (libc::NDA_IFINDEX, "via"), (11, "src_vni"), (13, "nhid")];

impl NetlinkKind for FdbEntry {
    /// `RTNLGRP_NEIGH` reports neighbours of all families, with `AF_BRIDGE`: the FDB.
    const NOTIFICATIONS: Option<Notifications> = None;

    fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<Vec<Self>, Error> {
        let mut tunnels = reading.devices.indexes(&owned.links);
        tunnels.retain(|(name, _)| reading.devices.vxlan(*name).is_some());
        neigh::entries(reading.netlink, "read the FDB", AF_BRIDGE, &tunnels, decode)
    }
}

impl Writable for FdbEntry {
    fn prepare(&self, verb: Verb, devices: &Devices) -> Result<Prepared<'_>, LinkName> {
        let mut message = neigh::request(verb, AF_BRIDGE, devices.need(self.link)?, libc::NTF_SELF);
        message.put(NDA_LLADDR, &self.mac.0);
        // Without a destination the kernel deletes all entries of the MAC. An entry of another shape cannot be named
        // otherwise.
        if self.unknown.is_none() {
            message.ip(NDA_DST, self.remote);
            // A deletion with a wrong port, or with a missing one, does nothing, and the kernel reports no error.
            if let Some(port) = self.port {
                message.put(NDA_PORT, &port.to_be_bytes());
            }
        }
        Ok(Prepared::Send(message))
    }
}

/// Decodes an entry; every entry is a row.
pub(crate) fn decode(part: Part<'_>, link: LinkName) -> Option<FdbEntry> {
    let (state, flags) = (part.body.u16(8), part.body.u8(10));
    let (mut mac, mut remote, mut odd) = (Mac::default(), None::<IpAddr>, Odd::default());
    let mut port = None;
    if state & libc::NUD_PERMANENT == 0 {
        odd.note(if state & libc::NUD_NOARP == 0 { "learned" } else { "static" });
    }
    if flags & !NTF_OFFLOADED != libc::NTF_SELF {
        odd.note(format_args!("flags {flags:#x}"));
    }
    for attribute in part.body.attributes(12) {
        match attribute.kind {
            NDA_DST => remote = attribute.ip(),
            NDA_LLADDR => mac = attribute.mac().unwrap_or_default(),
            // The kernel shows the port only if it differs from the device's.
            NDA_PORT => port = Some(attribute.port()),
            kind => {
                let detour = DETOURS.iter().find(|(detour, _)| *detour == kind);
                detour.into_iter().for_each(|(_, name)| odd.note(name));
            }
        }
    }
    let remote = remote.unwrap_or_else(|| {
        odd.note("no dst");
        Ipv4Addr::UNSPECIFIED.into()
    });
    Some(FdbEntry { link, mac, remote, port, unknown: odd.to_unknown() })
}
