//! Guards against an emptied or restored store. A lease that vanishes is kept for a moment: if its node is alive, it
//! takes the lease again at once. If more than half of the peers vanish within the grace period, the store was most
//! likely emptied. The same holds if the store's history does not continue. The peers are then kept until the grace
//! period is over, whether they vanish at once or one by one. Time is a parameter, not read.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::lease::{Lease, Subnet};

/// Minimum number of peers for which a list without most of them is not believed.
const FEW: usize = 4;
/// Time within which a live node has taken a lost lease again.
const LINGER: Duration = Duration::from_secs(2);

/// Position of a list in the history of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Identity of the store.
    pub cluster: u64,
    /// Number that grows with each change of the store.
    pub revision: i64,
    /// Number of times in this run that the history did not continue, however far it has gone since.
    #[serde(skip)]
    pub breaks: u32,
}

impl History {
    /// Returns true if this is the history that was read before, at the same or a later position.
    fn continues(&self, before: &Self) -> bool {
        self.cluster == before.cluster && self.revision >= before.revision && self.breaks <= before.breaks
    }
}

/// Peers that were listed within the grace period.
#[derive(Clone, Debug, Default)]
pub struct Belief {
    /// Peers by subnet.
    known: Vec<Known>,
    history: Option<History>,
    /// Time at which the store was last found to be another one, and its history before that.
    broken: Option<(Instant, History)>,
}

#[derive(Clone, Debug)]
struct Known {
    lease: Lease,
    missing: Option<Missing>,
}

impl Known {
    fn subnet(&self) -> Subnet {
        self.lease.subnet
    }
}

fn listed(leases: impl IntoIterator<Item = Lease>) -> Vec<Known> {
    let mut known: Vec<_> = leases.into_iter().map(|lease| Known { lease, missing: None }).collect();
    // Of two entries for one subnet the same one must always count.
    known.sort_unstable_by(|one, other| (one.subnet(), &one.lease).cmp(&(other.subnet(), &other.lease)));
    known.dedup_by_key(|known| known.subnet());
    known
}

/// Absence of a lease from the list.
#[derive(Clone, Copy, Debug)]
struct Missing {
    since: Instant,
    /// True if too many leases were missing with it, so that it is kept until the grace period is over.
    kept: bool,
}

/// Leases to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighed {
    /// Believed leases, in no particular order.
    pub leases: Vec<Lease>,
    /// Number of these leases that the store does not list, but is not believed to have lost.
    pub missing: usize,
    /// Time at which the first unlisted lease is given up.
    pub due: Option<Instant>,
}

impl Belief {
    /// Returns a guard that starts with the peers that an earlier run believed, and the store's history that it knew.
    pub fn expecting(peers: impl IntoIterator<Item = Lease>, history: Option<History>) -> Self {
        Self { known: listed(peers), history, broken: None }
    }

    /// Returns the number of peers that were listed last, with the missing ones that are not given up yet.
    pub fn peers(&self) -> usize {
        self.known.len()
    }

    /// Returns the history that a later run may expect. For a suspect store this is the history before the break.
    pub fn history(&self) -> Option<History> {
        self.broken.map(|(_, before)| before).or(self.history)
    }

    /// Takes a complete list of leases without our own, and returns the leases to go by.
    pub fn weigh(
        &mut self,
        heard: Vec<Lease>,
        history: Option<History>,
        now: Instant,
        grace: Duration,
    ) -> Weighed {
        if let (Some(before), Some(history)) = (&self.history, &history)
            && !history.continues(before)
        {
            self.broken = Some((now, *before));
        }
        self.history = history.or(self.history);
        self.broken = self.broken.filter(|(at, _)| now.duration_since(*at) < grace);
        let before = std::mem::replace(&mut self.known, listed(heard));
        let listed = self.known.len();
        let mut rest = 0..listed;
        for before in before {
            while self.known[rest.clone()].first().is_some_and(|known| known.subnet() < before.subnet()) {
                rest.start += 1;
            }
            if self.known[rest.clone()].first().is_some_and(|known| known.subnet() == before.subnet()) {
                continue;
            }
            let missing = before.missing.unwrap_or(Missing { since: now, kept: false });
            if now.duration_since(missing.since) < grace {
                // The holder of the subnet according to the store has the better right to it.
                let lease = Lease { born: u64::MAX, ..before.lease };
                self.known.push(Known { lease, missing: Some(missing) });
            }
        }
        self.known.sort_unstable_by_key(Known::subnet);
        let most = (self.known.len() - listed) * 2 > self.known.len();
        let doubt = self.broken.is_some() || (self.known.len() >= FEW && most);
        self.sift(doubt, now, grace)
    }

    fn sift(&mut self, doubt: bool, now: Instant, grace: Duration) -> Weighed {
        let mut weighed = Weighed { leases: Vec::with_capacity(self.known.len()), missing: 0, due: None };
        for known in &mut self.known {
            if let Some(missing) = &mut known.missing {
                missing.kept |= doubt;
                let due = missing.since + if missing.kept { grace } else { LINGER.min(grace) };
                if due <= now {
                    continue;
                }
                weighed.missing += usize::from(missing.kept);
                weighed.due = Some(weighed.due.map_or(due, |other| other.min(due)));
            }
            weighed.leases.push(known.lease.clone());
        }
        weighed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Announced;

    const GRACE: Duration = Duration::from_secs(300);

    fn leases(range: std::ops::Range<u8>) -> Vec<Lease> {
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

    fn after(first: u8, then: Vec<Lease>) -> (Belief, Weighed, Instant) {
        let (mut belief, now) = (Belief::default(), Instant::now());
        assert_eq!(belief.weigh(leases(1..1 + first), None, now, GRACE).missing, 0);
        let weighed = belief.weigh(then, None, now, GRACE);
        (belief, weighed, now)
    }

    #[test]
    fn an_emptied_store_is_not_believed_until_the_grace_is_over() {
        let (mut belief, weighed, now) = after(8, Vec::new());
        assert_eq!((weighed.leases.len(), weighed.missing, weighed.due), (8, 8, Some(now + GRACE)));
        let nearly = belief.weigh(Vec::new(), None, now + GRACE - Duration::from_secs(1), GRACE);
        assert_eq!(nearly.leases.len(), 8);
        let over = belief.weigh(Vec::new(), None, now + GRACE, GRACE);
        assert_eq!((over.leases.len(), over.missing, over.due), (0, 0, None));
    }

    #[test]
    fn those_that_come_back_are_no_longer_missing() {
        let (mut belief, _, now) = after(8, Vec::new());
        let some = belief.weigh(leases(1..6), None, now + Duration::from_secs(9), GRACE);
        assert_eq!((some.leases.len(), some.missing), (8, 3));
        let all = belief.weigh(leases(1..9), None, now + Duration::from_secs(10), GRACE);
        assert_eq!((all.missing, all.leases), (0, leases(1..9)));
    }

    #[test]
    fn a_store_that_is_emptied_one_by_one_is_not_believed_either() {
        let (mut belief, mut now) = (Belief::default(), Instant::now());
        for left in (1..=9).rev() {
            belief.weigh(leases(1..left), None, now, GRACE);
            now += Duration::from_millis(300);
        }
        let weighed = belief.weigh(Vec::new(), None, now, GRACE);
        assert_eq!((weighed.leases.len(), weighed.missing), (8, 8));
    }

    #[test]
    fn a_cluster_may_shrink_by_half_and_a_small_one_as_it_likes() {
        for (first, then, left, missing) in
            [(8, leases(1..5), 4, 0), (3, Vec::new(), 0, 0), (4, leases(1..2), 4, 3)]
        {
            let (mut belief, weighed, now) = after(first, then.clone());
            assert_eq!(
                (weighed.leases.len(), weighed.missing),
                (usize::from(first), missing),
                "for a moment"
            );
            let weighed = belief.weigh(then, None, now + LINGER, GRACE);
            assert_eq!((weighed.leases.len(), weighed.missing), (left, missing));
        }
    }

    #[test]
    fn a_peer_that_takes_its_lease_again_at_once_was_never_gone() {
        let (mut belief, gone, now) = after(2, leases(1..2));
        assert_eq!((gone.leases.len(), gone.missing, gone.due), (2, 0, Some(now + LINGER)));
        let back = belief.weigh(leases(1..3), None, now + LINGER / 2, GRACE);
        assert_eq!((back.leases, back.due), (leases(1..3), None));
    }

    #[test]
    fn a_store_that_is_another_or_goes_back_is_not_believed_however_few_there_are() {
        let at = |cluster, revision, breaks| Some(History { cluster, revision, breaks });
        for (then, kept) in [(at(1, 9, 0), 0), (at(1, 8, 0), 1), (at(2, 10, 0), 1), (at(1, 10, 1), 1)] {
            let (mut belief, now) = (Belief::expecting(leases(1..2), at(1, 9, 0)), Instant::now());
            let weighed = belief.weigh(Vec::new(), then, now, GRACE);
            assert_eq!((weighed.leases.len(), weighed.missing), (1, kept), "{then:?}");
            // Leases that vanish later than the rest are suspect, too.
            belief.weigh(leases(2..3), then, now + LINGER, GRACE);
            let weighed = belief.weigh(Vec::new(), then, now + LINGER * 2, GRACE);
            assert_eq!(weighed.missing, kept * 2, "{then:?}");
            let weighed = belief.weigh(Vec::new(), then, now + GRACE + LINGER * 2, GRACE);
            assert_eq!((weighed.leases.len(), weighed.missing), (0, 0), "{then:?}");
        }
    }
}
