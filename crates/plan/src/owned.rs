//! Bounds of the objects on this node that may be twill's. Within them each kind decides which rows may be deleted
//! ([`Kind::is_ours`](crate::state::Kind::is_ours)).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::name::LinkName;
use crate::passage::{Packet, Passage};
use crate::range::Range;
use crate::tunnel_id::TunnelId;

/// Bounds of the objects that may be ours. The kernel is read within the same bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Names of our devices.
    pub links: Vec<LinkName>,
    /// Tunnels that may have a device of ours.
    #[serde(default)]
    pub tunnels: Vec<TunnelId>,
    /// Device that carries traffic between nodes. It is never ours, but our routes may lead through it.
    pub uplink: LinkName,
    /// Pod networks of the cluster, at most one per family.
    pub networks: Vec<IpNet>,
    /// Addresses that pods may have, one range per family. A family without a range uses its whole network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<Range>,
    /// Our own pod subnets, including those of an earlier run: flannel's blackhole routes lead there.
    #[serde(default)]
    pub own_subnets: Vec<IpNet>,
    /// Pod networks of earlier configs, in which nothing is desired any more.
    #[serde(default)]
    pub former_networks: Vec<IpNet>,
    /// Writer of the routes that an earlier daemon left: twill alone, or flannel too.
    #[serde(default)]
    pub former_writer: Writer,
    /// Routing table of our routes.
    pub table: u32,
    /// Routing tables that held our routes before. The main table is one of them if it now holds only the blackhole
    /// route.
    #[serde(default)]
    pub former_tables: Vec<u32>,
    /// True if this daemon keeps flannel's tables and chains of nftables and iptables, which exist once per node.
    #[serde(default)]
    pub firewall: bool,
    /// Sample traffic of pods, by which the traffic rules of other programs are judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passages: Vec<Passage>,
    /// Sample of tunnel packets and echoes between this node and peers, by which the same rules are judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between_nodes: Vec<Packet>,
    /// Sample traffic with peers that were found faulty. The kernel is also asked where it sends this traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faulty: Vec<Passage>,
    /// Paths below `/proc/sys` that we write or that the plan depends on.
    pub sysctls: Vec<Box<str>>,
    /// Permission to delete left-overs.
    pub sweep: Sweep,
}

/// Daemon that may have written objects of the kernel, such as the routes that an earlier daemon left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writer {
    /// Twill alone: its routes carry our protocol number.
    #[default]
    Twill,
    /// Twill or flannel, whose routes carry no protocol number of their own.
    Flannel,
}

/// Permission to delete left-overs, which needs the complete list of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sweep {
    /// Nothing is deleted, because the leases were never listed or the uplink is not ready. A left-over row may be a
    /// peer's.
    NotYet,
    /// Left-overs are deleted: the list of leases is complete.
    LeftOvers,
}

impl Owned {
    /// Returns bounds that hold nothing yet, for routes in `table` through `uplink`.
    pub fn new(uplink: LinkName, table: u32) -> Self {
        Self {
            links: Vec::new(),
            tunnels: Vec::new(),
            uplink,
            networks: Vec::new(),
            pods: Vec::new(),
            own_subnets: Vec::new(),
            former_networks: Vec::new(),
            former_writer: Writer::default(),
            table,
            former_tables: Vec::new(),
            firewall: false,
            passages: Vec::new(),
            between_nodes: Vec::new(),
            faulty: Vec::new(),
            sysctls: Vec::new(),
            sweep: Sweep::NotYet,
        }
    }

    /// Returns true if the destination lies in one of our networks.
    pub fn in_network(&self, destination: &IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(destination))
    }

    /// Returns true if the destination lies in one of our networks, current or former.
    pub(crate) fn in_any_network(&self, destination: &IpNet) -> bool {
        self.all_networks().any(|network| network.contains(destination))
    }

    /// Returns true if pods could have an address of the destination. Other parts of a network may belong to the nodes,
    /// and routes there are the underlay's.
    pub(crate) fn is_pods(&self, destination: &IpNet) -> bool {
        let family = Family::of(destination.addr());
        let former = self.former_networks.iter().any(|network| network.contains(destination));
        match self.pods.iter().find(|range| Family::of(range.first) == family) {
            Some(range) => former || range.overlaps(destination),
            None => self.in_any_network(destination),
        }
    }

    /// Iterates over the networks within which the kernel is read, current and former.
    pub fn all_networks(&self) -> impl Iterator<Item = &IpNet> {
        self.networks.iter().chain(&self.former_networks)
    }

    /// Iterates over the routing tables that are read, current and former.
    pub fn all_tables(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.table).chain(self.former_tables.iter().copied())
    }

    /// Returns true if the device of that name is ours.
    pub(crate) fn has_link(&self, name: LinkName) -> bool {
        self.links.contains(&name)
    }
}
