//! The rows for each peer: reached in the way that its own lease announces, whatever this node announces, so that nodes
//! may change their backend one after the other.

use std::net::IpAddr;

use ipnet::IpNet;

use super::admitted::Admitted;
use super::{Draft, Path, PeerPath};
use crate::backend::vxlan::{self, Endpoint};
use crate::backend::{Backend, host_gw};
use crate::direct;
use crate::input::Family;
use crate::lease::{Announced, Lease, Vtep};
use crate::note::{NodeFault, PeerFault};

impl Draft<'_> {
    pub(super) fn peers_of(&mut self, family: Family, order: &[&Lease]) {
        let (mut admitted, before) = (Admitted::default(), self.peers.len());
        for lease in order {
            let Some(subnet) = lease.subnet.of(family) else { continue };
            if let Err(fault) = self.reach(family, lease, subnet, &mut admitted) {
                self.note_peer(subnet, fault);
            }
        }
        self.doubt_uplink(family, before);
    }

    /// Where none of the peers is on its segment, host-gw may have been given the wrong interface.
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
                let vtep = self.vtep_of(family, lease, admitted)?;
                (self.reach_by_vxlan(family, subnet, public_ip, vtep), Some(vtep))
            }
            Announced::Nothing | Announced::Other(_) => {
                let theirs = lease.announced.backend_type().into();
                return Err(PeerFault::OtherBackend { theirs, ours: self.config.backend.name().into() });
            }
        };
        admitted.insert(subnet, vtep);
        self.peers.push(PeerPath { subnet, public_ip, path });
        Ok(())
    }

    fn reach_directly(&mut self, family: Family, subnet: IpNet, public_ip: IpAddr) -> Path {
        let uplink = self.node.uplink.link;
        if self.waiting.contains(&family) {
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

    fn reach_by_vxlan(&mut self, family: Family, subnet: IpNet, public_ip: IpAddr, vtep: Vtep) -> Path {
        let options = match self.config.backend {
            Backend::Vxlan(options) => vxlan::Options { vni: vtep.vni, ..options },
            _ => vxlan::Options { vni: vtep.vni, ..Default::default() },
        };
        if options.direct_routing && self.waiting.contains(&family) {
            // Which way it is reached cannot be told now; what stands stays.
            return Path::Waiting;
        }
        if options.direct_routing && self.on_link.reaches(public_ip) {
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
        Path::Vxlan
    }
}
