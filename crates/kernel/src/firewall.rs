//! Traffic rules, whoever enforces them: what was read stays good until somebody says that it may have changed, since
//! reading takes processes. It knows no rule.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use plan::firewall::{Facts, IptablesChain, Manager, Packet, Variant};
use plan::input::Family;
use plan::{Object, Op, State};

use crate::error::Cause;
use crate::link::Devices;
use crate::nft::{self, Nft};
use crate::{Kernel, iptables};

/// The last reading, and the ways to read.
#[derive(Default)]
pub(crate) struct Firewall {
    nft: Nft,
    seen: Reading,
    /// Is the reading still good?
    fresh: bool,
    refused: Option<Refused>,
}

#[derive(Clone, Default)]
struct Reading {
    nft: nft::Rows,
    iptables: Vec<IptablesChain>,
    facts: Facts,
    packets: Vec<Indexed>,
    at: Option<Instant>,
}

/// A packet with the indexes of its devices: rules may name a device by its index.
type Indexed = (Packet, [Option<u32>; 2]);

fn indexes(packet: &Packet, devices: &Devices) -> [Option<u32>; 2] {
    [packet.inbound, packet.outbound].map(|link| devices.index(link))
}

/// What could not be used or read is asked for no sooner: it may have taken long.
const AGAIN: Duration = Duration::from_secs(10);
/// So long nftables is not tried again after it has refused our rules several times.
const REFUSED: Duration = Duration::from_secs(60);

impl Kernel {
    /// The traffic rules are read anew at the next look.
    pub fn forget_firewall(&mut self) {
        self.firewall.fresh = false;
    }
}

impl Firewall {
    /// Adds what is there of ours, and gives the facts.
    /// `packets` are those of pods by which others' rules are judged.
    pub(crate) fn read(&mut self, state: &mut State, packets: Vec<Packet>, devices: &Devices) -> Facts {
        // No event tells that what failed would go now.
        let failed = self.seen.facts.no_nft.is_some() || !self.seen.facts.unread.is_empty();
        let packets: Vec<Indexed> =
            packets.into_iter().map(|packet| (packet, indexes(&packet, devices))).collect();
        let same = self.seen.packets == packets;
        if !self.fresh || !same || (failed && self.seen.at.is_none_or(|at| at.elapsed() >= AGAIN)) {
            let mut facts = Facts::default();
            let nft = self.read_nft(&mut facts);
            let only: Vec<Packet> = packets.iter().map(|(packet, _)| *packet).collect();
            let before = (&*self.seen.iptables, &self.seen.facts);
            let iptables = iptables::read(&mut facts, &mut self.nft, &only, before);
            self.look_in_the_way(&mut facts, &only, &iptables.covered, devices);
            self.seen = Reading { nft, iptables: iptables.rows, facts, packets, at: Some(Instant::now()) };
            self.fresh = true;
        }
        let Reading { nft, iptables, facts, .. } = self.seen.clone();
        let strangers = self.nft.strangers(&nft);
        state.nft_tables = nft.tables.into();
        state.nft_chains = nft.chains.into();
        state.nft_elements = nft.elements.into();
        state.iptables = iptables.into();
        Facts { strangers, ..facts }
    }

    /// What cannot be read is as it was.
    fn look_in_the_way(
        &mut self,
        facts: &mut Facts,
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
                let known = self.seen.facts.obstacles.iter();
                let known = known.filter(|obstacle| obstacle.manager == Manager::Nftables);
                facts.obstacles.extend(known.cloned());
            }
        }
    }

    fn read_nft(&mut self, facts: &mut Facts) -> nft::Rows {
        let rows = self.nft.read(facts);
        if let Some(Refused { since, why, .. }) = self.refused.as_ref().filter(|refused| refused.is_lasting())
        {
            if since.elapsed() < REFUSED {
                facts.no_nft.get_or_insert_with(|| format!("it refuses our rules: {why}").into());
            } else {
                self.refused = None;
            }
        }
        rows
    }

    /// Ops of one `kind`.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Result<(), Cause> {
        let was_fresh = std::mem::take(&mut self.fresh);
        if let Some(Object::Iptables(_)) = ops.first().map(|op| &op.object) {
            let done = iptables::apply(ops, &mut self.nft);
            // Nothing was touched.
            self.fresh = was_fresh && matches!(done, Err(Cause::Busy(_)));
            return done;
        }
        if !was_fresh {
            let mut facts = Facts::default();
            self.seen.nft = self.nft.read(&mut facts);
            // What cannot be read is not gone.
            if let Some(text) = facts.no_nft {
                return Err(Cause::Tool { tool: "nft".into(), text });
            }
        }
        let done = self.nft.apply(ops, &mut self.seen.nft);
        self.fresh = was_fresh && matches!(done, Ok(nft::Reading::Good));
        self.refused = done.as_ref().err().map(|cause| Refused {
            times: self.refused.as_ref().map_or(0, |refused| refused.times) + 1,
            since: Instant::now(),
            why: cause.to_string().into(),
        });
        done.map(|_| ())
    }

    /// Chains and sets that packets of pods meet.
    pub(crate) fn met(&self) -> nft::Met {
        self.nft.met.clone()
    }

    /// Of the socket that changes elements without a tool.
    pub(crate) fn nft_port(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.nft.port)
    }
}

/// nftables lists tables and takes no rules of ours: the kernel may lack what they need.
struct Refused {
    times: u32,
    since: Instant,
    why: Box<str>,
}

impl Refused {
    /// Once may be somebody who changes the same at the same moment.
    fn is_lasting(&self) -> bool {
        self.times >= 3
    }
}

/// Do both go in one transaction?
pub(crate) fn together(a: &Op, b: &Op) -> bool {
    match (&a.object, &b.object) {
        (Object::Iptables(a), Object::Iptables(b)) => (a.variant, a.family) == (b.variant, b.family),
        (a, b) => is_nft(a) && is_nft(b),
    }
}

/// Is it a traffic rule?
pub(crate) fn is_rule(object: &Object) -> bool {
    is_nft(object) || matches!(object, Object::Iptables(_))
}

fn is_nft(object: &Object) -> bool {
    matches!(object, Object::NftTable(_) | Object::NftChain(_) | Object::NftElement(_))
}
