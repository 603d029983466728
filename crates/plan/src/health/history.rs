//! Replies of one peer along its path: the results of each kind of probe, and replies with further content. Most peers
//! are well and need the results of two kinds only.

use std::net::IpAddr;
use std::time::Duration;

use super::Answer;
use super::mtu_search::MtuSearch;
use super::probe_results::ProbeResults;
use super::time::Time;
use crate::mac::Mac;

/// Minimum time between two pairs of datagrams; closer pairs share the peer's rate limit of ICMP errors.
pub(super) const PAIRS_APART: Duration = Duration::from_secs(2);
/// Number of bad pairs in a row that are a checksum fault: without and with losses among the echoes.
const BAD_PAIRS: (u8, u8) = (4, 8);

/// Answers of one peer along its path.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerHistory {
    /// Echoes between pod subnets of any size.
    pub(super) path: ProbeResults,
    /// Echoes between pod subnets of the largest size.
    pub(super) full: ProbeResults,
    pub(super) echoes: Echoes,
    /// Round-trip time of the last echo between pod subnets, in microseconds.
    latency: Option<u32>,
    /// Results of all other probes; `None` while they would tell nothing.
    details: Option<Box<Details>>,
}

/// Results of the less frequent probes.
#[derive(Clone, Debug, Default)]
pub(super) struct Details {
    pub(super) next_hop: ProbeResults,
    pub(super) node: ProbeResults,
    /// Largest packets of the tunnel, unfragmented.
    pub(super) outer: ProbeResults,
    pub(super) there: ProbeResults,
    pub(super) direct: ProbeResults,
    pub(super) macs: Macs,
    pub(super) pairs: Pairs,
    /// Search for the largest packet between pods.
    pub(super) path_search: Option<Box<MtuSearch>>,
    /// Search for the largest tunnel packet.
    pub(super) outer_search: Option<Box<MtuSearch>>,
}

impl PeerHistory {
    pub(super) fn details(&self) -> &Details {
        self.details.as_deref().unwrap_or(Details::NONE)
    }

    /// Returns the details for a new result, which allocates them if need be.
    pub(super) fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    /// Returns the details if there are any.
    pub(super) fn known(&mut self) -> Option<&mut Details> {
        self.details.as_deref_mut()
    }

    /// Forgets the results of probes along the old path, after the plan has changed the path.
    pub(super) fn renew(&mut self) {
        let mut details = self.details.take();
        if let Some(details) = &mut details {
            (details.outer, details.there, details.pairs) = Default::default();
            (details.path_search, details.outer_search) = (None, None);
        }
        *self = Self { details, ..Self::default() };
    }

    /// Starts the proof of the direct path from this moment.
    pub(super) fn watch_direct(&mut self) {
        if let Some(details) = self.known() {
            details.next_hop.restart();
            details.direct = ProbeResults::default();
        }
    }

    /// Frees the details if they tell nothing that the next replies would not restore.
    pub(super) fn shrink(&mut self) {
        let lost = self.path.has_lost() || self.full.has_lost();
        if !lost && self.details().is_well() {
            self.details = None;
        }
    }

    pub(super) fn set_latency(&mut self, latency: Duration) {
        self.latency = Some(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    pub(super) fn latency(&self) -> Option<Duration> {
        self.latency.map(|micros| Duration::from_micros(micros.into()))
    }

    /// Returns true if a failing probe gets replies again.
    pub(super) fn is_recovering(&self) -> bool {
        [&self.path, &self.full, &self.details().next_hop].into_iter().any(ProbeResults::is_recovering)
    }
}

impl Details {
    const NONE: &Self = &Self {
        next_hop: ProbeResults::NEW,
        node: ProbeResults::NEW,
        outer: ProbeResults::NEW,
        there: ProbeResults::NEW,
        direct: ProbeResults::NEW,
        macs: Macs { last: None, two: None, twice: 0, also: None },
        pairs: Pairs { bad: 0, last: None },
        path_search: None,
        outer_search: None,
    };

    fn is_well(&self) -> bool {
        let Self { next_hop, node, outer, there, direct, macs, pairs, path_search, outer_search } = self;
        let well = |results: &ProbeResults| !results.has_lost() && !results.impossible;
        let searches = path_search.is_some() || outer_search.is_some();
        let are_well = [next_hop, node, outer, there, direct].into_iter().all(well);
        are_well && pairs.bad == 0 && macs.two.is_none() && !searches
    }
}

/// MAC addresses that answer for the next hop.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Macs {
    /// Newest request that was answered, by the time it was sent, and the first MAC address that answered it.
    last: Option<(Time, Mac)>,
    /// Two MAC addresses that answered one request, and the time of that request.
    two: Option<([Mac; 2], Time)>,
    /// Number of requests with two answers since the path was last healthy.
    twice: u8,
    /// MAC address of the last answer, and another address that it answers for.
    pub(super) also: Option<(Mac, IpAddr)>,
}

impl Macs {
    pub(super) fn record(&mut self, sent: Time, answer: Answer) {
        let Answer::Is { mac, also } = answer else { return };
        self.also = also.map(|address| (mac, address));
        match self.last {
            Some((last, other)) if last == sent && other != mac => {
                if self.two.is_none_or(|(_, counted)| counted != sent) {
                    self.twice = self.twice.saturating_add(1);
                }
                self.two = Some(([mac.min(other), mac.max(other)], sent));
            }
            Some((last, _)) if last >= sent => {}
            _ => self.last = Some((sent, mac)),
        }
    }

    /// Forgets the second MAC address. A machine with two NICs on the segment answers twice, too, which is no fault while the
    /// path is healthy.
    pub(super) fn path_is_well(&mut self) {
        (self.two, self.twice) = (None, 0);
    }

    /// Returns the two MAC addresses if they answered at least two requests. A single time may be an address that moves to
    /// another machine.
    pub(super) fn duplicate(&self) -> Option<[Mac; 2]> {
        self.two.filter(|_| self.twice >= 2).map(|(macs, _)| macs)
    }
}

/// Pairs of datagrams of which only the one with the complete checksum was answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pairs {
    /// Number of such pairs in a row.
    pub(super) bad: u8,
    /// Time at which the last such pair was sent.
    last: Option<Time>,
}

impl Pairs {
    pub(super) fn record(&mut self, sent: Time, answer: Answer) {
        let Answer::Checksums { offloaded, complete } = answer else { return };
        let apart = self.last.is_none_or(|last| sent >= last + PAIRS_APART);
        if offloaded || !complete {
            *self = Self::default();
        } else if apart {
            *self = Self { bad: self.bad.saturating_add(1), last: Some(sent) };
        }
    }

    /// Returns true if the pairs show a checksum fault; `loss` is the number of lost echoes per thousand.
    pub(super) fn is_fault(&self, loss: u16) -> bool {
        self.bad >= if loss == 0 { BAD_PAIRS.0 } else { BAD_PAIRS.1 }
    }
}

/// Results of the last 63 regular echoes, the newest in the lowest bit; 1 is a loss. A marker bit stands above the oldest result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Echoes(u64);

impl Default for Echoes {
    fn default() -> Self {
        Self(1)
    }
}

impl Echoes {
    pub(super) fn add(&mut self, lost: bool) {
        let full = self.0 & (1 << 63);
        self.0 = (self.0 << 1) | u64::from(lost) | full;
    }

    /// Returns the number of lost echoes per thousand.
    pub(super) fn loss(self) -> u16 {
        let (lost, count) = (self.0.count_ones() - 1, 63 - self.0.leading_zeros());
        u16::try_from(lost * 1000 / count.max(1)).unwrap_or(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_covers_the_last_63_echoes() {
        let mut echoes = Echoes::default();
        assert_eq!(echoes.loss(), 0);
        echoes.add(true);
        assert_eq!(echoes.loss(), 1000);
        (0..62).for_each(|_| echoes.add(false));
        assert_eq!(echoes.loss(), 15, "one of them all");
        echoes.add(true);
        assert_eq!(echoes.loss(), 15, "the first one has gone");
    }
}
