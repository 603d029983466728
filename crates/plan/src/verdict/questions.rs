//! Schedule of the probes: regular ones, quick ones after a late reply, and searches for the largest packet. It reads the
//! tracks but draws no conclusions.

use std::time::Duration;

use super::evidence::PAIRS_APART;
use super::judge::{Judge, Tracks};
use super::ladder::Ladder;
use super::track::{Moment, Track};
use super::{PATIENCE, Probe, Way};
use crate::Path;

/// Time after which a reply is late; also the time between two quick probes.
const LATE: Duration = Duration::from_millis(150);
/// Maximum of that time before the first quick probe, for peers with a higher latency.
const LATER: Duration = Duration::from_millis(300);
/// Number of quick probes of the path after a regular one; together they are [`super::track::RUN`]. At a pace of 1 s, a loss is
/// known at most 1 + 0.15 + 3 * 0.15 + 0.8 s after the last reply. It takes 0.15 s more if the peer is far.
const QUICK: u8 = 4;
/// Time between two regular probes while a path recovers. Probes that are moved forward keep this distance, too.
pub(super) const BACK: Duration = Duration::from_secs(1);
/// Maximum number of probes in any second, without those of searches.
const MOST: usize = 10;
/// Time between two closer looks at a healthy tunnel, in regular probes. Each look probes checksums and MTU.
const CLOSER_EVERY: u32 = 5;
/// Time by which a closer look comes earlier than that. With few peers the looks are nearly [`PAIRS_APART`] apart, with
/// thousands much further.
const CLOSER_LESS: Duration = Duration::from_secs(3);
/// Golden ratio, less one, as a fraction of 65,536. Its multiples spread the probes evenly over an interval.
const GOLDEN: u16 = 40_503;
/// Square root of two, less one, as a fraction of 65,536. Its multiples spread as evenly, and never in step with [`GOLDEN`].
const ROOT: u16 = 27_145;
/// Overhead of VXLAN in bytes for an outer header of IPv4 and of IPv6: IP, UDP, VXLAN and inner Ethernet headers.
const OVERHEAD: (u32, u32) = (50, 70);

/// Times of the probes that were sent, and of the next ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Questions {
    /// Time of the last regular probe.
    regular: Option<Moment>,
    /// Milliseconds between the last two regular probes; the loss of the earlier one may become known only now. 0 means none.
    apart: u16,
    next_regular: Moment,
    next_quick: Option<Moment>,
    /// Number of quick probes since the last regular one.
    quick: u8,
    /// Number of regular probes, started at an offset of the peer's own.
    count: u16,
    /// Earliest time of the next closer look.
    next_closer: Moment,
    /// Times of the last probes that count towards [`MOST`]: the low bits of their milliseconds. Each is less than a second
    /// after the one before, so the low bits are enough.
    recent: [u16; MOST],
    /// Index of the oldest entry in `recent`.
    oldest: u8,
    /// Number of valid entries in `recent`.
    known: u8,
    /// Time of the newest entry in `recent`.
    newest: Option<Moment>,
}

impl Questions {
    /// Creates a schedule. Peers with different `turn`s are probed at different times.
    pub(super) fn new(now: Duration, turn: u16) -> Self {
        Self {
            regular: None,
            apart: 0,
            next_regular: Moment::of(now),
            next_quick: None,
            quick: 0,
            count: turn,
            next_closer: Moment::of(now),
            recent: [0; MOST],
            oldest: 0,
            known: 0,
            newest: None,
        }
    }

    /// Returns a schedule from the start that keeps the rate limit, the count and the next closer look.
    pub(super) fn anew(&self, now: Duration) -> Self {
        let Self { recent, oldest, known, newest, next_closer, count, .. } = *self;
        Self { recent, oldest, known, newest, next_closer, ..Self::new(now, count) }
    }

    /// Moves the next regular probe forward to `by`, but at least [`BACK`] after the last one.
    pub(super) fn hasten(&mut self, by: Duration) {
        let soonest = self.regular.map_or(Duration::ZERO, |regular| regular.time() + BACK);
        self.next_regular = self.next_regular.min(Moment::of(by.max(soonest)));
    }

    /// Moves the next closer look forward, after a pair of datagrams sent at `sent` went wrong.
    pub(super) fn doubt_pair(&mut self, sent: Duration) {
        self.next_closer = self.next_closer.min(Moment::of(sent + PAIRS_APART));
    }

    /// Returns the time of the next regular or quick probe.
    pub(super) fn next(&self) -> Duration {
        self.next_quick.map_or(self.next_regular, |quick| quick.min(self.next_regular)).time()
    }

    /// Returns true if a probe sent at this time was one of the last two regular ones.
    pub(super) fn is_regular(&self, sent: Duration) -> bool {
        let apart = Duration::from_millis(self.apart.into());
        self.regular.is_some_and(|last| {
            [last, Moment::of(last.time().saturating_sub(apart))].contains(&Moment::of(sent))
        })
    }

    /// Returns the first of the probes, as many as the rate limit allows now.
    fn admit(&mut self, mut probes: Vec<Probe>, now: Duration) -> Vec<Probe> {
        if self.newest.is_some_and(|newest| now >= newest.time() + Duration::from_secs(1)) {
            self.known = 0;
        }
        let low = now.as_millis() as u16;
        probes.retain(|_| {
            let slot = &mut self.recent[usize::from(self.oldest) % MOST];
            let free = usize::from(self.known) < MOST || low.wrapping_sub(*slot) >= 1000;
            if free {
                *slot = low;
                self.oldest = (self.oldest + 1) % MOST as u8;
                self.known = (self.known + 1).min(MOST as u8);
                self.newest = Some(Moment::of(now));
            }
            free
        });
        probes
    }
}

impl Judge {
    /// Returns the probes that are due and schedules the next ones.
    pub(super) fn choose(&mut self, now: Duration, pace: Duration) -> Vec<Probe> {
        let mut probes = Vec::new();
        if now >= self.questions.next_regular.time() {
            probes = self.regular(now);
            let interval = self.interval(pace);
            let late = self.latency().map_or(LATE, |latency| (latency * 5 / 4).clamp(LATE, LATER));
            let questions = &mut self.questions;
            let last = questions.regular.replace(Moment::of(now));
            let apart = last.map_or(0, |last| (Moment::of(now).time() - last.time()).as_millis());
            questions.apart = u16::try_from(apart).unwrap_or(0);
            questions.next_regular = Moment::of(now + interval);
            (questions.next_quick, questions.quick) = (Some(Moment::of(now + late)), 0);
            questions.count = questions.count.wrapping_add(1);
        } else if self.questions.next_quick.is_some_and(|quick| now >= quick.time()) {
            self.questions.quick += 1;
            probes = self.quick(now);
            let more = !probes.is_empty() && self.questions.quick <= QUICK;
            self.questions.next_quick = more.then(|| Moment::of(now + LATE));
            if probes.is_empty() {
                self.rest();
                probes = self.closer(now, pace);
            } else {
                self.questions.next_regular = Moment::of(now + self.interval(pace));
            }
        }
        let mut probes = self.questions.admit(probes, now);
        let due = |ladder: &&mut Ladder| ladder.next().is_some_and(|next| now >= next);
        if let Some(ladder) = self.rare.ladder().filter(due) {
            probes.extend(ladder.climb(now).into_iter().map(Probe::PathSized));
        }
        if let Some(ladder) = self.rare.outer_ladder().filter(due) {
            probes.extend(ladder.climb(now).into_iter().map(Probe::NodeSized));
        }
        probes
    }

    /// Returns the time from a regular probe to the next one, at most `pace`.
    fn interval(&self, pace: Duration) -> Duration {
        let pace = if self.is_proving() { pace / 2 } else { pace };
        let Questions { count, regular, .. } = self.questions;
        if regular.is_none() {
            // Thousands of peers that appear at the same moment are spread over the whole interval.
            return BACK.min(pace).max(pace * u32::from(count.wrapping_mul(ROOT)) / (1 << 16));
        }
        // The interval is a little less than `pace` and never the same: a fault in step with the probes would be missed. The
        // squares of the multiples are not in step with anything for long.
        let (spread, turn) =
            if self.tracks.path.has_lost() { (2, count.wrapping_mul(count)) } else { (4, count) };
        pace - pace * u32::from(turn.wrapping_mul(GOLDEN)) / (spread << 16)
    }

    /// Returns true if a failing track gets replies again.
    pub(super) fn is_rising(&self) -> bool {
        let tracks = &self.tracks;
        [&tracks.path, &tracks.full, &self.rare.next_hop].into_iter().any(Track::is_rising)
    }

    /// Returns true while the direct path is probed for a first proof and nothing is known against it.
    fn is_proving(&self) -> bool {
        let lost = self.rare.next_hop.is_gone() || self.rare.direct.is_down() || self.rare.direct.impossible;
        self.asks_direct() && self.rare.left.is_none() && self.way != Some(Way::Direct) && !lost
    }

    /// Returns true if a peer that goes by tunnel gets direct probes as well.
    fn asks_direct(&self) -> bool {
        self.peer.by_evidence && self.peer.path.is_tunnel() && self.peer.on_link
    }

    /// Returns the probes of a regular turn.
    fn regular(&mut self, now: Duration) -> Vec<Probe> {
        let (tracks, full) = (&self.tracks, self.full_size());
        if matches!(self.peer.path, Path::Unreachable | Path::Waiting) {
            return Vec::new();
        }
        let mut probes = Vec::new();
        let small =
            tracks.path.is_down() || tracks.path.impossible || tracks.full.is_down() || full.is_none();
        if small {
            probes.push(Probe::Path);
        }
        if let Some(full) = full.filter(|_| !tracks.path.is_down() && !tracks.path.impossible) {
            probes.push(Probe::PathSized(full));
        }
        let direct = self.peer.path == Path::Direct || self.peer.by_evidence;
        if self.peer.on_link && (direct || tracks.path.is_down()) {
            probes.push(Probe::NextHop);
        }
        if self.asks_direct() {
            probes.push(Probe::Direct);
        }
        let outer = self.outer_size().filter(|_| self.is_tunnel_well() && self.rare.outer.is_doubtful());
        if tracks.path.is_down() || tracks.full.is_down() || outer.is_some() {
            probes.push(Probe::Node);
        }
        if tracks.path.is_down() {
            probes.push(Probe::There);
        }
        probes.extend(outer.map(Probe::NodeSized));
        self.search(now);
        probes
    }

    /// Returns true if the peer is reached by tunnel and its echoes are answered.
    fn is_tunnel_well(&self) -> bool {
        let path = &self.tracks.path;
        self.peer.path.is_tunnel() && !path.is_down() && !path.is_open()
    }

    /// Returns true if pairs of datagrams went wrong, but too few for a fault.
    fn is_suspicious(&self) -> bool {
        self.rare.pairs.bad > 0 && !self.rare.pairs.is_fault(self.history.per_mille())
    }

    /// Returns the time of the next closer look at the tunnel, if it fits between two regular probes. `regular` is the time of
    /// the last one. A look never delays the probes that find a loss.
    fn closer_at(&self, regular: Duration) -> Option<Duration> {
        let Questions { next_closer, next_regular, .. } = &self.questions;
        let soonest = regular + LATE;
        let at = next_closer.time().max(soonest);
        // Probes this early no longer count towards the rate limit when quick ones are needed.
        let is_free = at == soonest || self.is_suspicious();
        (self.is_tunnel_well() && !self.is_proving() && is_free && at < next_regular.time()).then_some(at)
    }

    /// Returns the probes of a closer look, which finds faulty checksum offload and fragmented tunnel packets.
    fn closer(&mut self, now: Duration, pace: Duration) -> Vec<Probe> {
        if self.questions.quick > 1 || self.closer_at(now.saturating_sub(LATE)).is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.questions.quick = 0;
        // Spreads the looks at thousands of peers.
        let pace = pace - pace * u32::from(self.questions.count.wrapping_mul(ROOT)) / (2 << 16);
        let soon = (pace * CLOSER_EVERY).saturating_sub(CLOSER_LESS).max(PAIRS_APART);
        self.questions.next_closer = Moment::of(now + soon);
        let outer = self.outer_size().filter(|_| !self.rare.outer.is_doubtful());
        [Some(Probe::Checksum), outer.map(Probe::NodeSized)].into_iter().flatten().collect()
    }

    /// Starts searches for the largest packet, repeats old ones, and drops those that are no longer needed.
    fn search(&mut self, now: Duration) {
        let Some(rare) = self.rare.known() else { return };
        if !self.tracks.full.is_doubtful() {
            rare.ladder = None;
        }
        let is_needed = rare.outer.is_down() && rare.outer.too_big().is_none();
        if !is_needed {
            rare.outer_ladder = None;
        }
        if self.rare.ladder.as_ref().is_some_and(|ladder| ladder.is_old(now)) {
            self.begin_search(now);
        }
        if is_needed && self.rare.outer_ladder.as_ref().is_none_or(|ladder| ladder.is_old(now)) {
            let latency = self.latency().unwrap_or_default();
            let ladder = |size| Ladder::new(size, self.peer.public_ip, latency, now);
            self.rare.outer_ladder = self.outer_size().map(ladder).map(Box::new);
        }
    }

    fn begin_search(&mut self, now: Duration) {
        let latency = self.latency().unwrap_or_default();
        let ladder = |size| Ladder::new(size, self.peer.subnet.addr(), latency, now);
        self.rare.ladder = self.full_size().map(ladder).map(Box::new);
    }

    /// Cancels the quick probes if no probe of the last turn waits for a reply. Their timer then serves the closer look.
    pub(super) fn calm(&mut self) {
        let Some(regular) = self.questions.regular.filter(|_| self.questions.quick == 0) else { return };
        let waits = |track: &Track| !track.heard_since(regular.time()) && !track.impossible;
        let Tracks { path, full, .. } = &self.tracks;
        let asked = !matches!(self.peer.path, Path::Unreachable | Path::Waiting);
        let echoes = asked && ((waits(path) && !path.is_down()) || (waits(full) && !full.is_down()));
        let direct = self.peer.path == Path::Direct || self.peer.by_evidence;
        let next_hop = self.peer.on_link && direct && waits(&self.rare.next_hop);
        // The record stays until then, so that a second machine's answer for the next hop is noticed.
        let hears_on = self.peer.path == Path::Direct && !self.peer.by_evidence;
        if !echoes && !next_hop {
            let on = hears_on.then(|| regular.time() + PATIENCE).or_else(|| self.closer_at(regular.time()));
            self.questions.next_quick = on.map(Moment::of);
            if on.is_none() {
                self.rest();
            }
        }
    }

    /// Frees the record that only a faulty peer needs.
    fn rest(&mut self) {
        if !self.tracks.path.has_lost() && !self.tracks.full.has_lost() {
            self.rare.rest();
        }
    }

    /// Returns the next quick probes: the ones that still lack a reply, and some that help to find the cause. Probes that find
    /// a loss come first.
    fn quick(&mut self, now: Duration) -> Vec<Probe> {
        let (Some(regular), tick) = (self.questions.regular, self.questions.quick) else { return Vec::new() };
        let tracks = &self.tracks;
        let waits = |track: &Track| !track.heard_since(regular.time()) && !track.impossible;
        let asked = !matches!(self.peer.path, Path::Unreachable | Path::Waiting);
        let path = asked && waits(&tracks.path) && !tracks.path.is_down();
        let full = self.full_size().filter(|_| waits(&tracks.full) && !tracks.full.is_down());
        let direct = self.peer.path == Path::Direct || self.way == Some(Way::Direct);
        let next_hop = self.peer.on_link && waits(&self.rare.next_hop) && !self.rare.next_hop.is_down();
        if path {
            let next_hop = next_hop && tick.is_multiple_of(2);
            return match tick {
                1 => {
                    // The regular turn has sent this probe already if large tunnel packets are suspect.
                    let node = (!self.rare.outer.is_doubtful()).then_some(Probe::Node);
                    [Some(Probe::Path), full.map(Probe::PathSized), node].into_iter().flatten().collect()
                }
                3 => vec![Probe::Path, Probe::There],
                2 | 4 if next_hop => vec![Probe::Path, Probe::NextHop],
                2 | 4 => vec![Probe::Path],
                _ => vec![Probe::Node, Probe::There],
            };
        }
        if tick > QUICK {
            return Vec::new();
        }
        let mut probes = Vec::new();
        if let Some(full) = full.filter(|_| asked && !tracks.path.impossible && !tracks.path.is_down()) {
            probes.push(Probe::PathSized(full));
            if tick >= 2 && self.rare.ladder.is_none() && tracks.full.too_big().is_none() {
                self.begin_search(now);
            }
        }
        if direct && next_hop {
            probes.push(Probe::NextHop);
        }
        probes
    }

    /// Returns the size in bytes of the largest packets between pods, or `None` above 65,535.
    pub(super) fn full_size(&self) -> Option<u16> {
        let mtu = match (self.peer.path, self.peer.tunnel) {
            (Path::Tunnel(_), Some(tunnel)) => tunnel.mtu.min(self.local.mtu),
            _ => self.local.mtu,
        };
        u16::try_from(mtu).ok()
    }

    /// Returns the size in bytes of the largest tunnel packets, or `None` without a tunnel in use.
    pub(super) fn outer_size(&self) -> Option<u16> {
        let tunnel = self.peer.tunnel.filter(|_| self.peer.path.is_tunnel())?;
        let overhead = if self.peer.public_ip.is_ipv6() { OVERHEAD.1 } else { OVERHEAD.0 };
        u16::try_from(tunnel.mtu.min(self.local.mtu).saturating_add(overhead)).ok()
    }
}
