//! Filters for packets that may be replies to ours, as classic BPF. Any other packet wakes no thread.

use libc::{BPF_ABS, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_LDX, BPF_MSH, BPF_W};
use plan::Family;
use socket2::SockFilter;

use super::EtherType;
use crate::filter::{ACCEPT, DROP, equal, load};

/// Length of an Ethernet header in bytes.
pub(super) const ETHERNET: u32 = 14;

pub(super) const NOTHING: [SockFilter; 1] = [DROP];

const ICMP: u32 = 1;
const ICMPV6: u32 = 58;
const UDP: u32 = 17;
const ARP_REPLY: u32 = 2;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;

/// Offset in bytes of the type in a netlink message.
const TYPE: u32 = 4;
/// Offset in bytes of `ndmsg` in a netlink message.
const NDMSG: u32 = 16;

/// Values that identify replies to our probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Identifier of our echo requests.
    pub echo: u16,
    /// UDP port that our datagrams go to.
    pub port: u16,
}

/// Numbers and offsets in bytes of ICMP in one address family.
struct Icmp {
    protocol: u32,
    /// Offset of the protocol in the IP header.
    protocol_at: u32,
    reply: u32,
    errors: &'static [u32],
    /// Length of the IP header that an error quotes; our packets have no options.
    header: u32,
}

const V4: Icmp = Icmp { protocol: ICMP, protocol_at: 9, reply: 0, errors: &[3, 11], header: 20 };
const V6: Icmp = Icmp { protocol: ICMPV6, protocol_at: 6, reply: 129, errors: &[1, 2, 3], header: 40 };

fn icmp_of(family: Family) -> Icmp {
    match family {
        Family::Ipv4 => V4,
        Family::Ipv6 => V6,
    }
}

/// Returns the filter for a raw socket. IPv4 packets come with their header, IPv6 packets without.
pub(super) fn icmp(family: Family, marks: Marks) -> Vec<SockFilter> {
    let start = match family {
        Family::Ipv4 => header_length(0),
        Family::Ipv6 => fixed(0),
    };
    let mut program = vec![start];
    program.extend(answers(&icmp_of(family), 0, marks));
    program
}

/// Returns the filter for a packet socket; `header` bytes precede the packet.
pub(super) fn frames(kind: EtherType, header: u32, marks: Marks) -> Vec<SockFilter> {
    let family = match kind {
        EtherType::Arp => {
            return vec![load(BPF_H | BPF_ABS, header + 6), equal(ARP_REPLY, 0, 1), ACCEPT, DROP];
        }
        EtherType::Ipv4 => Family::Ipv4,
        EtherType::Ipv6 => Family::Ipv6,
    };
    let icmp = icmp_of(family);
    let mut program =
        vec![load(BPF_B | BPF_ABS, header + icmp.protocol_at), equal(icmp.protocol, 1, 0), DROP];
    match family {
        Family::Ipv4 => program.push(header_length(header)),
        Family::Ipv6 => program.extend([
            fixed(icmp.header),
            load(BPF_B | BPF_IND, header),
            equal(NEIGHBOUR_ADVERTISEMENT, 0, 1),
            ACCEPT,
        ]),
    }
    program.extend(answers(&icmp, header, marks));
    program
}

/// Returns the filter for neighbours of one device: failed entries, and stale ones, whose MAC was announced unasked.
pub(super) fn neighbour_events(index: u32) -> Vec<SockFilter> {
    let kind = u32::from(libc::RTM_NEWNEIGH.to_be());
    let [failed, stale] = [libc::NUD_FAILED, libc::NUD_STALE].map(|state| u32::from(state.to_be()));
    vec![
        load(BPF_H | BPF_ABS, TYPE),
        equal(kind, 0, 5),
        load(BPF_W | BPF_ABS, NDMSG + 4),
        equal(index.to_be(), 0, 3),
        load(BPF_H | BPF_ABS, NDMSG + 8),
        equal(failed, 2, 0),
        equal(stale, 1, 0),
        DROP,
        ACCEPT,
    ]
}

/// Accepts our echo replies, and errors that quote our probes. X holds the offset of ICMP behind `base`.
fn answers(icmp: &Icmp, base: u32, marks: Marks) -> Vec<SockFilter> {
    let at = |mode, offset| load(mode | BPF_IND, base + offset);
    let (echo, port) = (u32::from(marks.echo), u32::from(marks.port));
    let mut program =
        vec![at(BPF_B, 0), equal(icmp.reply, 0, 4), at(BPF_H, 4), equal(echo, 0, 1), ACCEPT, DROP];
    for (place, &error) in icmp.errors.iter().enumerate() {
        program.push(equal(error, (icmp.errors.len() - place) as u8, 0));
    }
    program.extend([
        DROP,
        // A quoted packet is ours only if it has our mark.
        at(BPF_B, 8 + icmp.protocol_at),
        equal(icmp.protocol, 0, 4),
        at(BPF_H, 8 + icmp.header + 4),
        equal(echo, 0, 1),
        ACCEPT,
        DROP,
        equal(UDP, 0, 3),
        at(BPF_H, 8 + icmp.header + 2),
        equal(port, 0, 1),
        ACCEPT,
        DROP,
    ]);
    program
}

/// Loads the length of the IPv4 header at `base` into X.
fn header_length(base: u32) -> SockFilter {
    SockFilter::new((BPF_LDX | BPF_B | BPF_MSH) as u16, 0, 0, base)
}

fn fixed(offset: u32) -> SockFilter {
    SockFilter::new((BPF_LDX | BPF_IMM) as u16, 0, 0, offset)
}
