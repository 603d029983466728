//! What is known of a peer only while something is being asked or is not well: most peers do without it, and thousands of
//! them cost little.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::Finding;
use super::evidence::{Macs, Pairs};
use super::ladder::Ladder;
use super::suspicion::Silence;
use super::track::{Moment, Track};
use crate::PeerPath;

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
    /// Who says that packets to its pods go no further, since the last that was answered.
    pub(super) refused: Option<IpAddr>,
    pub(super) macs: Macs,
    pub(super) pairs: Pairs,
    pub(super) ladder: Option<Box<Ladder>>,
    /// Of packets of the tunnel.
    pub(super) outer_ladder: Option<Box<Ladder>>,
    /// Why the direct way was left, until it is proven again.
    pub(super) left: Option<Box<Finding>>,
    /// Only where evidence decides.
    pub(super) trial: Option<Box<Trial>>,
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
        refused: None,
        macs: Macs::NONE,
        pairs: Pairs::NONE,
        ladder: None,
        outer_ladder: None,
        left: None,
        trial: None,
    };

    fn is_well(&self) -> bool {
        let Self { next_hop, node, outer, there, direct, pairs, .. } = self;
        let well = |track: &Track| !track.has_lost() && !track.impossible;
        let asked = [next_hop, node, outer, there, direct].into_iter().all(well) && pairs.bad == 0;
        let searched = self.ladder.is_some() || self.outer_ladder.is_some();
        asked
            && !searched
            && self.refused.is_none()
            && self.left.is_none()
            && self.trial.is_none()
            && !self.macs.are_two()
    }
}

/// What counts against the direct way: as the tracks of the same name, except that it forgives what is our own fault.
#[derive(Clone, Debug, Default)]
pub(super) struct Trial {
    pub(super) next_hop: Track,
    pub(super) path: Track,
    /// Up to here we were the suspect.
    pub(super) excused: Option<Moment>,
}

impl Trial {
    /// A peer that answers anything is not lost for our sake.
    pub(super) fn excuse(&mut self, silence: &Silence, now: Duration) {
        if silence.is_total(&self.path) || silence.is_total(&self.next_hop) {
            self.excused = Some(Moment::of(now));
            self.next_hop.forgive();
            self.path.forgive();
        }
    }
}
