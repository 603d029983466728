//! Decides when a reconcile pass begins. It merges all causes into one wake-up, and waits for a quiet moment, but not for
//! ever. It also wakes from time to time without a cause. Causes carry no facts.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use kernel::Change;

use crate::notify;

/// Time without a further cause after which a pass begins.
const QUIET: Duration = Duration::from_millis(20);
/// Maximum time from the first cause to the beginning of the pass.
const LONGEST: Duration = Duration::from_millis(200);
/// Maximum time between two passes.
const PERIOD: Duration = Duration::from_secs(30);
/// Maximum number of causes in the queue. Further ones are dropped, since a pass is due anyway.
const PENDING: usize = 256;

/// Cause of a reconcile pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Start,
    /// The store reported a change, or answered a request for our lease.
    Leases,
    /// The kernel changed, or more changed than the monitor could receive.
    Kernel(Change),
    /// The health of a peer has changed, or whether probes can be sent.
    Verdicts,
    /// A delayed op or check is due.
    Retry,
    /// `twill diff` asked for the ops.
    Asked,
    /// SIGHUP: check everything, the network config included.
    Hangup,
    /// The regular pass without another cause.
    Period,
}

impl Cause {
    /// Returns true if the traffic rules may have changed since they were last read.
    pub(crate) fn is_about_rules(&self) -> bool {
        matches!(self, Self::Start | Self::Hangup | Self::Kernel(Change::Firewall | Change::Overrun))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Leases => f.write_str("leases"),
            Self::Kernel(change) => change.fmt(f),
            Self::Verdicts => f.write_str("health"),
            Self::Retry => f.write_str("retry"),
            Self::Asked => f.write_str("twill diff"),
            Self::Hangup => f.write_str("SIGHUP"),
            Self::Period => f.write_str("period"),
        }
    }
}

/// Causes of one pass.
pub(crate) type Causes = BTreeSet<Cause>;

/// Sending end for causes; never blocks.
#[derive(Clone)]
pub(crate) struct Bell {
    causes: SyncSender<Cause>,
    /// Set when the traffic rules must be read again. They are read only after a change, so a full queue must not lose
    /// it.
    rules: Arc<AtomicBool>,
}

impl Bell {
    /// Queues the cause. Returns false if it was dropped. A full queue means that a pass is due, a closed one that the
    /// process ends. Few causes need a second attempt.
    pub(crate) fn ring(&self, cause: Cause) -> bool {
        if cause.is_about_rules() {
            self.rules.store(true, Ordering::Release);
        }
        self.causes.try_send(cause).is_ok()
    }
}

/// Receiving end for causes, owned by the reconcile loop.
pub(crate) struct Trigger {
    causes: Receiver<Cause>,
    rules: Arc<AtomicBool>,
    period: Duration,
    next_look: Instant,
}

/// Creates a bell and its trigger.
pub(crate) fn channel() -> (Bell, Trigger) {
    let (sender, causes) = sync_channel(PENDING);
    // The watchdog message must be sent at least twice within the service manager's timeout.
    let period = notify::patience().map_or(PERIOD, |limit| PERIOD.min(limit / 2));
    let rules = Arc::new(AtomicBool::new(false));
    let bell = Bell { causes: sender, rules: Arc::clone(&rules) };
    (bell, Trigger { causes, rules, period, next_look: Instant::now() + period })
}

impl Trigger {
    /// Drops the causes in the queue.
    pub(crate) fn forget(&mut self) {
        while self.causes.try_recv().is_ok() {}
    }

    /// Sleeps until a pass is due: on a cause, at `retry`, or at the end of the period. Returns the causes.
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
            // Every bell is gone, which happens only while the process ends. Passes go on meanwhile.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                causes.insert(Cause::Period);
            }
        }
        if self.rules.swap(false, Ordering::AcqRel) {
            causes.insert(Cause::Kernel(Change::Firewall));
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
    use plan::state::{Neighbour, Route};

    use super::*;

    #[test]
    fn causes_in_quick_succession_make_one_pass() {
        let (bell, mut trigger) = channel();
        bell.ring(Cause::Kernel(Change::of::<Route>()));
        bell.ring(Cause::Leases);
        bell.ring(Cause::Kernel(Change::of::<Route>()));
        assert_eq!(trigger.wait(None), Causes::from([Cause::Leases, Cause::Kernel(Change::of::<Route>())]));
    }

    #[test]
    fn endless_causes_do_not_delay_a_pass_for_ever() {
        let (bell, mut trigger) = channel();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let unrest = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                bell.ring(Cause::Kernel(Change::of::<Neighbour>()));
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
    fn a_retry_comes_due() {
        let (_bell, mut trigger) = channel();
        assert_eq!(trigger.wait(Some(Instant::now() + QUIET)), Causes::from([Cause::Retry]));
    }
}
