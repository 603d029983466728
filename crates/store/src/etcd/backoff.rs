//! Backoff between attempts: growing pauses, with jitter, so that not all nodes retry at the same moment.

use std::time::Duration;

/// Pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Maximum pause.
const MAX_PAUSE: Duration = Duration::from_secs(3);

/// Exponential backoff, counted in consecutive failures.
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = FIRST_PAUSE * 2_u32.pow(self.failures.min(10));
        self.failures += 1;
        jittered(pause.min(MAX_PAUSE))
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Returns a random time between half and all of `pause`.
pub(super) fn jittered(pause: Duration) -> Duration {
    let share = (random() % 1000) as u32;
    pause / 2 + pause / 2 * share / 1000
}

/// Returns random bits from the kernel, or 0 if it has none; the pauses then lack jitter.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_again() {
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            let pauses: Vec<_> = (0..20).map(|_| backoff.next_pause()).collect();
            assert!(pauses[0] <= FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 2, "{pauses:?}");
            assert!(
                pauses[5..].iter().all(|pause| *pause >= MAX_PAUSE / 2 && *pause <= MAX_PAUSE),
                "{pauses:?}"
            );
            assert!(pauses.iter().collect::<std::collections::BTreeSet<_>>().len() > 10, "{pauses:?}");
            backoff.reset();
        }
    }
}
