//! Follows a packet through chains of rules of nftables or iptables, up to the rule that decides. This module knows how
//! chains lead to each other, but not how a rule is written.

use std::collections::HashMap;
use std::sync::Arc;

/// Maximum depth of jumps that is followed; the kernel's own limit.
const DEEPEST: usize = 16;

/// Degree to which the conditions of a rule hold for the packets in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    Always,
    /// True for some of the packets, such as those of one protocol, port or rate.
    Partly,
    /// Dependent on data that is not known here, such as a mark.
    Unclear,
    Never,
}

/// Action of a rule on the packets that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Leaves the decision to the next rule.
    Continue,
    Accept,
    Refuse,
    Jump(Box<str>),
    Goto(Box<str>),
    Return,
    /// Ends the walk without a decision: a program decides, or the packet is diverted.
    Stop,
}

/// Access to chains and their rules, as one kind of packet meets them.
pub(crate) trait Chains {
    type Rule;
    /// Reason why the chains cannot be read.
    type Error;

    fn rules(&mut self, chain: &str) -> Result<Arc<[Self::Rule]>, Self::Error>;

    fn meet(&mut self, rule: &Self::Rule) -> Result<(Truth, Verdict), Self::Error>;

    /// Returns a description of a rule of that chain.
    fn name(&self, chain: &str, rule: &Self::Rule) -> Box<str>;
}

/// Outcome of a walk for the packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No rule decides.
    Falls,
    Passes,
    Unclear,
    /// Refused by the rule with this description.
    Refused(Box<str>),
}

/// Walks through all rules of a chain.
pub(crate) fn walk<C: Chains>(chains: &mut C, chain: &str) -> Result<Fate, C::Error> {
    Walk::new(chains).chain(chain, 0)
}

/// A walk that remembers the fate of each chain: no chain is followed twice, however many rules lead to it.
pub(crate) struct Walk<'a, C: Chains> {
    pub(crate) chains: &'a mut C,
    fates: HashMap<Box<str>, Fate>,
}

impl<'a, C: Chains> Walk<'a, C> {
    pub(crate) fn new(chains: &'a mut C) -> Self {
        Self { chains, fates: HashMap::new() }
    }

    /// Returns the outcome of one rule alone.
    pub(crate) fn rule(&mut self, chain: &str, rule: &C::Rule) -> Result<Fate, C::Error> {
        Ok(self.step(chain, rule, 0)?.unwrap_or(Fate::Falls))
    }

    /// Walks through all rules of a chain.
    fn chain(&mut self, chain: &str, depth: usize) -> Result<Fate, C::Error> {
        if let Some(fate) = self.fates.get(chain) {
            return Ok(fate.clone());
        }
        // The kernel refuses a chain that leads back to itself.
        self.fates.insert(chain.into(), Fate::Unclear);
        let mut fate = Fate::Falls;
        for rule in self.chains.rules(chain)?.iter() {
            if let Some(decided) = self.step(chain, rule, depth)? {
                fate = decided;
                break;
            }
        }
        self.fates.insert(chain.into(), fate.clone());
        Ok(fate)
    }

    /// Applies one rule. Returns `None` if the next rule decides.
    fn step(&mut self, chain: &str, rule: &C::Rule, depth: usize) -> Result<Option<Fate>, C::Error> {
        let (truth, verdict) = self.chains.meet(rule)?;
        match (truth, verdict) {
            (Truth::Never | Truth::Partly, _)
            | (_, Verdict::Continue)
            | (Truth::Unclear, Verdict::Refuse) => Ok(None),
            (Truth::Unclear, _) | (Truth::Always, Verdict::Stop) => Ok(Some(Fate::Unclear)),
            (Truth::Always, Verdict::Accept) => Ok(Some(Fate::Passes)),
            (Truth::Always, Verdict::Refuse) => Ok(Some(Fate::Refused(self.chains.name(chain, rule)))),
            (Truth::Always, Verdict::Return) => Ok(Some(Fate::Falls)),
            (Truth::Always, Verdict::Jump(_) | Verdict::Goto(_)) if depth >= DEEPEST => {
                Ok(Some(Fate::Unclear))
            }
            (Truth::Always, Verdict::Jump(next)) => {
                let fate = self.chain(&next, depth + 1)?;
                Ok((fate != Fate::Falls).then_some(fate))
            }
            (Truth::Always, Verdict::Goto(next)) => self.chain(&next, depth + 1).map(Some),
        }
    }
}

impl Truth {
    pub(crate) fn of(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }

    /// Returns the truth of the inverted condition.
    pub(crate) fn not(self) -> Self {
        match self {
            Self::Always => Self::Never,
            Self::Never => Self::Always,
            other => other,
        }
    }

    /// Returns the truth of two conditions that must both hold.
    pub(crate) fn and(self, other: Self) -> Self {
        self.max(other)
    }
}
