//! Tunnels in general: what all kinds share. The file of a backend fills in the rest.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::properties;
use crate::family::Family;
use crate::mac::Mac;
use crate::name::LinkName;
use crate::node::Uplink;
use crate::state::{Address, FdbEntry, Link, LinkKind, Neighbour, Route};
use crate::subnet::Subnet;
use crate::tunnel_id::{TunnelId, TunnelKind};
use crate::underlay::{AddressFacts, LinkFacts, Underlay};

/// Properties of a kind of tunnel that no option changes.
pub(super) struct Properties {
    /// Kind of the devices in the kernel (`IFLA_INFO_KIND`).
    pub(super) link_kind: &'static str,
    /// Size of the outer headers in bytes, over IPv4 and over IPv6.
    pub(super) overhead: [u32; 2],
    /// Returns the attributes of a device for outer packets from this address through this uplink.
    pub(super) placed: fn(&Encapsulation, IpAddr, LinkName) -> LinkKind,
    /// Returns the rows that make a peer's subnet reachable. The port is the one that the peer names.
    pub(super) reach: fn(&Encapsulation, &Endpoint, Option<u16>, u32) -> PeerRows,
}

/// Returns true if a device with one of our names may be ours, by its kind.
pub(crate) fn may_be_ours(link: &LinkFacts) -> bool {
    match TunnelId::of_device(link.name) {
        Some(id) => is_of_kind(link, id.kind),
        None => TunnelKind::ALL.into_iter().any(|kind| is_of_kind(link, kind)),
    }
}

fn is_of_kind(link: &LinkFacts, kind: TunnelKind) -> bool {
    *link.kind == *properties(kind).link_kind
}

/// Returns the addresses of tunnel devices with a name like ours, each with its device. Any program may have made
/// them.
fn ends(underlay: &Underlay) -> impl Iterator<Item = (&AddressFacts, &LinkFacts)> {
    underlay.addresses.iter().filter_map(|facts| {
        let (id, link) = (TunnelId::of_device(facts.link)?, underlay.link(facts.link)?);
        is_of_kind(link, id.kind).then_some((facts, link))
    })
}

/// Returns address and MAC of each tunnel device that exists here, whichever program made it.
pub fn standing(underlay: &Underlay) -> Vec<(IpAddr, Mac)> {
    ends(underlay).map(|(facts, link)| (facts.address.addr(), link.mac)).collect()
}

/// Returns the devices that an earlier run of twill or flannel left. They are tunnel devices with names like ours and our
/// subnet's first address. The address tells them from devices of another daemon of this node.
pub fn left_devices(underlay: &Underlay, subnet: &Subnet) -> Vec<LinkName> {
    let is_ours =
        |address: IpAddr| subnet.of(Family::of(address)).is_some_and(|own| own.network() == address);
    let ours = ends(underlay).filter(|(facts, _)| is_ours(facts.address.addr()));
    ours.map(|(facts, _)| facts.link).collect()
}

/// Peers on the uplink's segment that are reached without encapsulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direct {
    #[default]
    Never,
    /// All peers, by their addresses alone, as with flannel.
    OnLink,
    /// Peers that pods are proven to reach directly, for as long as this holds.
    Verified,
}

impl Direct {
    /// Returns the words that describe it behind the backend's name.
    pub fn words(self) -> &'static str {
        match self {
            Self::Never => "",
            Self::OnLink => ", direct on the segment",
            Self::Verified => ", direct where verified",
        }
    }
}

/// `VxlanSourceFilter`: treatment of VXLAN packets from an address that no peer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceFilter {
    Off,
    /// Counts the packets and reports their senders.
    #[default]
    Count,
    Drop,
}

/// End of the tunnel for one family, ours or a peer's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) subnet: IpNet,
    /// Underlay address.
    pub(crate) local: IpAddr,
    /// MAC of the device; all zeros if the tunnel carries no Ethernet frames.
    pub(crate) mac: Mac,
}

/// End of a peer's tunnel for one family, as its lease announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Tunnel by which the peer is reached. A lease without a number means the reader's own.
    pub(crate) id: TunnelId,
    /// MAC of the peer's device; `None` if the tunnel carries no Ethernet frames.
    pub(crate) mac: Option<Mac>,
    /// UDP port that the lease names.
    pub(crate) port: Option<u16>,
}

/// Rows that make a peer's subnet reachable by tunnel.
pub(crate) struct PeerRows {
    pub(crate) neighbour: Option<Neighbour>,
    pub(crate) fdb: Option<FdbEntry>,
    pub(crate) route: Route,
}

/// Packet sizes, in bytes, that show why the uplink is too small for a tunnel of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Narrow {
    /// Largest outer packet.
    pub(crate) outer: u32,
    /// Smallest packet that has to fit into the tunnel.
    pub(crate) inner: u32,
    /// Smallest outer packet that would do.
    pub(crate) needs: u32,
}

/// Returns the smallest MTU in bytes that the kernel gives a device which carries the family.
pub(crate) fn least_mtu(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 68,
        Family::Ipv6 => 1280,
    }
}

/// Tunnel with its options: our own, or one to peers that announce another number.
#[derive(Clone, Debug)]
pub(crate) struct Encapsulation {
    pub(crate) id: TunnelId,
    /// UDP port on which this node listens, and peers that name none; `None` without UDP.
    pub(crate) port: Option<u16>,
    /// MTU of the outer packet in bytes; `None` means the uplink's.
    pub(super) mtu: Option<u32>,
    pub(crate) direct: Direct,
    /// True if pods have the uplink's MTU, and the tunnel's device reports where that is too much.
    pub(super) direct_mtu: bool,
    pub(crate) source_filter: SourceFilter,
    /// Attributes of the devices, without addresses.
    pub(super) attributes: LinkKind,
}

impl Encapsulation {
    pub(crate) fn device_name(&self, family: Family) -> LinkName {
        self.id.device(family)
    }

    pub(crate) fn device_mtu(&self, family: Family, uplink: &Uplink) -> u32 {
        self.outer_mtu(uplink).saturating_sub(self.overhead(family))
    }

    /// Returns the sizes if the uplink, or the configured MTU, is too small for a tunnel of the family.
    pub(crate) fn narrow(&self, family: Family, uplink: &Uplink) -> Option<Narrow> {
        let (outer, inner) = (self.outer_mtu(uplink), least_mtu(family));
        let needs = inner + self.overhead(family);
        (outer < needs).then_some(Narrow { outer, inner, needs })
    }

    fn overhead(&self, family: Family) -> u32 {
        properties(self.id.kind).overhead[family as usize]
    }

    /// Returns the MTU of outer packets in bytes. The kernel silently reduces what exceeds the uplink's MTU.
    fn outer_mtu(&self, uplink: &Uplink) -> u32 {
        self.mtu.map_or(uplink.mtu, |mtu| mtu.min(uplink.mtu))
    }

    pub(super) fn pod_mtu(&self, uplink: &Uplink) -> u32 {
        if self.direct_mtu {
            return self.outer_mtu(uplink);
        }
        let families = || uplink.addresses().map(Family::of);
        let wide = families().filter(|family| self.narrow(*family, uplink).is_none());
        let smallest = wide.map(|family| self.device_mtu(family, uplink)).min();
        let smallest = smallest.or_else(|| families().map(|family| self.device_mtu(family, uplink)).min());
        smallest.unwrap_or(uplink.mtu)
    }

    /// Returns our own device and its address.
    pub(crate) fn device(&self, end: &Endpoint, uplink: &Uplink) -> (Link, Address) {
        let family = Family::of(end.local);
        let name = self.device_name(family);
        let kind = (properties(self.id.kind).placed)(self, end.local, uplink.link);
        let mtu = self.device_mtu(family, uplink);
        let address = Address { link: name, address: IpNet::from(end.subnet.network()), unknown: None };
        (Link { name, kind, mac: end.mac, mtu, up: true, unknown: None }, address)
    }

    /// Returns the rows that make a peer's subnet reachable. A peer that names no port is assumed to use ours.
    pub(crate) fn peer(&self, peer: &Endpoint, port: Option<u16>, table: u32) -> PeerRows {
        (properties(self.id.kind).reach)(self, peer, port, table)
    }
}
