//! The steps between two states: values that can be logged, sorted, counted and compared before anything happens.
//!
//! An op says all that the executor needs; nothing is left for it to decide.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::firewall::{IptablesChain, NftChain, NftElement, NftTable};
use crate::state::{
    Address, FdbEntry, Link, LinkKind, MAIN_TABLE, Neighbour, Nexthop, Route, RoutePath, Rule, Sysctl,
    Unknown,
};
use crate::{LinkName, Row, sysctls};

/// What to do with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Delete now, because the same round writes that key again: the kernel cannot change it in place, or holds more than
    /// one row under it.
    Recreate,
    /// Create what is not there; for routes, neighbours and FDB entries with replace semantics.
    Add,
    /// Change what is there, in place.
    Replace,
    /// Delete for good. For rows whose key may stand twice the whole row names the one that goes.
    Delete,
}

/// The object of an op, complete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    Sysctl(Setting),
    Link(Box<Link>),
    /// The administrative state alone, after the addresses are on.
    LinkUp(LinkName),
    Address(Address),
    Fdb(FdbEntry),
    Neighbour(Neighbour),
    Nexthop(Nexthop),
    Route(Route),
    Rule(Rule),
    NftTable(NftTable),
    NftChain(NftChain),
    NftElement(NftElement),
    Iptables(IptablesChain),
}

/// A sysctl to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Setting {
    #[serde(flatten)]
    pub row: Sysctl,
    /// The value that goes; `None` where none was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Box<str>>,
}

/// One step. Ops order by rank first, then by object: the same list on every run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Op {
    pub verb: Verb,
    pub object: Object,
}

impl Op {
    /// Place in a round: reach before use when adding, use before reach when deleting. A sysctl below a link's name
    /// needs the link, so it follows the links; one that turns forwarding on follows those that make this harmless.
    pub fn rank(&self) -> u8 {
        use Object as O;
        match (self.verb, &self.object) {
            (Verb::Recreate, _) => 1,
            (Verb::Delete, O::Rule(_)) => 12,
            (Verb::Delete, O::Route(_)) => 13,
            (Verb::Delete, O::Nexthop(_)) => 14,
            (Verb::Delete, O::Neighbour(_)) => 15,
            (Verb::Delete, O::Fdb(_) | O::NftElement(_)) => 16,
            (Verb::Delete, O::Address(_)) => 17,
            (Verb::Delete, O::Link(_) | O::LinkUp(_) | O::Sysctl(_)) => 18,
            (Verb::Delete, O::NftChain(_) | O::Iptables(_)) => 19,
            (Verb::Delete, O::NftTable(_)) => 20,
            (_, O::Link(_)) => 2,
            (_, O::Sysctl(setting)) if !sysctls::forwards(&setting.row) => 3,
            (_, O::Sysctl(_) | O::Address(_)) => 4,
            (_, O::LinkUp(_)) => 5,
            (_, O::NftTable(_) | O::NftChain(_) | O::NftElement(_) | O::Iptables(_)) => 6,
            (_, O::Fdb(_)) => 7,
            (_, O::Neighbour(_)) => 8,
            (_, O::Nexthop(_)) => 9,
            (_, O::Route(_)) => 10,
            (_, O::Rule(_)) => 11,
        }
    }
}

impl Object {
    /// A number for the object itself, whatever its attributes: all ops on one link have the same.
    pub fn identity(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::Sysctl(setting) => (0, setting.row.key()).hash(&mut hasher),
            Self::Link(row) => (1, row.key()).hash(&mut hasher),
            Self::LinkUp(name) => (1, name).hash(&mut hasher),
            Self::Address(row) => (2, row.key()).hash(&mut hasher),
            Self::Fdb(row) => (3, row.key()).hash(&mut hasher),
            Self::Neighbour(row) => (4, row.key()).hash(&mut hasher),
            Self::Nexthop(row) => (5, row.key()).hash(&mut hasher),
            Self::Route(row) => (6, row.key()).hash(&mut hasher),
            Self::Rule(row) => (7, row.key()).hash(&mut hasher),
            Self::NftTable(row) => (8, row.key()).hash(&mut hasher),
            Self::NftChain(row) => (9, row.key()).hash(&mut hasher),
            Self::NftElement(row) => (10, row.key()).hash(&mut hasher),
            Self::Iptables(row) => (11, row.key()).hash(&mut hasher),
        }
        hasher.finish()
    }
}

impl PartialOrd for Op {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Op {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.rank(), &self.object, self.verb).cmp(&(other.rank(), &other.object, other.verb))
    }
}

macro_rules! object_from {
    ($($variant:ident: $row:ty),*) => {$(
        impl From<$row> for Object {
            fn from(row: $row) -> Self {
                Self::$variant(row)
            }
        }
    )*};
}
object_from!(Sysctl: Setting, Address: Address, Fdb: FdbEntry, Neighbour: Neighbour, Nexthop: Nexthop, Route: Route, Rule: Rule,
    NftTable: NftTable, NftChain: NftChain, NftElement: NftElement, Iptables: IptablesChain);

impl From<Sysctl> for Object {
    fn from(row: Sysctl) -> Self {
        Self::Sysctl(Setting { row, was: None })
    }
}

impl fmt::Display for Op {
    /// `+ route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink`: a sign, then the object in ip(8)'s words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verb {
            Verb::Add => '+',
            Verb::Replace => '~',
            Verb::Recreate | Verb::Delete => '-',
        };
        write!(f, "{sign} {}", self.object)?;
        match (self.verb, &self.object) {
            (Verb::Recreate, Object::Link(_)) => f.write_str(" (to be created again)"),
            (Verb::Recreate, _) => f.write_str(" (one too many)"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(Setting { row, was }) => {
                write!(f, "sysctl {} = {}", row.path, row.value)?;
                was.iter().try_for_each(|was| write!(f, " (was {was})"))
            }
            Self::Link(link) => link.fmt(f),
            Self::LinkUp(name) => write!(f, "link {name} up"),
            Self::Address(row) => {
                write!(f, "address {} dev {}{}", row.address, row.link, Aside(&row.unknown))
            }
            Self::Fdb(row) => {
                write!(f, "fdb {} dev {} dst {}", row.mac, row.link, row.remote)?;
                if let Some(port) = row.port {
                    write!(f, " port {port}")?;
                }
                write!(f, "{}", Aside(&row.unknown))
            }
            Self::Neighbour(row) => {
                write!(f, "neigh {} lladdr {} dev {}{}", row.address, row.mac, row.link, Aside(&row.unknown))
            }
            Self::Nexthop(row) => {
                let onlink = if row.onlink { " onlink" } else { "" };
                let unknown = Aside(&row.unknown);
                write!(f, "nexthop id {} via {} dev {}{onlink}{unknown}", row.id, row.gateway, row.link)
            }
            Self::Route(row) => row.fmt(f),
            Self::Rule(row) => {
                let unknown = Aside(&row.unknown);
                write!(f, "rule priority {} to {} lookup {}{unknown}", row.priority, row.to, row.table)
            }
            Self::NftTable(row) => write!(f, "nft table {row}"),
            Self::NftChain(row) => write!(f, "{row}{}", Aside(&row.unknown)),
            Self::NftElement(row) => row.fmt(f),
            Self::Iptables(row) => write!(f, "{row}{}", Aside(&row.unknown)),
        }
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

/// What was not understood, in brackets behind the rest.
struct Aside<'a>(&'a Unknown);

impl fmt::Display for Aside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, " [{text}]"),
            None => Ok(()),
        }
    }
}
