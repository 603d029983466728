//! Waits for a condition with a deadline. The lab waits in no other way: sleeps only set the pace of traffic. On a
//! slow machine, such as an emulated one, `LAB_PATIENCE=10` in the environment makes every limit ten times as long.
//! It applies to each wait, each test, and each claim that something is quick. It does not apply to a span in which
//! something must stay true, nor to ping's wait for one echo.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::control::missed;

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);
/// Environment variable with the factor by which limits are longer.
const PATIENCE: &str = "LAB_PATIENCE";

/// Returns `limit` multiplied by `LAB_PATIENCE`. Every check of a time limit uses this.
pub fn patient(limit: Duration) -> Duration {
    let patience = std::env::var_os(PATIENCE).unwrap_or_default();
    limit * factor(&patience.to_string_lossy())
}

fn factor(patience: &str) -> u32 {
    match patience.parse() {
        Ok(factor @ 1..) => factor,
        _ if patience.is_empty() => 1,
        _ => panic!("{PATIENCE}={patience} in the environment: give a whole number such as 10, or unset it"),
    }
}

/// Returns the first value that `look` finds, or `None` once `limit` has passed.
pub fn until<T>(limit: Duration, look: impl FnMut() -> Option<T>) -> Option<T> {
    until_found("a condition", limit, look)
}

fn until_found<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    let found = within(patient(limit), look);
    if found.is_none() {
        missed(format!("{what}: not true within {:.1} s", patient(limit).as_secs_f64()), start);
    }
    found
}

fn within<T>(span: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + span;
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
    if until_found(what, limit, || condition().then_some(())).is_none() {
        panic!("not true within {:.1} s: {what}", patient(limit).as_secs_f64());
    }
}

/// Panics with `what` as soon as `condition` is false within `span`; for conditions that must stay true.
pub fn holds_for(what: &str, span: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    if within(span, || (!condition()).then_some(())).is_some() {
        panic!("no longer true after {:.1} s: {what}", start.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_patience_accepts_positive_whole_numbers_only() {
        assert_eq!(["", "1", "10"].map(factor), [1, 1, 10]);
        for nonsense in ["0", "-1", "1.5", "ten"] {
            assert!(std::panic::catch_unwind(|| factor(nonsense)).is_err(), "{nonsense}");
        }
    }
}
