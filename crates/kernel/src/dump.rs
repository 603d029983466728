//! Reads the kernel: rows within the bounds of `owned`, and facts about the underlay. A dump that changed while it was
//! read is read again, and never returned.

use std::net::IpAddr;

use ipnet::IpNet;
use plan::firewall::{Facts, Packet, Passage};
use plan::forwarding;
use plan::input::{Underlay, Way};
use plan::owned::Owned;
use plan::state::{MAIN_TABLE, Nexthop, Rule, Sysctl};
use plan::subnet_alloc::Range;
use plan::{LinkName, State};

use crate::error::{Cause, Error};
use crate::filter::Interest;
use crate::link::Devices;
use crate::nexthop::Objects;
use crate::route::{Bounds, Lookup, Routes};
use crate::wire::{Message, Part};
use crate::{Kernel, addr, fdb, link, neigh, nexthop, route, rule, sysctl, way};

pub(crate) const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

const ANY: u8 = libc::AF_UNSPEC as u8;

/// Result of one reading of the kernel.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Observed state within the bounds.
    pub state: State,
    /// Facts about the underlay.
    pub underlay: Underlay,
    /// Input of [`Filter::set`](crate::Filter::set): the notifications that matter from now on.
    pub interest: Interest,
}

impl Kernel {
    /// Reads the objects within the bounds of `owned`, and the underlay. Fails if a dump fails or changes during each
    /// reading. Traffic rules that cannot be read are no failure: the facts name them.
    pub fn dump(&mut self, owned: &Owned) -> Result<Seen, Error> {
        let devices = self.devices()?;
        let addresses = self.addresses(&devices)?;
        let all: Vec<IpNet> = owned.all_networks().copied().collect();
        let tables: Vec<u32> = owned.all_tables().collect();
        let (nexthops, objects) = self.nexthops(&devices)?;
        let routes = self.routes(&owned.pods, &all, &tables, &devices, &objects)?;
        let links = devices.indexes(&owned.links);
        let tunnels: Vec<_> = links.iter().filter(|(name, _)| devices.is_vxlan(*name)).copied().collect();
        let ours = addresses.iter().filter(|seen| owned.links.contains(&seen.facts.link));
        let mut paths = owned.sysctls.clone();
        paths.extend(
            packets(owned, &owned.passages, &addresses).iter().map(|packet| forwarding(packet.inbound)),
        );
        paths.sort_unstable();
        paths.dedup();
        let sysctls: Vec<Sysctl> = paths.iter().filter_map(|path| sysctl::read(path)).collect();
        let mut state = State {
            sysctls: sysctls.iter().cloned().collect(),
            links: owned.links.iter().filter_map(|name| devices.row(*name)).collect(),
            addresses: ours.map(addr::Seen::row).collect(),
            fdb: self.entries("read the FDB", fdb::AF_BRIDGE, &tunnels, fdb::decode)?.into(),
            neighbours: self.entries("read the neighbours", ANY, &links, neigh::decode)?.into(),
            nexthops: nexthops.into(),
            routes: routes.rows.into(),
            rules: self.rules(owned)?.into(),
            ..State::default()
        };
        let facts = if owned.firewall {
            let packets = packets(owned, &owned.passages, &addresses);
            self.firewall.read(&mut state, packets, &devices)
        } else {
            Facts::default()
        };
        let ways = self.ways(owned, &addresses, &devices);
        let interest = Interest::new(owned, &devices, self.netlink.port);
        let underlay =
            Underlay { firewall: facts, sysctls, ways, ..underlay(devices, addresses, routes.underlay) };
        let interest = interest.and_links(plan::uplink::wires(&underlay, owned.uplink));
        Ok(Seen { state, underlay, interest })
    }

    /// Asks where the kernel sends packets of pods. On an error the list is empty: nothing is known.
    fn ways(&mut self, owned: &Owned, addresses: &[addr::Seen], devices: &Devices) -> Vec<Way> {
        let mut asked = owned.passages.clone();
        asked.extend(owned.faulty.iter().copied());
        asked.sort_unstable();
        asked.dedup();
        let packets = packets(owned, &asked, addresses);
        way::ways(&mut self.netlink, &packets, devices).unwrap_or_default()
    }

    /// Reads the underlay alone, without routes to the ranges in `pods`. Before the uplink is chosen, nothing is ours.
    pub fn underlay(&mut self, pods: &[Range]) -> Result<Underlay, Error> {
        let devices = self.devices()?;
        let addresses = self.addresses(&devices)?;
        let (_, objects) = self.nexthops(&devices)?;
        let routes = self.routes(pods, &[], &[], &devices, &objects)?.underlay;
        Ok(underlay(devices, addresses, routes))
    }

    /// Asks the kernel which route a packet to `target` would take. Fails if there is none, or if the kernel cannot be
    /// asked.
    pub fn route_to(&mut self, target: IpAddr) -> Result<Lookup, Error> {
        let devices = self.devices()?;
        let mut found = None;
        let ask = self.netlink.ask(&mut route::lookup_request(target), |part| {
            found = Some(route::decode_lookup(part, target, &devices));
        });
        let found = ask.and_then(|_| found.ok_or(Cause::Refused { errno: libc::ENETUNREACH, text: None }));
        found.map_err(|cause| Error::new(format!("look up the route to {target}"), cause))
    }

    pub(crate) fn devices(&mut self) -> Result<Devices, Error> {
        let dump =
            self.netlink.dump(link::dump_request(), |all: &mut Vec<_>, part| all.extend(link::decode(part)));
        dump.map(Devices::new).map_err(|cause| Error::new("read the devices", cause))
    }

    pub(crate) fn addresses(&mut self, devices: &Devices) -> Result<Vec<addr::Seen>, Error> {
        let mut all =
            self.rows("read the addresses", addr::dump_request(), |part| addr::decode(part, devices))?;
        all.sort_by_key(|seen| seen.index);
        Ok(all)
    }

    /// Reads the routes. Rows come from `tables`, inside the networks. Facts always come from the main table, without
    /// routes to pods.
    fn routes(
        &mut self,
        pods: &[Range],
        all_networks: &[IpNet],
        tables: &[u32],
        devices: &Devices,
        objects: &Objects,
    ) -> Result<Routes, Error> {
        let mut routes = Routes::default();
        let most = self.rows;
        let others = tables.iter().copied().filter(|table| *table != MAIN_TABLE);
        let read: Vec<u32> = std::iter::once(MAIN_TABLE).chain(others).collect();
        for family in FAMILIES {
            for &table in &read {
                let inside = if tables.contains(&table) { all_networks } else { &[] };
                let outside = (table == MAIN_TABLE).then_some(pods);
                let bounds = Bounds { family, table, inside, outside, devices, objects };
                let dump = self.netlink.dump(bounds.dump_request(), |all: &mut Routes, part| {
                    make_room(&mut all.rows, most);
                    bounds.collect(all, part);
                });
                let mut part: Routes = present(dump).map_err(|cause| Error::new("read the routes", cause))?;
                self.rows = self.rows.max(part.rows.len());
                append(&mut routes.rows, part.rows);
                routes.underlay.append(&mut part.underlay);
            }
        }
        Ok(routes)
    }

    /// Reads neighbours or FDB entries, one device at a time: foreign ones may be very many.
    fn entries<T>(
        &mut self,
        what: &'static str,
        family: u8,
        links: &[(LinkName, u32)],
        decode: fn(Part<'_>, LinkName) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        for &(name, index) in links {
            let of_it = |part: Part<'_>| decode(part, name).filter(|_| neigh::index(part) == index);
            append(&mut all, self.rows(what, neigh::dump_request(family, index), of_it)?);
        }
        Ok(all)
    }

    /// Reads the next hop objects: ours as rows, and those of others.
    fn nexthops(&mut self, devices: &Devices) -> Result<(Vec<Nexthop>, Objects), Error> {
        let most = self.rows;
        type Both = (Vec<Nexthop>, Objects);
        let dump = self.netlink.dump(nexthop::dump_request(), |(ours, others): &mut Both, part| {
            if let Some(row) = nexthop::decode(part, devices) {
                make_room(ours, most);
                ours.push(row);
            }
            others.collect(part, devices);
        });
        let both = present(dump).map_err(|cause| Error::new("read the next hops", cause))?;
        self.rows = most.max(both.0.len());
        Ok(both)
    }

    fn rules(&mut self, owned: &Owned) -> Result<Vec<Rule>, Error> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let request = rule::dump_request(family);
            all.append(&mut self.rows("read the rules", request, |part| rule::decode(part, family, owned))?);
        }
        Ok(all)
    }

    fn rows<T>(
        &mut self,
        what: &'static str,
        request: Message,
        decode: impl Fn(Part<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let most = self.rows;
        let dump = self.netlink.dump(request, |all: &mut Vec<T>, part| {
            make_room(all, most);
            all.extend(decode(part));
        });
        let all = present(dump).map_err(|cause| Error::new(what, cause))?;
        self.rows = most.max(all.len());
        Ok(all)
    }
}

/// Returns the packets of the passages, one for each direction.
fn packets(owned: &Owned, passages: &[Passage], addresses: &[addr::Seen]) -> Vec<Packet> {
    let known: Vec<_> = addresses.iter().map(|seen| seen.facts.clone()).collect();
    passages.iter().flat_map(|way| way.packets(way.bridge(&known, &owned.links))).collect()
}

/// Appends `more`, and takes it over without copying if `all` is empty.
fn append<T>(all: &mut Vec<T>, mut more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.append(&mut more);
    }
}

/// Reserves room for `most` rows before the first one. Growing a list costs more than reserved pages that stay
/// untouched.
fn make_room<T>(all: &mut Vec<T>, most: usize) {
    if all.capacity() == 0 {
        all.reserve(most);
    }
}

/// Turns the error for a missing table, device, family or kind of object into an empty result.
fn present<A: Default>(dump: Result<A, Cause>) -> Result<A, Cause> {
    match dump {
        Err(Cause::Refused {
            errno: libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP | libc::EAFNOSUPPORT,
            ..
        }) => Ok(A::default()),
        other => other,
    }
}

fn underlay(devices: Devices, addresses: Vec<addr::Seen>, routes: Vec<plan::input::RouteFacts>) -> Underlay {
    Underlay {
        links: devices.into_facts(),
        addresses: addresses.into_iter().map(|seen| seen.facts).collect(),
        routes,
        firewall: Facts::default(),
        sysctls: Vec::new(),
        ways: Vec::new(),
    }
}
