//! Inputs of a plan as one value. Among them are the peers' health, and the memory that one pass leaves for the next.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::health::PeerHealth;
use crate::lease::Leases;
use crate::lease_conflicts::Contender;
use crate::left_overs::LeftOvers;
use crate::node::Node;
use crate::op::{Object, Op};
use crate::other_daemons::OtherDaemons;
use crate::owned::Owned;
use crate::state::{Setting, State, Sysctl};
use crate::underlay::Underlay;
use crate::warning::NodeFault;

/// Inputs of a plan: everything that it depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub config: &'a Config,
    pub node: &'a Node,
    pub leases: &'a Leases,
    pub health: &'a HealthInput,
    pub others: &'a OtherDaemons,
    /// Bounds within which `observed` and `underlay` were read, from [`scope`](crate::scope).
    pub scope: &'a Owned,
    /// Observed state of the objects that may be ours.
    pub observed: &'a State,
    pub underlay: &'a Underlay,
    pub memory: &'a Memory,
}

/// Empty inputs of a daemon that has just started.
pub(crate) static NOTHING: LazyLock<(HealthInput, OtherDaemons, State, Memory)> =
    LazyLock::new(Default::default);

impl<'a> Situation<'a> {
    /// Returns the situation at the first start on a node that holds nothing of ours and has no other daemon.
    pub fn at_start(
        config: &'a Config,
        node: &'a Node,
        leases: &'a Leases,
        scope: &'a Owned,
        underlay: &'a Underlay,
    ) -> Self {
        let (health, others, observed, memory) = &*NOTHING;
        Self { config, node, leases, health, others, scope, observed, underlay, memory }
    }
}

/// Knowledge about the peers that comes from probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthInput {
    /// Judgements about the peers that were probed, by subnet.
    #[serde(rename = "verdicts")]
    pub peers: Vec<PeerHealth>,
    /// Leases in conflict, by subnet and address: of each group only one lease can be believed.
    pub contenders: Vec<Contender>,
}

/// Knowledge that one pass leaves for the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Left-overs of an earlier config or daemon, and the devices of the last pass.
    pub former: LeftOvers,
    /// Sysctls that the kernel did not let us write. They are reported and not tried again.
    #[serde(skip)]
    pub refused: BTreeSet<NodeFault>,
}

impl Memory {
    /// Starts with the left-overs that an earlier run may have on this node.
    pub fn of(former: LeftOvers) -> Self {
        Self { former, refused: BTreeSet::new() }
    }

    /// Notes that the kernel refuses this op for good, for this reason, if it is a sysctl.
    pub fn refuse(&mut self, op: &Op, why: &str) {
        self.refused.extend(sysctl(op).map(|row| NodeFault::SysctlRefused {
            path: row.path.clone(),
            value: row.value.clone(),
            why: why.into(),
        }));
    }

    /// Returns true if the kernel has refused this op for good.
    pub fn refuses(&self, op: &Op) -> bool {
        let refuses = |row: &Sysctl| {
            let is_same = |fault: &NodeFault| matches!(fault, NodeFault::SysctlRefused { path, value, .. } if (path, value) == (&row.path, &row.value));
            self.refused.iter().any(is_same)
        };
        sysctl(op).is_some_and(refuses)
    }

    /// Notes that a plan that deletes left-overs was applied without a failure: whatever appears later is not flannel's.
    pub fn set_swept(&mut self) {
        let links = std::mem::take(&mut self.former.links);
        self.former = LeftOvers { links, ..LeftOvers::default() };
    }
}

/// Returns the sysctl that the op writes, if it writes one.
fn sysctl(op: &Op) -> Option<&Sysctl> {
    match &op.object {
        Object::Sysctl(Setting { row, .. }) => Some(row),
        _ => None,
    }
}
