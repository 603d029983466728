//! iptables-legacy tells nobody of its changes, so it is looked at: a file of the kernel while no table is loaded, which
//! takes no process, and its rules, seldom enough to cost nothing much, while one is. It writes nothing.

use std::thread;
use std::time::{Duration, Instant};

use plan::firewall::Variant;
use plan::input::Family;

use super::listing::Listing;
use super::tools::{Tools, loaded};

/// Between two looks at which tables are loaded.
const PAUSE: Duration = Duration::from_millis(300);
/// However long reading takes; `--iptables-resync` may make it longer.
const LONGEST: Duration = Duration::from_secs(30);
/// As long as there are no tables: none of our rules is there to be repaired.
const UNUSED: Duration = Duration::from_secs(2);
/// The rules are read again after so many times what reading them took: 5 % of a CPU.
const REST: u32 = 20;

/// The rules of iptables-legacy in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct LegacyWatch {
    /// Rules are read so often at least.
    resync: Option<Duration>,
    loaded: [String; 2],
    rules: [Listing; 2],
    read_at: Instant,
    took: Duration,
}

impl LegacyWatch {
    /// Changes from now on are told. `resync` is in seconds; one that is no time to wait is no wish.
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

    /// Returns when a policy, the chains of all, ours, or the list of tables have changed, or others begin or cease to
    /// have rules.
    pub fn wait(&mut self) {
        while !self.look() {
            thread::sleep(self.rest());
        }
    }

    fn look(&mut self) -> bool {
        let loaded = Family::ALL.map(loaded);
        let reloaded = loaded != self.loaded;
        self.loaded = loaded;
        let is_due = self.is_loaded() && self.read_at.elapsed() >= self.interval();
        let changed = (reloaded || is_due) && self.read();
        reloaded || changed
    }

    /// Until the next look.
    fn rest(&self) -> Duration {
        if !self.is_loaded() {
            return UNUSED;
        }
        self.interval().saturating_sub(self.read_at.elapsed()).min(PAUSE)
    }

    fn is_loaded(&self) -> bool {
        self.loaded.iter().any(|names| !names.is_empty())
    }

    fn interval(&self) -> Duration {
        let rest = (self.took * REST).max(PAUSE);
        self.resync.map_or(rest, |resync| rest.min(resync.max(LONGEST)))
    }

    /// Are they others than before? What cannot be read is as it was.
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
    fn reading_rules_takes_little_of_the_time_unless_that_is_wished() {
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
