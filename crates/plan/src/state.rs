//! What a kernel holds, or should hold, of the objects that twill may own: one type for both, so that equality is health.
//!
//! Normal form: only what we decide stands here. What the kernel fills in (indexes, counters, flags, learned FDB
//! entries) is left out by whoever reads the kernel; an attribute that is read and not understood goes into
//! `unknown`, which nothing wanted ever carries, so such a row is unlike and gets replaced.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::firewall::{IptablesChain, NftChain, NftElement, NftTable};
use crate::{LinkName, Mac, Row, Table};

/// The main routing table (rtnetlink(7) `RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// A route of this metric stands behind every other one to its prefix.
pub const WORST_METRIC: u32 = u32::MAX;

/// What was read and not understood, as text; `None` in everything we want.
pub type Unknown = Option<Box<str>>;

/// All rows, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    pub sysctls: Table<Sysctl>,
    pub links: Table<Link>,
    pub addresses: Table<Address>,
    pub fdb: Table<FdbEntry>,
    pub neighbours: Table<Neighbour>,
    pub nexthops: Table<Nexthop>,
    pub routes: Table<Route>,
    pub rules: Table<Rule>,
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub nft_tables: Table<NftTable>,
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub nft_chains: Table<NftChain>,
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub nft_elements: Table<NftElement>,
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub iptables: Table<IptablesChain>,
}

/// One file below `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sysctl {
    /// Path below `/proc/sys`, such as `net/ipv6/conf/flannel.1/accept_ra` (a link's name may hold dots).
    pub path: Box<str>,
    pub value: Box<str>,
}

/// A network device under one of our names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub name: LinkName,
    pub kind: LinkKind,
    pub mac: Mac,
    /// Bytes, without the link-layer header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// `IFLA_INFO_KIND` and the data that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    Vxlan(Vxlan),
    /// A kind that is none of ours, by its name.
    Other(Box<str>),
}

/// The attributes of a vxlan device that flannel sets (flannel-compat 6.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vxlan {
    /// 24 bits.
    pub vni: u32,
    /// Outer source address.
    pub local: IpAddr,
    /// The device below; `None` where it is gone.
    pub uplink: Option<LinkName>,
    /// UDP port.
    pub port: u16,
    pub learning: bool,
    /// Group Based Policy extension.
    pub gbp: bool,
}

/// An address of one of our links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    pub link: LinkName,
    /// The address itself with its prefix length, not masked.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// A permanent forwarding entry of a vxlan device (`bridge fdb … self permanent`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbEntry {
    pub link: LinkName,
    pub mac: Mac,
    /// The VTEP's underlay address.
    pub remote: IpAddr,
    /// The VTEP's UDP port; `None` is the device's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// A permanent neighbour (ARP or ND entry) on one of our links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    pub link: LinkName,
    pub address: IpAddr,
    pub mac: Mac,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// A next hop object (`ip nexthop`).
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

/// A unicast route of the default or the worst metric and without a TOS; others are never ours and never here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub table: u32,
    pub destination: IpNet,
    pub path: RoutePath,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// `RTA_PRIORITY`; 0 is the default one, whatever the family makes of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub metric: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

fn is_default(metric: &u32) -> bool {
    *metric == 0
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoutePath {
    Via {
        gateway: IpAddr,
        link: LinkName,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        onlink: bool,
    },
    /// Through the next hop object of that id.
    Nexthop(u32),
    /// Straight out of a link, without a gateway.
    Link(LinkName),
    /// Refused with an ICMP error.
    Unreachable,
    /// Dropped in silence.
    Blackhole,
    /// Anything else; the row's `unknown` says what.
    Other,
}

/// A policy rule that sends traffic to `to` through `table`.
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

impl Row for Link {
    type Key<'a> = LinkName;

    fn key(&self) -> LinkName {
        self.name
    }
}

impl Row for Address {
    type Key<'a> = (LinkName, IpNet);

    fn key(&self) -> (LinkName, IpNet) {
        (self.link, self.address)
    }
}

impl Row for FdbEntry {
    type Key<'a> = (LinkName, Mac);

    fn key(&self) -> (LinkName, Mac) {
        (self.link, self.mac)
    }
}

impl Row for Neighbour {
    type Key<'a> = (LinkName, IpAddr);

    fn key(&self) -> (LinkName, IpAddr) {
        (self.link, self.address)
    }
}

impl Row for Nexthop {
    type Key<'a> = u32;

    fn key(&self) -> u32 {
        self.id
    }
}

impl Row for Route {
    type Key<'a> = (u32, IpNet, u32);

    /// Table, destination and metric.
    fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.destination, self.metric)
    }
}

impl Row for Rule {
    type Key<'a> = (u32, IpNet);

    /// Priority and destination.
    fn key(&self) -> (u32, IpNet) {
        (self.priority, self.to)
    }
}
