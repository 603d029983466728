//! Guards against an emptied or restored store. A lease that vanishes is kept for a moment, because a living node
//! takes its lease again at once. If more than half of the peers vanish within the grace period, the store was most
//! likely emptied. The same holds if the store's history does not continue. The peers are then kept until the grace
//! period is over, whether they vanish at once or one by one. Time is a parameter, not read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::lease::{Lease, MAX_LEASES};
use crate::subnet::Subnet;

/// Minimum number of peers for which a list without most of them is not believed.
const MIN_PEERS: usize = 4;
/// Time within which a live node has taken a lost lease again.
const RETAKE_TIME: Duration = Duration::from_secs(2);

/// Position of a list in the history of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreHistory {
    /// Identity of the store.
    pub cluster: u64,
    /// Number that grows with each change of the store.
    pub revision: i64,
    /// Number of times in this run that the history did not continue, however far it has gone since.
    #[serde(skip)]
    pub breaks: u32,
}

impl StoreHistory {
    /// Returns true if this is the history that was read before, at the same or a later position.
    fn continues(&self, before: &Self) -> bool {
        self.cluster == before.cluster && self.revision >= before.revision && self.breaks <= before.breaks
    }
}

/// Peers that were listed within the grace period.
#[derive(Clone, Debug, Default)]
pub struct ShrinkGuard {
    /// Our own subnet, whose lease is no peer's.
    own: Subnet,
    /// Last list of the store.
    last: Option<Arc<[Lease]>>,
    /// Peers in the store's last list, by subnet.
    listed: Arc<[Lease]>,
    /// Peers that are missing from that list.
    missing: Vec<Missing>,
    /// Leases that were believed last. They are the listed ones themselves unless a missing one is believed.
    believed: Arc<[Lease]>,
    history: Option<StoreHistory>,
    /// Time at which the store was last found to be another one, and its history before that.
    broken: Option<(Instant, StoreHistory)>,
}

/// Peer whose lease is missing from the list.
#[derive(Clone, Debug)]
struct Missing {
    lease: Lease,
    since: Instant,
    /// True if too many leases were missing with it, so that it is kept until the grace period is over.
    kept: bool,
}

impl Missing {
    /// Returns the time at which the lease is given up.
    fn due(&self, grace: Duration) -> Instant {
        self.since + if self.kept { grace } else { RETAKE_TIME.min(grace) }
    }
}

/// Returns the leases of other nodes by subnet, one for each.
fn peers(leases: &[Lease], own: Subnet) -> Arc<[Lease]> {
    let mut peers: Vec<&Lease> = leases.iter().filter(|lease| lease.subnet != own).collect();
    // Of two entries for one subnet the same one must always count.
    peers.sort_unstable_by(|one, other| (one.subnet, one).cmp(&(other.subnet, other)));
    peers.dedup_by_key(|lease| lease.subnet);
    peers.into_iter().cloned().collect()
}

/// Leases to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedLeases {
    /// Believed leases without our own, in no particular order. It is the same list as before if none has changed.
    pub leases: Arc<[Lease]>,
    /// Number of these leases that the store does not list, but is not believed to have lost.
    pub missing: usize,
    /// Time at which the first unlisted lease is given up.
    pub due: Option<Instant>,
}

impl ShrinkGuard {
    /// Returns a guard that starts with the leases that an earlier run believed, and the store's history that it knew. `own`
    /// is our own subnet.
    pub fn new(remembered: &[Lease], own: Subnet, history: Option<StoreHistory>) -> Self {
        Self { own, listed: peers(remembered, own), history, ..Self::default() }
    }

    /// Returns the number of peers that were listed last, with the missing ones that are not given up yet.
    pub fn peers(&self) -> usize {
        self.listed.len() + self.missing.len()
    }

    /// Returns the history that a later run may expect. For a suspect store this is the history before the break.
    pub fn history(&self) -> Option<StoreHistory> {
        self.broken.map(|(_, before)| before).or(self.history)
    }

    /// Takes a complete list of leases, and returns the leases to go by. Copies leases only if the list is new, or if
    /// the set of believed missing leases has changed.
    pub fn accept(
        &mut self,
        list: &Arc<[Lease]>,
        history: Option<StoreHistory>,
        now: Instant,
        grace: Duration,
    ) -> AcceptedLeases {
        if let (Some(before), Some(history)) = (&self.history, &history)
            && !history.continues(before)
        {
            self.broken = Some((now, *before));
        }
        self.history = history.or(self.history);
        self.broken = self.broken.filter(|(at, _)| now.duration_since(*at) < grace);
        if self.last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, list)) {
            self.take(list, now);
        }
        self.missing.retain(|missing| now.duration_since(missing.since) < grace);
        let most = self.missing.len() * 2 > self.peers();
        let is_suspect = self.broken.is_some() || (self.peers() >= MIN_PEERS && most);
        self.missing.iter_mut().for_each(|missing| missing.kept |= is_suspect);
        self.keep_missing(now, grace)
    }

    /// Takes a new list, and records which peers are missing from it.
    fn take(&mut self, list: &Arc<[Lease]>, now: Instant) {
        let before = std::mem::replace(&mut self.listed, peers(list, self.own));
        self.last = Some(list.clone());
        let listed = &self.listed;
        let is_missing =
            |lease: &Lease| listed.binary_search_by_key(&lease.subnet, |listed| listed.subnet).is_err();
        self.missing.retain(|missing| is_missing(&missing.lease));
        let gone = before.iter().filter(|lease| is_missing(lease));
        // The holder of the subnet according to the store has the better right to it.
        let gone = gone.map(|lease| Lease { born: u64::MAX, ..lease.clone() });
        self.missing.extend(gone.map(|lease| Missing { lease, since: now, kept: false }));
        // Leases that are written and deleted again and again must not fill the memory.
        self.missing.truncate(MAX_LEASES.saturating_sub(self.listed.len()));
    }

    /// Returns the listed leases, and the missing ones that are not given up yet.
    fn keep_missing(&mut self, now: Instant, grace: Duration) -> AcceptedLeases {
        let held = || self.missing.iter().filter(|missing| missing.due(grace) > now);
        let all = || self.listed.iter().chain(held().map(|missing| &missing.lease));
        let leases = if held().next().is_none() {
            self.listed.clone()
        } else if all().eq(self.believed.iter()) {
            self.believed.clone()
        } else {
            all().cloned().collect()
        };
        let missing = held().filter(|missing| missing.kept).count();
        let due = held().map(|missing| missing.due(grace)).min();
        self.believed = leases.clone();
        AcceptedLeases { leases, missing, due }
    }
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;

    use super::*;
    use crate::backend::Announced;

    const GRACE: Duration = Duration::from_secs(300);

    fn leases(range: std::ops::Range<u8>) -> Arc<[Lease]> {
        let lease = |host: u8| Lease {
            born: 1,
            written: 1,
            subnet: Subnet::parse(&format!("10.3.{host}.0-24")).unwrap(),
            public_ip: Some([192, 0, 2, host].into()),
            public_ipv6: None,
            announced: Announced::HostGw,
        };
        range.map(lease).collect()
    }

    fn after(first: u8, then: &Arc<[Lease]>) -> (ShrinkGuard, AcceptedLeases, Instant) {
        let (mut shrink_guard, now) = (ShrinkGuard::default(), Instant::now());
        assert_eq!(shrink_guard.accept(&leases(1..1 + first), None, now, GRACE).missing, 0);
        let accepted = shrink_guard.accept(then, None, now, GRACE);
        (shrink_guard, accepted, now)
    }

    #[test]
    fn an_emptied_store_is_ignored_until_the_grace_period_ends() {
        let (mut shrink_guard, accepted, now) = after(8, &leases(0..0));
        assert_eq!((accepted.leases.len(), accepted.missing, accepted.due), (8, 8, Some(now + GRACE)));
        let nearly = shrink_guard.accept(&leases(0..0), None, now + GRACE - Duration::from_secs(1), GRACE);
        assert_eq!(nearly.leases.len(), 8);
        let over = shrink_guard.accept(&leases(0..0), None, now + GRACE, GRACE);
        assert_eq!((over.leases.len(), over.missing, over.due), (0, 0, None));
    }

    #[test]
    fn leases_that_return_are_no_longer_missing() {
        let (mut shrink_guard, _, now) = after(8, &leases(0..0));
        let some = shrink_guard.accept(&leases(1..6), None, now + Duration::from_secs(9), GRACE);
        assert_eq!((some.leases.len(), some.missing), (8, 3));
        let all = shrink_guard.accept(&leases(1..9), None, now + Duration::from_secs(10), GRACE);
        assert_eq!((all.missing, all.leases), (0, leases(1..9)));
    }

    #[test]
    fn a_store_emptied_lease_by_lease_is_ignored_too() {
        let (mut shrink_guard, mut now) = (ShrinkGuard::default(), Instant::now());
        for left in (1..=9).rev() {
            shrink_guard.accept(&leases(1..left), None, now, GRACE);
            now += Duration::from_millis(300);
        }
        let accepted = shrink_guard.accept(&leases(0..0), None, now, GRACE);
        assert_eq!((accepted.leases.len(), accepted.missing), (8, 8));
    }

    #[test]
    fn a_cluster_may_shrink_by_half_and_a_small_one_to_nothing() {
        for (first, then, left, missing) in
            [(8, leases(1..5), 4, 0), (3, leases(0..0), 0, 0), (4, leases(1..2), 4, 3)]
        {
            let (mut shrink_guard, accepted, now) = after(first, &then);
            assert_eq!(
                (accepted.leases.len(), accepted.missing),
                (usize::from(first), missing),
                "for a moment"
            );
            let accepted = shrink_guard.accept(&then, None, now + RETAKE_TIME, GRACE);
            assert_eq!((accepted.leases.len(), accepted.missing), (left, missing));
        }
    }

    #[test]
    fn a_peer_that_takes_its_lease_again_at_once_is_kept() {
        let (mut shrink_guard, gone, now) = after(2, &leases(1..2));
        assert_eq!((gone.leases.len(), gone.missing, gone.due), (2, 0, Some(now + RETAKE_TIME)));
        let back = shrink_guard.accept(&leases(1..3), None, now + RETAKE_TIME / 2, GRACE);
        assert_eq!((back.leases, back.due), (leases(1..3), None));
    }

    #[test]
    fn a_replaced_or_restored_store_is_ignored_for_any_cluster_size() {
        let at = |cluster, revision, breaks| Some(StoreHistory { cluster, revision, breaks });
        for (then, kept) in [(at(1, 9, 0), 0), (at(1, 8, 0), 1), (at(2, 10, 0), 1), (at(1, 10, 1), 1)] {
            let (mut shrink_guard, now) =
                (ShrinkGuard::new(&leases(1..2), Subnet::default(), at(1, 9, 0)), Instant::now());
            let accepted = shrink_guard.accept(&leases(0..0), then, now, GRACE);
            assert_eq!((accepted.leases.len(), accepted.missing), (1, kept), "{then:?}");
            // Leases that vanish later than the rest are suspect, too.
            shrink_guard.accept(&leases(2..3), then, now + RETAKE_TIME, GRACE);
            let accepted = shrink_guard.accept(&leases(0..0), then, now + RETAKE_TIME * 2, GRACE);
            assert_eq!(accepted.missing, kept * 2, "{then:?}");
            let accepted = shrink_guard.accept(&leases(0..0), then, now + GRACE + RETAKE_TIME * 2, GRACE);
            assert_eq!((accepted.leases.len(), accepted.missing), (0, 0), "{then:?}");
        }
    }

    #[test]
    fn leases_that_come_and_go_do_not_pile_up() {
        let (mut shrink_guard, now, lease) =
            (ShrinkGuard::default(), Instant::now(), leases(1..2)[0].clone());
        let network = |nth: u32, of: u32| Ipv4Net::new(((of << 24) | (nth << 8)).into(), 24).ok();
        let lease = |ipv4| Lease { subnet: Subnet { ipv4, ipv6: None }, ..lease.clone() };
        for of in 10..13 {
            let list = (0..40_000).map(|nth| lease(network(nth, of))).collect();
            shrink_guard.accept(&list, None, now, GRACE);
        }
        assert_eq!(shrink_guard.peers(), MAX_LEASES);
    }

    #[test]
    fn an_unchanged_list_is_not_copied() {
        let own = Subnet::parse("10.3.1.0-24").unwrap();
        let (mut shrink_guard, now) = (ShrinkGuard::new(&leases(1..6), own, None), Instant::now());
        let (all, some) = (leases(1..6), leases(1..4));
        let first = shrink_guard.accept(&all, None, now, GRACE).leases;
        assert_eq!(first, leases(2..6));
        assert!(Arc::ptr_eq(&first, &shrink_guard.accept(&all, None, now + RETAKE_TIME, GRACE).leases));
        // While missing leases are believed, they are in a list of their own, which lasts until one is given up.
        let held = shrink_guard.accept(&some, None, now + RETAKE_TIME, GRACE).leases;
        assert_eq!(held.len(), 4);
        let later = now + RETAKE_TIME + RETAKE_TIME / 2;
        assert!(Arc::ptr_eq(&held, &shrink_guard.accept(&some, None, later, GRACE).leases));
        let last = shrink_guard.accept(&some, None, now + RETAKE_TIME * 2, GRACE).leases;
        assert_eq!(last, leases(2..4));
        assert!(Arc::ptr_eq(&last, &shrink_guard.accept(&some, None, now + RETAKE_TIME * 3, GRACE).leases));
    }
}
