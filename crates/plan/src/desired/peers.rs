//! Desired rows for each peer. A peer is reached as its own lease announces, not by this node's backend. So nodes may change
//! their backend one by one.

use std::cmp::{Ordering, Reverse};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Draft;
use super::admitted::Admitted;
use crate::backend::{Direct, Encapsulation, End, Endpoint, host_gw};
use crate::direct;
use crate::family::Family;
use crate::health::PreferredPath;
use crate::lease::Lease;
use crate::lease_conflicts::Standing;
use crate::peer::{Path, PeerPath, Tunnel};
use crate::warning::{NodeFault, PeerFault};

impl Draft<'_> {
    /// Adds the rows of all peers of one family. `order` is the list of their leases.
    pub(super) fn peers_of(&mut self, family: Family, mut order: Vec<&Lease>) {
        let (own, network) = (self.node.subnet.of(family), self.config.network(family));
        let admitted = Admitted::none_of(&order, family, own, network, &self.config.backend);
        let (mut admitted, before) = (admitted, self.peers.len());
        order.sort_unstable_by(|one, other| self.before(family, one, other));
        for lease in order {
            let Some(subnet) = lease.subnet.of(family) else { continue };
            if let Err(fault) = self.reach(family, lease, subnet, &mut admitted) {
                self.warn_peer(subnet, fault);
            }
        }
        self.check_segment(family, before);
    }

    /// Orders leases by precedence: if two exclude each other, the first is admitted. See `lease_conflicts`.
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
    fn check_segment(&mut self, family: Family, before: usize) {
        let paths = || self.peers[before..].iter();
        let far = paths().find(|peer| peer.path == Path::Unreachable).map(|peer| peer.public_ip);
        if let Some(far) = far.filter(|_| self.config.backend.is_direct_only())
            && !paths().any(|peer| peer.path == Path::Direct)
        {
            let peer_on = direct::segment_of(self.underlay, far).map(|link| (far, link));
            self.warn_node(NodeFault::NoPeerOnLink { uplink: self.node.uplink.link, family, peer_on });
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
        let ours = &self.config.backend;
        let Some(backend) = ours.towards(&lease.announced, family) else {
            let theirs = lease.announced.backend_type().into();
            return Err(PeerFault::OtherBackend { theirs, ours: ours.name().into() });
        };
        let on_link = self.on_link.reaches(public_ip);
        let by_evidence = on_link && backend.direct() == Direct::Verified;
        let (path, tunnel) = match backend.tunnel() {
            None => {
                admitted.insert(subnet, public_ip, None);
                (self.reach_directly(family, subnet, public_ip), None)
            }
            Some(tunnel) => {
                let end = lease.announced.end(family, ours).ok_or(PeerFault::NoVtep(family))?;
                let fdb = self.admit_end(family, public_ip, &tunnel, end, admitted)?;
                admitted.insert(subnet, public_ip, fdb);
                let mac = end.mac.unwrap_or_default();
                let peer = Endpoint { subnet, local: public_ip, mac };
                let path = self.reach_by_tunnel(family, &tunnel, &peer, end.port);
                (path, Some(self.tunnel_to(family, &tunnel, end)))
            }
        };
        self.peers.push(PeerPath { subnet, public_ip, path, on_link, tunnel, by_evidence, born: lease.born });
        // A peer that is unreachable or waits has a warning of its own.
        if let (Path::Tunnel(_) | Path::Direct, Some(finding)) =
            (path, self.preferred_paths.fault(subnet, public_ip))
        {
            self.warn_peer(subnet, PeerFault::Probed(finding));
        }
        Ok(())
    }

    /// Returns the tunnel to a peer: our device, and the peer's MAC address and port.
    fn tunnel_to(&self, family: Family, tunnel: &Encapsulation, end: End) -> Tunnel {
        Tunnel {
            kind: tunnel.id.kind,
            link: tunnel.device_name(family),
            mac: end.mac,
            port: end.port.or(tunnel.port),
            mtu: tunnel.device_mtu(family, &self.node.uplink),
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
        self.warn_peer(subnet, PeerFault::NotOnLink { next_hop: public_ip, uplink });
        Path::Unreachable
    }

    /// Returns true if a direct route to that node has to wait for the uplink. If only the route to our own segment is missing,
    /// another route of the uplink may still cover the node.
    fn waits_for(&self, family: Family, node: IpAddr) -> bool {
        let covered = self.without_segment.contains(&family) && self.on_link.reaches(node);
        self.waiting.contains(&family) && !covered
    }

    /// Returns true if a peer may be direct, but this cannot be decided now. Its path in the kernel then stays. If
    /// only the route to our segment is missing, a peer that goes by tunnel does not wait.
    fn waits(&self, direct: Direct, family: Family, subnet: IpNet, public_ip: IpAddr) -> bool {
        let only_segment = self.without_segment.contains(&family);
        self.waits_for(family, public_ip)
            && match direct {
                Direct::Never => false,
                Direct::OnLink if only_segment => self.preferred_paths.has_route(subnet, public_ip),
                Direct::Verified if only_segment => {
                    self.preferred_paths.path_of(subnet, public_ip) == PreferredPath::Direct
                }
                Direct::OnLink | Direct::Verified => true,
            }
    }

    /// Returns true if a peer with this option is to be reached directly.
    fn goes_direct(&self, direct: Direct, subnet: IpNet, public_ip: IpAddr) -> bool {
        let may = match direct {
            Direct::Never => false,
            Direct::OnLink => true,
            Direct::Verified => self.preferred_paths.path_of(subnet, public_ip) == PreferredPath::Direct,
        };
        may && self.on_link.reaches(public_ip)
    }

    /// Adds the rows of a peer with a tunnel: direct if possible and allowed, else by tunnel.
    fn reach_by_tunnel(
        &mut self,
        family: Family,
        tunnel: &Encapsulation,
        peer: &Endpoint,
        port: Option<u16>,
    ) -> Path {
        let (subnet, public_ip) = (peer.subnet, peer.local);
        if self.waits(tunnel.direct, family, subnet, public_ip) {
            return Path::Waiting;
        }
        if self.goes_direct(tunnel.direct, subnet, public_ip) {
            return self.reach_directly(family, subnet, public_ip);
        }
        if !self.device(tunnel, family) {
            return Path::Waiting;
        }
        let rows = tunnel.peer(peer, port, self.config.table);
        self.neighbours.extend(rows.neighbour);
        self.fdb.extend(rows.fdb);
        self.routes.push(rows.route);
        Path::Tunnel(tunnel.id.kind)
    }
}
