//! Schedule of the probes: regular ones, quick ones after a late reply, and closer looks at a healthy tunnel. It reads the
//! evidence but draws no conclusions.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use ipnet::IpNet;

use super::evidence::Evidence;
use super::history::PAIRS_APART;
use super::probe_results::ProbeResults;
use super::time::Time;
use super::{PATIENCE, PreferredPath, Probe};
use crate::peer::Path;

/// Time after which a reply is late; also the time between two quick probes.
const LATE: Duration = Duration::from_millis(150);
/// Maximum of that time before the first quick probe, for peers with a higher latency.
const MAX_LATE: Duration = Duration::from_millis(300);
/// Number of quick probes of the path after a regular one; together they are [`super::probe_results::LOSSES_TO_FAIL`].
/// At a pace of 1 s, a loss is known 2.4 s after the last reply: 1 + 0.15 + 3 * 0.15 + 0.8. It takes 0.15 s more if the
/// peer is far.
const MAX_QUICK: u8 = 4;
/// Time between two regular probes while a path recovers. Probes that are moved forward keep this distance, too.
pub(super) const RECOVERY_PERIOD: Duration = Duration::from_secs(1);
/// Maximum number of probes in any second, without those of searches.
const MAX_PER_SECOND: usize = 10;
/// Time between two closer looks at a healthy tunnel, in regular probes. Each look probes checksums and MTU.
const CLOSER_EVERY: u32 = 5;
/// Time by which a closer look comes earlier than that. With few peers the looks are nearly [`PAIRS_APART`] apart, with
/// thousands much further.
const CLOSER_EARLIER: Duration = Duration::from_secs(3);

/// Times of the probes that were sent, and of the next ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// Time of the last regular probe.
    regular: Option<Time>,
    /// Time of the regular probe before that; its loss may become known only now.
    before: Option<Time>,
    next_regular: Time,
    next_quick: Option<Time>,
    /// Number of quick probes since the last regular one.
    quick: u8,
    /// Number of regular probes, started at an offset of the peer's own.
    count: u16,
    /// Earliest time of the next closer look.
    next_closer: Time,
    limit: RateLimit,
}

/// Probes to send now.
pub(super) struct Turn {
    pub(super) probes: Vec<Probe>,
    pub(super) kind: Kind,
}

/// Kind of a turn, as far as it concerns the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing is due.
    None,
    Regular,
    /// A reply is late. With `search`, large packets may be lost for their size.
    Quick {
        search: bool,
    },
    /// All probes of the last turn are answered.
    Answered,
}

impl Schedule {
    /// Creates a schedule. Different peers are probed at different times.
    pub(super) fn new(start: Time, subnet: IpNet) -> Self {
        Self {
            regular: None,
            before: None,
            next_regular: start,
            next_quick: None,
            quick: 0,
            count: hash(subnet),
            next_closer: start,
            limit: RateLimit::default(),
        }
    }

    /// Starts the schedule again, but keeps the rate limit, the count and the next closer look.
    pub(super) fn restart(&mut self, start: Time) {
        (self.regular, self.before, self.next_quick, self.quick) = (None, None, None, 0);
        self.next_regular = start;
    }

    /// Moves the next regular probe forward to `by`, but at least [`RECOVERY_PERIOD`] after the last one.
    pub(super) fn probe_by(&mut self, by: Time) {
        let by = self.regular.map_or(by, |regular| by.max(regular + RECOVERY_PERIOD));
        self.next_regular = self.next_regular.min(by);
    }

    /// Moves the next closer look forward, after a pair of datagrams sent at `sent` went wrong.
    pub(super) fn recheck_pair(&mut self, sent: Time) {
        self.next_closer = self.next_closer.min(sent + PAIRS_APART);
    }

    /// Returns the time of the next regular or quick probe.
    pub(super) fn due(&self) -> Time {
        self.next_quick.map_or(self.next_regular, |quick| quick.min(self.next_regular))
    }

    /// Returns the time of the last probe, without those of searches.
    pub(super) fn last(&self) -> Option<Time> {
        self.limit.last()
    }

    /// Returns true if a probe sent at this time was one of the last two regular ones.
    pub(super) fn is_regular(&self, sent: Time) -> bool {
        [self.regular, self.before].contains(&Some(sent))
    }

    /// Returns the probes that are due and schedules the next ones; `pace` is the maximum time between two regular ones.
    pub(super) fn next(&mut self, evidence: &Evidence, now: Time, pace: Duration) -> Turn {
        let mut turn = if now >= self.next_regular {
            self.regular_turn(evidence, now, pace)
        } else if self.next_quick.is_some_and(|quick| now >= quick) {
            self.quick_turn(evidence, now, pace)
        } else {
            Turn { probes: Vec::new(), kind: Kind::None }
        };
        turn.probes.retain(|_| self.limit.admits(now));
        turn
    }

    fn regular_turn(&mut self, evidence: &Evidence, now: Time, pace: Duration) -> Turn {
        let latency = evidence.history.latency();
        let late = latency.map_or(LATE, |latency| (latency * 5 / 4).clamp(LATE, MAX_LATE));
        self.next_regular = now + self.interval(evidence, pace);
        (self.before, self.regular) = (self.regular, Some(now));
        (self.next_quick, self.quick) = (Some(now + late), 0);
        self.count = self.count.wrapping_add(1);
        Turn { probes: regular_probes(evidence), kind: Kind::Regular }
    }

    fn quick_turn(&mut self, evidence: &Evidence, now: Time, pace: Duration) -> Turn {
        self.quick += 1;
        let (probes, search) = self.quick_probes(evidence);
        if probes.is_empty() {
            self.next_quick = None;
            return Turn { probes: self.closer(evidence, now, pace), kind: Kind::Answered };
        }
        self.next_quick = (self.quick <= MAX_QUICK).then(|| now + LATE);
        self.next_regular = now + self.interval(evidence, pace);
        Turn { probes, kind: Kind::Quick { search } }
    }

    /// Returns the time from a regular probe to the next one, at most `pace`.
    fn interval(&self, evidence: &Evidence, pace: Duration) -> Duration {
        let pace = if is_proving(evidence) { pace / 2 } else { pace };
        let part = self.part_of(pace);
        if self.regular.is_none() {
            // Thousands of peers that appear at the same moment are spread over the mean interval.
            return (part - part / 8).max(RECOVERY_PERIOD.min(pace));
        }
        // The interval is a little less than `pace` and varies, since a fault in step with the probes would be
        // missed.
        pace - if evidence.history.path.has_lost() { part / 2 } else { part / 4 }
    }

    /// Returns a part of this time that differs between peers and between turns.
    fn part_of(&self, time: Duration) -> Duration {
        time * u32::from(hash(self.count)) / (1 << 16)
    }

    /// Returns the time of the next closer look at the tunnel, at `soonest` or later, between two regular probes. A
    /// look never delays the probes that find a loss.
    fn closer_at(&self, evidence: &Evidence, soonest: Time) -> Option<Time> {
        let at = self.next_closer.max(soonest);
        // Probes this early no longer count towards the rate limit when quick ones are needed.
        let is_free = at == soonest || needs_closer_look(evidence);
        (is_tunnel_well(evidence) && !is_proving(evidence) && is_free && at < self.next_regular).then_some(at)
    }

    /// Returns the probes of a closer look, which finds faulty checksum offload and fragmented tunnel packets.
    fn closer(&mut self, evidence: &Evidence, now: Time, pace: Duration) -> Vec<Probe> {
        if self.quick > 1 || self.closer_at(evidence, now) != Some(now) {
            return Vec::new();
        }
        self.quick = 0;
        let pace = pace - self.part_of(pace) / 2;
        self.next_closer = now + (pace * CLOSER_EVERY).saturating_sub(CLOSER_EARLIER).max(PAIRS_APART);
        let outer = evidence.outer_size().filter(|_| !evidence.history.details().outer.is_uncertain());
        [Some(Probe::Checksum), outer.map(Probe::NodeSized)].into_iter().flatten().collect()
    }

    /// Cancels the quick probes if no probe of the last turn waits for a reply. Their timer then serves the closer look. Returns
    /// true if nothing is left to do before the next regular turn.
    pub(super) fn cancel_quick(&mut self, evidence: &Evidence) -> bool {
        let Some(regular) = self.regular.filter(|_| self.quick == 0) else { return false };
        let (peer, history) = (&evidence.peer, &evidence.history);
        let waits = |results: &ProbeResults| !results.answered_since(regular) && !results.impossible;
        let echo = |results: &ProbeResults| is_probed(evidence) && waits(results) && !results.is_down();
        let direct = peer.path == Path::Direct || peer.by_evidence;
        let next_hop = peer.on_link && direct && waits(&history.details().next_hop);
        if echo(&history.path) || echo(&history.full) || next_hop {
            return false;
        }
        // The details stay until then, so that a second machine's answer for the next hop is noticed.
        let awaits_second = peer.path == Path::Direct && !peer.by_evidence;
        let closer = || self.closer_at(evidence, regular + LATE);
        self.next_quick = if awaits_second { Some(regular + PATIENCE) } else { closer() };
        self.next_quick.is_none()
    }

    /// Returns the next quick probes: the ones that still lack a reply, and some that help to find the cause. Probes that find
    /// a loss come first. The second value is true if large packets may be lost for their size.
    fn quick_probes(&self, evidence: &Evidence) -> (Vec<Probe>, bool) {
        let (peer, history, tick) = (&evidence.peer, &evidence.history, self.quick);
        let (details, is_probed) = (history.details(), is_probed(evidence));
        let waits = |results: &ProbeResults| {
            !results.answered_since(self.regular) && !results.impossible && !results.is_down()
        };
        let full = evidence.full_size().filter(|_| waits(&history.full));
        let next_hop = peer.on_link && waits(&details.next_hop);
        if is_probed && waits(&history.path) {
            let probes = match tick {
                1 => {
                    // The regular turn has sent this probe already if large tunnel packets are suspect.
                    let node = (!details.outer.is_uncertain()).then_some(Probe::Node);
                    [Some(Probe::Path), full.map(Probe::PathSized), node].into_iter().flatten().collect()
                }
                3 => vec![Probe::Path, Probe::There],
                2 | 4 if next_hop => vec![Probe::Path, Probe::NextHop],
                2 | 4 => vec![Probe::Path],
                _ => vec![Probe::Node, Probe::There],
            };
            return (probes, false);
        }
        if tick > MAX_QUICK {
            return (Vec::new(), false);
        }
        let is_open = is_probed && !history.path.impossible && !history.path.is_down();
        let full = full.filter(|_| is_open).map(Probe::PathSized);
        let direct = peer.path == Path::Direct || evidence.preferred_path() == Some(PreferredPath::Direct);
        let search =
            full.is_some() && tick >= 2 && details.path_search.is_none() && history.full.too_big().is_none();
        let next_hop = (direct && next_hop).then_some(Probe::NextHop);
        (full.into_iter().chain(next_hop).collect(), search)
    }
}

/// Returns the probes of a regular turn.
fn regular_probes(evidence: &Evidence) -> Vec<Probe> {
    if !is_probed(evidence) {
        return Vec::new();
    }
    let (peer, history, full) = (&evidence.peer, &evidence.history, evidence.full_size());
    let (path, is_lost) = (&history.path, history.path.is_down());
    let direct = peer.path == Path::Direct || peer.by_evidence;
    let is_uncertain = is_tunnel_well(evidence) && history.details().outer.is_uncertain();
    let outer = evidence.outer_size().filter(|_| is_uncertain);
    let probes = [
        (is_lost || path.impossible || history.full.is_down() || full.is_none()).then_some(Probe::Path),
        full.filter(|_| !is_lost && !path.impossible).map(Probe::PathSized),
        (peer.on_link && (direct || is_lost)).then_some(Probe::NextHop),
        asks_direct(evidence).then_some(Probe::Direct),
        (is_lost || history.full.is_down() || outer.is_some()).then_some(Probe::Node),
        is_lost.then_some(Probe::There),
        outer.map(Probe::NodeSized),
    ];
    probes.into_iter().flatten().collect()
}

/// Returns true if the peer has a path at all.
fn is_probed(evidence: &Evidence) -> bool {
    matches!(evidence.peer.path, Path::Direct | Path::Tunnel(_))
}

/// Returns true if a peer that goes by tunnel gets direct probes as well.
fn asks_direct(evidence: &Evidence) -> bool {
    let peer = &evidence.peer;
    peer.by_evidence && peer.path.is_tunnel() && peer.on_link
}

/// Returns true while the direct path is probed for a first proof and nothing is known against it.
fn is_proving(evidence: &Evidence) -> bool {
    let details = evidence.history.details();
    let lost = details.next_hop.is_gone() || details.direct.is_down() || details.direct.impossible;
    asks_direct(evidence)
        && evidence.left().is_none()
        && evidence.preferred_path() != Some(PreferredPath::Direct)
        && !lost
}

/// Returns true if the peer is reached by tunnel and its echoes are answered.
fn is_tunnel_well(evidence: &Evidence) -> bool {
    let path = &evidence.history.path;
    evidence.peer.path.is_tunnel() && !path.is_down() && !path.is_open()
}

/// Returns true if pairs of datagrams went wrong, but too few for a fault.
fn needs_closer_look(evidence: &Evidence) -> bool {
    let pairs = &evidence.history.details().pairs;
    pairs.bad > 0 && !pairs.is_fault(evidence.history.echoes.loss())
}

/// Returns a number that spreads over its whole range, whatever the values are.
fn hash(value: impl Hash) -> u16 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish() as u16
}

/// Admits at most [`MAX_PER_SECOND`] probes in any second.
#[derive(Clone, Copy, Debug, Default)]
struct RateLimit {
    /// Times of the last admitted probes.
    sent: [Option<Time>; MAX_PER_SECOND],
    /// Index of the oldest one.
    oldest: u8,
}

impl RateLimit {
    fn last(&self) -> Option<Time> {
        self.sent[(usize::from(self.oldest) + MAX_PER_SECOND - 1) % MAX_PER_SECOND]
    }

    /// Returns true if a probe may be sent at `now`, which then counts as sent.
    fn admits(&mut self, now: Time) -> bool {
        let slot = &mut self.sent[usize::from(self.oldest) % MAX_PER_SECOND];
        let free = slot.is_none_or(|sent| now - sent >= Duration::from_secs(1));
        if free {
            *slot = Some(now);
            self.oldest = (self.oldest + 1) % MAX_PER_SECOND as u8;
        }
        free
    }
}
