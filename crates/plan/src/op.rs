//! The steps between two states: values that can be logged, sorted, counted and compared before anything happens.
//!
//! An op says all that the executor needs; nothing is left for it to decide.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::firewall::{IptablesChain, NftChain, NftElement, NftTable};
use crate::state::{Address, FdbEntry, Kind, Link, Neighbour, Nexthop, Rank, Route, Rule, Sysctl};
use crate::{LinkName, Row, for_each_kind, sysctls};

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

macro_rules! object {
    ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
        /// The object of an op, complete.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Object {
            $($variant($payload),)*
            /// The administrative state of a link alone, after its addresses are on.
            LinkUp(LinkName),
        }

        impl Object {
            /// Name of the object's kind in metrics.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => <$row>::NAME,)*
                    Self::LinkUp(_) => Link::NAME,
                }
            }

            fn rank(&self) -> Rank {
                match self {
                    $(Self::$variant(_) => <$row>::RANK,)*
                    Self::LinkUp(_) => Rank { put: 5, ..Link::RANK },
                }
            }

            /// Returns a number for the object itself, whatever its attributes: all ops on one link have the same.
            pub fn identity(&self) -> u64 {
                let mut hasher = DefaultHasher::new();
                match self {
                    $(Self::$variant(payload) => {
                        let row: &$row = payload;
                        (stringify!($variant), row.key()).hash(&mut hasher);
                    })*
                    Self::LinkUp(name) => ("Link", name).hash(&mut hasher),
                }
                hasher.finish()
            }
        }

        $(impl From<$row> for Object {
            fn from(row: $row) -> Self {
                Self::$variant(row.into())
            }
        })*

        impl fmt::Display for Object {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(payload) => payload.fmt(f),)*
                    Self::LinkUp(name) => write!(f, "link {name} up"),
                }
            }
        }
    };
}
for_each_kind!(object);

/// A sysctl to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Setting {
    #[serde(flatten)]
    pub row: Sysctl,
    /// The value that goes; `None` where none was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Box<str>>,
}

impl From<Sysctl> for Setting {
    fn from(row: Sysctl) -> Self {
        Self { row, was: None }
    }
}

impl Deref for Setting {
    type Target = Sysctl;

    fn deref(&self) -> &Sysctl {
        &self.row
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.row.fmt(f)?;
        self.was.iter().try_for_each(|was| write!(f, " (was {was})"))
    }
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
        match (self.verb, &self.object) {
            (Verb::Recreate, _) => 1,
            (Verb::Delete, object) => object.rank().delete,
            // It goes with the addresses.
            (_, Object::Sysctl(setting)) if sysctls::forwards(&setting.row) => Address::RANK.put,
            (_, object) => object.rank().put,
        }
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

impl From<Setting> for Object {
    fn from(setting: Setting) -> Self {
        Self::Sysctl(setting)
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
