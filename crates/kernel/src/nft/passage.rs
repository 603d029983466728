//! Follows packets of pods through foreign chains of nf_tables: which chains they meet, in which order, and what
//! refuses them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use plan::passage::{Leg, Packet};
use plan::state::IptablesTable;
use plan::underlay::{Manager, Obstacle, Uncertainty};
use plan::{Family, LinkName};

use super::chains::{self, Base, Rule};
use super::netlink::{self, number};
use super::program::{
    self, BRIDGE, Byte, FORWARD, Found, INET, INGRESS, INPUT, NETDEV, OUTPUT, PREROUTING, View,
};
use super::{NFT, Nft};
use crate::command;
use crate::devices::Devices;
use crate::error::Cause;
use crate::socket::Netlink;
use crate::walk::{Chains, Fate, Mark, Truth, UNMARKED, Verdict, Walk, walk};

/// Hook `NF_INET_POST_ROUTING`; a bridge's hook of that name has the same number.
const POSTROUTING: u32 = 4;

const POLICY: &str = "policy drop";

/// Number of chains and sets above which the list of them is emptied.
const MAX_WATCHED: usize = 4096;

/// Chains and sets that packets of pods meet, for the monitor: changes of other foreign ones are no news.
pub(crate) type WatchedChains = Arc<Mutex<BTreeSet<Key>>>;

/// Protocol family, table and name of a chain or set.
type Key = (u8, Box<str>, Box<str>);

/// Families with names of tables that iptables judges, or with the refusals that our accept rule undoes.
pub(crate) type Covered = [(Family, Box<str>)];

/// Rules of a built-in chain of iptables that iptables cannot read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Native {
    /// For each rule, true if it is our jump.
    pub(crate) ours: Vec<bool>,
    /// Position and text of the first foreign rule that refuses every packet.
    pub(crate) refusal: Option<(usize, Box<str>)>,
    /// True if the policy is drop.
    pub(crate) drops: bool,
}

/// Chains of one table, as a packet meets them at one hook.
struct ChainsForPacket<'a> {
    netlink: &'a mut Netlink,
    known: &'a mut HashMap<Key, Arc<[Rule]>>,
    watched: &'a WatchedChains,
    view: View<'a>,
}

impl Chains for ChainsForPacket<'_> {
    type Rule = Rule;
    type Error = Cause;

    fn rules(&mut self, chain: &str) -> Result<Arc<[Rule]>, Cause> {
        let Base { family, table, .. } = self.view.base;
        let key = (*family, table.clone(), chain.into());
        if let Some(rules) = self.known.get(&key) {
            return Ok(rules.clone());
        }
        // Changes are reported from now on, so the chain is read after this.
        watch_key(self.watched, &key);
        let rules: Arc<[Rule]> = chains::rules(self.netlink, *family, table, chain)?.into();
        self.known.insert(key, rules.clone());
        Ok(rules)
    }

    fn evaluate(&mut self, rule: &Rule, mark: Mark) -> Result<(Truth, Verdict, Mark), Cause> {
        let view = View { mark, ..self.view };
        let Base { family, table, .. } = view.base;
        let (netlink, watched) = (&mut *self.netlink, self.watched);
        let mut find = |set: &str, bytes: &[Byte]| {
            watch_key(watched, &(*family, table.clone(), set.into()));
            let Some(length) = chains::key_length(netlink, *family, table, set)? else {
                return Ok(Found::Element(None));
            };
            match program::known(bytes.get(..length as usize).unwrap_or(&[])) {
                Ok(key) => chains::element(netlink, *family, table, set, &key).map(Found::Element),
                Err(truth) => Ok(Found::Open(truth)),
            }
        };
        let (truth, verdict, mark) = program::run(&rule.expressions, view, &mut find)?;
        Ok((truth.for_packet(view.packet), verdict, mark))
    }

    fn name(&self, chain: &str, rule: &Rule) -> Box<str> {
        let Base { family, table, .. } = self.view.base;
        words(*family, table, chain, rule.handle)
    }
}

fn watch_key(watched: &WatchedChains, key: &Key) {
    watched.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
}

/// Returns a rule as nft lists it.
fn words(family: u8, table: &str, chain: &str, handle: u64) -> Box<str> {
    let list = ["-a", "list", "chain", netlink::family_name(family), table, chain];
    let text = command::run(NFT, &list, "").unwrap_or_default();
    let end = format!(" # handle {handle}");
    let line = text.lines().find_map(|line| line.trim().strip_suffix(&end)).unwrap_or_default();
    format!(
        "the rule `{}` (chain {chain}, handle {handle})",
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    )
    .into()
}

impl Nft {
    /// Registers chains whose changes are reported from now on. Returns true if any of them was not registered before.
    pub(crate) fn watch_chains<'a>(
        &mut self,
        family: Family,
        tables: impl Iterator<Item = (&'a Box<str>, &'a Box<str>)>,
    ) -> bool {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // Most of so many chains no longer exist.
        if watched.len() > MAX_WATCHED {
            watched.clear();
        }
        tables.fold(false, |any, (table, chain)| {
            watched.insert((number(family), table.clone(), chain.clone())) | any
        })
    }

    /// Returns what refuses these packets, or may refuse them, in tables that iptables does not judge. `undone` is what our
    /// accept rule undoes in iptables' FORWARD chains; it is left out.
    pub(crate) fn obstacles(
        &mut self,
        packets: &[Packet],
        covered: &Covered,
        undone: &Covered,
        devices: &Devices,
    ) -> Result<Vec<Obstacle>, Cause> {
        let watched = self.watched.clone();
        let dormant = self.dormant.clone();
        self.ask(|netlink| {
            let mut known = HashMap::new();
            let mut all: Vec<Obstacle> = Vec::new();
            let mut marks = vec![UNMARKED; packets.len()];
            let mut bases = chains::bases(netlink)?;
            bases.sort_by_key(order);
            for base in bases {
                let is_covered = covered
                    .iter()
                    .any(|(family, table)| number(*family) == base.family && *table == base.table);
                if is_covered || dormant.contains(&(base.family, base.table.clone())) {
                    continue;
                }
                let met_by = packets.iter().zip(&mut marks);
                for (packet, mark) in met_by.filter(|(packet, _)| meets(&base, packet, devices)) {
                    let index = |link: LinkName| devices.index(link);
                    let is_ipv6 = packet.source.is_ipv6();
                    let view =
                        View { packet: Some(packet), mark: *mark, base: &base, is_ipv6, index: &index };
                    let mut meeting = ChainsForPacket { netlink, known: &mut known, watched: &watched, view };
                    let policy = base.drops.then_some(POLICY);
                    let undone = |what: &str| is_undone(&base, what, undone);
                    let outcome = walk(&mut meeting, &base.name, policy, mark, undone)?;
                    if let Some((what, uncertainty)) = outcome.reported(packet) {
                        let found = obstacle(&base, what, uncertainty, *packet);
                        if !all.iter().any(|known| known.is_like(&found)) {
                            all.push(found);
                        }
                    }
                }
            }
            Ok(all)
        })
    }

    /// Returns the rules of a built-in chain of iptables that only nf_tables can list. `None` if the chain does not
    /// exist.
    pub(crate) fn native(&mut self, family: Family, table: IptablesTable) -> Result<Option<Native>, Cause> {
        let watched = self.watched.clone();
        self.ask(|netlink| {
            let bases = chains::bases(netlink)?;
            let is_it = |base: &&Base| {
                base.family == number(family)
                    && *base.table == *table.to_string()
                    && *base.name == *table.hook()
            };
            let Some(base) = bases.iter().find(is_it) else { return Ok(None) };
            let mut known = HashMap::new();
            let is_ipv6 = family == Family::Ipv6;
            let view = View { packet: None, mark: None, base, is_ipv6, index: &|_| None };
            let mut meeting = ChainsForPacket { netlink, known: &mut known, watched: &watched, view };
            let rules = meeting.rules(&base.name)?;
            let mut walk = Walk::new(&mut meeting, None);
            let mut native = Native { drops: base.drops, ..Native::default() };
            for (place, rule) in rules.iter().enumerate() {
                let ours = is_our_jump(rule, table);
                native.ours.push(ours);
                if !ours
                    && native.refusal.is_none()
                    && let Fate::Refused(words) = walk.rule(&base.name, rule)?
                {
                    native.refusal = Some((place, words));
                }
            }
            Ok(Some(native))
        })
    }
}

fn is_undone(base: &Base, what: &str, undone: &Covered) -> bool {
    let filter = IptablesTable::Filter;
    let is_hook = *base.table == *filter.to_string() && *base.name == *filter.hook();
    let says =
        |words: &str| (what == POLICY && words.starts_with("policy")) || words.contains(&quotable(what));
    is_hook && undone.iter().any(|(family, words)| number(*family) == base.family && says(words))
}

/// Replaces the characters that a comment of iptables cannot hold.
pub(crate) fn quotable(words: &str) -> String {
    words.replace(['"', '\\'], "'")
}

/// Returns true if the rule jumps to our chain, has a comment and no condition: iptables wrote it for us.
fn is_our_jump(rule: &Rule, table: IptablesTable) -> bool {
    let comment =
        |expression: &chains::Expression| &*expression.name == "match" && expression.text(1) == "comment";
    let jumps = |expression: &chains::Expression| {
        &*expression.name == "immediate" && expression.verdict(2) == Some(Verdict::Jump(table.chain().into()))
    };
    let plain = |expression: &chains::Expression| {
        comment(expression) || jumps(expression) || &*expression.name == "counter"
    };
    rule.expressions.iter().any(jumps)
        && rule.expressions.iter().all(plain)
        && (rule.has_comment || rule.expressions.iter().any(comment))
}

fn obstacle(base: &Base, what: Box<str>, uncertainty: Option<Uncertainty>, packet: Packet) -> Obstacle {
    Obstacle {
        manager: Manager::Nftables,
        family: netlink::family_name(base.family).into(),
        table: base.table.clone(),
        chain: base.name.clone(),
        what,
        uncertainty,
        packet,
    }
}

/// Returns the position of a base chain among all that a packet passes: hook and priority.
fn order(base: &Base) -> (u32, i32) {
    let hook = match (base.family, base.hook) {
        (NETDEV, 1) => POSTROUTING + 2,
        (NETDEV, _) | (INET, INGRESS) => 0,
        (_, hook) => hook + 1,
    };
    (hook, base.priority)
}

/// Returns true if the packet passes that base chain.
fn meets(base: &Base, packet: &Packet, devices: &Devices) -> bool {
    let has = |link: LinkName| base.devices.iter().any(|device| **device == *link.as_str());
    let family = Family::of(packet.source);
    let leg = packet.leg();
    match (base.family, base.hook) {
        (INET, INGRESS) | (NETDEV, 0) => leg != Leg::Sent && has(packet.inbound),
        (NETDEV, 1) => leg != Leg::Received && has(packet.outbound),
        (BRIDGE, 0 | 1) => devices.is_bridge(packet.inbound),
        (BRIDGE, OUTPUT | POSTROUTING) => devices.is_bridge(packet.outbound),
        (protocol, hook) if protocol == INET || protocol == number(family) => match hook {
            PREROUTING => leg != Leg::Sent,
            // Our source filter is no obstacle: a new peer is added to it after this.
            INPUT => leg == Leg::Received && *base.table != *family.nft_table(),
            FORWARD => leg == Leg::Forwarded,
            OUTPUT => leg == Leg::Sent,
            POSTROUTING => leg != Leg::Received,
            _ => false,
        },
        _ => false,
    }
}

/// Runs each rule of the messages in each base chain among them. Lookups meet the elements among them.
#[cfg(fuzzing)]
pub(super) fn fuzz(datagram: &[u8], packets: &[Packet]) {
    let read: Vec<_> = crate::message::parts(datagram).take(8).map(chains::fuzz).collect();
    let elements: Vec<_> = read.iter().flat_map(|(_, _, elements)| elements).collect();
    let other = Base { hook: FORWARD, ..Base::default() };
    let bases: Vec<_> = read.iter().filter_map(|(base, _, _)| base.as_ref()).chain([&other]).collect();
    let views = |base| {
        let each = packets.iter().map(|packet| (Some(packet), packet.source.is_ipv6()));
        let views = each.chain([(None, false)]);
        views.map(move |(packet, is_ipv6)| View {
            packet,
            mark: UNMARKED,
            base,
            is_ipv6,
            index: &|_| Some(2),
        })
    };
    for (_, rule, _) in &read {
        let _ = IptablesTable::ALL.map(|table| is_our_jump(rule, table));
        for view in bases.iter().flat_map(|base| views(*base)) {
            let mut find = |_: &str, bytes: &[Byte]| {
                Ok::<_, std::convert::Infallible>(match program::known(bytes) {
                    Ok(key) => {
                        let at = usize::from(*key.first().unwrap_or(&0));
                        Found::Element(elements.get(at).map(|element| (*element).clone()))
                    }
                    Err(truth) => Found::Open(truth),
                })
            };
            let Ok(_) = program::run(&rule.expressions, view, &mut find);
        }
    }
}
