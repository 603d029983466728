//! Decides whether the peers are down or this node is cut off. When most peers fall silent at once, it is probably this node.

use std::time::Duration;

use super::Judge;
use super::probe_results::ProbeResults;
use super::time::Time;

/// Time without any reply after which a probed peer counts as silent.
const SILENT_AFTER: Duration = Duration::from_millis(500);
/// Maximum age of a probe or a reply that still counts as recent.
const RECENT_AGE: Duration = Duration::from_millis(2500);
/// Maximum time for which a silent peer counts against this node; after that the peers are considered down for good.
const MAX_SUSPICION: Duration = Duration::from_secs(600);

/// Returns true if more than half of the recently probed peers, and at least two, answer nothing at all. This node is then
/// probably the one that is cut off. Peers that were found silent before, or that never answered, do not count. The cost is
/// O(N); one call per pass with new samples, or every 250 ms, is enough.
pub fn suspect<'a>(judges: impl IntoIterator<Item = &'a Judge>, now: Duration) -> bool {
    let now = Time::from(now);
    let (mut silent, mut answering) = (0_usize, 0_usize);
    for answers in judges.into_iter().filter_map(|judge| judge.silence.answers(judge.schedule.last(), now)) {
        *if answers { &mut answering } else { &mut silent } += 1;
    }
    silent >= 2 && silent > answering
}

/// Time since a peer last answered any probe.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silence {
    /// Time at which the newest answered probe was sent.
    last_reply: Option<Time>,
    /// Time at which the first probe since the last reply was sent.
    since: Option<Time>,
    /// True if the silence is the peer's own fault: it was found while most peers answered.
    settled: bool,
}

impl Silence {
    /// Records that a probe is sent.
    pub(super) fn record_probe(&mut self, now: Time) {
        self.since.get_or_insert(now);
    }

    /// Records a reply to a probe that was sent at `sent`.
    pub(super) fn record_reply(&mut self, sent: Time) {
        self.last_reply = self.last_reply.max(Some(sent));
        (self.since, self.settled) = (None, false);
    }

    /// Attributes a silence to the peer if it comes with a fault; called only while this node is not suspect.
    pub(super) fn attribute(&mut self, now: Time, fault: bool) {
        self.settled |= fault && self.is_silent(now);
    }

    /// Returns whether a recent probe was answered, or `None` if the peer allows no conclusion about this node. `asked` is the
    /// time of the last probe.
    fn answers(&self, asked: Option<Time>, now: Time) -> Option<bool> {
        let Self { last_reply, settled, .. } = *self;
        let is_recent = |time: Option<Time>| time.is_some_and(|time| now <= time + RECENT_AGE);
        if self.is_silent(now) {
            (!settled && is_recent(asked)).then_some(false)
        } else {
            is_recent(last_reply).then_some(true)
        }
    }

    fn is_silent(&self, now: Time) -> bool {
        let Self { last_reply, since, .. } = *self;
        let since = since.filter(|_| last_reply.is_some());
        since.is_some_and(|since| now >= since + SILENT_AFTER && now < since + MAX_SUSPICION)
    }

    /// Returns the start of the current run of losses, if no probe of any kind got a reply since.
    pub(super) fn total_since(&self, results: &ProbeResults) -> Option<Time> {
        results.run_from().filter(|from| self.last_reply < Some(*from))
    }
}
