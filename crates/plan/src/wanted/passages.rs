//! Samples of the traffic between our pods and peers' pods, and of peers' tunnel packets, by which the firewall rules of
//! other programs are judged.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::family::Family;
use crate::name::LinkName;
use crate::node::Node;
use crate::owned::Owned;
use crate::passage::{Packet, Passage, Payload};
use crate::range::Range;

/// Maximum number of peers per family in the sample: a rule that refuses pods mostly refuses those of all nodes.
const PEERS: usize = 8;

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

/// Returns the sample of tunnel packets that peers with these public addresses send to this node.
pub(super) fn tunnelled(config: &Config, node: &Node, peers: impl Iterator<Item = IpAddr>) -> Vec<Packet> {
    let (Some(port), Ok(outbound)) = (config.backend.port(), "lo".parse()) else { return Vec::new() };
    let packet = |source: IpAddr| {
        let destination = node.uplink.address(Family::of(source)).filter(|own| *own != source)?;
        let payload = Payload::Tunnel(port);
        Some(Packet { source, destination, inbound: node.uplink.link, outbound, payload })
    };
    let mut all: Vec<Packet> = peers.filter_map(packet).collect();
    all.sort_unstable();
    all.dedup();
    let first = |family| {
        let of = all.iter().filter(move |packet| Family::of(packet.source) == family);
        of.take(PEERS).copied()
    };
    config.families().flat_map(first).collect()
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
