//! Publishes the outcome of a pass: targets for the prober, the report for its readers, counts for the metrics.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use kernel::Change;
use plan::state::Link;
use plan::text::printed;
use plan::{Object, Op, Path, PeerPath};
use tracing::info;

use super::{Reconciler, UplinkState};
use crate::backoff::DelayedOp;
use crate::pass::Pass;
use crate::probe::Targets;
use crate::report::{LastChange, peers, warnings};
use crate::trigger::{Cause, Causes};

/// Maximum number of delayed ops in a report.
const MAX_REPORTED: usize = 1000;

impl Reconciler {
    /// Connects the report with the prober's results, so that readers see the latest ones between two passes.
    pub(super) fn connect_healths(&self) {
        let healths = self.probes.healths.clone();
        self.report_sender
            .send_modify(|report| Arc::make_mut(report).healths = Some((healths, Instant::now())));
    }

    /// Sends the prober its targets if they have changed, and wakes it.
    pub(super) fn send_targets(
        &mut self,
        causes: &Causes,
        peers: &Arc<Vec<PeerPath>>,
        uplink: UplinkState,
        diverted: Vec<IpNet>,
    ) {
        self.memory.link_changes += u64::from(causes.contains(&Cause::Kernel(Change::of::<Link>())));
        let targets = Targets {
            node: Some(self.node.clone()),
            mac: uplink.mac,
            peers: peers.clone(),
            suspect: uplink.is_suspect,
            links: self.memory.link_changes,
            mtu: self.config.backend.pod_mtu(&self.node.uplink),
            diverted,
        };
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

    /// Updates the metrics after a pass.
    pub(super) fn count(&mut self, pass: &Pass, peers: &[PeerPath], is_store_lost: bool) {
        self.metrics.count(pass);
        self.metrics.show_store_lost(is_store_lost);
        let switches = peers::switches(&self.memory.peers, peers);
        self.metrics.show_peers(peers, &self.probes.healths.borrow().clone(), &switches);
    }

    /// Updates the report after a pass, and remembers the peers for the next one. `is_programmed` is true if the leases were
    /// known.
    pub(super) fn publish(
        &mut self,
        pass: &Pass,
        peers: Arc<Vec<PeerPath>>,
        store_lost: Option<String>,
        is_programmed: bool,
    ) {
        let memory = &mut self.memory;
        memory.passes += 1;
        let is_ready = is_programmed && memory.fault.is_none();
        if is_ready && !std::mem::replace(&mut memory.was_ready, true) {
            info!("ready: {} peers", peers.len());
        }
        memory.peers = peers.clone();
        self.report_sender.send_modify(|report| {
            let report = Arc::make_mut(report);
            report.passes = memory.passes;
            report.last_pass = Some(Instant::now());
            if is_ready {
                report.waiting_for = None;
            }
            if !pass.ops.is_empty() {
                report.last_change = Some(LastChange::of(pass));
            }
            report.store_lost = store_lost.map(printed);
            report.warnings = warnings::reported(&pass.warnings);
            report.delayed = first(&pass.delayed);
            report.paths = peers;
        });
    }
}

/// Formats the first [`MAX_REPORTED`] ops, with a last line that counts the others.
fn first(all: &[DelayedOp]) -> Vec<String> {
    let more = all.len().saturating_sub(MAX_REPORTED);
    let more = (more > 0).then(|| format!("and {more} more"));
    all.iter().take(MAX_REPORTED).map(printed).chain(more).collect()
}

/// Returns the peers of a plan with the paths that are in force after it. A peer whose route could not be set keeps
/// its path of the `last` pass, or else is `Waiting`. Replies by the former path prove nothing about the planned one.
pub(super) fn in_force(
    mut planned: Vec<PeerPath>,
    pass: &Pass,
    last: &[PeerPath],
    table: u32,
) -> Vec<PeerPath> {
    let undone = pass.failed.iter().map(|(op, _)| op).chain(pass.delayed.iter().map(|delayed| &delayed.op));
    let undone: BTreeSet<_> = undone
        .filter_map(|Op { object, .. }| match object {
            Object::Route(route) if route.table == table => Some(route.destination),
            _ => None,
        })
        .collect();
    let before = |peer: &PeerPath| {
        let at = last.binary_search_by_key(&peer.subnet, |last| last.subnet).ok()?;
        last.get(at).filter(|last| last.public_ip == peer.public_ip).map(|last| last.path)
    };
    for peer in planned.iter_mut().filter(|peer| undone.contains(&peer.subnet)) {
        peer.path = before(peer).unwrap_or(Path::Waiting);
    }
    planned
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plan::state::{Route, RoutePath};
    use plan::{TunnelKind, Verb};

    use super::*;
    use crate::report::peers::tests::peer;

    #[test]
    fn the_prober_gets_no_path_that_could_not_be_set() {
        let delayed = |number: u8, table| {
            let destination = peer(number, Path::Direct).subnet;
            let path = RoutePath::Unreachable;
            let route = Route { table, destination, path, protocol: 84, metric: 0, unknown: None };
            DelayedOp {
                op: Op { verb: Verb::Replace, object: Object::Route(route) },
                times: 9,
                refusal: None,
            }
        };
        let pass = Pass {
            causes: Causes::new(),
            ops: Vec::new(),
            failed: Vec::new(),
            delayed: vec![delayed(2, 500), delayed(3, 254), delayed(4, 254), delayed(5, 254)],
            warnings: Vec::new(),
            duration: Duration::ZERO,
        };
        let moved =
            PeerPath { public_ip: [192, 0, 2, 99].into(), ..peer(4, Path::Tunnel(TunnelKind::Vxlan)) };
        let planned = (2..=6).map(|number| peer(number, Path::Direct)).collect();
        let last = [
            peer(2, Path::Tunnel(TunnelKind::Vxlan)),
            peer(3, Path::Tunnel(TunnelKind::Vxlan)),
            moved,
            peer(6, Path::Tunnel(TunnelKind::Vxlan)),
        ];
        let paths: Vec<_> = in_force(planned, &pass, &last, 254).into_iter().map(|peer| peer.path).collect();
        assert_eq!(
            paths,
            [Path::Direct, Path::Tunnel(TunnelKind::Vxlan), Path::Waiting, Path::Waiting, Path::Direct]
        );
    }
}
