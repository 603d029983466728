//! Sample traffic of pods and nodes, by which traffic rules and routes of other programs are judged.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::family::Family;
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

/// First packet of a connection between pods, on its way through this node; or a packet between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Device by which it comes in; `lo` if this node itself sends it.
    pub inbound: LinkName,
    /// Device by which it leaves; `lo` if this node itself receives it.
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
    /// Tunnel packet between this node and a peer, to this UDP port.
    Tunnel(u16),
    /// ICMP echo between this node and a peer.
    Echo(Echo),
}

/// Half of an ICMP echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Echo {
    Request,
    Reply,
}

impl Echo {
    /// Returns the ICMP type.
    pub fn number(self, family: Family) -> u8 {
        match (family, self) {
            (Family::Ipv4, Self::Request) => 8,
            (Family::Ipv4, Self::Reply) => 0,
            (Family::Ipv6, Self::Request) => 128,
            (Family::Ipv6, Self::Reply) => 129,
        }
    }
}

/// Part of a packet's way that lies on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    Forwarded,
    /// The node itself receives the packet.
    Received,
    /// The node itself sends the packet.
    Sent,
}

impl Packet {
    /// Returns the part of the packet's way that lies on this node.
    pub fn leg(&self) -> Leg {
        match self.payload {
            Payload::Tunnel(_) | Payload::Echo(_) if self.is_local() => Leg::Sent,
            Payload::Tunnel(_) | Payload::Echo(_) => Leg::Received,
            Payload::Any | Payload::Tcp | Payload::Udp => Leg::Forwarded,
        }
    }

    /// Returns true if the node forwards the packet.
    pub fn is_forwarded(&self) -> bool {
        self.leg() == Leg::Forwarded
    }

    /// Returns true if the node receives the packet itself, and does not forward it.
    pub fn is_received(&self) -> bool {
        self.leg() == Leg::Received
    }

    /// Returns true if the packet answers another one, so that its connection is established. All other packets open one.
    pub fn is_reply(&self) -> bool {
        self.payload == Payload::Echo(Echo::Reply)
    }

    /// Returns the transport protocol's name in iptables and its number; `None` for any protocol.
    pub fn protocol(&self) -> Option<(&'static str, u8)> {
        match (self.payload, Family::of(self.source)) {
            (Payload::Any, _) => None,
            (Payload::Tcp, _) => Some(("tcp", 6)),
            (Payload::Udp | Payload::Tunnel(_), _) => Some(("udp", 17)),
            (Payload::Echo(_), Family::Ipv4) => Some(("icmp", 1)),
            (Payload::Echo(_), Family::Ipv6) => Some(("ipv6-icmp", 58)),
        }
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

    /// Returns true if one warning covers both: packets of pods, of tunnels, or echoes.
    pub fn is_like(self, other: Self) -> bool {
        let is_of_pods = |payload| matches!(payload, Self::Any | Self::Tcp | Self::Udp);
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
            || (is_of_pods(self) && is_of_pods(other))
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
