//! Changes between two states, as values that can be logged, sorted, counted and compared before anything happens.
//!
//! An op holds everything that its executor needs; the executor decides nothing.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::for_each_kind;
use crate::name::LinkName;
use crate::state::{Address, Kind, Link, Rank, Setting};
use crate::table::Row;

/// Kind of change to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Deletes the object now, because the same reconcile pass writes its key again. The kernel cannot change the object
    /// in place, or holds more than one row under the key.
    Recreate,
    /// Creates an object that does not exist yet. Routes, neighbours and FDB entries are written with replace semantics.
    Add,
    /// Changes an existing object in place.
    Replace,
    /// Deletes the object for good. Where a key may have several rows, the whole row names the one to delete.
    Delete,
}

impl Verb {
    /// Returns true if the object does not exist afterwards.
    pub fn deletes(self) -> bool {
        matches!(self, Self::Recreate | Self::Delete)
    }
}

macro_rules! object {
    ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
        /// Object of an op, with all its attributes.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Object {
            $($variant($payload),)*
            /// Administrative state of a link alone, which is set after the link's addresses.
            LinkUp(LinkName),
        }

        impl Object {
            /// Returns the name of the object's kind in metrics.
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

            /// Returns a hash of the object's kind and key. All ops on one link have the same hash.
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

/// Single change to the kernel. Ops are sorted by rank, then object, then verb, so that every run gives the same list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Op {
    pub verb: Verb,
    pub object: Object,
}

impl Op {
    /// Returns the op's place in a reconcile pass. Additions put what carries traffic before what uses it; deletions go
    /// the other way. A sysctl below a link's name needs the link, so it follows the links. A sysctl that turns
    /// forwarding on follows the sysctls that make this harmless.
    pub fn rank(&self) -> u8 {
        match (self.verb, &self.object) {
            (Verb::Recreate, _) => 1,
            (Verb::Delete, object) => object.rank().delete,
            // Forwarding is turned on together with the addresses.
            (_, Object::Sysctl(setting)) if setting.row.forwards() => Address::RANK.put,
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
    /// Prints a sign and the object in ip(8)'s words: `+ route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verb {
            Verb::Add => '+',
            Verb::Replace => '~',
            Verb::Recreate | Verb::Delete => '-',
        };
        write!(f, "{sign} {}", self.object)?;
        match (self.verb, &self.object) {
            (Verb::Recreate, Object::Link(_)) => f.write_str(" (to be created again)"),
            (Verb::Recreate, _) => f.write_str(" (duplicate)"),
            _ => Ok(()),
        }
    }
}
