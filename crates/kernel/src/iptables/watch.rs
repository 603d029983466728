//! Watches iptables-legacy, which sends no notifications. While no table is loaded, only a file of the kernel is read,
//! without a process. Otherwise the rules are read, but so rarely that it costs little.

use std::thread;
use std::time::{Duration, Instant};

use plan::Family;
use plan::state::Variant;

use super::listing::Listing;
use super::tools::{Tools, loaded};

/// Maximum time between two checks of the loaded tables, while there are any. It is also the minimum time between two
/// readings of the rules.
const PAUSE: Duration = Duration::from_millis(300);
/// Maximum time between two readings of the rules; a longer `--iptables-resync` raises it.
const MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two checks while no table is loaded: there are no rules of ours to repair.
const UNLOADED_PAUSE: Duration = Duration::from_secs(2);
/// Time until the next reading, as a multiple of the last reading's duration. It limits the cost to 5 % of a CPU.
const PAUSE_FACTOR: u32 = 20;

/// Watch of the rules of iptables-legacy, in the network namespace of the thread that creates it.
#[derive(Debug)]
pub struct LegacyWatch {
    /// Maximum time between two readings; a value below [`MAX_INTERVAL`] counts as [`MAX_INTERVAL`]. `None` sets no maximum.
    resync: Option<Duration>,
    loaded: [String; 2],
    rules: [Listing; 2],
    read_at: Instant,
    took: Duration,
}

impl LegacyWatch {
    /// Starts to watch: changes from now on are reported. `resync` is in seconds; a value below 300 ms sets no maximum.
    pub fn new(resync: i64) -> Self {
        let resync = u64::try_from(resync).map(Duration::from_secs).ok().filter(|resync| *resync >= PAUSE);
        let mut watch = Self {
            resync,
            loaded: Default::default(),
            rules: Default::default(),
            read_at: Instant::now(),
            took: Duration::ZERO,
        };
        watch.loaded = Family::ALL.map(loaded);
        watch.read();
        watch
    }

    /// Waits for a change of the loaded tables, a policy, our chains, or a chain that forwarded packets may reach. It
    /// also returns when a table gets its first foreign rule, or loses the last one.
    pub fn wait(&mut self) {
        while !self.check() {
            thread::sleep(self.pause());
        }
    }

    fn check(&mut self) -> bool {
        let loaded = Family::ALL.map(loaded);
        let reloaded = loaded != self.loaded;
        self.loaded = loaded;
        let is_due = self.is_loaded() && self.read_at.elapsed() >= self.interval();
        let changed = (reloaded || is_due) && self.read();
        reloaded || changed
    }

    /// Returns the time until the next check.
    fn pause(&self) -> Duration {
        if !self.is_loaded() {
            return UNLOADED_PAUSE;
        }
        self.interval().saturating_sub(self.read_at.elapsed()).min(PAUSE)
    }

    fn is_loaded(&self) -> bool {
        self.loaded.iter().any(|names| !names.is_empty())
    }

    fn interval(&self) -> Duration {
        let rest = (self.took * PAUSE_FACTOR).max(PAUSE);
        self.resync.map_or(rest, |resync| rest.min(resync.max(MAX_INTERVAL)))
    }

    /// Reads the rules. Returns true if they differ from the last reading; rules that cannot be read count as
    /// unchanged.
    fn read(&mut self) -> bool {
        let start = Instant::now();
        let listing = |family| Tools::of(Variant::Legacy, family).map(|tools| tools.listing().ok());
        let now = Family::ALL.map(listing);
        (self.read_at, self.took) = (Instant::now(), start.elapsed());
        let mut changed = false;
        for (old, new) in self.rules.iter_mut().zip(now) {
            if let Some(new) = new.flatten().filter(|new| new != old) {
                *old = new;
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_poll_interval_grows_with_the_time_a_reading_takes() {
        let interval = |resync, took| LegacyWatch { took, ..LegacyWatch::new(resync) }.interval();
        let millis = Duration::from_millis;
        for (resync, took, expected) in [
            (5, millis(3), millis(300)),
            (5, millis(40), millis(800)),
            (5, millis(400), millis(8000)),
            (60, millis(3000), millis(60_000)),
            (5, millis(3000), millis(30_000)),
            (0, millis(400), millis(8000)),
            (-8, millis(400), millis(8000)),
            (i64::MAX, millis(1), millis(300)),
        ] {
            assert_eq!(interval(resync, took), expected, "{resync} {took:?}");
        }
    }
}
