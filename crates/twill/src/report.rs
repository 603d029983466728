//! What a person or a probe may know of this daemon: one value, replaced whole after each round. It is what `twill
//! status` prints, what `/readyz` answers, and nothing that the plan depends on.

pub(crate) mod peers;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plan::PeerPath;
use plan::backend::vxlan::Direct;
use plan::firewall::Stranger;
use plan::input::{Config, Family, Node};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::probe::Healths;
use crate::round::{self, Round};
pub(crate) use peers::PeerReport;

/// Grows when a field changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// A repair under way does not turn readiness off before this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rounds come at least every 30 s; without any for so long they hang.
const SILENCE: Duration = Duration::from_secs(90);

/// The state of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Why this node is not ready, at the moment of the answer.
    pub(crate) not_ready: Option<String>,
    /// What is waited for before the first round; `None` afterwards.
    pub(crate) waiting_for: Option<String>,
    pub(crate) node: Option<NodeReport>,
    /// Why the store cannot be heard.
    pub(crate) store_lost: Option<String>,
    /// Of this node's own part: device, address, subnet file.
    pub(crate) fault: Option<String>,
    #[serde(skip)]
    pub(crate) fault_since: Option<Instant>,
    #[serde(skip)]
    pub(crate) last_look: Option<Instant>,
    /// Who enforces the traffic rules, and why; `None` where there are none.
    #[serde(default)]
    pub(crate) firewall: Option<String>,
    /// Who sends VXLAN and is no peer.
    #[serde(default)]
    pub(crate) strangers: Vec<Stranger>,
    /// As they are told.
    pub(crate) peers: Vec<PeerReport>,
    /// As the last round left them, by subnet.
    #[serde(skip)]
    pub(crate) paths: Arc<Vec<PeerPath>>,
    /// What is known of them at any moment, and since when it is asked for.
    #[serde(skip)]
    pub(crate) healths: Option<(watch::Receiver<Healths>, Instant)>,
    pub(crate) notes: Vec<String>,
    /// Ops that keep coming back and are put off.
    pub(crate) held: Vec<String>,
    pub(crate) rounds: u64,
    pub(crate) last_change: Option<LastChange>,
}

/// What this node is in the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) backend: String,
    /// Which of the peers with a tunnel are reached without it.
    #[serde(default)]
    pub(crate) direct: Direct,
    /// Who chose its type.
    #[serde(default)]
    pub(crate) backend_source: String,
    pub(crate) networks: Vec<String>,
    pub(crate) mtu: u32,
    pub(crate) node: Node,
    /// Why this uplink.
    pub(crate) uplink_reason: String,
}

/// The last round that had anything to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LastChange {
    /// Seconds since 1970.
    pub(crate) unix_time: u64,
    pub(crate) causes: String,
    pub(crate) ops: usize,
    pub(crate) failed: usize,
    pub(crate) milliseconds: u64,
}

/// Where the report stands; one writer, any number of readers.
pub(crate) type Board = watch::Sender<Arc<Report>>;

/// A board that says "starting".
pub(crate) fn board() -> Board {
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
        last_look: None,
        firewall: None,
        strangers: Vec::new(),
        peers: Vec::new(),
        paths: Arc::default(),
        healths: None,
        notes: Vec::new(),
        held: Vec::new(),
        rounds: 0,
        last_change: None,
    }))
}

/// Says what is waited for.
pub(crate) fn wait_for(board: &Board, what: &str) {
    board.send_modify(|report| Arc::make_mut(report).waiting_for = Some(what.into()));
}

impl NodeReport {
    pub(crate) fn new(config: &Config, node: &Node, uplink_reason: String, backend_source: String) -> Self {
        let networks = Family::ALL.into_iter().filter_map(|family| config.network(family));
        Self {
            backend: config.backend.name().into(),
            direct: config.backend.direct(),
            backend_source,
            networks: networks.map(|network| network.to_string()).collect(),
            mtu: config.backend.pod_mtu(&node.uplink),
            node: node.clone(),
            uplink_reason,
        }
    }
}

impl LastChange {
    pub(crate) fn of(round: &Round) -> Self {
        Self {
            // For people; nothing is decided by it.
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            causes: round::list(&round.causes),
            ops: round.ops.len(),
            failed: round.failed.len(),
            milliseconds: round.took.as_millis() as u64,
        }
    }
}

impl Report {
    /// Shows another network config or uplink; without a reason the uplink is chosen for the one that it was.
    pub(crate) fn show(&mut self, config: &Config, node: &Node, reason: Option<String>, source: String) {
        let before = || self.node.take().map(|node| node.uplink_reason).unwrap_or_default();
        let reason = reason.unwrap_or_else(before);
        self.node = Some(NodeReport::new(config, node, reason, source));
    }

    /// Says what is wrong with this node's own part, and since when.
    pub(crate) fn set_fault(&mut self, fault: Option<(String, Instant)>) {
        (self.fault, self.fault_since) = fault.unzip();
    }

    /// Is this node's own part in order? Peers and the store never count (ARCHITECTURE.md, invariant 13).
    pub(crate) fn readiness(&self) -> Result<(), String> {
        if let Some(what) = &self.waiting_for {
            return Err(self.fault.clone().unwrap_or_else(|| format!("waiting for {what}")));
        }
        if let Some(silence) = self.last_look.map(|at| at.elapsed()).filter(|silence| *silence > SILENCE) {
            return Err(format!("the kernel was last looked at {} s ago: rounds hang", silence.as_secs()));
        }
        match (&self.fault, self.fault_since) {
            (Some(fault), Some(since)) if since.elapsed() > PATIENCE => Err(fault.clone()),
            _ => Ok(()),
        }
    }

    /// The report as it is told: with what holds at this moment.
    pub(crate) fn told(&self) -> Self {
        let healths = self.healths.as_ref();
        let (known, now) = healths
            .map_or_else(Default::default, |(healths, since)| (healths.borrow().clone(), since.elapsed()));
        let peers = peers::told(&self.paths, &known, now);
        Self { not_ready: self.readiness().err(), peers, ..self.clone() }
    }
}
