//! Sysctls, which are written and never unset.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Kind, Rank, State};
use crate::Row;
use crate::owned::Owned;

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

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl {} = {}", self.path, self.value)
    }
}
