//! Waiting on a condition with a deadline: the only way the lab waits. Nothing here sleeps in the hope that
//! something has happened meanwhile.

use std::thread::sleep;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// The first value that `look` finds, or None when `limit` has passed.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(POLL);
    }
}

/// Panics with `what` unless `condition` becomes true within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    if until(limit, || condition().then_some(())).is_none() {
        panic!("waited {:.1} s in vain: {what}", limit.as_secs_f64());
    }
}

/// Panics with `what` as soon as `condition` is false within `span`: for what must stay true.
pub fn holds_for(what: &str, span: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    if until(span, || (!condition()).then_some(())).is_some() {
        panic!("no longer true after {:.1} s: {what}", start.elapsed().as_secs_f64());
    }
}
