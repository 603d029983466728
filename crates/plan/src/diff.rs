//! Computes the ops that lead from the observed state to the desired one, in order and without side effects. It walks the
//! union of both sides once per kind, so it finds left-overs under keys that nothing desires. [`Kind::is_ours`] decides
//! which of them may be deleted.

use crate::each_kind::EachKind;
use crate::family::Family;
use crate::op::{Object, Op, Verb};
use crate::owned::{Owned, Sweep};
use crate::state::{Goes, Kind, Link, LinkKind, Losses, Setting, State, Sysctl};
use crate::table::Table;

/// Returns the ops in the order in which they are to be applied; empty if nothing has to change.
pub fn diff(desired: &State, observed: &State, owned: &Owned) -> Vec<Op> {
    let mut steps = Steps { desired, observed, owned, losses: Losses::default(), ops: Vec::new() };
    // Links, next hops and chains take other rows along, so their losses must be known before those rows are compared.
    steps.links();
    steps.lose_nexthops();
    steps.lose_elements();
    steps.sysctls();
    State::each_kind(&mut steps);
    steps.ops.sort_unstable();
    steps.ops
}

struct Steps<'a> {
    desired: &'a State,
    observed: &'a State,
    owned: &'a Owned,
    losses: Losses,
    ops: Vec<Op>,
}

impl EachKind for Steps<'_> {
    /// Handles every kind but links and sysctls, which have [`Steps::links`] and [`Steps::sysctls`].
    fn kind<K: Kind + Into<Object>>(
        &mut self,
        table: fn(&State) -> &Table<K>,
        _: fn(&mut State) -> &mut Table<K>,
    ) {
        if ![Link::NAME, Sysctl::NAME].contains(&K::NAME) {
            self.rows(table(self.desired), table(self.observed));
        }
    }
}

impl Steps<'_> {
    fn push(&mut self, verb: Verb, object: impl Into<Object>) {
        self.ops.push(Op { verb, object: object.into() });
    }

    fn sweeps(&self) -> bool {
        self.owned.sweep == Sweep::LeftOvers
    }

    fn links(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        let (owned, sweeps) = (self.owned, self.sweeps());
        for pair in desired.links.union(&observed.links) {
            match pair {
                ([want, ..], []) => self.create(want),
                ([want, ..], [have, ..]) if !have.is_ours(owned, observed) => {}
                ([want, ..], [have, ..]) if changeable(want, have) => {
                    self.change(want, have);
                    if want.mac != have.mac {
                        self.losses.flushed.push(want.name);
                    }
                }
                ([want, ..], [have, ..]) => {
                    self.push(Verb::Recreate, have.clone());
                    self.create(want);
                    self.losses.remade.push(want.name);
                }
                ([], have) => {
                    for link in have.iter().filter(|link| sweeps && link.is_ours(owned, observed)) {
                        self.push(Verb::Delete, link.clone());
                        self.losses.dropped.push(link.name);
                    }
                }
            }
        }
    }

    /// Finds the next hops that disappear with their link. A desired next hop is moved off a link before that link is
    /// deleted for good.
    fn lose_nexthops(&mut self) {
        let is_desired = |id: u32| self.desired.nexthops.binary_search_by_key(&id, |row| row.id).is_ok();
        let lost = self.observed.nexthops.iter().map(|row| (row.id, self.losses.of_link(row.link)));
        let lost = lost.filter(|(id, goes)| match goes {
            Goes::Never => false,
            Goes::First => true,
            Goes::Last => !is_desired(*id),
        });
        self.losses.nexthops = lost.collect();
    }

    /// Finds the families whose set of senders disappears, since no chain that uses the set is desired.
    fn lose_elements(&mut self) {
        let filters = |family: Family| {
            let mut chains = self.desired.nft_chains.iter();
            chains.any(|chain| chain.family == family && chain.chain.is_filter())
        };
        self.losses.unfiltered = Family::ALL.into_iter().filter(|family| !filters(*family)).collect();
    }

    fn change(&mut self, want: &Link, have: &Link) {
        let changed = Link { up: have.up, ..want.clone() };
        if changed != *have {
            self.push(Verb::Replace, want.clone());
        }
        if want.up && !have.up {
            self.push(Verb::Replace, Object::LinkUp(want.name));
        }
    }

    fn create(&mut self, want: &Link) {
        self.push(Verb::Add, want.clone());
        if want.up {
            self.push(Verb::Add, Object::LinkUp(want.name));
        }
    }

    /// Writes the desired sysctls that differ; no sysctl is ever unset. Sysctls of a link that is created again are back
    /// at the kernel's defaults, so they are written again.
    fn sysctls(&mut self) {
        let is_of_remade = |path: &str| {
            path.split('/').any(|part| part.parse().is_ok_and(|link| self.losses.remade.contains(&link)))
        };
        let (mut changes, desired, observed) = (Vec::new(), &self.desired.sysctls, &self.observed.sysctls);
        for pair in desired.union(observed) {
            match pair {
                ([want, ..], [have, ..]) if want == have && !is_of_remade(&want.path) => {}
                ([want, ..], have) => {
                    let verb = if have.is_empty() { Verb::Add } else { Verb::Replace };
                    let was = have.first().filter(|_| !is_of_remade(&want.path)).map(|row| row.value.clone());
                    changes.push((verb, Setting { row: want.clone(), was }));
                }
                ([], _) => {}
            }
        }
        changes.into_iter().for_each(|(verb, setting)| self.push(verb, setting));
    }

    /// Compares the rows of one kind. A desired key is ours, whatever and however often the kernel holds it. Elsewhere
    /// the kind decides.
    fn rows<K: Kind + Into<Object>>(&mut self, desired: &Table<K>, observed: &Table<K>) {
        for (want, have) in desired.union(observed) {
            match want.first() {
                Some(want) => self.settle(want, have),
                None if self.sweeps() => {
                    let left_over = |row: &&K| {
                        row.goes(&self.losses) == Goes::Never && row.is_ours(self.owned, self.observed)
                    };
                    let left_over: Vec<&K> = have.iter().filter(left_over).collect();
                    left_over.into_iter().for_each(|row| self.push(Verb::Delete, row.clone()));
                }
                None => {}
            }
        }
    }

    /// Makes the desired row the only one under its key, where the kernel holds the rows `have`. Of several rows all but
    /// one are deleted first. Then the desired row is written in any case. The kernel may delete another row that
    /// resembles the named one, and it replaces the first row that it holds.
    fn settle<K: Kind + Into<Object>>(&mut self, want: &K, have: &[K]) {
        let mut left: Vec<&K> = have.iter().filter(|row| row.goes(&self.losses) != Goes::First).collect();
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

/// Returns true if the kernel can change `have` into `want` in place. It cannot change a vxlan's VNI, port, GBP, uplink
/// or address family. It also cannot remove an attribute that was not understood.
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
