//! Subnets of one family that may be leased, and the arithmetic of drawing a free one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ip_address::number;
use crate::range::Range;

/// Subnets of one family that may be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Bounds", into = "Bounds")]
pub struct Pool {
    pub network: IpNet,
    /// Prefix length of a subnet.
    pub len: u8,
    /// Network addresses of the first and of the last subnet, as numbers.
    first: u128,
    last: u128,
}

/// Pool in the terms of a network config: `{"network":"10.3.0.0/16","len":24,"min":"10.3.1.0","max":"10.3.255.0"}`.
#[derive(Serialize, Deserialize)]
struct Bounds {
    network: IpNet,
    len: u8,
    min: IpAddr,
    max: IpAddr,
}

impl From<Pool> for Bounds {
    fn from(pool: Pool) -> Self {
        let [min, max] = [pool.nth(0), pool.nth(pool.count() - 1)].map(|subnet| subnet.addr());
        Self { network: pool.network, len: pool.len, min, max }
    }
}

impl TryFrom<Bounds> for Pool {
    type Error = String;

    fn try_from(Bounds { network, len, min, max }: Bounds) -> Result<Self, String> {
        if len == 0 || len > network.max_prefix_len() || len < network.prefix_len() {
            return Err(format!("/{len} is no part of {network}"));
        }
        Self::new(network, len, Some(min), Some(max))
    }
}

impl Pool {
    /// Returns a pool. Without bounds it leaves out only the network's first subnet, as flannel does. The error says
    /// which bound is wrong.
    pub fn new(network: IpNet, len: u8, min: Option<IpAddr>, max: Option<IpAddr>) -> Result<Self, String> {
        let size = 1 << (network.max_prefix_len() - len);
        let bound = |address: IpAddr| match number(address) {
            _ if !network.contains(&address) => Err(format!("{address} is outside {network}")),
            value if value % size != 0 => Err(format!("{address} is not the first address of a /{len}")),
            value => Ok(value),
        };
        let first = min.map_or_else(|| Ok(number(network.network()) + size), bound)?;
        let last = max.map_or_else(|| Ok(number(network.broadcast()) - (size - 1)), bound)?;
        if first > last {
            return Err("the last subnet comes before the first".into());
        }
        Ok(Self { network, len, first, last })
    }

    fn size(&self) -> u128 {
        1 << (self.network.max_prefix_len() - self.len)
    }

    /// Returns the number of subnets in the pool.
    pub fn count(&self) -> u128 {
        (self.last - self.first) / self.size() + 1
    }

    /// Returns the number of subnets of this length in the whole network. Nodes keep leases outside the pool after its
    /// bounds were changed.
    pub fn count_in_network(&self) -> u128 {
        1_u128.checked_shl((self.len - self.network.prefix_len()).into()).unwrap_or(u128::MAX)
    }

    fn nth(&self, index: u128) -> IpNet {
        let start = self.first + index * self.size();
        let address = match self.network {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(start as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(start)),
        };
        IpNet::new_assert(address, self.len)
    }

    /// Returns the addresses that pods may have: from the first subnet's first address to the last subnet's last one.
    pub fn range(&self) -> Range {
        Range { first: self.nth(0).network(), last: self.nth(self.count() - 1).broadcast() }
    }

    /// Returns true if this subnet may be leased from the pool.
    pub fn holds(&self, subnet: &IpNet) -> bool {
        let start = number(subnet.network());
        subnet.addr() == subnet.network()
            && subnet.prefix_len() == self.len
            && self.network.contains(subnet)
            && (self.first..=self.last).contains(&start)
    }

    /// Returns the free subnet that `dice` selects; every free one is equally likely. Returns `None` if all are taken.
    /// The time is linear in the leases but for the sort, since candidates are not tried one by one.
    pub(crate) fn draw(&self, taken: impl Iterator<Item = IpNet>, dice: u64) -> Option<IpNet> {
        let mut spans: Vec<(u128, u128)> = taken.filter_map(|subnet| self.span(&subnet)).collect();
        spans.sort_unstable();
        let mut gaps = Vec::new();
        let mut next = 0;
        for (from, to) in spans {
            if from > next {
                gaps.push((next, from - next));
            }
            next = next.max(to + 1);
        }
        if next < self.count() {
            gaps.push((next, self.count() - next));
        }
        let free: u128 = gaps.iter().map(|(_, length)| length).sum();
        let mut left = u128::from(dice).checked_rem(free)?;
        for (start, length) in gaps {
            if left < length {
                return Some(self.nth(start + left));
            }
            left -= length;
        }
        None
    }

    /// Returns why no network config of this network leases that subnet, whatever its `SubnetLen`.
    pub(crate) fn refuses(&self, subnet: &IpNet) -> Option<Refusal> {
        if subnet.addr() != subnet.network() {
            return Some(Refusal::Misaligned);
        }
        if !self.network.contains(subnet) {
            return Some(Refusal::Outside);
        }
        let lengths = lengths(&self.network);
        (subnet.prefix_len() != self.len && !lengths.contains(&subnet.prefix_len()))
            .then_some(Refusal::Length)
    }

    /// Returns the first and last index of the pool's subnets that overlap the given one.
    pub(crate) fn span(&self, subnet: &IpNet) -> Option<(u128, u128)> {
        let (start, end) = (number(subnet.network()), number(subnet.broadcast()));
        let same_family = subnet.max_prefix_len() == self.network.max_prefix_len();
        if !same_family || end < self.first || start > self.last + (self.size() - 1) {
            return None;
        }
        let index = |value: u128| (value.clamp(self.first, self.last) - self.first) / self.size();
        Some((index(start), index(end)))
    }
}

/// Returns the prefix lengths that subnets of a network may have. flannel leases at least four subnets, of at least four
/// addresses each.
pub(crate) fn lengths(network: &IpNet) -> RangeInclusive<u8> {
    network.prefix_len() + 2..=network.max_prefix_len() - 2
}

/// Reason why a subnet is no lease of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Misaligned,
    Outside,
    Length,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.nth(0), self.nth(self.count() - 1));
        write!(f, "{}, subnets /{} from {} to {}", self.network, self.len, first.addr(), last.addr())
    }
}
