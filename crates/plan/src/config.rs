//! Network configuration in force on this node, after flags and defaults. `netconf` reads the cluster's part of it.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, SourceFilter};
use crate::family::Family;
use crate::node::Uplink;
use crate::range::Range;
use crate::state::MAIN_TABLE;

/// Network configuration in force, after flags and defaults.
///
/// ```json
/// {"ipv4": "10.244.0.0/16", "backend": {"vxlan": {"vni": 1, "port": 8472, "direct": "never"}}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `Network`; `None` if IPv4 is off.
    #[serde(default)]
    pub ipv4: Option<Ipv4Net>,
    /// `IPv6Network`; `None` if IPv6 is off.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// Addresses from which pod subnets are leased (`SubnetMin` to `SubnetMax`), one range per family. A family without a
    /// range uses its whole network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leasable: Vec<Range>,
    pub backend: Backend,
    /// Routing table of our routes.
    #[serde(default = "main_table")]
    pub table: u32,
    #[serde(default)]
    pub firewall: FirewallOptions,
    #[serde(default)]
    pub sysctls: SysctlPolicy,
    /// True if packets for our own pods that no pod accepts are dropped. Without it they follow the default route.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blackhole: bool,
}

/// Handling of sysctls of this node that a pod network needs. Sysctls of our own devices are always written, except
/// `rp_filter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SysctlPolicy {
    /// Writes the values.
    #[default]
    Set,
    /// Reports the values, each with the command that sets it.
    #[serde(rename = "tell")]
    Report,
}

/// Options for traffic rules, from flags and the network config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirewallOptions {
    /// `EnableNFTables`; `None` if the config does not have the key.
    pub nftables: Option<bool>,
    /// `--ip-masq`
    pub masquerade: bool,
    /// `--iptables-forward-rules`
    pub forward: bool,
    /// True if masquerading draws source ports fully at random: `--ip-masq-fully-random-disable` is not given.
    pub fully_random: bool,
}

fn main_table() -> u32 {
    MAIN_TABLE
}

impl Config {
    /// Returns a config without networks and options, with routes in the main table.
    pub fn new(backend: Backend) -> Self {
        Self {
            ipv4: None,
            ipv6: None,
            leasable: Vec::new(),
            backend,
            table: main_table(),
            firewall: FirewallOptions::default(),
            sysctls: SysctlPolicy::default(),
            blackhole: false,
        }
    }

    /// Returns the config without a family that our tunnel cannot carry over the uplink, provided that another family is
    /// left.
    pub fn carried(&self, uplink: &Uplink) -> Self {
        let Some(tunnel) = self.backend.tunnel() else { return self.clone() };
        let wide = |family| self.network(family).is_some() && tunnel.narrow(family, uplink).is_none();
        let [ipv4, ipv6] = Family::ALL.map(wide);
        if !(ipv4 || ipv6) {
            return self.clone();
        }
        Self { ipv4: self.ipv4.filter(|_| ipv4), ipv6: self.ipv6.filter(|_| ipv6), ..self.clone() }
    }

    /// Returns the cluster's pod network of the family.
    pub fn network(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpNet::V4),
            Family::Ipv6 => self.ipv6.map(IpNet::V6),
        }
    }

    /// Iterates over the families that are on.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(|family| self.network(*family).is_some())
    }

    /// Iterates over the cluster's pod networks, at most one per family.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        Family::ALL.into_iter().filter_map(|family| self.network(family))
    }

    /// Returns true if this daemon has traffic rules to keep.
    pub fn wants_rules(&self) -> bool {
        let filters = self.backend.source_filter() != SourceFilter::Off;
        self.firewall.masquerade || self.firewall.forward || filters
    }

    /// Returns the addresses of the family that pods may have. Nodes may have the other addresses of the network.
    pub fn pods(&self, family: Family) -> Option<Range> {
        let network = self.network(family)?;
        let leasable = self.leasable.iter().find(|range| Family::of(range.first) == family);
        Some(leasable.copied().unwrap_or_else(|| network.into()))
    }

    /// Returns the pods' addresses of each family that is on.
    pub fn all_pods(&self) -> Vec<Range> {
        Family::ALL.into_iter().filter_map(|family| self.pods(family)).collect()
    }

    /// Returns the pods' addresses of the family if `address` is one of them.
    pub fn pods_at(&self, address: IpAddr) -> Option<Range> {
        self.pods(Family::of(address)).filter(|range| range.contains(address))
    }

    /// Returns the pods' addresses of the family if a node on `network` could have one of them.
    pub fn pods_within(&self, network: &IpNet) -> Option<Range> {
        self.pods(Family::of(network.addr())).filter(|range| range.overlaps(network))
    }
}
