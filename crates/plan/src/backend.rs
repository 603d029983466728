//! Backends, as pure functions from this node and a peer to kernel objects. The loop, retries, repair, the order of ops
//! and watching exist once, elsewhere.

pub mod host_gw;
mod tunnel;
pub mod vxlan;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::family::Family;
use crate::fields::Fields;
use crate::mac::Mac;
use crate::name::LinkName;
use crate::node::Uplink;
use crate::tunnel_id::{TunnelId, TunnelKind};
use crate::underlay::Underlay;
use tunnel::Properties;
pub use tunnel::{Direct, SourceFilter, left_devices, standing};
pub(crate) use tunnel::{Encapsulation, End, Endpoint, Narrow, least_mtu, may_be_ours};
use vxlan::{Vtep, VxlanOptions};

/// Backend with its options (flannel-compat 2.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    Vxlan(VxlanOptions),
    HostGw,
    /// Lease and nothing else: the administrator provides the paths to other nodes' pods (flannel-compat 6.7).
    Alloc,
}

/// Backend of a config that names none. (flannel's code takes udp, its documents say vxlan: flannel-faults 68.)
impl Default for Backend {
    fn default() -> Self {
        Self::Vxlan(VxlanOptions::default())
    }
}

/// Types that a config, a flag or an annotation may name.
const TYPES: &str = "vxlan, auto, host-gw, alloc";

/// Returns the name of the backend that reaches a peer with that tunnel; without a tunnel it is host-gw.
pub fn name_of(tunnel: Option<TunnelKind>) -> &'static str {
    tunnel.map_or(Backend::HostGw.name(), TunnelKind::label)
}

/// Returns what no option changes about tunnels of that kind.
fn properties(kind: TunnelKind) -> &'static Properties {
    match kind {
        TunnelKind::Vxlan => &vxlan::PROPERTIES,
    }
}

/// Parses a type's name in any case; the backend has default options. The error lists the names.
impl FromStr for Backend {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "vxlan" => Ok(Self::default()),
            "auto" => Ok(Self::Vxlan(VxlanOptions { direct: Direct::Verified, ..Default::default() })),
            "host-gw" => Ok(Self::HostGw),
            "alloc" => Ok(Self::Alloc),
            _ => Err(format!("none of the backends twill has: {TYPES}")),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        f.write_str(self.direct().words())
    }
}

impl Backend {
    /// Reads the `Backend` object of a network config; `None` means the default. A backend that is `imposed` replaces an
    /// object of another type, even an invalid one.
    pub fn parse(value: Option<&RawValue>, imposed: Option<&Self>) -> Result<Self, String> {
        let fields = value.map(Fields::of).transpose();
        let named = fields.as_ref().map_err(Clone::clone).and_then(|fields| Self::named(fields.as_ref()));
        let name = named.as_ref().ok().map(Self::name);
        let backend = match imposed {
            Some(imposed) if name != Some(imposed.name()) => return Ok(imposed.clone()),
            _ => named?,
        };
        let backend = match (backend, fields) {
            (Self::Vxlan(named), Ok(Some(fields))) => {
                Self::Vxlan(VxlanOptions::parse(&fields, named.direct)?)
            }
            (backend, _) => backend,
        };
        Ok(backend.imposing(imposed))
    }

    /// Returns the backend of a node on which a type is imposed. `vxlan` and `auto` are one type, so the options count
    /// for both. An imposed `auto` adds direct routing where it is verified.
    pub fn imposing(self, imposed: Option<&Self>) -> Self {
        match (self, imposed) {
            (Self::Vxlan(own), Some(Self::Vxlan(imposed))) => {
                Self::Vxlan(VxlanOptions { direct: own.direct.max(imposed.direct), ..own })
            }
            (own, Some(imposed)) if own.name() != imposed.name() => imposed.clone(),
            (own, _) => own,
        }
    }

    /// Returns the backend of the object's type, with default options.
    fn named(fields: Option<&Fields>) -> Result<Self, String> {
        let Some(fields) = fields else { return Ok(Self::default()) };
        match fields.get::<String>("Type")?.filter(|name| !name.is_empty()) {
            Some(name) => name.parse().map_err(|error| format!("key \"Type\": {name:?} is {error}")),
            None => Err(format!("key \"Type\" is missing: write one of {TYPES}")),
        }
    }

    /// Returns the type's name as in configs, leases and annotations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
        }
    }

    /// Returns the tunnel that this node offers; `None` without one.
    pub(crate) fn tunnel(&self) -> Option<Encapsulation> {
        match self {
            Self::Vxlan(options) => Some(options.encapsulation()),
            Self::HostGw | Self::Alloc => None,
        }
    }

    /// Returns the number of our tunnel, of which one daemon of this node can have the devices.
    pub fn tunnel_id(&self) -> Option<TunnelId> {
        self.tunnel().map(|tunnel| tunnel.id)
    }

    /// Returns which peers on the uplink's segment are reached without a tunnel though they announce one.
    pub fn direct(&self) -> Direct {
        self.tunnel().map_or(Direct::Never, |tunnel| tunnel.direct)
    }

    /// Returns true if this backend reaches peers at all.
    pub fn reaches_peers(&self) -> bool {
        *self != Self::Alloc
    }

    /// Returns true if peers that announce this backend are reached without a tunnel or not at all.
    pub(crate) fn is_direct_only(&self) -> bool {
        *self == Self::HostGw
    }

    /// Returns true if a peer that announces this backend may be reached without a tunnel.
    pub(crate) fn may_be_direct(&self) -> bool {
        self.is_direct_only() || self.direct() != Direct::Never
    }

    /// Returns the treatment of tunnel packets from unknown senders. Peers that announce a tunnel get a device even on a
    /// host-gw node.
    pub(crate) fn source_filter(&self) -> SourceFilter {
        let without_tunnel = if self.reaches_peers() { SourceFilter::default() } else { SourceFilter::Off };
        self.tunnel().map_or(without_tunnel, |tunnel| tunnel.source_filter)
    }

    /// Checks that the backend can work with that uplink. The error says what to do.
    pub fn suits(&self, uplink: &Uplink) -> Result<(), String> {
        if *self == Self::HostGw { host_gw::check(uplink) } else { Ok(()) }
    }

    /// Checks that the devices' names are no longer than the kernel allows. The error names the key.
    pub(crate) fn check_device_names(&self, ipv6: bool) -> Result<(), String> {
        let Some(TunnelId { kind, number }) = self.tunnel_id() else { return Ok(()) };
        let (key, most) = (kind.number(), kind.largest(ipv6));
        if number <= most {
            return Ok(());
        }
        Err(format!(
            "key {key:?}: a device name with {number} has more than 15 characters: use at most {most}"
        ))
    }

    /// Returns the MTU of pods in bytes, which `FLANNEL_MTU` names.
    pub fn pod_mtu(&self, uplink: &Uplink) -> u32 {
        self.tunnel().map_or(uplink.mtu, |tunnel| tunnel.pod_mtu(uplink))
    }

    /// Returns the UDP port to which peers send; `None` without a tunnel over UDP.
    pub fn port(&self) -> Option<u16> {
        self.tunnel()?.port
    }

    /// Returns the devices that this node itself needs. Devices for peers of other numbers come on top.
    pub fn devices(&self, families: impl Iterator<Item = Family>) -> Vec<LinkName> {
        let Some(tunnel) = self.tunnel() else { return Vec::new() };
        families.map(|family| tunnel.device_name(family)).collect()
    }

    /// Returns the MACs of our tunnel's devices, one per family. It is the device's MAC, else the one in the lease that we
    /// hold, else the drawn one. So neither a restart, nor a reboot, nor the loss of the device changes it.
    pub fn macs(&self, held: Option<&Announced>, underlay: &Underlay, drawn: [Mac; 2]) -> [Mac; 2] {
        let leased = held.map_or([None; 2], Announced::macs);
        let device = |family| {
            let link = underlay.link(self.tunnel_id()?.device(family));
            link.filter(|link| may_be_ours(link)).map(|link| link.mac)
        };
        let mac = |family, leased: Option<Mac>, drawn| {
            device(family).or(leased).filter(|mac| mac.is_unicast()).unwrap_or(drawn)
        };
        [mac(Family::Ipv4, leased[0], drawn[0]), mac(Family::Ipv6, leased[1], drawn[1])]
    }

    /// Returns the backend data for this node's lease, given all other leases of the store.
    pub fn announced<'a>(
        &self,
        families: impl Iterator<Item = Family>,
        macs: [Mac; 2],
        others: impl Iterator<Item = &'a Announced> + Clone,
    ) -> Announced {
        match self {
            Self::HostGw => Announced::HostGw,
            Self::Alloc => Announced::Nothing,
            Self::Vxlan(options) => {
                let others = others.flat_map(Announced::vteps);
                let mut vteps = [None; 2];
                for family in families {
                    let at = family as usize;
                    vteps[at] = Some(options.vtep(macs[at], others.clone()));
                }
                Announced::Vxlan { ipv4: vteps[0], ipv6: vteps[1] }
            }
        }
    }

    /// Returns the backend by which a peer is reached: the one that it announces, with our options. `None` if this node
    /// has no use for it.
    pub(crate) fn towards(&self, peer: &Announced, family: Family) -> Option<Self> {
        match peer {
            Announced::Vxlan { .. } => {
                let vni = peer.end(family, self).map_or(self.vni(), |end| end.id.number);
                let ours = if let Self::Vxlan(options) = self { *options } else { Default::default() };
                Some(Self::Vxlan(VxlanOptions { vni, ..ours }))
            }
            Announced::HostGw => Some(Self::HostGw),
            Announced::Nothing | Announced::Other(_) => None,
        }
    }

    /// Returns the VNI that a peer means if its lease names none: ours, or flannel's default if we have none.
    fn vni(&self) -> u32 {
        if let Self::Vxlan(options) = self { options.vni } else { vxlan::DEFAULT_VNI }
    }
}

/// Backend type of a lease, with its data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Announced {
    Vxlan {
        ipv4: Option<Vtep>,
        ipv6: Option<Vtep>,
    },
    HostGw,
    /// No `BackendType`, as with alloc and udp.
    Nothing,
    /// Backend type for which this node has no use, by its name.
    Other(Box<str>),
}

impl Announced {
    /// Returns the variant of a `BackendType` in lower case, without data.
    pub(crate) fn of_type(name: &str) -> Self {
        match name {
            "vxlan" => Self::Vxlan { ipv4: None, ipv6: None },
            "host-gw" => Self::HostGw,
            "" => Self::Nothing,
            other => Self::Other(other.into()),
        }
    }

    /// Returns `BackendType`; empty if none is written.
    pub fn backend_type(&self) -> &str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::HostGw => "host-gw",
            Self::Nothing => "",
            Self::Other(name) => name,
        }
    }

    /// Reads the data of one family from that key of a lease. The error names the key.
    pub(crate) fn read(&mut self, family: Family, lease: &Fields, key: &str) -> Result<(), String> {
        let Self::Vxlan { ipv4, ipv6 } = self else { return Ok(()) };
        let Some(data) = lease.raw(key) else { return Ok(()) };
        let data = Fields::of(data).map_err(|error| format!("key {key:?}: {error}"))?;
        let vtep = if family == Family::Ipv4 { ipv4 } else { ipv6 };
        *vtep = Vtep::parse(&data).map_err(|error| format!("{key}: {error}"))?;
        Ok(())
    }

    /// Returns the data of one family as flannel writes it; `None` if there is none.
    pub(crate) fn data(&self, family: Family) -> Option<Box<RawValue>> {
        serde_json::value::to_raw_value(&self.vtep(family)?).ok()
    }

    /// Returns the end of the peer's tunnel for a reader with the backend `own`; `None` if it announces none.
    pub(crate) fn end(&self, family: Family, own: &Backend) -> Option<End> {
        self.vtep(family).map(|vtep| vtep.end(own.vni()))
    }

    /// Returns the tunnels that a reader with the backend `own` needs for this lease, at most one per family.
    pub fn tunnels(&self, own: &Backend) -> impl Iterator<Item = TunnelId> {
        Family::ALL.into_iter().filter_map(|family| self.end(family, own)).map(|end| end.id)
    }

    /// Returns the MACs of the tunnel's devices, for IPv4 and for IPv6.
    pub fn macs(&self) -> [Option<Mac>; 2] {
        Family::ALL.map(|family| self.vtep(family).map(|vtep| vtep.mac))
    }

    /// Returns the same data with a default port named, or left out, as in `other`. Both forms mean the same.
    pub fn spelled_as(&self, other: &Self) -> Self {
        match (self, other.vteps().next()) {
            (&Self::Vxlan { ipv4, ipv6 }, Some(other)) => {
                let [ipv4, ipv6] = [ipv4, ipv6].map(|vtep| vtep.map(|vtep| vtep.spelled_as(other)));
                Self::Vxlan { ipv4, ipv6 }
            }
            _ => self.clone(),
        }
    }

    /// Returns the VTEPs, at most one per family.
    pub fn vteps(&self) -> impl Iterator<Item = Vtep> + Clone + use<'_> {
        Family::ALL.into_iter().filter_map(|family| self.vtep(family))
    }

    fn vtep(&self, family: Family) -> Option<Vtep> {
        let Self::Vxlan { ipv4, ipv6 } = *self else { return None };
        if family == Family::Ipv4 { ipv4 } else { ipv6 }
    }
}
