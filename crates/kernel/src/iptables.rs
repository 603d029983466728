//! The chains and jumps of iptables that are ours, in both variants: read by `iptables-save`, written by one
//! `iptables-restore` per variant and family.

use plan::Op;
use plan::firewall::{Facts, IptablesChain};

use crate::error::Cause;

/// Ours, and the facts that only iptables can tell: `iptables`, `usual`. `facts.tables` says what stands in nftables.
pub(crate) fn read(_facts: &mut Facts) -> Vec<IptablesChain> {
    Vec::new()
}

/// Ops on one variant and family; all of them or none. `seen` is what was read last.
pub(crate) fn apply(_ops: &[Op], _seen: &[IptablesChain]) -> Result<(), Cause> {
    Ok(())
}
