//! Sample traffic of pods, by which traffic rules and routes of other programs are judged.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::LinkName;

/// Device by which packets of the node itself come in.
const LOOPBACK: &str = "lo";

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
    /// Device by which it comes in; `lo` if this node itself sends it.
    pub inbound: LinkName,
    /// Device by which it leaves.
    pub outbound: LinkName,
    #[serde(default, skip_serializing_if = "Payload::is_any")]
    pub payload: Payload,
}

/// Transport protocol of a packet, as far as rules are judged by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// Any protocol: a rule for one protocol concerns a part of such packets.
    #[default]
    Any,
    Tcp,
    Udp,
    /// Tunnel packet of a peer to this UDP port of the node itself.
    Tunnel(u16),
}

impl Packet {
    /// Returns true if the node receives the packet itself, and does not forward it.
    pub fn is_received(&self) -> bool {
        matches!(self.payload, Payload::Tunnel(_))
    }

    /// Returns true if this node itself sends the packet.
    pub fn is_local(&self) -> bool {
        self.inbound.as_str() == LOOPBACK
    }
}

impl Payload {
    fn is_any(&self) -> bool {
        *self == Self::Any
    }

    /// Returns the protocol's name in iptables and its number; `None` for any protocol.
    pub fn protocol(self) -> Option<(&'static str, u8)> {
        match self {
            Self::Any => None,
            Self::Tcp => Some(("tcp", 6)),
            Self::Udp | Self::Tunnel(_) => Some(("udp", 17)),
        }
    }
}

impl Passage {
    /// Returns one packet for each direction.
    pub fn packets(&self, bridge: LinkName) -> [Packet; 2] {
        let (own, peer, payload) = (pod(self.own), pod(self.peer), Payload::Any);
        [
            Packet { source: own, destination: peer, inbound: bridge, outbound: self.link, payload },
            Packet { source: peer, destination: own, inbound: self.link, outbound: bridge, payload },
        ]
    }

    /// Returns the packet that this node itself sends from the first address of its pod subnet, as probes do.
    pub fn local_packet(&self) -> Packet {
        let inbound = LOOPBACK.parse().unwrap_or(self.link);
        Packet {
            source: self.own.network(),
            destination: pod(self.peer),
            inbound,
            outbound: self.link,
            payload: Payload::Any,
        }
    }
}

/// Returns the address of a pod subnet that is given to a pod last.
fn pod(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => {
            (u32::from(net.broadcast()) - u32::from(net.prefix_len() < 31)).to_be_bytes().into()
        }
        IpNet::V6(net) => {
            (u128::from(net.broadcast()) - u128::from(net.prefix_len() < 127)).to_be_bytes().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_passage_has_a_packet_in_each_direction() {
        let link: LinkName = "flannel.1".parse().unwrap();
        let passage = Passage { own: net("10.244.1.0/24"), peer: net("10.244.2.0/24"), link };
        let bridge: LinkName = "cni0".parse().unwrap();
        let [out, back] = passage.packets(bridge);
        assert_eq!((out.source, out.destination), ([10, 244, 1, 254].into(), [10, 244, 2, 254].into()));
        assert_eq!((out.inbound, out.outbound, back.inbound), (bridge, link, link));
        let local = passage.local_packet();
        assert_eq!((local.source, local.outbound), (IpAddr::from([10, 244, 1, 0]), link));
        assert!(local.is_local() && !out.is_local() && local.destination == out.destination);
        assert_eq!(pod(net("fd00::/64")), "fd00::ffff:ffff:ffff:fffe".parse::<IpAddr>().unwrap());
        assert_eq!(pod(net("10.0.0.7/32")), IpAddr::from([10, 0, 0, 7]));
    }
}
