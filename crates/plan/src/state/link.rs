//! Network devices with one of our names.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Aside, Kind, Rank, State, Unknown};
use crate::mac::Mac;
use crate::name::LinkName;
use crate::owned::Owned;
use crate::table::Row;

/// Network device with one of our names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub name: LinkName,
    pub kind: LinkKind,
    pub mac: Mac,
    /// MTU in bytes, without the link-layer header.
    pub mtu: u32,
    /// True if the link is administratively up (`IFF_UP`).
    pub up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// Kind of a link (`IFLA_INFO_KIND`), with its attributes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    Vxlan(Vxlan),
    /// Kind that is none of ours, by its name.
    Other(Box<str>),
}

/// Attributes of a vxlan device that flannel sets (flannel-compat 6.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Source address of outer packets.
    pub local: IpAddr,
    /// Underlying device; `None` if it is gone.
    pub uplink: Option<LinkName>,
    /// UDP destination port.
    pub port: u16,
    pub learning: bool,
    /// True if the Group Based Policy extension is on.
    pub gbp: bool,
}

impl Row for Link {
    type Key<'a> = LinkName;

    fn key(&self) -> LinkName {
        self.name
    }
}

impl Kind for Link {
    const NAME: &'static str = "link";
    const RANK: Rank = Rank { put: 2, delete: 18 };

    fn link(&self) -> Option<LinkName> {
        Some(self.name)
    }

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.has_link(self.name) && matches!(self.kind, LinkKind::Vxlan(_))
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
