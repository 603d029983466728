//! Traffic rules, whoever enforces them: what was read stays good until somebody says that it may have changed, since
//! reading takes processes. It knows no rule.

use std::time::{Duration, Instant};

use plan::firewall::{Facts, IptablesChain};
use plan::{Object, Op, State};

use crate::error::Cause;
use crate::nft::{self, Nft};
use crate::{Kernel, iptables};

/// The last reading, and the ways to read.
#[derive(Default)]
pub(crate) struct Firewall {
    nft: Nft,
    seen: Reading,
    /// Is the reading still good?
    fresh: bool,
}

#[derive(Clone, Default)]
struct Reading {
    nft: nft::Rows,
    iptables: Vec<IptablesChain>,
    facts: Facts,
    at: Option<Instant>,
}

/// What could not be used is asked for no sooner: the kernel looks for its module each time.
const AGAIN: Duration = Duration::from_secs(5);

impl Kernel {
    /// The traffic rules are read anew at the next look.
    pub fn forget_firewall(&mut self) {
        self.firewall.fresh = false;
    }
}

impl Firewall {
    /// Adds what is there of ours, and gives the facts.
    pub(crate) fn read(&mut self, state: &mut State) -> Facts {
        if !self.fresh {
            let mut facts = Facts::default();
            let nft = self.nft.read(&mut facts);
            let iptables = iptables::read(&mut facts);
            self.seen = Reading { nft, iptables, facts, at: Some(Instant::now()) };
            self.fresh = true;
        } else if self.seen.facts.no_nft.is_some() && self.seen.at.is_none_or(|at| at.elapsed() >= AGAIN) {
            // No event tells that it can be used now.
            self.seen.facts.no_nft = None;
            self.seen.nft = self.nft.read(&mut self.seen.facts);
            self.seen.at = Some(Instant::now());
        }
        let Reading { nft, iptables, facts, .. } = self.seen.clone();
        let strangers = self.nft.strangers(&nft);
        state.nft_tables = nft.tables.into();
        state.nft_chains = nft.chains.into();
        state.nft_elements = nft.elements.into();
        state.iptables = iptables.into();
        Facts { strangers, ..facts }
    }

    /// Ops of one `kind`.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Result<(), Cause> {
        let was_fresh = std::mem::take(&mut self.fresh);
        if let Some(Object::Iptables(_)) = ops.first().map(|op| &op.object) {
            return iptables::apply(ops);
        }
        if !was_fresh {
            let mut facts = Facts::default();
            self.seen.nft = self.nft.read(&mut facts);
            // What cannot be read is not gone.
            if let Some(text) = facts.no_nft {
                return Err(Cause::Tool { tool: "nft".into(), text });
            }
        }
        self.nft.apply(ops, &self.seen.nft)
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
