//! Record of one reconcile pass: causes, ops, failures, warnings and duration. It feeds the log, the metrics and the
//! report.

use std::time::Duration;

use plan::note::Note;
use plan::{Object, Op};

use crate::backoff::Held;
use crate::trigger::Causes;

/// Result of one reconcile pass.
pub(crate) struct Round {
    pub(crate) causes: Causes,
    /// Ops that were sent to the kernel, in order, with those that it refused.
    pub(crate) ops: Vec<Op>,
    /// Ops that the kernel refused, each with its error.
    pub(crate) failed: Vec<(Op, kernel::Error)>,
    /// Ops that were delayed because they keep coming back.
    pub(crate) held: Vec<Held>,
    pub(crate) notes: Vec<Note>,
    pub(crate) took: Duration,
}

impl Round {
    /// Puts warnings about this node first, so that many about peers and store entries cannot hide them.
    pub(crate) fn sort_notes(&mut self) {
        self.notes.sort_by_key(|note| match note {
            Note::Peer { .. } => 1,
            Note::Entry { .. } | Note::Stale { .. } => 2,
            _ => 0,
        });
    }

    /// Formats the log line: causes, counts, duration and the first three ops. Ops that overwrite a sysctl are always
    /// listed, because the old value is recorded nowhere else.
    pub(crate) fn line(&self) -> String {
        let overwrites = |op: &Op| matches!(&op.object, Object::Sysctl(setting) if setting.was.is_some());
        let shown = self.ops.iter().enumerate().filter(|(place, op)| *place < 3 || overwrites(op));
        let first: Vec<String> = shown.map(|(_, op)| op.to_string()).collect();
        let more = self.ops.len() - first.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let failed =
            if self.failed.is_empty() { String::new() } else { format!(", {} refused", self.failed.len()) };
        format!(
            "applied {} changes{failed} in {:.1} ms after {}: {}{more}",
            self.ops.len(),
            self.took.as_secs_f64() * 1e3,
            list(&self.causes),
            first.join("; ")
        )
    }
}

/// Joins the causes for people: `start, leases`.
pub(crate) fn list(causes: &Causes) -> String {
    causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
