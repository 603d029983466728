//! Who is it, they or we? Where most peers fall silent at once, this node is cut off rather than all of them dead.

use std::time::Duration;

use super::Judge;
use super::track::{Moment, Track};

/// Asked so long ago and still no answer of any kind: the peer is mute.
const MUTE: Duration = Duration::from_millis(500);
/// What is older than that says nothing about now.
const LATELY: Duration = Duration::from_millis(2500);
/// More than half of the peers may be gone for good; after that it is they, not we.
const SUSPICION: Duration = Duration::from_secs(600);

/// True if more than half of the peers that were asked lately, and no less than two, answer nothing at all: then it is rather
/// this node that is cut off. Those that were already found silent, or never answered, do not count. Cheap, O(N); it is
/// enough to ask once per pass in which samples were heard, or every 250 ms.
pub fn suspect<'a>(judges: impl IntoIterator<Item = &'a Judge>, now: Duration) -> bool {
    let (mut mute, mut answering) = (0_usize, 0_usize);
    for answers in judges.into_iter().filter_map(|judge| judge.silence.answers(now)) {
        *if answers { &mut answering } else { &mut mute } += 1;
    }
    mute >= 2 && mute > answering
}

/// How long nothing at all has been answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silence {
    heard: Option<Moment>,
    asked: Option<Moment>,
    /// Since when what was asked is without any answer.
    since: Option<Moment>,
    /// It is the peer's own: found while the others answered.
    settled: bool,
}

impl Silence {
    pub(super) fn ask(&mut self, now: Duration) {
        let now = Moment::of(now);
        self.asked = Some(now);
        self.since.get_or_insert(now);
    }

    pub(super) fn hear(&mut self, sent: Duration) {
        self.heard = self.heard.max(Some(Moment::of(sent)));
        (self.since, self.settled) = (None, false);
    }

    /// While the others answer.
    pub(super) fn settle(&mut self, now: Duration, fault: bool) {
        self.settled |= fault && self.is_mute(now);
    }

    /// Of the probes that were asked lately: has any been answered? `None` if it tells nothing about this node.
    fn answers(&self, now: Duration) -> Option<bool> {
        let Self { heard, asked, settled, .. } = *self;
        let lately = |time: Option<Moment>| time.is_some_and(|time| now <= time.time() + LATELY);
        if self.is_mute(now) {
            (!settled && lately(asked)).then_some(false)
        } else {
            lately(heard).then_some(true)
        }
    }

    fn is_mute(&self, now: Duration) -> bool {
        let Self { heard, since, .. } = *self;
        let since = since.filter(|_| heard.is_some()).map(Moment::time);
        since.is_some_and(|since| now >= since + MUTE && now < since + SUSPICION)
    }

    /// While those of one kind were lost in a row, none of any kind has been answered.
    pub(super) fn is_total(&self, track: &Track) -> bool {
        track.run_from().is_some_and(|from| self.heard < Some(from))
    }
}
