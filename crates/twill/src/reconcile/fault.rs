//! Selects the faults of a pass that belong to this node's own part and so decide whether it is ready.

use plan::note::{NodeFault, Note, StoreFault};
use plan::{LinkName, Object, Op, Path, Verb};

use crate::round::Round;

/// Returns the first fault of this node's own part except the traffic rules. Faults of peers never count.
pub(super) fn own_fault(round: &Round, devices: &[LinkName]) -> Option<String> {
    let own = |op: &Op| match &op.object {
        Object::Link(link) => devices.contains(&link.name),
        Object::LinkUp(name) => devices.contains(name),
        Object::Address(row) => devices.contains(&row.link),
        _ => false,
    };
    let waits = round.peers.iter().any(|peer| peer.path == Path::Waiting);
    let noted = round.notes.iter().find_map(|note| match note {
        Note::Node(
            NodeFault::SysctlRefused { .. }
            | NodeFault::SysctlUnset { .. }
            | NodeFault::BridgeNetfilterMissing
            | NodeFault::BridgeNetfilterOff { .. }
            | NodeFault::Firewalld { .. }
            | NodeFault::NeighboursLimited { .. }
            | NodeFault::NothingVerified
            | NodeFault::NoProbeSocket { .. }
            // Any machine on the segment can bring it about.
            | NodeFault::AddressTaken { .. }
            | NodeFault::NotInternalIp { .. }
            | NodeFault::InterfaceAmongPods { .. }
            | NodeFault::TooNarrow { alone: Some(_), .. }
            | NodeFault::NoPeerOnLink { .. },
        ) => None,
        Note::Node(NodeFault::Firewall(_)) => None,
        // Peers are reached by tunnel then.
        Note::Node(NodeFault::UplinkWithoutRoute { .. }) if !devices.is_empty() && !waits => None,
        Note::Node(NodeFault::ForeignDevice { name, .. }) if !devices.contains(name) => None,
        Note::Node(fault) => Some(fault.to_string()),
        Note::Store(fault @ StoreFault::OwnLeaseTaken { .. }) => Some(fault.to_string()),
        _ => None,
    });
    undone(round, own).or(noted)
}

/// Returns the first fault of the traffic rules that pods need. Pods can be attached all the same.
pub(super) fn rules_fault(round: &Round) -> Option<String> {
    // A left-over rule that cannot be deleted harms no pod.
    let needed = |op: &Op| match &op.object {
        Object::NftChain(row) => op.verb != Verb::Delete && !row.chain.is_filter(),
        Object::Iptables(_) => op.verb != Verb::Delete,
        _ => false,
    };
    let noted = round.notes.iter().find_map(|note| match note {
        Note::Node(NodeFault::Firewall(fault)) if fault.is_fatal() => Some(fault.to_string()),
        _ => None,
    });
    undone(round, needed).or(noted)
}

/// Returns the error of the first matching op that was refused, else the first matching op that was delayed.
fn undone(round: &Round, those: impl Fn(&Op) -> bool) -> Option<String> {
    let failed = round.failed.iter().find(|(op, _)| those(op)).map(|(_, error)| error.to_string());
    let held = round.held.iter().find(|held| those(&held.op));
    failed.or_else(|| held.map(ToString::to_string))
}
