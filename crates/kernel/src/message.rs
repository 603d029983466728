//! Netlink messages, byte by byte: builds requests and parses answers. This module knows no kind of object.
//!
//! It replaces netlink-packet-route, which has no next hop objects. That crate also fails on a whole message with an
//! unexpected attribute. And it allocates for each foreign route, of which there may be a hundred thousand.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use plan::Mac;
use plan::state::Unknown;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

const NLA_TYPE_MASK: u16 = 0x3fff;

/// Both IP families, as message headers carry them.
pub(crate) const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

/// Returns the address family as message headers carry it: `AF_INET` or `AF_INET6`.
pub(crate) const fn family_of(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// A request under construction.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Starts a request. `header` is the struct that follows `nlmsghdr`, field by field.
    pub(crate) fn new(kind: u16, flags: libc::c_int, header: &[&[u8]]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        for field in header {
            bytes.extend_from_slice(field);
        }
        Self(bytes)
    }

    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn ip(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(ip) => self.put(kind, &ip.octets()),
            IpAddr::V6(ip) => self.put(kind, &ip.octets()),
        }
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.put(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// Appends an attribute that consists of the attributes that `fill` appends.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.put(kind, &[]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the bytes to send, with length and sequence number. `acknowledge` asks for an acknowledgement
    /// (`NLM_F_ACK`).
    pub(crate) fn seal(&mut self, sequence: u32, acknowledge: bool) -> &[u8] {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]);
        let ack = if acknowledge { libc::NLM_F_ACK as u16 } else { 0 };
        self.0[6..8].copy_from_slice(&(flags | ack).to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}

/// A message of an answer or of the monitor stream.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Netlink port of the socket whose request caused this message.
    pub(crate) port: u32,
    /// Content after `nlmsghdr`.
    pub(crate) body: Body<'a>,
}

/// Splits a datagram into its messages; a truncated message ends the iteration.
pub(crate) fn parts(mut datagram: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let header = Body(datagram);
        let length = header.u32(0) as usize;
        if length < HEADER || length > datagram.len() {
            return None;
        }
        let body = Body(&datagram[HEADER..length]);
        let part = Part {
            kind: header.u16(4),
            flags: header.u16(6),
            sequence: header.u32(8),
            port: header.u32(12),
            body,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

/// Bytes in the kernel's layout. Reads beyond the end return zeros: the kernel never sends less than its structs.
#[derive(Clone, Copy)]
pub(crate) struct Body<'a>(pub(crate) &'a [u8]);

impl<'a> Body<'a> {
    fn bytes<const N: usize>(self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    pub(crate) fn u8(self, at: usize) -> u8 {
        self.bytes::<1>(at)[0]
    }

    pub(crate) fn u16(self, at: usize) -> u16 {
        u16::from_ne_bytes(self.bytes(at))
    }

    pub(crate) fn u32(self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(at))
    }

    /// Iterates over the attributes from offset `at` on.
    pub(crate) fn attributes(self, at: usize) -> impl Iterator<Item = Attribute<'a>> {
        let mut rest = Body(self.0.get(at..).unwrap_or_default());
        std::iter::from_fn(move || {
            let length = usize::from(rest.u16(0));
            if length < 4 || length > rest.0.len() {
                return None;
            }
            let attribute = Attribute { kind: rest.u16(2) & NLA_TYPE_MASK, value: Body(&rest.0[4..length]) };
            rest = Body(rest.0.get(length.next_multiple_of(4)..).unwrap_or_default());
            Some(attribute)
        })
    }
}

/// An attribute (`struct nlattr`) with its value.
#[derive(Clone, Copy)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) value: Body<'a>,
}

impl<'a> Attribute<'a> {
    pub(crate) fn u8(self) -> u8 {
        self.value.u8(0)
    }

    pub(crate) fn u32(self) -> u32 {
        self.value.u32(0)
    }

    /// Reads a 32-bit number in network order, which netfilter uses.
    pub(crate) fn be32(self) -> u32 {
        u32::from_be_bytes(self.value.bytes(0))
    }

    pub(crate) fn be64(self) -> u64 {
        u64::from_be_bytes(self.value.bytes(0))
    }

    /// Reads a port: 16 bits in network order.
    pub(crate) fn port(self) -> u16 {
        u16::from_be_bytes(self.value.bytes(0))
    }

    pub(crate) fn ip(self) -> Option<IpAddr> {
        match self.value.0.len() {
            4 => Some(self.value.bytes::<4>(0).into()),
            16 => Some(self.value.bytes::<16>(0).into()),
            _ => None,
        }
    }

    pub(crate) fn mac(self) -> Option<Mac> {
        self.value.0.try_into().ok().map(Mac)
    }

    /// Reads text up to its closing NUL; empty if it is not UTF-8.
    pub(crate) fn text(self) -> &'a str {
        let text = self.value.0.split(|&byte| byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }

    pub(crate) fn nested(self) -> impl Iterator<Item = Attribute<'a>> {
        self.value.attributes(0)
    }
}

/// Collects the properties of an object that were read and not understood, for the row's `unknown`.
#[derive(Default)]
pub(crate) struct Odd(String);

impl Odd {
    pub(crate) fn note(&mut self, what: impl fmt::Display) {
        let comma = if self.0.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{comma}{what}");
    }

    pub(crate) fn to_unknown(&self) -> Unknown {
        (!self.0.is_empty()).then(|| self.0.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_message_is_parsed_as_it_was_built() {
        let mut message = Message::new(24, libc::NLM_F_CREATE, &[&[1, 2, 3, 4]]);
        message.u8(1, 9).u32(2, 70_000).ip(3, [10, 244, 0, 1].into()).text(4, "eth0");
        message
            .nest(5 | 0x8000, |inner| _ = inner.put(6, &8472_u16.to_be_bytes()))
            .put(7, &[2, 0, 0, 0, 0, 1]);
        let bytes = [message.seal(5, true).to_vec(), message.seal(6, false).to_vec()].concat();
        let read: Vec<_> = parts(&bytes).collect();
        assert_eq!(
            read.iter().map(|part| (part.kind, part.sequence)).collect::<Vec<_>>(),
            [(24, 5), (24, 6)]
        );
        assert_eq!(i32::from(read[0].flags), libc::NLM_F_CREATE | libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        let body = read[0].body;
        assert_eq!((body.u8(0), body.u16(2), body.u32(100)), (1, u16::from_ne_bytes([3, 4]), 0));
        let read: Vec<_> = body.attributes(4).collect();
        assert_eq!(read.iter().map(|attribute| attribute.kind).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 7]);
        assert_eq!((read[0].u8(), read[1].u32(), read[2].ip()), (9, 70_000, Some([10, 244, 0, 1].into())));
        assert_eq!((read[3].text(), read[5].mac()), ("eth0", Some(Mac([2, 0, 0, 0, 0, 1]))));
        assert_eq!(read[4].nested().map(Attribute::port).collect::<Vec<_>>(), [8472]);
    }

    #[test]
    fn truncated_messages_and_attributes_end_the_iteration() {
        let mut message = Message::new(24, 0, &[&[0; 4]]);
        message.u32(1, 1).u32(2, 2);
        let bytes = message.seal(1, false).to_vec();
        for length in 0..bytes.len() {
            assert_eq!(parts(&bytes[..length]).count(), 0);
            let attributes = Body(&bytes[..length]).attributes(20).count();
            assert!(attributes <= length.saturating_sub(20) / 8, "{length}");
        }
        assert_eq!(Body(&[2, 0, 1, 0, 9, 9, 9, 9]).attributes(0).count(), 0, "shorter than its own header");
    }
}
