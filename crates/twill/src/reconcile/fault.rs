//! Selects the faults of a pass that belong to this node's own part and so decide whether it is ready.

use plan::fault::Severity;
use plan::warning::Warning;
use plan::{LinkName, Object, Op, Verb};

use crate::pass::Pass;

/// Returns the first fault of this node's own part except traffic rules and forwarding. Faults of peers never count.
pub(super) fn own_fault(pass: &Pass, devices: &[LinkName]) -> Option<String> {
    let own = |op: &Op| match &op.object {
        Object::Link(link) => devices.contains(&link.name),
        Object::LinkUp(name) => devices.contains(name),
        Object::Address(row) => devices.contains(&row.link),
        _ => false,
    };
    first_undone(pass, own).or_else(|| first_warning(pass, Severity::Blocking))
}

/// Returns the first fault of traffic rules or forwarding that pods need. Pods can be attached all the same.
pub(super) fn rules_fault(pass: &Pass) -> Option<String> {
    // A left-over rule that cannot be deleted harms no pod.
    let needed = |op: &Op| match &op.object {
        Object::NftChain(row) => op.verb != Verb::Delete && !row.chain.is_filter(),
        Object::Iptables(_) => op.verb != Verb::Delete,
        _ => false,
    };
    first_undone(pass, needed).or_else(|| first_warning(pass, Severity::Unready))
}

/// Returns the text of the first warning of that severity.
fn first_warning(pass: &Pass, severity: Severity) -> Option<String> {
    let warning = pass.warnings.iter().find(|warning| warning.severity() == severity)?;
    Some(match warning {
        // Readiness is about this node, so the subject `store` is left out.
        Warning::Store(fault) => fault.to_string(),
        warning => warning.to_string(),
    })
}

/// Returns the error of the first matching op that was refused, else the first matching op that was delayed.
fn first_undone(pass: &Pass, matches: impl Fn(&Op) -> bool) -> Option<String> {
    let failed = pass.failed.iter().find(|(op, _)| matches(op)).map(|(_, error)| error.to_string());
    let delayed = pass.delayed.iter().find(|delayed| matches(&delayed.op));
    failed.or_else(|| delayed.map(ToString::to_string))
}
