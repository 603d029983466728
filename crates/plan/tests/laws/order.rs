//! Order of ops that no refusal of a kernel shows: what carries traffic exists before its use, and after it.

use plan::state::{Nexthop, Route, RoutePath};
use plan::{Object, Op, Verb};

/// Returns two ops in the wrong order, if there are any.
pub(crate) fn misplaced(ops: &[Op]) -> Option<(&Op, &Op)> {
    let pairs =
        ops.iter().enumerate().flat_map(|(at, op)| ops[at + 1..].iter().map(move |later| (op, later)));
    pairs.into_iter().find(|(op, later)| precedes(later, op))
}

/// Returns true if `first` has to come before `then`.
fn precedes(first: &Op, then: &Op) -> bool {
    let puts = |op: &Op| matches!(op.verb, Verb::Add | Verb::Replace);
    match (puts(first), puts(then)) {
        (true, true) => carries(&first.object, &then.object),
        (false, false) => {
            [first.verb, then.verb] == [Verb::Delete; 2] && carries(&then.object, &first.object)
        }
        (true, false) => then.verb == Verb::Delete,
        (false, true) => false,
    }
}

/// Returns true if `one` has to exist for as long as `other` does.
fn carries(one: &Object, other: &Object) -> bool {
    match (one, other) {
        (Object::Address(row), Object::LinkUp(link)) => row.link == *link,
        (Object::Address(row), Object::Fdb(other)) => row.link == other.link,
        (Object::Address(row), Object::Neighbour(other)) => row.link == other.link,
        (Object::Address(row), Object::Route(Route { path: RoutePath::Via { link, .. }, .. })) => {
            row.link == *link
        }
        // Forwarding is turned on behind the sysctls that make it harmless.
        (Object::Sysctl(one), Object::Sysctl(other)) => !forwards(&one.row.path) && forwards(&other.row.path),
        (Object::Sysctl(one), Object::LinkUp(link)) => {
            one.row.path.split('/').any(|part| part == link.as_str())
        }
        (Object::Fdb(entry), Object::Neighbour(row)) => (entry.link, entry.mac) == (row.link, row.mac),
        (
            Object::Neighbour(row),
            Object::Route(Route { path: RoutePath::Via { gateway, link, .. }, .. })
            | Object::Nexthop(Nexthop { gateway, link, .. }),
        ) => (row.address, row.link) == (*gateway, *link),
        (Object::Nexthop(row), Object::Route(route)) => route.path == RoutePath::Nexthop(row.id),
        (Object::Route(route), Object::Rule(rule)) => {
            route.table == rule.table && rule.to.contains(&route.destination)
        }
        _ => false,
    }
}

fn forwards(path: &str) -> bool {
    ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].contains(&path)
}
