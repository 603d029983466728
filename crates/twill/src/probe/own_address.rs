//! Watch for a second machine on the segment that has one of this node's own addresses. Its requests have no address
//! of the sender (RFC 5227 section 2.1), so they spoil no cache.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use kernel::packet::{EtherType, Interface, Marks, Socket, interfaces};
use plan::{LinkName, Mac};

use super::frame::{self, Reply};

/// Time between two checks. Each costs one request to all machines of the segment.
const PERIOD: Duration = Duration::from_secs(60);
/// Time between two checks while a second machine is known, so that its end is seen soon.
const CONFLICT_PERIOD: Duration = Duration::from_secs(10);

/// Number of requests that are sent before the lease is taken.
const REQUESTS: usize = 3;
/// Time between two of these requests.
const REQUEST_INTERVAL: Duration = Duration::from_millis(300);
/// Time between two looks for a reply.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Result of asking the segment for other machines that have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// No other machine has replied.
    Nobody,
    /// The machine with this MAC has the address, too.
    Machine(Mac),
    /// The segment cannot be asked.
    Unknown,
}

/// Asks all machines of the link's segment for an address of this node, before the probes begin. Blocks for a second.
pub(crate) fn holder(link: LinkName, address: IpAddr) -> Holder {
    let links = interfaces().unwrap_or_default();
    let Some(interface) = links.get(&link).filter(|link| link.resolves) else { return Holder::Unknown };
    // Another card of this node may answer as well.
    let is_ours = |mac: Mac| links.values().any(|link| link.mac == Some(mac));
    ask(interface, address, is_ours).unwrap_or(Holder::Unknown)
}

/// Asks for the address. Returns `None` if nothing can be sent.
fn ask(link: &Interface, address: IpAddr, is_ours: impl Fn(Mac) -> bool) -> Option<Holder> {
    let own = link.mac?;
    let (kind, content) = request(own, address);
    let socket = Socket::frames(link, kind, Marks { echo: 0, port: 0 }).ok()?;
    let (request, mut buffer) = (frame::ethernet(frame::group_of(address), own, kind, &content), [0; 2048]);
    for _ in 0..REQUESTS {
        socket.send(&request).ok()?;
        let asked = Instant::now();
        while asked.elapsed() < REQUEST_INTERVAL {
            let Some(received) = socket.receive(&mut buffer) else {
                std::thread::sleep(POLL_INTERVAL);
                continue;
            };
            let packet = &buffer[..received.length.min(buffer.len())];
            let source = packet.get(6..12).and_then(|mac| mac.try_into().ok()).map(Mac);
            match frame::read_frame(kind, source, packet.get(frame::ETHERNET..).unwrap_or_default()) {
                Some(Reply::Neighbour { ip, mac }) if ip == address && !is_ours(mac) => {
                    return Some(Holder::Machine(mac));
                }
                _ => {}
            }
        }
    }
    Some(Holder::Nobody)
}

/// Makes the request for another machine with this address, without an address of the sender.
pub(super) fn request(mac: Mac, target: IpAddr) -> (EtherType, Vec<u8>) {
    match target {
        IpAddr::V4(ip) => (EtherType::Arp, frame::arp_request(mac, Ipv4Addr::UNSPECIFIED, ip)),
        IpAddr::V6(ip) => (EtherType::Ipv6, frame::solicitation(mac, Ipv6Addr::UNSPECIFIED, ip, false)),
    }
}

/// Second machine with an address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressConflict {
    pub(crate) address: IpAddr,
    /// MAC that replies for the address beside ours.
    pub(crate) mac: Mac,
}

/// State of the checks.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses {
    /// Time of the next check.
    due: Duration,
    conflict: Option<AddressConflict>,
    /// True if a second machine has replied since the last check began.
    answered: bool,
}

impl OwnAddresses {
    /// Returns the time of the next check.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Returns the second machine, if one has replied to the last check or the one before.
    pub(super) fn conflict(&self) -> Option<AddressConflict> {
        self.conflict
    }

    /// Brings the next check forward, because the node's addresses may have changed.
    pub(super) fn hasten(&mut self, now: Duration) {
        self.due = self.due.min(now);
    }

    /// Begins a check.
    pub(super) fn begin(&mut self, now: Duration) {
        if !self.answered {
            self.conflict = None;
        }
        self.answered = false;
        self.due = now + if self.conflict.is_some() { CONFLICT_PERIOD } else { PERIOD };
    }

    /// Records that a machine with this MAC, which is none of ours, has our address.
    pub(super) fn record_claim(&mut self, address: IpAddr, mac: Mac, now: Duration) {
        (self.conflict, self.answered) = (Some(AddressConflict { address, mac }), true);
        self.due = self.due.min(now + CONFLICT_PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_conflict_ends_after_two_clear_checks_in_a_row() {
        let mut own = OwnAddresses::default();
        let (address, mac) = ([192, 0, 2, 1].into(), Mac([2, 0, 0, 0, 0, 7]));
        let mut now = Duration::ZERO;
        own.begin(now);
        assert_eq!((own.conflict(), own.due()), (None, PERIOD));
        own.record_claim(address, mac, now);
        assert_eq!((own.conflict(), own.due()), (Some(AddressConflict { address, mac }), CONFLICT_PERIOD));
        for answered in [true, false] {
            now = own.due();
            own.begin(now);
            assert_eq!((own.conflict().is_some(), own.due()), (true, now + CONFLICT_PERIOD), "{answered}");
            if answered {
                own.record_claim(address, mac, now);
            }
        }
        now = own.due();
        own.begin(now);
        assert_eq!((own.conflict(), own.due()), (None, now + PERIOD));
    }
}
