//! The two planning calls: [`scope`] says what has to be read from the kernel, and [`plan`] computes what has to change
//! there. The reconcile loop, `twill diff --offline` and the golden tests use these two calls and no other part of the plan.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::check::check;
use crate::config::Config;
use crate::former::Former;
use crate::lease::Leases;
use crate::node::Node;
use crate::note::{NodeFault, Note};
use crate::op::{Object, Op};
use crate::other_daemons::OtherDaemons;
use crate::owned::{Owned, Sweep};
use crate::peer::PeerPath;
use crate::policy::{Diversions, diversions};
use crate::rivals::Contender;
use crate::state::{Setting, State};
use crate::underlay::Underlay;
use crate::verdict::Verdict;
use crate::wanted::{Wanted, bounds, name_faulty, wanted};
use crate::{diff, environment, firewall, sysctls, unclaimed};

/// Inputs of a plan: everything that it depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub config: &'a Config,
    pub node: &'a Node,
    pub leases: &'a Leases,
    pub health: &'a PeerHealth,
    pub others: &'a OtherDaemons,
    /// Bounds within which `observed` and `underlay` were read, from [`scope`].
    pub scope: &'a Owned,
    /// Observed state of the objects that may be ours.
    pub observed: &'a State,
    pub underlay: &'a Underlay,
    pub memory: &'a Memory,
}

/// Empty inputs of a daemon that has just started.
static NOTHING: LazyLock<(PeerHealth, OtherDaemons, State, Memory)> = LazyLock::new(Default::default);

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
pub struct PeerHealth {
    /// Judgements about the peers that were probed, by subnet.
    pub verdicts: Vec<Verdict>,
    /// Leases in conflict, by subnet and address: of each group only one lease can be believed.
    pub contenders: Vec<Contender>,
}

/// Knowledge that one pass leaves for the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Left-overs of an earlier config or daemon, and the devices of the last pass.
    pub former: Former,
    /// Sysctls that the kernel did not let us write. They are reported and not tried again.
    #[serde(skip)]
    pub refused: BTreeSet<NodeFault>,
}

impl Memory {
    /// Starts with the left-overs that an earlier run may have on this node.
    pub fn of(former: Former) -> Self {
        Self { former, refused: BTreeSet::new() }
    }

    /// Notes that the kernel refuses this op for good, if it is a sysctl.
    pub fn refuse(&mut self, op: &Op) {
        self.refused.extend(refused_sysctl(op));
    }

    /// Returns true if the kernel has refused this op for good.
    pub fn refuses(&self, op: &Op) -> bool {
        refused_sysctl(op).is_some_and(|fault| self.refused.contains(&fault))
    }

    /// Notes that a plan that deletes left-overs was applied without a failure: whatever appears later is not flannel's.
    pub fn is_swept(&mut self) {
        let links = std::mem::take(&mut self.former.links);
        self.former = Former { links, ..Former::default() };
    }
}

/// Result of [`plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// State that the kernel should hold.
    pub desired: State,
    /// Bounds of the objects that may be deleted on the way.
    pub owned: Owned,
    /// Changes that lead from the observed state to the desired one, in order.
    pub ops: Vec<Op>,
    /// Path of each peer that is not left out, by subnet.
    pub peers: Vec<PeerPath>,
    /// Warnings about the node, its peers and their leases.
    pub notes: Vec<Note>,
    pub firewall: firewall::Summary,
    /// Subnets of peers whose packets a policy rule or route of this node diverts.
    pub diverted: Vec<IpNet>,
    /// First contradiction between parts of the plan, a fault of twill itself. Such a plan has no ops.
    pub contradiction: Option<String>,
    /// Memory for the next pass.
    pub memory: Memory,
}

/// Returns the bounds of the objects that may be ours, within which the kernel has to be read. `faulty` are the subnets of
/// peers that probes found faulty; the kernel is asked where it sends packets for them.
pub fn scope(
    config: &Config,
    node: &Node,
    leases: &Leases,
    others: &OtherDaemons,
    memory: &Memory,
    faulty: impl Iterator<Item = IpNet>,
) -> Owned {
    let mut owned = bounds(config, node, leases, others, &memory.former);
    name_faulty(&mut owned, faulty);
    owned
}

/// Computes the plan of the first start on a node that holds nothing of ours.
pub fn plan_at_start(config: &Config, node: &Node, leases: &Leases, underlay: &Underlay) -> Plan {
    let (_, others, _, memory) = &*NOTHING;
    let scope = scope(config, node, leases, others, memory, std::iter::empty());
    plan(&Situation::at_start(config, node, leases, &scope, underlay))
}

/// Computes the plan for this node. It never fails: a broken or dangerous lease becomes a warning and is left out.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let Situation { config, observed, underlay, .. } = *situation;
    let wanted = wanted(situation);
    let mut memory = situation.memory.clone();
    // A device that this plan makes exists in the next pass, whatever the config says by then.
    let devices = observed.links.iter().chain(wanted.state.links.iter()).map(|link| link.name);
    let devices: BTreeSet<_> = devices.collect();
    memory.former.links = devices.into_iter().collect();
    memory.refused.retain(|fault| is_in_force(fault, &wanted.state, observed));
    let Diversions { notes: diversions, subnets: diverted } = diversions(config, &wanted, observed, underlay);
    let Wanted { state: desired, owned, peers, mut notes, firewall } = wanted;
    notes.extend(memory.refused.iter().cloned().map(Note::Node));
    notes.extend(unclaimed::unclaimed(&desired, observed, &owned, underlay));
    notes.extend(environment::environment(config, underlay, &desired, &peers));
    notes.extend(diversions);
    let contradiction = check(&desired, &owned).into_iter().next();
    let ops = match contradiction {
        None => diff::diff(&desired, observed, &owned),
        Some(_) => Vec::new(),
    };
    Plan { desired, owned, ops, peers, notes, firewall, diverted, contradiction, memory }
}

/// Returns the fault that a refused op causes, if the op writes a sysctl.
fn refused_sysctl(op: &Op) -> Option<NodeFault> {
    match &op.object {
        Object::Sysctl(Setting { row, .. }) => {
            Some(NodeFault::SysctlRefused { path: row.path.clone(), value: row.value.clone() })
        }
        _ => None,
    }
}

/// Returns true if the fault still holds. An administrator may have set the sysctl meanwhile.
fn is_in_force(fault: &NodeFault, desired: &State, observed: &State) -> bool {
    match fault {
        NodeFault::SysctlRefused { path, value } => sysctls::is_missing(path, value, desired, observed),
        _ => true,
    }
}

impl Plan {
    /// Returns true if the plan deletes left-overs of an earlier config or daemon.
    pub fn sweeps(&self) -> bool {
        self.owned.sweep == Sweep::LeftOvers
    }
}
