//! Evaluates one rule of nf_tables for a packet of which only a part is known. Its expressions run one after the other,
//! as in the kernel.

use std::net::IpAddr;

use plan::passage::{Leg, Packet, Payload};
use plan::{Family, LinkName};

use super::chains::{Base, Element, Expression};
use crate::walk::{Mark, Truth, Verdict};

/// A byte of a packet or a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    Is(u8),
    /// Different in each packet.
    Varies,
    /// Equal in all packets, but not known here.
    Unknown,
}

/// Key of the packet's mark (`NFT_META_MARK`).
const MARK: u32 = 3;

/// Sixteen registers of four bytes; four registers of sixteen bytes share their space.
type Registers = [Byte; 64];

/// A packet at one hook.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// Packet in question. `None` stands for packets of any sender: their addresses and devices vary.
    pub(super) packet: Option<&'a Packet>,
    /// Mark of the packet before the rule.
    pub(super) mark: Mark,
    pub(super) base: &'a Base,
    pub(super) is_ipv6: bool,
    pub(super) index: &'a dyn Fn(LinkName) -> Option<u32>,
}

/// Function that looks up an element by the set's name and the bytes of the key.
pub(super) type Find<'a, E> = dyn FnMut(&str, &[Byte]) -> Result<Found, E> + 'a;

/// Result of a lookup in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Element(Option<Element>),
    /// Undecided, since a part of the key is not known.
    Open(Truth),
}

/// State of a rule's evaluation.
struct Run<'a> {
    view: View<'a>,
    registers: Registers,
    truth: Truth,
    verdict: Verdict,
}

/// Returns to which degree a rule holds for the packet, its verdict then, and the packet's mark then.
pub(super) fn run<E>(
    expressions: &[Expression],
    view: View<'_>,
    find: &mut Find<'_, E>,
) -> Result<(Truth, Verdict, Mark), E> {
    let mut run =
        Run { view, registers: [Byte::Unknown; 64], truth: Truth::Always, verdict: Verdict::Continue };
    for expression in expressions {
        run.expression(expression, find)?;
        if run.truth == Truth::Never {
            break;
        }
    }
    Ok((run.truth, run.verdict, run.view.mark))
}

impl Run<'_> {
    fn expression<E>(&mut self, expression: &Expression, find: &mut Find<'_, E>) -> Result<(), E> {
        match &*expression.name {
            "meta" if expression.attribute(3).is_some() => self.set_meta(expression),
            "meta" => self.load(expression, 1, true, |run| run.view.meta(expression.number(2))),
            "payload" => self
                .load(expression, 1, expression.attribute(5).is_none(), |run| run.view.payload(expression)),
            "ct" => self.load(expression, 1, expression.attribute(4).is_none(), |run| {
                run.view.conntrack(expression.number(2))
            }),
            "fib" => self.load(expression, 1, true, |run| run.view.fib(expression)),
            "numgen" | "exthdr" => self.load(expression, 1, true, |_| vec![Byte::Varies; 16]),
            "hash" => self.load(expression, 2, true, |_| vec![Byte::Varies; 16]),
            "rt" | "osf" | "xfrm" => self.load(expression, 1, true, |_| vec![Byte::Unknown; 16]),
            "socket" | "tunnel" => self.load(expression, 2, true, |_| vec![Byte::Unknown; 16]),
            "cmp" => self.compare(expression),
            "range" => self.range(expression),
            "bitwise" => self.bitwise(expression),
            "byteorder" => self.byteorder(expression),
            "lookup" => self.lookup(expression, find)?,
            "immediate" => self.immediate(expression),
            "limit" | "quota" | "connlimit" => self.require(Truth::Partly),
            "match" => self.require(matches(expression, self.view.state())),
            "target" if ["MARK", "CONNMARK"].contains(&expression.text(1)) => self.view.mark = None,
            "target" => self.verdict = target(expression.text(1)),
            "reject" => self.verdict = Verdict::Refuse,
            "nat" | "masq" | "redir" => self.verdict = Verdict::Accept,
            "queue" | "tproxy" | "synproxy" | "fwd" => self.verdict = Verdict::Stop,
            "counter" | "log" | "notrack" | "objref" | "dynset" | "last" | "flow_offload" | "dup"
            | "trace" => {}
            _ => self.require(Truth::Unclear),
        }
        Ok(())
    }

    fn require(&mut self, truth: Truth) {
        self.truth = self.truth.and(truth);
    }

    /// Fills the register that this attribute names. An expression that writes to the packet loads nothing.
    fn load(
        &mut self,
        expression: &Expression,
        register: u16,
        loads: bool,
        bytes: impl Fn(&Self) -> Vec<Byte>,
    ) {
        if loads {
            let bytes = bytes(self);
            self.put(expression.number(register), &bytes);
        }
    }

    /// Sets a property of the packet, of which only the mark matters here.
    fn set_meta(&mut self, expression: &Expression) {
        if expression.number(2) == Some(MARK) {
            let bytes = known(self.get(expression.number(3), 4)).ok();
            self.view.mark = bytes.and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        }
    }

    fn put(&mut self, register: Option<u32>, bytes: &[Byte]) {
        let Some(start) = place(register) else { return };
        for (at, byte) in bytes.iter().enumerate() {
            if let Some(register) = self.registers.get_mut(start + at) {
                *register = *byte;
            }
        }
    }

    fn get(&self, register: Option<u32>, length: usize) -> &[Byte] {
        place(register).and_then(|start| self.registers.get(start..start + length)).unwrap_or(&[])
    }

    fn compare(&mut self, expression: &Expression) {
        let data = expression.value(3).unwrap_or_default();
        let bytes = self.get(expression.number(1), data.len());
        let operation = expression.number(2).unwrap_or_default();
        let certain =
            || bytes.iter().zip(data).any(|(byte, data)| matches!(byte, Byte::Is(is) if is != data));
        let truth = match (known(bytes), operation) {
            (Ok(is), 0) => Truth::of(is == data),
            (Ok(is), 1) => Truth::of(is != data),
            (Ok(is), 2) => Truth::of(*is < *data),
            (Ok(is), 3) => Truth::of(*is <= *data),
            (Ok(is), 4) => Truth::of(*is > *data),
            (Ok(is), 5) => Truth::of(*is >= *data),
            (Err(_), 0) if certain() => Truth::Never,
            (Err(_), 1) if certain() => Truth::Always,
            (Err(truth), _) => truth,
            (Ok(_), _) => Truth::Unclear,
        };
        self.require(truth);
    }

    fn range(&mut self, expression: &Expression) {
        let (from, to) = (expression.value(3).unwrap_or_default(), expression.value(4).unwrap_or_default());
        let truth = match known(self.get(expression.number(1), from.len())) {
            Ok(is) => Truth::of((*from <= *is && *is <= *to) == (expression.number(2) == Some(0))),
            Err(truth) => truth,
        };
        self.require(truth);
    }

    fn bitwise(&mut self, expression: &Expression) {
        let length = length(expression.number(3));
        let source = self.get(expression.number(1), length);
        let (mask, xor) = (expression.value(4), expression.value(5));
        let result: Vec<Byte> = match (mask, xor) {
            (Some(mask), Some(xor)) if expression.number(6).unwrap_or_default() == 0 => source
                .iter()
                .zip(mask.iter().zip(xor))
                .map(|(byte, (mask, xor))| match byte {
                    Byte::Is(is) => Byte::Is(is & mask ^ xor),
                    _ if *mask == 0 => Byte::Is(*xor),
                    other => *other,
                })
                .collect(),
            _ => vec![Byte::Unknown; length],
        };
        self.put(expression.number(2), &result);
    }

    fn byteorder(&mut self, expression: &Expression) {
        let length = length(expression.number(4));
        let size = (expression.number(5).unwrap_or(2) as usize).max(1);
        let mut bytes = self.get(expression.number(1), length).to_vec();
        if cfg!(target_endian = "little") {
            bytes.chunks_mut(size).for_each(<[Byte]>::reverse);
        }
        self.put(expression.number(2), &bytes);
    }

    fn lookup<E>(&mut self, expression: &Expression, find: &mut Find<'_, E>) -> Result<(), E> {
        let start = place(expression.number(2)).unwrap_or(self.registers.len());
        let found = find(expression.text(1), self.registers.get(start..).unwrap_or(&[]))?;
        let inverted = expression.number(5).unwrap_or_default() & 1 != 0;
        match found {
            Found::Open(truth) => {
                self.require(truth);
                // The verdict in the set applies to some of the packets at most.
                if expression.attribute(3).is_some() {
                    self.put(expression.number(3), &[Byte::Unknown; 16]);
                    self.verdict =
                        if expression.number(3) == Some(0) { Verdict::Stop } else { Verdict::Continue };
                }
            }
            Found::Element(element) => {
                self.require(Truth::of(element.is_some() != inverted));
                match element {
                    Some(Element::Leads(verdict)) => self.verdict = verdict,
                    Some(Element::Holds(value)) => {
                        let bytes: Vec<Byte> = value.into_iter().map(Byte::Is).collect();
                        self.put(expression.number(3), &bytes);
                    }
                    Some(Element::Plain) | None => {}
                }
            }
        }
        Ok(())
    }

    fn immediate(&mut self, expression: &Expression) {
        match expression.verdict(2) {
            Some(verdict) => self.verdict = verdict,
            None => {
                let bytes: Vec<Byte> =
                    expression.value(2).unwrap_or_default().iter().copied().map(Byte::Is).collect();
                self.put(expression.number(1), &bytes);
            }
        }
    }
}

/// Returns the offset of a register. The first four have sixteen bytes; register 0 holds the verdict.
fn place(register: Option<u32>) -> Option<usize> {
    match register? as usize {
        wide @ 1..=4 => Some((wide - 1) * 16),
        narrow @ 8..24 => Some((narrow - 8) * 4),
        _ => None,
    }
}

/// Length of a load in bytes, at most that of all registers.
fn length(bytes: Option<u32>) -> usize {
    bytes.map_or(0, |bytes| bytes.min(64) as usize)
}

/// Returns the bytes. If any is not known, returns the truth of a condition that depends on them.
pub(super) fn known(bytes: &[Byte]) -> Result<Vec<u8>, Truth> {
    let worst = bytes.iter().map(|byte| match byte {
        Byte::Is(_) => Truth::Always,
        Byte::Varies => Truth::Partly,
        Byte::Unknown => Truth::Unclear,
    });
    match worst.max() {
        Some(Truth::Always) => {
            Ok(bytes.iter().map(|byte| if let Byte::Is(is) = byte { *is } else { 0 }).collect())
        }
        Some(truth) => Err(truth),
        None => Err(Truth::Unclear),
    }
}

fn is(bytes: &[u8]) -> Vec<Byte> {
    bytes.iter().copied().map(Byte::Is).collect()
}

impl View<'_> {
    /// Returns a property of the packet, by its key `NFT_META_*`.
    fn meta(&self, key: Option<u32>) -> Vec<Byte> {
        let (inbound, outbound) = self.devices();
        let (index, name) = (|device| self.index_of(device), name_of);
        let protocol: u16 = if self.is_ipv6 { 0x86dd } else { 0x0800 };
        let unknown = || vec![Byte::Unknown; 16];
        match key {
            Some(16) => self.protocol().map_or_else(|| vec![Byte::Varies; 8], |number| is(&[number])),
            Some(0 | 20 | 24 | 30..=32) => vec![Byte::Varies; 8],
            Some(1) => is(&protocol.to_be_bytes()),
            Some(MARK) => self.mark.map_or_else(unknown, |mark| is(&mark.to_ne_bytes())),
            Some(4) => index(inbound),
            Some(5) => index(outbound),
            Some(6) => name(inbound),
            Some(7) => name(outbound),
            Some(15) => is(&[if self.is_ipv6 { 10 } else { 2 }]),
            Some(17) => name(self.bridges().0),
            Some(18) => name(self.bridges().1),
            Some(19) => is(&[0]),
            _ => unknown(),
        }
    }

    /// Returns the result of a route lookup (`NFTA_FIB_*`). Addresses are unicast (`RTN_UNICAST`), or this node's own
    /// (`RTN_LOCAL`). Routes lead to the packet's own devices: where that is not so, another warning says it.
    fn fib(&self, expression: &Expression) -> Vec<Byte> {
        const OF_SOURCE: u32 = 1;
        const ONLY_IF_PRESENT: u32 = 32;
        let flags = expression.number(3).unwrap_or_default();
        let of_source = flags & OF_SOURCE != 0;
        let leg = if of_source { Leg::Sent } else { Leg::Received };
        let local = self.packet.is_some_and(|packet| packet.leg() == leg);
        let device =
            self.packet.map(|packet| Device::Known(if of_source { packet.inbound } else { packet.outbound }));
        match (expression.number(2), device) {
            (Some(3), _) => is(&(if local { 2_u32 } else { 1 }).to_ne_bytes()),
            (Some(1 | 2), Some(_)) if flags & ONLY_IF_PRESENT != 0 => is(&[1, 0, 0, 0]),
            (Some(1), Some(device)) => self.index_of(device),
            (Some(2), Some(device)) => name_of(device),
            _ => vec![Byte::Unknown; 16],
        }
    }

    fn index_of(&self, device: Device) -> Vec<Byte> {
        match device {
            Device::Known(link) => {
                (self.index)(link).map_or(vec![Byte::Unknown; 4], |at| is(&at.to_ne_bytes()))
            }
            other => other.bytes(4),
        }
    }

    /// Returns the inbound and outbound device that the packet has at this hook.
    fn devices(&self) -> (Device, Device) {
        let Some(packet) = self.packet else { return (Device::Varies, Device::Varies) };
        let (inbound, outbound) = (Device::Known(packet.inbound), Device::Known(packet.outbound));
        match (self.base.family, self.base.hook) {
            (BRIDGE, _) => (Device::Unknown, Device::Unknown),
            (NETDEV, 1) => (Device::Unknown, outbound),
            (NETDEV, _) | (_, PREROUTING | INPUT | INGRESS) => (inbound, Device::None),
            (_, FORWARD) => (inbound, outbound),
            _ if packet.leg() == Leg::Sent => (Device::None, outbound),
            _ => (Device::Unknown, outbound),
        }
    }

    fn bridges(&self) -> (Device, Device) {
        match self.packet {
            Some(packet) if self.base.family == BRIDGE => {
                (Device::Known(packet.inbound), Device::Known(packet.outbound))
            }
            Some(_) => (Device::Unknown, Device::Unknown),
            None => (Device::Varies, Device::Varies),
        }
    }

    /// Returns the number of the transport protocol, if the packet has a certain one.
    fn protocol(&self) -> Option<u8> {
        self.packet?.protocol().map(|(_, number)| number)
    }

    fn payload(&self, expression: &Expression) -> Vec<Byte> {
        let number = |kind| expression.number(kind).unwrap_or_default() as usize;
        let (base, offset, length) = (number(2), number(3), length(expression.number(4)));
        let header = match base {
            0 => {
                let protocol: u16 = if self.is_ipv6 { 0x86dd } else { 0x0800 };
                [vec![Byte::Unknown; 12], is(&protocol.to_be_bytes())].concat()
            }
            1 => self.network_header(),
            2 => self.transport_header(),
            _ => return vec![Byte::Varies; length],
        };
        header.get(offset..offset + length).map_or_else(|| vec![Byte::Varies; length], <[Byte]>::to_vec)
    }

    fn network_header(&self) -> Vec<Byte> {
        let version = if self.is_ipv6 { 0x60 } else { 0x45 };
        let (before, length) = if self.is_ipv6 { (8, 16) } else { (12, 4) };
        let mut header = vec![Byte::Varies; before];
        header[0] = Byte::Is(version);
        if let Some(number) = self.protocol() {
            header[if self.is_ipv6 { 6 } else { 9 }] = Byte::Is(number);
        }
        let address = |address: fn(&Packet) -> IpAddr| match self.packet.map(address) {
            Some(IpAddr::V4(ip)) => is(&ip.octets()),
            Some(IpAddr::V6(ip)) => is(&ip.octets()),
            None => vec![Byte::Varies; length],
        };
        header.extend(address(|packet| packet.source));
        header.extend(address(|packet| packet.destination));
        header
    }

    /// Returns the known ports of a UDP packet, or type and code of an ICMP packet.
    fn transport_header(&self) -> Vec<Byte> {
        match self.packet.map(|packet| (packet.payload, Family::of(packet.source))) {
            Some((Payload::Tunnel(port), _)) => [vec![Byte::Varies; 2], is(&port.to_be_bytes())].concat(),
            Some((Payload::Echo(half), family)) => is(&[half.number(family), 0]),
            _ => Vec::new(),
        }
    }

    /// Returns a property of the connection, by its key `NFT_CT_*`. In chains that precede the lookup of connections its
    /// state is invalid.
    fn conntrack(&self, key: Option<u32>) -> Vec<Byte> {
        const INVALID: u32 = 1;
        const TRACKED_FROM: i32 = -200;
        let early = [PREROUTING, OUTPUT].contains(&self.base.hook) && self.base.priority < TRACKED_FROM;
        match key {
            _ if [BRIDGE, NETDEV].contains(&self.base.family) => vec![Byte::Unknown; 16],
            Some(0) => is(&(if early { INVALID } else { u32::from(self.state()) }).to_ne_bytes()),
            Some(1) => is(&[u8::from(self.packet.is_some_and(Packet::is_reply))]),
            Some(2 | 11 | 12 | 14..=16) => vec![Byte::Varies; 16],
            _ => vec![Byte::Unknown; 16],
        }
    }

    /// Returns the state of the packet's connection: a reply's is established, and each other packet opens one.
    fn state(&self) -> u16 {
        const ESTABLISHED: u16 = 2;
        const NEW: u16 = 8;
        if self.packet.is_some_and(Packet::is_reply) { ESTABLISHED } else { NEW }
    }
}

/// Protocol family `NFPROTO_INET`.
pub(super) const INET: u8 = 1;
/// Protocol family `NFPROTO_NETDEV`.
pub(super) const NETDEV: u8 = 5;
/// Protocol family `NFPROTO_BRIDGE`.
pub(super) const BRIDGE: u8 = 7;
/// Hook `NF_INET_PRE_ROUTING`.
pub(super) const PREROUTING: u32 = 0;
/// Hook `NF_INET_LOCAL_IN`.
pub(super) const INPUT: u32 = 1;
/// Hook `NF_INET_FORWARD`.
pub(super) const FORWARD: u32 = 2;
/// Hook `NF_INET_LOCAL_OUT`; a bridge's hook of that name has the same number.
pub(super) const OUTPUT: u32 = 3;
/// Hook `NF_INET_INGRESS`.
pub(super) const INGRESS: u32 = 5;

/// Device of a packet, as far as it is known.
#[derive(Clone, Copy)]
enum Device {
    Known(LinkName),
    None,
    Varies,
    Unknown,
}

impl Device {
    fn bytes(self, length: usize) -> Vec<Byte> {
        let byte = match self {
            Self::None => Byte::Is(0),
            Self::Varies => Byte::Varies,
            Self::Known(_) | Self::Unknown => Byte::Unknown,
        };
        vec![byte; length]
    }
}

/// Returns the name of a device, as registers hold it.
fn name_of(device: Device) -> Vec<Byte> {
    let Device::Known(link) = device else { return device.bytes(16) };
    let mut bytes = [0; 16];
    bytes[..link.as_str().len()].copy_from_slice(link.as_str().as_bytes());
    is(&bytes)
}

/// Returns the truth of a match of iptables for a packet whose connection has that state.
fn matches(expression: &Expression, state: u16) -> Truth {
    match expression.text(1) {
        "comment" => Truth::Always,
        "conntrack" => has_state(expression.attribute(3).map_or(&[], |info| info.value.0), state),
        "tcp" | "udp" | "icmp" | "icmp6" | "multiport" | "limit" | "hashlimit" | "statistic" | "length" => {
            Truth::Partly
        }
        _ => Truth::Unclear,
    }
}

/// Decodes `struct xt_conntrack_mtinfo3`, if it asks only for the state.
fn has_state(info: &[u8], state: u16) -> Truth {
    const STATE: u16 = 1;
    let number = |at: usize| info.get(at..at + 2).map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let (asks, inverts, states) = (number(148), number(150), number(152));
    if asks != STATE {
        return Truth::Unclear;
    }
    Truth::of((states & state != 0) != (inverts & STATE != 0))
}

/// Returns the verdict of a target of iptables.
fn target(name: &str) -> Verdict {
    match name {
        "REJECT" => Verdict::Refuse,
        "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => Verdict::Accept,
        "NFQUEUE" | "TPROXY" | "SYNPROXY" => Verdict::Stop,
        _ => Verdict::Continue,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn a_length_beyond_the_registers_is_capped() {
        let base = Base { hook: FORWARD, ..Base::default() };
        let view = View { packet: None, mark: None, base: &base, is_ipv6: false, index: &|_| None };
        for (name, numbers) in [
            ("payload", [(1, 8), (2, 1), (3, 0), (4, u32::MAX)]),
            ("payload", [(1, 8), (2, 2), (3, u32::MAX), (4, u32::MAX)]),
            ("bitwise", [(1, 8), (2, 8), (3, u32::MAX), (6, 1)]),
            ("byteorder", [(1, 8), (2, 8), (4, u32::MAX), (5, u32::MAX)]),
        ] {
            let expressions = [Expression::of(name, &numbers)];
            let mut find = |_: &str, _: &[Byte]| Ok::<_, Infallible>(Found::Element(None));
            assert_eq!(
                run(&expressions, view, &mut find),
                Ok((Truth::Always, Verdict::Continue, None)),
                "{name}"
            );
        }
        assert_eq!(length(Some(u32::MAX)), 64);
    }
}
