//! Choice between the direct path and the tunnel, where probes decide it. A direct path that fails is left at once, and taken
//! again only after it was healthy for long.

use std::time::Duration;

use super::history::PeerHistory;
use super::probe_results::ProbeResults;
use super::self_suspect::Silence;
use super::time::Time;
use super::{Finding, PreferredPath};
use crate::peer::Path;

/// Time without a loss that proves the direct path for the first time. Later proofs take much longer ([`Choice::required_health`]).
const PROOF: Duration = Duration::from_millis(900);
/// Time without a loss that proves a direct path again after it was left.
const PROOF_AGAIN: Duration = Duration::from_secs(30);
/// Maximum of that time after several relapses.
const MAX_PROOF_AGAIN: Duration = Duration::from_secs(600);
/// Maximum number of relapses that are counted; each doubles [`PROOF_AGAIN`].
const MAX_RELAPSES: u8 = 5;

/// The chosen path, and the evidence against the direct one.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// Path that the evidence favours; `None` without evidence.
    pub(super) preferred_path: Option<PreferredPath>,
    /// Reason for which the direct path was left, until it is proven again.
    pub(super) left: Option<Box<Finding>>,
    /// Results of [`Probe::NextHop`](super::Probe::NextHop), without the losses that are this node's own fault.
    pub(super) next_hop: ProbeResults,
    /// Echoes along the direct path, without the losses that are this node's own fault.
    pub(super) path: ProbeResults,
    /// Last time at which losses were forgiven because this node was the suspect. Samples sent before are ignored.
    excused: Option<Time>,
    /// Time at which the direct path was last taken again.
    taken: Option<Time>,
    /// Number of times in a row that the direct path was lost soon after it was taken again.
    relapses: u8,
}

impl Choice {
    /// Starts without knowledge, except for the reason why the direct path was left. The peer may have been off the
    /// segment for a moment only.
    pub(super) fn restart(&mut self) {
        *self = Self { left: self.left.take(), ..Self::default() };
    }

    /// Returns true if the result of a probe sent at `sent` counts.
    pub(super) fn counts(&self, sent: Time) -> bool {
        self.excused.is_none_or(|excused| sent > excused)
    }

    /// Chooses a path, given the one in use. Returns true if the direct path was left, because of `finding`.
    pub(super) fn decide(&mut self, used: Path, history: &PeerHistory, finding: Finding, now: Time) -> bool {
        let is_direct = used == Path::Direct;
        let preferred_path = if self.preferred_path == Some(PreferredPath::Direct)
            || (self.preferred_path.is_none() && is_direct)
        {
            match self.next_hop.is_gone() || self.path.is_down() {
                true => Some(PreferredPath::Tunnel),
                false if is_direct && history.path.is_steady() => Some(PreferredPath::Direct),
                false => self.preferred_path,
            }
        } else if self.is_proven(history) {
            Some(PreferredPath::Direct)
        } else {
            self.preferred_path
        };
        if preferred_path == self.preferred_path {
            return false;
        }
        let left = preferred_path == Some(PreferredPath::Tunnel);
        if left {
            let soon = |taken: Time| now < taken + 2 * self.required_health();
            self.relapses =
                if self.taken.is_some_and(soon) { (self.relapses + 1).min(MAX_RELAPSES) } else { 0 };
        } else if self.left.is_some() {
            self.taken = Some(now);
        }
        (self.next_hop, self.path, self.preferred_path) =
            (ProbeResults::default(), ProbeResults::default(), preferred_path);
        self.left = left.then(|| Box::new(finding));
        left
    }

    /// Returns true if next hop and direct echoes were answered, without any loss, for the required time.
    fn is_proven(&self, history: &PeerHistory) -> bool {
        let details = history.details();
        let needed = if self.left.is_some() { self.required_health() } else { PROOF };
        let long = |results: &ProbeResults| results.steady_for().is_some_and(|steady| steady >= needed);
        long(&details.direct) && (details.next_hop.impossible || long(&details.next_hop))
    }

    /// Returns how long a path that was left must stay without a loss. Each relapse doubles the time, since a path may work
    /// only until pods use it.
    fn required_health(&self) -> Duration {
        (PROOF_AGAIN * (1 << self.relapses)).min(MAX_PROOF_AGAIN)
    }

    /// Forgives the losses of a peer that answers nothing, while this node is the suspect. A peer that answers some probe keeps
    /// them.
    pub(super) fn excuse(&mut self, silence: &Silence, now: Time) {
        if [&self.path, &self.next_hop].into_iter().any(|results| silence.total_since(results).is_some()) {
            self.excused = Some(now);
            self.next_hop.forget_losses();
            self.path.forget_losses();
        }
    }
}
