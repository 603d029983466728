//! What is remembered of answers that say more than that they came (MAC addresses, pairs of datagrams), and of what was found.

use std::mem::discriminant;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::track::Moment;
use super::{Answer, Finding, Sample};
use crate::Mac;

/// Pairs of datagrams closer than that share the peer's limit of ICMP errors.
pub(super) const PAIRS_APART: Duration = Duration::from_secs(2);
/// So many bad ones in a row are no chance, and where other packets are lost, too.
const BAD_PAIRS: (u8, u8) = (4, 8);

/// So long one fault has to be found before it is told in place of another that is no less grave, in place of "it comes and goes",
/// and in place of the same with other details: they may be others with each answer.
const HELD: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_secs(30);
const DETAILS: Duration = Duration::from_secs(300);

/// Who answers for the next hop.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Macs {
    last: Option<(Moment, Mac)>,
    /// Two that answered one request, when it was sent, and how many such requests there were since the path was well.
    two: Option<([Mac; 2], Moment)>,
    twice: u8,
    pub(super) also: Option<(Mac, IpAddr)>,
}

/// Pairs of datagrams in a row of which only the complete one was answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pairs {
    pub(super) bad: u8,
    last: Option<Moment>,
}

/// A finding in little memory: most peers are well, or new.
#[derive(Clone, Debug)]
pub(super) struct Said(Option<Arc<Finding>>);

static UNVERIFIED: LazyLock<Arc<Finding>> = LazyLock::new(|| Arc::new(Finding::Unverified));

impl Said {
    pub(super) fn of(finding: Finding) -> Self {
        Self(match finding {
            Finding::Healthy => None,
            Finding::Unverified => Some(UNVERIFIED.clone()),
            _ => Some(Arc::new(finding)),
        })
    }

    pub(super) fn get(&self) -> Finding {
        self.0.as_deref().copied().unwrap_or(Finding::Healthy)
    }
}

/// The last finding, and since when it is the same.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) finding: Said,
    since: Moment,
    /// What is said was said when nothing got through.
    cut: bool,
}

impl Found {
    pub(super) fn new(now: Duration) -> Self {
        Self { finding: Said::of(Finding::Unverified), since: Moment::of(now), cut: false }
    }

    /// What to say, after what was said. One fault takes another's place only if it holds: where all comes and goes, so do
    /// reasons. `cut`: nothing gets through.
    pub(super) fn settle(&mut self, finding: Finding, said: Finding, cut: bool, now: Duration) -> Finding {
        if finding != self.finding.get() {
            (self.finding, self.since) = (Said::of(finding), Moment::of(now));
        }
        let hold = match (said, finding) {
            // What was true of larger packets is not of smaller ones.
            (Finding::LostAbove { mtu: said }, Finding::LostAbove { mtu }) if mtu < said => HELD,
            (Finding::Fragmented { mtu: said }, Finding::Fragmented { mtu }) if mtu < said => HELD,
            _ if discriminant(&said) == discriminant(&finding) => DETAILS,
            (Finding::Flapping { .. }, _) => CALM,
            _ if cut && !self.cut => Duration::ZERO,
            _ => HELD,
        };
        let brief = now < self.since.time() + hold;
        if brief && finding.is_fault() && said.is_fault() {
            return said;
        }
        self.cut = cut;
        finding
    }
}

impl Macs {
    pub(super) const NONE: Self = Self { last: None, two: None, twice: 0, also: None };

    pub(super) fn hear(&mut self, sample: &Sample) {
        let Answer::Is { mac, also } = sample.answer else { return };
        self.also = also.map(|address| (mac, address));
        let request = Moment::of(sample.sent);
        match self.last {
            Some((sent, other)) if sent == request && other != mac => {
                if self.two.is_none_or(|(_, counted)| counted != sent) {
                    self.twice = self.twice.saturating_add(1);
                }
                self.two = Some(([mac.min(other), mac.max(other)], sent));
            }
            Some((sent, _)) if sent >= request => {}
            _ => self.last = Some((request, mac)),
        }
    }

    /// A machine with two NICs on the segment answers twice, too: no fault unless it does harm.
    pub(super) fn path_is_well(&mut self) {
        (self.two, self.twice) = (None, 0);
    }

    pub(super) fn are_two(&self) -> bool {
        self.two.is_some()
    }

    /// Seen twice: an address that moves to another machine may be answered for by both, once.
    pub(super) fn duplicate(&self) -> Option<[Mac; 2]> {
        self.two.filter(|_| self.twice >= 2).map(|(macs, _)| macs)
    }
}

impl Pairs {
    pub(super) const NONE: Self = Self { bad: 0, last: None };

    pub(super) fn hear(&mut self, sample: &Sample) {
        let Answer::Checksums { offloaded, complete } = sample.answer else { return };
        let apart = self.last.is_none_or(|last| sample.sent >= last.time() + PAIRS_APART);
        if offloaded || !complete {
            *self = Self::default();
        } else if apart {
            *self = Self { bad: self.bad.saturating_add(1), last: Some(Moment::of(sample.sent)) };
        }
    }

    /// Where so many of a thousand echoes are lost.
    pub(super) fn is_fault(&self, loss: u16) -> bool {
        self.bad >= if loss == 0 { BAD_PAIRS.0 } else { BAD_PAIRS.1 }
    }
}
