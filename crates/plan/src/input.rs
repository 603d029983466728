//! Inputs of a plan, as values: configuration, this node, the leases, and the state of the underlay.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, TunnelId};
use crate::firewall;
use crate::lease::{Lease, Subnet};
use crate::state::Sysctl;
use crate::subnet_alloc::Range;
use crate::{LinkName, Mac};

/// Address family. A dual-stack node handles each family for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// Both families, in the order in which everything is planned.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

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
    pub firewall: firewall::Options,
    #[serde(default)]
    pub sysctls: Sysctls,
    /// True if packets for our own pods that no pod accepts are dropped. Without it they follow the default route.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blackhole: bool,
}

/// Handling of sysctls of this node that a pod network needs. Sysctls of our own devices are always written, except
/// `rp_filter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sysctls {
    /// Writes the values.
    #[default]
    Set,
    /// Reports the values, each with the command that sets it.
    Tell,
}

fn main_table() -> u32 {
    crate::state::MAIN_TABLE
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
            firewall: firewall::Options::default(),
            sysctls: Sysctls::default(),
            blackhole: false,
        }
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
        let filters = self.backend.source_filter() != firewall::SourceFilter::Off;
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

/// Configuration of this node: what it announces and where its traffic leaves.
///
/// ```json
/// {"uplink": {"link": "eth0", "mtu": 1500, "ipv4": "192.0.2.1"},
///  "subnet": {"ipv4": "10.244.1.0/24"}, "vtep": "02:00:00:00:00:01"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub uplink: Uplink,
    /// Our own pod subnets.
    pub subnet: Subnet,
    /// MAC of `flannel.<VNI>`, whatever the VNI.
    #[serde(default)]
    pub vtep: Option<Mac>,
    /// MAC of `flannel-v6.<VNI>`, whatever the VNI.
    #[serde(default)]
    pub vtep_v6: Option<Mac>,
}

impl Node {
    /// Returns a node without MACs for tunnels.
    pub fn new(uplink: Uplink, subnet: Subnet) -> Self {
        Self { uplink, subnet, vtep: None, vtep_v6: None }
    }
}

/// Other daemons of this node, and what they hold that exists once per node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtherDaemons {
    /// Tunnels that they have the devices of.
    pub tunnels: Vec<TunnelId>,
    /// Owner of the traffic rules: another daemon, or this one.
    pub firewall: FirewallKeeper,
}

/// Owner of flannel's tables and chains for traffic rules, which exist once per node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallKeeper {
    #[default]
    Us,
    /// No daemon: none of our rules is configured, and none ever was.
    Nobody,
    /// Name of another daemon of this node: `another daemon of this node (pid 812)`.
    Other(Box<str>),
    /// Unknown owner: locking the rules failed, for this reason.
    Unknown(Box<str>),
}

impl FirewallKeeper {
    pub fn is_us(&self) -> bool {
        *self == Self::Us
    }
}

/// Left-overs that an earlier config or an earlier daemon may have on this node, and that are deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Former {
    /// Our devices.
    pub links: Vec<LinkName>,
    /// Pod networks.
    pub networks: Vec<IpNet>,
    /// Pod subnets of this node.
    pub subnets: Vec<IpNet>,
    /// Routing tables.
    pub tables: Vec<u32>,
    pub writer: Writer,
    /// True if traffic rules may be left.
    pub firewall: bool,
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

/// External interface and our addresses on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    pub link: LinkName,
    /// MTU in bytes.
    pub mtu: u32,
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Address that is announced instead of `ipv4`, for a node behind an address translation.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    #[serde(default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// InternalIPs by which Kubernetes knows this node, at most one per family; empty if they are unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_ips: Vec<IpAddr>,
}

impl Uplink {
    /// Returns an uplink without addresses.
    pub fn new(link: LinkName, mtu: u32) -> Self {
        Self { link, mtu, ipv4: None, ipv6: None, public_ip: None, public_ipv6: None, node_ips: Vec::new() }
    }

    /// Returns the address by which other nodes reach us.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        let public = match family {
            Family::Ipv4 => self.public_ip.map(IpAddr::V4),
            Family::Ipv6 => self.public_ipv6.map(IpAddr::V6),
        };
        public.or(self.address(family))
    }

    /// Iterates over our underlay addresses, at most one per family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        Family::ALL.into_iter().filter_map(|family| self.address(family))
    }

    /// Returns our underlay address of the family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpAddr::V4),
            Family::Ipv6 => self.ipv6.map(IpAddr::V6),
        }
    }
}

/// Leases as the datastore reported them. "Not known yet" is not "none".
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Leases {
    #[default]
    Unknown,
    /// Last list that an earlier run received. It is good enough to reach peers, but not to call anything a left-over.
    Remembered(Arc<[Lease]>),
    /// All leases of the cluster, our own included, in any order.
    Listed(Arc<[Lease]>),
}

impl Leases {
    /// Returns the leases by which peers are reached.
    pub fn known(&self) -> &[Lease] {
        match self {
            Self::Unknown => &[],
            Self::Remembered(leases) | Self::Listed(leases) => leases,
        }
    }
}

/// State of the network below the pods, as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Underlay {
    /// All devices, by ascending index.
    pub links: Vec<LinkFacts>,
    /// All addresses, by link index, then in the kernel's order.
    pub addresses: Vec<AddressFacts>,
    /// Unicast routes of the main table that do not lead to pods, in the kernel's order.
    pub routes: Vec<RouteFacts>,
    /// Facts about the traffic rules that our pods' traffic passes.
    pub firewall: firewall::Facts,
    /// Values of the paths in [`Owned::sysctls`](crate::owned::Owned::sysctls) that exist, and `forwarding` of the
    /// devices by which pods' packets come in.
    pub sysctls: Vec<Sysctl>,
    /// Paths on which the kernel sends sample packets of pods.
    #[serde(skip)]
    pub ways: Vec<Way>,
}

/// Routing decision of the kernel for a sample packet of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub packet: firewall::Packet,
    pub answer: WayAnswer,
    /// Policy rule that leads there, as ip-rule(8) shows it; `None` for a rule that every node has.
    pub rule: Option<Box<str>>,
}

/// Result of a route lookup in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WayAnswer {
    Via {
        link: Option<LinkName>,
        gateway: Option<IpAddr>,
        table: u32,
        /// Destination of the route, if the route does not lead through the expected device.
        destination: Option<IpNet>,
    },
    /// Lookup error, such as `EHOSTUNREACH`.
    Refused(i32),
}

impl Underlay {
    /// Returns the device of that name.
    pub fn link(&self, name: LinkName) -> Option<&LinkFacts> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the value of a file below `/proc/sys`, if it was read.
    pub fn sysctl(&self, path: &str) -> Option<&str> {
        self.sysctls.iter().find(|row| *row.path == *path).map(|row| &*row.value)
    }
}

/// Device of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkFacts {
    pub name: LinkName,
    /// Kind of the device (`IFLA_INFO_KIND`); empty for hardware.
    #[serde(default)]
    pub kind: Box<str>,
    #[serde(default)]
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// True if the device is administratively up.
    pub up: bool,
    /// True if the kernel sees the other end (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Device below this one, such as that of a VLAN (`IFLA_LINK`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<LinkName>,
    /// Bond or bridge of which this device is a port (`IFLA_MASTER`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<LinkName>,
    /// Source address of a vxlan device's outer packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
}

impl Default for LinkFacts {
    /// Returns a hardware device with a placeholder name, for tests that set only the fields that matter to them.
    fn default() -> Self {
        let (name, kind, mac) = (LinkName::numbered("link", 0), Box::default(), Mac::default());
        Self { name, kind, mac, mtu: 1500, up: true, carrier: true, lower: None, master: None, local: None }
    }
}

/// Address of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressFacts {
    pub link: LinkName,
    /// Address with its prefix length, not masked.
    pub address: IpNet,
    /// True if no lifetime of DHCP or router advertisements limits the address (`IFA_F_PERMANENT`).
    pub permanent: bool,
    #[serde(default)]
    pub temporary: bool,
    #[serde(default)]
    pub deprecated: bool,
    /// True if duplicate address detection has not ended (`IFA_F_TENTATIVE`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tentative: bool,
    /// True if duplicate address detection found the address on another machine (`IFA_F_DADFAILED`); the kernel does not
    /// use it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

impl AddressFacts {
    /// Returns true for a /32 or a /128. Such an address has no segment, and may be on `lo` whichever device its packets
    /// take.
    pub fn is_of_host_alone(&self) -> bool {
        self.address.prefix_len() == self.address.max_prefix_len()
    }

    /// Returns true if traffic through that device can have this source address.
    pub fn serves(&self, link: LinkName) -> bool {
        self.link == link || self.is_of_host_alone()
    }
}

/// Route of the underlay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteFacts {
    pub destination: IpNet,
    /// Address of the router; `None` if the destination is on the link.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Device that the route leads through; `None` if it has just gone.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// Metric: of equal destinations the route with the smallest one counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub metric: u32,
    /// Details that few routes have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<RouteDetails>>,
}

fn is_zero(metric: &u32) -> bool {
    *metric == 0
}

/// Details that few routes have, kept apart so that a hundred thousand foreign routes take no room for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteDetails {
    /// Next hops after the first one.
    pub more: Vec<NextHop>,
    /// Preferred source address; known only of default routes.
    pub source: Option<IpAddr>,
    /// Largest packet that the route carries, in bytes (`mtu` or `mtu lock` of `ip route`).
    pub mtu: Option<u32>,
}

/// Next hop of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NextHop {
    /// Address of the router; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Device that the next hop leads through; `None` if it has just gone.
    pub link: Option<LinkName>,
}

impl RouteFacts {
    /// Iterates over all next hops, at least one.
    pub fn hops(&self) -> impl Iterator<Item = NextHop> {
        let more = self.details.iter().flat_map(|details| details.more.iter().copied());
        std::iter::once(NextHop { gateway: self.gateway, link: self.link }).chain(more)
    }

    /// Returns the preferred source address.
    pub fn source(&self) -> Option<IpAddr> {
        self.details.as_ref()?.source
    }

    /// Returns the largest packet in bytes that the route carries, if the route itself has such a limit.
    pub fn mtu(&self) -> Option<u32> {
        self.details.as_ref()?.mtu
    }

    /// Returns true for a default route.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}
