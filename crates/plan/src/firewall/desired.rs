//! Desired traffic rules of this node (flannel-compat 7). The meaning of each rule is stated here once; its form in
//! nftables and iptables is elsewhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::choice::choose;
use super::obstacle::fault;
use super::{Summary, ToolChoice};
use crate::backend::SourceFilter;
use crate::config::Config;
use crate::family::Family;
use crate::ip_address::number;
use crate::lease::Leases;
use crate::node::Node;
use crate::other_daemons::FirewallKeeper;
use crate::passage::{Packet, Payload};
use crate::peer::{Path, PeerPath, UNPRIVILEGED};
use crate::state::{
    IptablesChain, IptablesTable, Link, LinkKind, Match, Net, NftChain, NftChainName, NftElement, NftTable,
    RuleVerdict, TrafficRule, Variant, Vxlan,
};
use crate::tunnel_id::TunnelId;
use crate::underlay::{FirewallFacts, Manager, Obstacle, UnknownSender};
use crate::warning::FirewallFault;

/// Maximum number of unknown senders that are reported: a sender that forges one address can forge a thousand.
const MAX_SENDERS: usize = 16;

/// Maximum number of ports of peers, besides our own, at which pods' VXLAN packets are looked for.
const OTHER_PORTS: usize = 8;

/// Mark by which kube-proxy marks packets that it masquerades itself.
const MASQUERADED_BY_KUBE_PROXY: Match = Match::Mark { value: 0x4000, mask: 0x4000 };

/// Inputs of the firewall part of a plan.
pub(crate) struct Rules<'a> {
    pub(crate) config: &'a Config,
    pub(crate) node: &'a Node,
    pub(crate) leases: &'a Leases,
    /// Owner of the traffic rules.
    pub(crate) keeper: &'a FirewallKeeper,
    pub(crate) facts: &'a FirewallFacts,
    /// Paths of the peers that are not left out.
    pub(crate) peers: &'a [PeerPath],
    /// Our devices.
    pub(crate) links: &'a [Link],
}

/// Firewall part of a plan.
#[derive(Debug, Default)]
pub(crate) struct Firewall {
    pub(crate) tables: Vec<NftTable>,
    pub(crate) chains: Vec<NftChain>,
    pub(crate) elements: Vec<NftElement>,
    pub(crate) iptables: Vec<IptablesChain>,
    pub(crate) summary: Summary,
    pub(crate) faults: Vec<FirewallFault>,
}

/// Plans the traffic rules of all families.
pub(crate) fn rules(what: &Rules<'_>) -> Firewall {
    let mut firewall = Firewall::default();
    match what.keeper {
        FirewallKeeper::Us => {}
        FirewallKeeper::Other(keeper) if what.config.wants_rules() => {
            firewall.faults.push(FirewallFault::Foreign { keeper: keeper.clone() });
            return firewall;
        }
        FirewallKeeper::Unknown(why) if what.config.wants_rules() => {
            firewall.faults.push(FirewallFault::Unlocked(why.clone()));
            return firewall;
        }
        FirewallKeeper::Nobody | FirewallKeeper::Other(_) | FirewallKeeper::Unknown(_) => return firewall,
    }
    let options = &what.config.firewall;
    if options.masquerade || options.forward {
        (firewall.summary.choice, firewall.faults) = choose(options, what.facts);
        firewall.faults.extend(what.facts.unread.iter().cloned().map(FirewallFault::Unread));
    }
    for family in Family::ALL {
        if let (Some(network), Some(pods)) = (what.config.network(family), what.node.subnet.of(family)) {
            firewall.masquerade(what, network, pods.trunc());
            firewall.forward(what, network);
            firewall.obstacles(what, network);
        }
        firewall.filter_sources(what, family);
    }
    firewall.summary.unknown_senders = most_active(what);
    let named = firewall.summary.unknown_senders.iter().map(|UnknownSender { address, .. }| {
        let own = what.node.subnet.of(Family::of(*address));
        if what.config.pods_at(*address).is_some() || own.is_some_and(|own| own.contains(address)) {
            FirewallFault::PodSender(*address)
        } else {
            FirewallFault::Stranger(*address)
        }
    });
    firewall.faults.extend(named);
    firewall
}

/// Returns the unknown senders with the most packets. Present peers are left out: a node that joins may send before we
/// receive its lease.
fn most_active(what: &Rules<'_>) -> Vec<UnknownSender> {
    let mut unknown_senders = what.facts.unknown_senders.clone();
    if !unknown_senders.is_empty() {
        let peers: BTreeSet<IpAddr> = what.peers.iter().map(|peer| peer.public_ip).collect();
        unknown_senders.retain(|sender| !peers.contains(&sender.address));
    }
    unknown_senders.sort_unstable_by_key(|sender| (Reverse(sender.packets), sender.address));
    unknown_senders.truncate(MAX_SENDERS);
    unknown_senders
}

impl Firewall {
    fn masquerade(&mut self, what: &Rules<'_>, network: IpNet, pods: IpNet) {
        let Some(ToolChoice { manager, .. }) =
            self.summary.choice.as_ref().filter(|_| what.config.firewall.masquerade)
        else {
            return;
        };
        let rules = masquerade(network, pods, what.config.firewall.fully_random);
        let family = Family::of(network.addr());
        match *manager {
            Manager::Nftables => self.chain(family, NftChainName::Postrouting, rules),
            Manager::Iptables(variant) => self.iptables(variant, family, IptablesTable::Nat, &rules),
        }
    }

    fn forward(&mut self, what: &Rules<'_>, network: IpNet) {
        let Some(ToolChoice { manager, .. }) =
            self.summary.choice.clone().filter(|_| what.config.firewall.forward)
        else {
            return;
        };
        let (family, rules) = (Family::of(network.addr()), forward(network));
        if manager == Manager::Nftables {
            self.chain(family, NftChainName::Forward, rules.clone());
        }
        for variant in Variant::ALL {
            let mut facts = what.facts.iptables.iter();
            let refuses = facts
                .find(|facts| (facts.variant, facts.family) == (variant, family))
                .and_then(|facts| facts.refuses.clone());
            if manager == Manager::Nftables
                && let Some(what) = &refuses
            {
                self.faults.push(FirewallFault::ForwardRefused { variant, family, what: what.clone() });
            }
            if manager == Manager::Iptables(variant) || refuses.is_some() {
                self.iptables(variant, family, IptablesTable::Filter, &rules);
            }
        }
    }

    /// Reports obstacles that refuse pods' packets in spite of our rules.
    fn obstacles(&mut self, what: &Rules<'_>, network: IpNet) {
        let family = Family::of(network.addr());
        let obstacles = what.facts.obstacles.iter();
        let uplink = what.node.uplink.link;
        let direct =
            what.config.backend.is_direct_only() || what.peers.iter().any(|peer| peer.path == Path::Direct);
        // An obstacle on the uplink refuses nothing if all peers are reached by tunnel.
        let in_use = |packet: &Packet| {
            direct || !packet.is_forwarded() || ![packet.inbound, packet.outbound].contains(&uplink)
        };
        // Another warning has the commands for firewalld's own table.
        let is_reported = |obstacle: &Obstacle| {
            let tunnelled = matches!(obstacle.packet.payload, Payload::Tunnel(_));
            tunnelled && what.facts.firewalld.is_some() && *obstacle.table == *"firewalld"
        };
        let obstacles = obstacles.filter(|obstacle| {
            Family::of(obstacle.packet.source) == family && in_use(&obstacle.packet) && !is_reported(obstacle)
        });
        self.faults.extend(obstacles.map(|obstacle| fault(obstacle, network)));
        if what.config.firewall.forward {
            return;
        }
        let refusing = what.facts.iptables.iter().filter(|facts| facts.family == family);
        let refusing = refusing.filter_map(|facts| Some((facts.variant, facts.refuses.clone()?)));
        self.faults.extend(refusing.map(|(variant, what)| FirewallFault::ForwardOff {
            variant,
            family,
            what,
        }));
    }

    fn chain(&mut self, family: Family, chain: NftChainName, rules: Vec<TrafficRule>) {
        if !self.tables.iter().any(|table| table.family == family) {
            self.tables.push(NftTable { family });
        }
        self.chains.push(NftChain { family, chain, rules: rules.into(), unknown: None });
    }

    fn iptables(&mut self, variant: Variant, family: Family, table: IptablesTable, rules: &[TrafficRule]) {
        let own = rules.iter().filter_map(|rule| rule.iptables(table)).collect();
        let jump = [table.jump().into_boxed_str()];
        for (chain, rules) in [(table.chain(), own), (table.hook(), jump.into())] {
            let chain = chain.into();
            self.iptables.push(IptablesChain { variant, family, table, chain, rules, unknown: None });
        }
    }

    /// Plans the source filter for the devices whose outer packets are of the family.
    fn filter_sources(&mut self, what: &Rules<'_>, family: Family) {
        let filter = what.config.backend.source_filter();
        let devices: Vec<(TunnelId, &Vxlan)> = what.links.iter().filter_map(vxlan_of(family)).collect();
        if filter == SourceFilter::Off || devices.is_empty() {
            return;
        }
        if let Some(why) = &what.facts.no_nft {
            let fault = FirewallFault::Unfiltered { why: why.clone() };
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
            return;
        }
        if let Some(network) = what.config.network(family) {
            let rules = forwarded(what, network, &devices);
            self.chain(family, NftChainName::VxlanPods, rules);
        }
        if *what.leases == Leases::Unknown {
            // Without a list of peers every sender would be unknown. If an earlier run dropped packets, they pass until
            // there is a list. If it only counted them, its rules may stay.
            if filter == SourceFilter::Drop {
                self.chain(family, NftChainName::Vxlan, Vec::new());
            }
            return;
        }
        let verdict = verdict(filter, what, family);
        let rules =
            devices.iter().flat_map(|(_, device)| unknown_sender_rules(device, family, verdict.clone()));
        let ports: BTreeSet<u16> = devices.iter().map(|(_, device)| device.port).collect();
        let ports = ports.into_iter().filter(|_| family == Family::Ipv6);
        let rules = rules.chain(ports.flat_map(|port| fragments(port, verdict.clone())));
        self.chain(family, NftChainName::Vxlan, rules.collect());
        let addresses = what.peers.iter().map(|peer| peer.public_ip);
        let mut addresses: Vec<IpAddr> = addresses.filter(|address| Family::of(*address) == family).collect();
        addresses.sort_unstable();
        addresses.dedup();
        self.elements.extend(addresses.into_iter().map(|address| NftElement { address }));
    }
}

fn vxlan_of(family: Family) -> impl Fn(&Link) -> Option<(TunnelId, &Vxlan)> {
    move |link| match &link.kind {
        LinkKind::Vxlan(vxlan) if Family::of(vxlan.local) == family => {
            Some((TunnelId::of_device(link.name)?, vxlan))
        }
        _ => None,
    }
}

/// Returns whether to drop or to count packets from unknown senders. They are only counted while the list of peers may be
/// old. The same holds if our own address is translated on the way, since peers' addresses may then be, too.
fn verdict(filter: SourceFilter, what: &Rules<'_>, family: Family) -> RuleVerdict {
    let uplink = &what.node.uplink;
    let is_certain =
        matches!(what.leases, Leases::Listed(_)) && uplink.public(family) == uplink.address(family);
    if filter == SourceFilter::Drop && is_certain { RuleVerdict::Drop } else { RuleVerdict::Count }
}

/// Returns the ports on which other nodes may receive a tunnel's packets. They are our own port, and the ports that most
/// of the peers behind that device announce; among equals, those of the oldest leases. Well-known ports are left out, so
/// that no lease can block another service.
fn ports_of<'a>(id: TunnelId, device: &'a Vxlan, peers: &'a [PeerPath]) -> impl Iterator<Item = u16> + 'a {
    let mut theirs: BTreeMap<u16, (Reverse<usize>, u64)> = BTreeMap::new();
    let tunnels = peers.iter().filter_map(|peer| Some((peer.tunnel?, peer.born)));
    let tunnels = tunnels.filter(|(tunnel, _)| TunnelId::of_device(tunnel.link) == Some(id));
    let ports = tunnels.filter_map(|(tunnel, born)| Some((tunnel.port?, born)));
    for (port, born) in ports.filter(|(port, _)| *port != device.port && *port >= UNPRIVILEGED) {
        let (Reverse(peers), oldest) = theirs.entry(port).or_insert((Reverse(0), born));
        (*peers, *oldest) = (*peers + 1, born.min(*oldest));
    }
    let mut theirs: Vec<_> = theirs.into_iter().map(|(port, rank)| (rank, port)).collect();
    theirs.sort_unstable();
    std::iter::once(device.port).chain(theirs.into_iter().take(OTHER_PORTS).map(|(_, port)| port))
}

/// Returns the conditions of which one holds for a packet from a pod. Nodes may have the other addresses of `network`; the
/// first subnet alone, which is left out by default, is no place for them.
fn pods(config: &Config, network: IpNet, own: Option<IpNet>) -> Vec<Match> {
    let pods = config.pods(Family::of(network.addr())).unwrap_or_else(|| network.into());
    let left_out = number(pods.first).saturating_sub(number(network.network()));
    let subnet: u128 = own.map_or(0, |own| 1 << (own.max_prefix_len() - own.prefix_len()));
    if left_out <= subnet && pods.last == network.broadcast() {
        return vec![from(network)];
    }
    let leasable = pods.network().map_or(Match::SourceRange(pods), from);
    let outside = own.filter(|own| !pods.covers(own)).map(|own| from(own.trunc()));
    [leasable].into_iter().chain(outside).collect()
}

/// Returns the rules for forwarded VXLAN packets to other nodes, behind which the pod network is. Such a packet may leave
/// with this node's address, as a peer's packet does. Pods are never peers, so the rules for them do not depend on the
/// list of peers. Others send to a peer's address if they mean the pod network.
fn forwarded(what: &Rules<'_>, network: IpNet, devices: &[(TunnelId, &Vxlan)]) -> Vec<TrafficRule> {
    let (filter, family) = (what.config.backend.source_filter(), Family::of(network.addr()));
    let of_pods = if filter == SourceFilter::Drop { RuleVerdict::Drop } else { RuleVerdict::Count };
    let of_others = verdict(filter, what, family);
    let sources = pods(what.config, network, what.node.subnet.of(family));
    let mut rules = Vec::new();
    for &(id, device) in devices {
        for port in ports_of(id, device, what.peers) {
            let tunnel = [Match::UdpPort(port), Match::Vni(device.vni)];
            for source in &sources {
                let matches = [&[*source], &tunnel[..]].concat();
                rules.extend(recorded(family, &matches, of_pods.clone()));
                // A packet is recorded once.
                rules.push(TrafficRule { matches: matches.into(), verdict: RuleVerdict::Return });
            }
            let matches = [&tunnel[..], &[Match::NoPeer(family), Match::ToPeer(family)]].concat();
            rules.extend(recorded(family, &matches, of_others.clone()));
        }
    }
    rules
}

/// Returns the rules for packets from unknown senders.
fn unknown_sender_rules(device: &Vxlan, family: Family, verdict: RuleVerdict) -> [TrafficRule; 2] {
    let matches = [Match::UdpPort(device.port), Match::Vni(device.vni), Match::NoPeer(family)];
    recorded(family, &matches, verdict)
}

/// Returns the rules for fragments of IPv6 packets from unknown senders. Without connection tracking the kernel joins them
/// only after it has filtered each. The first one has the port, but need not have the VNI; without it the rest is lost.
fn fragments(port: u16, verdict: RuleVerdict) -> [TrafficRule; 2] {
    let family = Family::Ipv6;
    recorded(family, &[Match::UdpPort(port), Match::NoPeer(family), Match::Fragment], verdict)
}

/// Returns the rules that record the sender and give the verdict. The one that records stands alone, because it ends
/// when the set is full. Packets are dropped only while a daemon keeps the rules: nobody else admits new peers.
fn recorded(family: Family, matches: &[Match], verdict: RuleVerdict) -> [TrafficRule; 2] {
    let kept = (verdict == RuleVerdict::Drop).then_some(Match::Kept);
    [
        TrafficRule { matches: matches.into(), verdict: RuleVerdict::Remember(family) },
        TrafficRule { matches: matches.iter().copied().chain(kept).collect(), verdict },
    ]
}

fn masquerade(network: IpNet, pods: IpNet, fully_random: bool) -> Vec<TrafficRule> {
    let masquerade = RuleVerdict::Masquerade { fully_random };
    let rule = |matches: [Match; 2], verdict: &RuleVerdict| TrafficRule {
        matches: matches.into(),
        verdict: verdict.clone(),
    };
    vec![
        TrafficRule { matches: [MASQUERADED_BY_KUBE_PROXY].into(), verdict: RuleVerdict::Return },
        rule([from(pods), to(network)], &RuleVerdict::Return),
        rule([from(network), to(pods)], &RuleVerdict::Return),
        rule([from_without(network), to(pods)], &RuleVerdict::Return),
        rule([from(network), to_without(multicast(network))], &masquerade),
        rule([from_without(network), to(network)], &masquerade),
    ]
}

fn forward(network: IpNet) -> Vec<TrafficRule> {
    let accept = |condition| TrafficRule { matches: [condition].into(), verdict: RuleVerdict::Accept };
    vec![accept(from(network)), accept(to(network))]
}

fn from(net: IpNet) -> Match {
    Match::Source(Net { net, not: false })
}

fn to(net: IpNet) -> Match {
    Match::Destination(Net { net, not: false })
}

fn from_without(net: IpNet) -> Match {
    Match::Source(Net { net, not: true })
}

fn to_without(net: IpNet) -> Match {
    Match::Destination(Net { net, not: true })
}

/// Returns the network of all multicast groups (RFC 5771, RFC 4291).
fn multicast(network: IpNet) -> IpNet {
    match Family::of(network.addr()) {
        Family::Ipv4 => ipnet::Ipv4Net::new_assert([224, 0, 0, 0].into(), 4).into(),
        Family::Ipv6 => ipnet::Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8).into(),
    }
}
