//! Parser for the output of iptables-save(8), in one pass. It keeps only our chains, the built-in chains that lead to
//! them, and the chains that forwarded packets may reach. There may be tens of thousands of other rules.

use std::collections::{BTreeMap, BTreeSet};

use plan::passage::Leg;
use plan::state::IptablesTable;
use plan::state::iptables::is_ours;

use super::refusal::{Rules, refusal, target};
use crate::nft::{Native, quotable};

/// Built-in chains that packets pass, in this order, in the tables that may refuse them.
pub(super) const PASSED: [(&str, &str); 13] = [
    ("raw", "PREROUTING"),
    ("mangle", "PREROUTING"),
    ("mangle", "INPUT"),
    ("filter", "INPUT"),
    ("security", "INPUT"),
    ("mangle", "FORWARD"),
    ("filter", "FORWARD"),
    ("security", "FORWARD"),
    ("raw", "OUTPUT"),
    ("mangle", "OUTPUT"),
    ("filter", "OUTPUT"),
    ("security", "OUTPUT"),
    ("mangle", "POSTROUTING"),
];

/// All tables of one variant and family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    tables: Vec<Table>,
    /// Names of tables whose rules iptables cannot read.
    hidden: Vec<Box<str>>,
}

/// A table of iptables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: Box<str>,
    /// Kind of the table, if our chains can be in it.
    known: Option<IptablesTable>,
    /// Rules of our chain; `None` if it does not exist.
    pub(super) own: Option<Vec<Box<str>>>,
    /// Rules of the built-in chain that leads to our chain.
    pub(super) hook: Vec<Box<str>>,
    /// Chains with a policy other than ACCEPT, each with that policy.
    pub(super) policies: Vec<(Box<str>, Box<str>)>,
    /// True if there are rules of others.
    others: bool,
    /// Chains that forwarded packets may reach, with their rules; empty for nat, which refuses no packet.
    pub(super) chains: Rules,
    /// All chains, while the table is being read.
    reading: BTreeMap<Box<str>, Vec<Box<str>>>,
}

impl Listing {
    pub(super) fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                listing.tables.push(Table { name: name.into(), known: known(name), ..Table::default() });
            } else if let Some(name) = hidden(line) {
                listing.hidden.push(name.into());
            } else if let Some(table) = listing.tables.last_mut() {
                table.line(line);
            }
        }
        listing.tables.iter_mut().for_each(Table::end);
        listing
    }

    pub(super) fn table(&self, table: IptablesTable) -> Option<&Table> {
        self.known().find(|(known, _)| *known == table).map(|(_, table)| table)
    }

    /// Returns the tables that our chains can be in.
    pub(super) fn known(&self) -> impl Iterator<Item = (IptablesTable, &Table)> {
        self.tables.iter().filter_map(|table| Some((table.known?, table)))
    }

    /// Returns the tables that our chains can be in, but that iptables cannot read.
    pub(super) fn hidden_tables(&self) -> Vec<IptablesTable> {
        let is_hidden = |table: &IptablesTable| self.hidden.iter().any(|name| **name == *table.to_string());
        IptablesTable::ALL.into_iter().filter(is_hidden).collect()
    }

    /// Returns the tables that iptables could read.
    pub(super) fn readable_tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| !self.hidden.contains(&table.name))
    }

    /// Returns the built-in chains that packets pass on that leg, in this order, each with its table.
    pub(super) fn passed(&self, leg: Leg) -> impl Iterator<Item = (&Table, &'static str)> {
        let table = |name: &str| self.readable_tables().find(|table| *table.name == *name);
        let met = move |chain: &str| match chain {
            "PREROUTING" => leg != Leg::Sent,
            "INPUT" => leg == Leg::Received,
            "FORWARD" => leg == Leg::Forwarded,
            "OUTPUT" => leg == Leg::Sent,
            _ => leg != Leg::Received,
        };
        let chains = PASSED.into_iter().filter(move |(_, chain)| met(chain));
        chains.filter_map(move |(name, chain)| Some((table(name)?, chain)))
    }

    /// Returns the chains that the packets may reach, as pairs of table and chain.
    pub(super) fn chains(&self) -> impl Iterator<Item = (&Box<str>, &Box<str>)> {
        self.readable_tables().flat_map(|table| table.chains.keys().map(move |chain| (&table.name, chain)))
    }

    /// Replaces a table that iptables cannot read by its content in nf_tables. Foreign rules become placeholders,
    /// except for the first one that refuses every packet.
    pub(super) fn reveal(&mut self, known: IptablesTable, native: &Native, own: Option<Vec<Box<str>>>) {
        let hook = native.ours.iter().enumerate().map(|(place, ours)| match &native.refusal {
            _ if *ours => known.jump().into(),
            Some((at, words)) if *at == place => {
                format!("-m comment --comment \"{}\" -j DROP", quotable(words)).into()
            }
            _ => "-m native".into(),
        });
        let hook: Vec<Box<str>> = hook.collect();
        let policies = native.drops.then(|| (known.hook().into(), "DROP".into()));
        self.tables.retain(|table| table.known != Some(known));
        self.tables.push(Table {
            name: known.to_string().into(),
            known: Some(known),
            own,
            chains: [(known.hook().into(), hook.clone().into())].into(),
            hook,
            policies: policies.into_iter().collect(),
            others: true,
            reading: BTreeMap::new(),
        });
    }

    /// Returns true if others have rules or policies.
    pub(super) fn is_used(&self) -> bool {
        let used = |table: &Table| table.others || !table.policies.is_empty();
        !self.hidden.is_empty() || self.tables.iter().any(used)
    }
}

impl Table {
    fn line(&mut self, line: &str) {
        if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            self.rule(chain, rule.trim_end());
        } else if let Some((chain, policy)) = line.strip_prefix(':').and_then(|line| line.split_once(' ')) {
            self.chain(chain, policy.split(' ').next().unwrap_or_default());
        }
    }

    fn chain(&mut self, chain: &str, policy: &str) {
        if !["ACCEPT", "-"].contains(&policy) {
            self.policies.push((chain.into(), policy.into()));
        }
        self.reading.entry(chain.into()).or_default();
        if self.known.is_some_and(|table| table.chain() == chain) {
            self.own = Some(Vec::new());
        }
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        if *self.name != *"nat" {
            self.reading.entry(chain.into()).or_default().push(rule.into());
        }
        match (self.known, &mut self.own) {
            (Some(table), Some(own)) if table.chain() == chain => own.push(rule.into()),
            (Some(table), _) if table.hook() == chain => {
                self.others |= !is_ours(table, rule);
                self.hook.push(rule.into());
            }
            _ => self.others = true,
        }
    }
}

impl Table {
    /// Returns the built-in chains of this table that packets pass.
    fn passed(&self) -> impl Iterator<Item = Box<str>> {
        PASSED.iter().filter(|(name, _)| **name == *self.name).map(|(_, chain)| (*chain).into())
    }

    /// Returns the policy of a built-in chain, unless it is ACCEPT.
    pub(super) fn policy(&self, chain: &str) -> Option<&str> {
        self.policies.iter().find(|(name, _)| **name == *chain).map(|(_, policy)| &**policy)
    }

    /// Returns position and text of the first foreign rule that refuses every packet, in the chain that leads to ours.
    pub(super) fn refusal(&self) -> Option<(usize, Box<str>)> {
        let table = self.known?;
        refusal(&self.chains, table, table.hook())
    }

    /// Keeps only the chains that forwarded packets may reach.
    fn end(&mut self) {
        let mut all = std::mem::take(&mut self.reading);
        let mut next: Vec<Box<str>> = self.passed().collect();
        let mut kept = BTreeSet::new();
        while let Some(chain) = next.pop() {
            let Some(rules) = all.get(&chain).filter(|_| !kept.contains(&chain)) else { continue };
            kept.insert(chain);
            next.extend(rules.iter().filter_map(|rule| target(rule)).map(Into::into));
        }
        all.retain(|chain, _| kept.contains(chain));
        self.chains = all.into_iter().map(|(chain, rules)| (chain, rules.into())).collect();
    }
}

fn known(name: &str) -> Option<IptablesTable> {
    IptablesTable::ALL.into_iter().find(|table| *name == *table.to_string())
}

/// Returns the name of a table that iptables-nft calls incompatible in this line.
fn hidden(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("# Table `")?.split_once('\'')?;
    rest.contains("incompatible").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(rules: &[&str]) -> Vec<Box<str>> {
        rules.iter().map(|rule| (*rule).into()).collect()
    }

    #[test]
    fn a_listing_keeps_our_chain_and_the_built_in_chain() {
        let listing = Listing::parse(
            "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n\
             # Generated by iptables-nft-save v1.8.9 (nf_tables) on Mon Nov 23 02:55:23 2026\n\
             *filter\n:INPUT ACCEPT [1:52]\n:FORWARD DROP [7:588]\n:OUTPUT ACCEPT [0:0]\n:FLANNEL-FWD - [0:0]\n\
             -A INPUT -j ACCEPT\n\
             -A FORWARD\n\
             -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
             -A FORWARD -m comment --comment \"a \\\"b\\\" c\\\\d \\'e\\'\" -j DROP\n\
             -A FLANNEL-FWD ! -s 10.0.0.0/8 -m comment --comment plain -j REJECT --reject-with icmp-port-unreachable\n\
             COMMIT\n# Completed\n*mangle\n:FORWARD DROP [0:0]\nCOMMIT\n",
        );
        let filter = listing.table(IptablesTable::Filter).unwrap();
        let own = "! -s 10.0.0.0/8 -m comment --comment plain -j REJECT --reject-with icmp-port-unreachable";
        assert_eq!(filter.own, Some(rules(&[own])));
        let ours = "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD";
        let dropped = "-m comment --comment \"a \\\"b\\\" c\\\\d \\'e\\'\" -j DROP";
        assert_eq!(filter.hook, rules(&["", ours, dropped]));
        assert_eq!(filter.policies, [("FORWARD".into(), "DROP".into())]);
        assert!(listing.table(IptablesTable::Nat).is_none());
        assert_eq!(listing.known().count(), 1, "mangle is none of ours");
    }

    #[test]
    fn foreign_rules_or_policies_mark_iptables_as_used() {
        let chains = ":INPUT ACCEPT [5:1]\n:FORWARD ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:FLANNEL-FWD - [0:0]\n";
        let ours =
            "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n-A FLANNEL-FWD -j ACCEPT\n";
        for (text, used) in [
            (String::new(), false),
            (format!("*filter\n{chains}{ours}COMMIT\n"), false),
            (format!("*filter\n{chains}{ours}-A FORWARD -j ACCEPT\nCOMMIT\n"), true),
            (format!("*nat\n{chains}{ours}COMMIT\n"), true),
            (format!("*filter\n{chains}-A KUBE-FIREWALL -j DROP\nCOMMIT\n"), true),
            ("*raw\n:PREROUTING DROP [0:0]\nCOMMIT\n".into(), true),
            ("# Table `filter' is incompatible, use 'nft' tool.\n".into(), true),
        ] {
            assert_eq!(Listing::parse(&text).is_used(), used, "{text}");
        }
    }

    #[test]
    fn a_table_that_nft_has_filled_is_hidden() {
        let listing = Listing::parse("# Table `filter' is incompatible, use 'nft' tool.\n*nat\nCOMMIT\n");
        assert_eq!(listing.hidden_tables(), [IptablesTable::Filter]);
    }
}
