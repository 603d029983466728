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
use plan::verdict::{Answer, Health, Judge, Local, Probe, suspect};
use plan::{LinkName, Path, PeerPath};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::post::{News, Post};
use super::{Complaints, Healths, Pace, Targets};
use crate::trigger::{Bell, Cause};

/// Length of a tick, milliseconds. Everything that is due within a tick is done at once: one wake-up for many peers.
const TICK_MS: u64 = 20;
/// Length of a tick.
const TICK: Duration = Duration::from_millis(TICK_MS);
/// Number of ticks by which the probes of peers with a slower schedule are grouped, if they are not urgent.
const SELDOM: u64 = 12;
/// Time within which a probe counts as urgent.
const SOON: Duration = Duration::from_millis(500);
/// Maximum number of peers that are probed in one go; the others follow in the next one.
const AT_ONCE: usize = 50;
/// Approximate time between two publications if only numbers have changed, such as latency and loss.
const NUMBERS: Duration = Duration::from_secs(5);
/// Minimum time between two checks of whether most peers are silent.
const LOOK_AROUND: Duration = Duration::from_millis(250);
/// Time between two regular probes of one peer.
const USUAL: Duration = Duration::from_secs(1);
/// Number of direct peers up to which that time holds.
const DIRECT_PEERS: u32 = 200;
/// Time between two regular probes of one peer when there are [`MANY`] peers: a loss is known within a minute.
const PERIOD: Duration = Duration::from_secs(58);
/// Number of peers at which [`PERIOD`] is reached.
const MANY: u32 = 5000;
/// Time without news after which `on-change` stops probing a peer. A faulty peer can be found healthy again within it.
const SETTLED: Duration = Duration::from_secs(40);
/// Time after which an echo that has not come back is late.
const LATE: Duration = Duration::from_millis(250);
/// Maximum number of subnets that are probed behind one node's address. A node has one, and a second while it moves.
const OF_ONE_ADDRESS: usize = 8;
/// Maximum number of requests to all machines while a peer's echoes stay away. If two machines have its address, each can
/// be received twice.
const SEARCHES: u8 = 3;

/// State of the prober's thread.
pub(super) struct Asker {
    pub(super) pace: Pace,
    pub(super) bell: Bell,
    pub(super) targets: watch::Receiver<Targets>,
    wake: UnixStream,
    pub(super) healths: watch::Sender<Healths>,
    complaints: watch::Sender<Complaints>,
    pub(super) post: Post,
    /// True if more replies are about to come in.
    gathers: bool,
    state: State,
}

/// Times between regular probes: direct peers, all others.
type Paces = [Duration; 2];

/// Health and schedule of the peers.
struct State {
    begun: Instant,
    /// Peers by subnet.
    peers: Vec<Peer>,
    /// Ticks at which peers are due, with their places in `peers`.
    due: BTreeSet<(u64, usize)>,
    /// Times between regular probes: for peers whose traffic goes or may go direct, and for all others.
    paces: Paces,
    /// Time at which the last of the peers is probed that a change of a link may have affected.
    all_probed: Duration,
    links: u64,
    uplink: Option<LinkName>,
    uplink_down: bool,
    suspect: bool,
    looked_around: Duration,
    /// True if something was lost since `looked_around`.
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
    news: Duration,
    /// Time of the oldest echo of its path that was sent since one came back.
    waiting: Option<Duration>,
    /// Number of requests to all machines since then.
    searches: u8,
    /// True if an echo of its path has ever come back from its present address.
    answered: bool,
}

impl Asker {
    pub(super) fn new(
        pace: Pace,
        bell: Bell,
        targets: watch::Receiver<Targets>,
        wake: UnixStream,
        healths: watch::Sender<Healths>,
        complaints: watch::Sender<Complaints>,
        post: Post,
    ) -> Self {
        let state = State {
            begun: Instant::now(),
            peers: Vec::new(),
            due: BTreeSet::new(),
            paces: [USUAL; 2],
            all_probed: Duration::ZERO,
            links: 0,
            uplink: None,
            uplink_down: false,
            suspect: false,
            looked_around: Duration::ZERO,
            lost: false,
            numbers: false,
            published: Duration::ZERO,
        };
        Self { pace, bell, targets, wake, healths, complaints, post, gathers: false, state }
    }

    /// Runs until the reconcile loop is gone.
    pub(super) fn run(mut self) {
        loop {
            match self.wait() {
                Ok(true) => self.follow(),
                Ok(false) => {}
                Err(error) => return warn!("probing has stopped, and paths stay as they are: {error}"),
            }
            self.pass();
        }
    }

    /// Sleeps until there is something to receive or to send. Returns true if the targets have changed, and an error if
    /// the reconcile loop is gone.
    fn wait(&mut self) -> io::Result<bool> {
        let due = self.due().map(|due| due.saturating_sub(self.state.begun.elapsed()));
        let due = if self.gathers { Some(due.unwrap_or(TICK).min(TICK)) } else { due };
        let timeout = due.and_then(|due| due.try_into().ok());
        let sockets = self.post.sockets().filter(|_| !self.gathers);
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
        let State { due, numbers, published, .. } = &self.state;
        let ask = due.first().map(|(due, _)| *due);
        // If peers are probed, numbers are published along with that.
        let publish = (*numbers && ask.is_none()).then(|| *published + NUMBERS);
        let post = self.post.due().into_iter().chain(publish).map(tick);
        let soonest = ask.into_iter().chain(post).min()?;
        Some(TICK * u32::try_from(soonest).unwrap_or(u32::MAX))
    }

    /// Takes the changed targets of the reconcile loop.
    fn follow(&mut self) {
        let now = self.state.begun.elapsed();
        let Targets { node, mut peers, suspect, links, mtu, diverted, mac: _ } =
            self.targets.borrow_and_update().clone();
        if node.is_none() {
            peers = Arc::default();
        }
        few_of_each_address(&mut peers, |peer| self.state.has_answered(peer));
        let state = &mut self.state;
        state.uplink_down = suspect;
        let uplink = node.as_ref().map(|node| node.uplink.link);
        let moved = state.uplink.is_some() && state.uplink != uplink;
        state.uplink = uplink;
        let before = state.peers.len();
        state.peers.retain(|peer| {
            peers.binary_search_by_key(&peer.judge.peer().subnet, |known| known.subnet).is_ok()
        });
        state.numbers |= state.peers.len() < before;
        let known = state.peers.len();
        state.peers.reserve_exact(peers.len() - known);
        if let Some(node) = &node {
            let local = Local { uplink: node.uplink.link, mtu };
            for path in peers.iter().cloned() {
                match state.peers[..known].binary_search_by_key(&path.subnet, Peer::subnet) {
                    Ok(at) => state.peers[at].follow(path, local, now),
                    Err(_) => state.peers.push(Peer::new(path, local, now)),
                }
            }
            state.peers.sort_unstable_by_key(Peer::subnet);
        }
        for peer in &mut state.peers {
            let subnet = peer.subnet();
            peer.judge.divert(diverted.contains(&subnet));
        }
        state.due = state.peers.iter().enumerate().map(|(at, peer)| (peer.due, at)).collect();
        let direct = state.peers.iter().filter(|peer| peer.may_be_direct()).count() as u32;
        let others = state.peers.len() as u32 - direct;
        // Each direct peer above [`DIRECT_PEERS`] slows all of them down by the same amount.
        let slower = (PERIOD - USUAL) * direct.saturating_sub(DIRECT_PEERS) / (MANY - DIRECT_PEERS);
        state.paces = [USUAL + slower, USUAL.max(PERIOD * others / MANY)];
        if state.links != links && !suspect {
            state.probe_all(now);
        }
        state.links = links;
        self.post.follow(node.as_ref(), &peers, now);
        if moved {
            // The health known so far was found along the former link.
            self.publish(true, now);
        }
    }

    /// Sends, receives and publishes once.
    fn pass(&mut self) {
        let (now, open) = (self.state.begun.elapsed(), self.post.open());
        self.post.look_if_due(now);
        self.post.check_own(now);
        for subnet in self.post.changed_next_hops() {
            if let Some(at) = at(&self.state.peers, subnet) {
                // Neighbour events are few at a time, and need not wait behind peers that a changed link has scheduled.
                self.state.hasten(at, now, now);
            }
        }
        let mut news = self.ask(now);
        let State { peers, begun, .. } = &self.state;
        self.post.ask_all(|subnet| at(peers, subnet).map(|at| peers[at].judge.peer()), now);
        // Receiving comes last, so that an immediate reply needs no wake-up of its own.
        let now = begun.elapsed();
        news.extend(self.post.receive(now));
        let changed = self.state.record(news, now);
        // A single wake-up serves many replies.
        self.gathers = ![0, open].contains(&self.post.open());
        self.publish(changed, now);
    }

    /// Probes the peers that are due. Returns the samples that are known without sending.
    fn ask(&mut self, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        let state = &mut self.state;
        for _ in 0..AT_ONCE {
            let ticks = now.as_millis() as u64 / TICK_MS;
            let Some(turn) = state.due.first().copied().filter(|(due, _)| *due <= ticks) else { break };
            state.due.pop_first();
            let Some(peer) = state.peers.get_mut(turn.1) else { continue };
            let pace = peer.pace(&state.paces);
            for probe in peer.judge.ask(now, pace) {
                let unsure = peer.is_unsure(probe, now);
                let path = peer.judge.peer();
                let known = self.post.ask(path, probe, unsure, now);
                news.extend(known.map(|sample| (path.subnet, sample)));
            }
            peer.due = peer.next(&state.paces, now);
            if peer.is_asked_on(self.pace, now) {
                state.due.insert((peer.due, turn.1));
            }
        }
        news
    }

    /// Publishes changed health at once, and changed numbers every few seconds.
    fn publish(&mut self, changed: bool, now: Duration) {
        let state = &mut self.state;
        if changed || (state.numbers && now + LATE >= state.published + NUMBERS) {
            let healths = state.peers.iter().map(|peer| peer.judge.health()).collect();
            self.healths.send_replace(Arc::new(healths));
            (state.numbers, state.published) = (false, now);
        }
        let (refused, rival) = (self.post.refused(), self.post.rival());
        let other = self.complaints.send_if_modified(|known| {
            let other = (known.refused.as_deref(), known.rival) != (refused, rival);
            if other {
                *known = Complaints { refused: refused.map(Into::into), rival };
            }
            other
        });
        if changed || other {
            self.bell.ring(Cause::Verdicts);
        }
    }
}

/// Withdraws all health when the thread ends, so that nobody relies on it.
impl Drop for Asker {
    fn drop(&mut self) {
        self.healths.send_replace(Healths::default());
        self.bell.ring(Cause::Verdicts);
    }
}

impl State {
    /// Returns true if the peer has answered from its present address.
    fn has_answered(&self, peer: &PeerPath) -> bool {
        let known = at(&self.peers, peer.subnet).map(|at| &self.peers[at]);
        known.is_some_and(|known| known.answered && known.judge.peer().public_ip == peer.public_ip)
    }

    /// Schedules a probe of every peer, since something may have happened to all. They are spread to at most
    /// [`DIRECT_PEERS`] a second.
    fn probe_all(&mut self, now: Duration) {
        self.all_probed = self.all_probed.max(now);
        for at in 0..self.peers.len() {
            let by = self.all_probed;
            if self.peers[at].judge.next() > by {
                self.all_probed += USUAL / DIRECT_PEERS;
            }
            self.hasten(at, by, now);
        }
    }

    /// Schedules a probe of that peer by the given time, since something may have happened to it.
    fn hasten(&mut self, at: usize, by: Duration, now: Duration) {
        let Some(peer) = self.peers.get_mut(at) else { return };
        peer.judge.hasten(by);
        peer.news = now;
        self.due.remove(&(peer.due, at));
        peer.due = peer.next(&self.paces, now);
        self.due.insert((peer.due, at));
    }

    /// Hands the samples to the judges. Returns true if a peer's health has changed.
    fn record(&mut self, news: Vec<News>, now: Duration) -> bool {
        let mut touched = Vec::new();
        for (subnet, sample) in news {
            let Some(at) = at(&self.peers, subnet) else { continue };
            self.lost |= matches!(sample.answer, Answer::Lost | Answer::Refused { .. });
            self.peers[at].record(sample.probe, sample.answer);
            self.peers[at].judge.hear(sample);
            touched.push(at);
        }
        if touched.is_empty() {
            return false;
        }
        self.numbers = true;
        // The check is needed only after a loss, or while this node is the suspect.
        if (self.lost || self.suspect) && now >= self.looked_around + LOOK_AROUND {
            (self.looked_around, self.lost) = (now, false);
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
            if before.verdict != after.verdict {
                (changed, peer.news) = (true, now);
                log_change(&before, &after);
            }
            // The reply may bring the next probe forward or put it off. Peers that are not probed any more are not in
            // `due`.
            let due = peer.next(&self.paces, now);
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
fn few_of_each_address(peers: &mut Arc<Vec<PeerPath>>, has_answered: impl Fn(&PeerPath) -> bool) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    peers.iter().for_each(|peer| *counts.entry(peer.public_ip).or_default() += 1);
    counts.retain(|_, count| *count > OF_ONE_ADDRESS);
    if counts.is_empty() {
        return;
    }
    let crowded = peers.iter().filter(|peer| counts.contains_key(&peer.public_ip));
    let mut order: Vec<_> =
        crowded.map(|peer| (peer.public_ip, !has_answered(peer), peer.born, peer.subnet)).collect();
    order.sort_unstable();
    let nodes = order.chunk_by(|one, other| one.0 == other.0);
    let left_out = nodes.flat_map(|subnets| subnets.iter().skip(OF_ONE_ADDRESS));
    let left_out: BTreeSet<IpNet> = left_out.map(|(.., subnet)| *subnet).collect();
    Arc::make_mut(peers).retain(|peer| !left_out.contains(&peer.subnet));
}

/// Returns the place of a peer.
fn at(peers: &[Peer], subnet: IpNet) -> Option<usize> {
    peers.binary_search_by_key(&subnet, Peer::subnet).ok()
}

fn log_change(before: &Health, after: &Health) {
    let (was, is) = (&before.verdict, &after.verdict);
    debug!(
        "health of {}: {} (path {:?}), was {} (path {:?}): {}",
        is.subnet,
        is.finding.name(),
        is.way,
        was.finding.name(),
        was.way,
        is.finding
    );
}

impl Peer {
    fn new(path: PeerPath, local: Local, now: Duration) -> Self {
        let judge = Judge::new(path, local, now);
        Self { due: tick(judge.next()), judge, news: now, waiting: None, searches: 0, answered: false }
    }

    fn follow(&mut self, path: PeerPath, local: Local, now: Duration) {
        if *self.judge.peer() != path {
            self.news = now;
        }
        self.answered &= self.judge.peer().public_ip == path.public_ip;
        self.judge.follow(path, local, now);
        self.due = tick(self.judge.next());
    }

    fn subnet(&self) -> IpNet {
        self.judge.peer().subnet
    }

    /// Returns the tick of the next probe, at the earliest one tick from now. A judge that always wants more at once
    /// would otherwise block the loop.
    fn next(&self, paces: &Paces, now: Duration) -> u64 {
        let next = self.judge.next().max(now + TICK);
        let is_seldom = self.pace(paces) > USUAL && next > now + SOON;
        if is_seldom { tick(next).next_multiple_of(SELDOM) } else { tick(next) }
    }

    fn pace(&self, paces: &Paces) -> Duration {
        paces[usize::from(!self.may_be_direct())]
    }

    /// Returns true if the peer is still probed. With `on-change` that holds while it is new, changes or is faulty. A
    /// direct path chosen by evidence is always probed, since nothing else would notice that it fails.
    fn is_asked_on(&self, pace: Pace, now: Duration) -> bool {
        let path = self.judge.peer();
        let is_chosen = path.by_evidence && path.path == Path::Direct;
        let is_fault = self.judge.health().verdict.finding.is_fault();
        pace == Pace::Periodic || is_chosen || is_fault || now < self.news + SETTLED
    }

    /// Returns true if the peer's traffic goes or may go direct.
    fn may_be_direct(&self) -> bool {
        let path = self.judge.peer();
        path.path == Path::Direct || (path.by_evidence && path.on_link)
    }

    /// Records the probe. Returns true if all machines of the segment may get a request for the next hop.
    fn is_unsure(&mut self, probe: Probe, now: Duration) -> bool {
        match probe {
            Probe::Path | Probe::PathSized(_) => {
                self.waiting.get_or_insert(now);
                false
            }
            Probe::NextHop => {
                let is_late = self.waiting.is_some_and(|since| now >= since + LATE);
                let unsure = is_late && self.searches < SEARCHES;
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
