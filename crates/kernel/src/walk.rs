//! Follows a packet through chains of rules, whoever enforces them, up to the rule that decides. It knows how chains lead to
//! each other, and no rule.

use std::sync::Arc;

/// Chains deeper than the kernel's own limit are not followed.
const DEEPEST: usize = 16;

/// Whether the conditions of a rule hold for the packets in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    Always,
    /// For some of them: those of one protocol, port or rate.
    Partly,
    /// It depends on what is not known here, such as a mark.
    Unclear,
    Never,
}

/// What a rule does with the packets that it holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The next rule decides.
    Continue,
    Accept,
    Refuse,
    Jump(Box<str>),
    Goto(Box<str>),
    Return,
    /// Neither: a program decides, or the packet goes somewhere else.
    Stop,
}

/// Chains with their rules, as one kind of packet meets them.
pub(crate) trait Chains {
    type Rule;
    /// Why they cannot be read.
    type Error;

    fn rules(&mut self, chain: &str) -> Result<Arc<[Self::Rule]>, Self::Error>;

    fn meet(&mut self, rule: &Self::Rule) -> Result<(Truth, Verdict), Self::Error>;

    /// The words for a rule of that chain.
    fn name(&self, chain: &str, rule: &Self::Rule) -> Box<str>;
}

/// What becomes of the packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No rule decides.
    Falls,
    Passes,
    Unclear,
    /// Refused by the rule of that name.
    Refused(Box<str>),
}

/// Follows all rules of a chain.
pub(crate) fn walk<C: Chains>(chains: &mut C, chain: &str) -> Result<Fate, C::Error> {
    let rules = chains.rules(chain)?;
    walk_rules(chains, chain, &rules, 0)
}

/// What one rule alone leads to.
pub(crate) fn walk_rule<C: Chains>(chains: &mut C, chain: &str, rule: &C::Rule) -> Result<Fate, C::Error> {
    Ok(step(chains, chain, rule, 0)?.unwrap_or(Fate::Falls))
}

fn walk_rules<C: Chains>(
    chains: &mut C,
    chain: &str,
    rules: &[C::Rule],
    depth: usize,
) -> Result<Fate, C::Error> {
    for rule in rules {
        if let Some(fate) = step(chains, chain, rule, depth)? {
            return Ok(fate);
        }
    }
    Ok(Fate::Falls)
}

/// `None` where the next rule decides.
fn step<C: Chains>(
    chains: &mut C,
    chain: &str,
    rule: &C::Rule,
    depth: usize,
) -> Result<Option<Fate>, C::Error> {
    let (truth, verdict) = chains.meet(rule)?;
    match (truth, verdict) {
        (Truth::Never | Truth::Partly, _) | (_, Verdict::Continue) | (Truth::Unclear, Verdict::Refuse) => {
            Ok(None)
        }
        (Truth::Unclear, _) | (Truth::Always, Verdict::Stop) => Ok(Some(Fate::Unclear)),
        (Truth::Always, Verdict::Accept) => Ok(Some(Fate::Passes)),
        (Truth::Always, Verdict::Refuse) => Ok(Some(Fate::Refused(chains.name(chain, rule)))),
        (Truth::Always, Verdict::Return) => Ok(Some(Fate::Falls)),
        (Truth::Always, Verdict::Jump(_) | Verdict::Goto(_)) if depth >= DEEPEST => Ok(Some(Fate::Unclear)),
        (Truth::Always, Verdict::Jump(next)) => {
            let rules = chains.rules(&next)?;
            let fate = walk_rules(chains, &next, &rules, depth + 1)?;
            Ok((fate != Fate::Falls).then_some(fate))
        }
        (Truth::Always, Verdict::Goto(next)) => {
            let rules = chains.rules(&next)?;
            walk_rules(chains, &next, &rules, depth + 1).map(Some)
        }
    }
}

impl Truth {
    pub(crate) fn of(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }

    /// Of a condition that is turned around.
    pub(crate) fn not(self) -> Self {
        match self {
            Self::Always => Self::Never,
            Self::Never => Self::Always,
            other => other,
        }
    }

    /// Of two conditions that both have to hold.
    pub(crate) fn and(self, other: Self) -> Self {
        self.max(other)
    }
}
