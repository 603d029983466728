//! Turns ops into one script for `nft -f -`. A script is one transaction: no packet meets a gap between old and new
//! rules. An object to delete may be gone already. So the script adds it first, and its deletion is no error. This
//! module is pure.

use std::fmt::{self, Write};

use plan::state::{NftChain, NftChainName, NftElement, NftTable};
use plan::{Family, Object, Op, Verb};

use super::Rows;
use super::sets::{KEPT, SetName, Shape};

/// Returns the script; empty if there is nothing to do.
pub(super) fn of(ops: &[&Op], last: &Rows) -> String {
    let mut script = Script { text: String::new(), last };
    let (deletions, additions): (Vec<&Op>, Vec<&Op>) =
        ops.iter().copied().partition(|op| matches!(op.verb, Verb::Delete | Verb::Recreate));
    let (written, gone) = (chains(&additions), chains(&deletions));
    for op in &additions {
        if let Object::NftTable(table) = &op.object {
            script.add_table(table.family);
        }
    }
    // A set of another type can be replaced only when no rule of either filter chain refers to it.
    written.iter().for_each(|row| script.empty_chain(row));
    for family in Family::ALL {
        let is_used = |set: &SetName| written.iter().any(|row| looks_into(row, family, *set));
        SetName::ALL.into_iter().filter(is_used).for_each(|set| script.write_set(family, set));
    }
    written.iter().for_each(|row| script.write_rules(row));
    for family in Family::ALL {
        script.add_elements(&elements(&additions, family), family);
        script.delete_elements(&elements(&deletions, family), family);
    }
    gone.iter().for_each(|row| script.delete_chain(row));
    script.delete_sets(&written, &gone);
    for op in &deletions {
        if let Object::NftTable(table) = &op.object {
            script.delete_table(table);
        }
    }
    script.text
}

fn chains<'a>(ops: &[&'a Op]) -> Vec<&'a NftChain> {
    let chain = |op: &&'a Op| if let Object::NftChain(row) = &op.object { Some(row) } else { None };
    ops.iter().filter_map(chain).collect()
}

/// Returns the sets that a chain's rules refer to.
pub(super) fn sets_of(chain: &NftChainName) -> &'static [SetName] {
    match chain {
        NftChainName::Vxlan | NftChainName::VxlanPods => &SetName::ALL,
        _ => &[],
    }
}

fn looks_into(row: &NftChain, family: Family, set: SetName) -> bool {
    row.family == family && sets_of(&row.chain).contains(&set)
}

/// Returns a separate script that wakes the dormant tables of ours.
pub(super) fn wake_script(last: &Rows) -> String {
    let mut script = Script { text: String::new(), last };
    last.dormant.iter().for_each(|family| script.add_table(*family));
    script.text
}

/// Returns a separate script that creates the peers' sets. It is for more peers than the script of the rules can hold.
/// No rule refers to a set that is not yet complete.
pub(super) fn peers_sets(families: &[Family], last: &Rows) -> String {
    let mut script = Script { text: String::new(), last };
    for &family in families {
        script.add_table(family);
        let filters = [NftChainName::Vxlan, NftChainName::VxlanPods];
        for chain in filters.iter().filter(|chain| last.chain(family, chain).is_some()) {
            script.line(format_args!("flush chain {} {chain}", Table(family)));
        }
        script.write_set(family, SetName::Peers);
    }
    script.text
}

/// Returns the addresses of one family, separated as in nft's lists.
fn elements(ops: &[&Op], family: Family) -> String {
    let addresses = ops.iter().filter_map(|op| match &op.object {
        Object::NftElement(NftElement { address }) if Family::of(*address) == family => {
            Some(address.to_string())
        }
        _ => None,
    });
    addresses.collect::<Vec<_>>().join(", ")
}

struct Script<'a> {
    text: String,
    last: &'a Rows,
}

/// Our table of one family; prints as `ip flannel-ipv4`.
struct Table(Family);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.nft(), self.0.nft_table())
    }
}

impl Script<'_> {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    /// Creates the table. This also wakes a dormant table, since the line names no flag.
    fn add_table(&mut self, family: Family) {
        let name = family.nft_table();
        self.line(format_args!("add table {} {{ comment \"rules for {name}\"; }}", Table(family)));
    }

    fn empty_chain(&mut self, row: &NftChain) {
        let NftChain { family, chain, .. } = row;
        let table = Table(*family);
        self.add_table(*family);
        // The kernel cannot change a chain's type, hook or priority.
        if self.last.chain(*family, chain).is_some_and(|last| last.unknown.is_some()) {
            self.line(format_args!("add chain {table} {chain}"));
            self.line(format_args!("delete chain {table} {chain}"));
        }
        let (hook, comment) = (chain.hook(), chain.comment());
        self.line(format_args!(
            "add chain {table} {chain} {{ {hook}; policy accept; comment \"{comment}\"; }}"
        ));
        self.line(format_args!("flush chain {table} {chain}"));
    }

    fn write_rules(&mut self, row: &NftChain) {
        let NftChain { family, chain, rules, .. } = row;
        let table = Table(*family);
        for rule in rules {
            self.line(format_args!("add rule {table} {chain} {rule}"));
        }
        if row.is_kept() {
            let (set, seconds) = (SetName::Keeper.as_str(), KEPT.as_secs());
            // Kernels before 6.12 do not extend the time of an element that exists.
            self.line(format_args!("flush set {table} {set}"));
            self.line(format_args!(
                "add element {table} {set} {{ {} timeout {seconds}s }}",
                libc::IPPROTO_UDP
            ));
        }
    }

    /// Creates the set, in place of one of another type. The rules that refer to it must be gone.
    fn write_set(&mut self, family: Family, set: SetName) {
        if self.last.sets.contains(&(family, set, Shape::Wrong)) {
            self.line(format_args!("delete set {} {}", Table(family), set.as_str()));
        }
        self.add_set(family, set);
    }

    fn add_set(&mut self, family: Family, set: SetName) {
        self.line(format_args!("add set {} {} {}", Table(family), set.as_str(), set.definition(family)));
    }

    fn add_elements(&mut self, addresses: &str, family: Family) {
        if addresses.is_empty() {
            return;
        }
        if !self.last.has(family, SetName::Peers) {
            self.add_table(family);
            self.add_set(family, SetName::Peers);
        }
        self.line(format_args!("add element {} vteps {{ {addresses} }}", Table(family)));
    }

    fn delete_elements(&mut self, addresses: &str, family: Family) {
        if addresses.is_empty() || !self.last.has(family, SetName::Peers) {
            return;
        }
        for verb in ["add", "delete"] {
            self.line(format_args!("{verb} element {} vteps {{ {addresses} }}", Table(family)));
        }
    }

    fn delete_chain(&mut self, row: &NftChain) {
        let NftChain { family, chain, .. } = row;
        let table = Table(*family);
        if self.last.chain(*family, chain).is_some() {
            self.line(format_args!("add table {table}"));
            self.line(format_args!("add chain {table} {chain}"));
            self.line(format_args!("delete chain {table} {chain}"));
        }
    }

    /// Deletes each set with the last chain whose rules refer to it.
    fn delete_sets(&mut self, written: &[&NftChain], gone: &[&NftChain]) {
        for (family, set) in Family::ALL.into_iter().flat_map(|family| SetName::ALL.map(|set| (family, set)))
        {
            let looks = |row: &NftChain| looks_into(row, family, set);
            let is_gone = |row: &NftChain| {
                gone.iter().any(|gone| (gone.family, &gone.chain) == (row.family, &row.chain))
            };
            let stays = self.last.chains.iter().any(|row| looks(row) && !is_gone(row));
            if gone.iter().any(|row| looks(row)) && !stays && !written.iter().any(|row| looks(row)) {
                self.delete_set(family, set);
            }
        }
    }

    fn delete_set(&mut self, family: Family, set: SetName) {
        if self.last.has(family, set) {
            self.add_set(family, set);
        }
        if self.last.sets.iter().any(|(of, name, _)| (*of, *name) == (family, set)) {
            self.line(format_args!("delete set {} {}", Table(family), set.as_str()));
        }
    }

    fn delete_table(&mut self, row: &NftTable) {
        if self.last.tables.contains(row) {
            let table = Table(row.family);
            self.line(format_args!("add table {table}"));
            self.line(format_args!("delete table {table}"));
        }
    }
}
