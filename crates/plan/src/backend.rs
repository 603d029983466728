//! Backends, as pure functions from this node and a peer to kernel objects. The loop, retries, repair, the order of ops
//! and watching exist once, elsewhere.

pub mod alloc;
pub mod host_gw;
mod tunnel;
pub mod vxlan;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::fields::Fields;
use crate::input::{Config, Family, Underlay, Uplink};
use crate::lease::{Announced, Lease, Vtep};
use crate::{LinkName, Mac};
pub use tunnel::TunnelKind;
use vxlan::Direct;

/// Backend with its options (flannel-compat 2.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    Vxlan(vxlan::Options),
    HostGw,
    Alloc,
}

/// Returns the name of the backend by which a peer with that tunnel is reached; without a tunnel it is host-gw.
pub fn name_of(tunnel: Option<TunnelKind>) -> &'static str {
    tunnel.map_or(Backend::HostGw.name(), TunnelKind::label)
}

/// Parses a type's name in any case; the backend has default options. The error lists the names.
impl FromStr for Backend {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "vxlan" => Ok(Self::Vxlan(vxlan::Options::default())),
            "auto" => Ok(Self::Vxlan(vxlan::Options { direct: Direct::Verified, ..Default::default() })),
            "host-gw" => Ok(Self::HostGw),
            "alloc" => Ok(Self::Alloc),
            _ => Err("none of the backends twill has: vxlan, auto, host-gw, alloc".into()),
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
    /// Reads the `Backend` object of a network config; `None` means vxlan. (flannel's code takes udp, its documents say
    /// vxlan: flannel-faults 68.) A backend that is `imposed` replaces an object of another type, even an invalid one.
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
                Self::Vxlan(vxlan::Options::parse(&fields, named.direct)?)
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
                Self::Vxlan(vxlan::Options { direct: own.direct.max(imposed.direct), ..own })
            }
            (own, Some(imposed)) if own.name() != imposed.name() => imposed.clone(),
            (own, _) => own,
        }
    }

    /// Returns the backend of the object's type, with default options.
    fn named(fields: Option<&Fields>) -> Result<Self, String> {
        let Some(fields) = fields else { return Ok(Self::Vxlan(vxlan::Options::default())) };
        match fields.get::<String>("Type")?.filter(|name| !name.is_empty()) {
            Some(name) => name.parse().map_err(|error| format!("key \"Type\": {name:?} is {error}")),
            None => Err("key \"Type\" is missing: write one of vxlan, auto, host-gw, alloc".into()),
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

    /// Returns which peers on the uplink's segment are reached without a tunnel though they announce one.
    pub fn direct(&self) -> Direct {
        if let Self::Vxlan(options) = self { options.direct } else { Direct::Never }
    }

    /// Checks that the backend can work with that uplink. The error says what to do.
    pub fn suits(&self, uplink: &Uplink) -> Result<(), String> {
        if *self == Self::HostGw { host_gw::check(uplink) } else { Ok(()) }
    }

    /// Returns the MTU of pods in bytes, which `FLANNEL_MTU` names.
    pub fn pod_mtu(&self, uplink: &Uplink) -> u32 {
        match self {
            Self::Vxlan(options) => options.pod_mtu(uplink),
            Self::HostGw | Self::Alloc => uplink.mtu,
        }
    }

    /// Returns the UDP port to which peers send; `None` without VXLAN.
    pub fn port(&self) -> Option<u16> {
        if let Self::Vxlan(options) = self { Some(options.port) } else { None }
    }

    /// Returns the VNI that a peer means if its lease names none: ours, or flannel's default if we have none.
    pub fn vni(&self) -> u32 {
        if let Self::Vxlan(options) = self { options.vni } else { vxlan::DEFAULT_VNI }
    }

    /// Returns the devices that this node itself needs. Devices for peers of other VNIs come on top.
    pub fn devices(&self, config: &Config) -> Vec<LinkName> {
        match self {
            Self::Vxlan(options) => config.families().map(|family| options.device_name(family)).collect(),
            Self::HostGw | Self::Alloc => Vec::new(),
        }
    }

    /// Returns the MACs of our VTEPs, one per family. It is the device's MAC, else the one in our lease, else the drawn
    /// one. So neither a restart, nor a reboot, nor the loss of the device changes it.
    pub fn macs(&self, held: Option<&Lease>, underlay: &Underlay, drawn: [Mac; 2]) -> [Mac; 2] {
        let leased = held.map_or([None; 2], |lease| lease.announced.macs());
        let device = |family| {
            let Self::Vxlan(options) = self else { return None };
            underlay
                .link(options.device_name(family))
                .filter(|link| &*link.kind == "vxlan")
                .map(|link| link.mac)
        };
        let mac = |family, leased: Option<Mac>, drawn| {
            device(family).or(leased).filter(|mac| mac.is_unicast()).unwrap_or(drawn)
        };
        [mac(Family::Ipv4, leased[0], drawn[0]), mac(Family::Ipv6, leased[1], drawn[1])]
    }

    /// Returns the backend data for this node's lease, given all other leases of the store.
    pub fn announced(&self, config: &Config, macs: [Mac; 2], others: &[&Lease]) -> Announced {
        match self {
            Self::HostGw => host_gw::announced(),
            Self::Alloc => alloc::announced(),
            Self::Vxlan(options) => {
                let vni = Some(options.vni).filter(|&vni| vni != 0);
                let port = options.announced_port(others);
                let vtep = |family, mac| config.network(family).map(|_| Vtep { vni, port, mac });
                Announced::Vxlan { ipv4: vtep(Family::Ipv4, macs[0]), ipv6: vtep(Family::Ipv6, macs[1]) }
            }
        }
    }
}
