//! Network devices as read: all of them as facts, and devices with our names as rows. A row has the attributes of an
//! unmodified vxlan device. Differences are only named, not judged. Every other kind of object needs their names and
//! indexes.

use std::collections::HashMap;

use libc::{IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU};
use plan::state::{Link, LinkKind, Vxlan};
use plan::underlay::LinkFacts;
use plan::{LinkName, Mac};

use crate::error::Error;
use crate::message::{Attribute, Message, Odd, Part};
use crate::socket::Netlink;

pub(crate) const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
pub(crate) const IFLA_VXLAN_LINK: u16 = 3;
pub(crate) const IFLA_VXLAN_LOCAL: u16 = 4;
pub(crate) const IFLA_VXLAN_TTL: u16 = 5;
pub(crate) const IFLA_VXLAN_TOS: u16 = 6;
pub(crate) const IFLA_VXLAN_LEARNING: u16 = 7;
pub(crate) const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
pub(crate) const IFLA_VXLAN_LOCAL6: u16 = 17;
pub(crate) const IFLA_VXLAN_GBP: u16 = 23;

/// Further attributes of a vxlan device, with their names and defaults (`vxlan_nl2conf`). An attribute that is not
/// listed is newer than this list; it is ignored, as if it had its default.
const VXLAN_DEFAULTS: [(u16, &str, &[u8]); 22] = [
    (IFLA_VXLAN_TTL, "ttl", &[0]),
    (IFLA_VXLAN_TOS, "tos", &[0]),
    (8, "ageing", &300_u32.to_ne_bytes()),
    (9, "maxaddr", &[0; 4]),
    (10, "srcport", &[0; 4]),
    (11, "proxy", &[0]),
    (12, "rsc", &[0]),
    (13, "l2miss", &[0]),
    (14, "l3miss", &[0]),
    (18, "udpcsum", &[1]),
    (19, "udp6zerocsumtx", &[0]),
    (20, "udp6zerocsumrx", &[0]),
    (21, "remcsumtx", &[0]),
    (22, "remcsumrx", &[0]),
    (24, "remcsum-nopartial", &[0]),
    (25, "external", &[0]),
    (26, "flowlabel", &[0; 4]),
    (27, "gpe", &[0]),
    (28, "ttl inherit", &[0]),
    (29, "df", &[0]),
    (30, "vnifilter", &[0]),
    (31, "localbypass", &[1]),
];

/// A device as read.
pub(crate) struct Device {
    index: u32,
    facts: LinkFacts,
    /// Index of the device below; 0 if there is none.
    lower: u32,
    /// Index of the bridge or bond that this device is a port of; 0 if there is none.
    master: u32,
    vxlan: Option<Box<Tunnel>>,
}

/// The vxlan attributes of a device; the uplink is still an index.
struct Tunnel {
    row: Vxlan,
    uplink: u32,
    odd: Odd,
}

/// All devices of the node, by index and by name.
#[derive(Default)]
pub(crate) struct Devices {
    by_index: Vec<Device>,
    indexes: HashMap<LinkName, u32>,
}

impl Devices {
    pub(crate) fn new(mut devices: Vec<Device>) -> Self {
        devices.sort_unstable_by_key(|device| device.index);
        let indexes = devices.iter().map(|device| (device.facts.name, device.index)).collect();
        Self { by_index: devices, indexes }
    }

    pub(crate) fn index(&self, name: LinkName) -> Option<u32> {
        self.indexes.get(&name).copied()
    }

    /// Returns the index of a device. Fails with its name if it does not exist.
    pub(crate) fn need(&self, name: LinkName) -> Result<u32, LinkName> {
        self.index(name).ok_or(name)
    }

    /// Returns the existing ones of these devices, with their indexes.
    pub(crate) fn indexes(&self, names: &[LinkName]) -> Vec<(LinkName, u32)> {
        names.iter().filter_map(|name| Some((*name, self.index(*name)?))).collect()
    }

    /// Returns the vxlan devices with that UDP port.
    pub(crate) fn with_port(&self, port: u16) -> impl Iterator<Item = LinkName> {
        let has = move |device: &&Device| device.vxlan.as_ref().is_some_and(|tunnel| tunnel.row.port == port);
        self.by_index.iter().filter(has).map(|device| device.facts.name)
    }

    /// Returns the devices of other kinds that have a UDP port of their own, which is not read.
    pub(crate) fn with_some_port(&self) -> impl Iterator<Item = LinkName> {
        const KINDS: [&str; 4] = ["geneve", "wireguard", "bareudp", "gtp"];
        let has = |device: &&Device| KINDS.contains(&&*device.facts.kind);
        self.by_index.iter().filter(has).map(|device| device.facts.name)
    }

    /// Returns the attributes of a device if it is a vxlan device.
    pub(crate) fn vxlan(&self, name: LinkName) -> Option<&Vxlan> {
        self.get(name)?.vxlan.as_ref().map(|tunnel| &tunnel.row)
    }

    pub(crate) fn is_bridge(&self, name: LinkName) -> bool {
        self.get(name).is_some_and(|device| &*device.facts.kind == "bridge")
    }

    pub(crate) fn name(&self, index: u32) -> Option<LinkName> {
        let at = self.by_index.binary_search_by_key(&index, |device| device.index).ok()?;
        Some(self.by_index[at].facts.name)
    }

    /// Returns the device of that name as a row.
    pub(crate) fn row(&self, name: LinkName) -> Option<Link> {
        let Device { facts, vxlan, .. } = self.get(name)?;
        let (kind, unknown) = match vxlan {
            Some(tunnel) => {
                let uplink = self.name(tunnel.uplink);
                (LinkKind::Vxlan(Vxlan { uplink, ..tunnel.row.clone() }), tunnel.odd.to_unknown())
            }
            None => (LinkKind::Other(facts.kind.clone()), None),
        };
        Some(Link { name, kind, mac: facts.mac, mtu: facts.mtu, up: facts.up, unknown })
    }

    fn get(&self, name: LinkName) -> Option<&Device> {
        let index = self.index(name)?;
        let at = self.by_index.binary_search_by_key(&index, |device| device.index).ok()?;
        self.by_index.get(at)
    }

    pub(crate) fn into_facts(self) -> Vec<LinkFacts> {
        let related: Vec<_> =
            self.by_index.iter().map(|device| (self.name(device.lower), self.name(device.master))).collect();
        let with = |(device, (lower, master)): (Device, _)| {
            let local = device.vxlan.map(|tunnel| tunnel.row.local).filter(|local| !local.is_unspecified());
            LinkFacts { lower, master, local, ..device.facts }
        };
        self.by_index.into_iter().zip(related).map(with).collect()
    }
}

/// Reads all devices. Fails if the dump fails or changes during each reading.
pub(crate) fn read(netlink: &mut Netlink) -> Result<Devices, Error> {
    let dump = netlink.dump(dump_request(), |all: &mut Vec<_>, part| all.extend(decode(part)));
    dump.map(Devices::new).map_err(|cause| Error::new("read the devices", cause))
}

fn dump_request() -> Message {
    let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[&[0; 16]]);
    message.u32(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32);
    message
}

/// Decodes a device. Returns `None` if its name cannot be parsed; it has neither a row nor a route of ours.
pub(crate) fn decode(part: Part<'_>) -> Option<Device> {
    let (index, flags) = (part.body.u32(4), part.body.u32(8));
    let (mut name, mut mac, mut mtu, mut info, mut foreign) = (None, Mac::default(), 0, None, false);
    let (mut lower, mut master) = (0, 0);
    for attribute in part.body.attributes(16) {
        match attribute.kind {
            IFLA_IFNAME => name = attribute.text().parse().ok(),
            IFLA_ADDRESS => mac = attribute.mac().unwrap_or_default(),
            IFLA_MTU => mtu = attribute.u32(),
            IFLA_LINKINFO => info = Some(attribute),
            libc::IFLA_LINK_NETNSID => foreign = true,
            libc::IFLA_LINK => lower = attribute.u32(),
            libc::IFLA_MASTER => master = attribute.u32(),
            _ => {}
        }
    }
    let part_of_info = |kind| info.and_then(|info| info.nested().find(|part| part.kind == kind));
    let kind = part_of_info(IFLA_INFO_KIND).map_or("", Attribute::text);
    let data = part_of_info(IFLA_INFO_DATA).filter(|_| kind == "vxlan");
    let facts = LinkFacts {
        name: name?,
        kind: kind.into(),
        mac,
        mtu,
        up: flags & libc::IFF_UP as u32 != 0,
        carrier: flags & libc::IFF_LOWER_UP as u32 != 0,
        lower: None,
        master: None,
        local: None,
    };
    // The index belongs to a device in another network namespace.
    let lower = if foreign { 0 } else { lower };
    let mut vxlan = data.map(|data| Box::new(tunnel(data, foreign)));
    if let Some(tunnel) = vxlan.as_mut().filter(|_| master != 0) {
        tunnel.odd.note("has a master");
    }
    if let Some(tunnel) = vxlan.as_mut().filter(|_| flags & libc::IFF_NOARP as u32 != 0) {
        tunnel.odd.note("arp off");
    }
    Some(Device { index, facts, lower, master, vxlan })
}

/// Decodes the vxlan attributes. `foreign` is true if the uplink's index belongs to another network namespace.
fn tunnel(data: Attribute<'_>, foreign: bool) -> Tunnel {
    let local = std::net::Ipv4Addr::UNSPECIFIED.into();
    let mut row = Vxlan { vni: 0, local, uplink: None, port: 0, learning: false, gbp: false };
    let (mut uplink, mut odd) = (0, Odd::default());
    for attribute in data.nested() {
        match attribute.kind {
            IFLA_VXLAN_ID => row.vni = attribute.u32(),
            IFLA_VXLAN_LINK if !foreign => uplink = attribute.u32(),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => row.local = attribute.ip().unwrap_or(local),
            IFLA_VXLAN_LEARNING => row.learning = attribute.u8() != 0,
            IFLA_VXLAN_PORT => row.port = attribute.port(),
            IFLA_VXLAN_GBP => row.gbp = true,
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => match attribute.ip() {
                Some(group) if !group.is_unspecified() => odd.note(format_args!("remote {group}")),
                _ => {}
            },
            _ => unlike_default(attribute).into_iter().for_each(|name| odd.note(name)),
        }
    }
    Tunnel { row, uplink, odd }
}

fn unlike_default(attribute: Attribute<'_>) -> Option<&'static str> {
    let (_, name, default) = VXLAN_DEFAULTS.iter().find(|(kind, ..)| *kind == attribute.kind)?;
    // A flag has no value: its presence means yes.
    (attribute.value.0 != *default).then_some(name)
}
