//! Next hop objects.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Aside, Kind, Rank, State, Unknown};
use crate::marks::{NEXTHOPS, PROTOCOL};
use crate::name::LinkName;
use crate::owned::{Owned, Writer};
use crate::table::Row;

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

impl Row for Nexthop {
    type Key<'a> = u32;

    fn key(&self) -> u32 {
        self.id
    }
}

impl Kind for Nexthop {
    const NAME: &'static str = "nexthop";
    const RANK: Rank = Rank { put: 9, delete: 14 };
    const WRITER: Writer = Writer::Twill;

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
