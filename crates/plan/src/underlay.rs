//! Underlay as the kernel reports it: devices, addresses, routes, and facts about traffic rules and sysctls.

mod firewall;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::name::LinkName;
use crate::passage::{Packet, Passage};
use crate::state::Sysctl;
pub use firewall::{FirewallFacts, Firewalld, IptablesFacts, Manager, Obstacle, Uncertainty, UnknownSender};

/// Name of the pods' bridge while there is none: flannel's CNI plugin uses this name.
const BRIDGE: &str = "cni0";

/// State of the network below the pods, as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Underlay {
    /// All devices, by ascending index.
    pub links: Vec<LinkFacts>,
    /// All addresses, by link index, then in the kernel's order.
    pub addresses: Vec<AddressFacts>,
    /// Unicast routes of the main table that do not lead to pods, in the kernel's order.
    pub routes: Vec<RouteFacts>,
    /// Routes through the uplink in another table, if the kernel finds the uplink's segment there. It is the table of a VRF,
    /// or one that a policy rule leads to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<RouteFacts>,
    /// Facts about the traffic rules that our pods' traffic passes.
    pub firewall: FirewallFacts,
    /// Values of the paths in [`Owned::sysctls`](crate::owned::Owned::sysctls) that exist, and `forwarding` of the
    /// devices by which pods' packets come in.
    pub sysctls: Vec<Sysctl>,
    /// Paths on which the kernel sends sample packets of pods.
    #[serde(skip)]
    pub lookups: Vec<RouteLookup>,
}

/// Routing decision of the kernel for a sample packet of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteLookup {
    pub packet: Packet,
    pub answer: RouteAnswer,
    /// Policy rule that leads there; `None` for a rule that every node has.
    pub rule: Option<PolicyRule>,
}

/// Foreign policy rule, such as `5270: from all lookup 52`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    pub priority: u32,
    /// Rule as ip-rule(8) shows it.
    pub words: Box<str>,
}

/// Result of a route lookup in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAnswer {
    Via {
        link: Option<LinkName>,
        gateway: Option<IpAddr>,
        table: u32,
        /// Destination of the route, if the route does not lead through the expected device.
        destination: Option<IpNet>,
    },
    /// Lookup error, such as `EHOSTUNREACH`.
    Refused(i32),
}

impl Underlay {
    /// Returns the device of that name.
    pub fn link(&self, name: LinkName) -> Option<&LinkFacts> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the value of a file below `/proc/sys`, if it was read.
    pub fn sysctl(&self, path: &str) -> Option<&str> {
        self.sysctls.iter().find(|row| *row.path == *path).map(|row| &*row.value)
    }
}

/// Device of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkFacts {
    pub name: LinkName,
    /// Kind of the device (`IFLA_INFO_KIND`); empty for hardware.
    #[serde(default)]
    pub kind: Box<str>,
    #[serde(default)]
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// True if the device is administratively up.
    pub up: bool,
    /// True if the kernel sees the other end (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Device below this one, such as that of a VLAN (`IFLA_LINK`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<LinkName>,
    /// Bond or bridge of which this device is a port (`IFLA_MASTER`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<LinkName>,
    /// Source address of a vxlan device's outer packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
}

impl Default for LinkFacts {
    /// Returns a hardware device with a placeholder name, for tests that set only the fields that matter to them.
    fn default() -> Self {
        let (name, kind, mac) = (LinkName::numbered("link", 0), Box::default(), Mac::default());
        Self { name, kind, mac, mtu: 1500, up: true, carrier: true, lower: None, master: None, local: None }
    }
}

/// Address of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressFacts {
    pub link: LinkName,
    /// Address with its prefix length, not masked.
    pub address: IpNet,
    /// True if no lifetime of DHCP or router advertisements limits the address (`IFA_F_PERMANENT`).
    pub permanent: bool,
    #[serde(default)]
    pub temporary: bool,
    #[serde(default)]
    pub deprecated: bool,
    /// True if duplicate address detection has not ended (`IFA_F_TENTATIVE`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tentative: bool,
    /// True if duplicate address detection found the address on another machine (`IFA_F_DADFAILED`); the kernel does not
    /// use it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

impl AddressFacts {
    /// Returns true for a /32 or a /128. Such an address has no segment, and may be on `lo` whichever device its packets
    /// take.
    pub fn is_of_host_alone(&self) -> bool {
        self.address.prefix_len() == self.address.max_prefix_len()
    }

    /// Returns true if traffic through that device can have this source address.
    pub fn serves(&self, link: LinkName) -> bool {
        self.link == link || self.is_of_host_alone()
    }
}

/// Route of the underlay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteFacts {
    pub destination: IpNet,
    /// Address of the router; `None` if the destination is on the link.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Device that the route leads through; `None` if it has just gone.
    #[serde(default)]
    pub link: Option<LinkName>,
    /// Metric: of equal destinations the route with the smallest one counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub metric: u32,
    /// Details that few routes have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<RouteDetails>>,
}

fn is_zero(metric: &u32) -> bool {
    *metric == 0
}

/// Details that few routes have, kept apart so that a hundred thousand foreign routes take no room for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteDetails {
    /// Next hops after the first one.
    pub more: Vec<NextHop>,
    /// Preferred source address; known only of default routes.
    pub source: Option<IpAddr>,
    /// Largest packet that the route carries, in bytes (`mtu` or `mtu lock` of `ip route`).
    pub mtu: Option<u32>,
}

/// Next hop of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NextHop {
    /// Address of the router; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Device that the next hop leads through; `None` if it has just gone.
    pub link: Option<LinkName>,
}

impl RouteFacts {
    /// Iterates over all next hops, at least one.
    pub fn hops(&self) -> impl Iterator<Item = NextHop> {
        let more = self.details.iter().flat_map(|details| details.more.iter().copied());
        std::iter::once(NextHop { gateway: self.gateway, link: self.link }).chain(more)
    }

    /// Returns the preferred source address.
    pub fn source(&self) -> Option<IpAddr> {
        self.details.as_ref()?.source
    }

    /// Returns the largest packet in bytes that the route carries, if the route itself has such a limit.
    pub fn mtu(&self) -> Option<u32> {
        self.details.as_ref()?.mtu
    }

    /// Returns true for a default route.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}

/// Returns the device of this node's pods: the one with an address inside their subnet that is not ours.
pub fn pods_bridge(passage: &Passage, addresses: &[AddressFacts], ours: &[LinkName]) -> LinkName {
    let holds =
        |facts: &&AddressFacts| passage.own.contains(&facts.address.addr()) && !ours.contains(&facts.link);
    let usual = || BRIDGE.parse().unwrap_or(passage.link);
    addresses.iter().find(holds).map_or_else(usual, |facts| facts.link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_bridge_is_a_foreign_device_with_an_address_in_the_subnet() {
        let link: LinkName = "flannel.1".parse().unwrap();
        let passage = Passage { own: net("10.244.1.0/24"), peer: net("10.244.2.0/24"), link };
        let facts = |link: &str, address: &str| AddressFacts {
            link: link.parse().unwrap(),
            address: net(address),
            permanent: true,
            temporary: false,
            deprecated: false,
            duplicate: false,
            tentative: false,
        };
        let all = [
            facts("flannel.1", "10.244.1.0/32"),
            facts("eth0", "192.0.2.1/24"),
            facts("br9", "10.244.1.1/24"),
        ];
        assert_eq!(pods_bridge(&passage, &all, &[link]).as_str(), "br9");
        assert_eq!(pods_bridge(&passage, &[], &[link]).as_str(), "cni0");
    }
}
