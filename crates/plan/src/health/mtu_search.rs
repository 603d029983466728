//! Search for the largest packet that arrives. Each rung sends several sizes at once, between the largest size that arrived and
//! the next ones that did not. A reply is always true and a loss may be chance, so each rung reaches a step higher than
//! necessary.

use std::net::IpAddr;
use std::time::Duration;

use super::time::Time;

/// Number of sizes in one rung.
const SIZES: u16 = 12;
/// Maximum number of rungs in one search.
const MAX_RUNGS: u8 = 4;
/// Step in bytes between sizes at which the search ends.
const LAST_STEP: u16 = 3;
/// Minimum time between two rungs: short enough for all rungs to end before large packets count as lost.
const RUNG_INTERVAL: Duration = Duration::from_millis(250);
/// Time after the start of a search at which it is repeated, if it is still needed.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Returns the smallest size in bytes that is searched. It is 576 for IPv4, the smallest MTU still in use. For IPv6
/// it is 1280, the minimum of RFC 8200.
pub(super) fn min_size(address: IpAddr) -> u16 {
    if address.is_ipv6() { 1280 } else { 576 }
}

/// State of one search. Sizes are those of IP packets, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MtuSearch {
    /// Size that is known not to arrive.
    full: u16,
    /// Largest size that arrived; at first the smallest that is searched.
    low: u16,
    /// Distance between the sizes of the last rung.
    step: u16,
    /// Time at which the search started.
    begun: Time,
    /// Time of the next rung, or the end of the last one.
    next: Time,
    /// Time between two rungs.
    wait: Duration,
    /// Number of rungs sent so far.
    rungs: u8,
}

impl MtuSearch {
    /// Starts a search below `full`, a size that does not arrive at `to`. `latency` is the latency of an echo to there.
    pub(super) fn new(full: u16, to: IpAddr, latency: Duration, now: Time) -> Self {
        let low = min_size(to).min(full.saturating_sub(1));
        Self {
            full,
            low,
            step: (full - low).max(LAST_STEP + 1),
            begun: now,
            next: now,
            wait: RUNG_INTERVAL.max(latency * 3 / 2),
            rungs: 0,
        }
    }

    /// Returns the time of the next rung, or `None` if the search needs no more rungs.
    pub(super) fn next(&self) -> Option<Time> {
        (self.rungs < MAX_RUNGS && self.step > LAST_STEP && self.low + 1 < self.high()).then_some(self.next)
    }

    /// Returns the largest size in bytes that arrived, once all rungs were sent and had their time for replies.
    pub(super) fn result(&self, now: Time) -> Option<u16> {
        (self.next().is_none() && now >= self.next).then_some(self.low)
    }

    /// Returns true if the search has to be repeated.
    pub(super) fn is_old(&self, now: Time) -> bool {
        now >= self.begun + REPEAT_AFTER
    }

    /// Starts the next rung and returns its sizes.
    pub(super) fn search_probes(&mut self, now: Time) -> Vec<u16> {
        self.next = now + self.wait;
        let high = self.high();
        self.step = (high - self.low).div_ceil(SIZES + 1).max(1);
        self.rungs += 1;
        (1..=SIZES).map(|n| self.low.saturating_add(n * self.step)).take_while(|&size| size < high).collect()
    }

    fn high(&self) -> u16 {
        self.full.min(self.low.saturating_add(self.step.saturating_mul(2)))
    }

    /// Records that a packet of this size arrived.
    pub(super) fn arrived(&mut self, size: u16) {
        if size > self.low && size < self.full {
            self.low = size;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn few_probes_find_the_mtu_within_a_few_bytes() {
        let start = Time::from(Duration::ZERO);
        for (full, to) in [(1450, V4), (8950, V4), (1430, V6), (577, V4), (9000, V4)] {
            for mtu in [1281, 1350, 1400, 1449, 576] {
                let mut search = MtuSearch::new(full, to, Duration::ZERO, start);
                let (mut asked, mut now) = (0, start);
                while let Some(next) = search.next() {
                    assert!(next >= now);
                    now = next;
                    let sizes = search.search_probes(now);
                    asked += sizes.len();
                    sizes.into_iter().filter(|&size| size <= mtu).for_each(|size| search.arrived(size));
                }
                assert!(asked <= 48, "{asked}");
                if (min_size(to)..full).contains(&mtu) {
                    let off = mtu - search.low;
                    assert!(off <= 3 + full / 10_000, "{full} {mtu}: {search:?}");
                }
            }
        }
    }

    #[test]
    fn a_random_loss_does_not_spoil_the_search() {
        let start = Time::from(Duration::ZERO);
        let mut search = MtuSearch::new(1450, V4, Duration::ZERO, start);
        for rung in 0.. {
            if search.next().is_none() {
                break;
            }
            let sizes = search.search_probes(start);
            let arrive = sizes.into_iter().filter(|&size| size <= 1400);
            // The largest size that would arrive is lost in the first rung.
            let lost = if rung == 0 { arrive.clone().next_back() } else { None };
            arrive.filter(|&size| Some(size) != lost).for_each(|size| search.arrived(size));
        }
        assert!(search.low >= 1395, "{search:?}");
    }
}
