//! The two planning calls. [`scope`] says what has to be read from the kernel, and [`plan`] computes what has to
//! change there. The reconcile loop, `twill diff --offline` and the golden tests use no other part of the planning.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::check::check;
use crate::config::Config;
use crate::desired::{Desired, bounds, desired, name_faulty};
use crate::diff::diff;
use crate::environment::environment;
use crate::family::Family;
use crate::lease::Leases;
use crate::node::Node;
use crate::op::Op;
use crate::other_daemons::OtherDaemons;
use crate::owned::{Owned, Sweep};
use crate::peer::PeerPath;
use crate::policy::{Diversions, diversions, source_checks};
use crate::situation::{Memory, NOTHING, Situation};
use crate::state::State;
use crate::unclaimed::unclaimed;
use crate::underlay::Underlay;
use crate::warning::{NodeFault, Warning};
use crate::{firewall, sysctls};

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
    pub warnings: Vec<Warning>,
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
    let desired = desired(situation);
    let mut memory = situation.memory.clone();
    // A device that this plan makes exists in the next pass, whatever the config says by then.
    let devices = observed.links.iter().chain(desired.state.links.iter()).map(|link| link.name);
    let devices: BTreeSet<_> = devices.collect();
    memory.former.links = devices.into_iter().collect();
    memory.refused.retain(|fault| is_in_force(fault, &desired.state, observed));
    let Diversions { warnings: diversions, subnets: diverted } =
        diversions(config, &desired.state, &desired.peers, observed, underlay);
    let source_check = source_checks(&desired.state, underlay);
    let Desired { state: desired, owned, peers, mut warnings, firewall } = desired;
    warnings.extend(memory.refused.iter().cloned().map(Warning::Node));
    warnings.extend(unclaimed(&desired, observed, &owned, underlay));
    warnings.extend(environment(config, underlay, &desired, &peers));
    warnings.extend(diversions);
    warnings.extend(source_check);
    let contradiction = check(&desired, &owned).into_iter().next();
    let ops = match contradiction {
        None => diff(&desired, observed, &owned),
        Some(_) => Vec::new(),
    };
    Plan { desired, owned, ops, peers, warnings, firewall, diverted, contradiction, memory }
}

/// Returns true if the fault still holds. An administrator may have set the sysctl meanwhile.
fn is_in_force(fault: &NodeFault, desired: &State, observed: &State) -> bool {
    match fault {
        NodeFault::SysctlRefused { path, value, .. } => sysctls::is_missing(path, value, desired, observed),
        _ => true,
    }
}

impl Plan {
    /// Returns the families with rules that apply only while this daemon keeps them.
    pub fn kept(&self) -> Vec<Family> {
        let is_kept = |family: &Family| {
            self.desired.nft_chains.iter().any(|chain| chain.family == *family && chain.is_kept())
        };
        Family::ALL.into_iter().filter(is_kept).collect()
    }

    /// Returns true if the plan deletes left-overs of an earlier config or daemon.
    pub fn sweeps(&self) -> bool {
        self.owned.sweep == Sweep::LeftOvers
    }
}
