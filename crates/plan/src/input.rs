//! All that a plan depends on, as values: configuration, this node, the leases, and what the kernel says of the underlay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::firewall;
use crate::lease::{Lease, Subnet};
use crate::rivals::Contender;
use crate::state::Sysctl;
use crate::subnet_alloc::Range;
use crate::verdict::Verdict;
use crate::{LinkName, Mac};

/// Address family. Dual stack is twice a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// Both, in the order in which everything is planned.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}

/// The network configuration in force, after flags and defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `Network`; `None` when the family is off.
    #[serde(default)]
    pub ipv4: Option<Ipv4Net>,
    /// `IPv6Network`; `None` when the family is off.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// Addresses that pods' subnets are leased from (`SubnetMin` to `SubnetMax`), one range a family; the whole network of
    /// a family that has none here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leasable: Vec<Range>,
    pub backend: Backend,
    /// Routing table of our routes.
    #[serde(default = "main_table")]
    pub table: u32,
    #[serde(default)]
    pub firewall: firewall::Options,
    #[serde(default)]
    pub sysctls: Sysctls,
    /// What is for our own pods and for none that is there is dropped, and never follows the default route.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blackhole: bool,
}

/// How it is seen to that the node's own settings suit a pod network. Those of our own devices are always written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sysctls {
    /// They are written.
    #[default]
    Set,
    /// They are told, each with its command.
    Tell,
}

fn main_table() -> u32 {
    crate::state::MAIN_TABLE
}

impl Config {
    /// The cluster's pod network of that family.
    pub fn network(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpNet::V4),
            Family::Ipv6 => self.ipv6.map(IpNet::V6),
        }
    }

    /// Are there traffic rules to be kept?
    pub fn wants_rules(&self) -> bool {
        let filters = match &self.backend {
            Backend::Vxlan(options) => options.source_filter != firewall::SourceFilter::Off,
            // For peers that are reached by vxlan.
            Backend::HostGw => true,
            Backend::Alloc => false,
        };
        self.firewall.masquerade || self.firewall.forward || filters
    }

    /// Addresses of that family that pods may have. Nodes may have the other ones of the network.
    pub fn pods(&self, family: Family) -> Option<Range> {
        let network = self.network(family)?;
        let leasable = self.leasable.iter().find(|range| Family::of(range.first) == family);
        Some(leasable.copied().unwrap_or_else(|| network.into()))
    }

    /// The pods' addresses of each family that is on.
    pub fn all_pods(&self) -> Vec<Range> {
        Family::ALL.into_iter().filter_map(|family| self.pods(family)).collect()
    }

    /// The pods' addresses, if that one is among them.
    pub fn pods_at(&self, address: IpAddr) -> Option<Range> {
        self.pods(Family::of(address)).filter(|range| range.contains(address))
    }

    /// The pods' addresses, if a node on that network could have one of them.
    pub fn pods_within(&self, network: &IpNet) -> Option<Range> {
        self.pods(Family::of(network.addr())).filter(|range| range.overlaps(network))
    }
}

/// This node: what it announces and where its traffic leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub uplink: Uplink,
    /// Our own pod subnets.
    pub subnet: Subnet,
    /// MAC of `flannel.<VNI>`, for any VNI.
    #[serde(default)]
    pub vtep: Option<Mac>,
    /// MAC of `flannel-v6.<VNI>`.
    #[serde(default)]
    pub vtep_v6: Option<Mac>,
    #[serde(default)]
    pub former: Former,
    /// VNIs that another daemon of this node uses.
    #[serde(default)]
    pub foreign_vnis: Vec<u32>,
    #[serde(default, skip_serializing_if = "FirewallKeeper::is_us")]
    pub firewall_keeper: FirewallKeeper,
    /// Our IPv4 routes go by next hop objects now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_nexthop: bool,
}

/// Owner of flannel's tables and chains for traffic rules, which exist once per node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallKeeper {
    #[default]
    Us,
    /// No rules are asked for, and none were ever ours.
    Nobody,
    /// Another daemon of this node, in words: `another daemon of this node (pid 812)`.
    Other(Box<str>),
    /// The lock is refused, for this reason.
    Unknown(Box<str>),
}

impl FirewallKeeper {
    pub fn is_us(&self) -> bool {
        *self == Self::Us
    }
}

/// What an earlier config or an earlier daemon may have left on this node, to be swept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Former {
    /// Devices of ours.
    pub links: Vec<LinkName>,
    /// Pod networks.
    pub networks: Vec<IpNet>,
    /// Pod subnets of this node.
    pub subnets: Vec<IpNet>,
    /// Routing tables.
    pub tables: Vec<u32>,
    pub writer: Writer,
    /// Traffic rules.
    pub firewall: bool,
}

/// Who has written the routes that an earlier daemon left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writer {
    /// We alone: they carry our protocol number.
    #[default]
    Twill,
    /// Or flannel, whose routes carry none of their own.
    Flannel,
}

/// The external interface and the addresses of ours on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    pub link: LinkName,
    /// Bytes.
    pub mtu: u32,
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Announced in place of the address above, for nodes behind an address translation.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    #[serde(default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// What Kubernetes knows this node by: its InternalIPs, of each family one at most. Empty where nobody says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_ips: Vec<IpAddr>,
}

impl Uplink {
    /// Without any address yet.
    pub fn new(link: LinkName, mtu: u32) -> Self {
        Self { link, mtu, ipv4: None, ipv6: None, public_ip: None, public_ipv6: None, node_ips: Vec::new() }
    }

    /// The address that other nodes reach us by.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        let public = match family {
            Family::Ipv4 => self.public_ip.map(IpAddr::V4),
            Family::Ipv6 => self.public_ipv6.map(IpAddr::V6),
        };
        public.or(self.address(family))
    }

    /// Our underlay address of that family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpAddr::V4),
            Family::Ipv6 => self.ipv6.map(IpAddr::V6),
        }
    }
}

/// What the datastore has told. "Not known yet" is not "none".
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Leases {
    #[default]
    Unknown,
    /// The last list that an earlier run has heard: good enough to reach peers, not to call anything left over.
    Remembered(Vec<Lease>),
    /// All leases of the cluster, our own included, in any order.
    Listed(Vec<Lease>),
}

impl Leases {
    /// Those that peers are reached by.
    pub fn known(&self) -> &[Lease] {
        match self {
            Self::Unknown => &[],
            Self::Remembered(leases) | Self::Listed(leases) => leases,
        }
    }
}

/// What the kernel says of the network below the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Underlay {
    /// All devices, by ascending index.
    pub links: Vec<LinkFacts>,
    /// All addresses, by link index, then in the kernel's order.
    pub addresses: Vec<AddressFacts>,
    /// Unicast routes of the main table that lead elsewhere than to pods, in the kernel's order.
    pub routes: Vec<RouteFacts>,
    /// Of those that our pods' traffic passes.
    pub firewall: firewall::Facts,
    /// Those of the paths in [`Owned::sysctls`](crate::owned::Owned::sysctls) that exist.
    pub sysctls: Vec<Sysctl>,
    /// Where the kernel sends packets of pods.
    #[serde(skip)]
    pub ways: Vec<Way>,
    /// Of the peers that were asked, by subnet.
    pub verdicts: Vec<Verdict>,
    /// Routes to pod subnets that go straight to a node, whoever wrote them.
    pub standing: Vec<DirectRoute>,
    /// Leases of which only one each can be believed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contenders: Vec<Contender>,
}

/// Where the kernel sends a packet of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub packet: firewall::Packet,
    pub answer: WayAnswer,
    /// Policy rule that leads there, as ip-rule(8) shows it; `None` where it is one that every node has.
    pub rule: Option<Box<str>>,
}

/// The kernel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WayAnswer {
    Via {
        link: Option<LinkName>,
        gateway: Option<IpAddr>,
        table: u32,
        /// Of the route, where it is not through the device that is expected.
        destination: Option<IpNet>,
    },
    /// An error number, such as `EHOSTUNREACH`.
    Refused(i32),
}

/// A route through the uplink to a pod subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectRoute {
    pub subnet: IpNet,
    pub next_hop: IpAddr,
}

impl Underlay {
    /// The device of that name.
    pub fn link(&self, name: LinkName) -> Option<&LinkFacts> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The value of a file below `/proc/sys`, if it was read.
    pub fn sysctl(&self, path: &str) -> Option<&str> {
        self.sysctls.iter().find(|row| *row.path == *path).map(|row| &*row.value)
    }
}

/// A device of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkFacts {
    pub name: LinkName,
    /// `IFLA_INFO_KIND`; empty for hardware.
    #[serde(default)]
    pub kind: Box<str>,
    #[serde(default)]
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The kernel sees the other end (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// The device below, such as that of a VLAN (`IFLA_LINK`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<LinkName>,
    /// The bond or bridge that this device is a port of (`IFLA_MASTER`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<LinkName>,
    /// Source address of a vxlan device's outer packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
}

impl Default for LinkFacts {
    /// Hardware without a name to go by: for tests, which set what they are about.
    fn default() -> Self {
        let (name, kind, mac) = (LinkName::numbered("link", 0), Box::default(), Mac::default());
        Self { name, kind, mac, mtu: 1500, up: true, carrier: true, lower: None, master: None, local: None }
    }
}

/// An address of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressFacts {
    pub link: LinkName,
    /// Not masked.
    pub address: IpNet,
    /// Not bound to a DHCP or router advertisement lifetime (`IFA_F_PERMANENT`).
    pub permanent: bool,
    #[serde(default)]
    pub temporary: bool,
    #[serde(default)]
    pub deprecated: bool,
    /// Duplicate address detection has not ended (`IFA_F_TENTATIVE`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tentative: bool,
    /// Duplicate address detection found another machine with it; the kernel does not use it (`IFA_F_DADFAILED`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

impl AddressFacts {
    /// Without a segment: such an address may be at home on lo, whichever device its packets take.
    pub fn is_of_host_alone(&self) -> bool {
        self.address.prefix_len() == self.address.max_prefix_len()
    }

    /// Can traffic through that device start at it?
    pub fn serves(&self, link: LinkName) -> bool {
        self.link == link || self.is_of_host_alone()
    }
}

/// A route of the underlay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteFacts {
    pub destination: IpNet,
    /// `None` when the destination is on the link.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// `None` for a device that has just gone.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// Of equal destinations the one with the smallest metric counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub metric: u32,
    /// What few routes have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<RouteDetails>>,
}

fn is_zero(metric: &u32) -> bool {
    *metric == 0
}

/// What few routes have; a hundred thousand foreign ones shall not take room for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteDetails {
    /// Next hops besides the first one.
    pub more: Vec<NextHop>,
    /// Preferred source address; known of default routes only.
    pub source: Option<IpAddr>,
    /// Bytes; largest packet that goes by the route (`mtu` or `mtu lock` of `ip route`).
    pub mtu: Option<u32>,
}

/// One next hop of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NextHop {
    /// `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// `None` for a device that has just gone.
    pub link: Option<LinkName>,
}

impl RouteFacts {
    /// All next hops, one at least.
    pub fn hops(&self) -> impl Iterator<Item = NextHop> {
        let more = self.details.iter().flat_map(|details| details.more.iter().copied());
        std::iter::once(NextHop { gateway: self.gateway, link: self.link }).chain(more)
    }

    /// The preferred source address.
    pub fn source(&self) -> Option<IpAddr> {
        self.details.as_ref()?.source
    }

    /// Bytes; largest packet that goes by the route, if the route itself says so.
    pub fn mtu(&self) -> Option<u32> {
        self.details.as_ref()?.mtu
    }

    /// True for a default route.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}
