//! Judge of one peer: takes samples, returns the next probes and their times (`questions`), and finds faults (`diagnosis`). It
//! keeps a bounded number of results. It decides between direct and tunnel, but sends nothing and reads no clock.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::evidence::{Found, Said};
use super::ladder::least;
use super::questions::{BACK, Questions};
use super::rare::{Known, Rare, Trial};
use super::suspicion::Silence;
use super::track::{History, Moment, Track};
use super::{Answer, Finding, Health, Probe, Sample, Shared, Verdict, Way};
use crate::{LinkName, Path, PeerPath};

/// Time after which a probe without a reply is lost.
pub const PATIENCE: Duration = Duration::from_millis(800);
/// Time without a loss that proves the direct path for the first time. Later proofs take much longer ([`Trial::health`]).
const PROOF: Duration = Duration::from_millis(900);
/// Delay of the first probes to a new peer; within it, nodes learn of each other.
const JOIN: Duration = Duration::from_secs(1);
/// Time after which the first fault of a peer is reported if the peer was never reached.
const ACQUAINTED: Duration = Duration::from_secs(10);
/// Minimum time of a reboot. A peer that has answered nothing for this long may be restarting, so it no longer counts as reached.
const START: Duration = Duration::from_secs(5);

/// State of this node that all paths depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub uplink: LinkName,
    /// MTU of the pods' interfaces in bytes, as in subnet.env.
    pub mtu: u32,
}

/// Evidence about one peer, and the schedule of its probes.
#[derive(Clone, Debug)]
pub struct Judge {
    pub(super) peer: Shared,
    pub(super) local: Arc<Local>,
    pub(super) questions: Questions,
    /// Reported finding.
    pub(super) said: Said,
    /// Path that the evidence favours; `None` without evidence.
    pub(super) way: Option<Way>,
    /// Time at which the reported finding was made.
    since: Moment,
    /// Round-trip time of the last echo between pod subnets, in microseconds.
    latency: Option<NonZeroU32>,
    pub(super) tracks: Tracks,
    /// Time of the last change of path; samples sent until then are about an earlier path.
    epoch: Moment,
    /// Reachability of the pod subnet. It counts as reached after one answered echo, by any path, until the peer is gone.
    pub(super) reach: Reach,
    pub(super) rare: Rare,
    found: Found,
    pub(super) history: History,
    pub(super) silence: Silence,
}

/// Tracks of the probes that every peer gets.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracks {
    pub(super) path: Track,
    pub(super) full: Track,
}

/// Three flags in one byte, since there is a judge for each of thousands of peers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reach(u8);

impl Reach {
    const REACHED: u8 = 1;
    const JUDGED: u8 = 2;
    const ANSWERS: u8 = 4;

    fn with(self, bit: u8, on: bool) -> Self {
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }

    fn reached(self, reached: bool) -> Self {
        self.with(Self::REACHED, reached)
    }

    pub(super) fn is_reached(self) -> bool {
        self.0 & Self::REACHED != 0
    }

    fn answering(self, answers: bool) -> Self {
        self.with(Self::JUDGED, true).with(Self::ANSWERS, answers)
    }

    /// Returns true if the pod subnet answers, `None` before there is evidence.
    fn answers(self) -> Option<bool> {
        (self.0 & Self::JUDGED != 0).then_some(self.0 & Self::ANSWERS != 0)
    }
}

impl Judge {
    /// Creates a judge without evidence. The path in use is kept until there is evidence against it.
    pub fn new(peer: impl Into<Shared>, local: impl Into<Arc<Local>>, now: Duration) -> Self {
        let (peer, local) = (peer.into(), local.into());
        let turn = number(peer.subnet) as u16;
        Self {
            rare: Rare::of(&peer),
            peer,
            local,
            questions: Questions::new(now + JOIN, turn),
            said: Said::of(Finding::Unverified),
            way: None,
            since: Moment::of(now),
            latency: None,
            tracks: Tracks::default(),
            epoch: Moment::of(now),
            reach: Reach::default(),
            found: Found::new(now),
            history: History::default(),
            silence: Silence::default(),
        }
    }

    /// Records whether a policy rule or route of this node diverts the packets to the peer.
    pub fn divert(&mut self, diverted: bool) {
        if self.rare.diverted != diverted {
            self.rare.diverted = diverted;
        }
    }

    /// Takes the plan's current path to the peer. The reported finding stays until there is evidence about the new path. A peer
    /// with another address, or another uplink, starts from nothing.
    pub fn follow(&mut self, peer: impl Into<Shared>, local: impl Into<Arc<Local>>, now: Duration) {
        let (peer, local) = (peer.into(), local.into());
        if (self.peer.subnet, self.peer.public_ip) != (peer.subnet, peer.public_ip)
            || self.local.uplink != local.uplink
        {
            let questions = self.questions.anew(now + JOIN);
            *self = Self { questions, ..Self::new(peer, local, now) };
            return;
        }
        let was = (self.peer.path, self.peer.tunnel, self.local.mtu);
        let another = was != (peer.path, peer.tunnel, local.mtu);
        let decides = self.peer.by_evidence != peer.by_evidence;
        // A probe of the same millisecond may have gone along the old path.
        let soon = now + Duration::from_millis(1);
        (self.peer, self.local) = (peer, local);
        if another {
            (self.tracks, self.epoch) = (Tracks::default(), Moment::of(now));
            (self.history, self.latency) = (History::default(), None);
            self.rare.renew();
            self.questions = self.questions.anew(soon);
        }
        if decides {
            // The reason for which the direct path was left stays: the peer may have been off the segment for a moment only.
            self.way = None;
            self.rare.decide(self.peer.by_evidence);
            self.watch_direct();
            self.questions = self.questions.anew(soon);
        }
    }

    /// Returns the probes to send now; `pace` is the maximum time between two regular ones. There are at most ten in any
    /// second. A search for the largest packet adds up to 48 more, and two searches may run at a time.
    pub fn ask(&mut self, now: Duration, pace: Duration) -> Vec<Probe> {
        let probes = self.choose(now, pace);
        if !probes.is_empty() {
            self.silence.ask(now);
        }
        probes
    }

    /// Moves the next regular probe forward to `by`, but not closer than a second to the last one. Called when something may
    /// have happened to the peer.
    pub fn hasten(&mut self, by: Duration) {
        self.questions.hasten(by);
    }

    /// Returns the time of the next probe.
    pub fn next(&self) -> Duration {
        let ladders = self.rare.ladder.iter().chain(&self.rare.outer_ladder);
        let ladders = ladders.filter_map(|ladder| ladder.next());
        ladders.fold(self.questions.next(), Duration::min)
    }

    /// Takes a sample. Samples may come late, twice, in any order, or be about a path that is no longer in use.
    pub fn hear(&mut self, sample: Sample) {
        let sample = Sample { answer: self.believe(&sample), ..sample };
        if !matches!(sample.answer, Answer::Lost | Answer::Impossible | Answer::TooBig { .. }) {
            self.silence.hear(sample.sent);
        }
        let rare = &mut self.rare;
        match sample.probe {
            Probe::NextHop => {
                rare.next_hop.hear(&sample);
                if let Answer::Is { .. } = sample.answer {
                    rare.macs.hear(&sample);
                }
                self.try_out(&sample, |trial| trial.next_hop.hear(&sample));
            }
            Probe::Node => rare.node.hear(&sample),
            Probe::Direct => {
                rare.direct.hear(&sample);
                if self.peer.path != Path::Direct {
                    self.try_out(&sample, |trial| trial.path.hear(&sample));
                }
            }
            _ if Moment::of(sample.sent) <= self.epoch => {}
            Probe::NodeSized(size) => self.hear_outer(size, &sample),
            Probe::Path | Probe::PathSized(_) => self.hear_path(&sample),
            Probe::There => rare.there.hear(&sample),
            Probe::Checksum => {
                rare.pairs.hear(&sample);
                if rare.pairs.bad > 0 {
                    self.questions.doubt_pair(sample.sent);
                }
            }
        }
        self.calm();
    }

    /// Returns the sample's answer, with a reported MTU only if it is plausible. Old routers name no size, and ICMP errors can
    /// be forged.
    fn believe(&self, sample: &Sample) -> Answer {
        let Answer::TooBig { mtu } = sample.answer else { return sample.answer };
        let (size, address) = match sample.probe {
            Probe::PathSized(size) => (size, self.peer.subnet.addr()),
            Probe::NodeSized(size) => (size, self.peer.public_ip),
            _ => return Answer::Lost,
        };
        if (least(address)..size).contains(&mtu) { sample.answer } else { Answer::Lost }
    }

    fn try_out(&mut self, sample: &Sample, hear: impl FnOnce(&mut Trial)) {
        let ours = |trial: &&mut Box<Trial>| trial.excused.is_none_or(|excused| sample.sent > excused.time());
        let trial = self.rare.known().and_then(|rare| rare.trial.as_mut());
        if let Some(trial) = trial.filter(ours) {
            hear(trial);
        }
    }

    fn hear_outer(&mut self, size: u16, sample: &Sample) {
        if Some(size) == self.outer_size() {
            self.rare.outer.hear(sample);
        } else if let (Some(ladder), Answer::Came { .. }) = (self.rare.outer_ladder(), sample.answer) {
            ladder.arrived(size);
        }
    }

    fn hear_path(&mut self, sample: &Sample) {
        let came = if let Answer::Came { after } = sample.answer { Some(after) } else { None };
        self.reach = self.reach.reached(self.reach.is_reached() || came.is_some());
        let regular = self.questions.is_regular(sample.sent);
        if let Probe::PathSized(size) = sample.probe {
            if Some(size) != self.full_size() {
                if let (Some(ladder), Some(_)) = (self.rare.ladder(), came) {
                    ladder.arrived(size);
                }
                return;
            }
            if came.is_none() && !regular {
                // A small echo is sent with it or has been answered.
                self.tracks.path.excuse(sample.sent);
                self.try_out(sample, |trial| trial.path.excuse(sample.sent));
            }
            let known = self.tracks.full.is_down() || !regular;
            self.tracks.full.hear(sample);
            if came.is_none() && (known || matches!(sample.answer, Answer::TooBig { .. })) {
                return;
            }
        }
        if let Some(after) = came {
            let micros = u32::try_from(after.as_micros()).unwrap_or(u32::MAX);
            self.latency = Some(NonZeroU32::MIN.saturating_add(micros.saturating_sub(1)));
        }
        if regular {
            self.history.add(came.is_none());
        }
        let hear = if regular { Track::hear } else { Track::hear_quick };
        // A large echo that is lost for its size does no harm here: the next small ones are answered.
        hear(&mut self.tracks.path, sample);
        if self.tracks.path.is_down() && !self.tracks.full.is_down() {
            // The size was not the reason for which large echoes were lost.
            self.tracks.full.forgive();
        }
        let well = came.is_some() && !self.tracks.path.is_down() && self.rare.left.is_none();
        if let Some(rare) = self.rare.known().filter(|_| well) {
            rare.macs.path_is_well();
        }
        if self.peer.path == Path::Direct {
            self.try_out(sample, |trial| hear(&mut trial.path, sample));
        }
    }

    /// Updates the verdict; called after [`Self::hear`], once for several samples, and before [`Self::health`]. `suspect` is
    /// true if our uplink is down or [`suspect`](super::suspect) returns true. Findings are still reported then, but a path to
    /// a silent peer is not withdrawn.
    pub fn decide(&mut self, now: Duration, suspect: bool) {
        let finding = self.diagnose(now).unwrap_or_else(|| self.found.finding.get());
        if suspect {
            if let Some(trial) = self.rare.known().and_then(|rare| rare.trial.as_mut()) {
                trial.excuse(&self.silence, now);
            }
        } else {
            self.silence.settle(now, finding.is_fault());
        }
        self.choose_way(finding, now);
        let gone = self.tracks.path.is_down() && self.silence.is_total(&self.tracks.path);
        let lives = !gone || now < self.tracks.path.trouble() + START;
        self.reach = self.reach.reached(self.reach.is_reached() && lives);
        // The chosen path may change the finding.
        let finding = self.diagnose(now).unwrap_or(finding);
        let said = self.said.get();
        let finding = self.found.settle(finding, said, self.tracks.path.is_gone(), now);
        let early = !self.reach.is_reached() && !said.is_fault() && now < self.since.time() + ACQUAINTED;
        if said != finding && !(early && finding.is_fault()) {
            (self.said, self.since) = (Said::of(finding), Moment::of(now));
        }
        if let Some(answers) = self.answers_now(suspect) {
            self.reach = self.reach.answering(answers);
        }
        if self.is_rising() {
            self.questions.hasten(now + BACK);
        }
    }

    /// Returns true if the pod subnet answers now, `None` if nothing new is known.
    fn answers_now(&self, suspect: bool) -> Option<bool> {
        let (path, said) = (&self.tracks.path, self.said.get());
        match said {
            _ if path.has_answered() && !path.is_down() => Some(true),
            Finding::Flapping { .. } | Finding::NoWayBack { .. } => Some(true),
            _ if suspect || path.is_open() || !said.is_fault() => None,
            _ => Some(false),
        }
    }

    fn choose_way(&mut self, finding: Finding, now: Duration) {
        let Some(trial) = &self.rare.trial else { return };
        let way = self.way;
        let stands = self.peer.path == Path::Direct;
        let decided = if way == Some(Way::Direct) || (way.is_none() && stands) {
            let lost = trial.next_hop.is_gone() || trial.path.is_down();
            match lost {
                true => Some(Way::Tunnel),
                false if stands && self.tracks.path.is_steady() => Some(Way::Direct),
                false => way,
            }
        } else if self.is_proven() {
            Some(Way::Direct)
        } else {
            way
        };
        if decided != way {
            let left = decided == Some(Way::Tunnel);
            let mut trial = trial.of_another_way();
            if left {
                trial.leave(now);
            } else if self.rare.left.is_some() {
                trial.take(now);
            }
            (self.way, self.rare.trial) = (decided, Some(Box::new(trial)));
            self.rare.left = left.then(|| Box::new(finding));
            if left {
                self.watch_direct();
            }
        }
    }

    /// Starts the proof of the direct path from this moment.
    fn watch_direct(&mut self) {
        if let Some(rare) = self.rare.known() {
            rare.next_hop.restart();
            rare.direct = Track::default();
        }
    }

    /// Returns true if next hop and direct echoes were answered, without any loss, for the required time.
    fn is_proven(&self) -> bool {
        let Known { next_hop, direct, left, trial, .. } = &*self.rare;
        let needed = trial.as_ref().filter(|_| left.is_some()).map_or(PROOF, |trial| trial.health());
        let long = |track: &Track| track.steady_for().is_some_and(|steady| steady >= needed);
        long(direct) && (next_hop.impossible || long(next_hop))
    }

    /// Returns the verdict with its time, latency, loss and MTU.
    pub fn health(&self) -> Health {
        let (subnet, node) = (self.peer.subnet, self.peer.public_ip);
        Health {
            verdict: Verdict {
                subnet,
                node,
                uplink: self.local.uplink,
                finding: self.said.get(),
                way: self.way,
                answers: self.reach.answers(),
            },
            since: self.since.time(),
            latency: self.latency(),
            loss: self.history.per_mille(),
            mtu: self.known_mtu(),
        }
    }

    /// Returns the peer with its path according to the plan.
    pub fn peer(&self) -> &PeerPath {
        &self.peer
    }

    pub(super) fn latency(&self) -> Option<Duration> {
        self.latency.map(|micros| Duration::from_micros(micros.get().into()))
    }
}

/// Returns the number of the subnet among those of its size; adjacent subnets have consecutive numbers.
fn number(subnet: IpNet) -> u128 {
    let bits = match subnet.addr() {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    bits.checked_shr((subnet.max_prefix_len() - subnet.prefix_len()).into()).unwrap_or_default()
}
