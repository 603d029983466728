//! Which leases are believed: what is wrong with one in itself, or beside those that were believed before it. Data from
//! peers is hostile until it has passed here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Draft;
use crate::Mac;
use crate::input::Family;
use crate::lease::{Announced, Lease, Vtep};
use crate::note::PeerFault;
use crate::subnet_alloc::number;

/// What has been admitted of one family, to find the next lease in conflict with it. Where no two leases are in conflict, as
/// nearly always, nothing has to be found.
pub(super) struct Admitted {
    /// First to last address of each subnet; `None` where none overlap.
    spans: Option<BTreeMap<u128, (u128, IpNet)>>,
    /// Per VNI: one device's FDB has one entry a MAC. `None` where none are alike.
    macs: Option<BTreeMap<(u32, Mac), IpNet>>,
}

impl Admitted {
    /// Nobody yet, of these.
    pub(super) fn none_of(leases: &[&Lease], family: Family) -> Self {
        let subnets = leases.iter().filter_map(|lease| lease.subnet.of(family));
        let mut spans: Vec<_> =
            subnets.map(|subnet| (number(subnet.network()), number(subnet.broadcast()))).collect();
        spans.sort_unstable();
        let vteps = leases.iter().filter_map(|lease| vtep(lease, family));
        let mut macs: Vec<_> = vteps.map(|vtep| (vtep.vni, vtep.mac)).collect();
        macs.sort_unstable();
        Self {
            spans: spans.windows(2).any(|pair| pair[1].0 <= pair[0].1).then(BTreeMap::new),
            macs: macs.windows(2).any(|pair| pair[0] == pair[1]).then(BTreeMap::new),
        }
    }

    /// Takes a peer whose lease passed.
    pub(super) fn insert(&mut self, subnet: IpNet, vtep: Option<Vtep>) {
        if let Some(spans) = &mut self.spans {
            spans.insert(number(subnet.network()), (number(subnet.broadcast()), subnet));
        }
        if let Some(macs) = &mut self.macs {
            macs.extend(vtep.map(|vtep| ((vtep.vni, vtep.mac), subnet)));
        }
    }

    fn overlapping(&self, subnet: IpNet) -> Option<IpNet> {
        let before = self.spans.as_ref()?.range(..=number(subnet.broadcast())).next_back();
        before.filter(|(_, (end, _))| *end >= number(subnet.network())).map(|(_, (_, other))| *other)
    }
}

fn vtep(lease: &Lease, family: Family) -> Option<Vtep> {
    let Announced::Vxlan { ipv4, ipv6 } = lease.announced else { return None };
    match family {
        Family::Ipv4 => ipv4,
        Family::Ipv6 => ipv6,
    }
}

impl Draft<'_> {
    /// Is the lease fit to be believed? Gives the peer's underlay address.
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
        let ours = self.node.subnet.of(family);
        if let Some(ours) = ours.filter(|ours| ours.contains(&subnet) || subnet.contains(ours)) {
            return Err(PeerFault::OverlapsOurs(ours));
        }
        if let Some(other) = admitted.overlapping(subnet) {
            return Err(PeerFault::Overlaps(other));
        }
        let public_ip = lease.public(family).ok_or(PeerFault::NoPublicAddress(family))?;
        let in_pods = self.owned.in_network(&public_ip.into());
        if !is_host_address(public_ip) || in_pods || self.is_broadcast(public_ip) {
            return Err(PeerFault::BadPublicAddress(public_ip));
        }
        let is_ours = self.underlay.addresses.iter().any(|facts| facts.address.addr() == public_ip);
        if is_ours || self.node.uplink.public(family) == Some(public_ip) {
            return Err(PeerFault::OurPublicAddress(public_ip));
        }
        Ok(public_ip)
    }

    /// The peer's VTEP, if it can be used beside ours and the others.
    pub(super) fn vtep_of(
        &self,
        family: Family,
        lease: &Lease,
        admitted: &Admitted,
    ) -> Result<Vtep, PeerFault> {
        let ours = match family {
            Family::Ipv4 => self.node.vtep,
            Family::Ipv6 => self.node.vtep_v6,
        };
        let vtep = vtep(lease, family).ok_or(PeerFault::NoVtep(family))?;
        if !self.vnis.contains(&vtep.vni) {
            return Err(PeerFault::UnusableVni(vtep.vni));
        }
        if !vtep.mac.is_unicast() {
            return Err(PeerFault::BadVtepMac(vtep.mac));
        }
        if ours == Some(vtep.mac) {
            return Err(PeerFault::OurVtepMac(vtep.mac));
        }
        match admitted.macs.as_ref().and_then(|macs| macs.get(&(vtep.vni, vtep.mac))) {
            Some(&with) => Err(PeerFault::SharedVtepMac { mac: vtep.mac, with }),
            None => Ok(vtep),
        }
    }

    /// Is it the network's or the broadcast address of a segment of ours?
    fn is_broadcast(&self, address: IpAddr) -> bool {
        self.underlay.addresses.iter().any(|facts| match facts.address {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                [net.network(), net.broadcast()].map(IpAddr::V4).contains(&address)
            }
            _ => false,
        })
    }
}

/// Can a node have this address on its uplink?
pub(crate) fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let of_no_host =
                v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast();
            !of_no_host && v4.octets()[0] != 0
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast()),
    }
}
