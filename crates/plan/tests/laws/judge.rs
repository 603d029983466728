//! Checks of a scene and its ops for the laws, and the reports of failures. They compare with the classes that the scene was
//! built from, never with an opinion of the code under test.

use std::collections::BTreeSet;

use ipnet::IpNet;
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::state::{LinkKind, Route, RoutePath};
use plan::subnet_alloc::{Origin, Requester, SubnetChoice};
use plan::{Family, LinkName, Object, Op, Row, Setting, State, Table, Verb, for_each_kind};
use proptest::prelude::*;

use super::scene::{Fate, Scene};

/// Returns a failure that shows the case in readable form.
pub(crate) fn fail(scene: &Scene, ops: &[Op], why: &str) -> TestCaseError {
    let ops: Vec<String> = ops.iter().map(|op| format!("  {op}\n")).collect();
    let (observed, fates) = (scene.observed(), &scene.fates);
    TestCaseError::fail(format!(
        "{why}\nops:\n{}fates: {fates:?}, sweeps: {}\nwanted: {:#?}\nseen: {observed:#?}",
        ops.concat(),
        scene.sweeps,
        scene.desired
    ))
}

pub(crate) fn law(
    holds: bool,
    scene: &Scene,
    ops: &[Op],
    why: impl FnOnce() -> String,
) -> Result<(), TestCaseError> {
    if holds { Ok(()) } else { Err(fail(scene, ops, &why())) }
}

/// Returns the differences, row by row.
pub(crate) fn unlike(expected: &State, have: &State) -> String {
    let lacks = row_texts(expected).difference(&row_texts(have)).cloned().collect::<Vec<_>>();
    let too_much = row_texts(have).difference(&row_texts(expected)).cloned().collect::<Vec<_>>();
    format!("lacking in the end: {lacks:#?}\ntoo much in the end: {too_much:#?}")
}

fn row_texts(state: &State) -> BTreeSet<String> {
    fn texts<T: Row + std::fmt::Debug>(rows: &Table<T>) -> impl Iterator<Item = String> {
        rows.iter().map(|row| format!("{row:?}"))
    }
    let all = texts(&state.sysctls).chain(texts(&state.links)).chain(texts(&state.addresses));
    let all = all.chain(texts(&state.fdb)).chain(texts(&state.neighbours)).chain(texts(&state.nexthops));
    let all = all.chain(texts(&state.routes)).chain(texts(&state.rules)).chain(texts(&state.nft_tables));
    all.chain(texts(&state.nft_chains))
        .chain(texts(&state.nft_elements))
        .chain(texts(&state.iptables))
        .collect()
}

/// Returns true if an op deletes a foreign row, or adds or changes a row under its key.
pub(crate) fn names_foreign(scene: &Scene, op: &Op) -> bool {
    fn named<T: Row>(rows: &[T], row: &T, verb: Verb) -> bool {
        rows.iter().any(|have| if verb == Verb::Delete { have == row } else { have.cmp_key(row).is_eq() })
    }
    let rows = &scene.foreign;
    let is_foreign = |name: LinkName| {
        scene.fate(name) == Some(Fate::Squatted) || rows.links.iter().any(|link| link.name == name)
    };
    match &op.object {
        Object::Sysctl(Setting { row, .. }) => named(&rows.sysctls, row, op.verb),
        Object::Link(link) => is_foreign(link.name),
        Object::LinkUp(name) => is_foreign(*name),
        Object::Address(row) => named(&rows.addresses, row, op.verb),
        Object::Fdb(row) => named(&rows.fdb, row, op.verb),
        Object::Neighbour(row) => named(&rows.neighbours, row, op.verb),
        Object::Nexthop(row) => named(&rows.nexthops, row, op.verb),
        Object::Route(row) => named(&rows.routes, row, op.verb),
        Object::Rule(row) => named(&rows.rules, row, op.verb),
        Object::NftTable(row) => {
            op.verb == Verb::Delete && rows.nft_chains.iter().any(|have| have.family == row.family)
        }
        Object::NftChain(row) => named(&rows.nft_chains, row, op.verb),
        Object::NftElement(row) => named(&rows.nft_elements, row, op.verb),
        Object::Iptables(row) => named(&rows.iptables, row, op.verb),
    }
}

/// Returns the number of rows under the object's key.
fn under_key(state: &State, object: &Object) -> usize {
    rows_like(state, object)[0]
}

/// Returns the number of rows under the object's key, and of rows equal to the object.
fn rows_like(state: &State, object: &Object) -> [usize; 2] {
    fn count<T: Row>(rows: &Table<T>, row: &T) -> [usize; 2] {
        let same_key = rows.iter().filter(|have| have.cmp_key(row).is_eq());
        [same_key.clone().count(), same_key.filter(|have| *have == row).count()]
    }
    macro_rules! counts {
        ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
            match object {
                $(Object::$variant(row) => count::<$row>(&state.$table, row),)*
                Object::LinkUp(name) => [state.links.iter().filter(|link| link.name == *name).count(); 2],
            }
        };
    }
    for_each_kind!(counts)
}

/// Returns true if an op deletes a desired row that exists once.
pub(crate) fn deletes_desired(scene: &Scene, op: &Op) -> bool {
    matches!(op.verb, Verb::Delete | Verb::Recreate)
        && rows_like(&scene.desired, &op.object)[1] > 0
        && rows_like(&scene.observed(), &op.object)[1] == 1
}

pub(crate) fn is_at_desired_key(desired: &State, object: &Object) -> bool {
    under_key(desired, object) > 0
}

/// Returns true if several rows share the op's desired key. Which one the kernel deletes or replaces is unknown, so one op may
/// have no effect.
pub(crate) fn is_one_of_several(scene: &Scene, op: &Op) -> bool {
    is_at_desired_key(&scene.desired, &op.object) && under_key(&scene.observed(), &op.object) > 1
}

/// Returns the device that a row is on or leads through.
fn link_of(scene: &Scene, object: &Object) -> Option<LinkName> {
    match object {
        Object::Sysctl(_) | Object::Link(_) | Object::LinkUp(_) | Object::Rule(_) => None,
        Object::NftTable(_) | Object::NftChain(_) | Object::NftElement(_) | Object::Iptables(_) => None,
        Object::Address(row) => Some(row.link),
        Object::Fdb(row) => Some(row.link),
        Object::Neighbour(row) => Some(row.link),
        Object::Nexthop(row) => Some(row.link),
        Object::Route(row) => match row.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => Some(link),
            RoutePath::Nexthop(id) => {
                scene.kernel.rows.nexthops.iter().find(|row| row.id == id).map(|row| row.link)
            }
            _ => None,
        },
    }
}

/// Returns true for a deletion that the deletion of the device does as well.
pub(crate) fn goes_with_its_link(scene: &Scene, op: &Op) -> bool {
    let goes = match &op.object {
        Object::Route(row) if matches!(row.path, RoutePath::Nexthop(_)) => scene.next_hop_goes(row.path),
        object => link_of(scene, object).is_some_and(|link| scene.goes(link)),
    };
    op.verb == Verb::Delete && goes
}

/// Returns true if the op's sign is right. `+` needs an empty key, or one whose row went before; `~` needs a row to change.
pub(crate) fn has_true_sign(scene: &Scene, op: &Op) -> bool {
    let observed = scene.observed();
    match (op.verb, &op.object) {
        (Verb::Add, Object::LinkUp(name)) => {
            matches!(scene.fate(*name), Some(Fate::New | Fate::Remade))
        }
        (Verb::Add, Object::Link(link)) => matches!(scene.fate(link.name), Some(Fate::New | Fate::Remade)),
        (Verb::Add, object) => {
            let went = |link: Option<LinkName>| {
                link.is_some_and(|link| scene.fate(link) == Some(Fate::Remade) || scene.is_flushed(link))
            };
            under_key(&observed, object) == 0 || stands_on(scene, object).into_iter().all(went)
        }
        // A device that is created again has the kernel's defaults, so no old value is replaced.
        (Verb::Replace, Object::Sysctl(Setting { row, was })) => {
            let is_of = |link: LinkName| row.path.split('/').any(|part| part == link.as_str());
            let is_default = scene.fates.iter().any(|(link, fate)| *fate == Fate::Remade && is_of(*link));
            let have = observed.sysctls.iter().find(|have| have.path == row.path);
            have.is_some_and(|have| *was == Some(&have.value).filter(|_| !is_default).cloned())
        }
        (Verb::Replace, object) => under_key(&observed, object) > 0,
        _ => true,
    }
}

/// Returns the device of each observed row under the object's key; `None` for a row without a device.
fn stands_on(scene: &Scene, object: &Object) -> Vec<Option<LinkName>> {
    let observed = &scene.kernel.rows;
    match object {
        Object::Nexthop(row) => {
            observed.nexthops.iter().filter(|have| have.id == row.id).map(|have| Some(have.link)).collect()
        }
        Object::Route(row) => {
            let rows = observed.routes.iter().filter(|have| have.cmp_key(row).is_eq());
            rows.map(|have| link_of(scene, &Object::Route(have.clone()))).collect()
        }
        object => vec![link_of(scene, object)],
    }
}

/// Returns the desired routes that exist unchanged and alone, with all that they lead through.
pub(crate) fn healthy_routes(scene: &Scene) -> Vec<Route> {
    let stays = |row: &&Route| {
        let object = Object::Route((*row).clone());
        scene.kernel.rows.routes.contains(row)
            && under_key(&scene.observed(), &object) == 1
            && !link_of(scene, &object).is_some_and(|link| scene.goes(link))
    };
    scene.desired.routes.iter().filter(stays).cloned().collect()
}

/// Returns the desired routes whose key has a row that does not go with its device.
pub(crate) fn held_keys(scene: &Scene) -> Vec<Route> {
    let stays = |row: &Route| match row.path {
        RoutePath::Nexthop(_) => !scene.next_hop_goes(row.path),
        _ => !link_of(scene, &Object::Route(row.clone())).is_some_and(|link| scene.goes(link)),
    };
    let held =
        |want: &&Route| scene.kernel.rows.routes.iter().any(|row| row.cmp_key(want).is_eq() && stays(row));
    scene.desired.routes.iter().filter(held).cloned().collect()
}

/// Returns true if the path can be used: the next hop's neighbour and FDB entry, or its object, exist.
pub(crate) fn is_reachable(have: &State, desired: &State, path: RoutePath) -> bool {
    let (gateway, link) = match path {
        RoutePath::Via { gateway, link, .. } => (gateway, link),
        RoutePath::Nexthop(id) => {
            let desired = desired.nexthops.iter().find(|row| row.id == id);
            let Some(row) = desired.filter(|row| have.nexthops.contains(row)) else { return false };
            (row.gateway, row.link)
        }
        _ => return true,
    };
    let tunnel = have.links.iter().any(|row| row.name == link && matches!(row.kind, LinkKind::Vxlan(_)));
    let mut neighbours = desired.neighbours.iter().filter(|row| row.link == link && row.address == gateway);
    !tunnel
        || neighbours.any(|row| {
            let entry = desired.fdb.iter().find(|entry| entry.link == link && entry.mac == row.mac);
            have.neighbours.contains(row) && entry.is_some_and(|entry| have.fdb.contains(entry))
        })
}

/// Checks a chosen subnet: inside the pool, aligned, and free unless it was ours before. A lease that we hold is kept even if a
/// foreign one overlaps it.
pub(crate) fn is_right_choice(
    conf: &NetConf,
    leases: &[Lease],
    me: &Requester,
    choice: &SubnetChoice,
) -> Result<(), TestCaseError> {
    let foreign = || leases.iter().filter(|lease| !me.owns(lease));
    for family in Family::ALL {
        let net = choice.subnet.of(family);
        let Some(pool) = conf.pool(family) else {
            prop_assert_eq!(net, None);
            continue;
        };
        let net = net.unwrap();
        prop_assert!(
            pool.holds(&net) && pool.network.contains(&net) && net == net.trunc(),
            "{} {}",
            net,
            pool
        );
        if choice.origin != Origin::Reused {
            // A subnet that no SubnetLen of this network gives belongs to no node.
            let lengths = pool.network.prefix_len() + 2..=pool.network.max_prefix_len() - 2;
            let is_nodes = |other: &IpNet| {
                *other == other.trunc()
                    && pool.network.contains(other)
                    && (other.prefix_len() == pool.len || lengths.contains(&other.prefix_len()))
            };
            let others = foreign().filter_map(|lease| lease.subnet.of(family)).filter(is_nodes);
            let overlap = others.into_iter().find(|other| other.contains(&net) || net.contains(other));
            prop_assert_eq!(overlap, None, "{}", net);
        }
    }
    if choice.origin == Origin::Reused {
        prop_assert!(leases.iter().any(|lease| me.owns(lease) && lease.subnet == choice.subnet));
    }
    let ours = |subnet| leases.iter().any(|lease| lease.subnet == subnet && me.owns(lease));
    prop_assert!(choice.stale.iter().all(|&subnet| ours(subnet)));
    Ok(())
}
