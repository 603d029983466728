//! The loop: asks each peer what its judge wants to know when it wants to know it, hands it the answers, and publishes what
//! it makes of them. Decides nothing.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use plan::verdict::{Answer, Health, Judge, Local, Probe, Shared, suspect};
use plan::{LinkName, Path, PeerPath};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::post::{News, Post};
use super::{Healths, Pace, Refused, Targets};
use crate::trigger::{Bell, Cause};

/// What is due within this time is done at once: one waking for many peers.
const TICK_MS: u64 = 20;
const TICK: Duration = Duration::from_millis(TICK_MS);
/// The same, in ticks, of peers that are asked seldom, if it is not urgent.
const SELDOM: u64 = 12;
const SOON: Duration = Duration::from_millis(500);
/// Peers that are asked in one go; the others are asked in the next one.
const AT_ONCE: usize = 50;
/// About so long between two publications of what is no more than another number.
const NUMBERS: Duration = Duration::from_secs(5);
/// Between two looks at whether most peers are silent.
const LOOK_AROUND: Duration = Duration::from_millis(250);
/// Between two regular questions to one peer, and how many direct peers there may be for that.
const USUAL: Duration = Duration::from_secs(1);
const DIRECT_PEERS: u32 = 200;
/// All are asked once in this time when they are so many: a loss is known within a minute.
const PERIOD: Duration = Duration::from_secs(58);
const MANY: u32 = 5000;
/// With `on-change` a peer is asked until nothing has been new for so long: time enough to be found healthy again.
const SETTLED: Duration = Duration::from_secs(40);
/// An echo that has not come back by then is late.
const LATE: Duration = Duration::from_millis(250);
/// Maximum number of subnets that are asked about behind one node's address; a node has one, and another while it moves.
const OF_ONE_ADDRESS: usize = 8;
/// Questions to all machines of the segment while a peer's echoes stay away: enough to hear twice of two that have its
/// address.
const SEARCHES: u8 = 3;

pub(super) struct Asker {
    pub(super) pace: Pace,
    pub(super) bell: Bell,
    pub(super) targets: watch::Receiver<Targets>,
    wake: UnixStream,
    pub(super) healths: watch::Sender<Healths>,
    refused: watch::Sender<Refused>,
    pub(super) post: Post,
    /// More answers than the first one are about to come.
    gathers: bool,
    state: State,
}

type Paces = [Duration; 2];

/// What is known.
struct State {
    begun: Instant,
    /// By subnet.
    peers: Vec<Peer>,
    /// Whose turn is when, by place among them.
    due: BTreeSet<(u64, usize)>,
    /// For peers whose traffic goes or may go direct, and for all others.
    paces: Paces,
    /// When the last one of those is asked that something seems to have happened to.
    stirred: Duration,
    links: u64,
    uplink: Option<LinkName>,
    uplink_down: bool,
    suspect: bool,
    looked_around: Duration,
    /// Something was lost since.
    lost: bool,
    /// Something is to be published, and when that was done last.
    numbers: bool,
    published: Duration,
}

struct Peer {
    judge: Judge,
    /// In ticks.
    due: u64,
    /// When anything about it was new.
    news: Duration,
    /// The oldest echo of its path that was sent since one came back.
    waiting: Option<Duration>,
    searches: u8,
}

impl Asker {
    pub(super) fn new(
        pace: Pace,
        bell: Bell,
        targets: watch::Receiver<Targets>,
        wake: UnixStream,
        healths: watch::Sender<Healths>,
        refused: watch::Sender<Refused>,
        post: Post,
    ) -> Self {
        let state = State {
            begun: Instant::now(),
            peers: Vec::new(),
            due: BTreeSet::new(),
            paces: [USUAL; 2],
            stirred: Duration::ZERO,
            links: 0,
            uplink: None,
            uplink_down: false,
            suspect: false,
            looked_around: Duration::ZERO,
            lost: false,
            numbers: false,
            published: Duration::ZERO,
        };
        Self { pace, bell, targets, wake, healths, refused, post, gathers: false, state }
    }

    /// Asks until the rounds are gone.
    pub(super) fn run(mut self) {
        loop {
            match self.wait() {
                Ok(true) => self.follow(),
                Ok(false) => {}
                Err(error) => return warn!("peers are asked no more, and ways stay as they are: {error}"),
            }
            self.pass();
        }
    }

    /// Until there is something to hear or to ask. True if the targets are others.
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

    /// When there is something to do even if nothing comes in.
    fn due(&self) -> Option<Duration> {
        let State { due, numbers, published, .. } = &self.state;
        let ask = due.first().map(|(due, _)| *due);
        // Where there is somebody to ask, numbers are published along with that.
        let publish = (*numbers && ask.is_none()).then(|| *published + NUMBERS);
        let post = self.post.due().into_iter().chain(publish).map(tick);
        let soonest = ask.into_iter().chain(post).min()?;
        Some(TICK * u32::try_from(soonest).unwrap_or(u32::MAX))
    }

    /// The rounds have other peers, or other ways to them.
    fn follow(&mut self) {
        let now = self.state.begun.elapsed();
        let Targets { node, mut peers, suspect, links, mtu, diverted, mac: _ } =
            self.targets.borrow_and_update().clone();
        if node.is_none() {
            peers = Arc::default();
        }
        few_of_each_address(&mut peers);
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
            let local = Arc::new(Local { uplink: node.uplink.link, mtu });
            for path in Shared::all(&peers) {
                let local = local.clone();
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
        // Each above the first ones slows all down by as much.
        let slower = (PERIOD - USUAL) * direct.saturating_sub(DIRECT_PEERS) / (MANY - DIRECT_PEERS);
        state.paces = [USUAL + slower, USUAL.max(PERIOD * others / MANY)];
        if state.links != links && !suspect {
            state.stir(now);
        }
        state.links = links;
        self.post.follow(node.as_ref(), &peers, now);
        if moved {
            // What was known of them was known along another link.
            self.publish(true, now);
        }
    }

    /// Asks, hears, publishes.
    fn pass(&mut self) {
        let (now, open) = (self.state.begun.elapsed(), self.post.open());
        self.post.look_if_due(now);
        for subnet in self.post.doubted() {
            if let Some(at) = at(&self.state.peers, subnet) {
                // Few at a time, and not behind those that a link has stirred.
                self.state.hasten(at, now, now);
            }
        }
        let mut news = self.ask(now);
        let State { peers, begun, .. } = &self.state;
        self.post.ask_all(|subnet| at(peers, subnet).map(|at| peers[at].judge.peer()), now);
        // Heard last: what is answered at once needs no waking of its own.
        let now = begun.elapsed();
        news.extend(self.post.hear(now));
        let changed = self.state.hear(news, now);
        // One waking for many answers.
        self.gathers = ![0, open].contains(&self.post.open());
        self.publish(changed, now);
    }

    /// Asks those whose time has come; what is known without asking comes back.
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

    /// What is new at once, mere numbers now and then.
    fn publish(&mut self, changed: bool, now: Duration) {
        let state = &mut self.state;
        if changed || (state.numbers && now + LATE >= state.published + NUMBERS) {
            let healths = state.peers.iter().map(|peer| peer.judge.health()).collect();
            self.healths.send_replace(Arc::new(healths));
            (state.numbers, state.published) = (false, now);
        }
        let refused = self.post.refused();
        let other = self.refused.send_if_modified(|told| {
            let other = told.as_deref() != refused;
            if other {
                *told = refused.map(Into::into);
            }
            other
        });
        if changed || other {
            self.bell.ring(Cause::Verdicts);
        }
    }
}

/// However the thread ends, nobody goes by what it knew.
impl Drop for Asker {
    fn drop(&mut self) {
        self.healths.send_replace(Healths::default());
        self.bell.ring(Cause::Verdicts);
    }
}

impl State {
    /// Something may have happened to all: each is asked as soon as those before it are, no more of them in a second than peers
    /// that are direct.
    fn stir(&mut self, now: Duration) {
        self.stirred = self.stirred.max(now);
        for at in 0..self.peers.len() {
            let by = self.stirred;
            if self.peers[at].judge.next() > by {
                self.stirred += USUAL / DIRECT_PEERS;
            }
            self.hasten(at, by, now);
        }
    }

    /// Something may have happened to that peer: it is asked by then.
    fn hasten(&mut self, at: usize, by: Duration, now: Duration) {
        let Some(peer) = self.peers.get_mut(at) else { return };
        peer.judge.hasten(by);
        peer.news = now;
        self.due.remove(&(peer.due, at));
        peer.due = peer.next(&self.paces, now);
        self.due.insert((peer.due, at));
    }

    /// Hands everybody's judge what came of the questions. True when a finding or a way is another.
    fn hear(&mut self, news: Vec<News>, now: Duration) -> bool {
        let mut touched = Vec::new();
        for (subnet, sample) in news {
            let Some(at) = at(&self.peers, subnet) else { continue };
            self.lost |= matches!(sample.answer, Answer::Lost | Answer::Refused { .. });
            self.peers[at].hear(sample.probe, sample.answer);
            self.peers[at].judge.hear(sample);
            touched.push(at);
        }
        if touched.is_empty() {
            return false;
        }
        self.numbers = true;
        // While nothing is lost, whoever may be the suspect, nothing comes of it.
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
                tell(&before, &after);
            }
            // What was heard may be a reason to ask sooner or later; those who are asked no more are not in line.
            let due = peer.next(&self.paces, now);
            if self.due.remove(&(peer.due, at)) || due < peer.due {
                self.due.insert((due, at));
                peer.due = due;
            }
        }
        changed
    }
}

/// The first one at that time or after it.
fn tick(time: Duration) -> u64 {
    (time.as_millis() as u64).div_ceil(TICK_MS)
}

/// Without those whose node's address many others have, too: whoever may write leases does not make all nodes ask a machine
/// of his choice more often than that.
fn few_of_each_address(peers: &mut Arc<Vec<PeerPath>>) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    let mut is_asked = |peer: &PeerPath| {
        let count = counts.entry(peer.public_ip).or_default();
        *count += 1;
        *count <= OF_ONE_ADDRESS
    };
    let asked: Vec<bool> = peers.iter().map(&mut is_asked).collect();
    if asked.contains(&false) {
        let mut asked = asked.into_iter();
        Arc::make_mut(peers).retain(|_| asked.next().unwrap_or(true));
    }
}

/// The place of a peer.
fn at(peers: &[Peer], subnet: IpNet) -> Option<usize> {
    peers.binary_search_by_key(&subnet, Peer::subnet).ok()
}

fn tell(before: &Health, after: &Health) {
    let (was, is) = (&before.verdict, &after.verdict);
    debug!(
        "{}: {} {:?}, was {} {:?}: {}",
        is.subnet,
        is.finding.name(),
        is.way,
        was.finding.name(),
        was.way,
        is.finding
    );
}

impl Peer {
    fn new(path: Shared, local: Arc<Local>, now: Duration) -> Self {
        let judge = Judge::new(path, local, now);
        Self { due: tick(judge.next()), judge, news: now, waiting: None, searches: 0 }
    }

    fn follow(&mut self, path: Shared, local: Arc<Local>, now: Duration) {
        if *self.judge.peer() != *path {
            self.news = now;
        }
        self.judge.follow(path, local, now);
        self.due = tick(self.judge.next());
    }

    fn subnet(&self) -> IpNet {
        self.judge.peer().subnet
    }

    /// When to ask it again. A judge that asks at once again would never let go.
    fn next(&self, paces: &Paces, now: Duration) -> u64 {
        let next = self.judge.next().max(now + TICK);
        let is_seldom = self.pace(paces) > USUAL && next > now + SOON;
        if is_seldom { tick(next).next_multiple_of(SELDOM) } else { tick(next) }
    }

    fn pace(&self, paces: &Paces) -> Duration {
        paces[usize::from(!self.may_be_direct())]
    }

    /// With `on-change`, too, nobody else would say that a way which was chosen by evidence fails.
    fn is_asked_on(&self, pace: Pace, now: Duration) -> bool {
        let path = self.judge.peer();
        let is_chosen = path.by_evidence && path.path == Path::Direct;
        let is_fault = self.judge.health().verdict.finding.is_fault();
        pace == Pace::Periodic || is_chosen || is_fault || now < self.news + SETTLED
    }

    fn may_be_direct(&self) -> bool {
        let path = self.judge.peer();
        path.path == Path::Direct || (path.by_evidence && path.on_link)
    }

    /// Keeps account of what is asked. May all machines of the segment be asked about it?
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

    fn hear(&mut self, probe: Probe, answer: Answer) {
        let is_path = matches!(probe, Probe::Path | Probe::PathSized(_));
        match answer {
            Answer::Came { .. } if is_path => (self.waiting, self.searches) = (None, 0),
            Answer::Impossible if is_path => self.waiting = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
