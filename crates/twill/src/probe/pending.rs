//! Probes that wait for a reply. A reply must match one of them, or it is dropped. It needs the right sequence number
//! and the right sender, and must not be late. The number of probes is limited. Sends nothing.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use plan::Mac;
use plan::health::{Answer, PATIENCE, Probe};

use super::frame::Number;

/// Maximum number of probes that wait at a time; further ones are not sent.
const MAX_PENDING: usize = 16 * 1024;
/// Maximum number of MACs that are recorded for one next-hop request. A third machine with the address is no news.
const MAX_CLAIMS: usize = 4;

/// Probe that was sent.
#[derive(Clone, Debug)]
pub(super) struct PendingProbe {
    pub(super) peer: IpNet,
    pub(super) probe: Probe,
    /// Address that has to reply.
    pub(super) target: IpAddr,
    pub(super) at: Duration,
    pub(super) state: ProbeState,
}

/// State of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProbeState {
    Open,
    /// A machine that may not have seen the probe reports what became of it. The report counts if no reply comes.
    Hinted(Answer),
    Done,
    /// MACs that claim to be the next hop.
    Claimed(Vec<Mac>),
    /// Answers to the two datagrams, which were sent from `port`.
    Datagrams {
        port: u16,
        offloaded: bool,
        complete: bool,
    },
}

/// Probes, numbered in sequence from a random start. A reply's number leads to its probe.
#[derive(Debug)]
pub(super) struct PendingProbes {
    /// Sequence number of the oldest probe.
    first: u16,
    /// Probes in the order in which they were sent.
    all: VecDeque<PendingProbe>,
    /// Number of probes without a reply.
    open: usize,
    /// Sequence number of the last next-hop request for each address.
    next_hops: HashMap<IpAddr, u16>,
    /// Sequence number of the last pair of datagrams to each address.
    datagrams: HashMap<IpAddr, u16>,
    /// Key of the cookies.
    secret: RandomState,
}

impl PendingProbes {
    /// Starts with the sequence number `first`.
    pub(super) fn new(first: u16) -> Self {
        let (next_hops, datagrams) = (HashMap::new(), HashMap::new());
        let secret = RandomState::new();
        Self { first, all: VecDeque::new(), open: 0, next_hops, datagrams, secret }
    }

    /// Records a probe that is about to be sent; `None` if there is no room.
    pub(super) fn add(&mut self, sent: PendingProbe) -> Option<Number> {
        if self.all.len() == MAX_PENDING {
            return None;
        }
        let sequence = self.first.wrapping_add(self.all.len() as u16);
        match sent.probe {
            Probe::NextHop => drop(self.next_hops.insert(sent.target, sequence)),
            Probe::Checksum => drop(self.datagrams.insert(sent.target, sequence)),
            _ => {}
        }
        self.open += usize::from(sent.state != ProbeState::Done);
        let cookie = self.cookie(&sent, sequence);
        self.all.push_back(sent);
        Some(Number { sequence, cookie })
    }

    /// Returns the cookie of a probe. A machine that has seen only other probes cannot know it.
    fn cookie(&self, sent: &PendingProbe, sequence: u16) -> u64 {
        self.secret.hash_one((sent.peer, sent.at, sequence))
    }

    fn at(&mut self, sequence: u16) -> Option<&mut PendingProbe> {
        self.all.get_mut(usize::from(sequence.wrapping_sub(self.first)))
    }

    /// Returns the echo to `target` that has no reply yet. Datagrams are never open in this sense.
    fn echo(&mut self, target: IpAddr, sequence: u16) -> Option<&mut PendingProbe> {
        let sent = self.at(sequence).filter(|sent| sent.target == target && sent.probe != Probe::NextHop)?;
        matches!(sent.state, ProbeState::Open | ProbeState::Hinted(_)).then_some(sent)
    }

    /// Returns the echo to `target` that came back or certainly could not be delivered. Each echo is returned once.
    pub(super) fn take_echo(&mut self, target: IpAddr, number: Number) -> Option<PendingProbe> {
        let found = self.echo(target, number.sequence)?.clone();
        if self.cookie(&found, number.sequence) != number.cookie {
            return None;
        }
        self.discard(number.sequence);
        Some(found)
    }

    /// Records a report, by anybody, about what became of the echo.
    pub(super) fn record_hint(&mut self, target: IpAddr, sequence: u16, answer: Answer) {
        if let Some(sent) = self.echo(target, sequence) {
            sent.state = ProbeState::Hinted(answer);
        }
    }

    /// Ends a probe that can give no further reply, for example because it did not leave this node.
    pub(super) fn discard(&mut self, sequence: u16) {
        if let Some(sent) = self.at(sequence).filter(|sent| sent.state != ProbeState::Done) {
            sent.state = ProbeState::Done;
            self.open -= 1;
        }
    }

    /// Records that `mac` claims to be the next hop. If the claim is new, returns the request and the number of claims so
    /// far.
    pub(super) fn record_claim(&mut self, ip: IpAddr, mac: Mac) -> Option<(PendingProbe, usize)> {
        let sequence = *self.next_hops.get(&ip)?;
        let sent = self.at(sequence).filter(|sent| sent.target == ip && sent.probe == Probe::NextHop)?;
        let was_open = sent.state == ProbeState::Open;
        let mut macs = match std::mem::replace(&mut sent.state, ProbeState::Done) {
            ProbeState::Claimed(macs) => macs,
            _ => Vec::new(),
        };
        let is_new = !macs.contains(&mac) && macs.len() < MAX_CLAIMS;
        macs.extend(is_new.then_some(mac));
        let (found, count) = (sent.clone(), macs.len());
        sent.state = ProbeState::Claimed(macs);
        self.open -= usize::from(was_open);
        is_new.then_some((found, count))
    }

    /// Records a datagram that found no listener. Returns the probe once both datagrams have.
    pub(super) fn record_datagram(
        &mut self,
        to: IpAddr,
        from_port: u16,
        is_complete: bool,
    ) -> Option<PendingProbe> {
        let sequence = *self.datagrams.get(&to)?;
        let sent = self.at(sequence).filter(|sent| sent.target == to)?;
        let ProbeState::Datagrams { port, offloaded, complete } = &mut sent.state else { return None };
        if *port != from_port {
            return None;
        }
        *(if is_complete { &mut *complete } else { &mut *offloaded }) = true;
        if !(*offloaded && *complete) {
            return None;
        }
        let found = sent.clone();
        sent.state = ProbeState::Done;
        self.open -= 1;
        Some(found)
    }

    /// Removes the oldest probe if it is done or too old. Returns it with the reply that is left to report.
    pub(super) fn expire(&mut self, now: Duration) -> Option<(PendingProbe, Option<Answer>)> {
        let oldest = self.all.front()?;
        let over = oldest.at + PATIENCE <= now;
        // Other machines may still claim to be the next hop.
        if !over && oldest.state != ProbeState::Done {
            return None;
        }
        let sequence = self.first;
        let sent = self.all.pop_front()?;
        self.first = self.first.wrapping_add(1);
        let named = match sent.probe {
            Probe::NextHop => Some(&mut self.next_hops),
            Probe::Checksum => Some(&mut self.datagrams),
            _ => None,
        };
        if let Some(named) = named.filter(|named| named.get(&sent.target) == Some(&sequence)) {
            named.remove(&sent.target);
        }
        let answer = match sent.state {
            ProbeState::Open => Some(Answer::Lost),
            ProbeState::Hinted(answer) => Some(answer),
            ProbeState::Datagrams { offloaded, complete, .. } => {
                Some(Answer::Checksums { offloaded, complete })
            }
            ProbeState::Done | ProbeState::Claimed(_) => None,
        };
        self.open -= usize::from(answer.is_some());
        Some((sent, answer))
    }

    /// Returns the number of probes that wait for a reply.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Returns the time at which a probe may have to be called lost.
    pub(super) fn due(&self) -> Option<Duration> {
        self.all.front().filter(|_| self.open > 0).map(|oldest| oldest.at + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(probe: Probe, at: u64) -> PendingProbe {
        let state = match probe {
            Probe::Checksum => ProbeState::Datagrams { port: 7, offloaded: false, complete: false },
            _ => ProbeState::Open,
        };
        let (peer, target) = ("10.244.2.0/24".parse().unwrap(), "10.244.2.0".parse().unwrap());
        PendingProbe { peer, probe, target, at: Duration::from_millis(at), state }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn an_answer_counts_once_and_from_its_target_alone() {
        let mut all = PendingProbes::new(u16::MAX);
        let [one, other] = [sent(Probe::Path, 0), sent(Probe::Node, 0)].map(|it| all.add(it).unwrap());
        assert_eq!([one.sequence, other.sequence], [u16::MAX, 0]);
        assert!(all.take_echo(ip("10.244.3.0"), other).is_none(), "somebody else");
        assert!(all.take_echo(ip("10.244.2.0"), Number { sequence: 1, ..other }).is_none(), "never asked");
        assert!(
            all.take_echo(ip("10.244.2.0"), Number { sequence: 0, ..one }).is_none(),
            "has seen another one"
        );
        assert_eq!(all.take_echo(ip("10.244.2.0"), other).unwrap().probe, Probe::Node);
        assert!(all.take_echo(ip("10.244.2.0"), other).is_none(), "twice");
        assert_eq!(all.due(), Some(PATIENCE));
        assert!(all.expire(PATIENCE - ms(1)).is_none());
        assert_eq!(all.expire(PATIENCE).unwrap().1, Some(Answer::Lost));
        assert_eq!((all.expire(PATIENCE).unwrap().1, all.due()), (None, None));
        assert!(all.take_echo(ip("10.244.2.0"), one).is_none(), "too late");
    }

    #[test]
    fn a_report_of_another_machine_counts_if_no_answer_comes() {
        let mut all = PendingProbes::new(0);
        let [one, other] = [sent(Probe::Path, 0), sent(Probe::Path, 0)].map(|it| all.add(it).unwrap());
        let refused = Answer::Refused { by: ip("192.0.2.9") };
        [one, other].iter().for_each(|it| all.record_hint(ip("10.244.2.0"), it.sequence, refused));
        assert!(all.expire(PATIENCE - ms(1)).is_none());
        assert!(all.take_echo(ip("10.244.2.0"), other).is_some());
        assert_eq!(all.expire(PATIENCE).unwrap().1, Some(refused));
        assert_eq!((all.expire(PATIENCE).unwrap().1, all.due()), (None, None));
    }

    #[test]
    fn an_echo_reply_does_not_settle_a_next_hop_probe() {
        let mut all = PendingProbes::new(0);
        let number = all.add(sent(Probe::NextHop, 0)).unwrap();
        assert!(all.take_echo(ip("10.244.2.0"), number).is_none());
        assert_eq!(all.expire(PATIENCE).unwrap().1, Some(Answer::Lost));
    }

    #[test]
    fn two_macs_give_two_replies_before_the_timeout() {
        let mut all = PendingProbes::new(0);
        all.add(sent(Probe::NextHop, 0));
        let [one, other] = [Mac([2; 6]), Mac([4; 6])];
        assert_eq!(all.record_claim(ip("10.244.2.0"), one).unwrap().1, 1);
        assert!(all.record_claim(ip("10.244.2.0"), one).is_none(), "the same again");
        assert!(all.expire(PATIENCE - ms(1)).is_none());
        assert_eq!(all.record_claim(ip("10.244.2.0"), other).unwrap().1, 2);
        assert_eq!(all.expire(PATIENCE).unwrap().1, None);
        assert!(all.record_claim(ip("10.244.2.0"), other).is_none());
    }

    #[test]
    fn datagrams_are_reported_when_both_are_back_or_time_is_over() {
        let mut all = PendingProbes::new(0);
        all.add(sent(Probe::Checksum, 0));
        assert!(all.record_datagram(ip("10.244.2.0"), 8, true).is_none(), "not from our port");
        assert!(all.record_datagram(ip("10.244.2.0"), 7, true).is_none());
        assert!(all.record_datagram(ip("10.244.2.0"), 7, false).is_some());
        assert_eq!(all.expire(ms(0)).unwrap().1, None);
        all.add(sent(Probe::Checksum, 0));
        assert!(all.record_datagram(ip("10.244.2.0"), 7, true).is_none());
        let expected = Answer::Checksums { offloaded: false, complete: true };
        assert_eq!(all.expire(PATIENCE).unwrap().1, Some(expected));
    }

    #[test]
    fn the_number_of_outstanding_probes_is_limited() {
        let mut all = PendingProbes::new(60_000);
        assert_eq!(
            (0..=MAX_PENDING).filter(|_| all.add(sent(Probe::Path, 0)).is_some()).count(),
            MAX_PENDING
        );
        while all.expire(PATIENCE).is_some() {}
        assert!(all.add(sent(Probe::Path, 0)).is_some());
    }
}
