//! Kernel objects that twill may own, as observed or as desired: one type serves both, so that equality is health.
//!
//! A state is in normal form: it holds only what we decide. Values that the kernel fills in (indexes, counters, flags,
//! learned FDB entries) are left out when the kernel is read. An attribute that is read and not understood goes into
//! `unknown`, which no desired row has. Such a row therefore differs and is replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::firewall::{IptablesChain, NftChain, NftChainName, NftElement, NftTable};
use crate::input::{Family, Writer};
use crate::marks::{FLANNELS_PROTOCOL, IPV6_DEVICE, NEXTHOPS, PROTOCOL};
use crate::owned::Owned;
use crate::{LinkName, Mac, Object, Row, Table};

/// Number of the main routing table (rtnetlink(7), `RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// Largest route metric, which puts a route behind every other route to its prefix.
pub const WORST_METRIC: u32 = u32::MAX;

/// Text of what was read and not understood; `None` in every desired row.
pub type Unknown = Option<Box<str>>;

/// Generic part of a kind of kernel object. [`for_each_kind!`](crate::for_each_kind) lists the kinds.
pub trait Kind: Row + fmt::Display {
    /// Name of the kind in metrics; kinds that are applied in one transaction share one.
    const NAME: &'static str;
    /// Place among the ops of a pass.
    const RANK: Rank;

    /// Returns the link that the row stands on or leads through, and with which it is deleted.
    fn link(&self) -> Option<LinkName> {
        None
    }

    /// Returns when the row disappears without an op of its own.
    fn goes(&self, losses: &Losses) -> Goes {
        self.link().map_or(Goes::Never, |link| losses.of_link(link))
    }

    /// Returns true if the row is ours to delete where nothing is desired under its key; `seen` is the observed state. A
    /// desired key is ours, whatever the kernel holds under it.
    fn is_ours(&self, owned: &Owned, seen: &State) -> bool;
}

/// Places of a kind's ops among all ops of a pass (ARCHITECTURE.md, "Order of ops").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Place of additions and changes.
    pub put: u8,
    /// Place of deletions.
    pub delete: u8,
}

/// Time at which a row disappears without an op of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    Never,
    /// Before anything is added: its link is deleted to be created again, or flushed by a new MAC.
    First,
    /// After everything else: the object that it depends on is deleted for good.
    Last,
}

/// Objects that disappear along with ops on links, next hops and chains.
#[derive(Debug, Default)]
pub struct Losses {
    /// Links that are deleted to be created again.
    pub remade: Vec<LinkName>,
    /// Links that are deleted for good.
    pub dropped: Vec<LinkName>,
    /// Links that stay but lose their neighbours, since their MAC changes.
    pub flushed: Vec<LinkName>,
    /// Ids of next hops that disappear, each with its time.
    pub nexthops: BTreeMap<u32, Goes>,
    /// Families without a desired source filter: their set of senders disappears with its chain.
    pub unfiltered: Vec<Family>,
}

impl Losses {
    /// Returns when the rows on that link disappear.
    pub fn of_link(&self, link: LinkName) -> Goes {
        if self.remade.contains(&link) {
            Goes::First
        } else if self.dropped.contains(&link) {
            Goes::Last
        } else {
            Goes::Never
        }
    }
}

/// Registry of kinds, in the order of their tables. It passes `table: Variant(Payload) of Row` for each kind to the macro
/// of the given name. The payload is what an op carries; a payload that is not the row itself dereferences to it.
#[macro_export]
macro_rules! for_each_kind {
    ($then:ident) => {
        $then! {
            sysctls: Sysctl(Setting) of Sysctl,
            links: Link(Box<Link>) of Link,
            addresses: Address(Address) of Address,
            fdb: Fdb(FdbEntry) of FdbEntry,
            neighbours: Neighbour(Neighbour) of Neighbour,
            nexthops: Nexthop(Nexthop) of Nexthop,
            routes: Route(Route) of Route,
            rules: Rule(Rule) of Rule,
            nft_tables: NftTable(NftTable) of NftTable,
            nft_chains: NftChain(NftChain) of NftChain,
            nft_elements: NftElement(NftElement) of NftElement,
            iptables: Iptables(IptablesChain) of IptablesChain,
        }
    };
}

macro_rules! state {
    ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
        /// All rows, by kind. Kinds without rows are left out of the JSON form.
        ///
        /// ```json
        /// {"addresses": [{"link": "flannel.1", "address": "10.244.34.0/32"}],
        ///  "fdb": [{"link": "flannel.1", "mac": "1e:aa:75:b8:f4:fa", "remote": "192.168.100.12"}],
        ///  "routes": [{"table": 254, "destination": "10.244.46.0/24", "protocol": 84,
        ///              "path": {"via": {"gateway": "10.244.46.0", "link": "flannel.1", "onlink": true}}}]}
        /// ```
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct State {
            $(
                #[serde(skip_serializing_if = "Table::is_empty")]
                pub $table: Table<$row>,
            )*
        }

        impl State {
            /// Calls `visitor` once for each kind, with the functions that find that kind's table in any state.
            pub fn each_kind(visitor: &mut impl EachKind) {
                $(visitor.kind(|state: &Self| &state.$table, |state: &mut Self| &mut state.$table);)*
            }
        }
    };
}
for_each_kind!(state);

/// Visitor of the kinds of rows.
pub trait EachKind {
    /// Handles one kind; both functions find its table in a state.
    fn kind<K: Kind + Into<Object>>(
        &mut self,
        table: fn(&State) -> &Table<K>,
        table_mut: fn(&mut State) -> &mut Table<K>,
    );
}

/// File below `/proc/sys` and its value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sysctl {
    /// Path below `/proc/sys`, such as `net/ipv6/conf/flannel.1/accept_ra` (a link's name may hold dots).
    pub path: Box<str>,
    pub value: Box<str>,
}

/// Network device with one of our names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub name: LinkName,
    pub kind: LinkKind,
    pub mac: Mac,
    /// MTU in bytes, without the link-layer header.
    pub mtu: u32,
    /// True if the link is administratively up (`IFF_UP`).
    pub up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// Kind of a link (`IFLA_INFO_KIND`), with its attributes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    Vxlan(Vxlan),
    /// Kind that is none of ours, by its name.
    Other(Box<str>),
}

/// Attributes of a vxlan device that flannel sets (flannel-compat 6.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Source address of outer packets.
    pub local: IpAddr,
    /// Underlying device; `None` if it is gone.
    pub uplink: Option<LinkName>,
    /// UDP destination port.
    pub port: u16,
    pub learning: bool,
    /// True if the Group Based Policy extension is on.
    pub gbp: bool,
}

/// Address of one of our links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    pub link: LinkName,
    /// Address with its prefix length, not masked.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// Permanent forwarding entry of a vxlan device (`bridge fdb … self permanent`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbEntry {
    pub link: LinkName,
    pub mac: Mac,
    /// Underlay address of the VTEP.
    pub remote: IpAddr,
    /// UDP port of the VTEP; `None` means the device's own port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// Permanent neighbour (ARP or ND entry) on one of our links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    pub link: LinkName,
    pub address: IpAddr,
    pub mac: Mac,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// Next hop object (`ip nexthop`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nexthop {
    pub id: u32,
    pub gateway: IpAddr,
    pub link: LinkName,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub onlink: bool,
    pub protocol: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// Route to pods, without a TOS and with the default or the worst metric. Other routes are never ours and never listed
/// here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub table: u32,
    pub destination: IpNet,
    pub path: RoutePath,
    /// Protocol number (`rtm_protocol`).
    pub protocol: u8,
    /// Metric (`RTA_PRIORITY`); 0 stands for the family's default metric.
    #[serde(default, skip_serializing_if = "is_default")]
    pub metric: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

fn is_default(metric: &u32) -> bool {
    *metric == 0
}

/// Target of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoutePath {
    Via {
        gateway: IpAddr,
        link: LinkName,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        onlink: bool,
    },
    /// Through the next hop object with this id.
    Nexthop(u32),
    /// Out of a link, without a gateway.
    Link(LinkName),
    /// Refuses packets with an ICMP error.
    Unreachable,
    /// Drops packets in silence.
    Blackhole,
    /// Any other target; the row's `unknown` describes it.
    Other,
}

/// Policy rule that sends traffic for `to` to `table`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub priority: u32,
    pub to: IpNet,
    pub table: u32,
    pub protocol: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

impl Row for Sysctl {
    type Key<'a> = &'a str;

    fn key(&self) -> &str {
        &self.path
    }
}

impl Kind for Sysctl {
    const NAME: &'static str = "sysctl";
    // Most sysctls belong to a device, and their files do not exist before the device.
    const RANK: Rank = Rank { put: 3, delete: 18 };

    /// Returns true: a sysctl is written but never unset.
    fn is_ours(&self, _: &Owned, _: &State) -> bool {
        true
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl {} = {}", self.path, self.value)
    }
}

impl Row for Link {
    type Key<'a> = LinkName;

    fn key(&self) -> LinkName {
        self.name
    }
}

impl Kind for Link {
    const NAME: &'static str = "link";
    const RANK: Rank = Rank { put: 2, delete: 18 };

    fn link(&self) -> Option<LinkName> {
        Some(self.name)
    }

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.has_link(self.name) && matches!(self.kind, LinkKind::Vxlan(_))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, mac, mtu, .. } = self;
        write!(f, "link {name} address {mac} mtu {mtu} type ")?;
        match &self.kind {
            LinkKind::Vxlan(vxlan) => {
                write!(f, "vxlan id {} local {} dstport {}", vxlan.vni, vxlan.local, vxlan.port)?;
                if let Some(uplink) = &vxlan.uplink {
                    write!(f, " dev {uplink}")?;
                }
                f.write_str(if vxlan.learning { " learning" } else { " nolearning" })?;
                f.write_str(if vxlan.gbp { " gbp" } else { "" })?;
            }
            LinkKind::Other(kind) => f.write_str(kind)?,
        }
        write!(f, "{}", Aside(&self.unknown))
    }
}

impl Row for Address {
    type Key<'a> = (LinkName, IpNet);

    fn key(&self) -> (LinkName, IpNet) {
        (self.link, self.address)
    }
}

impl Kind for Address {
    const NAME: &'static str = "address";
    const RANK: Rank = Rank { put: 4, delete: 17 };

    fn link(&self) -> Option<LinkName> {
        Some(self.link)
    }

    /// Claims the addresses that flannel manages (flannel-compat 6.1). They are the IPv4 addresses inside the networks,
    /// and on the IPv6 device all but link-local addresses.
    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.has_link(self.link)
            && match self.address {
                IpNet::V4(_) => owned.in_any_network(&self.address),
                IpNet::V6(net) => {
                    self.link.as_str().starts_with(IPV6_DEVICE) && !net.addr().is_unicast_link_local()
                }
            }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} dev {}{}", self.address, self.link, Aside(&self.unknown))
    }
}

impl Row for FdbEntry {
    type Key<'a> = (LinkName, Mac);

    fn key(&self) -> (LinkName, Mac) {
        (self.link, self.mac)
    }
}

impl Kind for FdbEntry {
    const NAME: &'static str = "fdb";
    const RANK: Rank = Rank { put: 7, delete: 16 };

    fn link(&self) -> Option<LinkName> {
        Some(self.link)
    }

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.has_link(self.link) && self.unknown.is_none()
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fdb {} dev {} dst {}", self.mac, self.link, self.remote)?;
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        write!(f, "{}", Aside(&self.unknown))
    }
}

impl Row for Neighbour {
    type Key<'a> = (LinkName, IpAddr);

    fn key(&self) -> (LinkName, IpAddr) {
        (self.link, self.address)
    }
}

impl Kind for Neighbour {
    const NAME: &'static str = "neighbour";
    const RANK: Rank = Rank { put: 8, delete: 15 };

    fn link(&self) -> Option<LinkName> {
        Some(self.link)
    }

    fn goes(&self, losses: &Losses) -> Goes {
        if losses.flushed.contains(&self.link) { Goes::First } else { losses.of_link(self.link) }
    }

    /// Claims permanent entries: the kernel itself adds and removes the others.
    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.has_link(self.link) && self.unknown.is_none()
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neigh {} lladdr {} dev {}{}", self.address, self.mac, self.link, Aside(&self.unknown))
    }
}

impl Row for Nexthop {
    type Key<'a> = u32;

    fn key(&self) -> u32 {
        self.id
    }
}

impl Kind for Nexthop {
    const NAME: &'static str = "nexthop";
    const RANK: Rank = Rank { put: 9, delete: 14 };

    fn link(&self) -> Option<LinkName> {
        Some(self.link)
    }

    fn is_ours(&self, _: &Owned, _: &State) -> bool {
        NEXTHOPS.contains(&self.id) && self.protocol == PROTOCOL
    }
}

impl fmt::Display for Nexthop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let onlink = if self.onlink { " onlink" } else { "" };
        let unknown = Aside(&self.unknown);
        write!(f, "nexthop id {} via {} dev {}{onlink}{unknown}", self.id, self.gateway, self.link)
    }
}

impl Row for Route {
    type Key<'a> = (u32, IpNet, u32);

    /// Returns table, destination and metric.
    fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.destination, self.metric)
    }
}

impl Kind for Route {
    const NAME: &'static str = "route";
    const RANK: Rank = Rank { put: 10, delete: 13 };

    fn link(&self) -> Option<LinkName> {
        match self.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => Some(link),
            _ => None,
        }
    }

    fn goes(&self, losses: &Losses) -> Goes {
        match self.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => losses.of_link(link),
            RoutePath::Nexthop(id) => losses.nexthops.get(&id).copied().unwrap_or(Goes::Never),
            RoutePath::Unreachable | RoutePath::Blackhole | RoutePath::Other => Goes::Never,
        }
    }

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        let ours = |link| link == owned.uplink || owned.has_link(link);
        owned.all_tables().any(|table| table == self.table)
            && owned.in_any_network(&self.destination)
            && (self.metric == 0 || self.path == RoutePath::Blackhole)
            && match (self.protocol, self.path) {
                (FLANNELS_PROTOCOL, _) => self.is_flannels(owned),
                (PROTOCOL, RoutePath::Via { link, .. } | RoutePath::Link(link)) => ours(link),
                (PROTOCOL, RoutePath::Nexthop(id)) => NEXTHOPS.contains(&id),
                (PROTOCOL, RoutePath::Unreachable | RoutePath::Blackhole) => true,
                _ => false,
            }
    }
}

impl Route {
    /// Returns true if flannel wrote the route. It leads through the subnet's own first address, which no other program's
    /// route does (flannel-compat 6.1). Or it is the blackhole of our own subnet (7.4). A route through the uplink may be
    /// anybody's; it is ours only under the key of a desired peer.
    fn is_flannels(&self, owned: &Owned) -> bool {
        owned.former_writer == Writer::Flannel
            && match self.path {
                RoutePath::Via { gateway, link, onlink: true } => {
                    owned.has_link(link) && gateway == self.destination.addr()
                }
                RoutePath::Blackhole => self.metric == 0 && owned.own_subnets.contains(&self.destination),
                _ => false,
            }
    }

    /// Returns true if the route looks like flannel's, inside our networks, and is not known to be flannel's.
    pub(crate) fn resembles_flannels(&self, owned: &Owned, seen: &State) -> bool {
        let through_ours = |link| link == owned.uplink || owned.has_link(link);
        self.protocol == FLANNELS_PROTOCOL
            && owned.is_pods(&self.destination)
            && match self.path {
                RoutePath::Via { link, .. } => through_ours(link),
                RoutePath::Blackhole => self.metric == 0,
                _ => false,
            }
            && !self.is_ours(owned, seen)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let destination = self.destination;
        match self.path {
            RoutePath::Via { gateway, link, onlink } => {
                let onlink = if onlink { " onlink" } else { "" };
                write!(f, "route {destination} via {gateway} dev {link}{onlink}")?;
            }
            RoutePath::Nexthop(id) => write!(f, "route {destination} nhid {id}")?,
            RoutePath::Link(link) => write!(f, "route {destination} dev {link}")?,
            RoutePath::Unreachable => write!(f, "route unreachable {destination}")?,
            RoutePath::Blackhole => write!(f, "route blackhole {destination}")?,
            RoutePath::Other => write!(f, "route {destination}")?,
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        write!(f, "{}", Aside(&self.unknown))
    }
}

impl Row for Rule {
    type Key<'a> = (u32, IpNet);

    /// Returns priority and destination.
    fn key(&self) -> (u32, IpNet) {
        (self.priority, self.to)
    }
}

impl Kind for Rule {
    const NAME: &'static str = "rule";
    const RANK: Rank = Rank { put: 11, delete: 12 };

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        self.protocol == PROTOCOL && owned.in_any_network(&self.to)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = Aside(&self.unknown);
        write!(f, "rule priority {} to {} lookup {}{unknown}", self.priority, self.to, self.table)
    }
}

impl Kind for NftTable {
    const NAME: &'static str = "nft";
    const RANK: Rank = Rank { put: 6, delete: 20 };

    /// Claims the table unless another program has put a chain into it.
    fn is_ours(&self, owned: &Owned, seen: &State) -> bool {
        let mut chains = seen.nft_chains.iter().filter(|chain| chain.family == self.family);
        owned.firewall && chains.all(|chain| chain.is_ours(owned, seen))
    }
}

impl Kind for NftChain {
    const NAME: &'static str = "nft";
    const RANK: Rank = Rank { put: 6, delete: 19 };

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.firewall && !matches!(self.chain, NftChainName::Other(_))
    }
}

impl Kind for NftElement {
    const NAME: &'static str = "nft";
    const RANK: Rank = Rank { put: 6, delete: 16 };

    /// Returns [`Goes::Last`] if the chain that uses the set disappears.
    fn goes(&self, losses: &Losses) -> Goes {
        if losses.unfiltered.contains(&Family::of(self.address)) { Goes::Last } else { Goes::Never }
    }

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.firewall
    }
}

impl Kind for IptablesChain {
    const NAME: &'static str = "iptables";
    const RANK: Rank = Rank { put: 6, delete: 19 };

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.firewall
    }
}

/// Displays what was not understood, in brackets behind the rest of the row.
pub(crate) struct Aside<'a>(pub(crate) &'a Unknown);

impl fmt::Display for Aside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, " [{text}]"),
            None => Ok(()),
        }
    }
}
