//! Address family, with its names in texts and in nftables.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Address family. A dual-stack node handles each family for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// Both families, in the order in which everything is planned.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// Returns the family's name in nftables, which is also its protocol keyword in rules.
    pub fn nft(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }

    /// Returns the name of flannel's table of the family, without the family: `flannel-ipv4` or `flannel-ipv6`.
    pub fn nft_table(self) -> &'static str {
        match self {
            Self::Ipv4 => "flannel-ipv4",
            Self::Ipv6 => "flannel-ipv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}
