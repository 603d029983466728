//! Bytes of probes and of replies: ARP, neighbour discovery, echoes and datagrams, in IP packets and frames. Pure.
//! Anybody may have sent the bytes that are read, so a packet that is not whole counts for nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel::packet::EtherType;
use plan::Mac;

/// Length of an Ethernet header, bytes.
pub(super) const ETHERNET: usize = 14;
/// Length of an IPv4 header without options, bytes.
const IPV4: usize = 20;
/// Length of an IPv6 header, bytes.
const IPV6: usize = 40;
/// Length of the header of an ICMP echo, and of UDP, bytes.
const HEADER: usize = 8;
/// Length of the cookie in an echo, bytes.
const COOKIE: usize = 8;
/// Length of an ARP message for IPv4, bytes.
const ARP: usize = 28;

const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// TTL or hop limit of all packets but those of neighbour discovery.
const TTL: u8 = 64;
/// Hop limit of neighbour discovery, by which a packet proves to come from the segment (RFC 4861).
const FROM_SEGMENT: u8 = 255;
/// ICMPv6 type of a neighbour solicitation.
const SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
const ADVERTISEMENT: u8 = 136;

pub(super) const BROADCAST: Mac = Mac([0xff; 6]);

/// Source and destination of a packet, of the same family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoints {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
}

/// Number of an echo. The cookie is in its payload: only a machine that has seen the probe knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) sequence: u16,
    pub(super) cookie: u64,
}

/// Answer, as far as it can be understood without knowing the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Echo {
        from: IpAddr,
        id: u16,
        number: Number,
    },
    /// A machine with that MAC has the address.
    Neighbour {
        ip: IpAddr,
        mac: Mac,
    },
    /// A machine could not deliver our packet; `port` means that the port is closed.
    Error {
        by: IpAddr,
        mtu: Option<u16>,
        port: bool,
        quoted: Quoted,
    },
}

/// Packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quoted {
    /// `cookie` is `None` if the router quoted too little of the packet.
    Echo {
        to: IpAddr,
        id: u16,
        sequence: u16,
        cookie: Option<u64>,
    },
    Datagram {
        to: IpAddr,
        from_port: u16,
        length: u16,
    },
}

/// Makes an echo request in an IP packet of `size` bytes, which must not be fragmented.
pub(super) fn echo(ends: Endpoints, id: u16, number: Number, size: u16) -> Vec<u8> {
    let (kind, protocol, header) = if ends.to.is_ipv4() { (8, ICMP, IPV4) } else { (128, ICMPV6, IPV6) };
    let mut icmp = vec![0; usize::from(size).saturating_sub(header).max(HEADER + COOKIE)];
    icmp[0] = kind;
    icmp[4..6].copy_from_slice(&id.to_be_bytes());
    icmp[6..8].copy_from_slice(&number.sequence.to_be_bytes());
    icmp[HEADER..HEADER + COOKIE].copy_from_slice(&number.cookie.to_be_bytes());
    write_checksum(&mut icmp, ends, protocol, 2);
    packet(ends, protocol, TTL, &icmp)
}

/// Makes a UDP datagram with its checksum.
pub(super) fn datagram(ends: Endpoints, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0; HEADER];
    udp.extend_from_slice(payload);
    let length = udp.len() as u16;
    for (place, value) in [from, to, length].iter().enumerate() {
        udp[2 * place..2 * place + 2].copy_from_slice(&value.to_be_bytes());
    }
    write_checksum(&mut udp, ends, UDP, 6);
    packet(ends, UDP, TTL, &udp)
}

/// Makes an ARP request for `target`.
pub(super) fn arp_request(mac: Mac, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    [&head[..], &mac.0, &own.octets(), &[0; 6], &target.octets()].concat()
}

/// Makes a neighbour solicitation for `target`: to the address itself, or to the multicast group of that address.
/// With the own address `::` it has no option with our MAC, and the reply goes to all nodes. See RFC 4861 section 4.3
/// and 7.2.4.
pub(super) fn solicitation(mac: Mac, own: Ipv6Addr, target: Ipv6Addr, unicast: bool) -> Vec<u8> {
    let to = if unicast { target } else { solicited_node(target) };
    let ends = Endpoints { from: own.into(), to: to.into() };
    let mut icmp = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    if !own.is_unspecified() {
        icmp.extend([&[1, 1], &mac.0[..]].concat());
    }
    write_checksum(&mut icmp, ends, ICMPV6, 2);
    packet(ends, ICMPV6, FROM_SEGMENT, &icmp)
}

/// Returns the MAC for requests to all machines that may have the address.
pub(super) fn group_of(target: IpAddr) -> Mac {
    match target {
        IpAddr::V4(_) => BROADCAST,
        IpAddr::V6(ip) => {
            let [.., a, b, c] = ip.octets();
            Mac([0x33, 0x33, 0xff, a, b, c])
        }
    }
}

fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets().map(u16::from);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a, b << 8 | c)
}

/// Makes an Ethernet frame.
pub(super) fn ethernet(to: Mac, from: Mac, kind: EtherType, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &(kind as u16).to_be_bytes(), payload].concat()
}

fn packet(ends: Endpoints, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let length = |header: usize| ((header + payload.len()) as u16).to_be_bytes();
    match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = length(IPV4);
            let mut ip = [0x45, 0, high, low, 0, 0, 0x40, 0, ttl, protocol, 0, 0].to_vec();
            ip.extend([from.octets(), to.octets()].concat());
            let sum = fold(sum(&ip)).to_be_bytes();
            ip[10..12].copy_from_slice(&sum);
            ip.extend_from_slice(payload);
            ip
        }
        (from, to) => {
            let [high, low] = length(0);
            let head = [0x60, 0, 0, 0, high, low, protocol, ttl];
            [&head[..], &octets(from), &octets(to), payload].concat()
        }
    }
}

/// Writes the checksum at `at`. UDP writes 0 as 0xffff, since 0 means that there is none.
fn write_checksum(payload: &mut [u8], ends: Endpoints, protocol: u8, at: usize) {
    let value = match checksum(payload, ends, protocol) {
        0 if protocol == UDP => 0xffff,
        value => value,
    };
    payload[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Returns the checksum; 0 if `payload` contains the right one.
fn checksum(payload: &[u8], ends: Endpoints, protocol: u8) -> u16 {
    let pseudo = if protocol == ICMP {
        0
    } else {
        sum(&octets(ends.from)) + sum(&octets(ends.to)) + payload.len() as u64 + u64::from(protocol)
    };
    fold(pseudo + sum(payload))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Adds up the 16-bit words, eight bytes at a time. The carries are added at the end, and no packet is long enough to
/// overflow the sum.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut whole = 0;
    for word in words {
        let word = u64::from_be_bytes(*word);
        whole += (word >> 32) + (word & 0xffff_ffff);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = u64::from_be_bytes(last);
    whole + (last >> 32) + (last & 0xffff_ffff)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Reads a frame behind its Ethernet header; `None` if it is no reply.
pub(super) fn read_frame(kind: EtherType, source: Option<Mac>, bytes: &[u8]) -> Option<Reply> {
    match kind {
        EtherType::Arp => read_arp(bytes),
        EtherType::Ipv4 | EtherType::Ipv6 => read_packet(source, bytes),
    }
}

/// Reads an ARP reply for Ethernet and IPv4.
fn read_arp(bytes: &[u8]) -> Option<Reply> {
    let bytes = bytes.get(..ARP)?;
    let mac = Mac(array(bytes, 8)?);
    let is_reply = bytes[..8] == [0, 1, 8, 0, 6, 4, 0, 2];
    let ip = Ipv4Addr::from(array::<4>(bytes, 14)?).into();
    (is_reply && mac.is_unicast()).then_some(Reply::Neighbour { ip, mac })
}

/// Reads an IP packet; `source` is the MAC that it came from. A packet with a wrong checksum is ignored.
pub(super) fn read_packet(source: Option<Mac>, bytes: &[u8]) -> Option<Reply> {
    let Ip { ends, protocol, ttl, payload } = Ip::read(bytes)?;
    // A fuzzer cannot guess a checksum.
    let whole = checksum(payload, ends, protocol) == 0 || cfg!(fuzzing);
    if !matches!(protocol, ICMP | ICMPV6) || !whole {
        return None;
    }
    if protocol == ICMPV6 && payload.first() == Some(&ADVERTISEMENT) {
        return if ttl == FROM_SEGMENT { read_advertisement(source, payload) } else { None };
    }
    read_icmp(ends.from, payload)
}

/// Complete IP packet that is no fragment.
struct Ip<'a> {
    ends: Endpoints,
    protocol: u8,
    ttl: u8,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 0xf) * 4;
                let (length, fragment) = (usize::from(u16_at(bytes, 2)?), u16_at(bytes, 6)? & 0x3fff);
                let payload = bytes.get(header..length).filter(|_| header >= IPV4 && fragment == 0)?;
                let [from, to] = [12, 16].map(|at| array::<4>(bytes, at));
                let ends = Endpoints { from: Ipv4Addr::from(from?).into(), to: Ipv4Addr::from(to?).into() };
                Some(Self { ends, protocol: bytes[9], ttl: bytes[8], payload })
            }
            6 => {
                let payload = bytes.get(IPV6..)?.get(..u16_at(bytes, 4)?.into())?;
                let [from, to] = [8, 24].map(|at| array::<16>(bytes, at));
                let ends = Endpoints { from: Ipv6Addr::from(from?).into(), to: Ipv6Addr::from(to?).into() };
                Some(Self { ends, protocol: bytes[6], ttl: bytes[7], payload })
            }
            _ => None,
        }
    }
}

/// Reads a neighbour advertisement. It need not name its MAC if it replies to a unicast; then `source` counts.
fn read_advertisement(source: Option<Mac>, icmp: &[u8]) -> Option<Reply> {
    let ip = Ipv6Addr::from(array::<16>(icmp, 8)?).into();
    let named = icmp.get(24..32).filter(|option| option[..2] == [2, 1]).and_then(|option| array(option, 2));
    let mac = named.map(Mac).or(source).filter(|mac| mac.is_unicast())?;
    Some(Reply::Neighbour { ip, mac })
}

/// Reads ICMP of the sender's family. The caller must have verified the checksum.
pub(super) fn read_icmp(from: IpAddr, icmp: &[u8]) -> Option<Reply> {
    let (kind, code) = (*icmp.first()?, *icmp.get(1)?);
    let (is_reply, too_big, port) = match from {
        IpAddr::V4(_) => (kind == 0, (kind, code) == (3, 4), (kind, code) == (3, 3)),
        IpAddr::V6(_) => (kind == 129, kind == 2, (kind, code) == (1, 4)),
    };
    if is_reply {
        let number = Number { sequence: u16_at(icmp, 6)?, cookie: cookie(icmp)? };
        return Some(Reply::Echo { from, id: u16_at(icmp, 4)?, number });
    }
    let is_error = if from.is_ipv4() { matches!(kind, 3 | 11) } else { matches!(kind, 1..=3) };
    let quoted = quoted(icmp.get(HEADER..).filter(|_| is_error)?)?;
    let (mtu, least) = match from {
        IpAddr::V4(_) => (u16_at(icmp, 6)?, 576),
        IpAddr::V6(_) => (u32::from_be_bytes(array(icmp, 4)?).try_into().unwrap_or(u16::MAX), 1280),
    };
    // No link carries less, and old routers report 0.
    if too_big && mtu < least {
        return None;
    }
    Some(Reply::Error { by: from, mtu: too_big.then_some(mtu), port, quoted })
}

/// Reads the beginning of our packet that an error quotes. The sender may have cut it anywhere.
fn quoted(bytes: &[u8]) -> Option<Quoted> {
    let (to, protocol, header) = match bytes.first()? >> 4 {
        4 => (Ipv4Addr::from(array::<4>(bytes, 16)?).into(), bytes[9], usize::from(bytes[0] & 0xf) * 4),
        6 => (Ipv6Addr::from(array::<16>(bytes, 24)?).into(), bytes[6], IPV6),
        _ => return None,
    };
    let icmp = bytes.get(header..)?;
    let ours: &[u8; HEADER] = icmp.first_chunk()?;
    let [first, _, id, sequence] = [0, 2, 4, 6].map(|at| u16::from_be_bytes([ours[at], ours[at + 1]]));
    match protocol {
        ICMP | ICMPV6 => Some(Quoted::Echo { to, id, sequence, cookie: cookie(icmp) }),
        UDP => Some(Quoted::Datagram { to, from_port: first, length: id }),
        _ => None,
    }
}

/// Reads the cookie of an echo.
fn cookie(icmp: &[u8]) -> Option<u64> {
    array(icmp, HEADER).map(u64::from_be_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    for kind in [EtherType::Arp, EtherType::Ipv4, EtherType::Ipv6] {
        let _ = read_frame(kind, Some(Mac([2, 0, 0, 0, 0, 1])), bytes);
    }
    for from in [[192, 0, 2, 1].into(), [0xfd00_u16; 8].into()] {
        let _ = read_icmp(from, bytes);
    }
}

#[cfg(test)]
mod tests;
