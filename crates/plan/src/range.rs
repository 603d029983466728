//! Range of addresses of one family.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ip_address::number;

/// Addresses of one family from the first to the last, such as 10.244.1.0 to 10.244.255.255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub first: IpAddr,
    pub last: IpAddr,
}

impl Range {
    /// Returns true if the address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.overlaps(&address.into())
    }

    /// Returns true if the network and the range share an address.
    pub fn overlaps(&self, network: &IpNet) -> bool {
        network.addr().is_ipv4() == self.first.is_ipv4()
            && number(network.network()) <= number(self.last)
            && number(self.first) <= number(network.broadcast())
    }

    /// Returns true if every address of the network lies in the range.
    pub fn covers(&self, network: &IpNet) -> bool {
        network.addr().is_ipv4() == self.first.is_ipv4()
            && number(self.first) <= number(network.network())
            && number(network.broadcast()) <= number(self.last)
    }

    /// Returns the network that has exactly these addresses; `None` if there is none.
    pub fn network(&self) -> Option<IpNet> {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        let mut nets = (0..=bits).filter_map(|length| IpNet::new(self.first, length).ok());
        nets.find(|net| (net.network(), net.broadcast()) == (self.first, self.last))
    }
}

impl From<IpNet> for Range {
    fn from(network: IpNet) -> Self {
        Self { first: network.network(), last: network.broadcast() }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}
