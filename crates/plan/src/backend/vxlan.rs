//! Backend vxlan: one device per family, and per peer a neighbour, an FDB entry and a route through the peer's VTEP
//! address (flannel-compat 6.1). Neighbour and FDB entry are permanent. Packets and `ip` output must be exactly as with
//! flannel.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::fields::Fields;
use crate::firewall::SourceFilter;
use crate::input::{AddressFacts, Family, Node, Underlay, Uplink};
use crate::lease::{Lease, Subnet};
use crate::marks::{IPV4_DEVICE, IPV6_DEVICE, PROTOCOL};
use crate::state::{Address, FdbEntry, Link, LinkKind, Neighbour, Route, RoutePath, Sysctl, Vxlan};
use crate::{LinkName, Mac, sysctls};

/// UDP port of a network config that names none. It is the kernel's default, which flannel gets by sending no port.
pub const DEFAULT_PORT: u16 = 8472;

/// VNI of a network config that names none.
pub const DEFAULT_VNI: u32 = 1;

/// Returns the size of outer Ethernet, IP, UDP and VXLAN headers in bytes. flannel takes 50 for IPv6, too (flannel-faults
/// 44).
fn overhead(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 50,
        Family::Ipv6 => 70,
    }
}

/// Returns the smallest MTU in bytes that the kernel gives a device which carries the family.
fn least_mtu(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 68,
        Family::Ipv6 => 1280,
    }
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

/// Returns `flannel.<VNI>` or `flannel-v6.<VNI>`.
pub(crate) fn device_name(family: Family, vni: u32) -> LinkName {
    let prefix = match family {
        Family::Ipv4 => IPV4_DEVICE,
        Family::Ipv6 => IPV6_DEVICE,
    };
    LinkName::numbered(prefix, vni)
}

/// Returns the largest VNI whose device names fit in the 15 bytes of an interface name.
pub(crate) fn largest_vni(ipv6: bool) -> u32 {
    if ipv6 { 9_999 } else { 9_999_999 }
}

fn source_filter(fields: &Fields) -> Result<SourceFilter, String> {
    match fields.get::<String>("VxlanSourceFilter")?.as_deref() {
        None => Ok(SourceFilter::default()),
        Some("count") => Ok(SourceFilter::Count),
        Some("drop") => Ok(SourceFilter::Drop),
        Some("off") => Ok(SourceFilter::Off),
        Some(other) => Err(format!("key \"VxlanSourceFilter\": {other:?} is not count, drop or off")),
    }
}

/// Options of the `Backend` object (flannel-compat 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    pub vni: u32,
    pub port: u16,
    /// MTU of the outer packet in bytes; `None` means the uplink's.
    pub mtu: Option<u32>,
    pub gbp: bool,
    pub learning: bool,
    #[serde(alias = "direct_routing")]
    pub direct: Direct,
    /// True if pods have the uplink's MTU, and the tunnel's device reports where that is too much.
    pub direct_mtu: bool,
    pub source_filter: SourceFilter,
}

/// Peers on the uplink's segment that are reached without encapsulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", from = "Written")]
pub enum Direct {
    #[default]
    Never,
    /// All peers, by their addresses alone, as with flannel.
    OnLink,
    /// Peers that pods are proven to reach directly, for as long as this holds.
    Verified,
}

/// Name of a variant of [`Direct`]; earlier versions wrote a boolean.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Named {
    Never,
    OnLink,
    Verified,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Routing(bool),
    Named(Named),
}

impl From<Written> for Direct {
    fn from(written: Written) -> Self {
        match written {
            Written::Routing(false) | Written::Named(Named::Never) => Self::Never,
            Written::Named(Named::OnLink) => Self::OnLink,
            Written::Routing(true) | Written::Named(Named::Verified) => Self::Verified,
        }
    }
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

    /// Reads the `Backend` object's keys; `named` is the default of the object's type.
    fn parse(fields: &Fields, named: Self) -> Result<Self, String> {
        let keys = ["DirectRouting", "VerifyDirect"];
        let [routing, verify] = keys.map(|key| fields.get::<bool>(key));
        let (routing, verify) = (routing?, verify?);
        if named == Self::Verified {
            let against = keys.iter().zip([routing, verify]).find(|(_, value)| *value == Some(false));
            return match against {
                Some((key, _)) => Err(format!(
                    "key {key:?}: false is against Type auto, which is verified direct routing: write Type vxlan"
                )),
                None => Ok(named),
            };
        }
        Ok(match (routing.unwrap_or(false), verify.unwrap_or(true)) {
            (false, _) => Self::Never,
            (true, false) => Self::OnLink,
            (true, true) => Self::Verified,
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vni: DEFAULT_VNI,
            port: DEFAULT_PORT,
            mtu: None,
            gbp: false,
            learning: false,
            direct: Direct::Never,
            direct_mtu: false,
            source_filter: SourceFilter::default(),
        }
    }
}

impl Options {
    /// Reads the `Backend` object; `named` is the direct routing of its type. A zero port or MTU means the default. The
    /// error names the key.
    pub fn parse(fields: &Fields, named: Direct) -> Result<Self, String> {
        let vni: u32 = fields.get("VNI")?.unwrap_or(DEFAULT_VNI);
        if vni >= 1 << 24 {
            return Err(format!("key \"VNI\": {vni} does not fit in 24 bits"));
        }
        let mtu: Option<u32> = fields.get("MTU")?;
        let mtu = mtu.filter(|&mtu| mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| !(118..=65535).contains(mtu)) {
            return Err(format!("key \"MTU\": {mtu} is not between 118 and 65535"));
        }
        let direct = Direct::parse(fields, named)?;
        let direct_mtu = fields.get("DirectMTU")?.unwrap_or(false);
        if direct_mtu && direct == Direct::Never {
            return Err(
                "key \"DirectMTU\": without direct routing no packet of that size arrives: write Type auto"
                    .into(),
            );
        }
        Ok(Self {
            vni,
            port: fields.get("Port")?.filter(|&port: &u16| port != 0).unwrap_or(DEFAULT_PORT),
            mtu,
            gbp: fields.get("GBP")?.unwrap_or(false),
            learning: fields.get("Learning")?.unwrap_or(false),
            direct,
            direct_mtu,
            source_filter: source_filter(fields)?,
        })
    }

    /// Returns the name of the device of the family.
    pub fn device_name(&self, family: Family) -> LinkName {
        device_name(family, self.vni)
    }

    pub(crate) fn device_mtu(&self, family: Family, uplink: &Uplink) -> u32 {
        self.outer_mtu(uplink).saturating_sub(overhead(family))
    }

    /// Returns the sizes if the uplink, or the configured MTU, is too small for a tunnel of the family.
    pub(crate) fn narrow(&self, family: Family, uplink: &Uplink) -> Option<Narrow> {
        let (outer, inner) = (self.outer_mtu(uplink), least_mtu(family));
        let needs = inner + overhead(family);
        (outer < needs).then_some(Narrow { outer, inner, needs })
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

    /// Returns our own device, its address and its sysctls.
    pub(crate) fn device(&self, end: &Endpoint, node: &Node) -> (Link, Address, Vec<Sysctl>) {
        let family = Family::of(end.local);
        let name = self.device_name(family);
        let kind = LinkKind::Vxlan(Vxlan {
            vni: self.vni,
            local: end.local,
            uplink: Some(node.uplink.link),
            port: self.port,
            learning: self.learning,
            gbp: self.gbp,
        });
        let mtu = self.device_mtu(family, &node.uplink);
        let address = Address { link: name, address: IpNet::from(end.subnet.network()), unknown: None };
        let link = Link { name, kind, mac: end.mac, mtu, up: true, unknown: None };
        // With a smaller MTU the device has no IPv6, and no sysctls for it.
        let has_ipv6 = mtu >= least_mtu(Family::Ipv6);
        (link, address, has_ipv6.then(|| sysctls::no_advertisements(name)).into_iter().collect())
    }

    /// Returns the port to name in our lease: none while all nodes use the default port, so that the lease equals
    /// flannel's.
    pub(super) fn announced_port(&self, others: &[&Lease]) -> Option<u16> {
        let mut named = others.iter().flat_map(|lease| lease.announced.vteps()).filter_map(|vtep| vtep.port);
        (self.port != DEFAULT_PORT || named.any(|port| port != DEFAULT_PORT)).then_some(self.port)
    }

    /// Returns the three rows that make a peer's subnet reachable through its VTEP. A peer that names no port is assumed
    /// to use ours, as with flannel.
    pub(crate) fn peer(
        &self,
        peer: &Endpoint,
        port: Option<u16>,
        table: u32,
    ) -> (Neighbour, FdbEntry, Route) {
        let link = self.device_name(Family::of(peer.local));
        let vtep = peer.subnet.network();
        let path = RoutePath::Via { gateway: vtep, link, onlink: true };
        (
            Neighbour { link, address: vtep, mac: peer.mac, unknown: None },
            FdbEntry {
                link,
                mac: peer.mac,
                remote: peer.local,
                port: port.filter(|&port| port != self.port),
                unknown: None,
            },
            Route { table, destination: peer.subnet, path, protocol: PROTOCOL, metric: 0, unknown: None },
        )
    }
}

/// Returns the VNI in a device's name, if the name has the form of ours.
pub fn vni_of(device: LinkName) -> Option<u32> {
    [IPV4_DEVICE, IPV6_DEVICE].iter().find_map(|prefix| device.as_str().strip_prefix(prefix)?.parse().ok())
}

/// Returns the devices that an earlier run of twill or flannel left. They are vxlan devices with names like ours and our
/// subnet's first address. The address tells them from devices of another daemon of this node.
pub fn left_devices(underlay: &Underlay, subnet: &Subnet) -> Vec<LinkName> {
    let is_ours = |facts: &&AddressFacts| {
        vni_of(facts.link).is_some()
            && underlay.link(facts.link).is_some_and(|link| &*link.kind == "vxlan")
            && subnet
                .of(Family::of(facts.address.addr()))
                .is_some_and(|own| own.network() == facts.address.addr())
    };
    underlay.addresses.iter().filter(is_ours).map(|facts| facts.link).collect()
}

/// Returns the VTEP devices that exist here, whichever program made them: address and MAC of each.
pub fn standing(underlay: &Underlay) -> Vec<(IpAddr, Mac)> {
    let mac = |facts: &AddressFacts| {
        let link =
            underlay.link(facts.link).filter(|link| &*link.kind == "vxlan" && vni_of(link.name).is_some())?;
        Some((facts.address.addr(), link.mac))
    };
    underlay.addresses.iter().filter_map(mac).collect()
}

/// End of the tunnel for one family, ours or a peer's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) subnet: IpNet,
    /// Underlay address.
    pub(crate) local: IpAddr,
    /// MAC of the VTEP.
    pub(crate) mac: Mac,
}
