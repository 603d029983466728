//! Measures a repair: from the harm until the node's state equals the one before and a fresh ping passes. A harm that changed
//! nothing is an error.

use std::time::{Duration, Instant};

use crate::harm::Harm;
use crate::monitors::Monitors;
use crate::node::Node;
use crate::view::View;
use crate::wait::{patient, until};

/// Maximum time for a repair.
const DEADLINE: Duration = Duration::from_secs(15);

/// Harms `node` and returns the time until its state equals `before` and `ping` is true. Panics with the difference after 15 s.
pub fn time_to_repair(node: &Node, before: &View, harm: &Harm, ping: impl FnMut() -> bool) -> Duration {
    try_repair(node, before, harm, DEADLINE, ping).unwrap_or_else(|why| panic!("{why}"))
}

/// Same as [`time_to_repair`] with its own deadline, for callers that go on after a failure. Returns an error if the harm changed
/// nothing, or is not repaired in time.
pub fn try_repair(
    node: &Node,
    before: &View,
    harm: &Harm,
    deadline: Duration,
    mut ping: impl FnMut() -> bool,
) -> Result<Duration, String> {
    let monitors = Monitors::start(&node.ns);
    let start = Instant::now();
    harm.apply(node);
    let (mut seen, mut as_before) = (None, false);
    let healed = until(deadline, || {
        as_before = as_before || *seen.insert(View::now(&node.ns)) == *before;
        (as_before && ping()).then(|| start.elapsed())
    });
    let what = format!("{}: `{}`", node.name, harm.command(node));
    if harm.is_reported() && monitors.events().is_empty() {
        return Err(format!("{what} changed nothing"));
    }
    healed.ok_or_else(|| {
        let diff = seen.map(|seen| before.diff(&seen)).unwrap_or_default();
        let state = if diff.is_empty() { "it reads as before, but no ping passes".into() } else { diff };
        format!("{what} not repaired after {} s (- before, + now):\n{state}", patient(deadline).as_secs())
    })
}
