//! The rules and sets of nftables that are ours: read by `nft -j`, written by `nft -f -` in one transaction.

use plan::Op;
use plan::firewall::{Facts, NftChain, NftElement, NftTable};

use crate::error::Cause;

/// What is there of ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) tables: Vec<NftTable>,
    pub(crate) chains: Vec<NftChain>,
    pub(crate) elements: Vec<NftElement>,
}

/// Ours, and the facts that only nftables can tell: `no_nft`, `tables`, `strangers`.
pub(crate) fn read(_facts: &mut Facts) -> Rows {
    Rows::default()
}

/// All of them or none.
pub(crate) fn apply(_ops: &[Op]) -> Result<(), Cause> {
    Ok(())
}
