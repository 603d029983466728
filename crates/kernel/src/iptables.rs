//! Our chains and jumps in iptables, in both variants. They are read by `iptables-save`, and written by one
//! `iptables-restore` per variant and family. No process starts where our rules cannot be, and reading creates no
//! table.

mod listing;
mod refusal;
mod script;
mod tools;
mod watch;

#[cfg(fuzzing)]
use plan::passage::Leg;
use plan::passage::Packet;
use plan::state::iptables::is_ours;
use plan::state::{IptablesChain, IptablesTable, Variant};
use plan::underlay::{FirewallFacts, IptablesFacts, Manager, Obstacle};
use plan::{Family, Object, Op, Verb};

use crate::error::Cause;
use crate::nft::Nft;
use crate::walk::{Mark, Outcome, UNMARKED};
use listing::{Listing, PASSED, Table};
use script::Change;
use tools::Tools;

pub use watch::LegacyWatch;

/// Reads our rows, and adds the facts that only iptables can tell: `iptables`, `usual`, `unread`, `obstacles`, `unclear`.
/// `facts.tables` must name the tables of nftables. `before` is the last reading: it stands in for what cannot be read.
pub(crate) fn read(
    facts: &mut FirewallFacts,
    nft: &mut Nft,
    packets: &[Packet],
    before: (&[IptablesChain], &FirewallFacts),
) -> IptablesReading {
    facts.usual = tools::default_variant(Family::Ipv4);
    facts.unread.extend(tools::unreadable_tables());
    let (mut rows, mut covered) = (Vec::new(), Vec::new());
    for tools in Tools::all() {
        let listed = if may_hold(&tools, facts) { listing(&tools, nft) } else { Ok(Listing::default()) };
        if listed.as_ref().is_err_and(tools::lacks_kernel) {
            continue;
        }
        match listed {
            Ok(listing) => {
                facts.iptables.push(facts_of(&tools, &listing));
                let (found, unclear) = obstacles(&tools, &listing, packets);
                facts.obstacles.extend(found);
                facts.unclear |= unclear;
                if tools.variant == Variant::Nft {
                    covered.extend(listing.readable_tables().map(|table| (tools.family, table.name.clone())));
                }
                rows.extend(listing.known().flat_map(|(table, there)| rows_of(&tools, table, there)));
            }
            Err(cause) => {
                let (variant, family) = (tools.variant, tools.family);
                facts.unread.push(cause.to_string().into());
                let known =
                    before.1.iptables.iter().find(|known| (known.variant, known.family) == (variant, family));
                let unknown = || IptablesFacts { variant, family, in_use: false, refuses: None };
                facts.iptables.push(known.cloned().unwrap_or_else(unknown));
                let is_of = |obstacle: &&Obstacle| {
                    obstacle.manager == Manager::Iptables(variant)
                        && Family::of(obstacle.packet.source) == family
                };
                facts.obstacles.extend(before.1.obstacles.iter().filter(is_of).cloned());
                facts.unclear |= before.1.unclear;
                rows.extend(
                    before.0.iter().filter(|row| (row.variant, row.family) == (variant, family)).cloned(),
                );
            }
        }
    }
    IptablesReading { rows, covered }
}

/// Result of reading iptables.
pub(crate) struct IptablesReading {
    /// Our rows.
    pub(crate) rows: Vec<IptablesChain>,
    /// Tables of nf_tables that iptables could read.
    pub(crate) covered: Vec<(Family, Box<str>)>,
}

/// Lists all tables. Tables that iptables cannot read are listed as nf_tables has them. Later changes of the listed
/// chains are reported.
fn listing(tools: &Tools, nft: &mut Nft) -> Result<Listing, Cause> {
    let mut listing = tools.listing()?;
    if tools.variant == Variant::Nft {
        if nft.watch_chains(tools.family, listing.chains()) {
            listing = tools.listing()?;
        }
        for table in listing.hidden_tables() {
            let Some(native) = nft.native(tools.family, table)? else { continue };
            listing.reveal(table, &native, tools.chain(table));
        }
    }
    Ok(listing)
}

/// Applies ops of one variant and family. Each table changes as a whole; an error of one table is the error of all ops.
/// The rules are read again first: a rule to delete must exist, and a position is a number.
pub(crate) fn apply(ops: &[Op], nft: &mut Nft) -> Result<(), Cause> {
    let changes: Vec<Change<'_>> = ops.iter().filter_map(change).collect();
    let Some(Change { row, .. }) = changes.first() else { return Ok(()) };
    let Some(tools) = Tools::of(row.variant, row.family) else {
        return Err(Cause::Tool { tool: row.variant.to_string().into(), text: "it is not installed".into() });
    };
    tools.check_lock()?;
    let listing = listing(&tools, nft)?;
    match script::of(&changes, &listing) {
        script if script.is_empty() => Ok(()),
        script => tools.restore(&script),
    }
}

fn change(op: &Op) -> Option<Change<'_>> {
    match &op.object {
        // The op that follows writes a row that is recreated.
        Object::Iptables(row) if op.verb != Verb::Recreate => {
            Some(Change { row, goes: op.verb == Verb::Delete })
        }
        _ => None,
    }
}

/// Returns true if there is a table that may hold our rules. Without nft the tables are unknown, so the result is true.
fn may_hold(tools: &Tools, facts: &FirewallFacts) -> bool {
    let family = match tools.family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    let has = |table: &str| facts.tables.iter().any(|name| **name == *format!("{family} {table}"));
    let any = ["nat"].into_iter().chain(PASSED.map(|(table, _)| table)).any(has);
    tools.variant == Variant::Legacy || facts.no_nft.is_some() || any
}

fn facts_of(tools: &Tools, listing: &Listing) -> IptablesFacts {
    let refuses = listing.table(IptablesTable::Filter).and_then(undoable);
    IptablesFacts { variant: tools.variant, family: tools.family, in_use: listing.is_used(), refuses }
}

/// Returns the policy or foreign rule that refuses everything forwarded, in the chain of our accept rule.
fn undoable(filter: &Table) -> Option<Box<str>> {
    let policy = filter.policy(IptablesTable::Filter.hook()).map(|policy| format!("policy {policy}").into());
    policy.or_else(|| filter.refusal().map(|(_, words)| words))
}

/// Returns what refuses these packets or may refuse them, without what our accept rule undoes. The second value is true
/// if a packet met a rule that cannot be judged.
fn obstacles(tools: &Tools, listing: &Listing, packets: &[Packet]) -> (Vec<Obstacle>, bool) {
    let (mut all, mut unclear): (Vec<Obstacle>, bool) = (Vec::new(), false);
    for packet in packets.iter().filter(|packet| Family::of(packet.source) == tools.family) {
        let mut mark = UNMARKED;
        for (table, chain) in listing.passed(packet.leg()) {
            let outcome = judged(table, chain, packet, &mut mark);
            unclear |= outcome.unclear && packet.is_forwarded();
            let Some((what, uncertainty)) = outcome.reported(packet) else { continue };
            let obstacle = Obstacle {
                manager: Manager::Iptables(tools.variant),
                family: tools.family.nft().into(),
                table: table.name.clone(),
                chain: chain.into(),
                what,
                uncertainty,
                packet: *packet,
            };
            if !all.iter().any(|known| known.is_like(&obstacle)) {
                all.push(obstacle);
            }
        }
    }
    (all, unclear)
}

fn judged(table: &Table, chain: &str, packet: &Packet, mark: &mut Mark) -> Outcome {
    let (filter, hook) = (IptablesTable::Filter.to_string(), IptablesTable::Filter.hook());
    let is_hook = *table.name == *filter && chain == hook;
    let ours = is_hook.then(|| table.refusal()).flatten();
    let policy = table.policy(chain).filter(|_| !is_hook).map(|policy| format!("policy {policy}"));
    let undone = |words: &str| ours.as_ref().is_some_and(|(_, ours)| is_same(ours, chain, words));
    refusal::refuses(&table.chains, (chain, policy.as_deref()), packet, mark, undone)
}

/// Returns true if `undone`, which refuses all packets, is the rule that refuses this one. `undone` lacks the chain's
/// name.
fn is_same(undone: &str, chain: &str, words: &str) -> bool {
    undone.ends_with(&format!("({words})")) || *words == *format!("-A {chain} {undone}")
}

/// Returns our chain if it exists, and the built-in chain if it holds rules of ours.
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

/// Describes a foreign rule ahead of ours that refuses every packet.
fn before(table: IptablesTable, there: &Table) -> Option<Box<str>> {
    let first = there.hook.iter().position(|rule| is_ours(table, rule))?;
    let (place, refusal) = there.refusal().filter(|_| table == IptablesTable::Filter)?;
    (place < first).then(|| format!("behind {refusal}").into())
}

#[cfg(fuzzing)]
pub(crate) fn fuzz_text(text: &str, packets: &[Packet]) {
    let listing = Listing::parse(text);
    for (table, there) in listing.known() {
        let _ = (undoable(there), before(table, there));
    }
    for (table, chain) in
        [Leg::Forwarded, Leg::Received, Leg::Sent].into_iter().flat_map(|leg| listing.passed(leg))
    {
        packets.iter().for_each(|packet| drop(judged(table, chain, packet, &mut Some(0))));
    }
    let _ = (listing.is_used(), listing.hidden_tables(), listing.chains().count());
    tools::fuzz(text);
}
