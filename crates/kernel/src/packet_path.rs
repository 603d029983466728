//! Asks the kernel where it sends packets of pods, and which policy rule decides that. The answers are not judged here.

use std::net::IpAddr;

use ipnet::IpNet;
use plan::passage::Packet;
use plan::underlay::{PolicyRule, RouteAnswer, RouteLookup};

use crate::devices::Devices;
use crate::error::Cause;
use crate::message::{Attribute, FAMILIES, Message, Part, family_of};
use crate::route;
use crate::socket::Netlink;

const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTM_F_FIB_MATCH: u32 = 0x2000;

const RULE_BLACKHOLE: u8 = 6;
const RULE_UNREACHABLE: u8 = 7;
const RULE_PROHIBIT: u8 = 8;
const RULE_LOOKUP: u8 = 1;

/// A policy rule, ours or foreign, with the properties that select packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    family: u8,
    priority: u32,
    from: Option<IpNet>,
    to: Option<IpNet>,
    iif: Option<Box<str>>,
    mark: u32,
    /// True if there is a condition that packets of pods may not meet, such as a port.
    narrow: bool,
    inverted: bool,
    action: u8,
    table: u32,
}

/// Returns where each packet goes, in their order. Packets whose inbound device does not exist are left out. For a packet
/// that this node itself sends, the kernel is asked without an inbound device.
pub(crate) fn packet_paths(
    netlink: &mut Netlink,
    packets: &[Packet],
    devices: &Devices,
) -> Result<Vec<RouteLookup>, Cause> {
    let mut rules: Option<Vec<Rule>> = None;
    let mut all = Vec::new();
    for packet in packets {
        let inbound = devices.index(packet.inbound).filter(|_| !packet.is_local());
        if inbound.is_none() && !packet.is_local() {
            continue;
        }
        let answer = ask(netlink, packet, inbound, devices)?;
        let rule = match &answer {
            RouteAnswer::Via { link, .. } if *link == Some(packet.outbound) => None,
            _ => {
                let rules = match &mut rules {
                    Some(rules) => rules,
                    none => none.insert(read_rules(netlink)?),
                };
                responsible(rules, packet, &answer)
            }
        };
        // Since Linux 6.13 the kernel answers EINVAL, as for a blackhole, where it refuses the source.
        let may_be_source = inbound.is_some() && (rule.is_none() || packet.is_received());
        let answer = match answer {
            RouteAnswer::Refused(libc::EINVAL) if may_be_source && reaches(netlink, packet.destination)? => {
                RouteAnswer::Refused(libc::EXDEV)
            }
            answer => answer,
        };
        all.push(RouteLookup { packet: *packet, answer, rule });
    }
    Ok(all)
}

fn ask(
    netlink: &mut Netlink,
    packet: &Packet,
    inbound: Option<u32>,
    devices: &Devices,
) -> Result<RouteAnswer, Cause> {
    let mut found = (None, None, 0);
    let asked = netlink.ask(&mut request(packet, inbound, 0), |part| {
        let find = |kind| part.body.attributes(12).find(|attribute| attribute.kind == kind);
        found = (
            find(libc::RTA_OIF).and_then(|index| devices.name(index.u32())),
            find(libc::RTA_GATEWAY).and_then(Attribute::ip),
            find(libc::RTA_TABLE).map_or(u32::from(part.body.u8(4)), Attribute::u32),
        );
    });
    let (link, gateway, table) = match asked {
        Ok(_) => found,
        Err(Cause::Refused { errno, .. }) if errno != libc::EPERM => return Ok(RouteAnswer::Refused(errno)),
        Err(cause) => return Err(cause),
    };
    if link == Some(packet.outbound) {
        return Ok(RouteAnswer::Via { link, gateway, table, destination: None });
    }
    // A second request asks for the route itself: only its answer tells the prefix.
    let mut destination = None;
    let _ = netlink.ask(&mut request(packet, inbound, RTM_F_FIB_MATCH), |part| {
        let prefix = part.body.attributes(12).find(|attribute| attribute.kind == libc::RTA_DST);
        let any = if packet.destination.is_ipv4() { IpAddr::from([0; 4]) } else { [0; 16].into() };
        let address = prefix.and_then(Attribute::ip).unwrap_or(any);
        destination = IpNet::new(address, part.body.u8(1)).ok();
    });
    Ok(RouteAnswer::Via { link, gateway, table, destination })
}

/// Returns true if the node itself can send to that address.
fn reaches(netlink: &mut Netlink, address: IpAddr) -> Result<bool, Cause> {
    match netlink.ask(&mut route::lookup_request(address), |_| {}) {
        Ok(_) => Ok(true),
        Err(Cause::Refused { errno, .. }) if errno != libc::EPERM => Ok(false),
        Err(cause) => Err(cause),
    }
}

fn request(packet: &Packet, inbound: Option<u32>, flags: u32) -> Message {
    let (family, bits) = (family_of(packet.destination), if packet.destination.is_ipv4() { 32 } else { 128 });
    // IPv6 always returns the table and does not accept this flag.
    let flags = if packet.destination.is_ipv4() { flags | RTM_F_LOOKUP_TABLE } else { flags };
    let mut message =
        Message::new(libc::RTM_GETROUTE, 0, &[&[family, bits, bits, 0, 0, 0, 0, 0], &flags.to_ne_bytes()]);
    message.ip(libc::RTA_DST, packet.destination).ip(libc::RTA_SRC, packet.source);
    if let Some(inbound) = inbound {
        message.u32(libc::RTA_IIF, inbound);
    }
    message
}

fn read_rules(netlink: &mut Netlink) -> Result<Vec<Rule>, Cause> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let request = Message::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &[&[family], &[0; 11]]);
        let dump: Result<Vec<Rule>, Cause> =
            netlink.dump(request, |rules: &mut Vec<Rule>, part| rules.push(decode(part)));
        all.extend(dump?);
    }
    all.sort_by_key(|rule: &Rule| rule.priority);
    Ok(all)
}

fn decode(part: Part<'_>) -> Rule {
    let body = part.body;
    let mut rule = Rule {
        family: body.u8(0),
        narrow: body.u8(3) != 0,
        table: u32::from(body.u8(4)),
        action: body.u8(7),
        inverted: body.u32(8) & 2 != 0,
        ..Rule::default()
    };
    for attribute in body.attributes(12) {
        match attribute.kind {
            1 => rule.to = attribute.ip().and_then(|ip| IpNet::new(ip, body.u8(1)).ok()),
            2 => rule.from = attribute.ip().and_then(|ip| IpNet::new(ip, body.u8(2)).ok()),
            3 => rule.iif = Some(attribute.text().into()),
            6 => rule.priority = attribute.u32(),
            10 => rule.mark = attribute.u32(),
            15 => rule.table = attribute.u32(),
            12 | 17 | 19 | 20 | 22 | 23 | 24 => rule.narrow = true,
            _ => {}
        }
    }
    rule
}

impl Rule {
    fn takes(&self, packet: &Packet) -> bool {
        let within = |net: &Option<IpNet>, ip: IpAddr| net.is_none_or(|net| net.contains(&ip));
        let holds = within(&self.from, packet.source)
            && within(&self.to, packet.destination)
            && self.iif.as_ref().is_none_or(|iif| **iif == *packet.inbound.as_str())
            && self.mark == 0
            && !self.narrow;
        self.family == family_of(packet.destination) && holds != self.inverted
    }

    /// Formats the rule as ip-rule(8) shows it, for example `100: from all to 10.244.0.0/16 lookup 7777`.
    fn words(&self) -> Box<str> {
        let net = |net: &Option<IpNet>| net.map_or_else(|| "all".into(), |net| net.to_string());
        let mut words =
            format!("{}:{} from {}", self.priority, if self.inverted { " not" } else { "" }, net(&self.from));
        if self.to.is_some() {
            words += &format!(" to {}", net(&self.to));
        }
        if self.mark != 0 {
            words += &format!(" fwmark {:#x}", self.mark);
        }
        if let Some(iif) = &self.iif {
            words += &format!(" iif {iif}");
        }
        words += &match self.action {
            RULE_BLACKHOLE => " blackhole".into(),
            RULE_UNREACHABLE => " unreachable".into(),
            RULE_PROHIBIT => " prohibit".into(),
            _ => format!(" lookup {}", self.table),
        };
        words.into()
    }
}

/// Returns the first rule that leads to the answer; `None` if it is one that every node has.
fn responsible(rules: &[Rule], packet: &Packet, answer: &RouteAnswer) -> Option<PolicyRule> {
    const USUAL: [u32; 3] = [253, 254, 255];
    let leads = |rule: &&Rule| match answer {
        RouteAnswer::Via { table, .. } => rule.action == RULE_LOOKUP && rule.table == *table,
        RouteAnswer::Refused(_) => rule.action != RULE_LOOKUP || !USUAL.contains(&rule.table),
    };
    let first = rules.iter().filter(|rule| rule.takes(packet)).find(leads)?;
    let usual = first.action == RULE_LOOKUP && USUAL.contains(&first.table);
    (!usual).then(|| PolicyRule { priority: first.priority, words: first.words() })
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(part: Part<'_>, packet: &Packet) {
    let rules = [decode(part)];
    let via = RouteAnswer::Via { link: None, gateway: None, table: rules[0].table, destination: None };
    for answer in [via, RouteAnswer::Refused(libc::EACCES)] {
        let _ = responsible(&rules, packet, &answer);
    }
}
