//! Addresses of our links.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Aside, Kind, Rank, State, Unknown};
use crate::family::Family;
use crate::name::LinkName;
use crate::owned::Owned;
use crate::table::Row;
use crate::tunnel_id::family_of_device;

/// Address of one of our links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    pub link: LinkName,
    /// Address with its prefix length, not masked.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

impl Row for Address {
    type Key<'a> = (LinkName, IpNet);

    fn key(&self) -> (LinkName, IpNet) {
        (self.link, self.address)
    }
}

impl Kind for Address {
    const NAME: &'static str = "address";
    const RANK: Rank = Rank { put: 4, delete: 17 };

    fn link(&self) -> Option<LinkName> {
        Some(self.link)
    }

    /// Claims the addresses that flannel manages (flannel-compat 6.1). They are the IPv4 addresses inside the networks,
    /// and on the IPv6 device all but link-local addresses.
    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.has_link(self.link)
            && match self.address {
                IpNet::V4(_) => owned.in_any_network(&self.address),
                IpNet::V6(net) => {
                    family_of_device(self.link) == Family::Ipv6 && !net.addr().is_unicast_link_local()
                }
            }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} dev {}{}", self.address, self.link, Aside(&self.unknown))
    }
}
