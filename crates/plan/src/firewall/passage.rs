//! Packets of pods that this node forwards, as far as traffic rules tell them apart, and rules that refuse them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Fault, Manager, Variant};
use crate::LinkName;
use crate::family::Family;
use crate::underlay::AddressFacts;

/// Name of the pods' bridge while there is none: flannel's CNI plugin uses this name.
const BRIDGE: &str = "cni0";

/// Traffic between the pods of this node and the pods of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passage {
    pub own: IpNet,
    pub peer: IpNet,
    /// Device that leads to the peer.
    pub link: LinkName,
}

/// First packet of a connection between pods, on its way through this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Device by which it comes in.
    pub inbound: LinkName,
    /// Device by which it leaves.
    pub outbound: LinkName,
}

impl Passage {
    /// Returns one packet for each direction.
    pub fn packets(&self, bridge: LinkName) -> [Packet; 2] {
        let (own, peer) = (pod(self.own), pod(self.peer));
        [
            Packet { source: own, destination: peer, inbound: bridge, outbound: self.link },
            Packet { source: peer, destination: own, inbound: self.link, outbound: bridge },
        ]
    }

    /// Returns the device of this node's pods: the one with an address inside their subnet that is not ours.
    pub fn bridge(&self, addresses: &[AddressFacts], ours: &[LinkName]) -> LinkName {
        let holds =
            |facts: &&AddressFacts| self.own.contains(&facts.address.addr()) && !ours.contains(&facts.link);
        let usual = || BRIDGE.parse().unwrap_or(self.link);
        addresses.iter().find(holds).map_or_else(usual, |facts| facts.link)
    }
}

/// Returns the address of a pod subnet that is given to a pod last.
pub(crate) fn pod(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => {
            (u32::from(net.broadcast()) - u32::from(net.prefix_len() < 31)).to_be_bytes().into()
        }
        IpNet::V6(net) => {
            (u128::from(net.broadcast()) - u128::from(net.prefix_len() < 127)).to_be_bytes().into()
        }
    }
}

/// Policy or rule that refuses a packet between pods on its way through this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obstacle {
    pub manager: Manager,
    /// Family in nft(8)'s words, such as `inet`.
    pub family: Box<str>,
    pub table: Box<str>,
    /// Base chain, such as `FORWARD`.
    pub chain: Box<str>,
    /// Policy or rule, such as `-A LOGGING -j DROP`.
    pub what: Box<str>,
    /// Example of a refused packet.
    pub packet: Packet,
}

impl Obstacle {
    /// Returns the fault, with the command that accepts the pods' `network` ahead of the obstacle.
    pub(super) fn fault(&self, network: IpNet) -> Fault {
        let accept = |nft: &str, iptables: &str| match self.manager {
            Manager::Nftables => {
                let protocol = Family::of(network.addr()).nft();
                let Self { family, table, chain, .. } = self;
                format!("nft insert rule {family} {table} {chain} {protocol} {nft} {network} accept")
            }
            Manager::Iptables(variant) => {
                let program = program(variant, Family::of(network.addr()));
                format!("{program} -t {} -I {} {iptables} {network} -j ACCEPT", self.table, self.chain)
            }
        };
        Fault::PodsRefused {
            place: self.to_string().into(),
            what: self.what.clone(),
            from: self.packet.source,
            to: self.packet.destination,
            remedy: format!("{}; {}", accept("saddr", "-s"), accept("daddr", "-d")).into(),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { manager, family, table, chain, .. } = self;
        match manager {
            Manager::Nftables => write!(f, "chain {chain} of nftables' table {family} {table}"),
            Manager::Iptables(variant) => {
                let family = Family::of(self.packet.source);
                write!(f, "the {family} {chain} chain of {variant}, table {table},")
            }
        }
    }
}

/// Returns the program of one variant and family, such as `ip6tables-nft`.
pub(super) fn program(variant: Variant, family: Family) -> String {
    let base = if family == Family::Ipv4 { "iptables" } else { "ip6tables" };
    let tag = if variant == Variant::Nft { "nft" } else { "legacy" };
    format!("{base}-{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn packets_go_both_ways_between_the_last_pods() {
        let link: LinkName = "flannel.1".parse().unwrap();
        let passage = Passage { own: net("10.244.1.0/24"), peer: net("10.244.2.0/24"), link };
        let bridge = passage.bridge(&[], &[link]);
        assert_eq!(bridge.as_str(), "cni0");
        let [out, back] = passage.packets(bridge);
        assert_eq!((out.source, out.destination), ([10, 244, 1, 254].into(), [10, 244, 2, 254].into()));
        assert_eq!((out.inbound, out.outbound, back.inbound), (bridge, link, link));
        assert_eq!(pod(net("fd00::/64")), "fd00::ffff:ffff:ffff:fffe".parse::<IpAddr>().unwrap());
        assert_eq!(pod(net("10.0.0.7/32")), IpAddr::from([10, 0, 0, 7]));
    }

    #[test]
    fn the_bridge_is_the_device_with_an_address_in_the_subnet_that_is_not_ours() {
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
        assert_eq!(passage.bridge(&all, &[link]).as_str(), "br9");
    }

    #[test]
    fn a_fault_names_the_place_and_the_command() {
        let packet = Packet {
            source: [10, 244, 2, 254].into(),
            destination: [10, 244, 1, 254].into(),
            inbound: "flannel.1".parse().unwrap(),
            outbound: "cni0".parse().unwrap(),
        };
        let mut obstacle = Obstacle {
            manager: Manager::Nftables,
            family: "inet".into(),
            table: "guard".into(),
            chain: "fwd".into(),
            what: "policy drop".into(),
            packet,
        };
        let text = obstacle.fault(net("10.244.0.0/16")).words().to_string();
        assert!(
            text.contains("chain fwd of nftables' table inet guard") && text.contains("policy drop"),
            "{text}"
        );
        assert!(text.contains("nft insert rule inet guard fwd ip saddr 10.244.0.0/16 accept"), "{text}");
        obstacle.manager = Manager::Iptables(Variant::Legacy);
        (obstacle.table, obstacle.chain) = ("raw".into(), "PREROUTING".into());
        let text = obstacle.fault(net("10.244.0.0/16")).words().to_string();
        assert!(text.contains("iptables-legacy -t raw -I PREROUTING -d 10.244.0.0/16 -j ACCEPT"), "{text}");
    }
}
