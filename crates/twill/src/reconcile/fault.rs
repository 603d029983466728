//! Selects the faults of a pass that belong to this node's own part and so decide whether it is ready.

use plan::fault::Severity;
use plan::note::Note;
use plan::{LinkName, Object, Op, Verb};

use crate::round::Round;

/// Returns the first fault of this node's own part except traffic rules and forwarding. Faults of peers never count.
pub(super) fn own_fault(round: &Round, devices: &[LinkName]) -> Option<String> {
    let own = |op: &Op| match &op.object {
        Object::Link(link) => devices.contains(&link.name),
        Object::LinkUp(name) => devices.contains(name),
        Object::Address(row) => devices.contains(&row.link),
        _ => false,
    };
    undone(round, own).or_else(|| noted(round, Severity::Blocking))
}

/// Returns the first fault of traffic rules or forwarding that pods need. Pods can be attached all the same.
pub(super) fn rules_fault(round: &Round) -> Option<String> {
    // A left-over rule that cannot be deleted harms no pod.
    let needed = |op: &Op| match &op.object {
        Object::NftChain(row) => op.verb != Verb::Delete && !row.chain.is_filter(),
        Object::Iptables(_) => op.verb != Verb::Delete,
        _ => false,
    };
    undone(round, needed).or_else(|| noted(round, Severity::Unready))
}

/// Returns the text of the first warning of that severity.
fn noted(round: &Round, severity: Severity) -> Option<String> {
    let note = round.notes.iter().find(|note| note.severity() == severity)?;
    Some(match note {
        // Readiness is about this node, so the subject `store` is left out.
        Note::Store(fault) => fault.to_string(),
        note => note.to_string(),
    })
}

/// Returns the error of the first matching op that was refused, else the first matching op that was delayed.
fn undone(round: &Round, those: impl Fn(&Op) -> bool) -> Option<String> {
    let failed = round.failed.iter().find(|(op, _)| those(op)).map(|(_, error)| error.to_string());
    let held = round.held.iter().find(|held| those(&held.op));
    failed.or_else(|| held.map(ToString::to_string))
}
