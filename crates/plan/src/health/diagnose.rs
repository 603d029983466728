//! Diagnosis: finds the fault that explains which probes are answered and which are not. It claims only what this node can
//! know.

use std::time::Duration;

use super::evidence::Evidence;
use super::probe_results::ProbeResults;
use super::time::Time;
use super::{Finding, PreferredPath};
use crate::peer::Path;

/// Time without a loss after which a direct path that was left counts as healthy again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Maximum error of the search for the largest size, in bytes.
const MAX_SEARCH_ERROR: u16 = 3;

/// Returns the finding that the evidence supports at `now`, or `None` if the evidence is not sufficient yet. The last finding
/// then stays.
pub(super) fn diagnose(evidence: &Evidence, now: Time) -> Option<Finding> {
    let Evidence { peer, history, .. } = evidence;
    let (path, full, details) = (&history.path, &history.full, history.details());
    match peer.path {
        Path::Unreachable => return Some(Finding::Unverified),
        Path::Waiting => return None,
        Path::Direct | Path::Tunnel(_) => {}
    }
    if path.is_down() {
        let rises = path.is_recovering() && !path.flaps();
        return (!rises).then(|| lost(evidence));
    }
    if peer.path == Path::Direct && details.next_hop.is_gone() {
        return Some(next_hop_silent(evidence));
    }
    if let Some(why) = why_not_direct(evidence) {
        return Some(why);
    }
    if path.is_open() {
        return path.impossible.then_some(Finding::Unverified);
    }
    if full.is_gone() {
        return large_lost(evidence, now);
    }
    if full.flaps() {
        return Some(Finding::Flapping { node: peer.public_ip });
    }
    if details.outer.is_uncertain()
        && let Some(fragmented) = fragmented(evidence, now)
    {
        return fragmented;
    }
    if details.pairs.is_fault(history.echoes.loss()) {
        return Some(Finding::ChecksumFault { node: peer.public_ip });
    }
    Some(Finding::Healthy)
}

/// Returns the size above which packets between pods are lost, given that the largest ones are.
fn large_lost(evidence: &Evidence, now: Time) -> Option<Finding> {
    let results = &evidence.history.full;
    if !evidence.history.path.answered_since(results.failing_since()) {
        return None;
    }
    let full = evidence.full_size().unwrap_or_default();
    let found = evidence.history.details().path_search.as_ref().and_then(|search| search.result(now));
    // If all smaller packets arrive, the large ones were lost by chance.
    let found = found.filter(|arrived| arrived.saturating_add(MAX_SEARCH_ERROR) < full);
    results.too_big().or(found).map(|mtu| Finding::LostAbove { mtu })
}

/// Checks if full-size tunnel packets arrive whole, given that the largest packets between pods arrive. `Some(None)` means
/// that the search for the size is not finished.
fn fragmented(evidence: &Evidence, now: Time) -> Option<Option<Finding>> {
    let details = evidence.history.details();
    let outer = &details.outer;
    // Over IPv6 the kernel makes no fragments, so the packets of pods are most likely lost, too. Their next probe tells.
    if evidence.peer.public_ip.is_ipv6() && !evidence.history.full.answered_since(outer.run_from()) {
        return Some(None);
    }
    if let Some(mtu) = outer.too_big() {
        return Some(Some(Finding::Fragmented { mtu }));
    }
    let is_answering = details.node.answered_since(outer.failing_since()) && !details.node.is_down();
    (outer.is_down() && is_answering).then(|| {
        let found = details.outer_search.as_ref().and_then(|search| search.result(now));
        found.map(|mtu| Finding::Fragmented { mtu })
    })
}

/// Returns the finding for a peer whose echoes between pod subnets are lost.
fn lost(evidence: &Evidence) -> Finding {
    let (peer, path, details) = (&evidence.peer, &evidence.history.path, evidence.history.details());
    let node = peer.public_ip;
    let alive = |results: &ProbeResults| results.answered_since(path.failing_since()) && !results.is_gone();
    if evidence.diverted {
        return Finding::Diverted { node };
    }
    let direct = peer.path == Path::Direct;
    let resolves = peer.on_link && !details.next_hop.impossible;
    let next_hop = resolves && alive(&details.next_hop);
    let there = alive(&details.there);
    if let Some(duplicate) = duplicate(evidence).filter(|_| next_hop) {
        return duplicate;
    }
    if path.flaps() {
        return Finding::Flapping { node };
    }
    if let Some(refused) = refused_there(evidence, path).filter(|_| evidence.reached) {
        return refused;
    }
    if there && path.refused().is_none() {
        return Finding::NoWayBack { node };
    }
    if let Some(proxy) = proxy(evidence).filter(|_| direct && next_hop && !there && alive(&details.node)) {
        return proxy;
    }
    if !evidence.reached && peer.tunnel.is_none() && (next_hop || alive(&details.node)) {
        // Before the first pod starts, the peer's pod subnet may have no address at all.
        return Finding::Unverified;
    }
    if let Some(by) = path.refused() {
        return Finding::Refused { node, by };
    }
    match (direct, alive(&details.node), next_hop) {
        (true, _, false) if resolves => next_hop_silent(evidence),
        (true, true, _) => pod_addresses_lost(evidence),
        (false, true, _) => {
            Finding::TunnelLost { node, port: peer.tunnel.and_then(|tunnel| tunnel.port).unwrap_or(0) }
        }
        (_, false, true) if evidence.reached => Finding::EchoLost { node },
        (_, false, true) => Finding::NoEcho,
        (_, false, false) if resolves => next_hop_silent(evidence),
        (_, false, false) => Finding::Silent { node },
    }
}

/// Returns the reason for which a peer is reached by tunnel only, although it should be direct.
fn why_not_direct(evidence: &Evidence) -> Option<Finding> {
    let (peer, details, left) = (&evidence.peer, evidence.history.details(), evidence.left());
    if !peer.by_evidence
        || peer.path == Path::Direct
        || evidence.preferred_path() == Some(PreferredPath::Direct)
    {
        return None;
    }
    if details.next_hop.is_gone() {
        return Some(next_hop_silent(evidence));
    }
    if details.direct.is_down() {
        // A filter may pass echoes by tunnel and drop direct ones. So the earlier finding stays until the node itself
        // answers again.
        let is_answered =
            details.node.answered_since(details.direct.failing_since()) && !details.node.is_gone();
        let echoes = left.filter(|left| matches!(left, Finding::EchoLost { .. }) && !is_answered);
        let refused = details.direct.refused().map(|by| Finding::Refused { node: peer.public_ip, by });
        let why = refused_there(evidence, &details.direct).or(duplicate(evidence)).or(proxy(evidence));
        return Some(why.or(refused).or(echoes).unwrap_or_else(|| pod_addresses_lost(evidence)));
    }
    let calm = |results: &ProbeResults| results.steady_for().is_some_and(|steady| steady >= HEALTHY_AFTER);
    let well = calm(&details.direct) && (details.next_hop.impossible || calm(&details.next_hop));
    left.filter(|left| left.is_fault() && !well)
}

/// Returns the finding for an ICMP error from the peer itself, which needs no further evidence.
fn refused_there(evidence: &Evidence, results: &ProbeResults) -> Option<Finding> {
    let (node, subnet) = (evidence.peer.public_ip, evidence.peer.subnet);
    let by = results.refused().filter(|by| *by == node || subnet.contains(by))?;
    Some(Finding::Refused { node, by })
}

/// Returns the finding for two MAC addresses at the next hop.
fn duplicate(evidence: &Evidence) -> Option<Finding> {
    let macs = evidence.history.details().macs.duplicate()?;
    Some(Finding::DuplicateAddress { next_hop: evidence.peer.public_ip, macs })
}

/// Returns the finding for a next hop whose MAC address answers for another address, too.
fn proxy(evidence: &Evidence) -> Option<Finding> {
    let (mac, also) = evidence.history.details().macs.also?;
    Some(Finding::ProxyArp { next_hop: evidence.peer.public_ip, mac, also })
}

fn next_hop_silent(evidence: &Evidence) -> Finding {
    Finding::NextHopSilent { next_hop: evidence.peer.public_ip, uplink: evidence.local.uplink }
}

fn pod_addresses_lost(evidence: &Evidence) -> Finding {
    Finding::PodAddressesLost { next_hop: evidence.peer.public_ip, uplink: evidence.local.uplink }
}

#[cfg(test)]
mod tests;
