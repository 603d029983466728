//! Next hop objects (Linux 5.3) with ids of ours. Groups and other shapes that we do not create go into `unknown`.

use std::net::{IpAddr, Ipv4Addr};

use plan::marks::NEXTHOPS;
use plan::owned::Owned;
use plan::state::Nexthop;
use plan::underlay::NextHop;
use plan::{Kind, LinkName, Verb};

use crate::devices::Devices;
use crate::error::Error;
use crate::filter::{Notifications, OwnWrites};
use crate::kind::{NetlinkKind, Prepared, Writable};
use crate::message::{Body, Message, Odd, Part, family_of};
use crate::reading::{Objects, Reading};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP: u16 = 8;
const NHA_FDB: u16 = 11;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_ONLINK: u32 = 4;

impl NetlinkKind for Nexthop {
    const NOTIFICATIONS: Option<Notifications> = Some(Notifications {
        name: Self::NAME,
        groups: &[libc::RTNLGRP_NEXTHOP],
        types: [RTM_NEWNEXTHOP, RTM_DELNEXTHOP],
        own_writes: OwnWrites::Dropped,
        selection: None,
    });

    fn read(reading: &mut Reading<'_>, _: &Owned) -> Result<Vec<Self>, Error> {
        read(reading)
    }
}

impl Writable for Nexthop {
    fn prepare(&self, verb: Verb, devices: &Devices) -> Result<Prepared<'_>, LinkName> {
        Ok(Prepared::Send(if verb.deletes() { delete(self.id) } else { add(self, devices.need(self.link)?) }))
    }
}

/// Reads the next hop objects: returns ours, and leaves those of others in `reading`.
pub(crate) fn read(reading: &mut Reading<'_>) -> Result<Vec<Nexthop>, Error> {
    let Reading { netlink, devices, objects, .. } = reading;
    let (ours, others) = netlink.rows_and(
        "read the next hops",
        dump_request(),
        |(ours, others): &mut (Vec<_>, Objects), part| {
            ours.extend(decode(part, devices));
            others.collect(part, devices);
        },
    )?;
    *objects = others;
    Ok(ours)
}

fn dump_request() -> Message {
    Message::new(RTM_GETNEXTHOP, libc::NLM_F_DUMP, &[&[0; 8]])
}

impl Objects {
    /// Takes one object from a dump. Our own objects and dead ones are skipped.
    pub(crate) fn collect(&mut self, part: Part<'_>, devices: &Devices) {
        let (mut id, mut hop, mut group) = (0, NextHop::default(), None);
        for attribute in part.body.attributes(8) {
            match attribute.kind {
                NHA_ID => id = attribute.u32(),
                NHA_GATEWAY => hop.gateway = attribute.ip(),
                NHA_OIF => hop.link = devices.name(attribute.u32()),
                // Array of `struct nexthop_grp`, whose first field is the id.
                NHA_GROUP => {
                    let entries = attribute.value.0.chunks_exact(8);
                    group = Some(entries.map(|entry| Body(entry).u32(0)).collect());
                }
                _ => {}
            }
        }
        if NEXTHOPS.contains(&id) || part.body.u32(4) & RTNH_F_DEAD != 0 {
            return;
        }
        match group {
            Some(members) => _ = self.groups.insert(id, members),
            None => _ = self.single.insert(id, hop),
        }
    }
}

/// Decodes an object. Returns `None` if its id is not ours.
pub(crate) fn decode(part: Part<'_>, devices: &Devices) -> Option<Nexthop> {
    let (mut id, mut gateway, mut link) = (0, None::<IpAddr>, None::<LinkName>);
    let mut odd = Odd::default();
    for attribute in part.body.attributes(8) {
        match attribute.kind {
            NHA_ID => id = attribute.u32(),
            NHA_GATEWAY => gateway = attribute.ip(),
            NHA_OIF => link = devices.name(attribute.u32()),
            NHA_GROUP => odd.note("group"),
            NHA_BLACKHOLE => odd.note("blackhole"),
            NHA_ENCAP => odd.note("encap"),
            NHA_FDB => odd.note("fdb"),
            _ => {}
        }
    }
    if !NEXTHOPS.contains(&id) {
        return None;
    }
    if gateway.is_none() || link.is_none() {
        odd.note("no gateway and device");
    }
    Some(Nexthop {
        id,
        gateway: gateway.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        link: link.unwrap_or_else(no_link),
        onlink: part.body.u32(4) & RTNH_F_ONLINK != 0,
        protocol: part.body.u8(2),
        unknown: odd.to_unknown(),
    })
}

#[expect(clippy::expect_used, reason = "a constant that is a name")]
fn no_link() -> LinkName {
    "?".parse().expect("one character")
}

fn add(row: &Nexthop, index: u32) -> Message {
    let flags = if row.onlink { RTNH_F_ONLINK } else { 0 };
    let header = [family_of(row.gateway), 0, row.protocol, 0];
    let replace = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut message = Message::new(RTM_NEWNEXTHOP, replace, &[&header, &flags.to_ne_bytes()]);
    message.u32(NHA_ID, row.id).u32(NHA_OIF, index).ip(NHA_GATEWAY, row.gateway);
    message
}

/// Deletes an object. The kernel deletes the routes through it, too.
fn delete(id: u32) -> Message {
    let mut message = Message::new(RTM_DELNEXTHOP, 0, &[&[0; 8]]);
    message.u32(NHA_ID, id);
    message
}
