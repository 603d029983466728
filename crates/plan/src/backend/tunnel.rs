//! Tunnels in general: their kinds and what all kinds share.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Kind of a tunnel. Users see its label, such as `vxlan`, in status, metrics and JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "Box<str>")]
pub enum TunnelKind {
    Vxlan,
}

impl TunnelKind {
    pub const ALL: [Self; 1] = [Self::Vxlan];

    /// Returns the name of the kind, which is also the name of its backend type.
    pub fn label(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
        }
    }
}

impl fmt::Display for TunnelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl FromStr for TunnelKind {
    type Err = String;

    fn from_str(label: &str) -> Result<Self, String> {
        let kind = Self::ALL.into_iter().find(|kind| kind.label() == label);
        kind.ok_or_else(|| format!("{label:?} is no kind of tunnel"))
    }
}

impl From<TunnelKind> for &'static str {
    fn from(kind: TunnelKind) -> Self {
        kind.label()
    }
}

impl TryFrom<Box<str>> for TunnelKind {
    type Error = String;

    fn try_from(label: Box<str>) -> Result<Self, String> {
        label.parse()
    }
}
