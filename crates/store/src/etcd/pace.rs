//! Backoff between attempts: growing pauses, with jitter, so that not all nodes retry at the same moment.

use std::time::Duration;

/// Pause after the first failure.
const FIRST: Duration = Duration::from_millis(100);
/// Maximum pause.
const LONGEST: Duration = Duration::from_secs(3);

/// Exponential backoff, counted in consecutive failures.
#[derive(Default)]
pub(super) struct Pace {
    failures: u32,
}

impl Pace {
    pub(super) fn next(&mut self) -> Duration {
        let pause = FIRST * 2_u32.pow(self.failures.min(10));
        self.failures += 1;
        jittered(pause.min(LONGEST))
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Returns a random time between half and all of `pause`.
pub(super) fn jittered(pause: Duration) -> Duration {
    let share = (dice() % 1000) as u32;
    pause / 2 + pause / 2 * share / 1000
}

/// Returns random bits from the kernel, or 0 if it has none; the pauses then lack jitter.
pub(super) fn dice() -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_again() {
        let mut pace = Pace::default();
        for _ in 0..3 {
            let pauses: Vec<_> = (0..20).map(|_| pace.next()).collect();
            assert!(pauses[0] <= FIRST && pauses[0] >= FIRST / 2, "{pauses:?}");
            assert!(pauses[5..].iter().all(|pause| *pause >= LONGEST / 2 && *pause <= LONGEST), "{pauses:?}");
            assert!(pauses.iter().collect::<std::collections::BTreeSet<_>>().len() > 10, "{pauses:?}");
            pace.reset();
        }
    }
}
