//! Our chains and rules in iptables: two chains, and the jumps to them in the built-in chains (flannel-compat 7.1).
//! Rules are kept as iptables-save(8) prints them, which is how they are read and written.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Aside, Kind, Match, Net, Rank, RuleVerdict, State, TrafficRule, Unknown};
use crate::family::Family;
use crate::owned::Owned;
use crate::table::Row;

/// Variant of iptables: on top of nftables, or with tables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

/// Tables in which we have rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IptablesTable {
    Filter,
    Nat,
}

impl IptablesTable {
    pub const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    /// Returns the built-in chain that jumps to ours.
    pub fn hook(self) -> &'static str {
        match self {
            Self::Filter => "FORWARD",
            Self::Nat => "POSTROUTING",
        }
    }

    /// Returns the name of our chain.
    pub fn chain(self) -> &'static str {
        match self {
            Self::Filter => "FLANNEL-FWD",
            Self::Nat => "FLANNEL-POSTRTG",
        }
    }

    /// Returns our only rule in the built-in chain.
    pub fn jump(self) -> String {
        format!("{} -j {}", comment(self), self.chain())
    }
}

impl fmt::Display for IptablesTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        })
    }
}

/// Returns the comment that every rule of ours carries.
pub fn comment_of(table: IptablesTable) -> &'static str {
    match table {
        IptablesTable::Filter => "flanneld forward",
        IptablesTable::Nat => "flanneld masq",
    }
}

fn comment(table: IptablesTable) -> String {
    format!("-m comment --comment \"{}\"", comment_of(table))
}

/// Returns true if a rule in a chain that is not ours is nevertheless ours. It jumps to our chain, or carries our
/// comment. Text in other programs' comments does not count.
pub fn is_ours(table: IptablesTable, rule: &str) -> bool {
    let leads = |words: &str| {
        let words: Vec<&str> = words.split_whitespace().collect();
        words.windows(2).any(|pair| ["-j", "-g"].contains(&pair[0]) && pair[1] == table.chain())
    };
    // Every second part is outside quotes.
    rule.split('"').step_by(2).any(leads) || rule.contains(&comment(table))
}

/// Our chain with all its rules, or the built-in chain with only the rules that are ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IptablesChain {
    pub variant: Variant,
    pub family: Family,
    pub table: IptablesTable,
    pub chain: Box<str>,
    /// Rules in order, as iptables-save(8) prints them behind `-A CHAIN `.
    pub rules: Box<[Box<str>]>,
    /// Rule of another program in the built-in chain that stands before ours and refuses every packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

impl IptablesChain {
    /// Returns true if it is the built-in chain, of which only some rules are ours.
    pub fn is_hook(&self) -> bool {
        *self.chain == *self.table.hook()
    }
}

impl Row for IptablesChain {
    type Key<'a> = (Variant, Family, IptablesTable, &'a str);

    fn key(&self) -> (Variant, Family, IptablesTable, &str) {
        (self.variant, self.family, self.table, &self.chain)
    }
}

impl Kind for IptablesChain {
    const NAME: &'static str = "iptables";
    const RANK: Rank = Rank { put: 6, delete: 19 };

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.firewall
    }
}

impl fmt::Display for IptablesChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variant, family, table, chain, rules, unknown } = self;
        let tool = if *family == Family::Ipv4 { "" } else { " -6" };
        write!(f, "{variant}{tool} -t {table} {chain} {{")?;
        rules.iter().try_for_each(|rule| write!(f, " {rule};"))?;
        write!(f, " }}{}", Aside(unknown))
    }
}

impl TrafficRule {
    /// Returns the rule as iptables-save(8) prints it: addresses, mark, comment, target. Returns `None` for a rule that
    /// only nftables can have.
    pub(crate) fn iptables(&self, table: IptablesTable) -> Option<Box<str>> {
        let mut words = String::new();
        for condition in &self.matches {
            words += &match condition {
                Match::Mark { value, mask } => format!("-m mark --mark {value:#x}/{mask:#x} "),
                Match::Source(net) => side("-s", net),
                Match::Destination(net) => side("-d", net),
                Match::SourceRange(_)
                | Match::UdpPort(_)
                | Match::Vni(_)
                | Match::NoPeer(_)
                | Match::ToPeer(_)
                | Match::Fragment
                | Match::Kept => {
                    return None;
                }
            };
        }
        let target = match &self.verdict {
            RuleVerdict::Return => "-j RETURN",
            RuleVerdict::Accept => "-j ACCEPT",
            RuleVerdict::Masquerade { fully_random: true } => "-j MASQUERADE --random-fully",
            RuleVerdict::Masquerade { fully_random: false } => "-j MASQUERADE",
            RuleVerdict::Drop | RuleVerdict::Count | RuleVerdict::Remember(_) | RuleVerdict::Other(_) => {
                return None;
            }
        };
        Some(format!("{words}{} {target}", comment(table)).into())
    }
}

fn side(flag: &str, Net { net, not }: &Net) -> String {
    format!("{}{flag} {net} ", if *not { "! " } else { "" })
}
