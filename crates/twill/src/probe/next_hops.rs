//! Neighbours on the uplink: the MAC that replies for each address, and the peers about which all machines are asked.
//! Requests to all machines of the segment (ARP broadcasts, or solicitations to a multicast group) are rare. Each peer
//! gets its turn. Sends nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use kernel::packet;
use plan::{Family, Mac};
use tracing::warn;

/// Minimum time between two requests to all machines: at most 10 of them a second.
const BROADCAST_INTERVAL: Duration = Duration::from_millis(101);

/// Number of times that all machines are asked again because two have replied. A machine with two cards on the segment
/// always replies twice.
const MAX_CONTESTS: u8 = 3;
/// Number of unanswered unicast requests after which a neighbour counts as ignoring unicasts. Each must be followed by an
/// reply to a request to all machines.
const IGNORED: u8 = 4;
/// Number of replies after which such a neighbour is asked by unicast again.
const UNICAST_AGAIN: u8 = 30;
/// Number of unanswered requests in a row after which a neighbour that had replied counts as silent.
const SILENT_AFTER: u8 = 2;

/// Maximum number of peers' addresses that one node has: its own and a virtual one, of each family.
const MAX_OF_A_NODE: usize = 4;

/// Length of the queue from which the kernel's neighbour events are ignored. After such an event packets to a silent
/// neighbour count as lost until all machines are asked about it. Its turn must therefore come soon. A flush of the
/// kernel's table makes every entry fail.
const MAX_QUEUE_FOR_EVENTS: usize = 3;
/// Maximum number of addresses with two MACs that are logged between two reads of the kernel's neighbours. A router that
/// replies for every address is a single fault.
const MOST_LOGGED: u8 = 5;

/// Knowledge about one address.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    mac: Mac,
    /// MAC of a second machine that has replied, too.
    other: Option<Mac>,
    /// MAC that the kernel sends to, as far as it is known.
    believed: Option<Mac>,
    /// True if an administrator has set the entry: the neighbour need not reply.
    is_static: bool,
    /// True if the last request got no reply, or replies from two machines.
    is_unsure: bool,
    /// Number of unicast requests lost since one got a reply, up to [`IGNORED`].
    ignored: u8,
    /// Number of replies since `ignored` reached [`IGNORED`], up to [`UNICAST_AGAIN`].
    answers: u8,
    /// Number of times that two machines have replied.
    contests: u8,
}

impl Neighbour {
    fn new(mac: Mac) -> Self {
        let (other, believed) = (None, None);
        Self { mac, other, believed, is_static: false, is_unsure: false, ignored: 0, answers: 0, contests: 0 }
    }

    /// Records a reply to any request. `is_first` is false for a further reply to the same request.
    fn answered(&mut self, mac: Mac, is_first: bool) {
        if self.ignored == IGNORED {
            self.answers += 1;
            if self.answers == UNICAST_AGAIN {
                (self.ignored, self.answers) = (IGNORED - 1, 0);
            }
        } else if !self.is_unsure {
            self.ignored = 0;
        }
        self.contests = self.contests.saturating_add(u8::from(!is_first));
        if self.mac != mac && (!is_first || self.other == Some(mac)) {
            self.other = Some(self.mac);
        }
        (self.mac, self.is_unsure) = (mac, !is_first && self.contests <= MAX_CONTESTS);
    }

    fn record_loss(&mut self) {
        if !self.is_unsure && self.ignored < IGNORED {
            self.ignored += 1;
        }
        self.is_unsure = true;
    }
}

/// Effect of a packet to a next hop that follows the kernel's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reachability {
    /// The kernel knows the MAC and sends the packet.
    Known,
    /// The kernel would ask all machines of the segment for the MAC.
    Unknown,
    /// The kernel would ask all machines without success, since our own requests got no reply.
    Silent,
}

/// Known neighbours, and the queue of requests to all machines.
#[derive(Debug, Default)]
pub(super) struct NextHops {
    known: HashMap<IpAddr, Neighbour>,
    /// Number of unanswered requests in a row.
    missed: HashMap<IpAddr, u8>,
    /// Addresses that each MAC has replied for.
    owners: BTreeSet<(Mac, IpAddr)>,
    /// Queue of peers for which all machines are to be asked.
    waiting: VecDeque<IpNet>,
    /// Peers in `waiting`, as a set.
    queued: HashSet<IpNet>,
    /// Earliest time of the next request to all machines.
    next: Duration,
    /// Number of addresses with two MACs that were logged since the last read.
    logged: u8,
}

impl NextHops {
    /// Forgets addresses of other peers, and takes what the kernel knows of its neighbours.
    pub(super) fn update(&mut self, peers: &BTreeMap<IpNet, IpAddr>, neighbours: &[packet::KnownNeighbour]) {
        let addresses: BTreeSet<IpAddr> = peers.values().copied().collect();
        self.known.retain(|ip, _| addresses.contains(ip));
        self.missed.retain(|ip, _| addresses.contains(ip));
        self.waiting.retain(|peer| peers.contains_key(peer));
        self.queued.retain(|peer| peers.contains_key(peer));
        self.logged = 0;
        self.owners.clear();
        self.owners.extend(neighbours.iter().map(|it| (it.mac, it.ip)));
        self.owners.extend(self.known.iter().map(|(ip, known)| (known.mac, *ip)));
        self.known.values_mut().for_each(|known| (known.is_static, known.believed) = (false, None));
        for &packet::KnownNeighbour { ip, mac, is_static } in
            neighbours.iter().filter(|it| addresses.contains(&it.ip))
        {
            let known = self.known.entry(ip).or_insert(Neighbour::new(mac));
            known.believed = Some(mac);
            if is_static {
                (known.mac, known.is_static) = (mac, true);
            }
        }
    }

    /// Returns true if an administrator has set the neighbour's entry.
    pub(super) fn is_static(&self, ip: IpAddr) -> bool {
        self.known.get(&ip).is_some_and(|known| known.is_static)
    }

    /// Returns the effect of a packet to that next hop.
    pub(super) fn reachability(&self, ip: IpAddr) -> Reachability {
        let missed = self.missed.get(&ip).copied().unwrap_or_default();
        match self.known.get(&ip) {
            Some(known) if known.is_static || missed < SILENT_AFTER => Reachability::Known,
            None if missed == 0 => Reachability::Unknown,
            _ => Reachability::Silent,
        }
    }

    /// Returns the MAC that replied last. If two machines reply, it is the one that pods' packets go to.
    pub(super) fn mac(&self, ip: IpAddr) -> Option<Mac> {
        let known = self.known.get(&ip)?;
        Some(known.other.filter(|other| known.believed == Some(*other)).unwrap_or(known.mac))
    }

    /// Returns the MAC to ask by unicast; `None` if all machines must be asked.
    pub(super) fn unicast_mac(&self, ip: IpAddr) -> Option<Mac> {
        self.known.get(&ip).filter(|known| !known.is_unsure && known.ignored < IGNORED).map(|known| known.mac)
    }

    /// Returns true if any request is without a reply.
    pub(super) fn has_unanswered(&self) -> bool {
        !self.missed.is_empty()
    }

    /// Records that a packet by the kernel's routes got a reply from there.
    pub(super) fn record_reached(&mut self, ip: IpAddr) {
        self.missed.remove(&ip);
    }

    /// Records a reply, the first or a further one to the same request. Returns another address of the same family that
    /// this MAC has replied for.
    pub(super) fn record_answer(&mut self, ip: IpAddr, mac: Mac, is_first: bool) -> Option<IpAddr> {
        self.missed.remove(&ip);
        let known = self.known.entry(ip).or_insert(Neighbour::new(mac));
        if known.mac != mac {
            self.owners.remove(&(known.mac, ip));
        }
        let one = known.mac;
        known.answered(mac, is_first);
        // The kernel has received the reply, too. It keeps the first of several ARP replies, and the last neighbour
        // advertisement.
        if is_first || ip.is_ipv6() {
            known.believed = Some(mac);
        }
        // Two machines may both reply once for an address that moves.
        if !is_first && known.contests == 2 && self.logged < MOST_LOGGED {
            self.logged += 1;
            warn!(
                "both {one} and {mac} answer for {ip}: two machines with one address, or two NICs of one machine"
            );
        }
        self.owners.insert((mac, ip));
        let from = (mac, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let of_it = self.owners.range(from..).take_while(|(owner, _)| *owner == mac);
        of_it
            .map(|(_, other)| *other)
            .filter(|other| Family::of(*other) == Family::of(ip) && !is_link_local(*other))
            .find(|it| *it != ip)
    }

    /// Takes a neighbour event: the kernel's requests got no reply (`None`), or it has another MAC. Returns true if all
    /// machines are to be asked about the address.
    pub(super) fn neighbour_event(&mut self, ip: IpAddr, mac: Option<Mac>) -> bool {
        self.known.get_mut(&ip).into_iter().for_each(|known| known.believed = mac);
        if self.waiting.len() >= MAX_QUEUE_FOR_EVENTS {
            return false;
        }
        let is_silent = self.reachability(ip) == Reachability::Silent;
        let known = self.known.get_mut(&ip).filter(|known| !known.is_static);
        match (known, mac) {
            // All machines are asked about an uncertain address already, however often its MAC changes.
            (Some(known), Some(mac))
                if !known.is_unsure && ![Some(known.mac), known.other].contains(&Some(mac)) =>
            {
                known.is_unsure = true;
                true
            }
            (Some(known), None) if !is_silent => {
                known.is_unsure = true;
                self.missed.insert(ip, SILENT_AFTER);
                true
            }
            _ => false,
        }
    }

    /// Returns true if this MAC replies for many addresses, as a switch or router does that replies for all machines.
    pub(super) fn is_proxy(&self, mac: Mac) -> bool {
        let from = (mac, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let others = self.owners.range(from..).take_while(|(owner, _)| *owner == mac);
        others.filter(|(_, ip)| !is_link_local(*ip)).count() > MAX_OF_A_NODE
    }

    /// Records that the neighbour did not reply.
    pub(super) fn record_loss(&mut self, ip: IpAddr) {
        let missed = self.missed.entry(ip).or_default();
        *missed = missed.saturating_add(1);
        if let Some(known) = self.known.get_mut(&ip) {
            known.record_loss();
        }
    }

    /// Queues a request to all machines about that peer.
    pub(super) fn ask_all(&mut self, peer: IpNet) {
        if self.queued.insert(peer) {
            self.waiting.push_back(peer);
        }
    }

    /// Returns the peer to ask all machines about now, if it is time for the next one.
    pub(super) fn turn(&mut self, now: Duration) -> Option<IpNet> {
        if now < self.next {
            return None;
        }
        let peer = self.waiting.pop_front()?;
        self.queued.remove(&peer);
        self.next = now + BROADCAST_INTERVAL;
        Some(peer)
    }

    /// Returns the time of the next request to all machines; `None` if none is queued.
    pub(super) fn due(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.next)
    }
}

/// Returns true for an IPv6 link-local address. Every machine has one besides its others.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn peers(count: u8) -> BTreeMap<IpNet, IpAddr> {
        (1..=count).map(|n| (format!("10.244.{n}.0/24").parse().unwrap(), ip(n))).collect()
    }

    #[test]
    fn all_machines_are_asked_at_most_ten_times_a_second_in_turn() {
        let mut hops = NextHops::default();
        let (peers, mut asked) = (peers(30), Vec::new());
        hops.update(&peers, &[]);
        for now in 0..6000 {
            peers.keys().filter(|_| now % 100 == 0).for_each(|peer| hops.ask_all(*peer));
            asked.extend(hops.turn(Duration::from_millis(now)).map(|peer| (now, peer)));
        }
        assert!(asked.windows(11).all(|eleven| eleven[10].0 - eleven[0].0 > 1000));
        for peer in peers.keys() {
            assert!((1..=3).contains(&asked.iter().filter(|(_, it)| it == peer).count()), "{peer}");
        }
    }

    #[test]
    fn a_mac_that_answers_for_several_addresses_is_reported() {
        let mut hops = NextHops::default();
        let link_local = "fe80::1".parse().unwrap();
        let neighbours = [(ip(9), mac(9)), (link_local, mac(1)), (ip(2), mac(2))];
        let known = neighbours.map(|(ip, mac)| packet::KnownNeighbour { ip, mac, is_static: false });
        hops.update(&peers(3), &known);
        assert_eq!(hops.unicast_mac(ip(2)), Some(mac(2)), "the kernel knows it");
        assert_eq!(hops.record_answer(ip(1), mac(1), true), None);
        assert_eq!(hops.record_answer(ip(3), mac(9), true), Some(ip(9)), "as for the router");
        assert_eq!(hops.record_answer(ip(3), mac(3), true), None, "it has moved");
        assert_eq!(hops.record_answer(ip(1), mac(9), true), Some(ip(9)));
    }

    #[test]
    fn a_silent_or_doubled_neighbour_gets_no_unicast_request() {
        let mut hops = NextHops::default();
        hops.update(&peers(2), &[]);
        assert_eq!(hops.unicast_mac(ip(1)), None);
        hops.record_answer(ip(1), mac(1), true);
        assert_eq!(hops.unicast_mac(ip(1)), Some(mac(1)));
        hops.record_loss(ip(1));
        assert_eq!((hops.unicast_mac(ip(1)), hops.mac(ip(1))), (None, Some(mac(1))));
        hops.record_answer(ip(1), mac(1), true);
        hops.record_answer(ip(1), mac(2), false);
        assert_eq!(hops.unicast_mac(ip(1)), None);
    }

    #[test]
    fn of_two_macs_the_kernels_one_is_used() {
        let mut hops = NextHops::default();
        hops.update(&peers(1), &[]);
        let mut record_answer = |last, is_first| {
            hops.record_answer(ip(1), mac(last), is_first);
            hops.mac(ip(1))
        };
        assert_eq!(record_answer(1, true), Some(mac(1)));
        assert_eq!(record_answer(2, false), Some(mac(1)), "the first one of two");
        assert_eq!(record_answer(2, true), Some(mac(2)));
        let mut believes = |mac| {
            hops.neighbour_event(ip(1), mac);
            hops.mac(ip(1))
        };
        assert_eq!(believes(Some(mac(1))), Some(mac(1)));
        assert_eq!(believes(Some(mac(3))), Some(mac(2)), "that one has never answered");
        assert_eq!(believes(None), Some(mac(2)));
    }

    #[test]
    fn a_neighbour_that_ignores_unicasts_seldom_gets_one() {
        let mut hops = NextHops::default();
        hops.update(&peers(1), &[]);
        hops.record_answer(ip(1), mac(1), true);
        let mut lost = 0;
        for _ in 0..1000 {
            if hops.unicast_mac(ip(1)).is_some() {
                hops.record_loss(ip(1));
                lost += 1;
            } else {
                hops.record_answer(ip(1), mac(1), true);
            }
        }
        assert!((30..40).contains(&lost), "{lost}");
        // The neighbour replies to unicasts from now on.
        (0..=UNICAST_AGAIN).for_each(|_| assert_eq!(hops.record_answer(ip(1), mac(1), true), None));
        for _ in 0..100 {
            assert!(hops.unicast_mac(ip(1)).is_some());
            hops.record_answer(ip(1), mac(1), true);
        }
    }

    #[test]
    fn a_neighbour_event_queues_a_request_while_the_queue_is_short() {
        let mut hops = NextHops::default();
        let peers = peers(30);
        hops.update(&peers, &[]);
        (1..=30).for_each(|n| assert_eq!(hops.record_answer(ip(n), mac(n), true), None));
        let mut events = |n: u8, mac: Option<Mac>| {
            let asks = hops.neighbour_event(ip(n), mac);
            if asks {
                hops.ask_all(*peers.keys().find(|peer| peers[*peer] == ip(n)).unwrap());
            }
            (asks, hops.reachability(ip(n)))
        };
        assert_eq!(events(9, Some(mac(9))), (false, Reachability::Known), "as it was");
        assert_eq!(events(1, Some(mac(99))), (true, Reachability::Known));
        assert_eq!(events(1, Some(mac(98))), (false, Reachability::Known), "it is asked about already");
        assert_eq!(events(2, None), (true, Reachability::Silent));
        assert_eq!(events(2, None), (false, Reachability::Silent), "that is no news");
        assert_eq!(events(3, None), (true, Reachability::Silent));
        (4..=30).for_each(|n| assert_eq!(events(n, None), (false, Reachability::Known), "{n}"));
    }

    #[test]
    fn no_probe_is_routed_to_a_silent_next_hop() {
        let mut hops = NextHops::default();
        let fixed = packet::KnownNeighbour { ip: ip(2), mac: mac(2), is_static: true };
        hops.update(&peers(2), &[fixed]);
        assert_eq!(
            [hops.reachability(ip(1)), hops.reachability(ip(2))],
            [Reachability::Unknown, Reachability::Known]
        );
        hops.record_loss(ip(1));
        assert_eq!(hops.reachability(ip(1)), Reachability::Silent);
        hops.record_answer(ip(1), mac(1), true);
        hops.record_loss(ip(1));
        assert_eq!(hops.reachability(ip(1)), Reachability::Known, "one may get lost");
        hops.record_loss(ip(1));
        assert_eq!(hops.reachability(ip(1)), Reachability::Silent);
        hops.record_reached(ip(1));
        assert_eq!(hops.reachability(ip(1)), Reachability::Known);
        (0..300).for_each(|_| hops.record_loss(ip(2)));
        assert_eq!((hops.reachability(ip(2)), hops.is_static(ip(2))), (Reachability::Known, true));
        hops.update(&peers(2), &[]);
        assert_eq!((hops.reachability(ip(2)), hops.is_static(ip(2))), (Reachability::Silent, false));
    }
}
