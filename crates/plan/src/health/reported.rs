//! Reported finding of one peer, and the rule by which a new one replaces it. With flapping paths the causes flap as well, so a
//! fault replaces another only if it persists.

use std::mem::discriminant;
use std::time::Duration;

use super::Finding;
use super::time::Time;

/// Time for which a new fault must persist before it replaces the reported one.
const NEW_FAULT_TIME: Duration = Duration::from_secs(5);
/// Time for which another fault must persist before it replaces [`Finding::Flapping`].
const AFTER_FLAPPING_TIME: Duration = Duration::from_secs(30);
/// Time for which a fault must persist before it replaces the same fault with other details. Details may change with
/// every reply.
const NEW_DETAILS_TIME: Duration = Duration::from_secs(300);
/// Time after which the first fault of a peer is reported if the peer was never reached.
const FIRST_FAULT_TIME: Duration = Duration::from_secs(10);

/// The reported finding, and a newer one that is not reported yet.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    pub(super) finding: Finding,
    /// Time at which the reported finding was made.
    pub(super) since: Time,
    /// True if the reported finding was made while no echo at all was answered.
    cut: bool,
    newer: Option<Box<Newer>>,
}

/// A finding that differs from the reported one, and the time since which it has been the same.
#[derive(Clone, Copy, Debug)]
struct Newer {
    finding: Finding,
    since: Time,
}

impl Reported {
    pub(super) fn new(now: Time) -> Self {
        Self { finding: Finding::Unverified, since: now, cut: false, newer: None }
    }

    /// Returns the last finding, reported or not.
    pub(super) fn last(&self) -> Finding {
        self.newer.as_ref().map_or(self.finding, |newer| newer.finding)
    }

    /// Takes the finding that the evidence supports now. `cut` is true if no echo at all is answered, `reached` if the peer was
    /// reached before.
    pub(super) fn update(&mut self, finding: Finding, cut: bool, reached: bool, now: Time) {
        if finding == self.finding {
            self.newer = None;
            return;
        }
        let newer = self.newer.as_deref().filter(|newer| newer.finding == finding);
        let since = newer.map_or(now, |newer| newer.since);
        self.newer = Some(Box::new(Newer { finding, since }));
        if finding.is_fault() && self.finding.is_fault() && now < since + self.required_time(finding, cut) {
            return;
        }
        self.cut = cut;
        let early = !reached && !self.finding.is_fault() && now < self.since + FIRST_FAULT_TIME;
        if !(early && finding.is_fault()) {
            (self.finding, self.since, self.newer) = (finding, now, None);
        }
    }

    /// Returns the time for which this fault must persist before it is reported.
    fn required_time(&self, finding: Finding, cut: bool) -> Duration {
        match (self.finding, finding) {
            // A smaller MTU makes the reported one wrong, so it need not wait for as long as other details.
            (Finding::LostAbove { mtu: reported }, Finding::LostAbove { mtu }) if mtu < reported => {
                NEW_FAULT_TIME
            }
            (Finding::Fragmented { mtu: reported }, Finding::Fragmented { mtu }) if mtu < reported => {
                NEW_FAULT_TIME
            }
            (reported, finding) if discriminant(&reported) == discriminant(&finding) => NEW_DETAILS_TIME,
            (Finding::Flapping { .. }, _) => AFTER_FLAPPING_TIME,
            // One link with a small MTU is behind both, and a firewall may drop the fragments.
            (Finding::Fragmented { .. }, Finding::LostAbove { .. }) => Duration::ZERO,
            _ if cut && !self.cut => Duration::ZERO,
            _ => NEW_FAULT_TIME,
        }
    }
}
