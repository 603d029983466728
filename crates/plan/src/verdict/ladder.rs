//! The search for the largest packet that arrives: several sizes at once, then again between the largest that came and
//! the next ones that did not. An answer is never wrong, a loss may be chance, so each rung looks a step higher than it must.

use std::net::IpAddr;
use std::time::Duration;

/// Sizes asked at once.
const SIZES: u16 = 12;
const RUNGS: u8 = 4;
/// Sizes so near to each other are near enough.
const FINE: u16 = 3;
/// Between two rungs, at least: all are through before large packets count as lost.
const WAIT: Duration = Duration::from_millis(250);
/// After that a search is made again, if it is still needed.
const AGAIN: Duration = Duration::from_secs(60);
/// No network of IPv4 carries less whole that anybody still uses, and none of IPv6 may carry less than the second.
pub(super) fn least(address: IpAddr) -> u16 {
    if address.is_ipv6() { 1280 } else { 576 }
}

/// One search.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    full: u16,
    /// The largest that arrived.
    low: u16,
    /// Between the sizes of the last rung.
    step: u16,
    begun: Duration,
    /// The next rung, or the end of the last one.
    next: Duration,
    wait: Duration,
    rungs: u8,
}

impl Ladder {
    /// Below `full`, which does not arrive there, where an echo takes about so long.
    pub(super) fn new(full: u16, to: IpAddr, latency: Duration, now: Duration) -> Self {
        let low = least(to).min(full.saturating_sub(1));
        Self {
            full,
            low,
            step: (full - low).max(FINE + 1),
            begun: now,
            next: now,
            wait: WAIT.max(latency * 3 / 2),
            rungs: 0,
        }
    }

    /// When the next rung is to be asked.
    pub(super) fn next(&self) -> Option<Duration> {
        (self.rungs < RUNGS && self.step > FINE && self.low + 1 < self.high()).then_some(self.next)
    }

    /// Every rung has been asked and had its time.
    pub(super) fn is_done(&self, now: Duration) -> bool {
        self.next().is_none() && now >= self.next
    }

    pub(super) fn is_old(&self, now: Duration) -> bool {
        now >= self.begun + AGAIN
    }

    /// The sizes of the next rung.
    pub(super) fn climb(&mut self, now: Duration) -> Vec<u16> {
        self.next = now + self.wait;
        let high = self.high();
        self.step = (high - self.low).div_ceil(SIZES + 1).max(1);
        self.rungs += 1;
        (1..=SIZES).map(|n| self.low.saturating_add(n * self.step)).take_while(|&size| size < high).collect()
    }

    fn high(&self) -> u16 {
        self.full.min(self.low.saturating_add(self.step.saturating_mul(2)))
    }

    /// One of the sizes arrived.
    pub(super) fn arrived(&mut self, size: u16) {
        if size > self.low && size < self.full {
            self.low = size;
        }
    }

    /// The largest that arrived so far.
    pub(super) fn low(&self) -> u16 {
        self.low
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn few_rungs_find_the_size_to_a_few_bytes() {
        for (full, to) in [(1450, V4), (8950, V4), (1430, V6), (577, V4), (9000, V4)] {
            for mtu in [1281, 1350, 1400, 1449, 576] {
                let mut ladder = Ladder::new(full, to, Duration::ZERO, Duration::ZERO);
                let (mut asked, mut now) = (0, Duration::ZERO);
                while let Some(next) = ladder.next() {
                    assert!(next >= now);
                    now = next;
                    let sizes = ladder.climb(now);
                    asked += sizes.len();
                    sizes.into_iter().filter(|&size| size <= mtu).for_each(|size| ladder.arrived(size));
                }
                assert!(asked <= 48, "{asked}");
                if (least(to)..full).contains(&mtu) {
                    let off = mtu - ladder.low();
                    assert!(off <= 3 + full / 10_000, "{full} {mtu}: {ladder:?}");
                }
            }
        }
    }

    #[test]
    fn one_lost_by_chance_does_not_spoil_the_search() {
        let mut ladder = Ladder::new(1450, V4, Duration::ZERO, Duration::ZERO);
        for rung in 0.. {
            if ladder.next().is_none() {
                break;
            }
            let sizes = ladder.climb(Duration::ZERO);
            let arrive = sizes.into_iter().filter(|&size| size <= 1400);
            // The largest that would arrive is lost in the first rung.
            let lost = if rung == 0 { arrive.clone().next_back() } else { None };
            arrive.filter(|&size| Some(size) != lost).for_each(|size| ladder.arrived(size));
        }
        assert!(ladder.low() >= 1395, "{ladder:?}");
    }
}
