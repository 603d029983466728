//! One look at the kernel as a value: why, what was done, what failed, how long it took. It goes to the log, the metrics
//! and the report; it is not kept.

use std::time::Duration;

use plan::{Object, Op, PeerPath};

use crate::backoff::Held;
use crate::trigger::Causes;

/// What came of a round.
pub(crate) struct Round {
    pub(crate) causes: Causes,
    /// Applied, in order.
    pub(crate) ops: Vec<Op>,
    /// Those of them that the kernel refused.
    pub(crate) failed: Vec<(Op, kernel::Error)>,
    /// Put off.
    pub(crate) held: Vec<Held>,
    pub(crate) notes: Vec<plan::note::Note>,
    pub(crate) peers: Vec<PeerPath>,
    pub(crate) took: Duration,
}

impl Round {
    /// One line: causes, counts, time, the first three objects, and each sysctl that had another value: that one
    /// stands nowhere else.
    pub(crate) fn line(&self) -> String {
        let overwrites = |op: &Op| matches!(&op.object, Object::Sysctl(setting) if setting.was.is_some());
        let shown = self.ops.iter().enumerate().filter(|(place, op)| *place < 3 || overwrites(op));
        let first: Vec<String> = shown.map(|(_, op)| op.to_string()).collect();
        let more = self.ops.len() - first.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let failed =
            if self.failed.is_empty() { String::new() } else { format!(", {} refused", self.failed.len()) };
        format!(
            "{}: {} changes{failed} in {:.1} ms: {}{more}",
            list(&self.causes),
            self.ops.len(),
            self.took.as_secs_f64() * 1e3,
            first.join("; ")
        )
    }
}

/// Causes for people.
pub(crate) fn list(causes: &Causes) -> String {
    causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
