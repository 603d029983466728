//! The steps from what the kernel holds to what it should hold. Pure and ordered; it walks the union of both sides once
//! per kind, so a left-over is met even when nothing wants it. What may be deleted is `owned`'s to say.

use std::collections::BTreeMap;

use crate::firewall::{NftChainName, NftElement};
use crate::input::Family;
use crate::owned::{Owned, Sweep};
use crate::state::{Link, LinkKind, Neighbour, Route, RoutePath, State};
use crate::{LinkName, Object, Op, Row, Setting, Table, Verb};

/// Ops in the order in which they are to be applied; empty when nothing is to be done.
pub fn diff(wanted: &State, seen: &State, owned: &Owned) -> Vec<Op> {
    let mut steps = Steps { ops: Vec::new(), sweep: owned.sweep };
    let links = steps.links(wanted, seen, owned);
    let goes = |link: LinkName| links.goes(link);
    let is_wanted = |id: u32| wanted.nexthops.binary_search_by_key(&id, |row| row.id).is_ok();
    let lost = seen.nexthops.iter().map(|row| (row.id, goes(row.link)));
    // A next hop that we want is moved off a link before that link is deleted for good.
    let goes_too = |(id, goes): &(u32, Goes)| match goes {
        Goes::Never => false,
        Goes::First => true,
        Goes::Last => !is_wanted(*id),
    };
    let lost: BTreeMap<u32, Goes> = lost.filter(goes_too).collect();
    let led_there = |row: &Route| match row.path {
        RoutePath::Via { link, .. } | RoutePath::Link(link) => goes(link),
        RoutePath::Nexthop(id) => lost.get(&id).copied().unwrap_or(Goes::Never),
        _ => Goes::Never,
    };
    steps.sysctls(wanted, seen, |link| goes(link) == Goes::First);
    steps.rows(&wanted.addresses, &seen.addresses, |row| goes(row.link), |row| owned.address(row));
    steps.rows(&wanted.fdb, &seen.fdb, |row| goes(row.link), |row| owned.fdb(row));
    let flushed =
        |row: &Neighbour| if links.flushed.contains(&row.link) { Goes::First } else { goes(row.link) };
    steps.rows(&wanted.neighbours, &seen.neighbours, flushed, |row| owned.neighbour(row));
    steps.rows(&wanted.nexthops, &seen.nexthops, |row| goes(row.link), |row| owned.nexthop(row));
    steps.rows(&wanted.routes, &seen.routes, led_there, |row| owned.route(row));
    steps.rows(&wanted.rules, &seen.rules, |_| Goes::Never, |row| owned.rule(row));
    steps.firewall(wanted, seen, owned);
    steps.ops.sort_unstable();
    steps.ops
}

struct Steps {
    ops: Vec<Op>,
    sweep: Sweep,
}

/// When a row goes without an op of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    Never,
    /// Before anything is added: its link is made anew, or flushed by a new MAC.
    First,
    /// After everything else: its link is deleted for good.
    Last,
}

/// Links on which less will stand than was seen.
#[derive(Default)]
struct Touched {
    remade: Vec<LinkName>,
    dropped: Vec<LinkName>,
    /// There, but without neighbours once the MAC is changed.
    flushed: Vec<LinkName>,
}

impl Touched {
    fn goes(&self, link: LinkName) -> Goes {
        if self.remade.contains(&link) {
            Goes::First
        } else if self.dropped.contains(&link) {
            Goes::Last
        } else {
            Goes::Never
        }
    }
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
                ([want, ..], [have, ..]) if !owned.link(have) => {}
                ([want, ..], [have, ..]) if changeable(want, have) => {
                    self.change(want, have);
                    if want.mac != have.mac {
                        touched.flushed.push(want.name);
                    }
                }
                ([want, ..], [have, ..]) => {
                    self.push(Verb::Recreate, Object::Link(Box::new(have.clone())));
                    self.create(want);
                    touched.remade.push(want.name);
                }
                ([], have) => {
                    let sweep = self.sweep == Sweep::LeftOvers;
                    for link in have.iter().filter(|link| sweep && owned.link(link)) {
                        self.push(Verb::Delete, Object::Link(Box::new(link.clone())));
                        touched.dropped.push(link.name);
                    }
                }
            }
        }
        touched
    }

    /// A set goes with the chain that looks into it.
    fn firewall(&mut self, wanted: &State, seen: &State, owned: &Owned) {
        let filtered = |row: &NftElement| {
            let family = Family::of(row.address);
            wanted
                .nft_chains
                .iter()
                .any(|chain| (chain.family, &chain.chain) == (family, &NftChainName::Vxlan))
        };
        let goes = |row: &NftElement| if filtered(row) { Goes::Never } else { Goes::Last };
        self.rows(&wanted.nft_tables, &seen.nft_tables, |_| Goes::Never, |row| owned.nft_table(row, seen));
        self.rows(&wanted.nft_chains, &seen.nft_chains, |_| Goes::Never, |row| owned.nft_chain(row));
        self.rows(&wanted.nft_elements, &seen.nft_elements, goes, |_| owned.firewall);
        self.rows(&wanted.iptables, &seen.iptables, |_| Goes::Never, |_| owned.firewall);
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
                    let was = have.first().filter(|_| !is_gone(&want.path)).map(|row| row.value.clone());
                    self.push(verb, Setting { row: want.clone(), was });
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
        goes: impl Fn(&T) -> Goes,
        owned: impl Fn(&T) -> bool,
    ) {
        for (want, have) in wanted.union(seen) {
            match want.first() {
                Some(want) => self.settle(want, have, &goes),
                None if self.sweep == Sweep::LeftOvers => {
                    have.iter()
                        .filter(|row| goes(row) == Goes::Never && owned(row))
                        .for_each(|row| self.push(Verb::Delete, row.clone()));
                }
                None => {}
            }
        }
    }

    /// Puts the wanted row, alone, where those stand. Of several all but one go at once, and the wanted row is written in
    /// any case: the kernel may delete a row that is like the one named, and replaces the one that it holds first.
    fn settle<T: Row + Into<Object>>(&mut self, want: &T, have: &[T], goes: impl Fn(&T) -> Goes) {
        let mut left: Vec<&T> = have.iter().filter(|row| goes(row) != Goes::First).collect();
        left.sort_by_key(|row| *row != want);
        match left[..] {
            [] => self.push(Verb::Add, want.clone()),
            [row] if row == want => {}
            [_, ref surplus @ ..] => {
                surplus.iter().for_each(|row| self.push(Verb::Recreate, (*row).clone()));
                self.push(Verb::Replace, want.clone());
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
