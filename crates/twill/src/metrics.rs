//! Counters and gauges under OpenMetrics names. The reconcile loop updates them; values about the store are read for
//! each scrape.

mod current;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use plan::health::{Finding, Health};
use plan::{Path, PeerPath};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use store::ConnectionStats;

use crate::pass::Pass;
use crate::report::peers::{health_of, state};
use current::Current;

/// Label of series by kind of kernel object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

/// Label of series by path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPath {
    path: &'static str,
}

/// Label of series by peer health.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByFinding {
    finding: &'static str,
}

/// Label of series by the path that peers have switched to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByNewPath {
    to: &'static str,
}

/// Labels of one peer; only peers with a fault have a series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPeer {
    node: String,
    subnet: String,
    finding: &'static str,
}

/// Label of series by the reason of a warning.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: String,
}

/// Maximum number of series for single peers.
const FAULTS: usize = 50;

type PreciseGauge = Gauge<f64, AtomicU64>;

/// All metrics of the daemon.
pub(crate) struct Metrics {
    registry: Registry,
    passes: Counter,
    pass_seconds: Histogram,
    ops: Family<ByKind, Counter>,
    failed_ops: Family<ByKind, Counter>,
    delayed_ops: Gauge,
    peers: Family<ByPath, Gauge>,
    findings: Current<ByFinding>,
    peer_faults: Current<ByPeer>,
    switches: Family<ByNewPath, Counter>,
    warnings: Current<ByReason>,
    store_lost: Gauge,
    store_age: PreciseGauge,
    watch_restarts: Counter,
    lists: Counter,
    stats: OnceLock<Arc<ConnectionStats>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("twill");
        let seconds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];
        let metrics = Self {
            passes: Counter::default(),
            pass_seconds: Histogram::new(seconds),
            ops: Family::default(),
            failed_ops: Family::default(),
            delayed_ops: Gauge::default(),
            peers: Family::default(),
            findings: Current::default(),
            peer_faults: Current::default(),
            switches: Family::default(),
            warnings: Current::default(),
            store_lost: Gauge::default(),
            store_age: PreciseGauge::default(),
            watch_restarts: Counter::default(),
            lists: Counter::default(),
            stats: OnceLock::new(),
            registry: Registry::default(),
        };
        registry.register("passes", "Reconcile passes", metrics.passes.clone());
        let help = "Time of a reconcile pass, changes included";
        registry.register_with_unit("pass", help, Unit::Seconds, metrics.pass_seconds.clone());
        registry.register("ops", "Ops sent to the kernel", metrics.ops.clone());
        registry.register("failed_ops", "Ops that the kernel refused", metrics.failed_ops.clone());
        let help = "Ops that are delayed because they are refused or undone again and again";
        registry.register("delayed_ops", help, metrics.delayed_ops.clone());
        registry.register("peers", "Peers by path", metrics.peers.clone());
        let help = "Peers by finding of the probes";
        registry.register("peers_by_finding", help, metrics.findings.family());
        let help = "1 for each peer with a fault, at most 50, those that have answered first";
        registry.register("peer_fault", help, metrics.peer_faults.family());
        let help = "Peers that probes have moved to the direct path or to the tunnel";
        registry.register("path_switches", help, metrics.switches.clone());
        let help = "Current warnings by reason";
        registry.register("warnings", help, metrics.warnings.family());
        registry.register("store_lost", "1 while the store does not answer", metrics.store_lost.clone());
        let help = "Time since the store last answered";
        registry.register_with_unit("store_age", help, Unit::Seconds, metrics.store_age.clone());
        let help = "Watches of the store that were started again";
        registry.register("store_watch_restarts", help, metrics.watch_restarts.clone());
        registry.register("store_lists", "Complete lists of leases that were read", metrics.lists.clone());
        Self { registry, ..metrics }
    }

    /// Returns the text that `/metrics` answers.
    pub(crate) fn text(&self) -> String {
        if let Some(stats) = self.stats.get() {
            self.store_age.set(stats.age().map_or(f64::INFINITY, |age| age.as_secs_f64()));
            catch_up(&self.watch_restarts, stats.restarts());
            catch_up(&self.lists, stats.lists());
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Sets the store's counters, which `text` reads. Only the first call has an effect.
    pub(crate) fn set_store_stats(&self, stats: Arc<ConnectionStats>) {
        let _ = self.stats.set(stats);
    }

    /// Counts a pass with its ops, and shows its delayed ops and warnings.
    pub(crate) fn count(&self, pass: &Pass) {
        self.passes.inc();
        self.pass_seconds.observe(pass.duration.as_secs_f64());
        for op in &pass.ops {
            self.ops.get_or_create(&ByKind { kind: op.object.kind() }).inc();
        }
        for (op, _) in &pass.failed {
            self.failed_ops.get_or_create(&ByKind { kind: op.object.kind() }).inc();
        }
        self.delayed_ops.set(pass.delayed.len() as i64);
        self.warnings.count(pass.warnings.iter().map(|warning| ByReason { reason: warning.reason() }));
    }

    /// Shows the peers by path and by health, and the first [`FAULTS`] faulty ones. `switches` counts peers that have
    /// just switched between direct and a tunnel, by their present path.
    pub(crate) fn show_peers(&self, peers: &[PeerPath], healths: &[Health], switches: &[(Path, u64)]) {
        for path in Path::all() {
            let count = peers.iter().filter(|peer| peer.path == path).count();
            self.peers.get_or_create(&ByPath { path: path.label() }).set(count as i64);
        }
        let always = [Finding::Healthy, Finding::Unverified];
        let mut counts = HashMap::from(always.map(|finding| (ByFinding { finding: finding.name() }, 0)));
        let mut faults = Vec::new();
        for peer in peers {
            let health = health_of(healths, peer);
            let (finding, fault) = state(peer, health.map(|health| &health.peer.finding));
            *counts.entry(ByFinding { finding }).or_default() += 1;
            if fault {
                faults.push((health.is_none_or(|health| health.latency.is_none()), peer, finding));
            }
        }
        // Leases that nobody stands behind must not hide the fault of a peer that has answered.
        faults.sort_by_key(|(never_answered, ..)| *never_answered);
        self.peer_faults.count(faults.into_iter().take(FAULTS).map(|(_, peer, finding)| {
            let (node, subnet) = (peer.public_ip.to_string(), peer.subnet.to_string());
            ByPeer { node, subnet, finding }
        }));
        self.findings.set(counts);
        for (path, count) in switches {
            self.switches.get_or_create(&ByNewPath { to: path.label() }).inc_by(*count);
        }
    }

    /// Shows whether the store is lost.
    pub(crate) fn show_store_lost(&self, lost: bool) {
        self.store_lost.set(i64::from(lost));
    }
}

fn catch_up(counter: &Counter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use plan::TunnelKind;

    use super::*;
    use crate::report::peers::tests::{health, peer};

    #[test]
    fn at_most_50_faulty_peers_have_a_fault_series() {
        let metrics = Metrics::new();
        let silent = Finding::Silent { node: [192, 0, 2, 1].into() };
        // The first `healthy` of sixty peers are healthy.
        let shown = |healthy: u8| -> Vec<u8> {
            let finding = |number| if number <= healthy { Finding::Healthy } else { silent };
            let peers: Vec<_> =
                (1..=60).map(|number| peer(number, Path::Tunnel(TunnelKind::Vxlan))).collect();
            let healths: Vec<_> = (1..=60).map(|number| health(number, finding(number))).collect();
            metrics.show_peers(&peers, &healths, &[]);
            let text = metrics.text();
            let series = |number| {
                let by = format!(r#"node="192.0.2.{number}",subnet="10.244.{number}.0/24",finding="silent""#);
                text.contains(&format!("twill_peer_fault{{{by}}} 1\n"))
            };
            let shown: Vec<_> = (1..=60).filter(|number| series(*number)).collect();
            assert_eq!(text.matches("twill_peer_fault{").count(), shown.len(), "{text}");
            shown
        };
        assert_eq!(shown(3), (4..=53).collect::<Vec<_>>());
        assert_eq!(shown(58), [59, 60]);
        assert!(shown(60).is_empty());
    }

    #[test]
    fn the_fault_of_a_peer_that_has_answered_is_shown_beside_any_number_of_others() {
        let metrics = Metrics::new();
        let silent = Finding::Silent { node: [192, 0, 2, 1].into() };
        let peers: Vec<_> = (1..=60).map(|number| peer(number, Path::Tunnel(TunnelKind::Vxlan))).collect();
        let health = |number| {
            let health = health(number, silent);
            Health { latency: health.latency.filter(|_| number == 60), ..health }
        };
        let healths: Vec<_> = (1..=60).map(health).collect();
        metrics.show_peers(&peers, &healths, &[]);
        let text = metrics.text();
        assert_eq!(text.matches("twill_peer_fault{").count(), FAULTS, "{text}");
        assert!(text.contains(r#"subnet="10.244.60.0/24""#), "{text}");
    }
}
