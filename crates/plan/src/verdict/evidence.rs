//! Evidence about one peer: the plan's path to it, the answers to its probes, and what followed from them. Its size is bounded.

use std::net::IpAddr;

use super::choice::Choice;
use super::history::History;
use super::mtu_search::{MtuSearch, least};
use super::time::Time;
use super::track::Track;
use super::{Answer, Finding, Local, PreferredPath, Probe};
use crate::peer::{Path, PeerPath};

/// Overhead of VXLAN in bytes, over IPv4 and over IPv6: outer IP, UDP, VXLAN and inner Ethernet headers.
const OVERHEAD: (u32, u32) = (50, 70);

/// Evidence about one peer.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    pub(super) peer: PeerPath,
    pub(super) local: Local,
    pub(super) history: History,
    /// Choice between direct and tunnel; present once evidence has decided between them.
    pub(super) choice: Option<Box<Choice>>,
    /// True after one answered echo between pod subnets, by any path, until the peer is gone.
    pub(super) reached: bool,
    /// True if this node diverts the packets for the peer, so that a loss is no evidence about the peer.
    pub(super) diverted: bool,
}

impl Evidence {
    /// Returns the state before any answer.
    pub(super) fn new(peer: PeerPath, local: Local) -> Self {
        Self {
            choice: peer.by_evidence.then(Box::default),
            peer,
            local,
            history: History::default(),
            reached: false,
            diverted: false,
        }
    }

    /// Returns the path that the evidence favours.
    pub(super) fn way(&self) -> Option<PreferredPath> {
        self.choice.as_ref()?.way
    }

    /// Returns the reason for which the direct path was left.
    pub(super) fn left(&self) -> Option<Finding> {
        self.choice.as_ref()?.left.as_deref().copied()
    }

    /// Forgets the results of probes along the old path, after the plan has changed the path.
    pub(super) fn renew(&mut self) {
        self.history.renew();
        if let Some(choice) = &mut self.choice {
            choice.path = Track::default();
        }
    }

    /// Starts the choice again, after the plan has changed whether evidence decides between direct and tunnel.
    pub(super) fn restart_choice(&mut self) {
        if self.peer.by_evidence {
            self.choice.get_or_insert_default();
        }
        if let Some(choice) = &mut self.choice {
            choice.restart();
        }
        self.history.watch_direct();
    }

    /// Chooses between direct and tunnel, if evidence decides.
    pub(super) fn choose_way(&mut self, finding: Finding, now: Time) {
        let Some(choice) = self.choice.as_mut().filter(|_| self.peer.by_evidence) else { return };
        if choice.decide(self.peer.path, &self.history, finding, now) {
            self.history.watch_direct();
        }
    }

    /// Frees the results that only a faulty peer needs.
    pub(super) fn rest(&mut self) {
        if !self.peer.by_evidence {
            self.history.rest();
        }
    }

    /// Adds an answer. `regular` is true for a probe of a regular turn.
    pub(super) fn hear(&mut self, probe: Probe, sent: Time, answer: Answer, regular: bool) {
        match probe {
            Probe::NextHop => {
                let details = self.history.record();
                details.next_hop.hear(sent, answer);
                details.macs.hear(sent, answer);
                self.try_out(sent, |choice| choice.next_hop.hear(sent, answer));
            }
            Probe::Node => self.history.record().node.hear(sent, answer),
            Probe::Direct => {
                self.history.record().direct.hear(sent, answer);
                if self.peer.path != Path::Direct {
                    self.try_out(sent, |choice| choice.path.hear(sent, answer));
                }
            }
            Probe::NodeSized(size) => self.hear_outer(size, sent, answer),
            Probe::Path => self.hear_echo(sent, answer, regular),
            Probe::PathSized(size) => self.hear_sized(size, sent, answer, regular),
            Probe::There => self.history.record().there.hear(sent, answer),
            Probe::Checksum => self.history.record().pairs.hear(sent, answer),
        }
    }

    /// Returns the answer, with a reported MTU only if it is plausible. Old routers name no size, and ICMP errors can be forged.
    pub(super) fn believe(&self, probe: Probe, answer: Answer) -> Answer {
        let Answer::TooBig { mtu } = answer else { return answer };
        let (size, address) = match probe {
            Probe::PathSized(size) => (size, self.peer.subnet.addr()),
            Probe::NodeSized(size) => (size, self.peer.public_ip),
            _ => return Answer::Lost,
        };
        if (least(address)..size).contains(&mtu) { answer } else { Answer::Lost }
    }

    fn try_out(&mut self, sent: Time, hear: impl FnOnce(&mut Choice)) {
        if let Some(choice) = self.choice.as_mut().filter(|choice| choice.counts(sent)) {
            hear(choice);
        }
    }

    fn hear_outer(&mut self, size: u16, sent: Time, answer: Answer) {
        if Some(size) == self.outer_size() {
            self.history.record().outer.hear(sent, answer);
        } else if matches!(answer, Answer::Came { .. })
            && let Some(search) = self.history.known().and_then(|details| details.outer_search.as_mut())
        {
            search.arrived(size);
        }
    }

    fn hear_sized(&mut self, size: u16, sent: Time, answer: Answer, regular: bool) {
        let came = matches!(answer, Answer::Came { .. });
        self.reached |= came;
        if Some(size) != self.full_size() {
            if came
                && let Some(search) = self.history.known().and_then(|details| details.path_search.as_mut())
            {
                search.arrived(size);
            }
            return;
        }
        if !came && !regular {
            // A small echo is sent with it or has been answered.
            self.history.path.excuse(sent);
            self.try_out(sent, |choice| choice.path.excuse(sent));
        }
        let known = self.history.full.is_down() || !regular;
        self.history.full.hear(sent, answer);
        if came || !(known || matches!(answer, Answer::TooBig { .. })) {
            self.hear_echo(sent, answer, regular);
        }
    }

    /// Adds the answer to an echo between pod subnets. A large echo that is lost for its size does no harm here: the next small
    /// ones are answered.
    fn hear_echo(&mut self, sent: Time, answer: Answer, regular: bool) {
        let history = &mut self.history;
        let came = matches!(answer, Answer::Came { .. });
        self.reached |= came;
        if let Answer::Came { after } = answer {
            history.set_latency(after);
        }
        if regular {
            history.echoes.add(!came);
        }
        let hear = if regular { Track::hear } else { Track::hear_quick };
        hear(&mut history.path, sent, answer);
        // Large echoes have the same ends, so they become possible with the small ones.
        history.full.impossible &= history.path.impossible;
        if history.path.is_down() && !history.full.is_down() {
            // The size was not the reason for which large echoes were lost.
            history.full.forgive();
        }
        if came && !history.path.is_down() && self.choice.as_ref().is_none_or(|choice| choice.left.is_none())
        {
            history.known().into_iter().for_each(|details| details.macs.path_is_well());
        }
        if self.peer.path == Path::Direct {
            self.try_out(sent, |choice| hear(&mut choice.path, sent, answer));
        }
    }

    /// Returns the size in bytes of the largest packets between pods, or `None` above 65,535.
    pub(super) fn full_size(&self) -> Option<u16> {
        let mtu = match (self.peer.path, self.peer.tunnel) {
            (Path::Tunnel(_), Some(tunnel)) => tunnel.mtu.min(self.local.mtu),
            _ => self.local.mtu,
        };
        u16::try_from(mtu).ok()
    }

    /// Returns the size in bytes of the largest tunnel packets, or `None` without a tunnel in use.
    pub(super) fn outer_size(&self) -> Option<u16> {
        let tunnel = self.peer.tunnel.filter(|_| self.peer.path.is_tunnel())?;
        let overhead = if self.peer.public_ip.is_ipv6() { OVERHEAD.1 } else { OVERHEAD.0 };
        u16::try_from(tunnel.mtu.min(self.local.mtu).saturating_add(overhead)).ok()
    }

    /// Starts searches for the largest packet, repeats old ones, and drops those that are no longer needed.
    pub(super) fn renew_searches(&mut self, now: Time) {
        let is_doubtful = self.history.full.is_doubtful();
        let Some(details) = self.history.known() else { return };
        if !is_doubtful {
            details.path_search = None;
        }
        let is_needed = details.outer.is_down() && details.outer.too_big().is_none();
        let is_old =
            |search: &Option<Box<MtuSearch>>| search.as_ref().is_some_and(|search| search.is_old(now));
        let begins = is_needed && (details.outer_search.is_none() || is_old(&details.outer_search));
        if !is_needed {
            details.outer_search = None;
        }
        if is_old(&details.path_search) {
            self.search_path(now);
        }
        if begins {
            let search = self.search(self.outer_size(), self.peer.public_ip, now);
            self.history.record().outer_search = search;
        }
    }

    /// Starts the search for the largest packet between pods.
    pub(super) fn search_path(&mut self, now: Time) {
        let search = self.search(self.full_size(), self.peer.subnet.addr(), now);
        self.history.record().path_search = search;
    }

    fn search(&self, size: Option<u16>, to: IpAddr, now: Time) -> Option<Box<MtuSearch>> {
        let latency = self.history.latency().unwrap_or_default();
        size.map(|size| Box::new(MtuSearch::new(size, to, latency, now)))
    }

    /// Returns the probes of the searches that are due now.
    pub(super) fn climb(&mut self, now: Time) -> Vec<Probe> {
        let Some(details) = self.history.known() else { return Vec::new() };
        let climb = |search: &mut Option<Box<MtuSearch>>| {
            let due = search.as_mut().filter(|search| search.next().is_some_and(|next| now >= next));
            due.map(|search| search.climb(now)).unwrap_or_default()
        };
        let path = climb(&mut details.path_search).into_iter().map(Probe::PathSized);
        path.chain(climb(&mut details.outer_search).into_iter().map(Probe::NodeSized)).collect()
    }

    /// Returns the time of the next probe of a search.
    pub(super) fn next_climb(&self) -> Option<Time> {
        let details = self.history.details();
        let searches = [&details.path_search, &details.outer_search].into_iter().flatten();
        searches.filter_map(|search| search.next()).min()
    }
}
