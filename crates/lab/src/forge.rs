//! A forged VXLAN packet: UDP to a node's tunnel port, from any address of the sender. The frame inside asks the node's tunnel
//! device to deliver a datagram to a pod. The bytes are made here, without twill's code.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
};

use crate::ns::Ns;

const SENDER_MAC: [u8; 6] = [0x02, 0xba, 0xad, 0, 0, 1];
const UDP: u8 = 17;
const HOPS: u8 = 64;

/// Contents of the packet.
#[derive(Clone, Debug)]
pub struct Forgery {
    pub vni: u32,
    /// MAC address of the node's tunnel device, such as `02:00:00:00:00:01`.
    pub mac: String,
    /// Source and destination of the inner datagram, of one family.
    pub inner: (SocketAddr, SocketAddr),
    /// Payload of the inner datagram.
    pub said: String,
}

impl Forgery {
    /// Sends the packet from `own`, an address of the sender, to the tunnel port `to` of a node.
    pub fn send(&self, from: &Ns, own: IpAddr, to: SocketAddr) {
        let packet = self.packet();
        let sent = from.within(|| UdpSocket::bind((own, 0)).and_then(|socket| socket.send_to(&packet, to)));
        assert_eq!(sent.unwrap_or_else(|e| panic!("{own} to {to}: {e}")), packet.len());
    }

    /// Sends the packet in two fragments of IPv6, of which the first one has only the UDP header.
    pub fn send_in_fragments(&self, from: &Ns, own: Ipv6Addr, to: SocketAddrV6) {
        const FRAGMENT: u8 = 44;
        let (_, whole) = datagram(SocketAddr::from((own, 999)), to.into(), &self.packet());
        let (header, udp) = whole.split_at(40);
        let fragment = |part: &[u8], place: u16| {
            let length = u16::try_from(part.len() + 8).expect("a short packet");
            let next = [&[UDP, 0][..], &place.to_be_bytes(), &7_u32.to_be_bytes()].concat();
            let sizes = [&length.to_be_bytes()[..], &[FRAGMENT, HOPS]].concat();
            [&header[..4], &sizes, &header[8..], &next, part].concat()
        };
        let (first, rest) = udp.split_at(8);
        // The place of a fragment counts bytes in its upper 13 bits; bit 0 says that more follow.
        let fragments = [fragment(first, 1), fragment(rest, 8)];
        let target = SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, 0));
        from.within(|| {
            let raw = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
            let raw = raw.unwrap_or_else(|e| panic!("a raw socket: {e}"));
            for bytes in &fragments {
                let sent = sendto(raw.as_raw_fd(), bytes, &target, MsgFlags::empty());
                assert_eq!(sent, Ok(bytes.len()), "{own} to {to}");
            }
        });
    }

    fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0x08, 0, 0, 0];
        packet.extend((self.vni << 8).to_be_bytes());
        packet.extend(mac_bytes(&self.mac));
        packet.extend(SENDER_MAC);
        let (ethertype, datagram) = datagram(self.inner.0, self.inner.1, self.said.as_bytes());
        packet.extend(ethertype.to_be_bytes());
        packet.extend(datagram);
        packet
    }
}

fn mac_bytes(mac: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.filter(|bytes| bytes.len() == 6).unwrap_or_else(|| panic!("{mac} is no MAC address"))
}

/// Returns the ethertype and the IP packet, of the family of both addresses.
fn datagram(from: SocketAddr, to: SocketAddr, said: &[u8]) -> (u16, Vec<u8>) {
    let length = u16::try_from(said.len() + 8).expect("a short text");
    let udp = |checksum: u16| {
        let header = [from.port(), to.port(), length, checksum];
        [header.map(u16::to_be_bytes).concat(), said.to_vec()].concat()
    };
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let header = |checksum: u16| {
                let sizes = [0x4500, length + 20, 0, 0, u16::from_be_bytes([HOPS, UDP]), checksum];
                [&sizes.map(u16::to_be_bytes).concat(), &source.octets()[..], &target.octets()].concat()
            };
            // IPv4 allows a UDP datagram without a checksum.
            (0x0800, [header(sum(&header(0))), udp(0)].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let ends = [source.octets(), target.octets()].concat();
            let pseudo = [&ends[..], &u32::from(length).to_be_bytes(), &[0, 0, 0, UDP], &udp(0)].concat();
            let sizes = [0x6000, 0, length, u16::from_be_bytes([UDP, HOPS])];
            (0x86dd, [sizes.map(u16::to_be_bytes).concat(), ends, udp(sum(&pseudo))].concat())
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// Computes the internet checksum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)));
    let mut total: u64 = words.sum();
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    !u16::try_from(total).expect("folded")
}
