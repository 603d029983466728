//! Traffic rules, whoever enforces them: what was read stays good until somebody says that it may have changed, since
//! reading takes processes. It knows no rule.

use plan::firewall::{Facts, IptablesChain};
use plan::{Object, Op, State};

use crate::error::Cause;
use crate::{Kernel, iptables, nft};

/// The last reading.
#[derive(Default)]
pub(crate) struct Firewall {
    seen: Option<Reading>,
}

#[derive(Clone, Default)]
struct Reading {
    nft: nft::Rows,
    iptables: Vec<IptablesChain>,
    facts: Facts,
}

impl Kernel {
    /// The traffic rules are read anew at the next look.
    pub fn forget_firewall(&mut self) {
        self.firewall.seen = None;
    }
}

impl Firewall {
    /// Adds what is there of ours, and gives the facts.
    pub(crate) fn read(&mut self, state: &mut State) -> Facts {
        let Reading { nft, iptables, facts } = self.seen.get_or_insert_with(Reading::read).clone();
        state.nft_tables = nft.tables.into();
        state.nft_chains = nft.chains.into();
        state.nft_elements = nft.elements.into();
        state.iptables = iptables.into();
        facts
    }

    /// Ops of one `kind`.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Result<(), Cause> {
        let seen = self.seen.take().unwrap_or_default();
        match ops.first().map(|op| &op.object) {
            Some(Object::Iptables(_)) => iptables::apply(ops, &seen.iptables),
            _ => nft::apply(ops),
        }
    }
}

impl Reading {
    fn read() -> Self {
        let mut facts = Facts::default();
        let nft = nft::read(&mut facts);
        let iptables = iptables::read(&mut facts);
        Self { nft, iptables, facts }
    }
}

/// Do both go in one transaction?
pub(crate) fn together(a: &Op, b: &Op) -> bool {
    match (&a.object, &b.object) {
        (Object::Iptables(a), Object::Iptables(b)) => (a.variant, a.family) == (b.variant, b.family),
        (a, b) => is_nft(a) && is_nft(b),
    }
}

/// Is it a traffic rule?
pub(crate) fn is_rule(object: &Object) -> bool {
    is_nft(object) || matches!(object, Object::Iptables(_))
}

fn is_nft(object: &Object) -> bool {
    matches!(object, Object::NftTable(_) | Object::NftChain(_) | Object::NftElement(_))
}
