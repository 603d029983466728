//! The backends: each one a pure function from this node and a peer to kernel objects. Loop, retry, repair, order and
//! watching exist once, elsewhere; adding a backend is one file here.

pub mod alloc;
pub mod host_gw;
pub mod vxlan;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fields::Fields;
use crate::input::{Config, Family, Underlay, Uplink};
use crate::lease::{Announced, Lease, Vtep};
use crate::{LinkName, Mac};

/// A backend with its options (flannel-compat 2.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    Vxlan(vxlan::Options),
    HostGw,
    Alloc,
}

impl Backend {
    /// Reads the `Backend` object of a network config; `None` means vxlan (flannel's code says udp, its documents
    /// vxlan: flannel-faults 68).
    pub fn parse(value: Option<Value>) -> Result<Self, String> {
        let Some(value) = value else { return Ok(Self::Vxlan(vxlan::Options::default())) };
        let fields = Fields::of(value)?;
        let name: String = fields.get("Type")?.unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "vxlan" => vxlan::Options::parse(&fields).map(Self::Vxlan),
            "host-gw" => Ok(Self::HostGw),
            "alloc" => Ok(Self::Alloc),
            "" => Err("key \"Type\" is missing: write one of vxlan, host-gw, alloc".into()),
            _ => Err(format!(
                "key \"Type\": {name:?} is none of the backends twill has: vxlan, host-gw, alloc"
            )),
        }
    }

    /// The type as it stands in configs, leases and annotations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
        }
    }

    /// Can it work with that uplink? The error says what to do.
    pub fn suits(&self, uplink: &Uplink) -> Result<(), String> {
        if *self == Self::HostGw { host_gw::check(uplink) } else { Ok(()) }
    }

    /// The MTU of pods, bytes: what `FLANNEL_MTU` says.
    pub fn pod_mtu(&self, uplink: &Uplink) -> u32 {
        match self {
            Self::Vxlan(options) => options.pod_mtu(uplink),
            Self::HostGw | Self::Alloc => uplink.mtu,
        }
    }

    /// The devices that this node itself needs; those for peers of other VNIs come on top.
    pub fn devices(&self, config: &Config) -> Vec<LinkName> {
        match self {
            Self::Vxlan(options) => {
                let families = Family::ALL.into_iter().filter(|family| config.network(*family).is_some());
                families.map(|family| options.device_name(family)).collect()
            }
            Self::HostGw | Self::Alloc => Vec::new(),
        }
    }

    /// The MACs of our VTEPs, one a family: the device's if it is there, else the one that peers know from our lease, else
    /// the drawn one. So neither a restart nor a reboot nor the loss of the device changes it.
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

    /// What this node writes into its lease, given all other leases of the store.
    pub fn announced(&self, config: &Config, macs: [Mac; 2], others: &[&Lease]) -> Announced {
        match self {
            Self::HostGw => host_gw::announced(),
            Self::Alloc => alloc::announced(),
            Self::Vxlan(options) => {
                let (vni, port) = (options.vni, options.announced_port(others));
                let vtep = |family, mac| config.network(family).map(|_| Vtep { vni, port, mac });
                Announced::Vxlan { ipv4: vtep(Family::Ipv4, macs[0]), ipv6: vtep(Family::Ipv6, macs[1]) }
            }
        }
    }
}
