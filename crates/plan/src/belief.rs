//! What a complete list of leases is worth: one that has lost more than half of the peers at once is more likely a store
//! that was emptied or restored than a cluster that shrank. Such peers are kept for a while. Time is given, not read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::lease::{Lease, Subnet};

/// Below this many peers any list is believed.
const FEW: usize = 4;

/// The peers believed in so far.
#[derive(Clone, Debug, Default)]
pub struct Belief {
    known: BTreeMap<Subnet, Lease>,
    /// Kept although the store no longer lists them, and since when.
    missing: BTreeMap<Subnet, Instant>,
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
    /// Takes a complete list, our own lease aside.
    pub fn weigh(&mut self, heard: Vec<Lease>, now: Instant, grace: Duration) -> Weighed {
        let heard: BTreeMap<Subnet, Lease> = heard.into_iter().map(|lease| (lease.subnet, lease)).collect();
        let gone = self.known.keys().filter(|subnet| !heard.contains_key(subnet)).count();
        let doubt = self.known.len() >= FEW && gone * 2 > self.known.len();
        let mut missing = BTreeMap::new();
        for (subnet, lease) in std::mem::replace(&mut self.known, heard) {
            let since = self.missing.get(&subnet).copied().or(doubt.then_some(now));
            if let Some(since) = since.filter(|since| now.duration_since(*since) < grace)
                && !self.known.contains_key(&subnet)
            {
                missing.insert(subnet, since);
                // Whoever holds the subnet according to the store has the better right to it.
                self.known.insert(subnet, Lease { born: u64::MAX, ..lease });
            }
        }
        self.missing = missing;
        Weighed {
            leases: self.known.values().cloned().collect(),
            missing: self.missing.len(),
            due: self.missing.values().min().map(|since| *since + grace),
        }
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
    fn a_cluster_may_shrink_by_half_and_a_small_one_as_it_likes() {
        assert_eq!(after(8, leases(1..5)).1.leases.len(), 4);
        assert_eq!(after(3, Vec::new()).1.leases.len(), 0);
        assert_eq!(after(4, leases(1..2)).1.missing, 3);
    }
}
