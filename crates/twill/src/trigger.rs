//! When to look at the kernel: merges all causes into one wake-up, waits for quiet but not for ever, and looks again
//! from time to time without any cause. Causes carry no facts.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kernel::Kind;

use crate::notify;

/// No further cause for this long, and the round begins.
const QUIET: Duration = Duration::from_millis(20);
/// Or when the first cause is this old.
const LONGEST: Duration = Duration::from_millis(200);
/// A look without a cause, at the latest.
const PERIOD: Duration = Duration::from_secs(30);
/// More causes than this are no news; what does not fit is dropped, since a wake-up is due anyway.
const PENDING: usize = 256;

/// Why a round began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Start,
    /// The store told something new.
    Leases,
    /// The kernel changed, or changed faster than the monitor could tell.
    Kernel(Kind),
    /// What is known of a peer has changed.
    Verdicts,
    /// Something that was put off is due.
    Retry,
    /// Somebody wants to know how things are.
    Asked,
    /// SIGHUP: look at everything, the network config included.
    Hangup,
    /// The regular look.
    Period,
}

impl Cause {
    /// May the traffic rules be others than at the last reading?
    pub(crate) fn is_about_rules(&self) -> bool {
        matches!(self, Self::Start | Self::Hangup | Self::Kernel(Kind::Firewall | Kind::Overrun))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Leases => f.write_str("leases"),
            Self::Kernel(kind) => kind.fmt(f),
            Self::Verdicts => f.write_str("verdicts"),
            Self::Retry => f.write_str("retry"),
            Self::Asked => f.write_str("twill diff"),
            Self::Hangup => f.write_str("SIGHUP"),
            Self::Period => f.write_str("period"),
        }
    }
}

/// The causes of one round.
pub(crate) type Causes = BTreeSet<Cause>;

/// Where causes are handed in; never blocks.
#[derive(Clone)]
pub(crate) struct Bell {
    causes: SyncSender<Cause>,
    /// Rules are read anew only when they are said to have changed: that must not be lost when the bell is full.
    rules: Arc<AtomicBool>,
}

impl Bell {
    /// Returns whether it was taken. Full means that a round is due, gone that the process ends: few causes have to be
    /// more than that.
    pub(crate) fn ring(&self, cause: Cause) -> bool {
        if cause.is_about_rules() {
            self.rules.store(true, Ordering::Release);
        }
        self.causes.try_send(cause).is_ok()
    }
}

/// The receiving end, owned by the round loop.
pub(crate) struct Trigger {
    causes: Receiver<Cause>,
    rules: Arc<AtomicBool>,
    period: Duration,
    next_look: Instant,
}

/// A bell and the trigger it sets off.
pub(crate) fn channel() -> (Bell, Trigger) {
    let (sender, causes) = sync_channel(PENDING);
    // Twice within the service manager's patience.
    let period = notify::patience().map_or(PERIOD, |limit| PERIOD.min(limit / 2));
    let rules = Arc::new(AtomicBool::new(false));
    let bell = Bell { causes: sender, rules: Arc::clone(&rules) };
    (bell, Trigger { causes, rules, period, next_look: Instant::now() + period })
}

impl Trigger {
    /// Drops the causes that are there already.
    pub(crate) fn forget(&mut self) {
        while self.causes.try_recv().is_ok() {}
    }

    /// Sleeps until a round is due, at the latest when `retry` says so.
    pub(crate) fn wait(&mut self, retry: Option<Instant>) -> Causes {
        notify::alive();
        let until = retry.map_or(self.next_look, |retry| retry.min(self.next_look));
        let mut causes = Causes::new();
        match self.causes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(cause) => {
                causes.insert(cause);
                self.gather(&mut causes);
            }
            Err(RecvTimeoutError::Timeout) => {
                causes.insert(if until < self.next_look { Cause::Retry } else { Cause::Period });
            }
            // Every bell is gone, which only a dying process brings about; keep looking meanwhile.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                causes.insert(Cause::Period);
            }
        }
        if self.rules.swap(false, Ordering::AcqRel) {
            causes.insert(Cause::Kernel(Kind::Firewall));
        }
        self.next_look = Instant::now() + self.period;
        causes
    }

    fn gather(&self, causes: &mut Causes) {
        let latest = Instant::now() + LONGEST;
        loop {
            let quiet = QUIET.min(latest.saturating_duration_since(Instant::now()));
            match self.causes.recv_timeout(quiet) {
                Ok(cause) => _ = causes.insert(cause),
                Err(_) => return,
            }
            if Instant::now() >= latest {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_in_quick_succession_make_one_round() {
        let (bell, mut trigger) = channel();
        bell.ring(Cause::Kernel(Kind::Route));
        bell.ring(Cause::Leases);
        bell.ring(Cause::Kernel(Kind::Route));
        assert_eq!(trigger.wait(None), Causes::from([Cause::Leases, Cause::Kernel(Kind::Route)]));
    }

    #[test]
    fn unrest_without_end_does_not_put_a_round_off_for_ever() {
        let (bell, mut trigger) = channel();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let unrest = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                bell.ring(Cause::Kernel(Kind::Neighbour));
                std::thread::yield_now();
            }
        });
        let begun = Instant::now();
        trigger.wait(None);
        let waited = begun.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        unrest.join().unwrap();
        assert!(waited < LONGEST * 5, "{waited:?}");
    }

    #[test]
    fn what_was_put_off_comes_due() {
        let (_bell, mut trigger) = channel();
        assert_eq!(trigger.wait(Some(Instant::now() + QUIET)), Causes::from([Cause::Retry]));
    }
}
