//! Neighbours on our links.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Aside, Goes, Kind, Losses, Rank, State, Unknown};
use crate::mac::Mac;
use crate::name::LinkName;
use crate::owned::Owned;
use crate::table::Row;

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
