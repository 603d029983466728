//! What on this node is twill's to delete: the only place that knows (ARCHITECTURE.md, invariant 6).
//!
//! A key that we want is ours whatever stands there; this file is about what stands where we want nothing.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::LinkName;
use crate::backend::vxlan;
use crate::firewall::{NftChain, NftChainName, NftTable};
use crate::input::Writer;
use crate::state::{Address, FdbEntry, Link, LinkKind, Neighbour, Nexthop, Route, RoutePath, Rule, State};

/// The `rtm_protocol` of our routes, rules and next hops (docs/wire.md); free in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 84;

/// The `rtm_protocol` of flannel's routes: it names none, and this is what the kernel makes of it (`boot`).
const FLANNELS_PROTOCOL: u8 = 3;

/// Ids of our next hop objects (docs/wire.md).
pub const NEXTHOPS: std::ops::RangeInclusive<u32> = 0x7477_0000..=0x747f_ffff;

/// The bounds of what may be ours; also the bounds of what the kernel is read for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Names of the devices that are ours.
    pub links: Vec<LinkName>,
    /// The device that carries traffic between nodes; never ours, but our routes may lead through it.
    pub uplink: LinkName,
    /// The pod networks of the cluster, at most one a family.
    pub networks: Vec<IpNet>,
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

/// Do routes of ours go by next hop objects there?
pub fn has_nexthops(seen: &State) -> bool {
    seen.nexthops.iter().any(|row| NEXTHOPS.contains(&row.id) && row.protocol == PROTOCOL)
}

impl Owned {
    /// Lies the destination in one of our networks?
    pub fn in_network(&self, destination: &IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(destination))
    }

    /// Or in one that was?
    fn in_any_network(&self, destination: &IpNet) -> bool {
        self.all_networks().any(|network| network.contains(destination))
    }

    /// The networks within which the kernel is read.
    pub fn all_networks(&self) -> impl Iterator<Item = &IpNet> {
        self.networks.iter().chain(&self.former_networks)
    }

    /// The tables of which the kernel is read.
    pub fn all_tables(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.table).chain(self.former_tables.iter().copied())
    }

    fn has_link(&self, name: LinkName) -> bool {
        self.links.contains(&name)
    }

    /// Unless somebody else has put something of his own into it.
    pub(crate) fn nft_table(&self, row: &NftTable, seen: &State) -> bool {
        let mut chains = seen.nft_chains.iter().filter(|chain| chain.family == row.family);
        self.firewall && chains.all(|chain| self.nft_chain(chain))
    }

    pub(crate) fn nft_chain(&self, row: &NftChain) -> bool {
        self.firewall && !matches!(row.chain, NftChainName::Other(_))
    }

    pub(crate) fn link(&self, link: &Link) -> bool {
        self.has_link(link.name) && matches!(link.kind, LinkKind::Vxlan(_))
    }

    /// As flannel: IPv4 addresses inside the network, and on the IPv6 device all but link-local ones
    /// (flannel-compat 6.1).
    pub(crate) fn address(&self, row: &Address) -> bool {
        self.has_link(row.link)
            && match row.address {
                IpNet::V4(_) => self.in_any_network(&row.address),
                IpNet::V6(net) => {
                    row.link.as_str().starts_with(vxlan::IPV6_DEVICE) && !net.addr().is_unicast_link_local()
                }
            }
    }

    pub(crate) fn fdb(&self, row: &FdbEntry) -> bool {
        self.has_link(row.link) && row.unknown.is_none()
    }

    /// Entries that are not permanent come and go by the kernel's own hand.
    pub(crate) fn neighbour(&self, row: &Neighbour) -> bool {
        self.has_link(row.link) && row.unknown.is_none()
    }

    pub(crate) fn nexthop(&self, row: &Nexthop) -> bool {
        NEXTHOPS.contains(&row.id) && row.protocol == PROTOCOL
    }

    pub(crate) fn route(&self, row: &Route) -> bool {
        let ours = |link| link == self.uplink || self.has_link(link);
        self.all_tables().any(|table| table == row.table)
            && self.in_any_network(&row.destination)
            && (row.metric == 0 || row.path == RoutePath::Blackhole)
            && match (row.protocol, row.path) {
                (FLANNELS_PROTOCOL, _) => self.is_flannels(row),
                (PROTOCOL, RoutePath::Via { link, .. } | RoutePath::Link(link)) => ours(link),
                (PROTOCOL, RoutePath::Nexthop(id)) => NEXTHOPS.contains(&id),
                (PROTOCOL, RoutePath::Unreachable | RoutePath::Blackhole) => true,
                _ => false,
            }
    }

    /// By the subnet's own first address, as nobody else leads a route (flannel-compat 6.1), or the blackhole of our own subnet
    /// (7.4). One through the uplink stands at the key of a peer that we want, or may be anybody's.
    fn is_flannels(&self, row: &Route) -> bool {
        self.former_writer == Writer::Flannel
            && match row.path {
                RoutePath::Via { gateway, link, onlink: true } => {
                    self.has_link(link) && gateway == row.destination.addr()
                }
                RoutePath::Blackhole => row.metric == 0 && self.own_subnets.contains(&row.destination),
                _ => false,
            }
    }

    /// Looks like flannel's, inside our networks, and is not known to be.
    pub(crate) fn resembles_flannels(&self, row: &Route) -> bool {
        let through_ours = |link| link == self.uplink || self.has_link(link);
        row.protocol == FLANNELS_PROTOCOL
            && match row.path {
                RoutePath::Via { link, .. } => through_ours(link),
                RoutePath::Blackhole => row.metric == 0,
                _ => false,
            }
            && !self.route(row)
    }

    pub(crate) fn rule(&self, row: &Rule) -> bool {
        row.protocol == PROTOCOL && self.in_any_network(&row.to)
    }
}
