//! Follows a packet through chains of rules of nftables or iptables, up to the rule that decides. This module knows how
//! chains lead to each other, but not how a rule is written.

use std::collections::HashMap;
use std::sync::Arc;

use plan::passage::{Packet, Payload};
use plan::underlay::Uncertainty;

/// Maximum depth of jumps that is followed; the kernel's own limit.
const MAX_DEPTH: usize = 16;

/// Degree to which the conditions of a rule hold for the packets in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    Always,
    /// Dependent on data that is not known here, such as an ipset.
    Unclear,
    /// True for some of the packets at most, such as those of one port or rate.
    Partly,
    Never,
}

/// Mark of a packet (`skb->mark`), which rules read and set; `None` if it is not known.
pub(crate) type Mark = Option<u32>;

/// Mark of a packet that no rule has seen.
pub(crate) const UNMARKED: Mark = Some(0);

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
    type Rule: Clone;
    /// Reason why the chains cannot be read.
    type Error;

    fn rules(&mut self, chain: &str) -> Result<Arc<[Self::Rule]>, Self::Error>;

    /// Returns to which degree the rule holds for a packet with that mark. The verdict and the new mark apply if it
    /// does.
    fn evaluate(&mut self, rule: &Self::Rule, mark: Mark) -> Result<(Truth, Verdict, Mark), Self::Error>;

    /// Returns a description of a rule of that chain.
    fn name(&self, chain: &str, rule: &Self::Rule) -> Box<str>;
}

/// Fate of the packets in one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No rule decides.
    Falls,
    Passes,
    Unclear,
    /// Refused by the rule with this description.
    Refused(Box<str>),
}

/// Outcome of a walk through a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Description of what refuses the packets or may refuse them, and for the latter the reason why that is uncertain.
    pub(crate) refusal: Option<(Box<str>, Option<Uncertainty>)>,
    /// True if the packets met a rule that cannot be judged here.
    pub(crate) unclear: bool,
}

impl Outcome {
    /// Returns the refusal of that packet if it is worth a warning. Whether packets between nodes arrive, probes find out: an
    /// uncertain refusal of them is no warning.
    pub(crate) fn reported(self, packet: &Packet) -> Option<(Box<str>, Option<Uncertainty>)> {
        self.refusal.filter(|(_, uncertainty)| uncertainty.is_none() || packet.is_forwarded())
    }
}

/// Walks through all rules of a base chain with that policy, unless the policy is to accept. `mark` is the packet's mark
/// before and after. A refusal counts only if it is not `undone` by our rules.
pub(crate) fn walk<C: Chains>(
    chains: &mut C,
    base: &str,
    policy: Option<&str>,
    mark: &mut Mark,
    undone: impl Fn(&str) -> bool,
) -> Result<Outcome, C::Error> {
    let mut walk = Walk::new(chains, *mark);
    let fate = walk.chain(base, 0)?;
    let Walk { chains, mark: after, unless, perhaps, .. } = walk;
    *mark = after;
    let unclear = fate == Fate::Unclear || unless.is_some() || perhaps.is_some();
    let refused: Option<Box<str>> = match fate {
        Fate::Refused(words) => Some(words),
        Fate::Falls => policy.map(Into::into),
        Fate::Passes | Fate::Unclear => None,
    };
    let name = |(chain, rule): (Box<str>, C::Rule)| chains.name(&chain, &rule);
    let refusal = match refused.filter(|words| !undone(words)) {
        Some(words) => Some((words, unless.map(name).map(Uncertainty::Unless))),
        None => perhaps.map(name).map(|words| (words, Some(Uncertainty::Condition))),
    };
    Ok(Outcome { refusal, unclear })
}

/// A walk that remembers the fate of each chain: no chain is followed twice with one mark, however many rules lead to it.
pub(crate) struct Walk<'a, C: Chains> {
    pub(crate) chains: &'a mut C,
    mark: Mark,
    /// Fates by chain and mark, each with the mark that the packet has after the chain.
    fates: HashMap<(Box<str>, Mark), (Fate, Mark)>,
    /// First rule with an unclear condition that may keep the packets from what refuses them, and its chain.
    unless: Option<(Box<str>, C::Rule)>,
    /// First rule with an unclear condition that refuses the packets or leads to their refusal, and its chain.
    perhaps: Option<(Box<str>, C::Rule)>,
}

impl<'a, C: Chains> Walk<'a, C> {
    pub(crate) fn new(chains: &'a mut C, mark: Mark) -> Self {
        Self { chains, mark, fates: HashMap::new(), unless: None, perhaps: None }
    }

    /// Returns the fate of the packets by one rule alone.
    pub(crate) fn rule(&mut self, chain: &str, rule: &C::Rule) -> Result<Fate, C::Error> {
        Ok(self.step(chain, rule, 0)?.unwrap_or(Fate::Falls))
    }

    /// Walks through all rules of a chain.
    fn chain(&mut self, chain: &str, depth: usize) -> Result<Fate, C::Error> {
        let key = (Box::from(chain), self.mark);
        if let Some((fate, mark)) = self.fates.get(&key) {
            self.mark = *mark;
            return Ok(fate.clone());
        }
        // The kernel refuses a chain that leads back to itself.
        self.fates.insert(key.clone(), (Fate::Unclear, None));
        let mut fate = Fate::Falls;
        for rule in self.chains.rules(chain)?.iter() {
            if let Some(decided) = self.step(chain, rule, depth)? {
                fate = decided;
                break;
            }
        }
        self.fates.insert(key, (fate.clone(), self.mark));
        Ok(fate)
    }

    /// Applies one rule. Returns `None` if the next rule decides.
    fn step(&mut self, chain: &str, rule: &C::Rule, depth: usize) -> Result<Option<Fate>, C::Error> {
        let (truth, verdict, mark) = self.chains.evaluate(rule, self.mark)?;
        if truth == Truth::Never {
            return Ok(None);
        }
        let certain = truth == Truth::Always;
        self.mark = Some(mark).filter(|mark| certain || *mark == self.mark).flatten();
        match truth {
            Truth::Always => self.follow(chain, rule, verdict, depth),
            Truth::Unclear => self.suspect(chain, rule, verdict, depth).map(|()| None),
            Truth::Partly | Truth::Never => Ok(None),
        }
    }

    /// Applies the verdict of a rule that holds.
    fn follow(
        &mut self,
        chain: &str,
        rule: &C::Rule,
        verdict: Verdict,
        depth: usize,
    ) -> Result<Option<Fate>, C::Error> {
        Ok(match verdict {
            Verdict::Continue => None,
            Verdict::Stop => Some(Fate::Unclear),
            Verdict::Accept => Some(Fate::Passes),
            Verdict::Refuse => Some(Fate::Refused(self.chains.name(chain, rule))),
            Verdict::Return => Some(Fate::Falls),
            Verdict::Jump(_) | Verdict::Goto(_) if depth >= MAX_DEPTH => Some(Fate::Unclear),
            Verdict::Jump(next) => Some(self.chain(&next, depth + 1)?).filter(|fate| *fate != Fate::Falls),
            Verdict::Goto(next) => Some(self.chain(&next, depth + 1)?),
        })
    }

    /// Notes what a rule would do that may hold. The walk goes on behind it, as if it did not hold.
    fn suspect(
        &mut self,
        chain: &str,
        rule: &C::Rule,
        verdict: Verdict,
        depth: usize,
    ) -> Result<(), C::Error> {
        let before = self.mark;
        let fate = match verdict {
            // It gets its name if it is reported.
            Verdict::Refuse => Some(Fate::Refused(Box::default())),
            verdict => self.follow(chain, rule, verdict, depth)?,
        };
        self.mark = before.filter(|_| before == self.mark);
        let first = match fate {
            None => return Ok(()),
            Some(Fate::Refused(_)) => &mut self.perhaps,
            Some(Fate::Falls | Fate::Passes | Fate::Unclear) => &mut self.unless,
        };
        first.get_or_insert_with(|| (chain.into(), rule.clone()));
        Ok(())
    }
}

impl Truth {
    pub(crate) fn of(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }

    /// Returns the truth as it counts for that packet. Of any packet (`None`), an unclear condition does not count as met.
    /// Most echoes are within the limit of a rule with one, so that its condition is unclear for them.
    pub(crate) fn for_packet(self, packet: Option<&Packet>) -> Self {
        match (self, packet.map(|packet| packet.payload)) {
            (Self::Unclear, None) => Self::Partly,
            (Self::Partly, Some(Payload::Echo(_))) => Self::Unclear,
            (truth, _) => truth,
        }
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
