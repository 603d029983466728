//! Record of a peer that is kept only while it is needed: a probe is unanswered, or something is wrong. Most peers have no
//! record, so that thousands of them need little memory.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::Finding;
use super::evidence::{Macs, Pairs};
use super::ladder::Ladder;
use super::suspicion::Silence;
use super::track::{Moment, Track};
use crate::PeerPath;

/// Time without a loss that proves a direct path again after it was left.
const HEALTH: Duration = Duration::from_secs(30);
/// Maximum of that time after several relapses.
const LONGEST_HEALTH: Duration = Duration::from_secs(600);
/// Maximum number of relapses that are counted; each doubles [`HEALTH`].
const MOST_RELAPSES: u8 = 5;

/// An optional [`Known`], allocated on first write (see `DerefMut`). Reads without it see [`Known::NOTHING`].
#[derive(Clone, Debug, Default)]
pub(super) struct Rare(Option<Box<Known>>);

/// Tracks of the less frequent probes, and what was concluded from them.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) next_hop: Track,
    pub(super) node: Track,
    pub(super) outer: Track,
    pub(super) there: Track,
    pub(super) direct: Track,
    pub(super) macs: Macs,
    pub(super) pairs: Pairs,
    /// Search for the largest packet between pods.
    pub(super) ladder: Option<Box<Ladder>>,
    /// Search for the largest tunnel packet.
    pub(super) outer_ladder: Option<Box<Ladder>>,
    /// Reason for which the direct path was left, until it is proven again.
    pub(super) left: Option<Box<Finding>>,
    /// Evidence about the direct path; present only where evidence decides between direct and tunnel.
    pub(super) trial: Option<Box<Trial>>,
    /// True if this node routes the packets for the peer elsewhere, so that a loss is no evidence about the peer.
    pub(super) diverted: bool,
}

impl Rare {
    /// Creates the record of a new peer.
    pub(super) fn of(peer: &PeerPath) -> Self {
        let mut rare = Self::default();
        rare.decide(peer.by_evidence);
        rare
    }

    /// Returns the record if there is one, without allocating it.
    pub(super) fn known(&mut self) -> Option<&mut Known> {
        self.0.as_deref_mut()
    }

    /// Sets whether evidence decides from now on between direct and tunnel. True starts a new trial.
    pub(super) fn decide(&mut self, by_evidence: bool) {
        if by_evidence {
            self.trial = Some(Box::default());
        } else if let Some(known) = self.known() {
            known.trial = None;
        }
    }

    /// Forgets the results of probes along the old path, after the plan has changed the path.
    pub(super) fn renew(&mut self) {
        let Some(known) = self.known() else { return };
        (known.outer, known.there, known.pairs) = Default::default();
        (known.ladder, known.outer_ladder) = (None, None);
        if let Some(trial) = &mut known.trial {
            trial.path = Track::default();
        }
    }

    pub(super) fn ladder(&mut self) -> Option<&mut Ladder> {
        self.known()?.ladder.as_deref_mut()
    }

    pub(super) fn outer_ladder(&mut self) -> Option<&mut Ladder> {
        self.known()?.outer_ladder.as_deref_mut()
    }

    /// Frees the record if it holds nothing that the next replies would not restore.
    pub(super) fn rest(&mut self) {
        if self.known().is_some_and(|known| known.is_well()) {
            self.0 = None;
        }
    }
}

impl Deref for Rare {
    type Target = Known;

    fn deref(&self) -> &Known {
        self.0.as_deref().unwrap_or(Known::NOTHING)
    }
}

impl DerefMut for Rare {
    fn deref_mut(&mut self) -> &mut Known {
        self.0.get_or_insert_default()
    }
}

impl Known {
    const NOTHING: &Self = &Self {
        next_hop: Track::NEW,
        node: Track::NEW,
        outer: Track::NEW,
        there: Track::NEW,
        direct: Track::NEW,
        macs: Macs::NONE,
        pairs: Pairs::NONE,
        ladder: None,
        outer_ladder: None,
        left: None,
        trial: None,
        diverted: false,
    };

    fn is_well(&self) -> bool {
        let Self { next_hop, node, outer, there, direct, pairs, .. } = self;
        let well = |track: &Track| !track.has_lost() && !track.impossible;
        let asked = [next_hop, node, outer, there, direct].into_iter().all(well) && pairs.bad == 0;
        let searched = self.ladder.is_some() || self.outer_ladder.is_some();
        let told = self.left.is_some() || self.diverted || self.macs.are_two();
        asked && !searched && !told && self.trial.is_none()
    }
}

/// Evidence against the direct path: tracks like those of the same names, without the losses that are this node's own fault.
#[derive(Clone, Debug, Default)]
pub(super) struct Trial {
    pub(super) next_hop: Track,
    pub(super) path: Track,
    /// Last time at which losses were forgiven because this node was the suspect. Samples sent before are ignored.
    pub(super) excused: Option<Moment>,
    /// Time at which the direct path was last taken again.
    pub(super) taken: Option<Moment>,
    /// Number of times in a row that the direct path was lost soon after it was taken again.
    pub(super) relapses: u8,
}

impl Trial {
    /// Returns how long a path that was left must stay without a loss. Each relapse doubles the time, since a path may work
    /// only until pods use it.
    pub(super) fn health(&self) -> Duration {
        (HEALTH * (1 << self.relapses)).min(LONGEST_HEALTH)
    }

    /// Returns a trial without results for the new path.
    pub(super) fn of_another_way(&self) -> Self {
        let Self { excused, taken, relapses, .. } = *self;
        Self { excused, taken, relapses, ..Self::default() }
    }

    /// Records that the direct path is taken again.
    pub(super) fn take(&mut self, now: Duration) {
        self.taken = Some(Moment::of(now));
    }

    /// Records that the direct path was left, and counts a relapse if it was taken shortly before.
    pub(super) fn leave(&mut self, now: Duration) {
        let soon = |taken: Moment| now < taken.time() + 2 * self.health();
        self.relapses = if self.taken.is_some_and(soon) { (self.relapses + 1).min(MOST_RELAPSES) } else { 0 };
    }

    /// Forgives the losses of a peer that answers nothing, while this node is the suspect. A peer that answers some probe keeps
    /// them.
    pub(super) fn excuse(&mut self, silence: &Silence, now: Duration) {
        if silence.is_total(&self.path) || silence.is_total(&self.next_hop) {
            self.excused = Some(Moment::of(now));
            self.next_hop.forgive();
            self.path.forgive();
        }
    }
}
