//! Chooses the tool that enforces the rules. The network config decides. Without it nftables is used, unless iptables
//! refuses packets or iptables-legacy is in use. An accept rule in our own tables undoes no drop in another table.

use super::ToolChoice;
use crate::config::FirewallOptions;
use crate::state::Variant;
use crate::underlay::{FirewallFacts, IptablesFacts, Manager};
use crate::warning::FirewallFault;

impl FirewallFacts {
    fn has(&self, variant: Variant) -> bool {
        self.iptables.iter().any(|facts| facts.variant == variant)
    }

    fn legacy_in_use(&self) -> bool {
        self.iptables.iter().any(|facts| facts.variant == Variant::Legacy && facts.in_use)
    }

    /// Returns the first variant and family that refuses forwarded packets, legacy before nft.
    fn refusing(&self) -> Option<(&IptablesFacts, &str)> {
        let mut refusing = self.iptables.iter().filter_map(|facts| Some((facts, facts.refuses.as_deref()?)));
        let first = refusing.next()?;
        Some(refusing.find(|(facts, _)| facts.variant == Variant::Legacy).unwrap_or(first))
    }

    /// Returns the variant that other programs use already, or else one that exists.
    fn variant(&self) -> Option<Variant> {
        let legacy = self.legacy_in_use().then_some(Variant::Legacy);
        let known = legacy.or(self.usual).filter(|variant| self.has(*variant));
        known.or_else(|| Variant::ALL.into_iter().find(|variant| self.has(*variant)))
    }
}

/// Chooses the tool. The choice is `None` if no tool can enforce rules.
pub(super) fn choose(
    options: &FirewallOptions,
    facts: &FirewallFacts,
) -> (Option<ToolChoice>, Vec<FirewallFault>) {
    let (choice, mut faults) = chosen(options.nftables, facts);
    if choice.is_none() {
        faults.push(if options.masquerade { FirewallFault::NoMasquerade } else { FirewallFault::Nothing });
    }
    (choice, faults)
}

fn chosen(nftables: Option<bool>, facts: &FirewallFacts) -> (Option<ToolChoice>, Vec<FirewallFault>) {
    let (manager, reason) = match nftables {
        Some(true) => (Manager::Nftables, "EnableNFTables is true".into()),
        Some(false) => return iptables("EnableNFTables is false".into(), facts),
        None => by_facts(facts),
    };
    match (&facts.no_nft, manager) {
        (_, Manager::Iptables(_)) => iptables(reason, facts),
        (None, Manager::Nftables) => (Some(ToolChoice { manager, reason: reason.into() }), Vec::new()),
        (Some(why), Manager::Nftables) => {
            let (choice, mut faults) = iptables(format!("nftables cannot be used: {why}"), facts);
            faults.extend(choice.is_some().then(|| FirewallFault::NftUnusable { why: why.clone() }));
            (choice, faults)
        }
    }
}

fn by_facts(facts: &FirewallFacts) -> (Manager, String) {
    if let Some((IptablesFacts { variant, family, .. }, what)) = facts.refusing() {
        let reason =
            format!("the {family} FORWARD chain of {variant} has {what}, which nftables cannot undo");
        return (Manager::Iptables(*variant), reason);
    }
    if facts.legacy_in_use() {
        return (Manager::Iptables(Variant::Legacy), "iptables-legacy is in use on this node".into());
    }
    let reason = if facts.obstacles.iter().any(|obstacle| obstacle.packet.is_forwarded()) {
        "no accept rule in iptables undoes what refuses packets of pods"
    } else if facts.unclear {
        "iptables has no rule that is known to refuse forwarded packets"
    } else {
        "iptables refuses no forwarded packets"
    };
    (Manager::Nftables, reason.into())
}

/// Chooses iptables of the variant in use, or nftables if there is no iptables.
fn iptables(reason: String, facts: &FirewallFacts) -> (Option<ToolChoice>, Vec<FirewallFault>) {
    let chosen = |manager, reason: String| Some(ToolChoice { manager, reason: reason.into() });
    match (facts.variant(), &facts.no_nft) {
        (Some(variant), _) => (chosen(Manager::Iptables(variant), reason), Vec::new()),
        (None, None) => {
            let reason = format!("{reason}, but there is no iptables here");
            (chosen(Manager::Nftables, reason), vec![FirewallFault::IptablesMissing])
        }
        (None, Some(_)) => (None, Vec::new()),
    }
}
