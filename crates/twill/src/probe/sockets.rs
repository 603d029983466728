//! Sockets that probes leave by and replies come in by. They are opened on first use. Unused ones are closed, since a
//! socket on a link inspects every packet of that link. A socket that cannot be opened is logged and retried later.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use kernel::packet::{EtherType, Interface, Marks, Received, Socket, interfaces, neighbour_event};
use plan::{Family, LinkName, Mac};
use tracing::{debug, warn};

use super::frame::{self, Endpoints, Reply};
use crate::errno::WithSocketRemedy;

/// Time until a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Time between two reads of the devices and their addresses.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum time until the next read if something is missing.
const REFRESH_SOON: Duration = Duration::from_secs(5);
/// Time without use after which a socket on a link is closed.
const CLOSE_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of packets read from one socket at a time, so that a flood does not stop the probes.
pub(super) const MAX_PACKETS_AT_ONCE: usize = 256;
/// Size of the largest packet, bytes.
const MAX_PACKET_BYTES: usize = 64 * 1024;

/// Outcome of sending a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendOutcome {
    Sent,
    /// The packet is too big for the link.
    TooBig,
    /// The kernel did not send the packet: no route, a filter, or the link is down.
    Failed,
    /// No socket could be opened for the packet.
    NoSocket,
}

/// Key of a socket: a link, or all of them, and the kind of frame.
type SocketKey = (Option<LinkName>, EtherType);

/// All sockets of the prober.
pub(super) struct Sockets {
    marks: Marks,
    links: BTreeMap<LinkName, Interface>,
    /// Time at which the devices are read again.
    next_refresh: Duration,
    /// Sockets for packets by the kernel's routes, IPv4 and IPv6.
    routed: [Option<RoutedSockets>; 2],
    /// Socket for the kernel's neighbour events (entry failed, or MAC set), with the index of its device.
    neighbour_socket: Option<(usize, Socket)>,
    /// Sockets on single links.
    on_links: Vec<LinkSocket>,
    /// Earliest time to open a socket again that could not be opened.
    retry: BTreeMap<SocketKey, Duration>,
    /// Sockets that could not be opened when last tried, with the error.
    refused: BTreeMap<SocketKey, Box<str>>,
    buffer: Vec<u8>,
}

/// Sockets of one family for packets by the kernel's routes.
struct RoutedSockets {
    sender: Socket,
    answers: Socket,
}

/// Socket on one link.
struct LinkSocket {
    link: LinkName,
    kind: EtherType,
    index: usize,
    mac: Option<Mac>,
    socket: Socket,
    used: Duration,
}

impl Sockets {
    pub(super) fn new(marks: Marks) -> Self {
        let (links, retry, next_refresh) = (BTreeMap::new(), BTreeMap::new(), Duration::ZERO);
        let (routed, neighbour_socket, buffer) = ([None, None], None, vec![0; MAX_PACKET_BYTES]);
        let refused = BTreeMap::new();
        Self {
            marks,
            links,
            next_refresh,
            routed,
            neighbour_socket,
            on_links: Vec::new(),
            retry,
            refused,
            buffer,
        }
    }

    /// Returns the device of that name, as last read.
    pub(super) fn link(&self, name: LinkName) -> Option<&Interface> {
        self.links.get(&name)
    }

    /// Returns every address of this node.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.links.values().flat_map(|link| link.addresses.iter().copied())
    }

    /// Returns the MAC of every device of this node.
    pub(super) fn macs(&self) -> impl Iterator<Item = Mac> {
        self.links.values().filter_map(|link| link.mac)
    }

    /// Returns true if it is time to read the devices.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.next_refresh
    }

    /// Brings the next read of the devices forward, because something is missing or has changed.
    pub(super) fn refresh_soon(&mut self, now: Duration) {
        self.next_refresh = self.next_refresh.min(now + REFRESH_SOON);
    }

    /// Reads the devices, and closes sockets on links that are gone, have changed, or are not used any more.
    pub(super) fn refresh(&mut self, now: Duration) {
        self.next_refresh = now + REFRESH_INTERVAL;
        match interfaces() {
            Ok(links) => self.links = links,
            Err(error) => warn!("cannot read addresses; probes keep the former source addresses: {error}"),
        }
        let links = &self.links;
        self.refused.retain(|(link, _), _| link.is_none_or(|link| links.contains_key(&link)));
        self.on_links.retain(|link_socket| {
            let at = links.get(&link_socket.link).map(|link| (link.index(), link.mac));
            let is_there = at == Some((link_socket.index, link_socket.mac));
            is_there && now < link_socket.used + CLOSE_AFTER
        });
    }

    /// Returns the reason why a socket could not be opened, if one is missing.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.values().next().map(AsRef::as_ref)
    }

    /// Subscribes to the kernel's neighbour events on that device; `None` ends the subscription.
    pub(super) fn watch(&mut self, link: Option<&Interface>) {
        let index = link.map(Interface::index);
        if self.neighbour_socket.as_ref().map(|(index, _)| *index) == index {
            return;
        }
        let open = |link: &Interface| {
            Some((
                link.index(),
                Socket::neighbour_events(link)
                    .inspect_err(|error| debug!("cannot watch neighbours for probes: {error}"))
                    .ok()?,
            ))
        };
        self.neighbour_socket = link.and_then(open);
    }

    /// Returns the neighbours of all events received, with the MAC that the kernel has now. `None` means that its requests
    /// got no reply.
    pub(super) fn neighbour_events(&mut self) -> Vec<(IpAddr, Option<Mac>)> {
        let (mut all, buffer) = (Vec::new(), &mut self.buffer);
        if let Some((_, socket)) = &self.neighbour_socket {
            drain(socket, buffer, |datagram, _| all.extend(neighbour_event(datagram)));
        }
        all
    }

    /// Sends an IP packet the way that the kernel routes it.
    pub(super) fn packet(&mut self, to: IpAddr, packet: &[u8], now: Duration) -> SendOutcome {
        match self.routed(Family::of(to), now) {
            Some(routed) => sending(routed.sender.send_to(packet, to)),
            None => SendOutcome::NoSocket,
        }
    }

    fn routed(&mut self, family: Family, now: Duration) -> Option<&RoutedSockets> {
        let key = family as usize;
        if self.routed[key].is_none() {
            let marks = self.marks;
            let routed = self.open((None, EtherType::of(family)), now, || {
                let answers = Socket::answers(family, marks)?;
                Ok(RoutedSockets { sender: Socket::sender(family)?, answers })
            });
            self.routed[key] = routed;
        }
        self.routed[key].as_ref()
    }

    /// Sends the packet in a frame of that kind out of that link. `to` is the destination if the link has MACs.
    pub(super) fn frame(
        &mut self,
        link: LinkName,
        kind: EtherType,
        to: Mac,
        packet: &[u8],
        now: Duration,
    ) -> SendOutcome {
        let Some(link_socket) = self.link_socket(link, kind, now) else { return SendOutcome::NoSocket };
        let sent = match link_socket.mac {
            Some(own) => link_socket.socket.send(&frame::ethernet(to, own, kind, packet)),
            None => link_socket.socket.send(packet),
        };
        let sending = sending(sent);
        if sending == SendOutcome::Failed {
            self.refresh_soon(now);
        }
        sending
    }

    /// Opens the socket on that link for that kind of frame. Returns false if it cannot.
    pub(super) fn listen(&mut self, link: LinkName, kind: EtherType, now: Duration) -> bool {
        self.link_socket(link, kind, now).is_some()
    }

    fn link_socket(&mut self, link: LinkName, kind: EtherType, now: Duration) -> Option<&LinkSocket> {
        if let Some(key) =
            self.on_links.iter().position(|link_socket| (link_socket.link, link_socket.kind) == (link, kind))
        {
            self.on_links[key].used = now;
            return self.on_links.get(key);
        }
        let Some(interface) = self.links.get(&link).cloned() else {
            self.refresh_soon(now);
            return None;
        };
        let marks = self.marks;
        let socket = self.open((Some(link), kind), now, || Socket::frames(&interface, kind, marks))?;
        self.on_links.push(LinkSocket {
            link,
            kind,
            mac: interface.mac,
            index: interface.index(),
            socket,
            used: now,
        });
        self.on_links.last()
    }

    fn open<T>(&mut self, key: SocketKey, now: Duration, open: impl FnOnce() -> io::Result<T>) -> Option<T> {
        self.retry.retain(|_, retry| now < *retry);
        if self.retry.contains_key(&key) {
            return None;
        }
        match open() {
            Ok(opened) => {
                self.refused.remove(&key);
                Some(opened)
            }
            Err(error) if is_gone(&error) => {
                self.refresh_soon(now);
                None
            }
            Err(error) => {
                self.retry.insert(key, now + RETRY);
                let what = key.0.map_or("packets".into(), |link| format!("frames of {link}"));
                self.refused.insert(key, format!("{what}: {error}").into());
                let wait = RETRY.as_secs();
                warn!("cannot probe peers, retrying in {wait} s: {}", WithSocketRemedy(&error));
                None
            }
        }
    }

    /// Returns the sockets that receive.
    pub(super) fn receivers(&self) -> impl Iterator<Item = &Socket> {
        let routed = self.routed.iter().flatten().map(|routed| &routed.answers);
        let neighbour_socket = self.neighbour_socket.iter().map(|(_, socket)| socket);
        routed.chain(self.on_links.iter().map(|link_socket| &link_socket.socket)).chain(neighbour_socket)
    }

    /// Returns what was received, each with its age, and the age from which on everything has been read: 0 if no packets
    /// are left. Answers about neighbours count only if they come from the uplink.
    pub(super) fn receive(&mut self, uplink: Option<LinkName>) -> (Vec<(Reply, Duration)>, Duration) {
        let (mut all, mut behind, buffer) = (Vec::new(), Duration::ZERO, &mut self.buffer);
        for (routed, family) in self.routed.iter().zip(Family::ALL) {
            let Some(routed) = routed else { continue };
            let left = drain(&routed.answers, buffer, |packet, it| {
                let reply = match family {
                    Family::Ipv4 => frame::read_packet(None, packet),
                    Family::Ipv6 => it.from.and_then(|from| frame::read_icmp(from, packet)),
                };
                all.extend(reply.map(|reply| (reply, it.age)));
            });
            behind = behind.max(left);
        }
        for link_socket in &self.on_links {
            let left = drain(&link_socket.socket, buffer, |packet, it| {
                let header = if link_socket.mac.is_some() { frame::ETHERNET } else { 0 };
                let source = packet.get(6..12).and_then(|mac| mac.try_into().ok()).map(Mac);
                let inner = packet.get(header..).unwrap_or_default();
                let reply = frame::read_frame(link_socket.kind, source.filter(|_| header > 0), inner);
                let foreign = Some(link_socket.link) != uplink;
                let reply = reply.filter(|reply| !(foreign && matches!(reply, Reply::Neighbour { .. })));
                all.extend(reply.map(|reply| (reply, it.age)));
            });
            behind = behind.max(left);
        }
        (all, behind)
    }
}

/// Reads up to [`MAX_PACKETS_AT_ONCE`] packets, in the order in which they came in. Returns the age of the last one; 0 if no packets
/// are left.
fn drain(socket: &Socket, buffer: &mut [u8], mut each: impl FnMut(&[u8], Received)) -> Duration {
    let mut last = Duration::ZERO;
    for _ in 0..MAX_PACKETS_AT_ONCE {
        let Some(received) = socket.receive(buffer) else { return Duration::ZERO };
        last = received.age;
        each(&buffer[..received.length], received);
    }
    last
}

/// Sends a datagram whose checksum is left to the devices. Returns its source port.
pub(super) fn datagram(ends: Endpoints, port: u16, payload: &[u8]) -> io::Result<u16> {
    let socket = std::net::UdpSocket::bind((ends.from, 0))?;
    socket.set_nonblocking(true)?;
    socket.send_to(payload, (ends.to, port))?;
    Ok(socket.local_addr()?.port())
}

fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let gone = [Errno::NODEV, Errno::NXIO, Errno::NETDOWN];
    gone.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn sending(sent: io::Result<()>) -> SendOutcome {
    match sent {
        Ok(()) => SendOutcome::Sent,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {
            SendOutcome::TooBig
        }
        Err(_) => SendOutcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_cannot_be_opened_blocks_no_other() {
        let mut sockets = Sockets::new(Marks { echo: 1, port: 2 });
        let [one, other] = [EtherType::Ipv4, EtherType::Ipv6].map(|kind| (None, kind));
        let refused = || Err::<(), _>(io::ErrorKind::PermissionDenied.into());
        assert_eq!(sockets.open(one, Duration::ZERO, refused), None);
        assert_eq!(sockets.open(one, Duration::from_secs(29), || Ok(())), None);
        assert_eq!(sockets.open(other, Duration::from_secs(29), || Ok(())), Some(()));
        assert_eq!(sockets.refused(), Some("packets: permission denied"));
        assert_eq!(sockets.open(one, RETRY, || Ok(())), Some(()));
        assert_eq!(sockets.refused(), None);
    }
}
