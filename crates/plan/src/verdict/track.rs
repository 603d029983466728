//! What became of one kind of question to one peer: runs, a short window, and whether it counts as lost. A few words of memory
//! whatever is heard, in whatever order; what a loss means is said elsewhere.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use super::{Answer, PATIENCE, Sample};

/// A time in milliseconds, in six bytes with room for `None`: what is known counts with thousands of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(NonZeroU16, u16, u16);

impl Moment {
    pub(super) fn of(time: Duration) -> Self {
        let millis = time.as_millis();
        Self(NonZeroU16::MIN.saturating_add((millis >> 32) as u16), (millis >> 16) as u16, millis as u16)
    }

    pub(super) fn time(self) -> Duration {
        let high = u64::from(self.0.get() - 1) << 32;
        Duration::from_millis(high | u64::from(self.1) << 16 | u64::from(self.2))
    }
}

/// So many lost in a row are a loss.
pub(super) const RUN: u8 = 5;
/// So many answered in a row end it.
pub(super) const ROW: u8 = 3;
/// So many lost of the last [`WINDOW`] are a loss, too: it comes and goes. Less than half of it ends it.
const FLAPS: u32 = 10;
const WINDOW: u32 = 20;
const WINDOW_BITS: u32 = (1 << WINDOW) - 1;

/// The last answers to one kind of question.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    /// When the newest question that was answered had been sent.
    answered: Option<Moment>,
    row_from: Option<Moment>,
    row: u8,
    /// The last answer was that it cannot be asked.
    pub(super) impossible: bool,
    /// Of what was lost, until all of the last [`WINDOW`] are answered.
    losses: Option<Box<Losses>>,
}

#[derive(Clone, Debug, Default)]
struct Losses {
    /// When the newest question that was lost had been sent.
    last: Option<Moment>,
    /// When the first one of the run had been sent.
    run_from: Option<Moment>,
    /// The same of the run that made it a loss.
    trouble: Option<Moment>,
    /// Of the last questions, the newest in the lowest bit: 1 is lost.
    window: u32,
    /// The largest packet that somebody on the way was said to carry, in this run.
    too_big: Option<u16>,
    /// Who said in this run that it goes no further, and how many were lost without such a word since.
    refused: Option<(IpAddr, u8)>,
    run: u8,
    down: bool,
    /// It counts as lost since it comes and goes.
    flaps: bool,
}

impl Track {
    /// Nothing is known.
    pub(super) const NEW: Self =
        Self { answered: None, row_from: None, row: 0, impossible: false, losses: None };

    /// To a regular question.
    pub(super) fn hear(&mut self, sample: &Sample) {
        self.hear_in(sample, 1);
    }

    /// One that was asked because another was late. That it is answered says nothing of how many are: what comes and goes is
    /// asked that way until it comes.
    pub(super) fn hear_quick(&mut self, sample: &Sample) {
        self.hear_in(sample, 0);
    }

    /// An answer takes so many places in the window.
    fn hear_in(&mut self, sample: &Sample, places: u32) {
        match sample.answer {
            Answer::Impossible => *self = Self { impossible: true, ..Self::default() },
            Answer::Came { .. } | Answer::Is { .. } | Answer::Checksums { .. } => {
                self.answer(sample.sent, places);
            }
            Answer::Lost => self.lose(sample.sent),
            Answer::Refused { by } => {
                self.lose(sample.sent);
                self.losses.get_or_insert_default().refused = Some((by, 0));
            }
            Answer::TooBig { mtu } => {
                self.lose(sample.sent);
                self.losses.get_or_insert_default().too_big = Some(mtu);
            }
        }
    }

    fn answer(&mut self, sent: Duration, places: u32) {
        let lost = self.losses.as_ref().and_then(|losses| losses.last);
        let stale = lost.is_some_and(|lost| lost.time() > sent + PATIENCE);
        let sent = Moment::of(sent);
        if stale || self.answered.is_some_and(|answered| answered >= sent) {
            return;
        }
        if self.row == 0 {
            self.row_from = Some(sent);
        }
        self.row = self.row.saturating_add(1);
        (self.answered, self.impossible) = (Some(sent), false);
        let Some(losses) = &mut self.losses else { return };
        losses.window = losses.window << places & WINDOW_BITS;
        (losses.run, losses.too_big, losses.refused) = (0, None, None);
        let calm = !losses.flaps || losses.window.count_ones() < FLAPS / 2;
        if losses.down && self.row >= ROW && calm {
            (losses.down, losses.flaps, losses.window) = (false, false, 0);
        }
        if !losses.down && losses.window == 0 {
            self.losses = None;
        }
    }

    fn lose(&mut self, sent: Duration) {
        let sent = Moment::of(sent);
        let known = self.losses.as_ref().and_then(|losses| losses.last);
        if known.is_some_and(|lost| lost >= sent) || self.answered == Some(sent) {
            return;
        }
        let losses = self.losses.get_or_insert_default();
        losses.last = Some(sent);
        losses.refused = losses.refused.map(|(by, lost)| (by, lost + 1)).filter(|(_, lost)| *lost < RUN);
        self.impossible = false;
        losses.window = (losses.window << 1 | 1) & WINDOW_BITS;
        if self.row_from.is_some_and(|from| sent >= from) {
            // It had seemed to get well again.
            losses.flaps |= losses.down && self.row > 0;
            self.row = 0;
        }
        if self.answered.is_none_or(|answered| answered < sent) {
            if losses.run == 0 {
                losses.run_from = Some(sent);
            }
            losses.run = losses.run.saturating_add(1);
        }
        if losses.run >= RUN && (!losses.down || losses.flaps) {
            (losses.down, losses.flaps, losses.trouble) = (true, false, losses.run_from);
        } else if !losses.down && losses.window.count_ones() >= FLAPS {
            (losses.down, losses.flaps) = (true, true);
        }
    }

    fn has(&self, what: impl Fn(&Losses) -> bool) -> bool {
        self.losses.as_deref().is_some_and(what)
    }

    /// Of the last ones some were lost.
    pub(super) fn has_lost(&self) -> bool {
        self.losses.is_some()
    }

    /// It counts as lost.
    pub(super) fn is_down(&self) -> bool {
        self.has(|losses| losses.down)
    }

    /// It counts as lost, and none is answered.
    pub(super) fn is_gone(&self) -> bool {
        self.has(|losses| losses.down && !losses.flaps)
    }

    /// It counts as lost, though some are answered.
    pub(super) fn flaps(&self) -> bool {
        self.has(|losses| losses.flaps)
    }

    /// It counts as lost, and the last one was answered.
    pub(super) fn is_rising(&self) -> bool {
        self.is_down() && self.row > 0
    }

    /// The last ones were lost, or it counts as lost.
    pub(super) fn is_doubtful(&self) -> bool {
        self.has(|losses| losses.down || losses.run > 0)
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.is_some()
    }

    /// Nothing has been answered so far, and nothing is known to be lost.
    pub(super) fn is_open(&self) -> bool {
        self.answered.is_none() && !self.is_down()
    }

    /// When the first one of those that were lost in a row had been sent.
    pub(super) fn run_from(&self) -> Option<Moment> {
        self.losses.as_ref().filter(|losses| losses.run > 0)?.run_from
    }

    /// When the loss began.
    pub(super) fn trouble(&self) -> Duration {
        self.losses.as_ref().and_then(|losses| losses.trouble).map_or(Duration::ZERO, Moment::time)
    }

    /// The largest packet that somebody on the way was said to carry, in this run.
    pub(super) fn too_big(&self) -> Option<u16> {
        self.losses.as_ref()?.too_big
    }

    /// Who says lately that it goes no further.
    pub(super) fn refused(&self) -> Option<IpAddr> {
        Some(self.losses.as_ref()?.refused?.0)
    }

    /// A question sent at that time or later has been answered.
    pub(super) fn heard_since(&self, time: Duration) -> bool {
        self.answered.is_some_and(|answered| answered >= Moment::of(time))
    }

    /// The last ones were answered, no less than [`ROW`].
    pub(super) fn is_steady(&self) -> bool {
        self.row >= ROW && !self.is_down()
    }

    /// For how long all were answered, which are no less than [`ROW`].
    pub(super) fn steady_for(&self) -> Option<Duration> {
        let answered = self.answered.filter(|_| self.is_steady())?;
        Some(answered.time().saturating_sub(self.row_from?.time()))
    }

    /// Health counts from here.
    pub(super) fn restart(&mut self) {
        (self.row, self.row_from) = (0, None);
    }

    /// A larger one was lost, and none of those that were sent with it: its size may be why the last one was, too.
    pub(super) fn excuse(&mut self, sent: Duration) {
        let heard = self.heard_since(sent);
        let Some(losses) = self.losses.as_mut().filter(|_| heard) else { return };
        if losses.last < Some(Moment::of(sent)) {
            losses.window &= losses.window.saturating_sub(1);
        }
    }

    /// What was lost so far is nobody's fault.
    pub(super) fn forgive(&mut self) {
        self.losses = None;
    }
}

/// Which of the last 63 regular echoes were lost: 1 is lost, the newest in the lowest bit. Above them all stands one more 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct History(u64);

impl Default for History {
    fn default() -> Self {
        Self(1)
    }
}

impl History {
    pub(super) fn add(&mut self, lost: bool) {
        let full = self.0 & (1 << 63);
        self.0 = (self.0 << 1) | u64::from(lost) | full;
    }

    pub(super) fn per_mille(self) -> u16 {
        let (lost, count) = (self.0.count_ones() - 1, 63 - self.0.leading_zeros());
        u16::try_from(lost * 1000 / count.max(1)).unwrap_or(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Probe;

    /// Questions a second apart; `x` is lost, all else is answered.
    fn heard(what: &str) -> Track {
        let mut track = Track::default();
        for (second, letter) in (0..).zip(what.chars()) {
            let answer = if letter == 'x' { Answer::Lost } else { Answer::Came { after: Duration::ZERO } };
            track.hear(&Sample { probe: Probe::Path, sent: Duration::from_secs(second), answer });
        }
        track
    }

    #[test]
    fn five_lost_in_a_row_are_a_loss_and_three_answered_end_it() {
        assert!(!heard(".xxxx").is_down());
        assert!(!heard(".xxxx.xxx").is_down());
        let down = heard(".xxxxx");
        assert!(down.is_down() && !down.flaps());
        assert!(heard(".xxxxx..").is_down());
        assert!(!heard(".xxxxx...").is_down());
    }

    #[test]
    fn ten_lost_of_the_last_twenty_are_a_loss_however_they_lie() {
        assert!(!heard("x.x.x.x.x.x.x.x.x.").is_down());
        let down = heard("x.x.x.x.x.x.x.x.x.x");
        assert!(down.is_down() && down.flaps());
        assert!(!heard("x..x..x..x..x..x..x..x..x..x").is_down());
    }

    #[test]
    fn history_is_of_the_last_sixty_three() {
        let mut history = History::default();
        assert_eq!(history.per_mille(), 0);
        history.add(true);
        assert_eq!(history.per_mille(), 1000);
        (0..62).for_each(|_| history.add(false));
        assert_eq!(history.per_mille(), 15, "one of them all");
        history.add(true);
        assert_eq!(history.per_mille(), 15, "the first one has gone");
    }
}
