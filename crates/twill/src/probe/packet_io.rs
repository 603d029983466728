//! Sends each kind of probe, and turns what comes back into samples. The judges choose the probes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kernel::Kernel;
use kernel::packet::{EtherType, Marks, Socket};
use plan::health::{Answer, Probe, Sample};
use plan::node::Node;
use plan::{Family, LinkName, Mac, Path, PeerPath};
use tracing::debug;

use super::frame::{self, Endpoints, Number, Quoted, Reply};
use super::next_hops::{NextHops, Reachability};
use super::own_address::{self, AddressConflict, OwnAddresses};
use super::pending::{PendingProbe, PendingProbes, ProbeState};
use super::sockets::{self, SendOutcome, Sockets};

/// Size of the IP packet of an ordinary echo, bytes.
const ECHO_SIZE: u16 = 64;
/// UDP port on which no service listens, and which firewalls know from traceroute.
const CLOSED_PORT: u16 = 33434;
/// Payload of the datagram whose checksum is left to the devices. The two datagrams differ in length, since an error
/// quotes the length, if nothing else.
const OFFLOADED: [u8; 8] = [0; 8];
/// Payload of the datagram with a complete checksum.
const COMPLETE: [u8; 9] = [0; 9];
/// Length of a UDP header, bytes.
const UDP_HEADER: usize = 8;

/// Sample of a probe, with the subnet of the peer.
pub(super) type PeerSample = (IpNet, Sample);

/// Sender of the probes, and receiver of the replies.
pub(super) struct PacketIo {
    marks: Marks,
    node: Option<Node>,
    /// Reads the uplink's neighbours; `None` if netlink could not be opened.
    kernel: Option<Kernel>,
    sockets: Sockets,
    next_hops: NextHops,
    own: OwnAddresses,
    /// Peers by subnet.
    peers: Arc<Vec<PeerPath>>,
    pending: PendingProbes,
}

impl PacketIo {
    /// `dice` are random numbers by which replies are recognized. A host that does not see our packets cannot guess them.
    pub(super) fn new(dice: [u16; 2]) -> Self {
        let marks = Marks { echo: dice[0], port: CLOSED_PORT };
        let kernel =
            Kernel::open().inspect_err(|error| debug!("cannot open netlink for probes: {error}")).ok();
        Self {
            marks,
            node: None,
            kernel,
            sockets: Sockets::new(marks),
            next_hops: NextHops::default(),
            own: OwnAddresses::default(),
            peers: Arc::default(),
            pending: PendingProbes::new(dice[1]),
        }
    }

    /// Sets the peers to probe, and the node to probe from.
    pub(super) fn set_peers(&mut self, node: Option<&Node>, peers: &Arc<Vec<PeerPath>>, now: Duration) {
        if self.node.as_ref().map(|node| &node.uplink) != node.map(|node| &node.uplink) {
            self.own.hasten(now);
        }
        (self.node, self.peers) = (node.cloned(), peers.clone());
        self.refresh(now);
    }

    /// Reads this node's devices and neighbours again if that is due.
    pub(super) fn refresh_if_due(&mut self, now: Duration) {
        if self.sockets.is_due(now) && self.node.is_some() {
            self.refresh(now);
        }
    }

    fn refresh(&mut self, now: Duration) {
        self.sockets.refresh(now);
        let Some(node) = &self.node else { return };
        let segment = self.peers.iter().filter(|peer| peer.on_link);
        let segment: BTreeMap<IpNet, IpAddr> = segment.map(|peer| (peer.subnet, peer.public_ip)).collect();
        let uplink = self.sockets.link(node.uplink.link).filter(|_| !segment.is_empty()).cloned();
        self.sockets.watch(uplink.as_ref().filter(|link| link.resolves));
        let read = |kernel: &mut Kernel| {
            kernel
                .neighbours(uplink.as_ref()?)
                .inspect_err(|error| debug!("cannot read neighbours for probes: {error}"))
                .ok()
        };
        let neighbours = self.kernel.as_mut().and_then(read).unwrap_or_default();
        self.next_hops.update(&segment, &neighbours);
    }

    /// Asks all machines of the segment, if that is due, whether a second one has an address of ours.
    pub(super) fn check_own(&mut self, now: Duration) {
        if now < self.own.due() {
            return;
        }
        self.own.begin(now);
        let Some(uplink) = self.node.as_ref().map(|node| node.uplink.clone()) else { return };
        let link = self.sockets.link(uplink.link).filter(|link| link.resolves);
        let Some(mac) = link.and_then(|link| link.mac) else { return };
        for target in uplink.addresses() {
            let (kind, request) = own_address::request(mac, target);
            self.sockets.frame(uplink.link, kind, frame::group_of(target), &request, now);
        }
    }

    /// Returns the second machine that has an address of ours, if there is one.
    pub(super) fn conflict(&self) -> Option<AddressConflict> {
        self.own.conflict()
    }

    /// Sends a probe. Returns a sample if the reply is known without sending. `unsure` means that nothing has come back
    /// lately: all machines of the segment may get a request for the next hop.
    pub(super) fn ask(
        &mut self,
        peer: &PeerPath,
        probe: Probe,
        unsure: bool,
        now: Duration,
    ) -> Option<Sample> {
        let asked = match probe {
            Probe::NextHop => self.ask_next_hop(peer, unsure, now),
            Probe::Node => self.ask_node(peer, probe, ECHO_SIZE, now),
            Probe::NodeSized(size) => self.ask_node(peer, probe, size, now),
            Probe::Path => self.ask_path(peer, probe, ECHO_SIZE, now),
            Probe::PathSized(size) => self.ask_path(peer, probe, size, now),
            Probe::There => self.ask_there(peer, now),
            Probe::Direct => self.ask_direct(peer, now),
            Probe::Checksum => self.ask_checksum(peer, now),
        };
        let answer = asked.err()?;
        if answer == Answer::Impossible {
            // The missing address may be there by now.
            self.sockets.refresh_soon(now);
        }
        Some(Sample { probe, sent: now, answer })
    }

    fn ask_next_hop(&mut self, peer: &PeerPath, unsure: bool, now: Duration) -> SendResult {
        let uplink = self.uplink()?;
        let resolves = self.sockets.link(uplink).is_some_and(|link| link.resolves);
        let asks = resolves && peer.on_link && !self.next_hops.is_static(peer.public_ip);
        self.address(peer.public_ip).filter(|_| asks).ok_or(Answer::Impossible)?;
        match self.next_hops.unicast_mac(peer.public_ip).filter(|_| !unsure) {
            Some(mac) => self.ask_who_has(peer, Some(mac), now),
            None => {
                self.next_hops.ask_all(peer.subnet);
                Ok(())
            }
        }
    }

    /// Asks all machines about the peers whose turn it is; `peer` finds a peer by its subnet.
    pub(super) fn ask_all<'a>(&mut self, peer: impl Fn(IpNet) -> Option<&'a PeerPath>, now: Duration) {
        while let Some(turn) = self.next_hops.turn(now) {
            if let Some(peer) = peer(turn) {
                // The request was possible when it was queued.
                let _ = self.ask_who_has(peer, None, now);
            }
        }
    }

    fn ask_who_has(&mut self, peer: &PeerPath, known: Option<Mac>, now: Duration) -> SendResult {
        let (uplink, target) = (self.uplink()?, peer.public_ip);
        let link = self.sockets.link(uplink).ok_or(Answer::Impossible)?;
        let own =
            self.address(target).filter(|own| link.addresses.contains(own)).ok_or(Answer::Impossible)?;
        let mac = link.mac.ok_or(Answer::Impossible)?;
        let (kind, question) = match (own, target) {
            (IpAddr::V4(own), IpAddr::V4(target)) => (EtherType::Arp, frame::arp_request(mac, own, target)),
            (IpAddr::V6(own), IpAddr::V6(target)) => {
                (EtherType::Ipv6, frame::solicitation(mac, own, target, known.is_some()))
            }
            _ => return Err(Answer::Impossible),
        };
        let number =
            self.add_pending(PeerProbe { peer, probe: Probe::NextHop }, target, ProbeState::Open, now);
        let to = known.unwrap_or_else(|| frame::group_of(target));
        self.send_pending(number, |sockets| sockets.frame(uplink, kind, to, &question, now));
        Ok(())
    }

    fn ask_node(&mut self, peer: &PeerPath, probe: Probe, size: u16, now: Duration) -> SendResult {
        let from = self.address(peer.public_ip).ok_or(Answer::Impossible)?;
        self.send_echo(PeerProbe { peer, probe }, Endpoints { from, to: peer.public_ip }, size, now)
    }

    fn ask_path(&mut self, peer: &PeerPath, probe: Probe, size: u16, now: Duration) -> SendResult {
        let ends = self.pod_endpoints(peer).ok_or(Answer::Impossible)?;
        self.send_echo(PeerProbe { peer, probe }, ends, size, now)
    }

    /// Sends an echo by the kernel's routes.
    fn send_echo(&mut self, asked: PeerProbe, ends: Endpoints, size: u16, now: Duration) -> SendResult {
        if !self.is_routed(asked.peer, now)? {
            return Ok(());
        }
        let Some(number) = self.add_pending(asked, ends.to, ProbeState::Open, now) else { return Ok(()) };
        let packet = frame::echo(ends, self.marks.echo, number, size);
        match self.send_pending(Some(number), |sockets| sockets.packet(ends.to, &packet, now)) {
            SendOutcome::TooBig => Err(Answer::TooBig { mtu: self.mtu_of_link(asked) }),
            _ => Ok(()),
        }
    }

    /// Returns true if the kernel may route a packet to that peer. To find an unknown next hop, the kernel would ask
    /// all machines of the segment again and again. We ask them instead, in the peer's turn, and return false until
    /// then. The error `Lost` means that no machine has replied.
    fn is_routed(&mut self, peer: &PeerPath, now: Duration) -> Result<bool, Answer> {
        let Ok(uplink) = self.uplink() else { return Ok(true) };
        let resolves = self.sockets.link(uplink).is_some_and(|link| link.resolves);
        let kind = match peer.public_ip {
            IpAddr::V4(_) => EtherType::Arp,
            IpAddr::V6(_) => EtherType::Ipv6,
        };
        if !(resolves && peer.on_link && self.sockets.listen(uplink, kind, now)) {
            return Ok(true);
        }
        let mut lost = Ok(false);
        match self.next_hops.reachability(peer.public_ip) {
            Reachability::Known => return Ok(true),
            Reachability::Unknown => {}
            Reachability::Silent => lost = Err(Answer::Lost),
        }
        self.next_hops.ask_all(peer.subnet);
        lost
    }

    /// Sends the echo in a frame, since traffic rules would give a routed packet another source.
    fn ask_there(&mut self, peer: &PeerPath, now: Duration) -> SendResult {
        let (from, to) = (self.address(peer.public_ip), self.pod_endpoints(peer).map(|ends| ends.to));
        let ends = Endpoints { from: from.ok_or(Answer::Impossible)?, to: to.ok_or(Answer::Impossible)? };
        let route = match (peer.path, peer.tunnel) {
            (Path::Direct, _) => self.direct_route(peer)?,
            // A device without MACs ignores the one in the frame.
            (Path::Tunnel(_), Some(tunnel)) => {
                Some(FrameRoute { link: tunnel.link, mac: tunnel.mac.unwrap_or_default() })
            }
            _ => return Err(Answer::Impossible),
        };
        // The judge compares it with echoes that the kernel routes.
        match (self.is_routed(peer, now)?, route) {
            (true, Some(route)) => {
                self.send_framed(PeerProbe { peer, probe: Probe::There }, ends, route, now)
            }
            _ => Ok(()),
        }
    }

    fn ask_direct(&mut self, peer: &PeerPath, now: Duration) -> SendResult {
        let ends = self.pod_endpoints(peer).filter(|_| peer.on_link).ok_or(Answer::Impossible)?;
        let Some(route) = self.direct_route(peer)? else { return Ok(()) };
        self.send_framed(PeerProbe { peer, probe: Probe::Direct }, ends, route, now)
    }

    /// Returns the route through the uplink to the peer's next hop; `None` until a machine has replied for it.
    fn direct_route(&self, peer: &PeerPath) -> Result<Option<FrameRoute>, Answer> {
        let uplink = self.uplink()?;
        let link = self.sockets.link(uplink).ok_or(Answer::Impossible)?;
        let mac = if link.resolves { self.next_hops.mac(peer.public_ip) } else { Some(Mac::default()) };
        // A link with MACs but without ARP has them in the kernel's table, where an administrator put them.
        let mac = mac.filter(|mac| link.mac.is_none() || mac.is_unicast());
        let mac = mac.or_else(|| self.next_hops.mac(peer.public_ip));
        Ok(mac.map(|mac| FrameRoute { link: uplink, mac }))
    }

    /// Sends an echo in a frame. The reply belongs to no connection that the kernel tracks. It is received on every link
    /// that it may come by.
    fn send_framed(
        &mut self,
        asked: PeerProbe,
        ends: Endpoints,
        route: FrameRoute,
        now: Duration,
    ) -> SendResult {
        let kind = EtherType::of(Family::of(ends.to));
        let links = asked.peer.tunnel.map(|tunnel| tunnel.link).into_iter().chain([self.uplink()?]);
        for link in links {
            self.sockets.listen(link, kind, now);
        }
        let Some(number) = self.add_pending(asked, ends.to, ProbeState::Open, now) else { return Ok(()) };
        let packet = frame::echo(ends, self.marks.echo, number, ECHO_SIZE);
        self.send_pending(Some(number), |sockets| sockets.frame(route.link, kind, route.mac, &packet, now));
        Ok(())
    }

    fn ask_checksum(&mut self, peer: &PeerPath, now: Duration) -> SendResult {
        let ends = self.pod_endpoints(peer).ok_or(Answer::Impossible)?;
        if self.is_routed(peer, now) != Ok(true) {
            return Ok(());
        }
        let Ok(port) = sockets::datagram(ends, CLOSED_PORT, &OFFLOADED) else { return Ok(()) };
        let state = ProbeState::Datagrams { port, offloaded: false, complete: false };
        let number = self.add_pending(PeerProbe { peer, probe: Probe::Checksum }, ends.to, state, now);
        let packet = frame::datagram(ends, port, CLOSED_PORT, &COMPLETE);
        self.send_pending(number, |sockets| sockets.packet(ends.to, &packet, now));
        Ok(())
    }

    /// Records a probe that is about to be sent; `None` if too many wait for a reply.
    fn add_pending(
        &mut self,
        asked: PeerProbe,
        target: IpAddr,
        state: ProbeState,
        at: Duration,
    ) -> Option<Number> {
        self.pending.add(PendingProbe { peer: asked.peer.subnet, probe: asked.probe, target, at, state })
    }

    /// Sends a recorded probe. If it could not even be tried, it is no loss.
    fn send_pending(
        &mut self,
        number: Option<Number>,
        send: impl FnOnce(&mut Sockets) -> SendOutcome,
    ) -> SendOutcome {
        let Some(number) = number else { return SendOutcome::NoSocket };
        let sending = send(&mut self.sockets);
        if matches!(sending, SendOutcome::TooBig | SendOutcome::NoSocket) {
            self.pending.discard(number.sequence);
        }
        sending
    }

    fn uplink(&self) -> Result<LinkName, Answer> {
        self.node.as_ref().map(|node| node.uplink.link).ok_or(Answer::Impossible)
    }

    /// Returns our own address on the uplink to reach `target` from.
    fn address(&self, target: IpAddr) -> Option<IpAddr> {
        self.node.as_ref()?.uplink.address(Family::of(target))
    }

    /// Returns the ends of an echo from our pod subnet to the peer's. A VTEP has the first address, a bridge another one.
    fn pod_endpoints(&self, peer: &PeerPath) -> Option<Endpoints> {
        let own = self.node.as_ref()?.subnet.of(Family::of(peer.subnet.addr()))?;
        let by_tunnel = peer.tunnel.is_some();
        let inside = self.sockets.addresses().filter(|ip| own.contains(ip));
        let from = inside.min_by_key(|ip| ((*ip == own.network()) != by_tunnel, *ip))?;
        let to = if by_tunnel { peer.subnet.network() } else { second(peer.subnet.network()) };
        Some(Endpoints { from, to })
    }

    fn mtu_of_link(&self, PeerProbe { peer, probe }: PeerProbe) -> u16 {
        let uplink = self.node.as_ref().map_or(0, |node| node.uplink.mtu);
        let tunnel = peer.tunnel.filter(|_| peer.path.is_tunnel() && matches!(probe, Probe::PathSized(_)));
        tunnel.map_or(uplink, |tunnel| tunnel.mtu).try_into().unwrap_or(u16::MAX)
    }

    /// Returns the reason why a socket could not be opened, if one is missing.
    pub(super) fn refused(&self) -> Option<&str> {
        self.sockets.refused()
    }

    /// Returns the sockets that replies come in by.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.receivers()
    }

    /// Returns the number of probes that wait for a reply.
    pub(super) fn open(&self) -> usize {
        self.pending.open()
    }

    /// Returns the time at which something is due even if no packet comes in.
    pub(super) fn due(&self) -> Option<Duration> {
        let own = self.node.is_some().then(|| self.own.due());
        self.pending.due().into_iter().chain(self.next_hops.due()).chain(own).min()
    }

    /// Returns the peers whose next hop has failed or changed in the kernel's table. Queues a request to all machines
    /// about each.
    pub(super) fn changed_next_hops(&mut self) -> Vec<IpNet> {
        let mut peers = Vec::new();
        for (ip, mac) in self.sockets.neighbour_events() {
            if self.next_hops.neighbour_event(ip, mac) {
                let about = self.peers.iter().filter(|peer| peer.on_link && peer.public_ip == ip);
                about.for_each(|peer| {
                    self.next_hops.ask_all(peer.subnet);
                    peers.push(peer.subnet);
                });
            }
        }
        peers
    }

    /// Returns samples of what has come in, then of probes that have expired. A probe expires once everything is read that
    /// came in within its time. So a reply that waits behind others is no loss, and packets that never end hide none.
    pub(super) fn receive(&mut self, now: Duration) -> Vec<PeerSample> {
        let mut samples = Vec::new();
        let (all, behind) = self.sockets.receive(self.uplink().ok());
        for (received, age) in all {
            samples.extend(self.sample_of(received, now.saturating_sub(age)));
        }
        while let Some((sent, answer)) = self.pending.expire(now.saturating_sub(behind)) {
            if sent.probe == Probe::NextHop && answer == Some(Answer::Lost) {
                self.next_hops.record_loss(sent.target);
            }
            samples.extend(answer.map(|answer| news_of(&sent, answer)));
        }
        samples
    }

    /// Records that the peer's next hop was reached, if the peer is on the segment.
    fn record_reached(&mut self, peer: IpNet) {
        let at = self.peers.binary_search_by_key(&peer, |known| known.subnet);
        if let Some(peer) = at.ok().and_then(|at| self.peers.get(at)).filter(|peer| peer.on_link) {
            self.next_hops.record_reached(peer.public_ip);
        }
    }

    fn sample_of(&mut self, received: Reply, now: Duration) -> Option<PeerSample> {
        match received {
            Reply::Echo { from, id, number } if id == self.marks.echo => {
                let sent = self.pending.take_echo(from, number)?;
                if is_routed_echo(sent.probe) && self.next_hops.has_unanswered() {
                    self.record_reached(sent.peer);
                }
                Some(news_of(&sent, Answer::Came { after: now.saturating_sub(sent.at) }))
            }
            Reply::Neighbour { ip, mac } if self.address(ip) == Some(ip) => {
                if !self.sockets.macs().any(|own| own == mac) && !self.next_hops.is_proxy(mac) {
                    self.own.record_claim(ip, mac, now);
                }
                None
            }
            Reply::Neighbour { ip, mac } => {
                let (sent, count) = self.pending.record_claim(ip, mac)?;
                let also = self.next_hops.record_answer(ip, mac, count == 1);
                Some(news_of(&sent, Answer::Is { mac, also }))
            }
            Reply::Error { by, mtu, quoted: Quoted::Echo { to, id, sequence, cookie }, .. }
                if id == self.marks.echo =>
            {
                // An error that this node itself sends about a packet that it cannot deliver means no more than a loss.
                if mtu.is_none() && self.sockets.addresses().any(|own| own == by) {
                    return None;
                }
                let answer = mtu.map_or(Answer::Refused { by }, |mtu| Answer::TooBig { mtu });
                let Some(cookie) = cookie else {
                    self.pending.record_hint(to, sequence, answer);
                    return None;
                };
                let sent = self.pending.take_echo(to, Number { sequence, cookie })?;
                Some(news_of(&sent, answer))
            }
            Reply::Error { by, port: true, quoted: Quoted::Datagram { to, from_port, length }, .. }
                if by == to =>
            {
                let is_complete = usize::from(length) == UDP_HEADER + COMPLETE.len();
                let sent = self.pending.record_datagram(to, from_port, is_complete)?;
                Some(news_of(&sent, Answer::Checksums { offloaded: true, complete: true }))
            }
            _ => None,
        }
    }
}

/// Probe, and the peer that it is for.
#[derive(Clone, Copy)]
struct PeerProbe<'a> {
    peer: &'a PeerPath,
    probe: Probe,
}

/// Link that a frame leaves by, and its destination MAC.
#[derive(Clone, Copy)]
struct FrameRoute {
    link: LinkName,
    mac: Mac,
}

/// `Err` is the reply that is known without sending.
type SendResult = Result<(), Answer>;

fn news_of(sent: &PendingProbe, answer: Answer) -> PeerSample {
    (sent.peer, Sample { probe: sent.probe, sent: sent.at, answer })
}

/// Returns true for an echo by the kernel's routes.
fn is_routed_echo(probe: Probe) -> bool {
    matches!(probe, Probe::Node | Probe::NodeSized(_) | Probe::Path | Probe::PathSized(_))
}

/// Returns the address after the first one of a subnet.
fn second(first: IpAddr) -> IpAddr {
    match first {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() | 1).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() | 1).into(),
    }
}

#[cfg(test)]
mod tests;
