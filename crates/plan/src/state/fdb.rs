//! Forwarding entries of our vxlan devices.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Aside, Kind, Rank, State, Unknown};
use crate::mac::Mac;
use crate::name::LinkName;
use crate::owned::Owned;
use crate::table::Row;

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
