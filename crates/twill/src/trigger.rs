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
const QUIET_TIME: Duration = Duration::from_millis(20);
/// Maximum time from the first cause to the beginning of the pass.
const MAX_GATHERING: Duration = Duration::from_millis(200);
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
    Health,
    /// A delayed op or check is due.
    Retry,
    /// `twill diff` asked for the ops.
    Diff,
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
            Self::Health => f.write_str("health"),
            Self::Retry => f.write_str("retry"),
            Self::Diff => f.write_str("twill diff"),
            Self::Hangup => f.write_str("SIGHUP"),
            Self::Period => f.write_str("period"),
        }
    }
}

/// Causes of one pass.
pub(crate) type Causes = BTreeSet<Cause>;

/// Sending end for causes; never blocks.
#[derive(Clone)]
pub(crate) struct CauseSender {
    causes: SyncSender<Cause>,
    /// Set when the traffic rules must be read again. They are read only after a change, so a full queue must not lose
    /// it.
    rules: Arc<AtomicBool>,
}

impl CauseSender {
    /// Queues the cause. Returns false if it was dropped. A full queue means that a pass is due, a closed one that the
    /// process ends. Few causes need a second attempt.
    pub(crate) fn send(&self, cause: Cause) -> bool {
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
    next_pass: Instant,
}

/// Creates both ends of the channel.
pub(crate) fn channel() -> (CauseSender, Trigger) {
    let (sender, causes) = sync_channel(PENDING);
    // The watchdog message must be sent at least twice within the service manager's timeout.
    let period = notify::watchdog_timeout().map_or(PERIOD, |limit| PERIOD.min(limit / 2));
    let rules = Arc::new(AtomicBool::new(false));
    let cause_sender = CauseSender { causes: sender, rules: Arc::clone(&rules) };
    (cause_sender, Trigger { causes, rules, period, next_pass: Instant::now() + period })
}

impl Trigger {
    /// Drops the causes in the queue.
    pub(crate) fn clear(&mut self) {
        while self.causes.try_recv().is_ok() {}
    }

    /// Sleeps until a pass is due: on a cause, at `retry`, or at the end of the period. Returns the causes.
    pub(crate) fn wait(&mut self, retry: Option<Instant>) -> Causes {
        notify::alive();
        let until = retry.map_or(self.next_pass, |retry| retry.min(self.next_pass));
        let mut causes = Causes::new();
        match self.causes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(cause) => {
                causes.insert(cause);
                self.gather(&mut causes);
            }
            Err(RecvTimeoutError::Timeout) => {
                causes.insert(if until < self.next_pass { Cause::Retry } else { Cause::Period });
            }
            // Every sender is gone, which happens only while the process ends. Passes go on meanwhile.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                causes.insert(Cause::Period);
            }
        }
        if self.rules.swap(false, Ordering::AcqRel) {
            causes.insert(Cause::Kernel(Change::Firewall));
        }
        self.next_pass = Instant::now() + self.period;
        causes
    }

    fn gather(&self, causes: &mut Causes) {
        let latest = Instant::now() + MAX_GATHERING;
        loop {
            let quiet = QUIET_TIME.min(latest.saturating_duration_since(Instant::now()));
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
        let (cause_sender, mut trigger) = channel();
        cause_sender.send(Cause::Kernel(Change::of::<Route>()));
        cause_sender.send(Cause::Leases);
        cause_sender.send(Cause::Kernel(Change::of::<Route>()));
        assert_eq!(trigger.wait(None), Causes::from([Cause::Leases, Cause::Kernel(Change::of::<Route>())]));
    }

    #[test]
    fn endless_causes_do_not_delay_a_pass_for_ever() {
        let (cause_sender, mut trigger) = channel();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let unrest = std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                cause_sender.send(Cause::Kernel(Change::of::<Neighbour>()));
                std::thread::yield_now();
            }
        });
        let begun = Instant::now();
        trigger.wait(None);
        let waited = begun.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        unrest.join().unwrap();
        assert!(waited < MAX_GATHERING * 5, "{waited:?}");
    }

    #[test]
    fn a_retry_comes_due() {
        let (_bell, mut trigger) = channel();
        assert_eq!(trigger.wait(Some(Instant::now() + QUIET_TIME)), Causes::from([Cause::Retry]));
    }
}
