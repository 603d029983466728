//! Record of one reconcile pass: causes, ops, failures, warnings and duration. It feeds the log, the metrics and the
//! report.

use std::time::Duration;

use ipnet::IpNet;
use plan::warning::Warning;
use plan::{Object, Op};

use crate::backoff::DelayedOp;
use crate::trigger::Causes;

/// Result of one reconcile pass.
pub(crate) struct Pass {
    pub(crate) causes: Causes,
    /// Ops that were sent to the kernel, in order, with those that it refused.
    pub(crate) ops: Vec<Op>,
    /// Ops that the kernel refused, each with its error.
    pub(crate) failed: Vec<(Op, kernel::Error)>,
    /// Ops that were delayed because they keep coming back.
    pub(crate) delayed: Vec<DelayedOp>,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) duration: Duration,
}

impl Pass {
    /// Puts warnings about this node first, then those about peers that have answered. Many about leases that nobody
    /// stands behind, or about store entries, cannot hide them.
    pub(crate) fn sort_warnings(&mut self, has_answered: impl Fn(IpNet) -> bool) {
        self.warnings.sort_by_cached_key(|warning| match warning {
            Warning::Peer { subnet, .. } if has_answered(*subnet) => 1,
            Warning::Peer { .. } => 2,
            Warning::Entry { .. } | Warning::Stale { .. } => 3,
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
            self.duration.as_secs_f64() * 1e3,
            join_causes(&self.causes),
            first.join("; ")
        )
    }
}

/// Joins the causes for people: `start, leases`.
pub(crate) fn join_causes(causes: &Causes) -> String {
    causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use plan::warning::{NodeFault, PeerFault};

    use super::*;

    #[test]
    fn warnings_about_the_node_come_first_then_those_about_peers_that_have_answered() {
        let peer = |number: u8| {
            let subnet = format!("10.244.{number}.0/24").parse().unwrap();
            Warning::Peer { subnet, fault: PeerFault::BadLength }
        };
        let entry = || Warning::Entry { key: "a".into(), why: "b".into() };
        let node = || Warning::Node(NodeFault::NothingVerified);
        let mut pass = Pass {
            causes: Causes::new(),
            ops: Vec::new(),
            failed: Vec::new(),
            delayed: Vec::new(),
            warnings: vec![entry(), peer(1), peer(2), peer(9), node()],
            duration: Duration::ZERO,
        };
        pass.sort_warnings(|subnet| subnet == "10.244.9.0/24".parse().unwrap());
        assert_eq!(pass.warnings, [node(), peer(9), peer(1), peer(2), entry()]);
    }
}
