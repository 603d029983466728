//! Rejects a plan that contradicts itself, before it reaches the kernel. It finds faults of twill itself: `desired` has
//! already left out faulty leases.

use crate::each_kind::EachKind;
use crate::op::Object;
use crate::owned::Owned;
use crate::state::{Kind, LinkKind, RoutePath, State};
use crate::table::Table;

/// Returns one line for each contradiction; the list is empty for a plan that may be applied.
pub(crate) fn check(state: &State, owned: &Owned) -> Vec<String> {
    let mut check = Check { state, owned, faults: Vec::new() };
    State::each_kind(&mut check);
    let mut faults = check.faults;
    for row in &state.neighbours {
        if state.fdb.binary_search_by_key(&(row.link, row.mac), |entry| (entry.link, entry.mac)).is_err() {
            faults
                .push(format!("neighbour {} on {} has no FDB entry for {}", row.address, row.link, row.mac));
        }
    }
    let is_vtep = |link, address| {
        state.neighbours.binary_search_by_key(&(link, address), |row| (row.link, row.address)).is_ok()
    };
    for row in &state.routes {
        match row.path {
            RoutePath::Via { gateway, link, .. } if link != owned.uplink && !is_vtep(link, gateway) => {
                faults.push(format!(
                    "route to {} goes to {gateway}, which is no neighbour on {link}",
                    row.destination
                ));
            }
            _ => {}
        }
    }
    for row in state.links.iter().filter(|row| matches!(row.kind, LinkKind::Other(_))) {
        faults.push(format!("{row} would not be ours"));
    }
    faults
}

struct Check<'a> {
    state: &'a State,
    owned: &'a Owned,
    faults: Vec<String>,
}

impl EachKind for Check<'_> {
    /// Checks that each key is desired once, and that everything that is created could be deleted again.
    fn kind<K: Kind + Into<Object>>(
        &mut self,
        table: fn(&State) -> &Table<K>,
        _: fn(&mut State) -> &mut Table<K>,
    ) {
        let rows = table(self.state);
        let twice = rows.windows(2).filter(|pair| pair[0].cmp_key(&pair[1]).is_eq());
        self.faults.extend(twice.map(|pair| format!("{} is desired twice", pair[0])));
        let foreign = rows.iter().filter(|row| !row.is_ours(self.owned, self.state));
        self.faults.extend(foreign.map(|row| format!("{row} would not be ours")));
    }
}
