//! The steps from what the kernel holds to what it should hold. Pure and ordered; it walks the union of both sides once
//! per kind, so a left-over is met even when nothing wants it. What may be deleted is `owned`'s to say.

use std::collections::BTreeSet;

use crate::owned::{Owned, Sweep};
use crate::state::{Link, LinkKind, Route, RoutePath, State};
use crate::{LinkName, Object, Op, Row, Table, Verb};

/// Ops in the order in which they are to be applied; empty when nothing is to be done.
pub fn diff(wanted: &State, seen: &State, owned: &Owned) -> Vec<Op> {
    let mut steps = Steps { ops: Vec::new(), sweep: owned.sweep };
    let links = steps.links(wanted, seen, owned);
    // What stood on a link that is made anew is gone with it, and a new MAC flushes the link's neighbours.
    let gone = |link: LinkName| links.gone.contains(&link);
    let flushed = |link: LinkName| gone(link) || links.flushed.contains(&link);
    let lost = seen.nexthops.iter().filter(|row| gone(row.link)).map(|row| row.id);
    let lost: BTreeSet<u32> = lost.collect();
    let led_there = |row: &Route| match row.path {
        RoutePath::Via { link, .. } | RoutePath::Link(link) => gone(link),
        RoutePath::Nexthop(id) => lost.contains(&id),
        _ => false,
    };
    steps.sysctls(wanted, seen, gone);
    steps.rows(&wanted.addresses, &seen.addresses, |row| gone(row.link), |row| owned.address(row));
    steps.rows(&wanted.fdb, &seen.fdb, |row| gone(row.link), |row| owned.fdb(row));
    steps.rows(&wanted.neighbours, &seen.neighbours, |row| flushed(row.link), |row| owned.neighbour(row));
    steps.rows(&wanted.nexthops, &seen.nexthops, |row| gone(row.link), |row| owned.nexthop(row));
    steps.rows(&wanted.routes, &seen.routes, led_there, |row| owned.route(row));
    steps.rows(&wanted.rules, &seen.rules, |_| false, |row| owned.rule(row));
    steps.ops.sort_unstable();
    steps.ops
}

struct Steps {
    ops: Vec<Op>,
    sweep: Sweep,
}

/// Links on which less stands than was seen.
#[derive(Default)]
struct Touched {
    /// Deleted, for good or to be made anew.
    gone: Vec<LinkName>,
    /// There, but without neighbours once its MAC is changed.
    flushed: Vec<LinkName>,
}

impl Steps {
    fn push(&mut self, verb: Verb, object: impl Into<Object>) {
        self.ops.push(Op { verb, object: object.into() });
    }

    fn links(&mut self, wanted: &State, seen: &State, owned: &Owned) -> Touched {
        let mut touched = Touched::default();
        for pair in wanted.links.union(&seen.links) {
            match pair {
                ([want, ..], []) => self.create(want),
                ([want, ..], [have, ..]) if want == have || !owned.link(have) => {}
                ([want, ..], [have, ..]) if changeable(want, have) => {
                    self.change(want, have);
                    if want.mac != have.mac {
                        touched.flushed.push(want.name);
                    }
                }
                ([want, ..], [have, ..]) => {
                    self.push(Verb::Recreate, Object::Link(Box::new(have.clone())));
                    self.create(want);
                    touched.gone.push(want.name);
                }
                ([], have) => {
                    let sweep = self.sweep == Sweep::LeftOvers;
                    for link in have.iter().filter(|link| sweep && owned.link(link)) {
                        self.push(Verb::Delete, Object::Link(Box::new(link.clone())));
                        touched.gone.push(link.name);
                    }
                }
            }
        }
        touched
    }

    fn change(&mut self, want: &Link, have: &Link) {
        let changed = Link { up: have.up, ..want.clone() };
        if changed != *have {
            self.push(Verb::Replace, Object::Link(Box::new(want.clone())));
        }
        if want.up && !have.up {
            self.push(Verb::Replace, Object::LinkUp(want.name));
        }
    }

    fn create(&mut self, want: &Link) {
        self.push(Verb::Add, Object::Link(Box::new(want.clone())));
        if want.up {
            self.push(Verb::Add, Object::LinkUp(want.name));
        }
    }

    /// Sysctls are set and never unset. Those of a link that is made anew are at the kernel's defaults again.
    fn sysctls(&mut self, wanted: &State, seen: &State, gone: impl Fn(LinkName) -> bool) {
        let is_gone = |path: &str| path.split('/').any(|part| part.parse().is_ok_and(&gone));
        for pair in wanted.sysctls.union(&seen.sysctls) {
            match pair {
                ([want, ..], [have, ..]) if want == have && !is_gone(&want.path) => {}
                ([want, ..], have) => {
                    let verb = if have.is_empty() { Verb::Add } else { Verb::Replace };
                    self.push(verb, want.clone());
                }
                ([], _) => {}
            }
        }
    }

    /// One kind of row. A key we want is ours, whatever stands there and however often; elsewhere `owned` decides.
    fn rows<T: Row + Into<Object>>(
        &mut self,
        wanted: &Table<T>,
        seen: &Table<T>,
        gone: impl Fn(&T) -> bool,
        owned: impl Fn(&T) -> bool,
    ) {
        for (want, have) in wanted.union(seen) {
            let mut left: Vec<&T> = have.iter().filter(|row| !gone(row)).collect();
            match want.first() {
                Some(want) => {
                    // Of several the kernel replaces the first, and the rest has to go.
                    match left.iter().position(|row| *row == want) {
                        Some(at) => _ = left.remove(at),
                        None if left.is_empty() => self.push(Verb::Add, want.clone()),
                        None => {
                            left.remove(0);
                            self.push(Verb::Replace, want.clone());
                        }
                    }
                    left.into_iter().for_each(|row| self.push(Verb::Delete, row.clone()));
                }
                None if self.sweep == Sweep::LeftOvers => {
                    left.into_iter()
                        .filter(|row| owned(row))
                        .for_each(|row| self.push(Verb::Delete, row.clone()));
                }
                None => {}
            }
        }
    }
}

/// Can the kernel turn the one into the other in place? A vxlan's VNI, port, GBP and uplink cannot be changed, and what
/// was not understood cannot be undone.
fn changeable(want: &Link, have: &Link) -> bool {
    let (LinkKind::Vxlan(want_kind), LinkKind::Vxlan(have_kind)) = (&want.kind, &have.kind) else {
        return false;
    };
    want_kind.vni == have_kind.vni
        && want_kind.port == have_kind.port
        && want_kind.gbp == have_kind.gbp
        && want_kind.uplink == have_kind.uplink
        && want_kind.local.is_ipv4() == have_kind.local.is_ipv4()
        && have.unknown.is_none()
}
