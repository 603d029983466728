//! Reads the subnet file that a node's daemon writes, as a CNI plugin does. It knows nothing else about the daemon.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

/// The parsed `/run/flannel/subnet.env`, such as:
///
/// ```text
/// FLANNEL_NETWORK=10.244.0.0/16
/// FLANNEL_SUBNET=10.244.34.1/24
/// FLANNEL_MTU=1450
/// FLANNEL_IPMASQ=false
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv(BTreeMap<String, String>);

impl SubnetEnv {
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let env = Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
        (env.mtu().is_some() && (env.gateway4().is_some() || env.gateway6().is_some())).then_some(env)
    }

    /// Returns the value of a key, such as `FLANNEL_IPMASQ`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Returns the MTU of pods in bytes.
    pub fn mtu(&self) -> Option<u32> {
        self.get("FLANNEL_MTU")?.parse().ok()
    }

    /// Returns the bridge's address, the first one of the node's subnet, with the prefix length.
    pub fn gateway4(&self) -> Option<(Ipv4Addr, u8)> {
        address(self.get("FLANNEL_SUBNET")?)
    }

    /// Same as [`Self::gateway4`], for IPv6.
    pub fn gateway6(&self) -> Option<(Ipv6Addr, u8)> {
        address(self.get("FLANNEL_IPV6_SUBNET")?)
    }

    /// Returns the node's subnet as a route names it, such as 10.244.34.0/24.
    pub fn subnet4(&self) -> Option<String> {
        let (gateway, len) = self.gateway4()?;
        let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
        Some(format!("{}/{len}", Ipv4Addr::from_bits(gateway.to_bits() & mask)))
    }

    /// Same as [`Self::subnet4`], for IPv6.
    pub fn subnet6(&self) -> Option<String> {
        let (gateway, len) = self.gateway6()?;
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Some(format!("{}/{len}", Ipv6Addr::from_bits(gateway.to_bits() & mask)))
    }
}

fn address<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (address, len) = text.split_once('/')?;
    Some((address.parse().ok()?, len.parse().ok()?))
}
