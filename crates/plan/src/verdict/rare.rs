//! What is known of a peer only while something is being asked or is not well: most peers do without it, and thousands of
//! them cost little.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::Finding;
use super::evidence::{Macs, Pairs};
use super::ladder::Ladder;
use super::suspicion::Silence;
use super::track::{Moment, Track};
use crate::PeerPath;

/// All answered for so long proves a way that was left.
const HEALTH: Duration = Duration::from_secs(30);
const LONGEST_HEALTH: Duration = Duration::from_secs(600);
const MOST_RELAPSES: u8 = 5;

/// Written to, it is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Rare(Option<Box<Known>>);

#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) next_hop: Track,
    pub(super) node: Track,
    pub(super) outer: Track,
    pub(super) there: Track,
    pub(super) direct: Track,
    pub(super) macs: Macs,
    pub(super) pairs: Pairs,
    pub(super) ladder: Option<Box<Ladder>>,
    /// Of packets of the tunnel.
    pub(super) outer_ladder: Option<Box<Ladder>>,
    /// Why the direct way was left, until it is proven again.
    pub(super) left: Option<Box<Finding>>,
    /// Only where evidence decides.
    pub(super) trial: Option<Box<Trial>>,
    /// This node sends the packets for the peer elsewhere, so a lost packet says nothing about the peer.
    pub(super) diverted: bool,
}

impl Rare {
    /// Of a peer that is new.
    pub(super) fn of(peer: &PeerPath) -> Self {
        let mut rare = Self::default();
        rare.decide(peer.by_evidence);
        rare
    }

    /// What there is; nothing is made for it.
    pub(super) fn known(&mut self) -> Option<&mut Known> {
        self.0.as_deref_mut()
    }

    /// Does evidence decide from now on?
    pub(super) fn decide(&mut self, by_evidence: bool) {
        if by_evidence {
            self.trial = Some(Box::default());
        } else if let Some(known) = self.known() {
            known.trial = None;
        }
    }

    /// There is another way: what was asked along the old one says nothing of it.
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

    /// Forgets all if nothing of it would be another, once the next answers have come.
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

/// What counts against the direct way: as the tracks of the same name, except that it forgives what is our own fault.
#[derive(Clone, Debug, Default)]
pub(super) struct Trial {
    pub(super) next_hop: Track,
    pub(super) path: Track,
    /// Up to here we were the suspect.
    pub(super) excused: Option<Moment>,
    /// When the direct way was taken again, and how often in a row it was lost soon after that.
    pub(super) taken: Option<Moment>,
    pub(super) relapses: u8,
}

impl Trial {
    /// How long a way that was left has to be healthy: ever longer where it does not last, as a way may that works until pods use it.
    pub(super) fn health(&self) -> Duration {
        (HEALTH * (1 << self.relapses)).min(LONGEST_HEALTH)
    }

    /// The evidence of one way is none of the other.
    pub(super) fn of_another_way(&self) -> Self {
        let Self { excused, taken, relapses, .. } = *self;
        Self { excused, taken, relapses, ..Self::default() }
    }

    /// The direct way is taken again.
    pub(super) fn take(&mut self, now: Duration) {
        self.taken = Some(Moment::of(now));
    }

    /// It is lost.
    pub(super) fn leave(&mut self, now: Duration) {
        let soon = |taken: Moment| now < taken.time() + 2 * self.health();
        self.relapses = if self.taken.is_some_and(soon) { (self.relapses + 1).min(MOST_RELAPSES) } else { 0 };
    }

    /// A peer that answers anything is not lost for our sake.
    pub(super) fn excuse(&mut self, silence: &Silence, now: Duration) {
        if silence.is_total(&self.path) || silence.is_total(&self.next_hop) {
            self.excused = Some(Moment::of(now));
            self.next_hop.forgive();
            self.path.forgive();
        }
    }
}
