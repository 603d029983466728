//! This node: its uplink with its addresses, its pod subnets and the MACs of its devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::mac::Mac;
use crate::name::LinkName;
use crate::subnet::Subnet;

/// Configuration of this node: what it announces and where its traffic leaves.
///
/// ```json
/// {"uplink": {"link": "eth0", "mtu": 1500, "ipv4": "192.0.2.1"},
///  "subnet": {"ipv4": "10.244.1.0/24"}, "vtep": "02:00:00:00:00:01"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub uplink: Uplink,
    /// Our own pod subnets.
    pub subnet: Subnet,
    /// MAC of `flannel.<VNI>`, whatever the VNI.
    #[serde(default)]
    pub vtep: Option<Mac>,
    /// MAC of `flannel-v6.<VNI>`, whatever the VNI.
    #[serde(default)]
    pub vtep_v6: Option<Mac>,
}

impl Node {
    /// Returns a node without MACs for tunnels.
    pub fn new(uplink: Uplink, subnet: Subnet) -> Self {
        Self { uplink, subnet, vtep: None, vtep_v6: None }
    }
}

/// External interface and our addresses on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    pub link: LinkName,
    /// MTU in bytes.
    pub mtu: u32,
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Address that is announced instead of `ipv4`, for a node behind an address translation.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    #[serde(default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// InternalIPs by which Kubernetes knows this node, at most one per family; empty if they are unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_ips: Vec<IpAddr>,
}

impl Uplink {
    /// Returns an uplink without addresses.
    pub fn new(link: LinkName, mtu: u32) -> Self {
        Self { link, mtu, ipv4: None, ipv6: None, public_ip: None, public_ipv6: None, node_ips: Vec::new() }
    }

    /// Returns the address by which other nodes reach us.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        let public = match family {
            Family::Ipv4 => self.public_ip.map(IpAddr::V4),
            Family::Ipv6 => self.public_ipv6.map(IpAddr::V6),
        };
        public.or(self.address(family))
    }

    /// Iterates over our underlay addresses, at most one per family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        Family::ALL.into_iter().filter_map(|family| self.address(family))
    }

    /// Returns our underlay address of the family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpAddr::V4),
            Family::Ipv6 => self.ipv6.map(IpAddr::V6),
        }
    }
}
