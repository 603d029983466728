//! Puts off an op that keeps coming back: someone undoes it, or the kernel refuses it. Only that op waits, ever longer;
//! everything else goes on at full speed. It does not judge who is right.

use std::collections::{BTreeMap, btree_map};
use std::time::{Duration, Instant};

use plan::Op;

/// So often an op is repeated at once.
const FREE: u32 = 8;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// An op that was not needed for so long starts afresh.
const FORGET: Duration = Duration::from_secs(60);

/// Memory of the objects of recent ops, by number: thirty thousand of them stay small.
#[derive(Default)]
pub(crate) struct Backoff {
    begun: Option<Instant>,
    recent: BTreeMap<u64, Entry>,
    /// Those that have to wait, and until when.
    due: BTreeMap<u64, Instant>,
}

#[derive(Default)]
struct Entry {
    times: u32,
    /// In seconds from the beginning.
    last: u32,
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
        let identity = op.object.identity();
        self.recent.remove(&identity);
        self.due.remove(&identity);
    }

    /// Sorts ops into those to apply now and those to hold.
    pub(crate) fn admit(&mut self, ops: Vec<Op>, now: Instant) -> Admitted {
        let seconds = now.duration_since(*self.begun.get_or_insert(now)).as_secs() as u32;
        self.recent.retain(|_, entry| u64::from(seconds.saturating_sub(entry.last)) < FORGET.as_secs());
        self.due.retain(|identity, _| self.recent.contains_key(identity));
        let mut admitted = Admitted { ops: Vec::with_capacity(ops.len()), held: Vec::new(), due: None };
        // All ops on one object go together: a device must not be deleted while its return is put off.
        let mut judged: BTreeMap<u64, Option<Instant>> = BTreeMap::new();
        for op in ops {
            let identity = op.object.identity();
            let entry = self.recent.entry(identity).or_default();
            entry.last = seconds;
            let due = &mut self.due;
            let wait = *judged.entry(identity).or_insert_with(|| entry.judge(due.entry(identity), now));
            match wait {
                None => admitted.ops.push(op),
                Some(until) => {
                    admitted.due = Some(admitted.due.map_or(until, |due| due.min(until)));
                    admitted.held.push((op, entry.times));
                }
            }
        }
        admitted
    }
}

impl Entry {
    /// Until when does it have to wait? `None`: it goes ahead this time.
    fn judge(&mut self, due: btree_map::Entry<'_, u64, Instant>, now: Instant) -> Option<Instant> {
        if let btree_map::Entry::Occupied(due) = &due
            && *due.get() > now
        {
            return Some(*due.get());
        }
        self.times += 1;
        if let Some(excess) = self.times.checked_sub(FREE) {
            due.insert_entry(now + (FIRST_WAIT * 2u32.saturating_pow(excess)).min(LONGEST_WAIT));
        }
        None
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
