//! What of a round's trouble is this node's own, and so decides whether it is ready. It reads a round and changes nothing.

use plan::note::{NodeFault, Note, StoreFault};
use plan::{LinkName, Object, Op, Path, Setting, State, Verb};

use crate::round::Round;

/// What is wrong with this node's own part, the traffic rules aside: never a peer's trouble.
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
            | NodeFault::NotInternalIp { .. }
            | NodeFault::InterfaceAmongPods { .. }
            | NodeFault::TooNarrow { alone: Some(_), .. }
            | NodeFault::NoPeerOnLink { .. },
        ) => None,
        Note::Node(NodeFault::Firewall(_)) => None,
        // Peers go by tunnel then.
        Note::Node(NodeFault::UplinkWithoutRoute { .. }) if !devices.is_empty() && !waits => None,
        Note::Node(NodeFault::ForeignDevice { name, .. }) if !devices.contains(name) => None,
        Note::Node(fault) => Some(fault.to_string()),
        Note::Store(fault @ StoreFault::OwnLeaseTaken { .. }) => Some(fault.to_string()),
        _ => None,
    });
    undone(round, own).or(noted)
}

/// What is wrong with the traffic rules that pods need. Pods may be attached all the same.
pub(super) fn rules_fault(round: &Round) -> Option<String> {
    // What is left over and stays harms no pod.
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

/// What was refused or put off of those.
fn undone(round: &Round, those: impl Fn(&Op) -> bool) -> Option<String> {
    let failed = round.failed.iter().find(|(op, _)| those(op)).map(|(_, error)| error.to_string());
    let held = round.held.iter().find(|held| those(&held.op));
    failed.or_else(|| held.map(ToString::to_string))
}

pub(super) fn refused_sysctl(op: &Op) -> Option<NodeFault> {
    match &op.object {
        Object::Sysctl(Setting { row, .. }) => {
            Some(NodeFault::SysctlRefused { path: row.path.clone(), value: row.value.clone() })
        }
        _ => None,
    }
}

/// Somebody may have run the command meanwhile.
pub(super) fn is_in_force(fault: &NodeFault, wanted: &State, seen: &State) -> bool {
    match fault {
        NodeFault::SysctlRefused { path, value } => plan::sysctls::is_missing(path, value, wanted, seen),
        _ => true,
    }
}
