//! Samples of the traffic between our pods and peers' pods, and between the nodes themselves. The firewall rules of
//! other programs are judged by them.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::family::Family;
use crate::lease::Lease;
use crate::name::LinkName;
use crate::node::Node;
use crate::owned::Owned;
use crate::passage::{Echo, Packet, Passage, Payload};
use crate::peer::PeerPath;
use crate::range::Range;

/// Maximum number of peers per family in the sample: a rule that refuses pods mostly refuses those of all nodes.
const PEERS: usize = 8;

/// Maximum number of peers per family whose echoes are in the sample; each has up to eight packets.
const ECHOED: usize = 2;

/// Peer of the sample, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Other {
    address: IpAddr,
    subnet: IpNet,
    /// UDP port of its tunnel, if its lease names one.
    port: Option<u16>,
}

impl Other {
    pub(super) fn of_path(peer: &PeerPath) -> Self {
        let port = peer.tunnel.and_then(|tunnel| tunnel.port);
        Self { address: peer.public_ip, subnet: peer.subnet, port }
    }

    pub(super) fn of_lease(config: &Config, lease: &Lease, family: Family) -> Option<Self> {
        let port = lease.announced.end(family, &config.backend).and_then(|end| end.port);
        Some(Self { address: lease.public(family)?, subnet: lease.subnet.of(family)?, port })
    }
}

/// Returns the sample for peers with these subnets. Without any peer, another subnet of pods stands for them.
pub(super) fn passages(config: &Config, node: &Node, subnets: &[IpNet]) -> Vec<Passage> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let (Some(network), Some(own)) = (config.network(family), node.subnet.of(family)) else { continue };
        let fits =
            |subnet: &IpNet| network.contains(subnet) && *subnet == subnet.trunc() && *subnet != own.trunc();
        let mut peers: Vec<IpNet> = subnets.iter().copied().filter(fits).collect();
        peers.sort_unstable();
        peers.truncate(PEERS);
        let pods = config.pods(family).unwrap_or_else(|| network.into());
        peers.extend(another(pods, own).filter(|_| peers.is_empty()));
        for link in links(config, node, family) {
            all.extend(peers.iter().map(|&peer| Passage { own: own.trunc(), peer, link }));
        }
    }
    all
}

/// Returns the sample of tunnel packets and echoes between this node and these peers.
pub(super) fn between_nodes(config: &Config, node: &Node, peers: impl Iterator<Item = Other>) -> Vec<Packet> {
    let mut all: Vec<Other> = peers.filter(|_| config.backend.reaches_peers()).collect();
    all.sort_unstable();
    all.dedup_by_key(|peer| peer.address);
    let of_family = |family| {
        let own = node.uplink.address(family);
        let peers = all.iter().filter(move |peer| Family::of(peer.address) == family);
        let peers = peers.filter(move |peer| own.is_some_and(|own| own != peer.address));
        peers.take(PEERS).enumerate()
    };
    let packets = |(nth, peer): (usize, &Other)| {
        let echoes = if nth < ECHOED { echoes(config, node, peer) } else { Vec::new() };
        tunnelled(config, node, peer).into_iter().chain(echoes)
    };
    config.families().flat_map(of_family).flat_map(packets).collect()
}

/// Returns a tunnel packet from the peer and one to it.
fn tunnelled(config: &Config, node: &Node, peer: &Other) -> Vec<Packet> {
    let ports = config.backend.port().map(|own| (own, peer.port.unwrap_or(own)));
    let packets =
        ports.zip(node.uplink.address(Family::of(peer.address))).and_then(|((own, theirs), address)| {
            let [received, sent] = both(node.uplink.link, address, peer.address)?;
            let of = |packet, port| Packet { payload: Payload::Tunnel(port), ..packet };
            Some([of(received, own), of(sent, theirs)])
        });
    packets.into_iter().flatten().collect()
}

/// Returns the echoes of probes: those between the two nodes, and those between their pod subnets' first addresses if a
/// tunnel's device has these.
fn echoes(config: &Config, node: &Node, peer: &Other) -> Vec<Packet> {
    let family = Family::of(peer.address);
    let outer = node.uplink.address(family).map(|own| (node.uplink.link, own, peer.address));
    let device = config.backend.tunnel_id().map(|id| id.device(family));
    let own = node.subnet.of(family).map(|own| own.network());
    let inner = device.zip(own).map(|(device, own)| (device, own, peer.subnet.network()));
    let packets = outer.into_iter().chain(inner).filter_map(|(link, own, theirs)| both(link, own, theirs));
    let halves = |packet: Packet| {
        [Echo::Request, Echo::Reply].map(|half| Packet { payload: Payload::Echo(half), ..packet })
    };
    packets.flatten().flat_map(halves).collect()
}

/// Returns a packet from the peer that comes in by that device, and one to the peer that leaves there.
fn both(link: LinkName, own: IpAddr, theirs: IpAddr) -> Option<[Packet; 2]> {
    let lo = "lo".parse().ok()?;
    let payload = Payload::Any;
    Some([
        Packet { source: theirs, destination: own, inbound: link, outbound: lo, payload },
        Packet { source: own, destination: theirs, inbound: lo, outbound: link, payload },
    ])
}

/// Returns the devices that lead to peers.
fn links(config: &Config, node: &Node, family: Family) -> impl Iterator<Item = LinkName> {
    let tunnel = config.backend.tunnel_id().map(|id| id.device(family));
    let uplink = config.backend.may_be_direct().then_some(node.uplink.link);
    tunnel.into_iter().chain(uplink)
}

/// Returns the first or last subnet of the pods, whichever is not ours.
fn another(pods: Range, own: IpNet) -> Option<IpNet> {
    let subnet = |address| IpNet::new(address, own.prefix_len()).ok().map(|net| net.trunc());
    [pods.first, pods.last].into_iter().filter_map(subnet).find(|subnet| *subnet != own.trunc())
}

/// Adds the subnets of faulty peers, at most [`PEERS`], to those whose route the kernel is asked for.
pub(crate) fn name_faulty(owned: &mut Owned, subnets: impl Iterator<Item = IpNet>) {
    for subnet in subnets.take(PEERS) {
        let same =
            owned.passages.iter().filter(|known| known.own.addr().is_ipv4() == subnet.addr().is_ipv4());
        let mut more: Vec<Passage> = same.map(|known| Passage { peer: subnet, ..*known }).collect();
        more.sort_unstable();
        more.dedup();
        owned.faulty.append(&mut more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_subnet_is_one_of_pods() {
        let pods = Range { first: [10, 10, 0, 0].into(), last: [10, 99, 255, 255].into() };
        let another = |own: &str| another(pods, own.parse().unwrap()).unwrap().to_string();
        assert_eq!(another("10.20.16.1/20"), "10.10.0.0/20");
        assert_eq!(another("10.10.0.1/20"), "10.99.240.0/20");
    }
}
