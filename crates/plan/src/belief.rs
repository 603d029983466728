//! What a complete list of leases is worth: when more than half of the peers have vanished within a while, the store was
//! more likely emptied or restored than the cluster shrank, and they are kept until the while is over. It makes no
//! difference whether they vanish at once or one by one. Time is given, not read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::lease::{Lease, Subnet};

/// Below this many peers any list is believed.
const FEW: usize = 4;

/// The peers heard of within the last while.
#[derive(Clone, Debug, Default)]
pub struct Belief {
    known: BTreeMap<Subnet, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    lease: Lease,
    missing: Option<Missing>,
}

/// Not listed any more.
#[derive(Clone, Copy, Debug)]
struct Missing {
    since: Instant,
    /// Too many were missing with it, so that it is kept until the while is over.
    kept: bool,
}

/// What to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighed {
    /// In no particular order.
    pub leases: Vec<Lease>,
    /// How many of them the store does not list.
    pub missing: usize,
    /// When the first of those is given up.
    pub due: Option<Instant>,
}

impl Belief {
    /// Starts with the peers that an earlier run believed in.
    pub fn expecting(peers: impl IntoIterator<Item = Lease>) -> Self {
        let known = peers.into_iter().map(|lease| (lease.subnet, Known { lease, missing: None }));
        Self { known: known.collect() }
    }

    /// Takes a complete list, our own lease aside.
    pub fn weigh(&mut self, heard: Vec<Lease>, now: Instant, grace: Duration) -> Weighed {
        let mut known: BTreeMap<Subnet, Known> =
            heard.into_iter().map(|lease| (lease.subnet, Known { lease, missing: None })).collect();
        let listed = known.len();
        for (subnet, before) in std::mem::take(&mut self.known) {
            let missing = before.missing.unwrap_or(Missing { since: now, kept: false });
            if now.duration_since(missing.since) < grace {
                // Whoever holds the subnet according to the store has the better right to it.
                let lease = Lease { born: u64::MAX, ..before.lease };
                known.entry(subnet).or_insert(Known { lease, missing: Some(missing) });
            }
        }
        self.known = known;
        let doubt = self.known.len() >= FEW && (self.known.len() - listed) * 2 > self.known.len();
        let mut weighed = Weighed { leases: Vec::with_capacity(self.known.len()), missing: 0, due: None };
        for known in self.known.values_mut() {
            if let Some(missing) = &mut known.missing {
                missing.kept |= doubt;
                if !missing.kept {
                    continue;
                }
                weighed.missing += 1;
                let due = missing.since + grace;
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
            subnet: Subnet::parse(&format!("10.3.{host}.0-24")).unwrap(),
            public_ip: Some([192, 0, 2, host].into()),
            public_ipv6: None,
            announced: Announced::HostGw,
        };
        range.map(lease).collect()
    }

    fn after(first: u8, then: Vec<Lease>) -> (Belief, Weighed, Instant) {
        let (mut belief, now) = (Belief::default(), Instant::now());
        assert_eq!(belief.weigh(leases(1..1 + first), now, GRACE).missing, 0);
        let weighed = belief.weigh(then, now, GRACE);
        (belief, weighed, now)
    }

    #[test]
    fn an_emptied_store_is_not_believed_until_the_grace_is_over() {
        let (mut belief, weighed, now) = after(8, Vec::new());
        assert_eq!((weighed.leases.len(), weighed.missing, weighed.due), (8, 8, Some(now + GRACE)));
        let nearly = belief.weigh(Vec::new(), now + GRACE - Duration::from_secs(1), GRACE);
        assert_eq!(nearly.leases.len(), 8);
        let over = belief.weigh(Vec::new(), now + GRACE, GRACE);
        assert_eq!((over.leases.len(), over.missing, over.due), (0, 0, None));
    }

    #[test]
    fn those_that_come_back_are_no_longer_missing() {
        let (mut belief, _, now) = after(8, Vec::new());
        let some = belief.weigh(leases(1..6), now + Duration::from_secs(9), GRACE);
        assert_eq!((some.leases.len(), some.missing), (8, 3));
        let all = belief.weigh(leases(1..9), now + Duration::from_secs(10), GRACE);
        assert_eq!((all.missing, all.leases), (0, leases(1..9)));
    }

    #[test]
    fn a_store_that_is_emptied_one_by_one_is_not_believed_either() {
        let (mut belief, mut now) = (Belief::default(), Instant::now());
        for left in (1..=9).rev() {
            belief.weigh(leases(1..left), now, GRACE);
            now += Duration::from_millis(300);
        }
        let weighed = belief.weigh(Vec::new(), now, GRACE);
        assert_eq!((weighed.leases.len(), weighed.missing), (8, 8));
    }

    #[test]
    fn a_cluster_may_shrink_by_half_and_a_small_one_as_it_likes() {
        assert_eq!(after(8, leases(1..5)).1.leases.len(), 4);
        assert_eq!(after(3, Vec::new()).1.leases.len(), 0);
        assert_eq!(after(4, leases(1..2)).1.missing, 3);
    }
}
