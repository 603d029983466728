//! Desired rows for each peer. A peer is reached as its own lease announces, not by this node's backend. So nodes may change
//! their backend one by one.

use std::cmp::{Ordering, Reverse};
use std::net::IpAddr;

use ipnet::IpNet;

use super::admitted::Admitted;
use super::{Draft, Path, PeerPath, Tunnel};
use crate::backend::vxlan::{self, Direct, Endpoint};
use crate::backend::{Backend, TunnelKind, host_gw};
use crate::direct;
use crate::input::Family;
use crate::lease::{Announced, Lease, Vtep};
use crate::note::{NodeFault, PeerFault};
use crate::rivals::Standing;
use crate::verdict::Way;

impl Draft<'_> {
    /// Adds the rows of all peers of one family. `order` is the list of their leases.
    pub(super) fn peers_of(&mut self, family: Family, mut order: Vec<&Lease>) {
        let own_vni = self.config.backend.vni();
        let (own, network) = (self.node.subnet.of(family), self.config.network(family));
        let admitted = Admitted::none_of(&order, family, own, network, own_vni);
        let (mut admitted, before) = (admitted, self.peers.len());
        order.sort_unstable_by(|one, other| self.before(family, one, other));
        for lease in order {
            let Some(subnet) = lease.subnet.of(family) else { continue };
            if let Err(fault) = self.reach(family, lease, subnet, &mut admitted) {
                self.note_peer(subnet, fault);
            }
        }
        self.doubt_uplink(family, before);
    }

    /// Orders leases by precedence: if two exclude each other, the first is admitted. See `rivals`.
    fn before(&self, family: Family, one: &Lease, other: &Lease) -> Ordering {
        let standing = |lease: &Lease| {
            let key = lease.subnet.of(family).zip(lease.public(family))?;
            let contenders = self.contenders;
            let at = contenders.binary_search_by_key(&key, |it| (it.subnet, it.public_ip)).ok()?;
            contenders.get(at).map(|contender| contender.standing)
        };
        let rank = |lease: &Lease| (standing(lease).unwrap_or(Standing::Unknown), Reverse(lease.written));
        rank(one).cmp(&rank(other)).then_with(|| one.cmp(other))
    }

    /// Warns if no peer is on the uplink's segment: host-gw may have been given the wrong interface.
    fn doubt_uplink(&mut self, family: Family, before: usize) {
        let paths = || self.peers[before..].iter();
        let far = paths().find(|peer| peer.path == Path::Unreachable).map(|peer| peer.public_ip);
        if let (Backend::HostGw, Some(far)) = (&self.config.backend, far)
            && !paths().any(|peer| peer.path == Path::Direct)
        {
            let peer_on = direct::segment_of(self.underlay, far).map(|link| (far, link));
            self.note_node(NodeFault::NoPeerOnLink { uplink: self.node.uplink.link, family, peer_on });
        }
    }

    /// Adds the rows of one peer, or returns the fault for which it is left out.
    fn reach(
        &mut self,
        family: Family,
        lease: &Lease,
        subnet: IpNet,
        admitted: &mut Admitted,
    ) -> Result<(), PeerFault> {
        let public_ip = self.admit(family, lease, subnet, admitted)?;
        let (path, vtep) = match &lease.announced {
            Announced::HostGw => (self.reach_directly(family, subnet, public_ip), None),
            Announced::Vxlan { .. } => {
                let vtep = self.vtep_of(family, public_ip, lease, admitted)?;
                (self.reach_by_vxlan(family, subnet, public_ip, vtep), Some(vtep))
            }
            Announced::Nothing | Announced::Other(_) => {
                let theirs = lease.announced.backend_type().into();
                return Err(PeerFault::OtherBackend { theirs, ours: self.config.backend.name().into() });
            }
        };
        let end = vtep.map(|vtep| self.end_of(public_ip, vtep));
        admitted.insert(subnet, public_ip, end);
        let on_link = self.on_link.reaches(public_ip);
        let tunnel = vtep.map(|vtep| self.tunnel_to(family, vtep));
        let by_evidence =
            on_link && vtep.is_some_and(|vtep| self.options_for(vtep).direct == Direct::Verified);
        self.peers.push(PeerPath { subnet, public_ip, path, on_link, tunnel, by_evidence });
        // A peer that is unreachable or waits has a warning of its own.
        if let (Path::Tunnel(_) | Path::Direct, Some(finding)) = (path, self.ways.fault(subnet, public_ip)) {
            self.note_peer(subnet, PeerFault::Probed(finding));
        }
        Ok(())
    }

    /// Returns the tunnel to a peer: our device, and the peer's MAC address and port.
    fn tunnel_to(&self, family: Family, vtep: Vtep) -> Tunnel {
        let options = self.options_for(vtep);
        Tunnel {
            kind: TunnelKind::Vxlan,
            link: options.device_name(family),
            mac: Some(vtep.mac),
            port: Some(vtep.port.unwrap_or(options.port)),
            mtu: options.device_mtu(family, &self.node.uplink),
        }
    }

    /// Returns the VXLAN options for a peer: ours with its VNI, or the defaults without a VXLAN backend of our own.
    pub(super) fn options_for(&self, vtep: Vtep) -> vxlan::Options {
        let vni = vtep.vni_or(self.config.backend.vni());
        match self.config.backend {
            Backend::Vxlan(options) => vxlan::Options { vni, ..options },
            _ => vxlan::Options { vni, ..Default::default() },
        }
    }

    /// Adds the direct route to a peer, or an unreachable route if the peer is not on the segment.
    fn reach_directly(&mut self, family: Family, subnet: IpNet, public_ip: IpAddr) -> Path {
        let uplink = self.node.uplink.link;
        if self.waits_for(family, public_ip) {
            return Path::Waiting;
        }
        if self.on_link.reaches(public_ip) {
            self.routes.push(host_gw::direct(self.config.table, subnet, public_ip, uplink));
            return Path::Direct;
        }
        self.routes.push(host_gw::unreachable(self.config.table, subnet));
        self.note_peer(subnet, PeerFault::NotOnLink { next_hop: public_ip, uplink });
        Path::Unreachable
    }

    /// Returns true if a direct route to that node has to wait for the uplink. If only the route to our own segment is missing,
    /// another route of the uplink may still cover the node.
    fn waits_for(&self, family: Family, node: IpAddr) -> bool {
        let covered = self.without_segment.contains(&family) && self.on_link.reaches(node);
        self.waiting.contains(&family) && !covered
    }

    /// Returns true if a peer may be direct, but this cannot be decided now; its path in the kernel then stays. If only the
    /// route to our segment is missing, a peer that goes by tunnel does not wait.
    fn waits(&self, direct: Direct, family: Family, subnet: IpNet, public_ip: IpAddr) -> bool {
        let only_segment = self.without_segment.contains(&family);
        self.waits_for(family, public_ip)
            && match direct {
                Direct::Never => false,
                Direct::OnLink if only_segment => self.ways.stands(subnet, public_ip),
                Direct::Verified if only_segment => self.ways.way(subnet, public_ip) == Way::Direct,
                Direct::OnLink | Direct::Verified => true,
            }
    }

    /// Returns true if a peer with this option is to be reached directly.
    fn goes_direct(&self, direct: Direct, subnet: IpNet, public_ip: IpAddr) -> bool {
        let may = match direct {
            Direct::Never => false,
            Direct::OnLink => true,
            Direct::Verified => self.ways.way(subnet, public_ip) == Way::Direct,
        };
        may && self.on_link.reaches(public_ip)
    }

    /// Adds the rows of a peer with a VTEP: direct if possible and allowed, else by tunnel.
    fn reach_by_vxlan(&mut self, family: Family, subnet: IpNet, public_ip: IpAddr, vtep: Vtep) -> Path {
        let options = self.options_for(vtep);
        if self.waits(options.direct, family, subnet, public_ip) {
            return Path::Waiting;
        }
        if self.goes_direct(options.direct, subnet, public_ip) {
            return self.reach_directly(family, subnet, public_ip);
        }
        if !self.device(&options, family) {
            return Path::Waiting;
        }
        let peer = Endpoint { subnet, local: public_ip, mac: vtep.mac };
        let (neighbour, fdb, route) = options.peer(&peer, vtep.port, self.config.table);
        self.neighbours.push(neighbour);
        self.fdb.push(fdb);
        self.routes.push(route);
        Path::Tunnel(TunnelKind::Vxlan)
    }
}
