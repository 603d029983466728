//! Policy rules.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Aside, Kind, Rank, State, Unknown};
use crate::marks::PROTOCOL;
use crate::owned::{Owned, Writer};
use crate::table::Row;

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
    const WRITER: Writer = Writer::Twill;

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
