//! Traffic rules of nftables and iptables. Reading them starts processes, so a reading stays valid until a change is
//! reported. This module knows no rule.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plan::passage::{Packet, Payload};
use plan::state::{IptablesChain, Variant};
use plan::underlay::{FirewallFacts, Manager};
use plan::{Family, Object, Op, State};

use crate::devices::Devices;
use crate::error::{Cause, Error};
use crate::iptables;
use crate::nft::{self, FirewallWatch, Nft};

/// The last reading of the traffic rules, and access to nftables.
#[derive(Default)]
pub(crate) struct Firewall {
    nft: Nft,
    last: RulesReading,
    /// True while the last reading is valid.
    fresh: bool,
    refused: Option<RefusedTransactions>,
}

#[derive(Clone, Default)]
struct RulesReading {
    nft: nft::Rows,
    iptables: Vec<IptablesChain>,
    facts: FirewallFacts,
    packets: Vec<Indexed>,
    at: Option<Instant>,
}

/// A packet with the indexes of its two devices; a rule may name a device by its index.
type Indexed = (Packet, [Option<u32>; 2]);

fn indexes(packet: &Packet, devices: &Devices) -> [Option<u32>; 2] {
    [packet.inbound, packet.outbound].map(|link| devices.index(link))
}

/// Adds a TCP and a UDP packet for the first of these packets on each pair of devices: a rule may refuse a whole protocol.
fn by_protocol(mut packets: Vec<Packet>) -> Vec<Packet> {
    let mut pairs = BTreeSet::new();
    let mut is_first =
        |packet: &Packet| pairs.insert((packet.source.is_ipv4(), packet.inbound, packet.outbound));
    let forwarded = packets.iter().copied().filter(Packet::is_forwarded);
    let firsts: Vec<Packet> = forwarded.filter(|packet| is_first(packet)).collect();
    let of = |payload| firsts.iter().map(move |packet| Packet { payload, ..*packet });
    packets.extend([Payload::Tcp, Payload::Udp].into_iter().flat_map(of));
    packets
}

/// Minimum time between two attempts to use or read what failed; an attempt may take long.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Time for which nftables is not tried again after it has refused our rules several times.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

impl Firewall {
    /// Adds the rows of our rules to `state`, and returns the facts. `packets` are packets of pods and
    /// between nodes; rules of others are judged by what they do with them.
    pub(crate) fn read(
        &mut self,
        state: &mut State,
        packets: Vec<Packet>,
        devices: &Devices,
    ) -> FirewallFacts {
        // No event reports that what failed would succeed now.
        let failed = self.last.facts.no_nft.is_some() || !self.last.facts.unread.is_empty();
        let packets: Vec<Indexed> =
            packets.into_iter().map(|packet| (packet, indexes(&packet, devices))).collect();
        let same = self.last.packets == packets;
        if !self.fresh || !same || (failed && self.last.at.is_none_or(|at| at.elapsed() >= RETRY_INTERVAL)) {
            let mut facts = FirewallFacts::default();
            let nft = self.read_nft(&mut facts);
            let only = by_protocol(packets.iter().map(|(packet, _)| *packet).collect());
            let before = (&*self.last.iptables, &self.last.facts);
            let iptables = iptables::read(&mut facts, &mut self.nft, &only, before);
            self.read_obstacles(&mut facts, &only, &iptables.covered, devices);
            self.last =
                RulesReading { nft, iptables: iptables.rows, facts, packets, at: Some(Instant::now()) };
            self.fresh = true;
        }
        let RulesReading { nft, iptables, facts, .. } = self.last.clone();
        let unknown_senders = self.nft.unknown_senders(&nft);
        state.nft_tables = nft.tables.into();
        state.nft_chains = nft.chains.into();
        state.nft_elements = nft.elements.into();
        state.iptables = iptables.into();
        FirewallFacts { unknown_senders, ..facts }
    }

    /// Adds the rules of others in nftables that refuse the packets. If they cannot be read, the last known ones are
    /// kept.
    fn read_obstacles(
        &mut self,
        facts: &mut FirewallFacts,
        packets: &[Packet],
        covered: &[(Family, Box<str>)],
        devices: &Devices,
    ) {
        if facts.no_nft.is_some() || packets.is_empty() {
            return;
        }
        let undone = facts.iptables.iter().filter(|facts| facts.variant == Variant::Nft);
        let undone: Vec<_> =
            undone.filter_map(|facts| Some((facts.family, facts.refuses.clone()?))).collect();
        match self.nft.obstacles(packets, covered, &undone, devices) {
            Ok(found) => facts.obstacles.extend(found),
            Err(cause) => {
                facts.unread.push(format!("nftables: {cause}").into());
                let known = self.last.facts.obstacles.iter();
                let known = known.filter(|obstacle| obstacle.manager == Manager::Nftables);
                facts.obstacles.extend(known.cloned());
            }
        }
    }

    fn read_nft(&mut self, facts: &mut FirewallFacts) -> nft::Rows {
        let rows = self.nft.read(facts);
        if let Some(RefusedTransactions { since, why, .. }) =
            self.refused.as_ref().filter(|refused| refused.is_lasting())
        {
            if since.elapsed() < REFUSED_PAUSE {
                facts.no_nft.get_or_insert_with(|| format!("it refuses our rules: {why}").into());
            } else {
                self.refused = None;
            }
        }
        rows
    }

    /// Applies ops of nftables, or ops of one variant and family of iptables (see [`together`]). Fails as a whole.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Result<(), Cause> {
        let was_fresh = std::mem::take(&mut self.fresh);
        if let Some(Object::Iptables(_)) = ops.first().map(|op| &op.object) {
            let done = iptables::apply(ops, &mut self.nft);
            // A locked iptables was not changed, so the reading stays valid.
            self.fresh = was_fresh && matches!(done, Err(Cause::Busy(_)));
            return done;
        }
        if !was_fresh {
            let mut facts = FirewallFacts::default();
            self.last.nft = self.nft.read(&mut facts);
            // A table that cannot be read is not gone.
            if let Some(text) = facts.no_nft {
                return Err(Cause::Tool { tool: "nft".into(), text });
            }
        }
        let done = self.nft.apply(ops, &mut self.last.nft);
        self.fresh = was_fresh && matches!(done, Ok(nft::LastReading::Valid));
        self.refused = done.as_ref().err().map(|cause| RefusedTransactions {
            times: self.refused.as_ref().map_or(0, |refused| refused.times) + 1,
            since: Instant::now(),
            why: cause.to_string().into(),
        });
        done.map(|_| ())
    }

    /// Renews the elements without which our rules in these families drop nothing.
    pub(crate) fn keep(&mut self, families: &[Family]) -> Result<(), Cause> {
        self.nft.keep(families)
    }

    /// Marks the last reading as outdated.
    pub(crate) fn forget(&mut self) {
        self.fresh = false;
    }

    /// Opens the monitor socket of nf_tables. Fails if the kernel has no nf_tables.
    pub(crate) fn watch(&self) -> Result<FirewallWatch, Error> {
        FirewallWatch::open(Arc::clone(&self.nft.port), self.nft.watched.clone())
    }
}

/// Refused transactions of an nftables that lists its tables; the kernel may lack what our rules need.
struct RefusedTransactions {
    times: u32,
    since: Instant,
    why: Box<str>,
}

impl RefusedTransactions {
    /// Returns true after three refusals in a row. A single one may be due to another program that changes the same
    /// objects.
    fn is_lasting(&self) -> bool {
        self.times >= 3
    }
}

/// Returns true if both ops belong to one transaction.
pub(crate) fn together(a: &Op, b: &Op) -> bool {
    match (&a.object, &b.object) {
        (Object::Iptables(a), Object::Iptables(b)) => (a.variant, a.family) == (b.variant, b.family),
        (a, b) => is_nft(a) && is_nft(b),
    }
}

/// Returns true if the object is a traffic rule.
pub(crate) fn is_rule(object: &Object) -> bool {
    is_nft(object) || matches!(object, Object::Iptables(_))
}

fn is_nft(object: &Object) -> bool {
    matches!(object, Object::NftTable(_) | Object::NftChain(_) | Object::NftElement(_))
}
