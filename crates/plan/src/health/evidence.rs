//! Evidence about one peer: the plan's path to it, the answers to its probes, and what followed from them. Its size is bounded.

use std::net::IpAddr;

use super::choice::Choice;
use super::history::PeerHistory;
use super::mtu_search::{MtuSearch, min_size};
use super::probe_results::ProbeResults;
use super::time::Time;
use super::{Answer, Finding, Local, PreferredPath, Probe};
use crate::peer::{Path, PeerPath};

/// Overhead of VXLAN in bytes, over IPv4 and over IPv6: outer IP, UDP, VXLAN and inner Ethernet headers.
const OVERHEAD: (u32, u32) = (50, 70);

/// Evidence about one peer.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    pub(super) peer: PeerPath,
    pub(super) local: Local,
    pub(super) history: PeerHistory,
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
            history: PeerHistory::default(),
            reached: false,
            diverted: false,
        }
    }

    /// Returns the path that the evidence favours.
    pub(super) fn preferred_path(&self) -> Option<PreferredPath> {
        self.choice.as_ref()?.preferred_path
    }

    /// Returns the reason for which the direct path was left.
    pub(super) fn left(&self) -> Option<Finding> {
        self.choice.as_ref()?.left.as_deref().copied()
    }

    /// Forgets the results of probes along the old path, after the plan has changed the path.
    pub(super) fn renew(&mut self) {
        self.history.renew();
        if let Some(choice) = &mut self.choice {
            choice.path = ProbeResults::default();
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
    pub(super) fn choose_path(&mut self, finding: Finding, now: Time) {
        let Some(choice) = self.choice.as_mut().filter(|_| self.peer.by_evidence) else { return };
        if choice.decide(self.peer.path, &self.history, finding, now) {
            self.history.watch_direct();
        }
    }

    /// Frees the results that only a faulty peer needs.
    pub(super) fn shrink(&mut self) {
        if !self.peer.by_evidence {
            self.history.shrink();
        }
    }

    /// Adds an answer. `regular` is true for a probe of a regular turn.
    pub(super) fn record(&mut self, probe: Probe, sent: Time, answer: Answer, regular: bool) {
        match probe {
            Probe::NextHop => {
                let details = self.history.details_mut();
                details.next_hop.record(sent, answer);
                details.macs.record(sent, answer);
                self.update_choice(sent, |choice| choice.next_hop.record(sent, answer));
            }
            Probe::Node => self.history.details_mut().node.record(sent, answer),
            Probe::Direct => {
                self.history.details_mut().direct.record(sent, answer);
                if self.peer.path != Path::Direct {
                    self.update_choice(sent, |choice| choice.path.record(sent, answer));
                }
            }
            Probe::NodeSized(size) => self.record_outer(size, sent, answer),
            Probe::Path => self.record_echo(sent, answer, regular),
            Probe::PathSized(size) => self.record_sized(size, sent, answer, regular),
            Probe::There => self.history.details_mut().there.record(sent, answer),
            Probe::Checksum => self.history.details_mut().pairs.record(sent, answer),
        }
    }

    /// Returns the answer, with a reported MTU only if it is plausible. Old routers name no size, and ICMP errors can be forged.
    pub(super) fn checked(&self, probe: Probe, answer: Answer) -> Answer {
        let Answer::TooBig { mtu } = answer else { return answer };
        let (size, address) = match probe {
            Probe::PathSized(size) => (size, self.peer.subnet.addr()),
            Probe::NodeSized(size) => (size, self.peer.public_ip),
            _ => return Answer::Lost,
        };
        if (min_size(address)..size).contains(&mtu) { answer } else { Answer::Lost }
    }

    fn update_choice(&mut self, sent: Time, update: impl FnOnce(&mut Choice)) {
        if let Some(choice) = self.choice.as_mut().filter(|choice| choice.counts(sent)) {
            update(choice);
        }
    }

    fn record_outer(&mut self, size: u16, sent: Time, answer: Answer) {
        if Some(size) == self.outer_size() {
            self.history.details_mut().outer.record(sent, answer);
        } else if matches!(answer, Answer::Came { .. })
            && let Some(search) = self.history.known().and_then(|details| details.outer_search.as_mut())
        {
            search.arrived(size);
        }
    }

    fn record_sized(&mut self, size: u16, sent: Time, answer: Answer, regular: bool) {
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
            self.update_choice(sent, |choice| choice.path.excuse(sent));
        }
        let known = self.history.full.is_down() || !regular;
        self.history.full.record(sent, answer);
        if came || !(known || matches!(answer, Answer::TooBig { .. })) {
            self.record_echo(sent, answer, regular);
        }
    }

    /// Adds the answer to an echo between pod subnets. A large echo that is lost for its size does no harm here: the next small
    /// ones are answered.
    fn record_echo(&mut self, sent: Time, answer: Answer, regular: bool) {
        let history = &mut self.history;
        let came = matches!(answer, Answer::Came { .. });
        self.reached |= came;
        if let Answer::Came { after } = answer {
            history.set_latency(after);
        }
        if regular {
            history.echoes.add(!came);
        }
        let record = if regular { ProbeResults::record } else { ProbeResults::record_quick };
        record(&mut history.path, sent, answer);
        // Large echoes have the same ends, so they become possible with the small ones.
        history.full.impossible &= history.path.impossible;
        if history.path.is_down() && !history.full.is_down() {
            // The size was not the reason for which large echoes were lost.
            history.full.forget_losses();
        }
        if came && !history.path.is_down() && self.choice.as_ref().is_none_or(|choice| choice.left.is_none())
        {
            history.known().into_iter().for_each(|details| details.macs.path_is_well());
        }
        if self.peer.path == Path::Direct {
            self.update_choice(sent, |choice| record(&mut choice.path, sent, answer));
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
        let is_uncertain = self.history.full.is_uncertain();
        let Some(details) = self.history.known() else { return };
        if !is_uncertain {
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
            self.history.details_mut().outer_search = search;
        }
    }

    /// Starts the search for the largest packet between pods.
    pub(super) fn search_path(&mut self, now: Time) {
        let search = self.search(self.full_size(), self.peer.subnet.addr(), now);
        self.history.details_mut().path_search = search;
    }

    fn search(&self, size: Option<u16>, to: IpAddr, now: Time) -> Option<Box<MtuSearch>> {
        let latency = self.history.latency().unwrap_or_default();
        size.map(|size| Box::new(MtuSearch::new(size, to, latency, now)))
    }

    /// Returns the probes of the searches that are due now.
    pub(super) fn search_probes(&mut self, now: Time) -> Vec<Probe> {
        let Some(details) = self.history.known() else { return Vec::new() };
        let search_probes = |search: &mut Option<Box<MtuSearch>>| {
            let due = search.as_mut().filter(|search| search.next().is_some_and(|next| now >= next));
            due.map(|search| search.search_probes(now)).unwrap_or_default()
        };
        let path = search_probes(&mut details.path_search).into_iter().map(Probe::PathSized);
        path.chain(search_probes(&mut details.outer_search).into_iter().map(Probe::NodeSized)).collect()
    }

    /// Returns the time of the next probe of a search.
    pub(super) fn next_search_probe(&self) -> Option<Time> {
        let details = self.history.details();
        let searches = [&details.path_search, &details.outer_search].into_iter().flatten();
        searches.filter_map(|search| search.next()).min()
    }
}
