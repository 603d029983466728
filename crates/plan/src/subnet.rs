//! Pod subnets of one node, and their form in the key of a lease.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::family::Family;

/// Pod subnets of one node, at most one per family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    #[serde(default)]
    pub ipv4: Option<Ipv4Net>,
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
}

impl Subnet {
    /// Returns the subnet of the family.
    pub fn of(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpNet::V4),
            Family::Ipv6 => self.ipv6.map(IpNet::V6),
        }
    }

    /// Iterates over the subnets of all families.
    pub fn nets(self) -> impl Iterator<Item = IpNet> {
        [self.ipv4.map(IpNet::V4), self.ipv6.map(IpNet::V6)].into_iter().flatten()
    }

    /// Parses a key's last part: `10.244.34.0-24`, `10.12.13.0-24&fd00:12:13::-56`; IPv6 alone is `0.0.0.0-0&…`. Upper
    /// case letters are an error, and so is a key without any subnet.
    pub fn parse(key: &str) -> Result<Self, String> {
        let (ipv4, ipv6) = match key.split_once('&') {
            Some((ipv4, ipv6)) => (ipv4, Some(ipv6)),
            None => (key, None),
        };
        if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(format!("{key:?} is not a lease key: flannel writes lower case only"));
        }
        let ipv4: Ipv4Net = parse_net(ipv4)?;
        let ipv6: Option<Ipv6Net> = ipv6.map(parse_net).transpose()?;
        let ipv4 = (ipv4 != Ipv4Net::default()).then_some(ipv4);
        if ipv4.is_none() && ipv6.is_none() {
            return Err(format!("{key:?} names no subnet"));
        }
        Ok(Self { ipv4, ipv6 })
    }
}

fn parse_net<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    let bad = || format!("{text:?} is not a subnet such as 10.244.34.0-24");
    let (address, length) = text.rsplit_once('-').ok_or_else(bad)?;
    format!("{address}/{length}").parse().map_err(|_| bad())
}

impl fmt::Display for Subnet {
    /// Prints the key's last part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ipv4 = self.ipv4.unwrap_or_default();
        write!(f, "{}-{}", ipv4.addr(), ipv4.prefix_len())?;
        match self.ipv6 {
            Some(ipv6) => write!(f, "&{}-{}", ipv6.addr(), ipv6.prefix_len()),
            None => Ok(()),
        }
    }
}
