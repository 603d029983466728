//! What the kernel should hold, from the inputs alone. Never fails: a broken or dangerous lease gives a note and is left
//! out, and the rest of the node works.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::backend::vxlan::{self, Endpoint};
use crate::backend::{Backend, host_gw};
use crate::direct::OnLink;
use crate::input::{Config, Family, Leases, Node, Underlay};
use crate::lease::{Announced, Lease};
use crate::note::{NodeFault, Note, PeerFault};
use crate::owned::{Owned, Sweep};
use crate::state::{Address, FdbEntry, Link, Neighbour, Route, State, Sysctl};
use crate::subnet_alloc::number;
use crate::{LinkName, Mac};

/// A plan: the state to reach, what may be deleted on the way, and what there is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub state: State,
    pub owned: Owned,
    /// How each peer that is not left out is reached, by subnet.
    pub peers: Vec<PeerPath>,
    pub notes: Vec<Note>,
}

/// How one peer's subnet is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerPath {
    pub subnet: IpNet,
    pub public_ip: IpAddr,
    pub path: Path,
}

/// The way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Encapsulated, through our VTEP.
    Vxlan,
    /// Straight to the peer's address.
    Direct,
    /// Refused with an error, because it cannot work.
    Unreachable,
    /// The uplink is down or gone: whatever the kernel kept stands.
    Waiting,
}

/// The bounds of what is ours under this config, also what the kernel has to be read for.
pub fn owned(config: &Config, node: &Node) -> Owned {
    let mut links = Vec::new();
    if let Backend::Vxlan(options) = &config.backend {
        let families = Family::ALL.into_iter().filter(|&family| config.network(family).is_some());
        links.extend(families.map(|family| options.device_name(family)));
    }
    Owned {
        sysctls: links.iter().map(|&link| vxlan::accept_ra_path(link)).collect(),
        links,
        uplink: node.uplink.link,
        networks: Family::ALL.into_iter().filter_map(|family| config.network(family)).collect(),
        table: config.table,
        sweep: Sweep::NotYet,
    }
}

/// Plans this node.
pub fn wanted(config: &Config, node: &Node, leases: &Leases, underlay: &Underlay) -> Wanted {
    let mut draft = Draft::new(config, node, underlay);
    draft.own_devices();
    if let Leases::Listed(leases) = leases {
        if draft.uplink == UplinkState::Up {
            draft.owned.sweep = Sweep::LeftOvers;
        }
        let mut order: Vec<&Lease> = leases.iter().filter(|lease| !draft.is_ours(lease)).collect();
        order.sort_unstable();
        for family in Family::ALL {
            if draft.enabled(family) {
                draft.peers_of(family, &order);
            }
        }
    }
    draft.finish()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum UplinkState {
    Up,
    /// Down, or without our address: the kernel refuses routes through it.
    Down,
    /// Not there: not even a device on top of it can be made.
    Missing,
}

struct Draft<'a> {
    config: &'a Config,
    node: &'a Node,
    underlay: &'a Underlay,
    uplink: UplinkState,
    on_link: OnLink,
    owned: Owned,
    peers: Vec<PeerPath>,
    notes: Vec<Note>,
    sysctls: Vec<Sysctl>,
    links: Vec<Link>,
    addresses: Vec<Address>,
    fdb: Vec<FdbEntry>,
    neighbours: Vec<Neighbour>,
    routes: Vec<Route>,
}

/// What has been admitted of one family, to find the next lease in conflict with it.
#[derive(Default)]
struct Admitted {
    /// First to last address of each subnet.
    spans: BTreeMap<u128, (u128, IpNet)>,
    macs: BTreeMap<Mac, IpNet>,
}

impl<'a> Draft<'a> {
    fn new(config: &'a Config, node: &'a Node, underlay: &'a Underlay) -> Self {
        let mut draft = Self {
            config,
            node,
            underlay,
            uplink: UplinkState::Up,
            on_link: OnLink::new(underlay, node.uplink.link),
            owned: owned(config, node),
            peers: Vec::new(),
            notes: Vec::new(),
            sysctls: Vec::new(),
            links: Vec::new(),
            addresses: Vec::new(),
            fdb: Vec::new(),
            neighbours: Vec::new(),
            routes: Vec::new(),
        };
        draft.look_at_uplink();
        // A device of another kind under our name is somebody else's, and so is all that stands on it.
        let mut links = std::mem::take(&mut draft.owned.links);
        links.retain(|&name| draft.foreign_kind(name).is_none());
        draft.owned.links = links;
        draft
    }

    fn look_at_uplink(&mut self) {
        let uplink = self.node.uplink.link;
        let fault = match self.underlay.link(uplink) {
            None => {
                self.uplink = UplinkState::Missing;
                return self.note_node(NodeFault::UplinkMissing(uplink));
            }
            Some(link) if !link.up => Some(NodeFault::UplinkDown(uplink)),
            Some(_) => Family::ALL
                .into_iter()
                .filter(|&family| self.config.network(family).is_some())
                .find_map(|family| self.lacks(family)),
        };
        if let Some(fault) = fault {
            self.uplink = UplinkState::Down;
            self.note_node(fault);
        }
    }

    /// What the uplink needs for that family and does not have.
    fn lacks(&self, family: Family) -> Option<NodeFault> {
        let uplink = self.node.uplink.link;
        let Some(address) = self.node.uplink.address(family) else {
            return Some(NodeFault::UplinkWithoutFamily { uplink, family });
        };
        let mut addresses = self.underlay.addresses.iter().filter(|facts| facts.link == uplink);
        let Some(own) = addresses.find(|facts| facts.address.addr() == address) else {
            return Some(NodeFault::UplinkWithoutAddress { uplink, address });
        };
        // An address for one host alone never had a route of its own.
        let has_segment = own.address.prefix_len() < own.address.max_prefix_len();
        (has_segment && !self.on_link.reaches(address))
            .then_some(NodeFault::UplinkWithoutRoute { uplink, address })
    }

    fn note_node(&mut self, fault: NodeFault) {
        self.notes.push(Note::Node(fault));
    }

    fn note_peer(&mut self, subnet: IpNet, fault: PeerFault) {
        self.notes.push(Note::Peer { subnet, fault });
    }

    /// Configured and leased to us.
    fn enabled(&self, family: Family) -> bool {
        self.config.network(family).is_some() && self.node.subnet.of(family).is_some()
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        let mut enabled = Family::ALL.into_iter().filter(|&family| self.enabled(family));
        enabled.all(|family| lease.subnet.of(family) == self.node.subnet.of(family))
    }

    fn own_devices(&mut self) {
        for family in Family::ALL.into_iter().filter(|&family| self.config.network(family).is_some()) {
            if self.node.subnet.of(family).is_none() {
                self.note_node(NodeFault::NotLeased(family));
            } else if let Backend::Vxlan(options) = &self.config.backend {
                self.own_device(options, family);
            }
        }
    }

    fn own_device(&mut self, options: &vxlan::Options, family: Family) {
        let name = options.device_name(family);
        if let Some(kind) = self.foreign_kind(name) {
            self.note_node(NodeFault::ForeignDevice { name, kind });
        } else if self.uplink != UplinkState::Missing
            && let Some(end) = self.own_end(family)
        {
            let (link, address, sysctl) = options.device(&end, self.node);
            self.links.push(link);
            self.addresses.push(address);
            self.sysctls.push(sysctl);
        }
    }

    fn own_end(&self, family: Family) -> Option<Endpoint> {
        let mac = match family {
            Family::Ipv4 => self.node.vtep,
            Family::Ipv6 => self.node.vtep_v6,
        };
        let (subnet, local) = (self.node.subnet.of(family)?, self.node.uplink.address(family)?);
        Some(Endpoint { subnet, local, mac: mac? })
    }

    /// The kind of a device that has our name and is not ours.
    fn foreign_kind(&self, name: LinkName) -> Option<Box<str>> {
        let link = self.underlay.link(name).filter(|link| &*link.kind != "vxlan")?;
        Some(if link.kind.is_empty() { "hardware".into() } else { link.kind.clone() })
    }

    fn peers_of(&mut self, family: Family, order: &[&Lease]) {
        let mut admitted = Admitted::default();
        for lease in order {
            let Some(subnet) = lease.subnet.of(family) else { continue };
            let reached = self
                .admit(family, lease, subnet, &admitted)
                .and_then(|public_ip| self.reach(family, lease, &mut admitted, (subnet, public_ip)));
            match reached {
                Ok(peer) => {
                    let span = (number(subnet.broadcast()), subnet);
                    admitted.spans.insert(number(subnet.network()), span);
                    self.peers.extend(peer);
                }
                Err(fault) => self.note_peer(subnet, fault),
            }
        }
    }

    /// Is the lease fit to be believed? Gives the peer's underlay address.
    fn admit(
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
        if let Some(ours) =
            self.node.subnet.of(family).filter(|ours| ours.contains(&subnet) || subnet.contains(ours))
        {
            return Err(PeerFault::OverlapsOurs(ours));
        }
        let last = number(subnet.broadcast());
        let before = admitted.spans.range(..=last).next_back();
        if let Some((_, (_, other))) = before.filter(|(_, (end, _))| *end >= number(subnet.network())) {
            return Err(PeerFault::Overlaps(*other));
        }
        let ours = &lease.announced;
        if ours.backend_type() != self.config.backend.name() && !matches!(self.config.backend, Backend::Alloc)
        {
            let theirs = lease.announced.backend_type().into();
            return Err(PeerFault::OtherBackend { theirs, ours: self.config.backend.name().into() });
        }
        let public_ip = lease.public(family).ok_or(PeerFault::NoPublicAddress(family))?;
        if !is_host_address(public_ip)
            || self.owned.in_network(&public_ip.into())
            || self.is_broadcast(public_ip)
        {
            return Err(PeerFault::BadPublicAddress(public_ip));
        }
        if self.node.uplink.address(family) == Some(public_ip) {
            return Err(PeerFault::OurPublicAddress(public_ip));
        }
        Ok(public_ip)
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

    /// Adds the rows for one admitted peer.
    fn reach(
        &mut self,
        family: Family,
        lease: &Lease,
        admitted: &mut Admitted,
        (subnet, public_ip): (IpNet, IpAddr),
    ) -> Result<Option<PeerPath>, PeerFault> {
        let path = match &self.config.backend {
            Backend::Alloc => return Ok(None),
            Backend::HostGw => self.reach_directly(subnet, public_ip),
            Backend::Vxlan(options) => {
                let mac = self.vtep_of(family, lease, options.vni, admitted)?;
                admitted.macs.insert(mac, subnet);
                if options.direct_routing && self.uplink == UplinkState::Up && self.on_link.reaches(public_ip)
                {
                    self.reach_directly(subnet, public_ip)
                } else if self.links.iter().any(|link| link.name == options.device_name(family)) {
                    let peer = Endpoint { subnet, local: public_ip, mac };
                    let (neighbour, fdb, route) = options.peer(&peer, self.config.table);
                    self.neighbours.push(neighbour);
                    self.fdb.push(fdb);
                    self.routes.push(route);
                    Path::Vxlan
                } else {
                    Path::Waiting
                }
            }
        };
        Ok(Some(PeerPath { subnet, public_ip, path }))
    }

    fn reach_directly(&mut self, subnet: IpNet, public_ip: IpAddr) -> Path {
        let uplink = self.node.uplink.link;
        if self.uplink != UplinkState::Up {
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

    fn vtep_of(
        &self,
        family: Family,
        lease: &Lease,
        vni: u32,
        admitted: &Admitted,
    ) -> Result<Mac, PeerFault> {
        let Announced::Vxlan { ipv4, ipv6 } = lease.announced else { return Err(PeerFault::NoVtep(family)) };
        let (vtep, ours) = match family {
            Family::Ipv4 => (ipv4, self.node.vtep),
            Family::Ipv6 => (ipv6, self.node.vtep_v6),
        };
        let vtep = vtep.ok_or(PeerFault::NoVtep(family))?;
        if vtep.vni != vni {
            return Err(PeerFault::OtherVni { theirs: vtep.vni, ours: vni });
        }
        if !vtep.mac.is_unicast() {
            return Err(PeerFault::BadVtepMac(vtep.mac));
        }
        if ours == Some(vtep.mac) {
            return Err(PeerFault::OurVtepMac(vtep.mac));
        }
        match admitted.macs.get(&vtep.mac) {
            Some(&with) => Err(PeerFault::SharedVtepMac { mac: vtep.mac, with }),
            None => Ok(vtep.mac),
        }
    }

    fn finish(mut self) -> Wanted {
        self.peers.sort_unstable();
        self.notes.sort_unstable();
        let state = State {
            sysctls: self.sysctls.into(),
            links: self.links.into(),
            addresses: self.addresses.into(),
            fdb: self.fdb.into(),
            neighbours: self.neighbours.into(),
            routes: self.routes.into(),
            ..State::default()
        };
        Wanted { state, owned: self.owned, peers: self.peers, notes: self.notes }
    }
}

/// Can a node have this address on its uplink?
fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0)
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast()),
    }
}
