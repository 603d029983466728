//! Delays ops that keep coming back, because something undoes them or the kernel refuses them. Only these ops wait, ever
//! longer; all others run at once. If the desired value has changed since the last attempt, the op is not delayed.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use plan::{Object, Op, Verb};

/// Number of times that an op is tried without delay.
const FREE: u32 = 8;
/// Shortest delay of an op; it doubles with each further attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest delay of an op.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Time after which an op that was not needed counts as new.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Memory of recent ops, by a hash of their object.
#[derive(Default)]
pub(crate) struct Backoff {
    /// Sorted list. The nodes of a tree would lie among those of a pass, and half of the heap would stay.
    recent: Vec<Entry>,
    /// Times at which ops that came too often may run again, by object.
    due: BTreeMap<u64, Instant>,
    /// Last error of the kernel for each refused object.
    refusals: BTreeMap<u64, Box<str>>,
}

/// Recent object, with the number of attempts on it.
struct Entry {
    identity: u64,
    last: Instant,
    times: u32,
    /// Hash of the desired value.
    value_hash: u64,
}

/// Ops, sorted into those that may run and those that wait.
pub(crate) struct Admitted {
    pub(crate) ops: Vec<Op>,
    pub(crate) delayed: Vec<DelayedOp>,
    /// Earliest time at which one of the delayed ops may run.
    pub(crate) due: Option<Instant>,
}

/// Op that is delayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DelayedOp {
    pub(crate) op: Op,
    /// Number of attempts so far.
    pub(crate) times: u32,
    /// Last error of the kernel, which names the op. `None` if the op succeeded each time and was undone.
    pub(crate) refusal: Option<Box<str>>,
}

impl fmt::Display for DelayedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, times, refusal } = self;
        match refusal {
            Some(refusal) => write!(f, "refused {times} times, retrying less often: {refusal}"),
            None => {
                write!(f, "undone {times} times (does another program manage it?), retrying less often: {op}")
            }
        }
    }
}

impl Backoff {
    /// Records the outcome of ops: `refused` lists the ops that failed, each with its error.
    pub(crate) fn record<E: fmt::Display>(&mut self, ops: &[Op], refused: &[(Op, E)]) {
        for op in ops {
            self.refusals.remove(&op.object.identity());
        }
        let words = refused.iter().map(|(op, error)| (op.object.identity(), error.to_string().into()));
        // If two ops on one device fail, the first error caused the second, so the first one is kept.
        self.refusals.extend(words.rev());
    }

    /// Resets the count of an op that failed only because another process was busy with the object.
    pub(crate) fn forgive(&mut self, op: &Op) {
        let identity = op.object.identity();
        self.due.remove(&identity);
        if let Ok(at) = self.recent.binary_search_by_key(&identity, |entry| entry.identity) {
            self.recent[at].times = 0;
        }
    }

    /// Sorts ops into those to apply now and those to hold.
    pub(crate) fn admit(&mut self, ops: Vec<Op>, now: Instant) -> Admitted {
        let mut objects: Vec<_> = ops.iter().map(|op| (op.object.identity(), value_hash(op))).collect();
        objects.sort_unstable();
        objects.dedup_by(|next, last| {
            let is_same = next.0 == last.0;
            last.1 ^= if is_same { next.1 } else { 0 };
            is_same
        });
        self.remember(&objects, now);
        // All ops on one object go together: a device must not be deleted while its creation is delayed.
        let delays =
            objects.into_iter().filter_map(|(identity, _)| Some((identity, self.delay_of(identity, now)?)));
        let waiting: BTreeMap<_, _> = delays.collect();
        let mut admitted = Admitted { ops: Vec::with_capacity(ops.len()), delayed: Vec::new(), due: None };
        for op in ops {
            let Some(&(times, due)) = waiting.get(&op.object.identity()) else {
                admitted.ops.push(op);
                continue;
            };
            admitted.due = Some(admitted.due.map_or(due, |other| other.min(due)));
            let refusal = self.refusals.get(&op.object.identity()).cloned();
            admitted.delayed.push(DelayedOp { op, times, refusal });
        }
        admitted
    }

    fn remember(&mut self, objects: &[(u64, u64)], now: Instant) {
        self.recent.retain(|entry| now.duration_since(entry.last) < FORGET_AFTER);
        let known = self.recent.len();
        for &(identity, value_hash) in objects {
            let new = Entry { identity, last: now, times: 0, value_hash };
            match self.recent[..known].binary_search_by_key(&identity, |entry| entry.identity) {
                Ok(at) if self.recent[at].value_hash == value_hash => self.recent[at].last = now,
                Ok(at) => {
                    self.recent[at] = new;
                    self.due.remove(&identity);
                }
                Err(_) => self.recent.push(new),
            }
        }
        self.recent.sort_unstable_by_key(|entry| entry.identity);
        self.recent.shrink_to_fit();
        let recent = &self.recent;
        let is_recent =
            |identity: &u64| recent.binary_search_by_key(identity, |entry| entry.identity).is_ok();
        self.due.retain(|identity, _| is_recent(identity));
        self.refusals.retain(|identity, _| is_recent(identity));
    }

    /// Returns the number of attempts and the time until which the object waits; `None` if its ops may run now.
    fn delay_of(&mut self, identity: u64, now: Instant) -> Option<(u32, Instant)> {
        let at = self.recent.binary_search_by_key(&identity, |entry| entry.identity).ok()?;
        let entry = &mut self.recent[at];
        if let Some(due) = self.due.get(&identity).filter(|due| **due > now) {
            return Some((entry.times, *due));
        }
        entry.times = entry.times.saturating_add(1);
        if let Some(excess) = entry.times.checked_sub(FREE) {
            let wait = (FIRST_WAIT * 2u32.saturating_pow(excess)).min(LONGEST_WAIT);
            self.due.insert(identity, now + wait);
        }
        None
    }
}

/// Hash of the value that the op sets, without the old value; 0 if it sets none.
fn value_hash(op: &Op) -> u64 {
    let mut hasher = DefaultHasher::new();
    match (op.verb, &op.object) {
        (Verb::Delete | Verb::Recreate, _) => return 0,
        (_, Object::Sysctl(setting)) => setting.row.hash(&mut hasher),
        (_, object) => object.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plan::state::{Route, RoutePath};

    fn op(destination: &str) -> Op {
        let (destination, path) = (destination.parse().unwrap(), RoutePath::Unreachable);
        let route = Route { table: 254, destination, path, protocol: 84, metric: 0, unknown: None };
        Op { verb: Verb::Replace, object: Object::Route(route) }
    }

    #[test]
    fn only_ops_that_keep_coming_back_wait_ever_longer() {
        let (mut backoff, mut now, mut last) = (Backoff::default(), Instant::now(), Duration::ZERO);
        for _ in 0..FREE {
            assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now).ops.len(), 1);
            now += Duration::from_millis(20);
        }
        for _ in 0..5 {
            let admitted = backoff.admit(vec![op("10.0.0.0/24"), op("10.0.1.0/24")], now);
            let due = admitted.due.unwrap();
            assert_eq!((&admitted.ops[..], admitted.delayed.len()), (&[op("10.0.1.0/24")][..], 1));
            assert!(due - now > last);
            last = due - now;
            now = due;
            assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now).ops.len(), 1);
            now += Duration::from_millis(20);
        }
    }

    #[test]
    fn a_delayed_op_carries_the_last_refusal_if_there_is_one() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let delayed = |backoff: &mut Backoff| {
            let delayed = (0..20).flat_map(|_| backoff.admit(vec![op("10.0.0.0/24")], now).delayed).last();
            delayed.unwrap().to_string()
        };
        let words = delayed(&mut backoff);
        assert!(words.contains("does another program manage it?), retrying less often: ~ route"), "{words}");
        for error in ["~ route 10.0.0.0/24: no", "~ route 10.0.0.0/24: not yet"] {
            backoff.record(&[op("10.0.0.0/24")], &[(op("10.0.0.0/24"), error)]);
            let words = delayed(&mut backoff);
            assert!(
                words.starts_with("refused ") && words.ends_with(&format!("retrying less often: {error}")),
                "{words}"
            );
        }
        backoff.record::<String>(&[op("10.0.0.0/24")], &[]);
        assert!(delayed(&mut backoff).contains("does another program manage it?"));
    }

    #[test]
    fn an_op_that_was_not_needed_for_a_while_counts_as_new() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for _ in 0..20 {
            backoff.admit(vec![op("10.0.0.0/24")], now);
        }
        let other = Op { verb: Verb::Add, ..op("10.0.0.0/24") };
        assert_eq!(backoff.admit(vec![other], now).ops.len(), 0, "the object waits, however it is lost");
        assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now).ops.len(), 0);
        assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now + FORGET_AFTER).ops.len(), 1);
    }

    /// Ops whose desired value alternates are never delayed. Ops that make the same value again are.
    #[test]
    fn an_op_with_a_new_desired_value_never_waits() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        let gone = || Op { verb: Verb::Delete, ..op("10.0.0.0/24") };
        for turn in 0..40 {
            let ops = if turn % 2 == 0 { vec![op("10.0.0.0/24")] } else { vec![gone()] };
            assert_eq!(backoff.admit(ops, now).ops.len(), 1, "{turn}");
            now += Duration::from_secs(if turn % 2 == 0 { 3 } else { 30 });
        }
        let anew = |turn| match turn % 2 {
            0 => vec![Op { verb: Verb::Recreate, ..op("10.0.0.0/24") }, op("10.0.0.0/24")],
            _ => vec![op("10.0.0.0/24")],
        };
        let admitted = (0..40).filter(|turn| !backoff.admit(anew(*turn), now).ops.is_empty()).count();
        assert!(admitted < 12, "{admitted}: the same of it each time");
    }
}
