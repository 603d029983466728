//! Sends each kind of probe, and turns what comes back into samples. The judges choose the probes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kernel::Kernel;
use kernel::packet::{EtherType, Marks, Socket};
use plan::node::Node;
use plan::verdict::{Answer, Probe, Sample};
use plan::{Family, LinkName, Mac, Path, PeerPath};
use tracing::debug;

use super::frame::{self, Ends, Number, Quoted, Reply};
use super::next_hops::{NextHops, Reach};
use super::own_address::{self, OwnAddresses, Rival};
use super::sent::{Outstanding, Sent, State};
use super::wires::{self, Sending, Wires};

/// Size of the IP packet of an ordinary echo, bytes.
const SMALL: u16 = 64;
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
pub(super) type News = (IpNet, Sample);

/// Sender of the probes, and receiver of the replies.
pub(super) struct Post {
    marks: Marks,
    node: Option<Node>,
    /// Reads the uplink's neighbours; `None` if netlink could not be opened.
    kernel: Option<Kernel>,
    wires: Wires,
    next_hops: NextHops,
    own: OwnAddresses,
    /// Peers by subnet.
    peers: Arc<Vec<PeerPath>>,
    sent: Outstanding,
}

impl Post {
    /// `dice` are random numbers by which replies are recognized. A host that does not see our packets cannot guess them.
    pub(super) fn new(dice: [u16; 2]) -> Self {
        let marks = Marks { echo: dice[0], port: CLOSED_PORT };
        let kernel =
            Kernel::open().inspect_err(|error| debug!("cannot open netlink for probes: {error}")).ok();
        Self {
            marks,
            node: None,
            kernel,
            wires: Wires::new(marks),
            next_hops: NextHops::default(),
            own: OwnAddresses::default(),
            peers: Arc::default(),
            sent: Outstanding::new(dice[1]),
        }
    }

    /// Sets the peers to probe, and the node to probe from.
    pub(super) fn follow(&mut self, node: Option<&Node>, peers: &Arc<Vec<PeerPath>>, now: Duration) {
        if self.node.as_ref().map(|node| &node.uplink) != node.map(|node| &node.uplink) {
            self.own.hasten(now);
        }
        (self.node, self.peers) = (node.cloned(), peers.clone());
        self.look(now);
    }

    /// Reads this node's devices and neighbours again if that is due.
    pub(super) fn look_if_due(&mut self, now: Duration) {
        if self.wires.is_due(now) && self.node.is_some() {
            self.look(now);
        }
    }

    fn look(&mut self, now: Duration) {
        self.wires.look(now);
        let Some(node) = &self.node else { return };
        let segment = self.peers.iter().filter(|peer| peer.on_link);
        let segment: BTreeMap<IpNet, IpAddr> = segment.map(|peer| (peer.subnet, peer.public_ip)).collect();
        let uplink = self.wires.link(node.uplink.link).filter(|_| !segment.is_empty()).cloned();
        self.wires.watch(uplink.as_ref().filter(|link| link.resolves));
        let read = |kernel: &mut Kernel| {
            kernel
                .neighbours(uplink.as_ref()?)
                .inspect_err(|error| debug!("cannot read neighbours for probes: {error}"))
                .ok()
        };
        let neighbours = self.kernel.as_mut().and_then(read).unwrap_or_default();
        self.next_hops.follow(&segment, &neighbours);
    }

    /// Asks all machines of the segment, if that is due, whether a second one has an address of ours.
    pub(super) fn check_own(&mut self, now: Duration) {
        if now < self.own.due() {
            return;
        }
        self.own.begin(now);
        let Some(uplink) = self.node.as_ref().map(|node| node.uplink.clone()) else { return };
        let link = self.wires.link(uplink.link).filter(|link| link.resolves);
        let Some(mac) = link.and_then(|link| link.mac) else { return };
        for target in uplink.addresses() {
            let (kind, request) = own_address::request(mac, target);
            self.wires.frame(uplink.link, kind, frame::group_of(target), &request, now);
        }
    }

    /// Returns the second machine that has an address of ours, if there is one.
    pub(super) fn rival(&self) -> Option<Rival> {
        self.own.rival()
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
            Probe::Node => self.ask_node(peer, probe, SMALL, now),
            Probe::NodeSized(size) => self.ask_node(peer, probe, size, now),
            Probe::Path => self.ask_path(peer, probe, SMALL, now),
            Probe::PathSized(size) => self.ask_path(peer, probe, size, now),
            Probe::There => self.ask_there(peer, now),
            Probe::Direct => self.ask_direct(peer, now),
            Probe::Checksum => self.ask_checksum(peer, now),
        };
        let answer = asked.err()?;
        if answer == Answer::Impossible {
            // The missing address may be there by now.
            self.wires.look_soon(now);
        }
        Some(Sample { probe, sent: now, answer })
    }

    fn ask_next_hop(&mut self, peer: &PeerPath, unsure: bool, now: Duration) -> Known {
        let uplink = self.uplink()?;
        let resolves = self.wires.link(uplink).is_some_and(|link| link.resolves);
        let asks = resolves && peer.on_link && !self.next_hops.is_static(peer.public_ip);
        self.address(peer.public_ip).filter(|_| asks).ok_or(Answer::Impossible)?;
        match self.next_hops.certain(peer.public_ip).filter(|_| !unsure) {
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

    fn ask_who_has(&mut self, peer: &PeerPath, known: Option<Mac>, now: Duration) -> Known {
        let (uplink, target) = (self.uplink()?, peer.public_ip);
        let link = self.wires.link(uplink).ok_or(Answer::Impossible)?;
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
        let number = self.note(Question { peer, probe: Probe::NextHop }, target, State::Open, now);
        let to = known.unwrap_or_else(|| frame::group_of(target));
        self.leaves(number, |wires| wires.frame(uplink, kind, to, &question, now));
        Ok(())
    }

    fn ask_node(&mut self, peer: &PeerPath, probe: Probe, size: u16, now: Duration) -> Known {
        let from = self.address(peer.public_ip).ok_or(Answer::Impossible)?;
        self.send_echo(Question { peer, probe }, Ends { from, to: peer.public_ip }, size, now)
    }

    fn ask_path(&mut self, peer: &PeerPath, probe: Probe, size: u16, now: Duration) -> Known {
        let ends = self.pod_ends(peer).ok_or(Answer::Impossible)?;
        self.send_echo(Question { peer, probe }, ends, size, now)
    }

    /// Sends an echo by the kernel's routes.
    fn send_echo(&mut self, asked: Question, ends: Ends, size: u16, now: Duration) -> Known {
        if !self.is_routed(asked.peer, now)? {
            return Ok(());
        }
        let Some(number) = self.note(asked, ends.to, State::Open, now) else { return Ok(()) };
        let packet = frame::echo(ends, self.marks.echo, number, size);
        match self.leaves(Some(number), |wires| wires.packet(ends.to, &packet, now)) {
            Sending::TooBig => Err(Answer::TooBig { mtu: self.mtu_of_link(asked) }),
            _ => Ok(()),
        }
    }

    /// Returns true if the kernel may route a packet to that peer. To find an unknown next hop, the kernel would ask
    /// all machines of the segment again and again. We ask them instead, in the peer's turn, and return false until
    /// then. The error `Lost` means that no machine has replied.
    fn is_routed(&mut self, peer: &PeerPath, now: Duration) -> Result<bool, Answer> {
        let Ok(uplink) = self.uplink() else { return Ok(true) };
        let resolves = self.wires.link(uplink).is_some_and(|link| link.resolves);
        let kind = match peer.public_ip {
            IpAddr::V4(_) => EtherType::Arp,
            IpAddr::V6(_) => EtherType::Ipv6,
        };
        if !(resolves && peer.on_link && self.wires.listen(uplink, kind, now)) {
            return Ok(true);
        }
        let mut lost = Ok(false);
        match self.next_hops.reach(peer.public_ip) {
            Reach::Known => return Ok(true),
            Reach::Unknown => {}
            Reach::Silent => lost = Err(Answer::Lost),
        }
        self.next_hops.ask_all(peer.subnet);
        lost
    }

    /// Sends the echo in a frame, since traffic rules would give a routed packet another source.
    fn ask_there(&mut self, peer: &PeerPath, now: Duration) -> Known {
        let (from, to) = (self.address(peer.public_ip), self.pod_ends(peer).map(|ends| ends.to));
        let ends = Ends { from: from.ok_or(Answer::Impossible)?, to: to.ok_or(Answer::Impossible)? };
        let way = match (peer.path, peer.tunnel) {
            (Path::Direct, _) => self.direct_way(peer)?,
            // A device without MACs ignores the one in the frame.
            (Path::Tunnel(_), Some(tunnel)) => {
                Some(Way { link: tunnel.link, mac: tunnel.mac.unwrap_or_default() })
            }
            _ => return Err(Answer::Impossible),
        };
        // The judge compares it with echoes that the kernel routes.
        match (self.is_routed(peer, now)?, way) {
            (true, Some(way)) => self.send_framed(Question { peer, probe: Probe::There }, ends, way, now),
            _ => Ok(()),
        }
    }

    fn ask_direct(&mut self, peer: &PeerPath, now: Duration) -> Known {
        let ends = self.pod_ends(peer).filter(|_| peer.on_link).ok_or(Answer::Impossible)?;
        let Some(way) = self.direct_way(peer)? else { return Ok(()) };
        self.send_framed(Question { peer, probe: Probe::Direct }, ends, way, now)
    }

    /// Returns the way through the uplink to the peer's next hop; `None` until a machine has replied for it.
    fn direct_way(&self, peer: &PeerPath) -> Result<Option<Way>, Answer> {
        let uplink = self.uplink()?;
        let link = self.wires.link(uplink).ok_or(Answer::Impossible)?;
        let mac = if link.resolves { self.next_hops.mac(peer.public_ip) } else { Some(Mac::default()) };
        // A link with MACs but without ARP has them in the kernel's table, where an administrator put them.
        let mac = mac.filter(|mac| link.mac.is_none() || mac.is_unicast());
        let mac = mac.or_else(|| self.next_hops.mac(peer.public_ip));
        Ok(mac.map(|mac| Way { link: uplink, mac }))
    }

    /// Sends an echo in a frame. The reply belongs to no connection that the kernel tracks. It is received on every link
    /// that it may come by.
    fn send_framed(&mut self, asked: Question, ends: Ends, way: Way, now: Duration) -> Known {
        let kind = EtherType::of(Family::of(ends.to));
        let links = asked.peer.tunnel.map(|tunnel| tunnel.link).into_iter().chain([self.uplink()?]);
        for link in links {
            self.wires.listen(link, kind, now);
        }
        let Some(number) = self.note(asked, ends.to, State::Open, now) else { return Ok(()) };
        let packet = frame::echo(ends, self.marks.echo, number, SMALL);
        self.leaves(Some(number), |wires| wires.frame(way.link, kind, way.mac, &packet, now));
        Ok(())
    }

    fn ask_checksum(&mut self, peer: &PeerPath, now: Duration) -> Known {
        let ends = self.pod_ends(peer).ok_or(Answer::Impossible)?;
        if self.is_routed(peer, now) != Ok(true) {
            return Ok(());
        }
        let Ok(port) = wires::datagram(ends, CLOSED_PORT, &OFFLOADED) else { return Ok(()) };
        let state = State::Datagrams { port, offloaded: false, complete: false };
        let number = self.note(Question { peer, probe: Probe::Checksum }, ends.to, state, now);
        let packet = frame::datagram(ends, port, CLOSED_PORT, &COMPLETE);
        self.leaves(number, |wires| wires.packet(ends.to, &packet, now));
        Ok(())
    }

    /// Records a probe that is about to be sent; `None` if too many wait for a reply.
    fn note(&mut self, asked: Question, target: IpAddr, state: State, at: Duration) -> Option<Number> {
        self.sent.add(Sent { peer: asked.peer.subnet, probe: asked.probe, target, at, state })
    }

    /// Sends a recorded probe. If it could not even be tried, it is no loss.
    fn leaves(&mut self, number: Option<Number>, send: impl FnOnce(&mut Wires) -> Sending) -> Sending {
        let Some(number) = number else { return Sending::Unable };
        let sending = send(&mut self.wires);
        if matches!(sending, Sending::TooBig | Sending::Unable) {
            self.sent.discard(number.sequence);
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
    fn pod_ends(&self, peer: &PeerPath) -> Option<Ends> {
        let own = self.node.as_ref()?.subnet.of(Family::of(peer.subnet.addr()))?;
        let by_tunnel = peer.tunnel.is_some();
        let inside = self.wires.addresses().filter(|ip| own.contains(ip));
        let from = inside.min_by_key(|ip| ((*ip == own.network()) != by_tunnel, *ip))?;
        let to = if by_tunnel { peer.subnet.network() } else { second(peer.subnet.network()) };
        Some(Ends { from, to })
    }

    fn mtu_of_link(&self, Question { peer, probe }: Question) -> u16 {
        let uplink = self.node.as_ref().map_or(0, |node| node.uplink.mtu);
        let tunnel = peer.tunnel.filter(|_| peer.path.is_tunnel() && matches!(probe, Probe::PathSized(_)));
        tunnel.map_or(uplink, |tunnel| tunnel.mtu).try_into().unwrap_or(u16::MAX)
    }

    /// Returns the reason why a socket could not be opened, if one is missing.
    pub(super) fn refused(&self) -> Option<&str> {
        self.wires.refused()
    }

    /// Returns the sockets that replies come in by.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.wires.sockets()
    }

    /// Returns the number of probes that wait for a reply.
    pub(super) fn open(&self) -> usize {
        self.sent.open()
    }

    /// Returns the time at which something is due even if no packet comes in.
    pub(super) fn due(&self) -> Option<Duration> {
        let own = self.node.is_some().then(|| self.own.due());
        self.sent.due().into_iter().chain(self.next_hops.due()).chain(own).min()
    }

    /// Returns the peers whose next hop has failed or changed in the kernel's table. Queues a request to all machines
    /// about each.
    pub(super) fn changed_next_hops(&mut self) -> Vec<IpNet> {
        let mut peers = Vec::new();
        for (ip, mac) in self.wires.neighbour_events() {
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
    pub(super) fn receive(&mut self, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        let (all, behind) = self.wires.receive(self.uplink().ok());
        for (received, age) in all {
            news.extend(self.understand(received, now.saturating_sub(age)));
        }
        while let Some((sent, answer)) = self.sent.expire(now.saturating_sub(behind)) {
            if sent.probe == Probe::NextHop && answer == Some(Answer::Lost) {
                self.next_hops.lost(sent.target);
            }
            news.extend(answer.map(|answer| news_of(&sent, answer)));
        }
        news
    }

    /// Records that the peer's next hop was reached, if the peer is on the segment.
    fn reached(&mut self, peer: IpNet) {
        let at = self.peers.binary_search_by_key(&peer, |known| known.subnet);
        if let Some(peer) = at.ok().and_then(|at| self.peers.get(at)).filter(|peer| peer.on_link) {
            self.next_hops.reached(peer.public_ip);
        }
    }

    fn understand(&mut self, received: Reply, now: Duration) -> Option<News> {
        match received {
            Reply::Echo { from, id, number } if id == self.marks.echo => {
                let sent = self.sent.echoed(from, number)?;
                if by_kernel(sent.probe) && self.next_hops.misses_any() {
                    self.reached(sent.peer);
                }
                Some(news_of(&sent, Answer::Came { after: now.saturating_sub(sent.at) }))
            }
            Reply::Neighbour { ip, mac } if self.address(ip) == Some(ip) => {
                if !self.wires.macs().any(|own| own == mac) && !self.next_hops.is_proxy(mac) {
                    self.own.claimed(ip, mac, now);
                }
                None
            }
            Reply::Neighbour { ip, mac } => {
                let (sent, count) = self.sent.claimed(ip, mac)?;
                let also = self.next_hops.record_answer(ip, mac, count == 1);
                Some(news_of(&sent, Answer::Is { mac, also }))
            }
            Reply::Error { by, mtu, quoted: Quoted::Echo { to, id, sequence, cookie }, .. }
                if id == self.marks.echo =>
            {
                // An error that this node itself sends about a packet that it cannot deliver means no more than a loss.
                if mtu.is_none() && self.wires.addresses().any(|own| own == by) {
                    return None;
                }
                let answer = mtu.map_or(Answer::Refused { by }, |mtu| Answer::TooBig { mtu });
                let Some(cookie) = cookie else {
                    self.sent.hinted(to, sequence, answer);
                    return None;
                };
                let sent = self.sent.echoed(to, Number { sequence, cookie })?;
                Some(news_of(&sent, answer))
            }
            Reply::Error { by, port: true, quoted: Quoted::Datagram { to, from_port, length }, .. }
                if by == to =>
            {
                let is_complete = usize::from(length) == UDP_HEADER + COMPLETE.len();
                let sent = self.sent.bounced(to, from_port, is_complete)?;
                Some(news_of(&sent, Answer::Checksums { offloaded: true, complete: true }))
            }
            _ => None,
        }
    }
}

/// Probe, and the peer that it is for.
#[derive(Clone, Copy)]
struct Question<'a> {
    peer: &'a PeerPath,
    probe: Probe,
}

/// Link that a frame leaves by, and its destination MAC.
#[derive(Clone, Copy)]
struct Way {
    link: LinkName,
    mac: Mac,
}

/// `Err` is the reply that is known without sending.
type Known = Result<(), Answer>;

fn news_of(sent: &Sent, answer: Answer) -> News {
    (sent.peer, Sample { probe: sent.probe, sent: sent.at, answer })
}

/// Returns true for an echo by the kernel's routes.
fn by_kernel(probe: Probe) -> bool {
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
