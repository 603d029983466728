//! Judge of one peer. It composes the evidence, the schedule of the probes, the diagnosis and the reported finding.
//! It sends nothing and reads no clock.

use std::time::Duration;

use super::diagnose::diagnose;
use super::evidence::Evidence;
use super::reported::Reported;
use super::schedule::{Kind, RECOVERY_PERIOD, Schedule};
use super::self_suspect::Silence;
use super::time::Time;
use super::{Answer, Finding, Health, PeerHealth, Probe, Sample};
use crate::name::LinkName;
use crate::peer::PeerPath;

/// Time after which a probe without a reply is lost.
pub const PATIENCE: Duration = Duration::from_millis(800);
/// Delay of the first probes to a new peer; within it, nodes learn of each other.
const JOIN_DELAY: Duration = Duration::from_secs(1);
/// Minimum time of a reboot. A peer that has answered nothing for this long may be restarting, so it no longer counts as reached.
const MIN_REBOOT_TIME: Duration = Duration::from_secs(5);

/// State of this node that all paths depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub uplink: LinkName,
    /// MTU of the pods' interfaces in bytes, as in subnet.env.
    pub mtu: u32,
}

/// Judge of one peer. It keeps a bounded number of results.
#[derive(Clone, Debug)]
pub struct Judge {
    evidence: Evidence,
    pub(super) schedule: Schedule,
    reported: Reported,
    /// True if the peer's pod subnet answers; `None` before there is evidence.
    answers: Option<bool>,
    /// Time of the last change of path; samples sent until then are about an earlier path.
    epoch: Time,
    pub(super) silence: Silence,
}

impl Judge {
    /// Creates a judge without evidence. The path in use is kept until there is evidence against it.
    pub fn new(peer: PeerPath, local: Local, now: Duration) -> Self {
        let now = Time::from(now);
        Self {
            schedule: Schedule::new(now + JOIN_DELAY, peer.subnet),
            evidence: Evidence::new(peer, local),
            reported: Reported::new(now),
            answers: None,
            epoch: now,
            silence: Silence::default(),
        }
    }

    /// Records whether a policy rule or route of this node diverts the packets to the peer.
    pub fn set_diverted(&mut self, diverted: bool) {
        self.evidence.diverted = diverted;
    }

    /// Takes the plan's current path to the peer. The reported finding stays until there is evidence about the new path. A peer
    /// with another address, or another uplink, starts from nothing.
    pub fn update_path(&mut self, peer: PeerPath, local: Local, now: Duration) {
        let (was, had) = (&self.evidence.peer, self.evidence.local);
        if (was.subnet, was.public_ip) != (peer.subnet, peer.public_ip) || had.uplink != local.uplink {
            let mut schedule = self.schedule;
            schedule.restart(Time::from(now) + JOIN_DELAY);
            *self = Self { schedule, ..Self::new(peer, local, now) };
            return;
        }
        let another = (was.path, was.tunnel, had.mtu) != (peer.path, peer.tunnel, local.mtu);
        let decides = was.by_evidence != peer.by_evidence;
        let now = Time::from(now);
        (self.evidence.peer, self.evidence.local) = (peer, local);
        if another {
            self.epoch = now;
            self.evidence.renew();
        }
        if decides {
            self.evidence.restart_choice();
        }
        if another || decides {
            // A probe of the same millisecond may have gone along the old path.
            self.schedule.restart(now + Duration::from_millis(1));
        }
    }

    /// Returns the probes to send now; `pace` is the maximum time between two regular ones. There are at most ten in any
    /// second. A search for the largest packet adds up to 48 more, and two searches may run at a time.
    pub fn due_probes(&mut self, now: Duration, pace: Duration) -> Vec<Probe> {
        let now = Time::from(now);
        let turn = self.schedule.next(&self.evidence, now, pace);
        match turn.kind {
            Kind::Regular => self.evidence.renew_searches(now),
            Kind::Quick { search: true } => self.evidence.search_path(now),
            Kind::Answered => self.evidence.shrink(),
            Kind::Quick { search: false } | Kind::None => {}
        }
        let mut probes = turn.probes;
        probes.extend(self.evidence.search_probes(now));
        if !probes.is_empty() {
            self.silence.record_probe(now);
        }
        probes
    }

    /// Moves the next regular probe forward to `by`, but not closer than a second to the last one. Called when something may
    /// have happened to the peer.
    pub fn probe_by(&mut self, by: Duration) {
        self.schedule.probe_by(by.into());
    }

    /// Returns the time of the next probe.
    pub fn next(&self) -> Duration {
        self.evidence
            .next_search_probe()
            .map_or(self.schedule.due(), |next| next.min(self.schedule.due()))
            .into()
    }

    /// Takes a sample. Samples may come late, twice, in any order, or be about a path that is no longer in use.
    pub fn record(&mut self, sample: Sample) {
        let Sample { probe, sent, answer } = sample;
        let (sent, answer) = (Time::from(sent), self.evidence.checked(probe, answer));
        if !matches!(answer, Answer::Lost | Answer::Impossible | Answer::TooBig { .. }) {
            self.silence.record_reply(sent);
        }
        let is_of_any_path = matches!(probe, Probe::NextHop | Probe::Node | Probe::Direct);
        if is_of_any_path || sent > self.epoch {
            self.evidence.record(probe, sent, answer, self.schedule.is_regular(sent));
            if probe == Probe::Checksum && self.evidence.history.details().pairs.bad > 0 {
                self.schedule.recheck_pair(sent);
            }
        }
        if self.schedule.cancel_quick(&self.evidence) {
            self.evidence.shrink();
        }
    }

    /// Updates the health; called after [`Self::record`], once for several samples, and before [`Self::health`]. `suspect` is
    /// true if our uplink is down or [`suspect`](super::suspect) returns true. Findings are still reported then, but a path to
    /// a silent peer is not withdrawn.
    pub fn decide(&mut self, now: Duration, suspect: bool) {
        let now = Time::from(now);
        let finding = diagnose(&self.evidence, now).unwrap_or(self.reported.last());
        if !suspect {
            self.silence.attribute(now, finding.is_fault());
        } else if let Some(choice) = &mut self.evidence.choice {
            choice.excuse(&self.silence, now);
        }
        self.evidence.choose_path(finding, now);
        let path = &self.evidence.history.path;
        let silent_since = self.silence.total_since(path).filter(|_| path.is_down());
        if silent_since.is_some_and(|since| now >= since + MIN_REBOOT_TIME) {
            self.evidence.reached = false;
        }
        // The chosen path may change the finding.
        let finding = diagnose(&self.evidence, now).unwrap_or(finding);
        self.reported.update(finding, path.is_gone(), self.evidence.reached, now);
        self.answers = self.answers_now(suspect).or(self.answers);
        if self.evidence.history.is_recovering() {
            self.schedule.probe_by(now + RECOVERY_PERIOD);
        }
    }

    /// Returns true if the pod subnet answers now, `None` if nothing new is known.
    fn answers_now(&self, suspect: bool) -> Option<bool> {
        let (path, finding) = (&self.evidence.history.path, self.reported.finding);
        match finding {
            _ if path.has_answered() && !path.is_down() => Some(true),
            Finding::Flapping { .. } | Finding::NoWayBack { .. } => Some(true),
            _ if suspect || path.is_open() || !finding.is_fault() => None,
            _ => Some(false),
        }
    }

    /// Returns the health with its time, latency, loss and MTU.
    pub fn health(&self) -> Health {
        let Evidence { peer, local, history, .. } = &self.evidence;
        Health {
            peer: PeerHealth {
                subnet: peer.subnet,
                node: peer.public_ip,
                uplink: local.uplink,
                finding: self.reported.finding,
                preferred_path: self.evidence.preferred_path(),
                answers: self.answers,
            },
            since: self.reported.since.into(),
            latency: history.latency(),
            loss: history.echoes.loss(),
            mtu: self.known_mtu(),
        }
    }

    /// Returns the size in bytes of the largest packet between pods that is known to arrive.
    fn known_mtu(&self) -> Option<u16> {
        let full = &self.evidence.history.full;
        match self.reported.finding {
            Finding::LostAbove { mtu } if full.is_down() => Some(mtu),
            _ if full.is_down() || !full.has_answered() => None,
            _ => self.evidence.full_size(),
        }
    }

    /// Returns the peer with its path according to the plan.
    pub fn peer(&self) -> &PeerPath {
        &self.evidence.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::choice::Choice;
    use crate::health::history::Details;

    /// Most judges are of healthy peers and allocate nothing. Where evidence decides between direct and tunnel, a judge
    /// allocates its details and its choice.
    #[test]
    fn a_judge_needs_little_memory() {
        let sizes = [size_of::<Judge>(), size_of::<Details>(), size_of::<Choice>()];
        assert!(sizes.iter().sum::<usize>() <= 632 && sizes[0] <= 360, "{sizes:?}");
    }
}
