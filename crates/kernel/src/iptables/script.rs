//! Scripts for iptables-restore(8). Each table changes at once or not at all, so no packet ever meets half of a change.

use std::fmt::Write;

use plan::state::iptables::is_ours;
use plan::state::{IptablesChain, IptablesTable};

use super::listing::{Listing, Table};

/// A row to write or to delete.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    pub(super) row: &'a IptablesChain,
    /// True to delete the row.
    pub(super) goes: bool,
}

/// Returns the script; empty if there is nothing to do.
pub(super) fn of(changes: &[Change<'_>], there: &Listing) -> String {
    let mut script = String::new();
    for table in IptablesTable::ALL {
        let changes: Vec<_> = changes.iter().filter(|change| change.row.table == table).copied().collect();
        let lines = table_lines(table, &changes, there.table(table).unwrap_or(&Table::default()));
        if !lines.is_empty() {
            script += &format!("*{table}\n{lines}COMMIT\n");
        }
    }
    script
}

/// Returns the lines for one table. Jumps are deleted before the chain that they lead to, and added after it.
fn table_lines(table: IptablesTable, changes: &[Change<'_>], there: &Table) -> String {
    let own = changes.iter().find(|change| !change.row.is_hook());
    let hook = changes.iter().find(|change| change.row.is_hook());
    let chain = table.chain();
    let mut lines = String::new();
    // A chain that does not exist needs no deletion; this line would create it.
    let own = own.filter(|own| !own.goes || there.own.is_some());
    if own.is_some() {
        add(&mut lines, format_args!(":{chain} - [0:0]"));
    }
    if hook.is_some() || own.is_some_and(|own| own.goes) {
        let ours = there.hook.iter().filter(|rule| is_ours(table, rule));
        ours.for_each(|rule| add(&mut lines, format_args!("-D {} {rule}", table.hook())));
    }
    match own {
        Some(own) if own.goes => add(&mut lines, format_args!("-X {chain}")),
        Some(own) => own.row.rules.iter().for_each(|rule| add(&mut lines, format_args!("-A {chain} {rule}"))),
        None => {}
    }
    if let Some(Change { row, goes: false }) = hook {
        lines += &jumps(row, there);
    }
    lines
}

/// Returns lines that add our jumps: at the end, as flannel does, or ahead of a rule that refuses everything. Positions
/// count the rules without ours.
fn jumps(row: &IptablesChain, there: &Table) -> String {
    let (table, chain) = (row.table, row.table.hook());
    let refusal = there.refusal().filter(|_| table == IptablesTable::Filter);
    let ahead =
        refusal.map(|(place, _)| there.hook.iter().take(place).filter(|rule| !is_ours(table, rule)).count());
    let mut lines = String::new();
    for (more, rule) in row.rules.iter().enumerate() {
        match ahead {
            Some(ahead) => add(&mut lines, format_args!("-I {chain} {} {rule}", ahead + 1 + more)),
            None => add(&mut lines, format_args!("-A {chain} {rule}")),
        }
    }
    lines
}

fn add(lines: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = writeln!(lines, "{line}");
}

#[cfg(test)]
mod tests {
    use plan::Family;
    use plan::state::Variant;

    use super::*;

    const JUMP: &str = "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD";

    fn row(chain: &str, rules: &[&str]) -> IptablesChain {
        IptablesChain {
            variant: Variant::Nft,
            family: Family::Ipv4,
            table: IptablesTable::Filter,
            chain: chain.into(),
            rules: rules.iter().map(|rule| (*rule).into()).collect(),
            unknown: None,
        }
    }

    fn script(rows: &[IptablesChain], goes: bool, there: &str) -> String {
        let changes: Vec<_> = rows.iter().map(|row| Change { row, goes }).collect();
        of(&changes, &Listing::parse(there))
    }

    #[test]
    fn a_jump_is_last_or_ahead_of_a_rule_that_refuses_all() {
        let desired = [row("FLANNEL-FWD", &["-j ACCEPT"]), row("FORWARD", &[JUMP])];
        let fresh =
            format!("*filter\n:FLANNEL-FWD - [0:0]\n-A FLANNEL-FWD -j ACCEPT\n-A FORWARD {JUMP}\nCOMMIT\n");
        assert_eq!(script(&desired, false, ""), fresh);
        let rules = format!(
            "-A FORWARD {JUMP}\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT\n-A FORWARD {JUMP}\n"
        );
        let there = format!("*filter\n{rules}COMMIT\n");
        assert_eq!(
            script(&desired[1..], false, &there),
            format!("*filter\n-D FORWARD {JUMP}\n-D FORWARD {JUMP}\n-I FORWARD 2 {JUMP}\nCOMMIT\n")
        );
    }

    #[test]
    fn deletions_begin_with_jumps_and_skip_missing_rules() {
        let rows = [row("FLANNEL-FWD", &[]), row("FORWARD", &[])];
        assert_eq!(script(&rows, true, "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT\n"), "");
        let there = format!("*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD {JUMP}\nCOMMIT\n");
        let expected = format!("*filter\n:FLANNEL-FWD - [0:0]\n-D FORWARD {JUMP}\n-X FLANNEL-FWD\nCOMMIT\n");
        assert_eq!(script(&rows, true, &there), expected);
        assert_eq!(script(&rows[..1], true, &there), expected);
    }
}
