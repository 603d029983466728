//! Refuses a plan that contradicts itself, before it reaches the kernel. It finds faults of ours, not of the leases:
//! `wanted` has dealt with those.

use crate::owned::Owned;
use crate::state::{LinkKind, RoutePath, State};
use crate::{Row, Table};

/// What is contradictory, one line each; empty for a plan that may be applied.
pub fn check(state: &State, owned: &Owned) -> Vec<String> {
    let mut faults = Vec::new();
    once(&state.links, &mut faults, ToString::to_string);
    once(&state.addresses, &mut faults, |row| format!("{} on {}", row.address, row.link));
    once(&state.fdb, &mut faults, |row| format!("FDB entry {} on {}", row.mac, row.link));
    once(&state.neighbours, &mut faults, |row| format!("neighbour {} on {}", row.address, row.link));
    once(&state.nexthops, &mut faults, |row| format!("nexthop {}", row.id));
    once(&state.routes, &mut faults, |row| format!("route to {}", row.destination));
    once(&state.rules, &mut faults, |row| format!("rule for {}", row.to));
    once(&state.nft_chains, &mut faults, ToString::to_string);
    once(&state.nft_elements, &mut faults, ToString::to_string);
    once(&state.iptables, &mut faults, ToString::to_string);
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
    unowned(state, owned, &mut faults);
    faults
}

fn once<T: Row>(rows: &Table<T>, faults: &mut Vec<String>, name: impl Fn(&T) -> String) {
    for pair in rows.windows(2).filter(|pair| pair[0].cmp_key(&pair[1]).is_eq()) {
        faults.push(format!("{} is wanted twice", name(&pair[0])));
    }
}

/// What we would create and could never delete again.
fn unowned(state: &State, owned: &Owned, faults: &mut Vec<String>) {
    let mut refuse = |what: String| faults.push(format!("{what} would not be ours"));
    state.links.iter().filter(|row| !owned.link(row)).for_each(|row| refuse(row.to_string()));
    state
        .links
        .iter()
        .filter(|row| matches!(row.kind, LinkKind::Other(_)))
        .for_each(|row| refuse(row.to_string()));
    state.addresses.iter().filter(|row| !owned.address(row)).for_each(|row| refuse(row.address.to_string()));
    state.fdb.iter().filter(|row| !owned.fdb(row)).for_each(|row| refuse(row.mac.to_string()));
    state
        .neighbours
        .iter()
        .filter(|row| !owned.neighbour(row))
        .for_each(|row| refuse(row.address.to_string()));
    state.nexthops.iter().filter(|row| !owned.nexthop(row)).for_each(|row| refuse(row.id.to_string()));
    state.routes.iter().filter(|row| !owned.route(row)).for_each(|row| refuse(row.to_string()));
    state.rules.iter().filter(|row| !owned.rule(row)).for_each(|row| refuse(row.to.to_string()));
}
