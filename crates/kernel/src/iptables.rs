//! The chains and jumps of iptables that are ours, in both variants: read by `iptables-save`, written by one
//! `iptables-restore` per variant and family. It starts no process where nothing can stand, and makes no table by reading.

mod listing;
mod refusal;
mod script;
mod tools;
mod watch;

use plan::firewall::{Facts, IptablesChain, IptablesFacts, IptablesTable, Variant, is_ours};
use plan::input::Family;
use plan::{Object, Op, Verb};

use crate::error::Cause;
use listing::{Listing, Table};
use refusal::refuses_all;
use script::Change;
use tools::Tools;

pub use watch::LegacyWatch;

/// Ours, and the facts that only iptables can tell: `iptables`, `usual`, `unread`. `facts.tables` says what stands in
/// nftables. What cannot be read is as it was.
pub(crate) fn read(facts: &mut Facts, before: (&[IptablesChain], &Facts)) -> Vec<IptablesChain> {
    facts.usual = tools::plain(Family::Ipv4);
    facts.unread.extend(tools::not_to_be_read());
    let mut rows = Vec::new();
    for tools in Tools::all() {
        let said = if may_hold(&tools, facts) { tools.listing() } else { Ok(Listing::default()) };
        if said.as_ref().is_err_and(tools::lacks_kernel) {
            continue;
        }
        match said {
            Ok(listing) => {
                facts.iptables.push(facts_of(&tools, &listing));
                rows.extend(listing.known().flat_map(|(table, there)| rows_of(&tools, table, there)));
            }
            Err(cause) => {
                let (variant, family) = (tools.variant, tools.family);
                facts.unread.push(cause.to_string().into());
                let known =
                    before.1.iptables.iter().find(|known| (known.variant, known.family) == (variant, family));
                let unknown = || IptablesFacts { variant, family, in_use: false, refuses: None };
                facts.iptables.push(known.cloned().unwrap_or_else(unknown));
                rows.extend(
                    before.0.iter().filter(|row| (row.variant, row.family) == (variant, family)).cloned(),
                );
            }
        }
    }
    rows
}

/// Ops on one variant and family; all of them or none. What stands there is read once more: a rule that is to go must be
/// there, and a place is a number.
pub(crate) fn apply(ops: &[Op]) -> Result<(), Cause> {
    let changes: Vec<Change<'_>> = ops.iter().filter_map(change).collect();
    let Some(Change { row, .. }) = changes.first() else { return Ok(()) };
    let Some(tools) = Tools::of(row.variant, row.family) else {
        return Err(Cause::Tool { tool: row.variant.to_string().into(), text: "it is not installed".into() });
    };
    tools.check_lock()?;
    let listing = tools.listing()?;
    if let Some(table) = changes.iter().map(|change| change.row.table).find(|table| listing.is_hidden(*table))
    {
        return Err(hidden(&tools, table));
    }
    match script::of(&changes, &listing) {
        script if script.is_empty() => Ok(()),
        script => tools.restore(&script),
    }
}

fn change(op: &Op) -> Option<Change<'_>> {
    match &op.object {
        // What is to be made anew is, by the op that follows.
        Object::Iptables(row) if op.verb != Verb::Recreate => {
            Some(Change { row, goes: op.verb == Verb::Delete })
        }
        _ => None,
    }
}

fn hidden(tools: &Tools, table: IptablesTable) -> Cause {
    let text = format!(
        "the table {table} holds rules that it cannot read, made by nft, so nothing is changed there; move these to a \
         table of another name, or set EnableNFTables to true"
    );
    Cause::Tool { tool: tools.save.clone(), text: text.into() }
}

/// Is there a table that we could have rules in? Without nft nobody has looked.
fn may_hold(tools: &Tools, facts: &Facts) -> bool {
    let family = match tools.family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    let has = |table: IptablesTable| facts.tables.iter().any(|name| **name == *format!("{family} {table}"));
    tools.variant == Variant::Legacy || facts.no_nft.is_some() || IptablesTable::ALL.into_iter().any(has)
}

fn facts_of(tools: &Tools, listing: &Listing) -> IptablesFacts {
    let filter = listing.table(IptablesTable::Filter);
    let others =
        |there: &Table| there.hook.iter().find(|rule| is_refusal(IptablesTable::Filter, rule)).cloned();
    let policy = |there: &Table| {
        there.policies.iter().find(|(chain, _)| **chain == *IptablesTable::Filter.hook()).cloned()
    };
    let policy = filter.and_then(policy).map(|(_, policy)| format!("policy {policy}").into());
    IptablesFacts {
        variant: tools.variant,
        family: tools.family,
        in_use: listing.is_used(),
        refuses: policy.or_else(|| filter.and_then(others)),
    }
}

/// Is it of others, and refuses every packet?
fn is_refusal(table: IptablesTable, rule: &str) -> bool {
    !is_ours(table, rule) && refuses_all(rule)
}

/// Our chain if it is there, and the chain of all if something of ours is in it.
fn rows_of(tools: &Tools, table: IptablesTable, there: &Table) -> impl Iterator<Item = IptablesChain> {
    let Tools { variant, family, .. } = *tools;
    let row = |chain: &str, rules: Vec<Box<str>>| IptablesChain {
        variant,
        family,
        table,
        chain: chain.into(),
        rules: rules.into(),
        unknown: None,
    };
    let own = there.own.clone().map(|rules| row(table.chain(), rules));
    let ours: Vec<_> = there.hook.iter().filter(|rule| is_ours(table, rule)).cloned().collect();
    let hook = (!ours.is_empty())
        .then(|| IptablesChain { unknown: before(table, there), ..row(table.hook(), ours) });
    own.into_iter().chain(hook)
}

/// What comes before ours and leaves nothing to it.
fn before(table: IptablesTable, there: &Table) -> Option<Box<str>> {
    let before = there.hook.iter().take_while(|rule| !is_ours(table, rule));
    let refusal = before.into_iter().find(|rule| table == IptablesTable::Filter && refuses_all(rule))?;
    Some(format!("behind {refusal}").into())
}
