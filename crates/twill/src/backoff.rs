//! Puts off an op that keeps coming back: someone undoes it, or the kernel refuses it. Only that op waits, ever longer;
//! everything else goes on at full speed. It does not judge who is right.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use plan::Op;

/// So often an op is repeated at once.
const FREE: u32 = 8;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// An op that was not needed for so long starts afresh.
const FORGET: Duration = Duration::from_secs(60);

/// Memory of the objects of recent ops, by number: ten thousand of them stay small.
#[derive(Default)]
pub(crate) struct Backoff {
    recent: HashMap<u64, Entry>,
}

struct Entry {
    times: u32,
    last: Instant,
    due: Instant,
}

/// What may go ahead.
pub(crate) struct Admitted {
    pub(crate) ops: Vec<Op>,
    /// Put off, with how often they came back.
    pub(crate) held: Vec<(Op, u32)>,
    /// When the first of the held ones is due.
    pub(crate) due: Option<Instant>,
}

impl Backoff {
    /// It did not count: somebody held it up.
    pub(crate) fn forgive(&mut self, op: &Op) {
        self.recent.remove(&op.object.identity());
    }

    /// Sorts ops into those to apply now and those to hold.
    pub(crate) fn admit(&mut self, ops: Vec<Op>, now: Instant) -> Admitted {
        self.recent.retain(|_, entry| now.duration_since(entry.last) < FORGET);
        let mut admitted = Admitted { ops: Vec::with_capacity(ops.len()), held: Vec::new(), due: None };
        // All ops on one object go together: a device must not be deleted while its return is put off.
        let mut judged: HashMap<u64, bool> = HashMap::new();
        for op in ops {
            let identity = op.object.identity();
            let entry = self.recent.entry(identity).or_insert(Entry { times: 0, last: now, due: now });
            let goes = *judged.entry(identity).or_insert_with(|| entry.judge(now));
            if goes {
                admitted.ops.push(op);
            } else {
                admitted.due = Some(admitted.due.map_or(entry.due, |due| due.min(entry.due)));
                admitted.held.push((op, entry.times));
            }
        }
        admitted
    }
}

impl Entry {
    /// May it go ahead this time?
    fn judge(&mut self, now: Instant) -> bool {
        self.last = now;
        if self.due > now {
            return false;
        }
        self.times += 1;
        if let Some(excess) = self.times.checked_sub(FREE) {
            self.due = now + (FIRST_WAIT * 2u32.saturating_pow(excess)).min(LONGEST_WAIT);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plan::state::{Route, RoutePath};
    use plan::{Object, Verb};

    fn op(destination: &str) -> Op {
        let (destination, path) = (destination.parse().unwrap(), RoutePath::Unreachable);
        let route = Route { table: 254, destination, path, protocol: 84, metric: 0, unknown: None };
        Op { verb: Verb::Replace, object: Object::Route(route) }
    }

    #[test]
    fn only_what_keeps_coming_back_waits_and_ever_longer() {
        let (mut backoff, mut now, mut last) = (Backoff::default(), Instant::now(), Duration::ZERO);
        for _ in 0..FREE {
            assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now).ops.len(), 1);
            now += Duration::from_millis(20);
        }
        for _ in 0..5 {
            let admitted = backoff.admit(vec![op("10.0.0.0/24"), op("10.0.1.0/24")], now);
            let due = admitted.due.unwrap();
            assert_eq!((&admitted.ops[..], admitted.held.len()), (&[op("10.0.1.0/24")][..], 1));
            assert!(due - now > last);
            last = due - now;
            now = due;
            assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now).ops.len(), 1);
            now += Duration::from_millis(20);
        }
    }

    #[test]
    fn rest_is_forgiven() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for _ in 0..20 {
            backoff.admit(vec![op("10.0.0.0/24")], now);
        }
        let other = Op { verb: Verb::Delete, ..op("10.0.0.0/24") };
        assert_eq!(
            backoff.admit(vec![other], now).ops.len(),
            0,
            "it is the object that waits, whatever is done to it"
        );
        assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now).ops.len(), 0);
        assert_eq!(backoff.admit(vec![op("10.0.0.0/24")], now + FORGET).ops.len(), 1);
    }
}
