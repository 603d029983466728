//! Faults between two nodes, and their texts: the log, `twill status`, the metrics and `/readyz` all use the same. Causes that
//! cannot be distinguished from this side share one finding that names both.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::fault::Words;
use crate::mac::Mac;
use crate::name::LinkName;

/// State of one peer as seen from this node. Samples of the serialized form:
///
/// ```json
/// "healthy"
/// {"next-hop-silent": {"next_hop": "192.168.100.12", "uplink": "eth0"}}
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// Echoes between the pod subnets of both nodes are answered.
    Healthy,
    /// The peer was not probed yet, or it cannot be probed. No fault.
    Unverified,
    /// The peer answers ARP but has never answered an echo of any kind, most likely because of a filter. No fault.
    NoEcho,
    /// The peer answers ARP, but no longer the echoes that it answered before.
    EchoLost { node: IpAddr },
    /// The path is unreliable: some probes are answered, too many are lost.
    Flapping { node: IpAddr },
    /// The peer's address is on our segment, but it does not answer ARP or neighbour discovery.
    NextHopSilent { next_hop: IpAddr, uplink: LinkName },
    /// The peer answers no probe at all.
    Silent { node: IpAddr },
    /// A host on the path (`by`) sends ICMP errors for packets to the peer's pods.
    Refused { node: IpAddr, by: IpAddr },
    /// The node answers, but no tunnel packet comes back.
    TunnelLost { node: IpAddr, port: u16 },
    /// The node answers, but no packet with pod addresses comes back along the direct path.
    PodAddressesLost { next_hop: IpAddr, uplink: LinkName },
    /// A policy rule or route of this node diverts the packets. Nothing is known about the peer.
    Diverted { node: IpAddr },
    /// Our packets arrive, but the replies to our pods do not.
    NoWayBack { node: IpAddr },
    /// The MAC address of the next hop answers for another address, too, and no packet with pod addresses arrives.
    ProxyArp { next_hop: IpAddr, mac: Mac, also: IpAddr },
    /// Two MAC addresses answer for the peer's address, and packets to it are lost.
    DuplicateAddress { next_hop: IpAddr, macs: [Mac; 2] },
    /// Packets above `mtu` bytes between pods do not arrive.
    LostAbove { mtu: u16 },
    /// Large packets between pods arrive, but tunnel packets above `mtu` bytes only in fragments.
    Fragmented { mtu: u16 },
    /// Checksums that are left to the devices are wrong on arrival.
    ChecksumFault { node: IpAddr },
}

impl Finding {
    /// Returns the name in `twill status` and in the metrics, one to three words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unverified => "unverified",
            Self::NoEcho => "no echo",
            Self::EchoLost { .. } => "echo lost",
            Self::Flapping { .. } => "flapping",
            Self::NextHopSilent { .. } => "next hop silent",
            Self::Silent { .. } => "silent",
            Self::Refused { .. } => "refused",
            Self::TunnelLost { .. } => "tunnel lost",
            Self::PodAddressesLost { .. } => "pod addresses lost",
            Self::NoWayBack { .. } => "no way back",
            Self::Diverted { .. } => "diverted",
            Self::ProxyArp { .. } => "proxy ARP",
            Self::DuplicateAddress { .. } => "duplicate address",
            Self::LostAbove { .. } => "large packets lost",
            Self::Fragmented { .. } => "fragmented",
            Self::ChecksumFault { .. } => "checksum fault",
        }
    }

    /// Returns true if the finding is a fault that has to be reported.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Healthy | Self::Unverified | Self::NoEcho)
    }

    /// Returns the observation with its possible causes, and the remedy.
    pub fn words(&self) -> Words {
        match *self {
            Self::Healthy => Words::new("node to node: echoes between the pod subnets of both nodes are answered"),
            Self::Unverified => Words::new(
                "not verified: it has not been probed yet, or one of the two nodes has no address in its pod subnet",
            ),
            Self::NoEcho => Words::new(
                "it answers ARP (or neighbour discovery) and has never answered an echo, so its path cannot be verified: is \
                 ICMP filtered?",
            )
            .remedy("Accept echo requests between the nodes"),
            Self::EchoLost { node } => echo_lost(node),
            Self::Flapping { node } => Words::new(format!(
                "at least 10 of the last 20 probes to {node} were lost, and the others were answered"
            ))
            .remedy("Check its link, its load and the switch"),
            Self::NextHopSilent { next_hop, uplink } => next_hop_silent(next_hop, uplink),
            Self::Silent { node } => Words::new(format!(
                "{node} answers no probe: the node or its network is down, or everything is filtered on this node, there, or \
                 on the path"
            ))
            .remedy("Check the node, and routes and firewalls here, there and between"),
            Self::Refused { node, by } => Words::new(format!(
                "{by} sends an ICMP error for packets between our pods and those of {node}"
            ))
            .remedy("Check its routes and firewall"),
            Self::TunnelLost { node, port } => tunnel_lost(node, port),
            Self::PodAddressesLost { next_hop, uplink } => pod_addresses_lost(next_hop, uplink),
            Self::Diverted { node } => Words::new(format!(
                "a policy rule or route of this node takes the packets for the pods of {node} away from twill's route, \
                 so the state of the peer is unknown: the warnings name that rule or route"
            )),
            Self::NoWayBack { node } => no_way_back(node),
            Self::ProxyArp { next_hop, mac, also } => proxy_arp(next_hop, mac, also),
            Self::DuplicateAddress { next_hop, macs: [first, second] } => {
                duplicate_address(next_hop, first, second)
            }
            Self::LostAbove { mtu } => lost_above(mtu),
            Self::Fragmented { mtu } => fragmented(mtu),
            Self::ChecksumFault { node } => checksum_fault(node),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words().fmt(f)
    }
}

fn echo_lost(node: IpAddr) -> Words {
    Words::new(format!(
        "{node} still answers ARP (or neighbour discovery) but no longer echoes: ICMP is filtered now on this node, \
         there, or on the path, or the node hangs"
    ))
    .remedy("Check the node; if it is well, accept echo requests and replies on both nodes")
}

fn next_hop_silent(next_hop: IpAddr, uplink: LinkName) -> Words {
    let question = if next_hop.is_ipv6() { "neighbour discovery" } else { "ARP" };
    Words::new(format!(
        "no answer to {question} for {next_hop} on {uplink}: it is down, or not on this layer-2 segment, or {question} is \
         filtered"
    ))
    .remedy(
        "If the node is up, check its link, and VLANs and filters between; host-gw needs one layer-2 segment, backend \
         type auto or vxlan does not",
    )
}

fn tunnel_lost(node: IpAddr, port: u16) -> Words {
    Words::new(format!(
        "{node} answers, but no tunnel packet comes back: UDP port {port} is filtered on this node, there, or on the \
         path, or a hypervisor uses it itself, or the tunnel there is down"
    ))
    .remedy(format!("Open UDP {port} in both directions, or choose another port in the network config"))
}

fn pod_addresses_lost(next_hop: IpAddr, uplink: LinkName) -> Words {
    Words::new(format!(
        "{next_hop} answers on {uplink}, but no packet with pod addresses comes back: the network drops unknown \
         addresses (clouds do: turn off the check of source and destination), or the node drops them \
         (rp_filter 1 on its uplink, its firewall, a missing route)"
    ))
    .remedy("Backend type auto or vxlan then uses the tunnel")
}

fn no_way_back(node: IpAddr) -> Words {
    Words::new(format!(
        "packets to the pods of {node} arrive, but the replies to our pods do not. This node cannot see why: {node} \
         may have lost its route, neighbour or FDB entry for us, a policy rule there may take the packets, \
         its rp_filter or firewall may drop our pod addresses, or the network between may"
    ))
    .remedy("Check `twill status` and the routes on that node")
}

fn proxy_arp(next_hop: IpAddr, mac: Mac, also: IpAddr) -> Words {
    Words::new(format!(
        "{mac} answers for {next_hop} and for {also}, but no packet with pod addresses gets through: a router with \
         proxy ARP seems to stand between, or {next_hop} has both and drops them"
    ))
    .remedy("Host-gw needs one layer-2 segment, backend type auto or vxlan does not")
}

fn duplicate_address(next_hop: IpAddr, first: Mac, second: Mac) -> Words {
    Words::new(format!("both {first} and {second} answer for {next_hop}, and packets to it are lost")).remedy(
        "If both are NICs of that node on one segment, set net.ipv4.conf.all.arp_ignore=1 there; otherwise take the address \
         away from the wrong one",
    )
}

fn lost_above(mtu: u16) -> Words {
    Words::new(format!(
        "packets of more than {mtu} bytes between pods are lost, and smaller ones arrive: a link on the path has a \
         smaller MTU than both ends"
    ))
    .remedy(format!("Raise its MTU, or set MTU in the network config so that pods have at most {mtu}"))
}

fn fragmented(mtu: u16) -> Words {
    Words::new(format!(
        "whole packets of more than {mtu} bytes do not reach the node, so large packets between pods travel in fragments of \
         tunnel packets, which is slow"
    ))
    .remedy("Raise the MTU on the path, or set a smaller MTU in the network config")
}

fn checksum_fault(node: IpAddr) -> Words {
    Words::new(format!(
        "{node} answers probes with a complete checksum, and none whose checksum the devices have to fill in: checksum \
         offload of the tunnel's inner packets is broken, on this node or on the path"
    ))
    .remedy("Try: ethtool -K DEVICE tx-checksum-ip-generic off, for the tunnel's device")
}
