//! Sysctls, which are written and never unset.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::{Kind, Rank, State};
use crate::owned::Owned;
use crate::table::Row;

/// Sysctl by which the node forwards IPv4 packets.
pub(crate) const FORWARD: &str = "net/ipv4/ip_forward";

/// Sysctl by which the node forwards IPv6 packets.
pub(crate) const FORWARD_IPV6: &str = "net/ipv6/conf/all/forwarding";

/// File below `/proc/sys` and its value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sysctl {
    /// Path below `/proc/sys`, such as `net/ipv6/conf/flannel.1/accept_ra` (a link's name may hold dots).
    pub path: Box<str>,
    pub value: Box<str>,
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

impl Sysctl {
    /// Returns true if the setting turns forwarding on.
    pub(crate) fn forwards(&self) -> bool {
        [FORWARD, FORWARD_IPV6].contains(&&*self.path)
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl {} = {}", self.path, self.value)
    }
}

/// Sysctl to be written, such as `{"path":"net/ipv4/ip_forward","value":"1","was":"0"}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Setting {
    #[serde(flatten)]
    pub row: Sysctl,
    /// Value that is replaced; `None` if none was read, or if its device is created again.
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
