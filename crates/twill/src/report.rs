//! Report for people and probes about this daemon: one value, replaced after each pass. `twill status` prints it and
//! `/readyz` answers from it; the plan does not depend on it.

pub(crate) mod peers;
pub(crate) mod warnings;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plan::PeerPath;
use plan::backend::Direct;
use plan::config::Config;
use plan::node::Node;
use plan::underlay::UnknownSender;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::pass::{self, Pass};
use crate::probe::Healths;
pub(crate) use peers::PeerReport;
use warnings::WarningReport;

/// Format of the report; it grows when a field changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// Time for which a fault does not end readiness, since a repair may be under way.
const FAULT_GRACE: Duration = Duration::from_secs(5);
/// Time without a pass after which the reconcile loop counts as stalled. Passes come at least every 30 s.
const STALL_TIMEOUT: Duration = Duration::from_secs(90);

/// State of this node, as `GET /status` and `twill status --json` give it:
///
/// ```json
/// {"format":1,"version":"0.1.0","pid":812,"not_ready":null,"waiting_for":null,"node":{...},"store_lost":null,"fault":null,
///  "firewall":"...","unknown_senders":[],"peers":[...],"warnings":[],"delayed":[],"passes":7,"last_change":{...}}
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Reason why this node is not ready, at the moment of the answer.
    pub(crate) not_ready: Option<String>,
    /// Event that the start waits for; `None` once the start is complete.
    pub(crate) waiting_for: Option<String>,
    pub(crate) node: Option<NodeReport>,
    /// Reason why the store cannot be reached; `None` while it can.
    pub(crate) store_lost: Option<String>,
    /// Fault of this node's own part: device, address, subnet file or traffic rules.
    pub(crate) fault: Option<String>,
    #[serde(skip)]
    pub(crate) fault_since: Option<Instant>,
    #[serde(skip)]
    pub(crate) last_pass: Option<Instant>,
    /// Manager of the traffic rules and the reason for it; `None` if there are no rules.
    pub(crate) firewall: Option<String>,
    /// Addresses that send VXLAN packets and belong to no peer.
    pub(crate) unknown_senders: Vec<UnknownSender>,
    /// Peers with their health, filled in when the report is read.
    pub(crate) peers: Vec<PeerReport>,
    /// Paths after the last pass, sorted by subnet.
    #[serde(skip)]
    pub(crate) paths: Arc<Vec<PeerPath>>,
    /// Latest health of the peers, and the time from which its times count.
    #[serde(skip)]
    pub(crate) healths: Option<(watch::Receiver<Healths>, Instant)>,
    /// Warnings of the last pass, those about this node first.
    pub(crate) warnings: Vec<WarningReport>,
    /// Ops that keep coming back and are delayed.
    pub(crate) delayed: Vec<String>,
    /// Number of reconcile passes since the start.
    pub(crate) passes: u64,
    pub(crate) last_change: Option<LastChange>,
}

/// This node's place in the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) backend: String,
    /// Rule by which peers with a tunnel are reached without it.
    pub(crate) direct: Direct,
    /// Source of the backend's type: a flag's source, `network config` or `default`.
    pub(crate) backend_source: String,
    pub(crate) networks: Vec<String>,
    /// MTU of pods, bytes.
    pub(crate) mtu: u32,
    pub(crate) identity: Node,
    /// Reason for the choice of the uplink.
    pub(crate) uplink_reason: String,
}

/// Last pass that had any ops.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LastChange {
    /// Time of the pass in seconds since 1970.
    pub(crate) unix_time: u64,
    pub(crate) causes: String,
    pub(crate) ops: usize,
    pub(crate) failed: usize,
    pub(crate) milliseconds: u64,
}

/// Current report; one writer, any number of readers.
pub(crate) type ReportSender = watch::Sender<Arc<Report>>;

/// Returns the sender of a report that waits for `start`.
pub(crate) fn new_sender() -> ReportSender {
    watch::Sender::new(Arc::new(Report {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        not_ready: None,
        waiting_for: Some("start".into()),
        node: None,
        store_lost: None,
        fault: None,
        fault_since: None,
        last_pass: None,
        firewall: None,
        unknown_senders: Vec::new(),
        peers: Vec::new(),
        paths: Arc::default(),
        healths: None,
        warnings: Vec::new(),
        delayed: Vec::new(),
        passes: 0,
        last_change: None,
    }))
}

/// Reports what the start waits for.
pub(crate) fn wait_for(report_sender: &ReportSender, what: &str) {
    report_sender.send_modify(|report| Arc::make_mut(report).waiting_for = Some(what.into()));
}

impl NodeReport {
    pub(crate) fn new(config: &Config, node: &Node, uplink_reason: String, backend_source: String) -> Self {
        Self {
            backend: config.backend.name().into(),
            direct: config.backend.direct(),
            backend_source,
            networks: config.networks().map(|network| network.to_string()).collect(),
            mtu: config.backend.pod_mtu(&node.uplink),
            identity: node.clone(),
            uplink_reason,
        }
    }
}

impl LastChange {
    pub(crate) fn of(pass: &Pass) -> Self {
        Self {
            // The time is for people; nothing is decided by it.
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            causes: pass::join_causes(&pass.causes),
            ops: pass.ops.len(),
            failed: pass.failed.len(),
            milliseconds: pass.duration.as_millis() as u64,
        }
    }
}

impl Report {
    /// Sets the fault of this node's own part, and its beginning.
    pub(crate) fn set_fault(&mut self, fault: Option<(String, Instant)>) {
        (self.fault, self.fault_since) = fault.unzip();
    }

    /// Returns an error with the reason if this node's own part is not in order. Peers and the store never count
    /// (ARCHITECTURE.md, invariant 13).
    pub(crate) fn readiness(&self) -> Result<(), String> {
        if let Some(what) = &self.waiting_for {
            return Err(self.fault.clone().unwrap_or_else(|| format!("waiting for {what}")));
        }
        if let Some(silence) =
            self.last_pass.map(|at| at.elapsed()).filter(|silence| *silence > STALL_TIMEOUT)
        {
            return Err(format!(
                "the last reconcile pass was {} s ago: the reconcile loop is stalled",
                silence.as_secs()
            ));
        }
        match (&self.fault, self.fault_since) {
            (Some(fault), Some(since)) if since.elapsed() > FAULT_GRACE => Err(fault.clone()),
            _ => Ok(()),
        }
    }

    /// Returns the report with the readiness and the peers of this moment.
    pub(crate) fn current(&self) -> Self {
        let healths = self.healths.as_ref();
        let (known, now) = healths
            .map_or_else(Default::default, |(healths, since)| (healths.borrow().clone(), since.elapsed()));
        let peers = peers::reported(&self.paths, &known, now);
        Self { not_ready: self.readiness().err(), peers, ..self.clone() }
    }
}
