//! Who answers for which address on the uplink, and whom to ask all machines of the segment about: seldom, and each peer in
//! its turn. Sends nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use kernel::packet;
use plan::Mac;
use plan::input::Family;
use tracing::warn;

/// Between two questions to all: at most 10 of them a second.
const GAP: Duration = Duration::from_millis(101);

/// So often all are asked again because two have answered; a machine with two cards on the segment always does.
const CONTESTS: u8 = 3;
/// So many answered only when all were asked, each after it was asked alone in vain: it is deaf to the latter.
const DEAF: u8 = 4;
/// Such a one is asked alone again after so many answers.
const AGAIN: u8 = 30;
/// Asked so often in vain, one that had answered is silent.
const SILENT: u8 = 2;

/// Nobody is doubted while so many wait for their turn: until all are asked, what goes to one whom the kernel found silent is
/// lost, and it must have answered before that is a loss. Whoever flushes the kernel's table makes it say so of everybody.
const PROMPT: usize = 3;
/// Of addresses with two MACs so many are told from one look at the kernel's neighbours to the next: a router that answers
/// for everybody is one trouble.
const TELL: u8 = 5;

/// What is known of one address.
#[derive(Clone, Copy, Debug)]
struct Known {
    mac: Mac,
    /// Another one that has answered, too.
    other: Option<Mac>,
    /// The kernel's packets go to that one, as far as it is known.
    believed: Option<Mac>,
    /// Somebody has set it: it need not answer.
    is_static: bool,
    /// It did not answer the last time, or not alone.
    doubtful: bool,
    /// Questions to it alone that were lost since one was answered, up to [`DEAF`].
    deaf: u8,
    answers: u8,
    /// How often two have answered.
    contests: u8,
}

impl Known {
    fn new(mac: Mac) -> Self {
        let (other, believed) = (None, None);
        Self { mac, other, believed, is_static: false, doubtful: false, deaf: 0, answers: 0, contests: 0 }
    }

    /// An answer, to whatever question.
    fn hear(&mut self, mac: Mac, is_first: bool) {
        if self.deaf == DEAF {
            self.answers += 1;
            if self.answers == AGAIN {
                (self.deaf, self.answers) = (DEAF - 1, 0);
            }
        } else if !self.doubtful {
            self.deaf = 0;
        }
        self.contests = self.contests.saturating_add(u8::from(!is_first));
        if self.mac != mac && (!is_first || self.other == Some(mac)) {
            self.other = Some(self.mac);
        }
        (self.mac, self.doubtful) = (mac, !is_first && self.contests <= CONTESTS);
    }

    fn lost(&mut self) {
        if !self.doubtful && self.deaf < DEAF {
            self.deaf += 1;
        }
        self.doubtful = true;
    }
}

/// What a packet by the kernel's routes would make it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It knows where to send it.
    Known,
    /// It would ask all machines of the segment.
    Unknown,
    /// The same again and again: they were asked, and nobody answered.
    Silent,
}

#[derive(Debug, Default)]
pub(super) struct NextHops {
    known: HashMap<IpAddr, Known>,
    /// Questions in a row that nothing came back to.
    missed: HashMap<IpAddr, u8>,
    /// Every address that a MAC has answered for.
    owners: BTreeSet<(Mac, IpAddr)>,
    waiting: VecDeque<IpNet>,
    /// The same.
    in_line: HashSet<IpNet>,
    /// Nobody asks all before.
    next: Duration,
    told: u8,
}

impl NextHops {
    /// Keeps what is about these peers, and hears what the kernel knows of its neighbours.
    pub(super) fn follow(&mut self, peers: &BTreeMap<IpNet, IpAddr>, neighbours: &[packet::Known]) {
        let wanted: BTreeSet<IpAddr> = peers.values().copied().collect();
        self.known.retain(|ip, _| wanted.contains(ip));
        self.missed.retain(|ip, _| wanted.contains(ip));
        self.waiting.retain(|peer| peers.contains_key(peer));
        self.in_line.retain(|peer| peers.contains_key(peer));
        self.told = 0;
        self.owners.clear();
        self.owners.extend(neighbours.iter().map(|it| (it.mac, it.ip)));
        self.owners.extend(self.known.iter().map(|(ip, known)| (known.mac, *ip)));
        self.known.values_mut().for_each(|known| (known.is_static, known.believed) = (false, None));
        for &packet::Known { ip, mac, is_static } in neighbours.iter().filter(|it| wanted.contains(&it.ip)) {
            let known = self.known.entry(ip).or_insert(Known::new(mac));
            known.believed = Some(mac);
            if is_static {
                (known.mac, known.is_static) = (mac, true);
            }
        }
    }

    /// Somebody has set where it is.
    pub(super) fn is_static(&self, ip: IpAddr) -> bool {
        self.known.get(&ip).is_some_and(|known| known.is_static)
    }

    pub(super) fn reach(&self, ip: IpAddr) -> Reach {
        let missed = self.missed.get(&ip).copied().unwrap_or_default();
        match self.known.get(&ip) {
            Some(known) if known.is_static || missed < SILENT => Reach::Known,
            None if missed == 0 => Reach::Unknown,
            _ => Reach::Silent,
        }
    }

    /// The MAC that answered last; where two do, the one that pods' packets would go to.
    pub(super) fn mac(&self, ip: IpAddr) -> Option<Mac> {
        let known = self.known.get(&ip)?;
        Some(known.other.filter(|other| known.believed == Some(*other)).unwrap_or(known.mac))
    }

    /// The one to ask alone.
    pub(super) fn certain(&self, ip: IpAddr) -> Option<Mac> {
        self.known.get(&ip).filter(|known| !known.doubtful && known.deaf < DEAF).map(|known| known.mac)
    }

    /// Is there a question that nothing came back to?
    pub(super) fn misses_any(&self) -> bool {
        !self.missed.is_empty()
    }

    /// The kernel has got a packet there, and one back.
    pub(super) fn reached(&mut self, ip: IpAddr) {
        self.missed.remove(&ip);
    }

    /// An answer, the first or a further one to one question; tells another address of the same family that this MAC has
    /// answered for.
    pub(super) fn heard(&mut self, ip: IpAddr, mac: Mac, is_first: bool) -> Option<IpAddr> {
        self.missed.remove(&ip);
        let known = self.known.entry(ip).or_insert(Known::new(mac));
        if known.mac != mac {
            self.owners.remove(&(known.mac, ip));
        }
        let one = known.mac;
        known.hear(mac, is_first);
        // The kernel has heard it, too. Of several answers of ARP it takes the first, of neighbour discovery the last.
        if is_first || ip.is_ipv6() {
            known.believed = Some(mac);
        }
        // An address that moves may be answered for by both, once.
        if !is_first && known.contests == 2 && self.told < TELL {
            self.told += 1;
            warn!(
                "both {one} and {mac} say that they have {ip}: two machines with one address, or two NICs of one machine"
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

    /// The kernel found nobody, or believes another MAC: true if all are to be asked about it.
    pub(super) fn doubt(&mut self, ip: IpAddr, mac: Option<Mac>) -> bool {
        self.known.get_mut(&ip).into_iter().for_each(|known| known.believed = mac);
        if self.waiting.len() >= PROMPT {
            return false;
        }
        let is_silent = self.reach(ip) == Reach::Silent;
        let known = self.known.get_mut(&ip).filter(|known| !known.is_static);
        match (known, mac) {
            // One that is in doubt is asked about as it is, however often it changes.
            (Some(known), Some(mac))
                if !known.doubtful && ![Some(known.mac), known.other].contains(&Some(mac)) =>
            {
                known.doubtful = true;
                true
            }
            (Some(known), None) if !is_silent => {
                known.doubtful = true;
                self.missed.insert(ip, SILENT);
                true
            }
            _ => false,
        }
    }

    /// It did not answer.
    pub(super) fn lost(&mut self, ip: IpAddr) {
        let missed = self.missed.entry(ip).or_default();
        *missed = missed.saturating_add(1);
        if let Some(known) = self.known.get_mut(&ip) {
            known.lost();
        }
    }

    /// All are to be asked about that peer, in its turn.
    pub(super) fn ask_all(&mut self, peer: IpNet) {
        if self.in_line.insert(peer) {
            self.waiting.push_back(peer);
        }
    }

    /// Whom to ask all about now.
    pub(super) fn turn(&mut self, now: Duration) -> Option<IpNet> {
        if now < self.next {
            return None;
        }
        let peer = self.waiting.pop_front()?;
        self.in_line.remove(&peer);
        self.next = now + GAP;
        Some(peer)
    }

    pub(super) fn due(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.next)
    }
}

/// Every machine has one besides.
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
    fn all_are_asked_at_most_ten_times_a_second_and_each_in_its_turn() {
        let mut hops = NextHops::default();
        let (peers, mut asked) = (peers(30), Vec::new());
        hops.follow(&peers, &[]);
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
    fn a_mac_that_answers_for_others_is_told() {
        let mut hops = NextHops::default();
        let link_local = "fe80::1".parse().unwrap();
        let neighbours = [(ip(9), mac(9)), (link_local, mac(1)), (ip(2), mac(2))];
        let known = neighbours.map(|(ip, mac)| packet::Known { ip, mac, is_static: false });
        hops.follow(&peers(3), &known);
        assert_eq!(hops.certain(ip(2)), Some(mac(2)), "the kernel knows it");
        assert_eq!(hops.heard(ip(1), mac(1), true), None);
        assert_eq!(hops.heard(ip(3), mac(9), true), Some(ip(9)), "as for the router");
        assert_eq!(hops.heard(ip(3), mac(3), true), None, "it has moved");
        assert_eq!(hops.heard(ip(1), mac(9), true), Some(ip(9)));
    }

    #[test]
    fn who_is_silent_or_not_alone_is_not_asked_alone() {
        let mut hops = NextHops::default();
        hops.follow(&peers(2), &[]);
        assert_eq!(hops.certain(ip(1)), None);
        hops.heard(ip(1), mac(1), true);
        assert_eq!(hops.certain(ip(1)), Some(mac(1)));
        hops.lost(ip(1));
        assert_eq!((hops.certain(ip(1)), hops.mac(ip(1))), (None, Some(mac(1))));
        hops.heard(ip(1), mac(1), true);
        hops.heard(ip(1), mac(2), false);
        assert_eq!(hops.certain(ip(1)), None);
    }

    #[test]
    fn of_two_macs_the_one_that_the_kernel_believes_is_meant() {
        let mut hops = NextHops::default();
        hops.follow(&peers(1), &[]);
        let mut heard = |last, is_first| {
            hops.heard(ip(1), mac(last), is_first);
            hops.mac(ip(1))
        };
        assert_eq!(heard(1, true), Some(mac(1)));
        assert_eq!(heard(2, false), Some(mac(1)), "the first one of two");
        assert_eq!(heard(2, true), Some(mac(2)));
        let mut believes = |mac| {
            hops.doubt(ip(1), mac);
            hops.mac(ip(1))
        };
        assert_eq!(believes(Some(mac(1))), Some(mac(1)));
        assert_eq!(believes(Some(mac(3))), Some(mac(2)), "that one has never answered");
        assert_eq!(believes(None), Some(mac(2)));
    }

    #[test]
    fn who_answers_only_when_all_are_asked_is_seldom_asked_alone() {
        let mut hops = NextHops::default();
        hops.follow(&peers(1), &[]);
        hops.heard(ip(1), mac(1), true);
        let mut lost = 0;
        for _ in 0..1000 {
            if hops.certain(ip(1)).is_some() {
                hops.lost(ip(1));
                lost += 1;
            } else {
                hops.heard(ip(1), mac(1), true);
            }
        }
        assert!((30..40).contains(&lost), "{lost}");
        // It has learnt to.
        (0..=AGAIN).for_each(|_| assert_eq!(hops.heard(ip(1), mac(1), true), None));
        for _ in 0..100 {
            assert!(hops.certain(ip(1)).is_some());
            hops.heard(ip(1), mac(1), true);
        }
    }

    #[test]
    fn whom_the_kernel_doubts_is_asked_about_if_that_is_soon() {
        let mut hops = NextHops::default();
        let peers = peers(30);
        hops.follow(&peers, &[]);
        (1..=30).for_each(|n| assert_eq!(hops.heard(ip(n), mac(n), true), None));
        let mut doubts = |n: u8, mac: Option<Mac>| {
            let asks = hops.doubt(ip(n), mac);
            if asks {
                hops.ask_all(*peers.keys().find(|peer| peers[*peer] == ip(n)).unwrap());
            }
            (asks, hops.reach(ip(n)))
        };
        assert_eq!(doubts(9, Some(mac(9))), (false, Reach::Known), "as it was");
        assert_eq!(doubts(1, Some(mac(99))), (true, Reach::Known));
        assert_eq!(doubts(1, Some(mac(98))), (false, Reach::Known), "it is asked about already");
        assert_eq!(doubts(2, None), (true, Reach::Silent));
        assert_eq!(doubts(2, None), (false, Reach::Silent), "that is no news");
        assert_eq!(doubts(3, None), (true, Reach::Silent));
        (4..=30).for_each(|n| assert_eq!(doubts(n, None), (false, Reach::Known), "{n}"));
    }

    #[test]
    fn nothing_goes_by_the_kernel_to_whom_nobody_answers_for() {
        let mut hops = NextHops::default();
        let fixed = packet::Known { ip: ip(2), mac: mac(2), is_static: true };
        hops.follow(&peers(2), &[fixed]);
        assert_eq!([hops.reach(ip(1)), hops.reach(ip(2))], [Reach::Unknown, Reach::Known]);
        hops.lost(ip(1));
        assert_eq!(hops.reach(ip(1)), Reach::Silent);
        hops.heard(ip(1), mac(1), true);
        hops.lost(ip(1));
        assert_eq!(hops.reach(ip(1)), Reach::Known, "one may get lost");
        hops.lost(ip(1));
        assert_eq!(hops.reach(ip(1)), Reach::Silent);
        hops.reached(ip(1));
        assert_eq!(hops.reach(ip(1)), Reach::Known);
        (0..300).for_each(|_| hops.lost(ip(2)));
        assert_eq!((hops.reach(ip(2)), hops.is_static(ip(2))), (Reach::Known, true));
        hops.follow(&peers(2), &[]);
        assert_eq!((hops.reach(ip(2)), hops.is_static(ip(2))), (Reach::Silent, false));
    }
}
