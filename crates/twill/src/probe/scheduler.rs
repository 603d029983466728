//! Loop of the prober: sends each peer the probes that its judge wants, when they are due. It hands the replies to the
//! judge, and publishes the peers' health.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use plan::health::{Answer, Health, Judge, Local, Probe, suspect};
use plan::{LinkName, Path, PeerPath};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::packet_io::{PacketIo, PeerSample};
use super::{Healths, ProbeFaults, ProbeMode, Targets};
use crate::trigger::{Cause, CauseSender};

/// Length of a tick, milliseconds. Everything that is due within a tick is done at once: one wake-up for many peers.
const TICK_MS: u64 = 20;
/// Length of a tick.
const TICK: Duration = Duration::from_millis(TICK_MS);
/// Number of ticks by which the probes of peers with a slower schedule are grouped, if they are not urgent.
const SLOW_TICKS: u64 = 12;
/// Time within which a probe counts as urgent.
const URGENT_WITHIN: Duration = Duration::from_millis(500);
/// Maximum number of peers that are probed in one go; the others follow in the next one.
const MAX_PEERS_AT_ONCE: usize = 50;
/// Approximate time between two publications if only numbers have changed, such as latency and loss.
const NUMBERS_INTERVAL: Duration = Duration::from_secs(5);
/// Minimum time between two checks of whether most peers are silent.
const SUSPECT_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two regular probes of one peer.
const MIN_PERIOD: Duration = Duration::from_secs(1);
/// Number of direct peers up to which that time holds.
const MIN_PERIOD_PEERS: u32 = 200;
/// Time between two regular probes of one peer when there are [`MAX_PERIOD_PEERS`] peers: a loss is known within a minute.
const MAX_PERIOD: Duration = Duration::from_secs(58);
/// Number of peers at which [`MAX_PERIOD`] is reached.
const MAX_PERIOD_PEERS: u32 = 5000;
/// Time without a change after which `on-change` stops probing a peer. A faulty peer can be found healthy again within it.
const STOP_AFTER: Duration = Duration::from_secs(40);
/// Time after which an echo that has not come back is late.
const LATE_AFTER: Duration = Duration::from_millis(250);
/// Maximum number of subnets that are probed behind one node's address. A node has one, and a second while it moves.
const MAX_PER_ADDRESS: usize = 8;
/// Maximum number of requests to all machines while a peer's echoes stay away. If two machines have its address, each can
/// be received twice.
const MAX_SEARCHES: u8 = 3;

/// State of the prober's thread.
pub(super) struct Scheduler {
    pub(super) mode: ProbeMode,
    pub(super) cause_sender: CauseSender,
    pub(super) targets: watch::Receiver<Targets>,
    wake: UnixStream,
    pub(super) healths: watch::Sender<Healths>,
    faults: watch::Sender<ProbeFaults>,
    pub(super) io: PacketIo,
    /// True if more replies are about to come in.
    expects_more: bool,
    schedule: Schedule,
}

/// Times between regular probes: direct peers, all others.
type Periods = [Duration; 2];

/// Health and schedule of the peers.
struct Schedule {
    begun: Instant,
    /// Peers by subnet.
    peers: Vec<Peer>,
    /// Ticks at which peers are due, with their places in `peers`.
    due: BTreeSet<(u64, usize)>,
    /// Times between regular probes: for peers whose traffic goes or may go direct, and for all others.
    periods: Periods,
    /// Time at which the last of the peers is probed that a change of a link may have affected.
    all_probed: Duration,
    links: u64,
    uplink: Option<LinkName>,
    uplink_down: bool,
    suspect: bool,
    checked_suspect: Duration,
    /// True if something was lost since `checked_suspect`.
    lost: bool,
    /// True if there are numbers to publish.
    numbers: bool,
    /// Time of the last publication.
    published: Duration,
}

/// Peer with its judge and its schedule.
struct Peer {
    judge: Judge,
    /// Tick at which the next probe is due.
    due: u64,
    /// Time at which anything about the peer last changed.
    changed: Duration,
    /// Time of the oldest echo of its path that was sent since one came back.
    waiting: Option<Duration>,
    /// Number of requests to all machines since then.
    searches: u8,
    /// True if an echo of its path has ever come back from its present address.
    answered: bool,
}

impl Scheduler {
    pub(super) fn new(
        mode: ProbeMode,
        cause_sender: CauseSender,
        targets: watch::Receiver<Targets>,
        wake: UnixStream,
        healths: watch::Sender<Healths>,
        faults: watch::Sender<ProbeFaults>,
        io: PacketIo,
    ) -> Self {
        let schedule = Schedule {
            begun: Instant::now(),
            peers: Vec::new(),
            due: BTreeSet::new(),
            periods: [MIN_PERIOD; 2],
            all_probed: Duration::ZERO,
            links: 0,
            uplink: None,
            uplink_down: false,
            suspect: false,
            checked_suspect: Duration::ZERO,
            lost: false,
            numbers: false,
            published: Duration::ZERO,
        };
        Self { mode, cause_sender, targets, wake, healths, faults, io, expects_more: false, schedule }
    }

    /// Runs until the reconcile loop is gone.
    pub(super) fn run(mut self) {
        loop {
            match self.wait() {
                Ok(true) => self.update_targets(),
                Ok(false) => {}
                Err(error) => return warn!("probing has stopped, and paths stay as they are: {error}"),
            }
            self.pass();
        }
    }

    /// Sleeps until there is something to receive or to send. Returns true if the targets have changed, and an error if
    /// the reconcile loop is gone.
    fn wait(&mut self) -> io::Result<bool> {
        let due = self.due().map(|due| due.saturating_sub(self.schedule.begun.elapsed()));
        let due = if self.expects_more { Some(due.unwrap_or(TICK).min(TICK)) } else { due };
        let timeout = due.and_then(|due| due.try_into().ok());
        let sockets = self.io.sockets().filter(|_| !self.expects_more);
        let fds = [self.wake.as_fd()].into_iter().chain(sockets.map(AsFd::as_fd));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) if fds[0].revents().is_empty() => Ok(false),
            Ok(_) => match self.wake.read(&mut [0; 64])? {
                0 => Err(io::ErrorKind::BrokenPipe.into()),
                _ => Ok(true),
            },
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the time at which something is due even if no packet comes in.
    fn due(&self) -> Option<Duration> {
        let Schedule { due, numbers, published, .. } = &self.schedule;
        let ask = due.first().map(|(due, _)| *due);
        // If peers are probed, numbers are published along with that.
        let publish = (*numbers && ask.is_none()).then(|| *published + NUMBERS_INTERVAL);
        let io = self.io.due().into_iter().chain(publish).map(tick);
        let soonest = ask.into_iter().chain(io).min()?;
        Some(TICK * u32::try_from(soonest).unwrap_or(u32::MAX))
    }

    /// Takes the changed targets of the reconcile loop.
    fn update_targets(&mut self) {
        let now = self.schedule.begun.elapsed();
        let Targets { node, mut peers, suspect, links, mtu, diverted, mac: _ } =
            self.targets.borrow_and_update().clone();
        if node.is_none() {
            peers = Arc::default();
        }
        limit_per_address(&mut peers, |peer| self.schedule.has_answered(peer));
        let schedule = &mut self.schedule;
        schedule.uplink_down = suspect;
        let uplink = node.as_ref().map(|node| node.uplink.link);
        let moved = schedule.uplink.is_some() && schedule.uplink != uplink;
        schedule.uplink = uplink;
        let before = schedule.peers.len();
        schedule.peers.retain(|peer| {
            peers.binary_search_by_key(&peer.judge.peer().subnet, |known| known.subnet).is_ok()
        });
        schedule.numbers |= schedule.peers.len() < before;
        let known = schedule.peers.len();
        schedule.peers.reserve_exact(peers.len() - known);
        if let Some(node) = &node {
            let local = Local { uplink: node.uplink.link, mtu };
            for path in peers.iter().cloned() {
                match schedule.peers[..known].binary_search_by_key(&path.subnet, Peer::subnet) {
                    Ok(at) => schedule.peers[at].update(path, local, now),
                    Err(_) => schedule.peers.push(Peer::new(path, local, now)),
                }
            }
            schedule.peers.sort_unstable_by_key(Peer::subnet);
        }
        for peer in &mut schedule.peers {
            let subnet = peer.subnet();
            peer.judge.set_diverted(diverted.contains(&subnet));
        }
        schedule.due = schedule.peers.iter().enumerate().map(|(at, peer)| (peer.due, at)).collect();
        let direct = schedule.peers.iter().filter(|peer| peer.may_be_direct()).count() as u32;
        let others = schedule.peers.len() as u32 - direct;
        // Each direct peer above [`MIN_PERIOD_PEERS`] slows all of them down by the same amount.
        let slower = (MAX_PERIOD - MIN_PERIOD) * direct.saturating_sub(MIN_PERIOD_PEERS)
            / (MAX_PERIOD_PEERS - MIN_PERIOD_PEERS);
        schedule.periods = [MIN_PERIOD + slower, MIN_PERIOD.max(MAX_PERIOD * others / MAX_PERIOD_PEERS)];
        if schedule.links != links && !suspect {
            schedule.probe_all(now);
        }
        schedule.links = links;
        self.io.set_peers(node.as_ref(), &peers, now);
        if moved {
            // The health known so far was found along the former link.
            self.publish(true, now);
        }
    }

    /// Sends, receives and publishes once.
    fn pass(&mut self) {
        let (now, open) = (self.schedule.begun.elapsed(), self.io.open());
        self.io.refresh_if_due(now);
        self.io.check_own(now);
        for subnet in self.io.changed_next_hops() {
            if let Some(at) = at(&self.schedule.peers, subnet) {
                // Neighbour events are few at a time, and need not wait behind peers that a changed link has scheduled.
                self.schedule.hasten(at, now, now);
            }
        }
        let mut samples = self.ask(now);
        let Schedule { peers, begun, .. } = &self.schedule;
        self.io.ask_all(|subnet| at(peers, subnet).map(|at| peers[at].judge.peer()), now);
        // Receiving comes last, so that an immediate reply needs no wake-up of its own.
        let now = begun.elapsed();
        samples.extend(self.io.receive(now));
        let changed = self.schedule.record(samples, now);
        // A single wake-up serves many replies.
        self.expects_more = ![0, open].contains(&self.io.open());
        self.publish(changed, now);
    }

    /// Probes the peers that are due. Returns the samples that are known without sending.
    fn ask(&mut self, now: Duration) -> Vec<PeerSample> {
        let mut samples = Vec::new();
        let schedule = &mut self.schedule;
        for _ in 0..MAX_PEERS_AT_ONCE {
            let ticks = now.as_millis() as u64 / TICK_MS;
            let Some(turn) = schedule.due.first().copied().filter(|(due, _)| *due <= ticks) else { break };
            schedule.due.pop_first();
            let Some(peer) = schedule.peers.get_mut(turn.1) else { continue };
            let period = peer.period(&schedule.periods);
            for probe in peer.judge.due_probes(now, period) {
                let unsure = peer.record_probe(probe, now);
                let path = peer.judge.peer();
                let known = self.io.ask(path, probe, unsure, now);
                samples.extend(known.map(|sample| (path.subnet, sample)));
            }
            peer.due = peer.next(&schedule.periods, now);
            if peer.is_still_probed(self.mode, now) {
                schedule.due.insert((peer.due, turn.1));
            }
        }
        samples
    }

    /// Publishes changed health at once, and changed numbers every few seconds.
    fn publish(&mut self, changed: bool, now: Duration) {
        let schedule = &mut self.schedule;
        if changed || (schedule.numbers && now + LATE_AFTER >= schedule.published + NUMBERS_INTERVAL) {
            let healths = schedule.peers.iter().map(|peer| peer.judge.health()).collect();
            self.healths.send_replace(Arc::new(healths));
            (schedule.numbers, schedule.published) = (false, now);
        }
        let (refused, conflict) = (self.io.refused(), self.io.conflict());
        let other = self.faults.send_if_modified(|known| {
            let other = (known.refused.as_deref(), known.conflict) != (refused, conflict);
            if other {
                *known = ProbeFaults { refused: refused.map(Into::into), conflict };
            }
            other
        });
        if changed || other {
            self.cause_sender.send(Cause::Health);
        }
    }
}

/// Withdraws all health when the thread ends, so that nobody relies on it.
impl Drop for Scheduler {
    fn drop(&mut self) {
        self.healths.send_replace(Healths::default());
        self.cause_sender.send(Cause::Health);
    }
}

impl Schedule {
    /// Returns true if the peer has answered from its present address.
    fn has_answered(&self, peer: &PeerPath) -> bool {
        let known = at(&self.peers, peer.subnet).map(|at| &self.peers[at]);
        known.is_some_and(|known| known.answered && known.judge.peer().public_ip == peer.public_ip)
    }

    /// Schedules a probe of every peer, since something may have happened to all. They are spread to at most
    /// [`MIN_PERIOD_PEERS`] a second.
    fn probe_all(&mut self, now: Duration) {
        self.all_probed = self.all_probed.max(now);
        for at in 0..self.peers.len() {
            let by = self.all_probed;
            if self.peers[at].judge.next() > by {
                self.all_probed += MIN_PERIOD / MIN_PERIOD_PEERS;
            }
            self.hasten(at, by, now);
        }
    }

    /// Schedules a probe of that peer by the given time, since something may have happened to it.
    fn hasten(&mut self, at: usize, by: Duration, now: Duration) {
        let Some(peer) = self.peers.get_mut(at) else { return };
        peer.judge.probe_by(by);
        peer.changed = now;
        self.due.remove(&(peer.due, at));
        peer.due = peer.next(&self.periods, now);
        self.due.insert((peer.due, at));
    }

    /// Hands the samples to the judges. Returns true if a peer's health has changed.
    fn record(&mut self, samples: Vec<PeerSample>, now: Duration) -> bool {
        let mut touched = Vec::new();
        for (subnet, sample) in samples {
            let Some(at) = at(&self.peers, subnet) else { continue };
            self.lost |= matches!(sample.answer, Answer::Lost | Answer::Refused { .. });
            self.peers[at].record(sample.probe, sample.answer);
            self.peers[at].judge.record(sample);
            touched.push(at);
        }
        if touched.is_empty() {
            return false;
        }
        self.numbers = true;
        // The check is needed only after a loss, or while this node is the suspect.
        if (self.lost || self.suspect) && now >= self.checked_suspect + SUSPECT_CHECK_INTERVAL {
            (self.checked_suspect, self.lost) = (now, false);
            let all = self.uplink_down || suspect(self.peers.iter().map(|peer| &peer.judge), now);
            if all != self.suspect {
                self.suspect = all;
                touched = (0..self.peers.len()).collect();
            }
        }
        touched.sort_unstable();
        touched.dedup();
        let suspect = self.suspect || self.uplink_down;
        let mut changed = false;
        for at in touched {
            let peer = &mut self.peers[at];
            let before = peer.judge.health();
            peer.judge.decide(now, suspect);
            let after = peer.judge.health();
            if before.peer != after.peer {
                (changed, peer.changed) = (true, now);
                log_change(&before, &after);
            }
            // The reply may bring the next probe forward or put it off. Peers that are not probed any more are not in
            // `due`.
            let due = peer.next(&self.periods, now);
            if self.due.remove(&(peer.due, at)) || due < peer.due {
                self.due.insert((due, at));
                peer.due = due;
            }
        }
        changed
    }
}

/// Returns the first tick at that time or after it.
fn tick(time: Duration) -> u64 {
    (time.as_millis() as u64).div_ceil(TICK_MS)
}

/// Leaves out peers whose node's address many others have, too. A writer of leases must not make all nodes probe a
/// machine of his choice more often than that. Peers that have answered stay first, then those with the oldest leases:
/// new leases with the address of a peer must not end its probes.
fn limit_per_address(peers: &mut Arc<Vec<PeerPath>>, has_answered: impl Fn(&PeerPath) -> bool) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    peers.iter().for_each(|peer| *counts.entry(peer.public_ip).or_default() += 1);
    counts.retain(|_, count| *count > MAX_PER_ADDRESS);
    if counts.is_empty() {
        return;
    }
    let crowded = peers.iter().filter(|peer| counts.contains_key(&peer.public_ip));
    let mut order: Vec<_> =
        crowded.map(|peer| (peer.public_ip, !has_answered(peer), peer.born, peer.subnet)).collect();
    order.sort_unstable();
    let nodes = order.chunk_by(|one, other| one.0 == other.0);
    let left_out = nodes.flat_map(|subnets| subnets.iter().skip(MAX_PER_ADDRESS));
    let left_out: BTreeSet<IpNet> = left_out.map(|(.., subnet)| *subnet).collect();
    Arc::make_mut(peers).retain(|peer| !left_out.contains(&peer.subnet));
}

/// Returns the place of a peer.
fn at(peers: &[Peer], subnet: IpNet) -> Option<usize> {
    peers.binary_search_by_key(&subnet, Peer::subnet).ok()
}

fn log_change(before: &Health, after: &Health) {
    let (was, is) = (&before.peer, &after.peer);
    debug!(
        "health of {}: {} (path {:?}), was {} (path {:?}): {}",
        is.subnet,
        is.finding.name(),
        is.preferred_path,
        was.finding.name(),
        was.preferred_path,
        is.finding
    );
}

impl Peer {
    fn new(path: PeerPath, local: Local, now: Duration) -> Self {
        let judge = Judge::new(path, local, now);
        Self { due: tick(judge.next()), judge, changed: now, waiting: None, searches: 0, answered: false }
    }

    fn update(&mut self, path: PeerPath, local: Local, now: Duration) {
        if *self.judge.peer() != path {
            self.changed = now;
        }
        self.answered &= self.judge.peer().public_ip == path.public_ip;
        self.judge.update_path(path, local, now);
        self.due = tick(self.judge.next());
    }

    fn subnet(&self) -> IpNet {
        self.judge.peer().subnet
    }

    /// Returns the tick of the next probe, at the earliest one tick from now. A judge that always wants more at once
    /// would otherwise block the loop.
    fn next(&self, periods: &Periods, now: Duration) -> u64 {
        let next = self.judge.next().max(now + TICK);
        let is_seldom = self.period(periods) > MIN_PERIOD && next > now + URGENT_WITHIN;
        if is_seldom { tick(next).next_multiple_of(SLOW_TICKS) } else { tick(next) }
    }

    fn period(&self, periods: &Periods) -> Duration {
        periods[usize::from(!self.may_be_direct())]
    }

    /// Returns true if the peer is still probed. With `on-change` that holds while it is new, changes or is faulty. A
    /// direct path chosen by evidence is always probed, since nothing else would notice that it fails.
    fn is_still_probed(&self, mode: ProbeMode, now: Duration) -> bool {
        let path = self.judge.peer();
        let is_chosen = path.by_evidence && path.path == Path::Direct;
        let is_fault = self.judge.health().peer.finding.is_fault();
        mode == ProbeMode::Periodic || is_chosen || is_fault || now < self.changed + STOP_AFTER
    }

    /// Returns true if the peer's traffic goes or may go direct.
    fn may_be_direct(&self) -> bool {
        let path = self.judge.peer();
        path.path == Path::Direct || (path.by_evidence && path.on_link)
    }

    /// Records the probe. Returns true if all machines of the segment may get a request for the next hop.
    fn record_probe(&mut self, probe: Probe, now: Duration) -> bool {
        match probe {
            Probe::Path | Probe::PathSized(_) => {
                self.waiting.get_or_insert(now);
                false
            }
            Probe::NextHop => {
                let is_late = self.waiting.is_some_and(|since| now >= since + LATE_AFTER);
                let unsure = is_late && self.searches < MAX_SEARCHES;
                self.searches += u8::from(unsure);
                unsure
            }
            _ => false,
        }
    }

    fn record(&mut self, probe: Probe, answer: Answer) {
        let is_path = matches!(probe, Probe::Path | Probe::PathSized(_));
        match answer {
            Answer::Came { .. } if is_path => {
                (self.waiting, self.searches, self.answered) = (None, 0, true);
            }
            Answer::Impossible if is_path => self.waiting = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
