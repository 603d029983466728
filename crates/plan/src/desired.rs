//! Computes the desired state of the kernel from the inputs alone. It never fails. A broken or dangerous lease gives
//! a warning and is left out, and the rest of the node works.

mod admitted;
mod nexthops;
mod passages;
mod peers;
mod preferred_paths;

use passages::Other;
pub(crate) use passages::name_faulty;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::backend::{Encapsulation, Endpoint, Narrow, least_mtu, may_be_ours};
use crate::config::{Config, SysctlPolicy};
use crate::direct::OnLink;
use crate::family::Family;
use crate::lease::{Lease, Leases};
use crate::lease_conflicts::Contender;
use crate::left_overs::LeftOvers;
use crate::marks::{PROTOCOL, RULE_PRIORITY};
use crate::name::LinkName;
use crate::node::{Node, Uplink};
use crate::other_daemons::OtherDaemons;
use crate::owned::{Owned, Sweep};
use crate::peer::PeerPath;
use crate::situation::Situation;
use crate::standing::{has_nexthops, standing};
use crate::state::{
    Address, FdbEntry, Link, MAIN_TABLE, Neighbour, Route, RoutePath, Rule, State, Sysctl, WORST_METRIC,
};
use crate::tunnel_id::TunnelId;
use crate::underlay::{Underlay, pods_bridge};
use crate::warning::{Extent, NodeFault, PeerFault, Warning};
use crate::{firewall, sysctls};
use preferred_paths::PreferredPaths;

/// Desired state, the bounds of what may be deleted on the way to it, and the warnings.
pub(crate) struct Desired {
    pub(crate) state: State,
    pub(crate) owned: Owned,
    /// Path of each peer that is not left out, by subnet.
    pub(crate) peers: Vec<PeerPath>,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) firewall: firewall::Summary,
}

/// Maximum number of tunnels other than ours that get devices, for peers that announce them.
const OTHER_TUNNELS: usize = 3;

/// Returns the tunnels that need a device here: ours, and those by which peers are reached. Tunnels of peers that another
/// daemon of this node has are left out. If there are too many, those stay that most leases announce, then those that have
/// a device: a few leases with other numbers must not cut off the peers of an old one.
fn tunnels(config: &Config, leases: &Leases, others: &OtherDaemons, former: &LeftOvers) -> Vec<TunnelId> {
    let ours = config.backend.tunnel_id();
    let mut counts: BTreeMap<TunnelId, usize> = BTreeMap::new();
    let reaches_peers = config.backend.reaches_peers();
    for lease in leases.known().iter().filter(|_| reaches_peers) {
        let mut counted = None;
        for id in lease.announced.tunnels(&config.backend) {
            if counted.replace(id) != Some(id) {
                *counts.entry(id).or_default() += 1;
            }
        }
    }
    let is_usable = |id: &TunnelId| {
        Some(*id) != ours
            && id.number <= id.kind.largest(config.ipv6.is_some())
            && !others.tunnels.contains(id)
    };
    let stands = |id: TunnelId| former.links.iter().any(|link| TunnelId::of_device(*link) == Some(id));
    let mut theirs: Vec<TunnelId> = counts.keys().copied().filter(is_usable).collect();
    theirs.sort_by_cached_key(|id| (Reverse(counts.get(id)), !stands(*id)));
    ours.into_iter().chain(theirs.into_iter().take(OTHER_TUNNELS)).collect()
}

/// Returns the bounds of the objects that may be ours, within which the kernel is also read.
pub(crate) fn bounds(
    config: &Config,
    node: &Node,
    leases: &Leases,
    others: &OtherDaemons,
    former: &LeftOvers,
) -> Owned {
    let tunnels = tunnels(config, leases, others, former);
    let devices = tunnels.iter().flat_map(|id| config.families().map(move |family| id.device(family)));
    let mut links: Vec<LinkName> = devices.chain(former.links.iter().copied()).collect();
    links.sort_unstable();
    links.dedup();
    let of = |family| leases.known().iter().filter_map(move |lease| lease.subnet.of(family));
    let subnets: Vec<_> = Family::ALL.into_iter().flat_map(of).collect();
    let peers = leases
        .known()
        .iter()
        .flat_map(|lease| config.families().filter_map(move |family| Other::of_lease(config, lease, family)));
    Owned {
        sysctls: sysctls::paths(config, node.uplink.link, &links),
        links,
        tunnels,
        networks: config.networks().collect(),
        pods: config.all_pods(),
        own_subnets: own_subnets(config, node, former),
        former_networks: former_networks(config, former),
        former_writer: former.writer,
        former_tables: former_tables(config, former),
        firewall: others.firewall.is_us(),
        passages: passages::passages(config, node, &subnets),
        between_nodes: passages::between_nodes(config, node, peers),
        ..Owned::new(node.uplink.link, config.table)
    }
}

/// Returns the rules that lead the pods' traffic to our table, if that is not the main table. A second rule sends traffic
/// for our own pods to the main table, where their bridge has its route. Without it, other rules behind ours may skip
/// that table.
fn rules(config: &Config, node: &Node) -> impl Iterator<Item = Rule> {
    let rule = |to, table| Rule { priority: RULE_PRIORITY, to, table, protocol: PROTOCOL, unknown: None };
    let of_family = move |family: Family| {
        let network = config.network(family).map(|to| rule(to, config.table));
        let own = node.subnet.of(family).filter(|_| network.is_some());
        network.into_iter().chain(own.map(|to| rule(to.trunc(), MAIN_TABLE)))
    };
    Family::ALL.into_iter().filter(|_| config.table != MAIN_TABLE).flat_map(of_family)
}

fn former_tables(config: &Config, former: &LeftOvers) -> Vec<u32> {
    let former = former.tables.iter().copied();
    let blackhole = config.blackhole.then_some(MAIN_TABLE);
    let mut tables: Vec<u32> = former.chain(blackhole).filter(|table| *table != config.table).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}

fn own_subnets(config: &Config, node: &Node, former: &LeftOvers) -> Vec<IpNet> {
    let own = config.families().filter_map(|family| node.subnet.of(family));
    own.chain(former.subnets.iter().copied()).collect()
}

/// Returns a route that drops packets for our own pods that no pod accepts. It is always in the main table. The rule
/// that leads to our table would apply it before the bridge's own route. Its metric puts it behind the bridge's
/// route, whichever of both is added first.
fn blackhole(destination: IpNet) -> Route {
    let (table, path, metric) = (MAIN_TABLE, RoutePath::Blackhole, WORST_METRIC);
    Route { table, destination, path, protocol: PROTOCOL, metric, unknown: None }
}

fn former_networks(config: &Config, former: &LeftOvers) -> Vec<IpNet> {
    let is_former = |network: &IpNet| config.network(Family::of(network.addr())) != Some(*network);
    let mut networks: Vec<IpNet> = former.networks.iter().copied().filter(is_former).collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// Computes the desired state of this node.
pub(crate) fn desired(situation: &Situation<'_>) -> Desired {
    let Situation { config, leases, .. } = *situation;
    let mut draft = Draft::new(situation);
    draft.own_devices();
    if matches!(leases, Leases::Listed(_)) && draft.waiting.is_empty() {
        draft.owned.sweep = Sweep::LeftOvers;
    }
    let order: Vec<&Lease> = leases.known().iter().filter(|lease| !draft.is_ours(lease)).collect();
    let families = Family::ALL.into_iter().filter(|_| config.backend.reaches_peers());
    for family in families {
        if draft.enabled(family) {
            draft.peers_of(family, order.clone());
        }
    }
    draft.finish(situation)
}

/// Returns the desired state of a node on which nothing of ours is yet.
#[cfg(test)]
pub(crate) fn at_first(config: &Config, node: &Node, leases: &Leases, underlay: &Underlay) -> Desired {
    let scope = bounds(config, node, leases, &OtherDaemons::default(), &LeftOvers::default());
    desired(&Situation::at_start(config, node, leases, &scope, underlay))
}

struct Draft<'a> {
    config: &'a Config,
    node: &'a Node,
    underlay: &'a Underlay,
    /// Families that the uplink cannot carry now: the kernel refuses their routes through it.
    waiting: Vec<Family>,
    /// Families in `waiting` that only lack the route to their segment. A tunnel needs no such route.
    without_segment: Vec<Family>,
    on_link: OnLink,
    preferred_paths: PreferredPaths<'a>,
    contenders: &'a [Contender],
    owned: Owned,
    peers: Vec<PeerPath>,
    warnings: Vec<Warning>,
    sysctls: Vec<Sysctl>,
    links: Vec<Link>,
    addresses: Vec<Address>,
    fdb: Vec<FdbEntry>,
    neighbours: Vec<Neighbour>,
    routes: Vec<Route>,
}

impl<'a> Draft<'a> {
    fn new(situation: &Situation<'a>) -> Self {
        let Situation { config, node, leases, health, underlay, scope, .. } = *situation;
        let standing = standing(situation.observed, config.table, node.uplink.link);
        // Reserving is cheap, since unwritten pages cost nothing. Growing is not.
        let most = leases.known().len();
        let mut draft = Self {
            config,
            node,
            underlay,
            waiting: Vec::new(),
            without_segment: Vec::new(),
            on_link: OnLink::new(underlay, node.uplink.link),
            preferred_paths: PreferredPaths::new(&health.peers, standing, node.uplink.link),
            contenders: &health.contenders,
            owned: scope.clone(),
            peers: Vec::with_capacity(most),
            warnings: Vec::new(),
            sysctls: Vec::new(),
            links: Vec::new(),
            addresses: Vec::new(),
            fdb: Vec::with_capacity(most),
            neighbours: Vec::with_capacity(most),
            routes: Vec::with_capacity(most),
        };
        draft.check_uplink();
        draft.warn_of_networks_among_pods();
        // A device of another kind under our name belongs to another program, and so does everything on it.
        let mut links = std::mem::take(&mut draft.owned.links);
        links.retain(|&name| draft.foreign_kind(name).is_none());
        draft.owned.links = links;
        draft
    }

    fn check_uplink(&mut self) {
        let uplink = self.node.uplink.link;
        let link = self.underlay.link(uplink);
        let down = match link {
            None => Some(NodeFault::UplinkMissing(uplink)),
            Some(link) => (!link.up).then_some(NodeFault::UplinkDown(uplink)),
        };
        if let Some(fault) = down {
            self.waiting = Family::ALL.into();
            return self.warn_node(fault);
        }
        // The kernel keeps and accepts routes through an uplink without a carrier, so nothing has to wait.
        if link.is_some_and(|link| !link.carrier) {
            self.warn_node(NodeFault::UplinkWithoutCarrier(uplink));
        }
        for family in self.config.families() {
            if let Some(fault) = self.lacks(family) {
                self.waiting.push(family);
                let only_segment = matches!(fault, NodeFault::UplinkWithoutRoute { .. });
                self.without_segment.extend(only_segment.then_some(family));
                self.warn_node(fault);
            }
            if let Some(fault) = self.among_pods(family) {
                self.warn_node(fault);
            }
            if let Some(fault) = self.not_internal(family) {
                self.warn_node(fault);
            }
        }
    }

    /// Returns a fault if Kubernetes has another address for the node than the chosen one. Most likely the administrator
    /// meant that address.
    fn not_internal(&self, family: Family) -> Option<NodeFault> {
        let uplink = &self.node.uplink;
        let (address, announced) = (uplink.address(family)?, uplink.public(family)?);
        let node_ip = *uplink.node_ips.iter().find(|ip| Family::of(**ip) == family)?;
        let mut addresses = self.underlay.addresses.iter();
        let on = addresses.find(|facts| facts.address.addr() == node_ip).map(|facts| facts.link);
        let uplink = uplink.link;
        (![address, announced].contains(&node_ip)).then_some(NodeFault::NotInternalIp {
            uplink,
            address,
            node_ip,
            on,
        })
    }

    /// Returns a fault if pods could get our own address or another address of its network.
    fn among_pods(&self, family: Family) -> Option<NodeFault> {
        let Uplink { link: uplink, .. } = self.node.uplink;
        let own = self.node.uplink.address(family)?;
        let mut its = self.underlay.addresses.iter().filter(|facts| facts.address.addr() == own);
        its.find_map(|facts| {
            let pods = self.config.pods_within(&facts.address)?;
            Some(NodeFault::UplinkAmongPods { uplink, address: facts.address, pods: pods.to_string().into() })
        })
    }

    /// Warns of networks of other interfaces from which pods may get addresses. The bridge of our own pods is no such
    /// network: its address belongs to our own subnet.
    fn warn_of_networks_among_pods(&mut self) {
        let faults = self.underlay.addresses.iter().filter_map(|facts| {
            let (link, address) = (facts.link, facts.address);
            let is_ours = link == self.node.uplink.link
                || TunnelId::of_device(link).is_some()
                || self.own_subnet_contains(address)
                || facts.is_of_host_alone();
            let pods = self.config.pods_within(&address).filter(|_| !is_ours)?;
            Some(NodeFault::InterfaceAmongPods { link, address, pods: pods.to_string().into() })
        });
        let faults: Vec<NodeFault> = faults.collect();
        faults.into_iter().for_each(|fault| self.warn_node(fault));
    }

    fn own_subnet_contains(&self, address: IpNet) -> bool {
        self.owned.own_subnets.iter().any(|own| own.contains(&address.addr()))
    }

    /// Returns what the uplink lacks for the family, if anything.
    fn lacks(&self, family: Family) -> Option<NodeFault> {
        let uplink = self.node.uplink.link;
        let Some(address) = self.node.uplink.address(family) else {
            return Some(NodeFault::UplinkWithoutFamily { uplink, family });
        };
        let mut addresses = self.underlay.addresses.iter().filter(|facts| facts.serves(uplink));
        let Some(own) = addresses.find(|facts| facts.address.addr() == address) else {
            return Some(NodeFault::UplinkWithoutAddress { uplink, address });
        };
        // An address for a single host never had a route of its own, and a tunnel needs none.
        let has_segment = !own.is_of_host_alone();
        let needs_it = self.config.backend.may_be_direct();
        (needs_it && has_segment && !self.on_link.reaches(address)).then(|| NodeFault::UplinkWithoutRoute {
            uplink,
            address,
            extent: self.without_direct_paths(),
        })
    }

    /// Returns the peers that are cut off without direct paths.
    fn without_direct_paths(&self) -> Extent {
        let has_tunnel = self.config.backend.tunnel_id().is_some();
        if has_tunnel { Extent::SomePeers } else { Extent::AllPeers }
    }

    /// Returns the peers that are cut off without that device.
    fn without(&self, device: LinkName) -> Extent {
        let is_own = self.config.backend.devices(self.config.families()).contains(&device);
        if is_own { Extent::AllPeers } else { Extent::SomePeers }
    }

    fn warn_node(&mut self, fault: NodeFault) {
        self.warnings.push(Warning::Node(fault));
    }

    fn warn_peer(&mut self, subnet: IpNet, fault: PeerFault) {
        self.warnings.push(Warning::Peer { subnet, fault });
    }

    /// Returns true if the family is configured, leased to us, and the uplink can carry it.
    fn enabled(&self, family: Family) -> bool {
        self.config.carried(&self.node.uplink).network(family).is_some()
            && self.node.subnet.of(family).is_some()
    }

    /// Returns a fault if the uplink's packets are too small for a tunnel of the family.
    fn too_narrow(&self, tunnel: &Encapsulation, family: Family) -> Option<NodeFault> {
        let Narrow { outer, inner, needs } = tunnel.narrow(family, &self.node.uplink)?;
        let alone = self.config.families().find(|other| tunnel.narrow(*other, &self.node.uplink).is_none());
        Some(NodeFault::TooNarrow { uplink: self.node.uplink.link, family, outer, inner, needs, alone })
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        let mut enabled = Family::ALL.into_iter().filter(|&family| self.enabled(family));
        enabled.all(|family| lease.subnet.of(family) == self.node.subnet.of(family))
    }

    fn own_devices(&mut self) {
        let tunnel = self.config.backend.tunnel();
        for family in self.config.families() {
            let Some(subnet) = self.node.subnet.of(family) else {
                self.warn_node(NodeFault::NotLeased(family));
                continue;
            };
            if self.config.blackhole {
                self.routes.push(blackhole(subnet));
            }
            if let Some(tunnel) = &tunnel {
                self.device(tunnel, family);
            }
        }
    }

    /// Plans the device for the tunnel and the family, once. Returns false if there can be no such device at present.
    fn device(&mut self, tunnel: &Encapsulation, family: Family) -> bool {
        let name = tunnel.device_name(family);
        if self.links.iter().any(|link| link.name == name) {
            return true;
        }
        if let Some(kind) = self.foreign_kind(name) {
            let fault = NodeFault::ForeignDevice { name, kind, extent: self.without(name) };
            if !self.warnings.contains(&Warning::Node(fault.clone())) {
                self.warn_node(fault);
            }
            return false;
        }
        if self.underlay.link(self.node.uplink.link).is_none() {
            return false;
        }
        if let Some(fault) = self.too_narrow(tunnel, family) {
            if !self.warnings.contains(&Warning::Node(fault.clone())) {
                self.warn_node(fault);
            }
            return false;
        }
        let Some(end) = self.own_end(family) else { return false };
        let (link, address) = tunnel.device(&end, &self.node.uplink);
        self.sysctls.extend(sysctls::ipv6_on(name, self.underlay));
        // With a smaller MTU the device has no IPv6, and no sysctls for it.
        let has_ipv6 = link.mtu >= least_mtu(Family::Ipv6);
        self.sysctls.extend(has_ipv6.then(|| sysctls::no_advertisements(name)));
        self.links.push(link);
        self.addresses.push(address);
        true
    }

    fn own_end(&self, family: Family) -> Option<Endpoint> {
        let mac = match family {
            Family::Ipv4 => self.node.vtep,
            Family::Ipv6 => self.node.vtep_v6,
        };
        let (subnet, local) = (self.node.subnet.of(family)?, self.node.uplink.address(family)?);
        Some(Endpoint { subnet, local, mac: mac? })
    }

    /// Returns the kind of a device that has our name and is not ours.
    fn foreign_kind(&self, name: LinkName) -> Option<Box<str>> {
        let link = self.underlay.link(name).filter(|link| !may_be_ours(link))?;
        Some(if link.kind.is_empty() { "hardware".into() } else { link.kind.clone() })
    }

    /// Plans the other sysctls that the node needs, or warns of them.
    fn settings(&mut self) {
        let devices: Vec<LinkName> = self.links.iter().map(|link| link.name).collect();
        self.sysctls.extend(sysctls::own_forwarding(self.config, self.underlay, &devices));
        let passage = self.owned.passages.iter().find(|passage| passage.own.addr().is_ipv4());
        let bridge = passage.map(|passage| pods_bridge(passage, &self.underlay.addresses, &self.owned.links));
        let mut lacking = sysctls::lacking(self.config, self.node, self.underlay, devices.into_iter());
        lacking.extend(sysctls::others_forwarding(self.config, self.node, self.underlay, bridge));
        match self.config.sysctls {
            SysctlPolicy::Set => self.sysctls.extend(lacking),
            SysctlPolicy::Report => {
                let faults = lacking.into_iter().filter_map(|row| sysctls::unset_fault(row, self.underlay));
                self.warnings.extend(faults.map(Warning::Node));
            }
        }
    }

    fn finish(mut self, situation: &Situation<'_>) -> Desired {
        self.settings();
        let Situation { config, node, leases, others, observed, .. } = *situation;
        let firewall = firewall::rules(&firewall::Rules {
            config,
            node,
            leases,
            keeper: &others.firewall,
            facts: &self.underlay.firewall,
            peers: &self.peers,
            links: &self.links,
        });
        self.warnings.extend(firewall.faults.into_iter().map(NodeFault::Firewall).map(Warning::Node));
        self.peers.sort_unstable();
        self.warnings.sort_unstable();
        self.routes.sort_unstable();
        // Two subnets of one node have one VTEP, so its FDB entry may be planned twice.
        self.fdb.sort_unstable();
        self.fdb.dedup();
        let nexthops = nexthops::use_nexthops(self.config.ipv4, has_nexthops(observed), &mut self.routes);
        let traffic_rules = State {
            nft_tables: firewall.tables.into(),
            nft_chains: firewall.chains.into(),
            nft_elements: firewall.elements.into(),
            iptables: firewall.iptables.into(),
            ..State::default()
        };
        let state = State {
            nexthops: nexthops.into(),
            sysctls: self.sysctls.into(),
            links: self.links.into(),
            addresses: self.addresses.into(),
            fdb: self.fdb.into(),
            neighbours: self.neighbours.into(),
            routes: self.routes.into(),
            rules: rules(self.config, self.node).collect(),
            ..traffic_rules
        };
        let subnets: Vec<_> = self.peers.iter().map(|peer| peer.subnet).collect();
        self.owned.passages = passages::passages(self.config, self.node, &subnets);
        let peers = self.peers.iter().map(Other::of_path);
        self.owned.between_nodes = passages::between_nodes(self.config, self.node, peers);
        Desired {
            state,
            owned: self.owned,
            peers: self.peers,
            warnings: self.warnings,
            firewall: firewall.summary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    /// Returns the lease of 10.244.`third`.0/24 with that VNI.
    fn lease(third: u8, vni: u32) -> Lease {
        let data = format!(r#"{{"VNI":{vni},"VtepMAC":"02:00:00:00:00:{third:02x}"}}"#);
        let value = format!(r#"{{"PublicIP":"192.0.2.{third}","BackendType":"vxlan","BackendData":{data}}}"#);
        Lease::parse(&format!("10.244.{third}.0-24"), value.as_bytes(), 1).unwrap()
    }

    #[test]
    fn three_leases_do_not_take_the_devices_from_a_tunnel_of_many_peers() {
        let numbers = |leases: &[(u8, u32)], standing: &[&str]| -> Vec<u32> {
            let leases = leases.iter().map(|&(third, vni)| lease(third, vni)).collect();
            let links = standing.iter().map(|name| name.parse().unwrap()).collect();
            let former = LeftOvers { links, ..LeftOvers::default() };
            let config = Config::new(Backend::default());
            let all = tunnels(&config, &Leases::Listed(leases), &OtherDaemons::default(), &former);
            all.iter().map(|id| id.number).collect()
        };
        let attack = [(1, 2), (2, 3), (3, 4)];
        let many = [attack.as_slice(), &[(10, 42), (11, 42)]].concat();
        assert_eq!(numbers(&many, &[]), [1, 42, 2, 3]);
        assert_eq!(numbers(&many, &["flannel.2", "flannel.3", "flannel.4"]), [1, 42, 2, 3]);
        // The last peer of an old VNI announces it no more often than the attacker's leases announce theirs.
        let last = [attack.as_slice(), &[(10, 42)]].concat();
        assert_eq!(numbers(&last, &["flannel.1", "flannel.42"]), [1, 42, 2, 3]);
        // New numbers take no device from those that stand.
        assert_eq!(numbers(&last, &["flannel.3", "flannel.4", "flannel.42"]), [1, 3, 4, 42]);
    }
}
