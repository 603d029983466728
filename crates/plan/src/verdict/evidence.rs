//! Record of replies that carry more than their arrival (MAC addresses, pairs of datagrams), and of the last finding.

use std::mem::discriminant;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::track::Moment;
use super::{Answer, Finding, Sample};
use crate::Mac;

/// Minimum time between two pairs of datagrams; closer pairs share the peer's rate limit of ICMP errors.
pub(super) const PAIRS_APART: Duration = Duration::from_secs(2);
/// Number of bad pairs in a row that are a checksum fault: without and with losses among the echoes.
const BAD_PAIRS: (u8, u8) = (4, 8);

/// Time for which a new fault must persist before it replaces the reported one.
const HELD: Duration = Duration::from_secs(5);
/// Time for which another fault must persist before it replaces [`Finding::Flapping`].
const CALM: Duration = Duration::from_secs(30);
/// Time for which a fault must persist before it replaces the same fault with other details, which may change with every reply.
const DETAILS: Duration = Duration::from_secs(300);

/// MAC addresses that answer for the next hop.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Macs {
    /// Newest request that was answered, by the time it was sent, and the first MAC address that answered it.
    last: Option<(Moment, Mac)>,
    /// Two MAC addresses that answered one request, and the time of that request.
    two: Option<([Mac; 2], Moment)>,
    /// Number of requests with two answers since the path was last healthy.
    twice: u8,
    /// MAC address of the last answer, and another address that it answers for.
    pub(super) also: Option<(Mac, IpAddr)>,
}

/// Pairs of datagrams of which only the one with the complete checksum was answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pairs {
    /// Number of such pairs in a row.
    pub(super) bad: u8,
    /// Time at which the last such pair was sent.
    last: Option<Moment>,
}

/// A finding that allocates nothing for the common ones, healthy and unverified.
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

/// The last finding, and the rule by which it replaces the reported one.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) finding: Said,
    /// Time since which the finding has been the same.
    since: Moment,
    /// True if the reported finding was made while no echo at all was answered.
    cut: bool,
}

impl Found {
    pub(super) fn new(now: Duration) -> Self {
        Self { finding: Said::of(Finding::Unverified), since: Moment::of(now), cut: false }
    }

    /// Returns the finding to report; `said` is the one that is reported now. A fault replaces another only if it persists,
    /// since with flapping paths the causes flap as well. `cut` is true if no echo at all is answered.
    pub(super) fn settle(&mut self, finding: Finding, said: Finding, cut: bool, now: Duration) -> Finding {
        if finding != self.finding.get() {
            (self.finding, self.since) = (Said::of(finding), Moment::of(now));
        }
        let hold = match (said, finding) {
            // A smaller MTU makes the reported one wrong, so it need not wait for as long as other details.
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

    /// Forgets the second MAC address. A machine with two NICs on the segment answers twice, too, which is no fault while the
    /// path is healthy.
    pub(super) fn path_is_well(&mut self) {
        (self.two, self.twice) = (None, 0);
    }

    /// Returns true if two MAC addresses have answered one request.
    pub(super) fn are_two(&self) -> bool {
        self.two.is_some()
    }

    /// Returns the two MAC addresses if they answered at least two requests. A single time may be an address that moves to
    /// another machine.
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

    /// Returns true if the pairs show a checksum fault; `loss` is the number of lost echoes per thousand.
    pub(super) fn is_fault(&self, loss: u16) -> bool {
        self.bad >= if loss == 0 { BAD_PAIRS.0 } else { BAD_PAIRS.1 }
    }
}
