//! Publishes the outcome of a pass: targets for the prober, the report for the board, counts for the metrics.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use kernel::Kind;
use plan::text::printed;
use plan::{Mac, Object, Op, Path, PeerPath};
use tracing::info;

use super::Reconciler;
use crate::backoff::Held;
use crate::probe::Targets;
use crate::report::{LastChange, peers, warnings};
use crate::round::Round;
use crate::trigger::Cause;

/// Maximum number of delayed ops in a report.
const SHOWN: usize = 1000;

impl Reconciler {
    /// Connects the report with the prober's results, so that readers see the latest ones between two passes.
    pub(super) fn show_healths(&self) {
        let healths = self.probes.healths.clone();
        self.board.send_modify(|report| Arc::make_mut(report).healths = Some((healths, Instant::now())));
    }

    /// Sends the prober its targets if they have changed, and wakes it.
    pub(super) fn tell_probes(
        &self,
        round: &mut Round,
        mac: Option<Mac>,
        suspect: bool,
        diverted: Vec<IpNet>,
    ) {
        let mtu = self.config.backend.pod_mtu(&self.node.uplink);
        let (told, links) = {
            let told = self.probes.targets.borrow();
            (told.peers.clone(), told.links + u64::from(round.causes.contains(&Cause::Kernel(Kind::Link))))
        };
        let peers = Arc::new(as_they_stand(round, &told, self.config.table));
        let targets = Targets { node: Some(self.node.clone()), mac, peers, suspect, links, mtu, diverted };
        let changed = self.probes.targets.send_if_modified(|known| {
            let changed = *known != targets;
            if changed {
                *known = targets;
            }
            changed
        });
        if changed {
            // A full socket has woken the prober already, and without a prober no byte is needed.
            let _ = (&self.probes.wake).write(&[0]);
        }
    }

    /// Updates the report and the metrics of peers after a pass. `programmed` is true if the leases were known.
    pub(super) fn publish(&mut self, round: &Round, store_lost: Option<String>, programmed: bool) {
        let paths = self.probes.targets.borrow().peers.clone();
        let switches = peers::switches(&self.board.borrow().paths, &paths);
        self.metrics.show_peers(&paths, &self.probes.healths.borrow().clone(), switches);
        self.board.send_modify(|report| {
            let report = Arc::make_mut(report);
            report.passes += 1;
            report.last_look = Some(Instant::now());
            if programmed && report.fault.is_none() && report.waiting_for.take().is_some() {
                info!("ready: {} peers", paths.len());
            }
            if !round.ops.is_empty() {
                report.last_change = Some(LastChange::of(round));
            }
            report.store_lost = store_lost.map(printed);
            report.warnings = warnings::told(&round.notes);
            report.delayed = first(&round.held);
            report.paths = paths;
        });
    }
}

/// Formats the first [`SHOWN`] ops, with a last line that counts the others.
fn first(all: &[Held]) -> Vec<String> {
    let more = all.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("and {more} more"));
    all.iter().take(SHOWN).map(printed).chain(more).collect()
}

/// Returns the peers with the paths that are in force. A peer whose route could not be set keeps its former path, or
/// `Waiting` if it had none. Replies by the former path prove nothing about the planned one.
fn as_they_stand(round: &mut Round, told: &[PeerPath], table: u32) -> Vec<PeerPath> {
    let undone = round.failed.iter().map(|(op, _)| op).chain(round.held.iter().map(|held| &held.op));
    let undone: BTreeSet<_> = undone
        .filter_map(|Op { object, .. }| match object {
            Object::Route(route) if route.table == table => Some(route.destination),
            _ => None,
        })
        .collect();
    let before = |peer: &PeerPath| {
        let at = told.binary_search_by_key(&peer.subnet, |told| told.subnet).ok()?;
        told.get(at).filter(|told| told.public_ip == peer.public_ip).map(|told| told.path)
    };
    let mut peers = std::mem::take(&mut round.peers);
    for peer in peers.iter_mut().filter(|peer| undone.contains(&peer.subnet)) {
        peer.path = before(peer).unwrap_or(Path::Waiting);
    }
    peers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plan::Verb;
    use plan::state::{Route, RoutePath};

    use super::*;
    use crate::report::peers::tests::peer;
    use crate::trigger::Causes;

    #[test]
    fn the_prober_hears_of_no_way_that_could_not_be_set() {
        let held = |number: u8, table| {
            let destination = peer(number, Path::Direct).subnet;
            let path = RoutePath::Unreachable;
            let route = Route { table, destination, path, protocol: 84, metric: 0, unknown: None };
            Held { op: Op { verb: Verb::Replace, object: Object::Route(route) }, times: 9, refusal: None }
        };
        let mut round = Round {
            causes: Causes::new(),
            ops: Vec::new(),
            failed: Vec::new(),
            held: vec![held(2, 500), held(3, 254), held(4, 254), held(5, 254)],
            notes: Vec::new(),
            peers: (2..=6).map(|number| peer(number, Path::Direct)).collect(),
            took: Duration::ZERO,
        };
        let moved = PeerPath { public_ip: [192, 0, 2, 99].into(), ..peer(4, Path::Vxlan) };
        let told = [peer(2, Path::Vxlan), peer(3, Path::Vxlan), moved, peer(6, Path::Vxlan)];
        let paths: Vec<_> = as_they_stand(&mut round, &told, 254).into_iter().map(|peer| peer.path).collect();
        assert_eq!(paths, [Path::Direct, Path::Vxlan, Path::Waiting, Path::Waiting, Path::Direct]);
    }
}
