//! The bounds of what on this node may be twill's. Which rows inside them are ours to delete each kind says itself
//! ([`Kind::is_ours`](crate::Kind::is_ours)).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::LinkName;
use crate::firewall::Passage;
use crate::input::{Family, Writer};
use crate::subnet_alloc::Range;

pub use crate::marks::{NEXTHOPS, PROTOCOL};

/// The bounds of what may be ours; also the bounds of what the kernel is read for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Names of the devices that are ours.
    pub links: Vec<LinkName>,
    /// The device that carries traffic between nodes; never ours, but our routes may lead through it.
    pub uplink: LinkName,
    /// The pod networks of the cluster, at most one a family.
    pub networks: Vec<IpNet>,
    /// Addresses that pods may have, one range a family; the whole network of a family that has none here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<Range>,
    /// Our own pod subnets, those of an earlier run too: flannel's blackhole routes lead there.
    #[serde(default)]
    pub own_subnets: Vec<IpNet>,
    /// Those of earlier configs: nothing is wanted there any more.
    #[serde(default)]
    pub former_networks: Vec<IpNet>,
    /// Whose routes are left over: ours, or flannel's too.
    #[serde(default)]
    pub former_writer: Writer,
    /// The table our routes are in.
    pub table: u32,
    /// Those that they were in, and the main one where only the blackhole is there.
    #[serde(default)]
    pub former_tables: Vec<u32>,
    /// Are flannel's tables and chains of nftables and iptables ours, or another daemon's of this node?
    #[serde(default)]
    pub firewall: bool,
    /// Traffic of pods by which rules for traffic are judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passages: Vec<Passage>,
    /// Traffic with peers that were found faulty: the kernel is asked where it sends theirs, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faulty: Vec<Passage>,
    /// Paths below `/proc/sys` that we set or plan by.
    pub sysctls: Vec<Box<str>>,
    /// May anything be deleted yet?
    pub sweep: Sweep,
}

/// Whether the peers are known, and with them what is left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sweep {
    /// The leases were never listed: what looks left over may be a peer's. Nothing is deleted.
    NotYet,
    /// The list is complete.
    LeftOvers,
}

impl Owned {
    /// Lies the destination in one of our networks?
    pub fn in_network(&self, destination: &IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(destination))
    }

    /// Whether the destination lies in one of our networks or of our former ones.
    pub(crate) fn in_any_network(&self, destination: &IpNet) -> bool {
        self.all_networks().any(|network| network.contains(destination))
    }

    /// Could pods have an address of that destination? Other parts of a network may be the nodes' own, and routes there
    /// are the underlay's.
    pub(crate) fn is_pods(&self, destination: &IpNet) -> bool {
        let family = Family::of(destination.addr());
        let former = self.former_networks.iter().any(|network| network.contains(destination));
        match self.pods.iter().find(|range| Family::of(range.first) == family) {
            Some(range) => former || range.overlaps(destination),
            None => self.in_any_network(destination),
        }
    }

    /// The networks within which the kernel is read.
    pub fn all_networks(&self) -> impl Iterator<Item = &IpNet> {
        self.networks.iter().chain(&self.former_networks)
    }

    /// The tables of which the kernel is read.
    pub fn all_tables(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.table).chain(self.former_tables.iter().copied())
    }

    /// Whether a device of that name is ours.
    pub(crate) fn has_link(&self, name: LinkName) -> bool {
        self.links.contains(&name)
    }
}
