//! Admission of peers' leases: checks each one by itself and against those admitted before it. Data from peers is hostile until
//! it has passed here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Draft;
use crate::backend::{Backend, Encapsulation, End};
use crate::family::Family;
use crate::ip_address::{is_host_address, number};
use crate::lease::Lease;
use crate::mac::Mac;
use crate::peer::UNPRIVILEGED;
use crate::pool;
use crate::tunnel_id::TunnelId;
use crate::warning::PeerFault;

/// Destination of an FDB entry: underlay address and UDP port.
pub(super) type Remote = (IpAddr, Option<u16>);

/// Key and value of an FDB entry: tunnel and MAC address, and the destination.
pub(super) type FdbEnd = ((TunnelId, Mac), Remote);

/// Admitted leases of one family, by which conflicts of the next lease are found. An index exists only if two leases may
/// conflict, which is rare.
pub(super) struct Admitted {
    /// Subnets by first address, with the last address; `None` if no two overlap.
    spans: Option<BTreeMap<u128, (u128, IpNet)>>,
    /// Tunnel ends by tunnel and MAC address, since an FDB has one entry per MAC. `None` if all differ.
    macs: Option<BTreeMap<(TunnelId, Mac), (IpNet, Remote)>>,
    /// Index of nodes and subnets together; present only if some node's address lies in the pod network.
    mixed: Option<Mixed>,
}

impl Admitted {
    /// Creates an empty index for these leases. `network` is the pod network and `own` our own subnet in it.
    pub(super) fn none_of(
        leases: &[&Lease],
        family: Family,
        own: Option<IpNet>,
        network: Option<IpNet>,
        backend: &Backend,
    ) -> Self {
        let subnets = leases.iter().filter_map(|lease| lease.subnet.of(family));
        let span = |subnet: IpNet| (number(subnet.network()), number(subnet.broadcast()));
        let mut spans: Vec<_> = subnets.map(span).collect();
        spans.sort_unstable();
        let in_network = |ip: IpAddr| network.is_some_and(|network| network.contains(&ip));
        let is_mixed = leases.iter().any(|lease| lease.public(family).is_some_and(in_network));
        let ends = leases.iter().filter_map(|lease| lease.announced.end(family, backend));
        let mut macs: Vec<_> = ends.filter_map(|end| Some((end.id, end.mac?))).collect();
        macs.sort_unstable();
        Self {
            spans: spans.windows(2).any(|pair| pair[1].0 <= pair[0].1).then(BTreeMap::new),
            macs: macs.windows(2).any(|pair| pair[0] == pair[1]).then(BTreeMap::new),
            mixed: is_mixed
                .then(|| Mixed { subnets: own.map(span).into_iter().collect(), ..Mixed::default() }),
        }
    }

    /// Adds an admitted peer, with key and value of its FDB entry.
    pub(super) fn insert(&mut self, subnet: IpNet, node: IpAddr, end: Option<FdbEnd>) {
        if let Some(mixed) = &mut self.mixed {
            mixed.subnets.insert(number(subnet.network()), number(subnet.broadcast()));
            mixed.nodes.insert(number(node), node);
        }
        if let Some(spans) = &mut self.spans {
            spans.insert(number(subnet.network()), (number(subnet.broadcast()), subnet));
        }
        if let Some(macs) = &mut self.macs {
            macs.extend(end.map(|(key, remote)| (key, (subnet, remote))));
        }
    }

    /// Returns an admitted subnet that overlaps this one.
    fn overlapping(&self, subnet: IpNet) -> Option<IpNet> {
        let before = self.spans.as_ref()?.range(..=number(subnet.broadcast())).next_back();
        before.filter(|(_, (end, _))| *end >= number(subnet.network())).map(|(_, (_, other))| *other)
    }
}

/// Subnets and nodes that share one address space. If two leases share an address, the one admitted first stays.
#[derive(Default)]
struct Mixed {
    /// Last address of each subnet, by its first address.
    subnets: BTreeMap<u128, u128>,
    nodes: BTreeMap<u128, IpAddr>,
}

impl Mixed {
    /// Returns true if the address lies in a subnet that was admitted before.
    fn is_leased(&self, address: IpAddr) -> bool {
        let address = number(address);
        self.subnets.range(..=address).next_back().is_some_and(|(_, last)| *last >= address)
    }

    /// Returns a node that was admitted before and lies in this subnet.
    fn node_in(&self, subnet: IpNet) -> Option<IpNet> {
        let inside = number(subnet.network())..=number(subnet.broadcast());
        self.nodes.range(inside).next().map(|(_, node)| (*node).into())
    }
}

impl Draft<'_> {
    /// Returns the peer's underlay address if its lease is valid and conflicts with nothing, else the fault.
    pub(super) fn admit(
        &self,
        family: Family,
        lease: &Lease,
        subnet: IpNet,
        admitted: &Admitted,
    ) -> Result<IpAddr, PeerFault> {
        if subnet.addr() != subnet.network() {
            return Err(PeerFault::Misaligned);
        }
        if !self.owned.in_network(&subnet) {
            return Err(PeerFault::OutsideNetwork);
        }
        let lengths = self.config.network(family).map(|network| pool::lengths(&network));
        if lengths.is_some_and(|lengths| !lengths.contains(&subnet.prefix_len())) {
            return Err(PeerFault::BadLength);
        }
        let ours = self.node.subnet.of(family);
        if let Some(ours) = ours.filter(|ours| ours.contains(&subnet) || subnet.contains(ours)) {
            return Err(PeerFault::OverlapsOurs(ours));
        }
        if let Some(other) = admitted.overlapping(subnet) {
            return Err(PeerFault::Overlaps(other));
        }
        let mixed = admitted.mixed.as_ref();
        if let Some(with) = self.underlay_within(subnet).or_else(|| mixed?.node_in(subnet)) {
            return Err(PeerFault::OverlapsUplink { uplink: self.node.uplink.link, with });
        }
        let public_ip = lease.public(family).ok_or(PeerFault::NoPublicAddress(family))?;
        let in_pods = self.config.pods_at(public_ip).is_some()
            || subnet.contains(&public_ip)
            || mixed.is_some_and(|mixed| mixed.is_leased(public_ip));
        let own_address = self.node.uplink.address(family);
        if !is_peer_address(public_ip, own_address) || in_pods || self.is_broadcast(public_ip) {
            return Err(PeerFault::BadPublicAddress(public_ip));
        }
        let is_ours = self.underlay.addresses.iter().any(|facts| facts.address.addr() == public_ip);
        if is_ours || self.node.uplink.public(family) == Some(public_ip) {
            return Err(PeerFault::OurPublicAddress(public_ip));
        }
        Ok(public_ip)
    }

    /// Returns key and value of the FDB entry for a peer's tunnel end; `None` if the tunnel needs none. The fault
    /// says why the end cannot be used beside ours and those of the admitted peers.
    pub(super) fn admit_end(
        &self,
        family: Family,
        public_ip: IpAddr,
        tunnel: &Encapsulation,
        end: End,
        admitted: &Admitted,
    ) -> Result<Option<FdbEnd>, PeerFault> {
        if !self.owned.tunnels.contains(&end.id) {
            return Err(PeerFault::UnusableVni(end.id.number));
        }
        // A lease must not make all nodes send to a well-known port.
        if let Some(port) = end.port.filter(|port| *port < UNPRIVILEGED && Some(*port) != tunnel.port) {
            return Err(PeerFault::BadPort(port));
        }
        let Some(mac) = end.mac else { return Ok(None) };
        let ours = match family {
            Family::Ipv4 => self.node.vtep,
            Family::Ipv6 => self.node.vtep_v6,
        };
        if !mac.is_unicast() {
            return Err(PeerFault::BadVtepMac(mac));
        }
        if ours == Some(mac) {
            return Err(PeerFault::OurVtepMac(mac));
        }
        let (key, remote) = ((end.id, mac), (public_ip, end.port.or(tunnel.port)));
        match admitted.macs.as_ref().and_then(|macs| macs.get(&key)) {
            Some(&(with, other)) if other != remote => Err(PeerFault::SharedVtepMac { mac, with }),
            _ => Ok(Some((key, remote))),
        }
    }

    /// Returns a network of the uplink that overlaps this subnet, which would take its traffic. Inside the ranges that subnets
    /// are leased from, the uplink has no network.
    fn underlay_within(&self, subnet: IpNet) -> Option<IpNet> {
        if self.owned.pods.iter().any(|range| range.covers(&subnet)) {
            return None;
        }
        let of_uplink = self.underlay.addresses.iter().filter(|facts| facts.link == self.node.uplink.link);
        let mut networks = of_uplink.map(|facts| facts.address.trunc());
        networks.find(|network| network.contains(&subnet) || subnet.contains(network))
    }

    /// Returns true if this is the network or broadcast address of a segment of ours.
    fn is_broadcast(&self, address: IpAddr) -> bool {
        self.underlay.addresses.iter().any(|facts| match facts.address {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                [net.network(), net.broadcast()].map(IpAddr::V4).contains(&address)
            }
            _ => false,
        })
    }
}

/// Returns true if packets for a peer's pods may be sent to this address. It must be a node's. An IPv4 link-local
/// address is accepted only if our own address is link-local, too.
pub(super) fn is_peer_address(address: IpAddr, ours: Option<IpAddr>) -> bool {
    let is_link_local = |address| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4().is_some(),
    };
    is_host_address(address)
        && (!is_link_local(address) || (address.is_ipv4() && ours.is_some_and(is_link_local)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_addresses_are_accepted_as_peer_addresses() {
        let is_peer = |address: &str, ours: &str| {
            is_peer_address(address.parse().unwrap(), Some(ours.parse().unwrap()))
        };
        let (ours, ours6) = ("192.168.100.11", "fd00:100::11");
        for address in ["192.168.100.12", "203.0.113.9", "10.0.0.1"] {
            assert!(is_peer(address, ours), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.0.0.9",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
        ] {
            assert!(!is_peer(address, ours), "{address}");
        }
        assert!(is_peer("169.254.7.7", "169.254.7.8"), "nodes that have no other addresses");
        assert!(is_peer("fd00:100::12", ours6) && is_peer("2001:db8::1", ours6));
        for address in
            ["::", "::1", "fe80::1", "ff02::1", "ff05::2", "::ffff:192.168.100.12", "::192.168.100.12"]
        {
            assert!(!is_peer(address, ours6), "{address}");
        }
        assert!(!is_peer("fe80::1", "fe80::2"), "an address without its link leads nowhere");
    }
}
