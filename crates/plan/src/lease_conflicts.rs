//! Decides which of several leases in conflict is believed. Leases are in conflict if they overlap, or if the node of
//! one lies in the subnet of the other. Two addresses with one VTEP MAC are a conflict, too. The lease whose node
//! replies is believed. If none is known to reply, the last written one counts, as in flannel. So a node that returns
//! with another subnet replaces its own old lease, and no lease replaces a live node. Nodes that were found silent are
//! remembered. Time is a parameter, not read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, End};
use crate::config::Config;
use crate::family::Family;
use crate::health::Health;
use crate::ip_address::number;
use crate::lease::{Lease, Leases};
use crate::mac::Mac;
use crate::name::LinkName;
use crate::state::{RoutePath, State};
use crate::tunnel_id::TunnelId;

/// Maximum time for which a lease that the kernel uses is kept while its node has not been judged.
const IN_PLACE_TIME: Duration = Duration::from_secs(60);
/// Minimum time after which a silent node is tried again; it doubles each time.
const FIRST_WAIT: Duration = Duration::from_secs(30);
/// Maximum time after which a silent node is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Standing of a lease in a conflict. The lease with the lowest standing is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Lease whose pod subnet replies.
    Answers,
    /// Lease to whose node the kernel sends now, and whose node has not been judged yet.
    InPlace,
    Unknown,
    /// Lease whose pod subnet was found silent.
    Silent,
}

/// Lease that is in conflict with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    pub subnet: IpNet,
    pub public_ip: IpAddr,
    pub standing: Standing,
}

/// Evidence that shows which contender is alive.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Health of the peers, by subnet.
    pub healths: &'a [Health],
    /// Observed state.
    pub observed: &'a State,
    pub uplink: LinkName,
    /// True if peers are probed. Without probes no peer is ever judged.
    pub probed: bool,
}

/// Key of a lease in a conflict: its subnet and its public address.
type Key = (IpNet, IpAddr);

/// Memory of the leases that are in conflict now.
#[derive(Clone, Debug, Default)]
pub struct LeaseConflicts {
    known: BTreeMap<Key, Known>,
    due: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Known {
    written: u64,
    vtep: Option<(Mac, IpAddr)>,
    since: Instant,
    answers: Option<bool>,
    silent: Option<SilentNode>,
}

#[derive(Clone, Copy, Debug)]
struct SilentNode {
    /// Number of times that the node was found silent.
    times: u32,
    /// Time at which the node may be tried again.
    until: Instant,
}

impl SilentNode {
    fn again(before: Option<Self>, now: Instant) -> Self {
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        let wait = FIRST_WAIT.saturating_mul(1 << (times - 1).min(9)).min(LONGEST_WAIT);
        Self { times, until: now + wait }
    }
}

impl LeaseConflicts {
    /// Returns the leases that are in conflict, by subnet, each with its standing.
    pub fn contenders(
        &mut self,
        config: &Config,
        leases: &Leases,
        evidence: Evidence<'_>,
        now: Instant,
    ) -> Vec<Contender> {
        let groups = self.find_conflicts(config, leases.known(), now);
        self.due = None;
        if groups.is_empty() {
            return Vec::new();
        }
        let fallen = self.record_health(evidence, now);
        groups.iter().for_each(|group| self.hold_back(group, &fallen, now));
        let standing = StandingRoutes::of(evidence.observed);
        let mut contenders = Vec::with_capacity(self.known.len());
        for (&(subnet, public_ip), known) in &self.known {
            let (standing, due) = known.standing(standing.has(subnet, known), evidence.probed, now);
            self.due = self.due.into_iter().chain(due).min();
            contenders.push(Contender { subnet, public_ip, standing });
        }
        contenders
    }

    /// Returns when to look for contenders again even without news.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Finds the conflicts, and forgets those that are over. A lease that was written again counts as a new one.
    fn find_conflicts(&mut self, config: &Config, leases: &[Lease], now: Instant) -> Vec<Vec<Key>> {
        let mut before = std::mem::take(&mut self.known);
        let mut groups = Vec::new();
        for family in config.families() {
            for group in conflicts(leases, family, config) {
                let mut keys = Vec::with_capacity(group.len());
                for lease in group {
                    let (Some(subnet), Some(public)) = (lease.subnet.of(family), lease.public(family)) else {
                        continue;
                    };
                    let (key, written) = ((subnet, public), lease.written);
                    keys.push(key);
                    let vtep = lease.announced.macs()[family as usize].map(|mac| (mac, public));
                    let new = || Known { written, vtep, since: now, answers: None, silent: None };
                    let kept = before.remove(&key).filter(|known| known.written == written);
                    self.known.entry(key).or_insert_with(|| kept.unwrap_or_else(new));
                }
                groups.push(keys);
            }
        }
        groups
    }

    /// Keeps other contenders from being tried in place of a live node. They wait a while longer once it has fallen
    /// silent. Older leases and leases found silent are held back; newer ones are not.
    fn hold_back(&mut self, group: &[Key], fallen: &BTreeSet<Key>, now: Instant) {
        let living = group.iter().filter_map(|key| Some((key, self.known.get(key)?)));
        let living = living.filter(|(key, known)| known.answers == Some(true) || fallen.contains(key));
        let Some(written) = living.map(|(_, known)| known.written).max() else { return };
        for key in group {
            let Some(known) = self.known.get_mut(key).filter(|known| known.answers.is_none()) else {
                continue;
            };
            let until = now + FIRST_WAIT;
            match &mut known.silent {
                Some(silent) => silent.until = silent.until.max(until),
                None if known.written < written => known.silent = Some(SilentNode { times: 0, until }),
                None => {}
            }
        }
    }

    /// Takes the health that the probes found. Returns the leases whose nodes replied before and do not any more.
    fn record_health(&mut self, evidence: Evidence<'_>, now: Instant) -> BTreeSet<Key> {
        let mut fallen = BTreeSet::new();
        for (&(subnet, public_ip), known) in &mut self.known {
            let at = evidence.healths.binary_search_by_key(&subnet, |health| health.peer.subnet);
            let peer = at.ok().map(|at| &evidence.healths[at].peer);
            let peer = peer.filter(|it| it.node == public_ip && it.uplink == evidence.uplink);
            let answers = peer.and_then(|peer| peer.answers);
            match answers {
                Some(true) => known.silent = None,
                Some(false) if known.silent.is_none_or(|silent| silent.until <= now) => {
                    known.silent = Some(SilentNode::again(known.silent, now));
                }
                _ => {}
            }
            if known.answers == Some(true) && answers == Some(false) {
                fallen.insert((subnet, public_ip));
            }
            known.answers = answers;
        }
        fallen
    }
}

impl Known {
    /// Returns the standing, and the time at which it ends by itself.
    fn standing(&self, in_place: bool, probed: bool, now: Instant) -> (Standing, Option<Instant>) {
        let begun = match (self.answers, self.silent) {
            (Some(true), _) => return (Standing::Answers, None),
            (Some(false), _) => return (Standing::Silent, None),
            (None, Some(silent)) if now < silent.until => return (Standing::Silent, Some(silent.until)),
            (None, silent) => silent.map_or(self.since, |silent| silent.until),
        };
        let end = begun + IN_PLACE_TIME;
        if probed && in_place && now < end {
            (Standing::InPlace, Some(end))
        } else {
            (Standing::Unknown, None)
        }
    }
}

/// Destinations of the kernel's routes and FDB entries.
struct StandingRoutes {
    routes: BTreeSet<IpNet>,
    vteps: BTreeMap<Mac, BTreeSet<IpAddr>>,
}

impl StandingRoutes {
    fn of(observed: &State) -> Self {
        let refuses = |path| matches!(path, RoutePath::Unreachable | RoutePath::Blackhole);
        let routes = observed.routes.iter().filter(|row| !refuses(row.path)).map(|row| row.destination);
        let mut vteps: BTreeMap<Mac, BTreeSet<IpAddr>> = BTreeMap::new();
        for row in &observed.fdb {
            vteps.entry(row.mac).or_default().insert(row.remote);
        }
        Self { routes: routes.collect(), vteps }
    }

    fn has(&self, subnet: IpNet, known: &Known) -> bool {
        let leads = |(mac, public): (Mac, IpAddr)| {
            self.vteps.get(&mac).is_none_or(|remotes| remotes.contains(&public))
        };
        self.routes.contains(&subnet) && known.vtep.is_none_or(leads)
    }
}

/// FDB entry: its key in a tunnel's device, and the address and port to which it sends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    id: TunnelId,
    mac: Mac,
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl Target {
    fn of(lease: &Lease, family: Family, own: &Backend) -> Option<Self> {
        let End { id, mac, port } = lease.announced.end(family, own)?;
        Some(Self { id, mac: mac?, address: lease.public(family), port })
    }

    fn is_at_one_key(&self, other: &Self) -> bool {
        (self.id, self.mac) == (other.id, other.mac)
    }
}

/// Returns true if only one of both leases can be reached. [`LeaseConflicts`] handles many leases at once.
pub fn conflict(one: &Lease, other: &Lease) -> bool {
    Family::ALL.into_iter().any(|family| {
        let overlap = one.subnet.of(family).zip(other.subnet.of(family));
        let overlap = overlap.is_some_and(|(one, other)| one.contains(&other) || other.contains(&one));
        // Numbers are not compared: our own one is not at hand, and a lease that names none means it.
        let [one_end, other_end] = [one, other].map(|lease| Target::of(lease, family, &Backend::default()));
        let ends = one_end.zip(other_end);
        let lies_in = |node: &Lease, pods: &Lease| {
            pods.subnet
                .of(family)
                .zip(node.public(family))
                .is_some_and(|(subnet, node)| subnet.contains(&node))
        };
        let inside = lies_in(one, other) || lies_in(other, one);
        let remote = |target: Target| (target.address, target.port);
        overlap
            || inside
            || ends.is_some_and(|(one, other)| one.mac == other.mac && remote(one) != remote(other))
    })
}

/// Returns groups of leases of which only one each can be believed.
fn conflicts<'a>(leases: &'a [Lease], family: Family, config: &Config) -> Vec<Vec<&'a Lease>> {
    let mut groups = Vec::new();
    let with_span = |lease| {
        let subnet: IpNet = Lease::subnet_of(lease, family)?;
        Some((number(subnet.network()), number(subnet.broadcast()), lease))
    };
    let mut spans: Vec<_> = leases.iter().filter_map(with_span).collect();
    spans.sort_unstable_by_key(|(first, last, _)| (*first, *last));
    let mut rest = &spans[..];
    while let Some(&(_, mut end, _)) = rest.first() {
        let mut count = 1;
        while let Some((_, last, _)) = rest.get(count).filter(|(first, ..)| *first <= end) {
            (end, count) = (end.max(*last), count + 1);
        }
        let (group, others) = rest.split_at(count);
        if count > 1 {
            groups.push(group.iter().map(|(.., lease)| *lease).collect());
        }
        rest = others;
    }
    let network = config.network(family);
    for lease in leases {
        let Some(node) = lease.public(family).filter(|node| network.is_some_and(|it| it.contains(node)))
        else {
            continue;
        };
        let after = spans.partition_point(|(first, ..)| *first <= number(node));
        let around = after.checked_sub(1).map(|at| spans[at]).filter(|(_, last, _)| *last >= number(node));
        groups.extend(around.filter(|(.., it)| it.subnet != lease.subnet).map(|(.., it)| vec![lease, it]));
    }
    let own = &config.backend;
    let mut ends: Vec<_> =
        leases.iter().filter_map(|lease| Some((Target::of(lease, family, own)?, lease))).collect();
    ends.sort_unstable_by_key(|(end, _)| *end);
    let runs = ends.chunk_by(|one, other| one.0.is_at_one_key(&other.0));
    let apart = runs.filter(|run| run.first().map(|one| one.0) != run.last().map(|one| one.0));
    groups.extend(apart.map(|run| run.iter().map(|(_, lease)| *lease).collect()));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Finding, PeerHealth};
    use crate::netconf::NetConf;
    use crate::state::{FdbEntry, MAIN_TABLE, Route};

    const OLD: (&str, u8) = ("10.244.31.0-24", 12);
    const NEW: (&str, u8) = ("10.244.32.0-24", 13);

    fn uplink() -> LinkName {
        "eth0".parse().unwrap()
    }

    fn config() -> Config {
        NetConf::parse(br#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap().config()
    }

    /// Returns a lease; all leases have the same MAC.
    fn lease((key, host): (&str, u8), written: u64) -> Lease {
        let value = format!(
            r#"{{"PublicIP":"192.0.2.{host}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}}}}"#
        );
        Lease { written, ..Lease::parse(key, value.as_bytes(), 1).unwrap() }
    }

    fn key(lease: &Lease) -> Key {
        (lease.subnet.of(Family::Ipv4).unwrap(), lease.public(Family::Ipv4).unwrap())
    }

    /// Simulated node that believes one lease at a time, and what the probes find.
    struct Node {
        lease_conflicts: LeaseConflicts,
        leases: Vec<Lease>,
        living: Vec<u8>,
        probed: bool,
        suspect: bool,
        start: Instant,
        second: u64,
        believed: Option<Key>,
        /// Second since which the lease is believed; `answers` is what the probes have found since then.
        since: u64,
        answers: Option<bool>,
    }

    impl Node {
        fn new(leases: Vec<Lease>, living: &[u8]) -> Self {
            let (lease_conflicts, living) = (LeaseConflicts::default(), living.to_vec());
            let (start, believed) = (Instant::now(), None);
            let [probed, suspect] = [true, false];
            Self {
                lease_conflicts,
                leases,
                living,
                probed,
                suspect,
                start,
                second: 0,
                believed,
                since: 0,
                answers: None,
            }
        }

        fn observed(&self) -> State {
            let Some((subnet, public)) = self.believed else { return State::default() };
            let link: LinkName = "flannel.1".parse().unwrap();
            let path = RoutePath::Via { gateway: subnet.network(), link, onlink: true };
            let route = Route {
                table: MAIN_TABLE,
                destination: subnet,
                path,
                protocol: 84,
                metric: 0,
                unknown: None,
            };
            let mac = Mac([2, 0, 0, 0, 0, 7]);
            let fdb = FdbEntry { link, mac, remote: public, port: None, unknown: None };
            State { routes: vec![route].into(), fdb: vec![fdb].into(), ..State::default() }
        }

        /// Runs one reconcile pass, and a second later takes what the probes find.
        fn turn(&mut self) {
            let told = |(subnet, node): Key| {
                let finding =
                    if self.answers == Some(false) { Finding::Silent { node } } else { Finding::Healthy };
                let peer = PeerHealth {
                    subnet,
                    node,
                    uplink: uplink(),
                    finding,
                    preferred_path: None,
                    answers: self.answers,
                };
                Health { peer, since: Duration::ZERO, latency: None, loss: 0, mtu: None }
            };
            let healths: Vec<Health> = self.believed.filter(|_| self.probed).map(told).into_iter().collect();
            let observed = self.observed();
            let evidence =
                Evidence { healths: &healths, observed: &observed, uplink: uplink(), probed: self.probed };
            let leases = Leases::Listed(self.leases.as_slice().into());
            let now = self.start + Duration::from_secs(self.second);
            let contenders = self.lease_conflicts.contenders(&config(), &leases, evidence, now);
            let standing = |lease: &Lease| {
                let found = contenders.iter().find(|it| (it.subnet, it.public_ip) == key(lease));
                found.map_or(Standing::Unknown, |it| it.standing)
            };
            let first =
                self.leases.iter().min_by_key(|lease| (standing(lease), std::cmp::Reverse(lease.written)));
            let believed = first.map(key);
            if believed != self.believed {
                (self.believed, self.since, self.answers) = (believed, self.second, None);
            }
            self.second += 1;
            let lives =
                |(_, public): Key| self.living.iter().any(|host| public == IpAddr::from([192, 0, 2, *host]));
            let known_for = self.second - self.since;
            match believed.map(lives) {
                Some(true) if known_for > 2 => self.answers = Some(true),
                // A new peer is given time; a peer that replied before is soon missed.
                Some(false) if !self.suspect && (known_for > 10 || self.answers == Some(true)) => {
                    self.answers = Some(false);
                }
                _ => {}
            }
        }

        fn after(&mut self, seconds: u64) -> u8 {
            (0..seconds).for_each(|_| self.turn());
            match self.believed.unwrap().1 {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => 0,
            }
        }
    }

    #[test]
    fn a_node_that_comes_back_with_another_subnet_is_believed() {
        // No lease was believed before, as after a reboot of this node.
        assert_eq!(Node::new(vec![lease(OLD, 5), lease(NEW, 9)], &[13]).after(1), 13);
        // The old lease was known, and its node was found silent or not yet.
        for silent in [0, 1, 9] {
            let mut node = Node::new(vec![lease(OLD, 5)], &[12]);
            assert_eq!(node.after(60), 12);
            node.living = vec![];
            node.after(silent);
            (node.living, node.leases) = (vec![13], vec![lease(OLD, 5), lease(NEW, 9)]);
            assert_eq!(node.after(3), 13, "{silent}");
            // The new lease is believed for as long as the old one lasts.
            for _ in 0..86_400 / 60 {
                assert_eq!(node.after(60), 13);
            }
        }
    }

    #[test]
    fn a_replying_node_keeps_its_lease() {
        let mut node = Node::new(vec![lease(OLD, 5)], &[12]);
        node.after(60);
        for written in 9..100 {
            node.leases = vec![lease(OLD, 5), lease(NEW, written)];
            for _ in 0..60 {
                assert_eq!(node.after(1), 12, "{written}");
            }
        }
        // The lease stays even if all nodes seem silent, because this node is cut off.
        (node.living, node.suspect) = (vec![], true);
        assert_eq!(node.after(600), 12);
    }

    #[test]
    fn after_a_restart_existing_rows_are_kept_until_judged() {
        for (living, believed) in [([12], 12), ([13], 13)] {
            let mut node = Node::new(vec![lease(OLD, 5), lease(NEW, 9)], &living);
            node.believed = Some(key(&node.leases[0]));
            assert_eq!(node.after(5), 12);
            assert_eq!(node.after(10), believed);
        }
        let mut unprobed = Node::new(vec![lease(OLD, 5), lease(NEW, 9)], &[12]);
        (unprobed.believed, unprobed.probed) = (Some(key(&unprobed.leases[0])), false);
        assert_eq!(unprobed.after(1), 13, "nobody will ever be judged, so it is as with flannel");
    }

    #[test]
    fn silent_rivals_are_tried_in_turn_until_a_node_replies() {
        let mut node = Node::new(vec![lease(OLD, 5), lease(NEW, 9)], &[]);
        let believed: Vec<u8> = (0..3600).map(|_| node.after(1)).collect();
        let changes = believed.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!((4..40).contains(&changes), "{changes}");
        for living in [12, 13, 12] {
            node.living = vec![living];
            node.after(700);
            assert!((0..60).all(|_| node.after(1) == living), "{living}");
        }
    }

    #[test]
    fn a_lease_that_is_written_again_is_tried_at_once() {
        let mut node = Node::new(vec![lease(OLD, 5), lease(NEW, 9)], &[]);
        node.after(100);
        (node.leases, node.living) = (vec![lease(OLD, 10), lease(NEW, 9)], vec![12]);
        assert_eq!(node.after(1), 12);
        assert_eq!(node.after(60), 12);
    }

    #[test]
    fn a_rebooting_node_keeps_its_lease_over_a_dead_rival() {
        let mut node = Node::new(vec![lease(OLD, 5), lease(NEW, 9)], &[13]);
        node.after(3600);
        node.living = vec![];
        assert!((0..29).all(|_| node.after(1) == 13));
    }

    /// Returns a lease whose node has an address in the subnet of [`OLD`].
    fn intruder(written: u64) -> Lease {
        let value = r#"{"PublicIP":"10.244.31.5","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}"#;
        Lease { written, ..Lease::parse("10.244.40.0-24", value.as_bytes(), 1).unwrap() }
    }

    #[test]
    fn a_node_that_announces_a_pods_address_replaces_no_live_node() {
        let mut node = Node::new(vec![lease(OLD, 5)], &[12]);
        assert_eq!(node.after(10), 12);
        node.leases.push(intruder(9));
        assert!((0..600).all(|_| node.after(1) == 12));
    }

    #[test]
    fn leases_conflict_by_addresses_or_mac() {
        let mac = |lease: &mut Lease, last: u8| {
            let value = lease.to_json().replace("00:07", &format!("00:{last:02x}"));
            *lease = Lease::parse(&lease.subnet.to_string(), value.as_bytes(), 1).unwrap();
        };
        let found = |leases: &[Lease]| {
            conflicts(leases, Family::Ipv4, &config()).iter().map(Vec::len).collect::<Vec<_>>()
        };
        let mut one = lease(OLD, 1);
        let mut vni = lease(NEW, 1);
        assert_eq!(found(&[one.clone(), vni.clone()]), [2]);
        assert!(conflict(&one, &vni));
        // Two subnets of one node are not in conflict.
        let same = lease((NEW.0, 12), 1);
        assert_eq!(found(&[one.clone(), same.clone()]), [0; 0]);
        assert!(!conflict(&one, &same));
        mac(&mut vni, 8);
        assert_eq!(found(&[one.clone(), vni.clone()]), [0; 0]);
        // Subnets that overlap are in conflict, whatever the MACs.
        let mut wide = lease(("10.244.30.0-23", 14), 1);
        mac(&mut wide, 9);
        assert_eq!(found(&[one.clone(), vni, wide.clone()]), [2]);
        assert!(conflict(&one, &wide));
        // A node's address is no pod's.
        let intruder = intruder(1);
        assert_eq!(found(&[one.clone(), intruder.clone()]), [2]);
        assert!(conflict(&one, &intruder) && conflict(&intruder, &one));
        mac(&mut one, 10);
        assert_eq!(
            found(&[one, lease(("10.244.30.0-24", 15), 1), wide, lease(("10.244.33.0-24", 15), 1)]),
            [3]
        );
    }
}
