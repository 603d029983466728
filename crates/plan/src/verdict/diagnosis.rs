//! Diagnosis: finds the fault that explains which probes are answered and which are not. It claims only what this node can
//! know. `None` means that the evidence is not sufficient yet and the reported finding stays.

use std::time::Duration;

use super::judge::Judge;
use super::track::Track;
use super::{Finding, Way};
use crate::Path;

/// Time without a loss after which the direct path counts as healthy again, if it was left because of a fault.
const CALM: Duration = Duration::from_secs(10);

/// Maximum error of the search for the largest size, in bytes.
const SLACK: u16 = 3;

impl Judge {
    /// Returns the finding that the evidence supports at `now`.
    pub(super) fn diagnose(&self, now: Duration) -> Option<Finding> {
        let (tracks, rare) = (&self.tracks, &*self.rare);
        match self.peer.path {
            Path::Unreachable => return Some(Finding::Unverified),
            Path::Waiting => return None,
            Path::Direct | Path::Tunnel(_) => {}
        }
        if tracks.path.is_down() {
            let rises = tracks.path.is_rising() && !tracks.path.flaps();
            return (!rises).then(|| self.lost());
        }
        if self.peer.path == Path::Direct && rare.next_hop.is_gone() {
            return Some(self.next_hop_silent());
        }
        if let Some(why) = self.why_not_direct() {
            return Some(why);
        }
        if tracks.path.is_open() {
            return tracks.path.impossible.then_some(Finding::Unverified);
        }
        if tracks.full.is_gone() {
            let full = self.full_size().unwrap_or_default();
            if !tracks.path.heard_since(tracks.full.trouble()) {
                return None;
            }
            let told = tracks.full.too_big();
            let found =
                self.rare.ladder.as_ref().filter(|ladder| ladder.is_done(now)).map(|ladder| ladder.low());
            // If all smaller packets arrive, the large ones were lost by chance.
            let found = found.filter(|low| low.saturating_add(SLACK) < full);
            return told.or(found).map(|mtu| Finding::LostAbove { mtu });
        }
        if tracks.full.flaps() {
            return Some(Finding::Flapping { node: self.peer.public_ip });
        }
        if self.rare.outer.is_doubtful()
            && let Some(fragmented) = self.fragmented(now)
        {
            return fragmented;
        }
        if self.rare.pairs.is_fault(self.history.per_mille()) {
            return Some(Finding::ChecksumFault { node: self.peer.public_ip });
        }
        Some(Finding::Healthy)
    }

    /// Checks if full-size tunnel packets arrive whole, given that the largest packets between pods arrive. `Some(None)` means
    /// that the search for the size is not finished.
    fn fragmented(&self, now: Duration) -> Option<Option<Finding>> {
        let outer = &self.rare.outer;
        if let Some(mtu) = outer.too_big() {
            return Some(Some(Finding::Fragmented { mtu }));
        }
        let whole = self.rare.node.heard_since(outer.trouble()) && !self.rare.node.is_down();
        (outer.is_down() && whole).then(|| {
            let found = self.rare.outer_ladder.as_ref().filter(|ladder| ladder.is_done(now));
            found.map(|ladder| Finding::Fragmented { mtu: ladder.low() })
        })
    }

    /// Returns the finding for a peer whose echoes between pod subnets are lost.
    fn lost(&self) -> Finding {
        let (tracks, rare, node) = (&self.tracks, &*self.rare, self.peer.public_ip);
        let since = tracks.path.trouble();
        let alive = |track: &Track| track.heard_since(since) && !track.is_gone();
        if rare.diverted {
            return Finding::Diverted { node };
        }
        let direct = self.peer.path == Path::Direct;
        let resolves = self.peer.on_link && !rare.next_hop.impossible;
        let next_hop = resolves && alive(&rare.next_hop);
        let there = alive(&rare.there);
        if let Some(duplicate) = self.duplicate().filter(|_| next_hop) {
            return duplicate;
        }
        if tracks.path.flaps() {
            return Finding::Flapping { node };
        }
        if let Some(refused) = self.refused_there(&tracks.path).filter(|_| self.reach.is_reached()) {
            return refused;
        }
        if there && tracks.path.refused().is_none() {
            return Finding::NoWayBack { node };
        }
        if let Some(proxy) = self.proxy().filter(|_| direct && next_hop && !there && alive(&rare.node)) {
            return proxy;
        }
        if !self.reach.is_reached() && self.peer.tunnel.is_none() && (next_hop || alive(&rare.node)) {
            // Before the first pod starts, the peer's pod subnet may have no address at all.
            return Finding::Unverified;
        }
        if let Some(by) = tracks.path.refused() {
            return Finding::Refused { node, by };
        }
        match (direct, alive(&rare.node), next_hop) {
            (true, _, false) if resolves => self.next_hop_silent(),
            (true, true, _) => self.pod_addresses_lost(),
            (false, true, _) => Finding::TunnelLost {
                node,
                port: self.peer.tunnel.and_then(|tunnel| tunnel.port).unwrap_or(0),
            },
            (_, false, true) if self.reach.is_reached() => Finding::EchoLost { node },
            (_, false, true) => Finding::NoEcho,
            (_, false, false) if resolves => self.next_hop_silent(),
            (_, false, false) => Finding::Silent { node },
        }
    }

    /// Returns the reason for which a peer is reached by tunnel only, although it should be direct.
    fn why_not_direct(&self) -> Option<Finding> {
        let rare = &*self.rare;
        if !self.peer.by_evidence || self.peer.path == Path::Direct || self.way == Some(Way::Direct) {
            return None;
        }
        if rare.next_hop.is_gone() {
            return Some(self.next_hop_silent());
        }
        if rare.direct.is_down() {
            // A filter may pass echoes by tunnel and drop direct ones. So the earlier finding stays until the node itself
            // answers again.
            let heard = rare.node.heard_since(rare.direct.trouble()) && !rare.node.is_gone();
            let echoes = rare.left.as_deref().copied();
            let echoes = echoes.filter(|left| matches!(left, Finding::EchoLost { .. }) && !heard);
            let refused = rare.direct.refused().map(|by| Finding::Refused { node: self.peer.public_ip, by });
            let why = self.refused_there(&rare.direct).or(self.duplicate()).or(self.proxy());
            return Some(why.or(refused).or(echoes).unwrap_or_else(|| self.pod_addresses_lost()));
        }
        let calm = |track: &Track| track.steady_for().is_some_and(|steady| steady >= CALM);
        let well = calm(&rare.direct) && (rare.next_hop.impossible || calm(&rare.next_hop));
        self.rare.left.as_deref().copied().filter(|left| left.is_fault() && !well)
    }

    /// Returns the finding for an ICMP error from the peer itself, which needs no further evidence.
    fn refused_there(&self, track: &Track) -> Option<Finding> {
        let (node, subnet) = (self.peer.public_ip, self.peer.subnet);
        let by = track.refused().filter(|by| *by == node || subnet.contains(by))?;
        Some(Finding::Refused { node, by })
    }

    /// Returns the finding for two MAC addresses at the next hop.
    fn duplicate(&self) -> Option<Finding> {
        let macs = self.rare.macs.duplicate()?;
        Some(Finding::DuplicateAddress { next_hop: self.peer.public_ip, macs })
    }

    /// Returns the finding for a next hop whose MAC address answers for another address, too.
    fn proxy(&self) -> Option<Finding> {
        let (mac, also) = self.rare.macs.also?;
        Some(Finding::ProxyArp { next_hop: self.peer.public_ip, mac, also })
    }

    fn next_hop_silent(&self) -> Finding {
        Finding::NextHopSilent { next_hop: self.peer.public_ip, uplink: self.local.uplink }
    }

    fn pod_addresses_lost(&self) -> Finding {
        Finding::PodAddressesLost { next_hop: self.peer.public_ip, uplink: self.local.uplink }
    }

    /// Returns the size in bytes of the largest packet between pods that is known to arrive.
    pub(super) fn known_mtu(&self) -> Option<u16> {
        let full = &self.tracks.full;
        if full.is_down() {
            return match self.said.get() {
                Finding::LostAbove { mtu } => Some(mtu),
                _ => None,
            };
        }
        if full.has_answered() { self.full_size() } else { None }
    }
}
