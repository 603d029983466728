//! Routes: the ones inside our networks as rows, the rest of the main table as facts about the underlay. Also the
//! messages that write and delete ours. Foreign routes may be very many: only their fixed header and destination are
//! read, and nothing is allocated for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use libc::{BPF_ABS, BPF_B, BPF_IND, BPF_W, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PRIORITY, RTA_TABLE};
use plan::owned::Owned;
use plan::range::Range;
use plan::state::{MAIN_TABLE, Route, RoutePath, WORST_METRIC};
use plan::underlay::{NextHop, RouteDetails, RouteFacts};
use plan::{Kind, LinkName, Verb};
use socket2::SockFilter;

use crate::devices::Devices;
use crate::error::{Cause, Error};
use crate::filter::{DROP, Interest, Notifications, OwnWrites, accept_if, find, load};
use crate::kind::{NetlinkKind, Outcome, Prepared, Writable};
use crate::message::{Attribute, Body, FAMILIES, HEADER, Message, Odd, Part, family_of};
use crate::reading::{Objects, Reading, append};
use crate::socket::Netlink;

const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
const RTA_NH_ID: u16 = 30;
const RTNH_F_DEAD: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
/// Type of the MTU in `RTA_METRICS`.
const RTAX_MTU: u16 = 2;
/// Length of `struct rtnexthop`.
const RTNEXTHOP: usize = 8;

/// Attributes of a next hop object, which the kernel repeats beside the object's id.
const OF_THE_NEXTHOP: [u16; 6] = [RTA_OIF, RTA_GATEWAY, libc::RTA_MULTIPATH, RTA_VIA, 21, 22];

/// Metric of an IPv6 route that was added without one; for IPv4 it is zero.
const IPV6_METRIC: u32 = 1024;

/// Index of the loopback device in every network namespace; IPv6 attaches blackhole and unreachable routes to it.
const LOOPBACK: u32 = 1;

/// Offset of the table in `rtmsg`.
const TABLE: u32 = HEADER as u32 + 4;
/// Offset of the attributes behind `rtmsg`.
const ATTRIBUTES: u32 = HEADER as u32 + 12;

impl NetlinkKind for Route {
    const NOTIFICATIONS: Option<Notifications> = Some(Notifications {
        name: Self::NAME,
        groups: &[libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE],
        types: [libc::RTM_NEWROUTE, libc::RTM_DELROUTE],
        own_writes: OwnWrites::Dropped,
        selection: Some(selection),
    });

    fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<Vec<Self>, Error> {
        let networks: Vec<IpNet> = owned.all_networks().copied().collect();
        let tables: Vec<u32> = owned.all_tables().collect();
        read(reading, &owned.pods, &networks, &tables)
    }
}

impl Writable for Route {
    fn prepare(&self, verb: Verb, devices: &Devices) -> Result<Prepared<'_>, LinkName> {
        Ok(Prepared::Send(if verb.deletes() { delete(self, devices)? } else { add(self, devices)? }))
    }

    /// Tries a route that was refused as invalid once more, in two steps.
    fn refused(
        &self,
        verb: Verb,
        cause: Cause,
        netlink: &mut Netlink,
        devices: &Devices,
    ) -> Result<Outcome, Cause> {
        let again = cause.errno() == Some(libc::EINVAL) && !verb.deletes();
        match again.then(|| add_in_steps(self, devices)).flatten() {
            Some(steps) => netlink.ask_each(steps).map(|()| Outcome::Done),
            None => Err(cause),
        }
    }
}

/// Reads the routes. Rows come from `tables`, inside the networks. Facts, which are left in `reading`, always come from
/// the main table, without routes to pods.
pub(crate) fn read(
    reading: &mut Reading<'_>,
    pods: &[Range],
    networks: &[IpNet],
    tables: &[u32],
) -> Result<Vec<Route>, Error> {
    let Reading { netlink, devices, objects, routes, .. } = reading;
    let mut rows = Vec::new();
    let others = tables.iter().copied().filter(|table| *table != MAIN_TABLE);
    let all: Vec<u32> = std::iter::once(MAIN_TABLE).chain(others).collect();
    for family in FAMILIES {
        for &table in &all {
            let inside = if tables.contains(&table) { networks } else { &[] };
            let outside = (table == MAIN_TABLE).then_some(pods);
            let bounds = Bounds { family, table, inside, outside, devices, objects };
            let (found, mut facts) =
                netlink.rows_and("read the routes", bounds.dump_request(), |all, part| {
                    bounds.collect(all, part);
                })?;
            append(&mut rows, found);
            routes.append(&mut facts);
        }
    }
    Ok(rows)
}

/// Reads the routes of one family and table that lead through that device, without routes to pods.
pub(crate) fn through(
    reading: &mut Reading<'_>,
    (family, table): (u8, u32),
    link: LinkName,
    pods: &[Range],
) -> Result<Vec<RouteFacts>, Error> {
    let Reading { netlink, devices, objects, .. } = reading;
    let bounds = Bounds { family, table, inside: &[], outside: Some(pods), devices, objects };
    let collect = |all: &mut Routes, part: Part<'_>| {
        bounds.collect(all, part);
        // Routes through other devices may be very many.
        all.1.pop_if(|last| !last.hops().any(|hop| hop.link == Some(link)));
    };
    let (_, facts) = netlink.rows_and("read the routes", bounds.dump_request(), collect)?;
    Ok(facts)
}

/// Accepts the messages about our tables.
fn selection(interest: &Interest) -> Vec<SockFilter> {
    let mut body = vec![load(BPF_B | BPF_ABS, TABLE)];
    let (short, long): (Vec<u32>, Vec<u32>) = interest.tables.iter().partition(|table| **table < 256);
    short.iter().for_each(|table| body.extend(accept_if(*table)));
    if !long.is_empty() {
        body.extend(find(ATTRIBUTES, RTA_TABLE));
        body.push(load(BPF_W | BPF_IND, 4));
        long.iter().for_each(|table| body.extend(accept_if(table.to_be())));
    }
    body.push(DROP);
    body
}

/// Rows, and facts about the underlay.
pub(crate) type Routes = (Vec<Route>, Vec<RouteFacts>);

/// Selection of routes from the dump of one table of one family.
pub(crate) struct Bounds<'a> {
    pub(crate) family: u8,
    pub(crate) table: u32,
    /// Networks inside which routes are rows.
    pub(crate) inside: &'a [IpNet],
    /// Ranges of pods' addresses. Routes to other destinations are facts about the underlay; `None` if there are no
    /// facts.
    pub(crate) outside: Option<&'a [Range]>,
    pub(crate) devices: &'a Devices,
    /// Next hop objects of others.
    pub(crate) objects: &'a Objects,
}

impl Bounds<'_> {
    fn dump_request(&self) -> Message {
        let mut message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &[&[self.family], &[0; 11]]);
        message.u32(RTA_TABLE, self.table);
        message
    }

    pub(crate) fn collect(&self, (rows, facts): &mut Routes, part: Part<'_>) {
        let body = part.body;
        // If a family is switched off, the kernel answers with the routes of other families.
        if body.u8(0) != self.family || body.u32(8) & libc::RTM_F_CLONED != 0 {
            return;
        }
        let Some(destination) = destination(body) else { return };
        if self.inside.iter().any(|network| network.contains(&destination)) {
            rows.extend(self.row(body, destination));
        }
        let to_pods = |pods: &[Range]| pods.iter().any(|range| range.covers(&destination));
        if self.outside.is_some_and(|pods| !to_pods(pods)) && body.u8(7) == libc::RTN_UNICAST {
            facts.push(self.facts(body, destination));
        }
    }

    fn facts(&self, body: Body<'_>, destination: IpNet) -> RouteFacts {
        let mut facts = RouteFacts { destination, ..RouteFacts::default() };
        let (mut details, mut hops, mut object) = (RouteDetails::default(), Vec::new(), None);
        for attribute in body.attributes(12) {
            match attribute.kind {
                RTA_GATEWAY => facts.gateway = attribute.ip(),
                RTA_VIA => facts.gateway = via(attribute),
                RTA_OIF => facts.link = self.devices.name(attribute.u32()),
                RTA_PRIORITY => facts.metric = attribute.u32(),
                RTA_NH_ID => object = Some(attribute.u32()),
                libc::RTA_MULTIPATH => hops = self.several(attribute.value),
                libc::RTA_PREFSRC if destination.prefix_len() <= 1 => details.source = attribute.ip(),
                libc::RTA_METRICS => {
                    let mtu = attribute.nested().find(|metric| metric.kind == RTAX_MTU);
                    details.mtu = mtu.map(Attribute::u32).filter(|mtu| *mtu != 0);
                }
                _ => {}
            }
        }
        // With `nexthop_compat_mode` 0 the kernel shows only the id of the object.
        if let Some(object) = object.filter(|_| facts.link.is_none() && hops.is_empty()) {
            hops = self.objects.hops(object);
        }
        let mut hops = hops.into_iter();
        if let Some(NextHop { gateway, link }) = hops.next() {
            (facts.gateway, facts.link) = (gateway, link);
            details.more = hops.collect();
        }
        facts.details = (details != RouteDetails::default()).then(|| Box::new(details));
        facts
    }

    /// Returns the next hops that are in use, from a list of `struct rtnexthop` with their attributes.
    fn several(&self, mut body: Body<'_>) -> Vec<NextHop> {
        let mut hops = Vec::new();
        loop {
            let length = usize::from(body.u16(0));
            if length < RTNEXTHOP || length > body.0.len() {
                return hops;
            }
            let (hop, rest) = body.0.split_at(length);
            let hop = Body(hop);
            let gateway = |attribute: Attribute<'_>| match attribute.kind {
                RTA_GATEWAY => attribute.ip(),
                RTA_VIA => via(attribute),
                _ => None,
            };
            if hop.u8(2) & RTNH_F_DEAD == 0 {
                let gateway = hop.attributes(RTNEXTHOP).find_map(gateway);
                hops.push(NextHop { gateway, link: self.devices.name(hop.u32(4)) });
            }
            body = Body(rest.get(length.next_multiple_of(4) - length..).unwrap_or_default());
        }
    }

    /// Decodes a row. Returns `None` for another metric, TOS or source prefix: such a route has another key than ours.
    fn row(&self, body: Body<'_>, destination: IpNet) -> Option<Route> {
        let find = |kind| body.attributes(12).find(|attribute| attribute.kind == kind);
        let default = if destination.addr().is_ipv6() { IPV6_METRIC } else { 0 };
        let metric = match find(RTA_PRIORITY).map_or(0, Attribute::u32) {
            metric if metric == default => 0,
            WORST_METRIC => WORST_METRIC,
            _ => return None,
        };
        if body.u8(2) != 0 || body.u8(3) != 0 {
            return None;
        }
        let mut odd = Odd::default();
        let path = match find(RTA_NH_ID) {
            Some(id) => RoutePath::Nexthop(id.u32()),
            None => self.path(body, &mut odd),
        };
        let by_object = matches!(path, RoutePath::Nexthop(_));
        for attribute in body.attributes(12) {
            if !(by_object && OF_THE_NEXTHOP.contains(&attribute.kind)) {
                note_odd(attribute, &mut odd);
            }
        }
        if destination.addr().is_ipv4() && body.u8(6) != scope(&path) {
            odd.note(format_args!("scope {}", body.u8(6)));
        }
        let (table, protocol, unknown) = (self.table, body.u8(5), odd.to_unknown());
        Some(Route { table, destination, path, protocol, metric, unknown })
    }

    fn path(&self, body: Body<'_>, odd: &mut Odd) -> RoutePath {
        match body.u8(7) {
            libc::RTN_UNICAST => {}
            libc::RTN_UNREACHABLE => return RoutePath::Unreachable,
            libc::RTN_BLACKHOLE => return RoutePath::Blackhole,
            other => {
                odd.note(format_args!("type {other}"));
                return RoutePath::Other;
            }
        }
        let find = |kind| body.attributes(12).find(|attribute| attribute.kind == kind);
        // Several next hops, or one of the other family, are described by `note_odd`.
        if find(libc::RTA_MULTIPATH).or(find(RTA_VIA)).is_some() {
            return RoutePath::Other;
        }
        let Some(link) = find(RTA_OIF).and_then(|index| self.devices.name(index.u32())) else {
            odd.note("unknown device");
            return RoutePath::Other;
        };
        let onlink = body.u32(8) & RTNH_F_ONLINK != 0;
        match find(RTA_GATEWAY).and_then(Attribute::ip) {
            Some(gateway) => RoutePath::Via { gateway, link, onlink },
            None => RoutePath::Link(link),
        }
    }
}

fn note_odd(attribute: Attribute<'_>, odd: &mut Odd) {
    match attribute.kind {
        RTA_DST | RTA_TABLE | RTA_PRIORITY | RTA_OIF | RTA_GATEWAY | RTA_NH_ID => {}
        // `rta_expires` of `struct rta_cacheinfo`.
        libc::RTA_CACHEINFO if attribute.value.u32(8) != 0 => odd.note("expires"),
        RTA_PREF if attribute.u8() != 0 => odd.note("pref"),
        libc::RTA_CACHEINFO | RTA_PREF => {}
        libc::RTA_PREFSRC => match attribute.ip() {
            Some(source) => odd.note(format_args!("src {source}")),
            None => odd.note("src"),
        },
        libc::RTA_METRICS => odd.note("metrics"),
        libc::RTA_MULTIPATH => odd.note("multipath"),
        RTA_VIA => odd.note("via another family"),
        libc::RTA_FLOW => odd.note("realm"),
        21 | 22 => odd.note("encap"),
        other => odd.note(format_args!("attribute {other}")),
    }
}

/// Returns the scope of a route of that shape that was added without one (ip-route(8)).
fn scope(path: &RoutePath) -> u8 {
    match path {
        RoutePath::Link(_) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    }
}

fn destination(body: Body<'_>) -> Option<IpNet> {
    let find = body.attributes(12).find(|attribute| attribute.kind == RTA_DST);
    let any: IpAddr = match i32::from(body.u8(0)) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new(find.map_or(Some(any), Attribute::ip)?, body.u8(1)).ok()
}

/// Reads `struct rtvia`: a family, then the address.
fn via(attribute: Attribute<'_>) -> Option<IpAddr> {
    let address = Body(attribute.value.0.get(2..)?);
    Attribute { kind: RTA_GATEWAY, value: address }.ip()
}

fn add(row: &Route, devices: &Devices) -> Result<Message, LinkName> {
    message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, row, devices)
}

/// Returns two messages that write an IPv6 route whose gateway lies in the route's own destination. IPv6 refuses an
/// onlink gateway while the main table leads to it through another device. So the first message leads the destination
/// to the device alone, the second one to the gateway. Unlike after a deletion, no packet takes the default route
/// meanwhile. Returns `None` for all other routes.
fn add_in_steps(row: &Route, devices: &Devices) -> Option<[Message; 2]> {
    let RoutePath::Via { gateway, link, onlink: true } = row.path else { return None };
    let first = Route { path: RoutePath::Link(link), ..row.clone() };
    let needed = gateway.is_ipv6() && row.destination.contains(&gateway);
    needed.then(|| Some([add(&first, devices).ok()?, add(row, devices).ok()?]))?
}

/// Returns the message that deletes exactly that route, even if several have its key. The exception: the kernel does
/// not distinguish an IPv6 route through a next hop object from a plain one.
fn delete(row: &Route, devices: &Devices) -> Result<Message, LinkName> {
    let mut message = message(libc::RTM_DELROUTE, 0, row, devices)?;
    if row.destination.addr().is_ipv6() {
        if row.metric == 0 {
            message.u32(RTA_PRIORITY, IPV6_METRIC);
        }
        if matches!(row.path, RoutePath::Unreachable | RoutePath::Blackhole) {
            message.u32(RTA_OIF, LOOPBACK);
        }
    }
    Ok(message)
}

fn message(kind: u16, flags: libc::c_int, row: &Route, devices: &Devices) -> Result<Message, LinkName> {
    let (address, prefix) = (row.destination.addr(), row.destination.prefix_len());
    let route_type = match row.path {
        RoutePath::Unreachable => libc::RTN_UNREACHABLE,
        RoutePath::Blackhole => libc::RTN_BLACKHOLE,
        // The unspecified type deletes a route of any type.
        RoutePath::Other => libc::RTN_UNSPEC,
        _ => libc::RTN_UNICAST,
    };
    // The scope `nowhere` deletes a route of any scope.
    let scope = if kind == libc::RTM_DELROUTE { libc::RT_SCOPE_NOWHERE } else { scope(&row.path) };
    let onlink = matches!(row.path, RoutePath::Via { onlink: true, .. });
    let route_flags = if onlink { RTNH_F_ONLINK } else { 0 };
    // The table in the header holds one byte; RTA_TABLE takes precedence.
    let header = [family_of(address), prefix, 0, 0, 0, row.protocol, scope, route_type];
    let mut message = Message::new(kind, flags, &[&header, &route_flags.to_ne_bytes()]);
    message.ip(RTA_DST, address).u32(RTA_TABLE, row.table);
    if row.metric != 0 {
        message.u32(RTA_PRIORITY, row.metric);
    }
    match row.path {
        RoutePath::Via { gateway, link, .. } => {
            message.ip(RTA_GATEWAY, gateway).u32(RTA_OIF, devices.need(link)?);
        }
        RoutePath::Link(link) => _ = message.u32(RTA_OIF, devices.need(link)?),
        RoutePath::Nexthop(id) => _ = message.u32(RTA_NH_ID, id),
        RoutePath::Unreachable | RoutePath::Blackhole | RoutePath::Other => {}
    }
    Ok(message)
}

/// Answer of the kernel to a route lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Route of the packet; its `destination` is the address that was looked up.
    pub route: RouteFacts,
    /// Source address that the kernel would choose.
    pub source: Option<IpAddr>,
}

pub(crate) fn lookup_request(target: IpAddr) -> Message {
    let header = [family_of(target), if target.is_ipv4() { 32 } else { 128 }];
    let mut message = Message::new(libc::RTM_GETROUTE, 0, &[&header, &[0; 10]]);
    message.ip(RTA_DST, target);
    message
}

pub(crate) fn decode_lookup(part: Part<'_>, target: IpAddr, devices: &Devices) -> Lookup {
    let find = |kind| part.body.attributes(12).find(|attribute| attribute.kind == kind);
    let route = RouteFacts {
        destination: target.into(),
        gateway: find(RTA_GATEWAY).and_then(Attribute::ip).or_else(|| find(RTA_VIA).and_then(via)),
        link: find(RTA_OIF).and_then(|index| devices.name(index.u32())),
        ..RouteFacts::default()
    };
    Lookup { route, source: find(libc::RTA_PREFSRC).and_then(Attribute::ip) }
}
