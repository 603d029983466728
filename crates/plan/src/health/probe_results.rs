//! Results of one kind of probe to one peer: runs, a window of recent results, and failure. Their size is bounded,
//! however many results come and in whatever order. `diagnose` decides what a failure means.

use std::net::IpAddr;
use std::time::Duration;

use super::time::Time;
use super::{Answer, PATIENCE};

/// Number of losses in a row after which the probe counts as failing.
pub(super) const LOSSES_TO_FAIL: u8 = 5;
/// Number of replies in a row that end a failure.
pub(super) const REPLIES_TO_RECOVER: u8 = 3;
/// Number of losses among the last [`WINDOW`] probes that count as flapping. Fewer than half of it end the flapping.
const FLAPPING_LOSSES: u32 = 10;
/// Number of recent probes in the window.
const WINDOW: u32 = 20;
const WINDOW_BITS: u32 = (1 << WINDOW) - 1;

/// Recent results of one kind of probe.
#[derive(Clone, Debug, Default)]
pub(super) struct ProbeResults {
    /// Time at which the newest answered probe was sent.
    answered: Option<Time>,
    /// Time at which the first probe of the current run of replies was sent.
    row_from: Option<Time>,
    /// Length of the current run of replies.
    row: u8,
    /// True if the last probe could not be sent.
    pub(super) impossible: bool,
    /// Record of the losses; `None` while no loss is in the window and the probe does not count as failing.
    losses: Option<Box<Losses>>,
}

#[derive(Clone, Debug, Default)]
struct Losses {
    /// Time at which the newest lost probe was sent.
    last: Option<Time>,
    /// Time at which the first probe of the current run of losses was sent.
    run_from: Option<Time>,
    /// Time at which the first probe was sent of the run that started the failure.
    failing_since: Option<Time>,
    /// Results of the last probes, the newest in the lowest bit; 1 is a loss.
    window: u32,
    /// MTU in bytes that was reported on the path during this run of losses.
    too_big: Option<u16>,
    /// Sender of the last ICMP error in this run, and the number of losses since then without such an error.
    refused: Option<(IpAddr, u8)>,
    /// Length of the current run of losses.
    run: u8,
    /// True while the probe counts as failing.
    down: bool,
    /// True if the probe counts as failing because of flapping.
    flaps: bool,
}

impl ProbeResults {
    /// No results yet.
    pub(super) const NEW: Self =
        Self { answered: None, row_from: None, row: 0, impossible: false, losses: None };

    /// Adds the result of a regular probe.
    pub(super) fn record(&mut self, sent: Time, answer: Answer) {
        self.record_in(sent, answer, 1);
    }

    /// Adds the result of a quick probe, which was sent because another probe was late. Its reply takes no place in the window.
    /// On a flapping path quick probes are repeated until one is answered, which would hide the losses.
    pub(super) fn record_quick(&mut self, sent: Time, answer: Answer) {
        self.record_in(sent, answer, 0);
    }

    /// Adds a result. A reply takes `places` places in the window, a loss always one.
    fn record_in(&mut self, sent: Time, answer: Answer, places: u32) {
        match answer {
            Answer::Impossible => *self = Self { impossible: true, ..Self::default() },
            Answer::Came { .. } | Answer::Is { .. } | Answer::Checksums { .. } => {
                self.answer(sent, places);
            }
            Answer::Lost => self.lose(sent),
            Answer::Refused { by } => {
                self.lose(sent);
                self.losses.get_or_insert_default().refused = Some((by, 0));
            }
            Answer::TooBig { mtu } => {
                self.lose(sent);
                self.losses.get_or_insert_default().too_big = Some(mtu);
            }
        }
    }

    fn answer(&mut self, sent: Time, places: u32) {
        let lost = self.losses.as_ref().and_then(|losses| losses.last);
        let stale = lost.is_some_and(|lost| lost > sent + PATIENCE);
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
        let calm = !losses.flaps || losses.window.count_ones() < FLAPPING_LOSSES / 2;
        if losses.down && self.row >= REPLIES_TO_RECOVER && calm {
            (losses.down, losses.flaps, losses.window) = (false, false, 0);
        }
        if !losses.down && losses.window == 0 {
            self.losses = None;
        }
    }

    fn lose(&mut self, sent: Time) {
        let known = self.losses.as_ref().and_then(|losses| losses.last);
        if known.is_some_and(|lost| lost >= sent) || self.answered == Some(sent) {
            return;
        }
        let losses = self.losses.get_or_insert_default();
        losses.last = Some(sent);
        losses.refused =
            losses.refused.map(|(by, lost)| (by, lost + 1)).filter(|(_, lost)| *lost < LOSSES_TO_FAIL);
        self.impossible = false;
        losses.window = (losses.window << 1 | 1) & WINDOW_BITS;
        if self.row_from.is_some_and(|from| sent >= from) {
            // A loss after some replies of a recovery means flapping.
            losses.flaps |= losses.down && self.row > 0;
            self.row = 0;
        }
        if self.answered.is_none_or(|answered| answered < sent) {
            if losses.run == 0 {
                losses.run_from = Some(sent);
            }
            losses.run = losses.run.saturating_add(1);
        }
        if losses.run >= LOSSES_TO_FAIL && (!losses.down || losses.flaps) {
            (losses.down, losses.flaps, losses.failing_since) = (true, false, losses.run_from);
        } else if !losses.down && losses.window.count_ones() >= FLAPPING_LOSSES {
            (losses.down, losses.flaps) = (true, true);
        }
    }

    fn has(&self, what: impl Fn(&Losses) -> bool) -> bool {
        self.losses.as_deref().is_some_and(what)
    }

    /// Returns true if a loss is on record.
    pub(super) fn has_lost(&self) -> bool {
        self.losses.is_some()
    }

    /// Returns true if the probe counts as failing.
    pub(super) fn is_down(&self) -> bool {
        self.has(|losses| losses.down)
    }

    /// Returns true if the probe counts as failing because of a run of losses.
    pub(super) fn is_gone(&self) -> bool {
        self.has(|losses| losses.down && !losses.flaps)
    }

    /// Returns true if the probe counts as failing because of flapping.
    pub(super) fn flaps(&self) -> bool {
        self.has(|losses| losses.flaps)
    }

    /// Returns true if the probe counts as failing, but the last one was answered.
    pub(super) fn is_recovering(&self) -> bool {
        self.is_down() && self.row > 0
    }

    /// Returns true if the last probe was lost, or the probe counts as failing.
    pub(super) fn is_uncertain(&self) -> bool {
        self.has(|losses| losses.down || losses.run > 0)
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.is_some()
    }

    /// Returns true if there is no evidence yet: no reply so far, and no failure either.
    pub(super) fn is_open(&self) -> bool {
        self.answered.is_none() && !self.is_down()
    }

    /// Returns the time at which the first probe of the current run of losses was sent.
    pub(super) fn run_from(&self) -> Option<Time> {
        self.losses.as_ref().filter(|losses| losses.run > 0)?.run_from
    }

    /// Returns the time of the first probe of the failing run; `None` if flapping alone is the failure.
    pub(super) fn failing_since(&self) -> Option<Time> {
        self.losses.as_ref()?.failing_since
    }

    /// Returns the MTU in bytes that was reported on the path during this run of losses.
    pub(super) fn too_big(&self) -> Option<u16> {
        self.losses.as_ref()?.too_big
    }

    /// Returns the sender of a recent ICMP error.
    pub(super) fn refused(&self) -> Option<IpAddr> {
        Some(self.losses.as_ref()?.refused?.0)
    }

    /// Returns true if a probe that was sent at this time or later got a reply. With `None`, any probe counts.
    pub(super) fn answered_since(&self, time: impl Into<Option<Time>>) -> bool {
        self.answered.is_some() && self.answered >= time.into()
    }

    /// Returns true if at least the last [`REPLIES_TO_RECOVER`] probes were answered.
    pub(super) fn is_steady(&self) -> bool {
        self.row >= REPLIES_TO_RECOVER && !self.is_down()
    }

    /// Returns how long all probes have been answered, if they are at least [`REPLIES_TO_RECOVER`].
    pub(super) fn steady_for(&self) -> Option<Duration> {
        let answered = self.answered.filter(|_| self.is_steady())?;
        Some(answered - self.row_from?)
    }

    /// Starts a new run of replies.
    pub(super) fn restart(&mut self) {
        (self.row, self.row_from) = (0, None);
    }

    /// Takes the newest loss out of the window, since the size of that probe may explain it. A later large probe, sent at
    /// `sent`, was lost, too. There is no effect if a loss since then is counted, or if no probe since then was answered.
    pub(super) fn excuse(&mut self, sent: Time) {
        let is_answered = self.answered_since(sent);
        let Some(losses) = self.losses.as_mut().filter(|_| is_answered) else { return };
        if losses.last < Some(sent) {
            losses.window &= losses.window.saturating_sub(1);
        }
    }

    /// Forgets all losses and any failure.
    pub(super) fn forget_losses(&mut self) {
        self.losses = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the results of probes a second apart; `x` is a loss, every other character a reply.
    fn results_of(what: &str) -> ProbeResults {
        let mut results = ProbeResults::default();
        for (second, letter) in (0..).zip(what.chars()) {
            let answer = if letter == 'x' { Answer::Lost } else { Answer::Came { after: Duration::ZERO } };
            results.record(Duration::from_secs(second).into(), answer);
        }
        results
    }

    #[test]
    fn five_losses_in_a_row_are_a_failure_that_three_replies_end() {
        assert!(!results_of(".xxxx").is_down());
        assert!(!results_of(".xxxx.xxx").is_down());
        let down = results_of(".xxxxx");
        assert!(down.is_down() && !down.flaps());
        assert!(results_of(".xxxxx..").is_down());
        assert!(!results_of(".xxxxx...").is_down());
    }

    #[test]
    fn ten_losses_among_the_last_twenty_are_a_failure() {
        assert!(!results_of("x.x.x.x.x.x.x.x.x.").is_down());
        let down = results_of("x.x.x.x.x.x.x.x.x.x");
        assert!(down.is_down() && down.flaps());
        assert!(!results_of("x..x..x..x..x..x..x..x..x..x").is_down());
    }
}
