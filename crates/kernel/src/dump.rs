//! Reads the kernel: rows within the bounds of `owned`, and facts about the underlay. A dump that changed while it was
//! read is read again, and never returned.

use std::net::IpAddr;

use plan::owned::Owned;
use plan::passage::{Packet, Passage};
use plan::range::Range;
use plan::state::Sysctl;
use plan::underlay::{FirewallFacts, RouteLookup, Underlay, pods_bridge};
use plan::{State, forwarding};

use crate::devices::Devices;
use crate::error::{Cause, Error};
use crate::filter::Interest;
use crate::handle::Kernel;
use crate::reading::{FoundAddress, Objects, Reading};
use crate::route::{self, Lookup};
use crate::socket::Netlink;
use crate::{addr, devices, kind, nexthop, packet_path, segment, sysctl};

/// Result of one reading of the kernel.
#[derive(Clone, Debug)]
pub struct Observed {
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
    pub fn dump(&mut self, owned: &Owned) -> Result<Observed, Error> {
        let mut reading = begin(&mut self.netlink)?;
        let mut state = kind::read(&mut reading, owned)?;
        let packets = packets(owned, &owned.passages, &reading.addresses);
        let sysctls = sysctls(owned, &packets);
        state.sysctls = sysctls.iter().cloned().collect();
        let pods = indexes(&packets, &reading.devices);
        let firewall = if owned.firewall {
            self.firewall.read(&mut state, [packets, owned.between_nodes.clone()].concat(), &reading.devices)
        } else {
            FirewallFacts::default()
        };
        let lookups = packet_paths(&mut reading, owned);
        let (tables, beside) = segment::beside(&mut reading, owned)?;
        let interest = Interest::new(owned, &reading.devices, reading.netlink.port);
        if !tables.is_empty() {
            self.beside = tables;
        }
        let interest = interest.and_pods(pods).and_tables(&self.beside);
        let underlay = Underlay { firewall, sysctls, lookups, beside, ..underlay(reading) };
        let interest = interest.and_links(plan::uplink::lower_devices(&underlay, owned.uplink));
        Ok(Observed { state, underlay, interest })
    }

    /// Reads the underlay alone, without routes to the ranges in `pods`. Before the uplink is chosen, nothing is ours.
    pub fn underlay(&mut self, pods: &[Range]) -> Result<Underlay, Error> {
        let mut reading = begin(&mut self.netlink)?;
        nexthop::read(&mut reading)?;
        route::read(&mut reading, pods, &[], &[])?;
        Ok(underlay(reading))
    }

    /// Asks the kernel which route a packet to `target` would take. Fails if there is none, or if the kernel cannot be
    /// asked.
    pub fn route_to(&mut self, target: IpAddr) -> Result<Lookup, Error> {
        let devices = devices::read(&mut self.netlink)?;
        let mut found = None;
        let ask = self.netlink.ask(&mut route::lookup_request(target), |part| {
            found = Some(route::decode_lookup(part, target, &devices));
        });
        let found = ask.and_then(|_| found.ok_or(Cause::Refused { errno: libc::ENETUNREACH, text: None }));
        found.map_err(|cause| Error::new(format!("look up the route to {target}"), cause))
    }
}

/// Reads the devices and addresses, on which all other kinds depend.
fn begin(netlink: &mut Netlink) -> Result<Reading<'_>, Error> {
    let devices = devices::read(netlink)?;
    let addresses = addr::read(netlink, &devices)?;
    Ok(Reading { netlink, devices, addresses, objects: Objects::default(), routes: Vec::new() })
}

/// Reads the sysctls within the bounds, and the forwarding of the devices through which the packets come.
fn sysctls(owned: &Owned, packets: &[Packet]) -> Vec<Sysctl> {
    let mut paths = owned.sysctls.clone();
    paths.extend(packets.iter().map(|packet| forwarding(packet.inbound)));
    paths.sort_unstable();
    paths.dedup();
    paths.iter().filter_map(|path| sysctl::read(path)).collect()
}

/// Returns the indexes of the devices by which the packets come in.
fn indexes(packets: &[Packet], devices: &Devices) -> Vec<u32> {
    let mut all: Vec<u32> = packets.iter().filter_map(|packet| devices.index(packet.inbound)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Asks where the kernel sends packets of pods, and whether it accepts packets of peers. On an error the list is empty:
/// nothing is known.
fn packet_paths(reading: &mut Reading<'_>, owned: &Owned) -> Vec<RouteLookup> {
    let mut asked = owned.passages.clone();
    asked.extend(owned.faulty.iter().copied());
    asked.sort_unstable();
    asked.dedup();
    let mut packets = packets(owned, &asked, &reading.addresses);
    if packets.iter().any(|packet| reading.devices.index(packet.inbound).is_none()) {
        // Before the first pod there is no bridge. Then only this node itself sends from its pod subnet, if it has an
        // address there.
        let has =
            |address: IpAddr| reading.addresses.iter().any(|found| found.facts.address.addr() == address);
        packets.extend(asked.iter().map(Passage::local_packet).filter(|packet| has(packet.source)));
    }
    // The kernel checks the sources of IPv4 packets alone.
    let of_peers =
        owned.between_nodes.iter().filter(|packet| packet.source.is_ipv4() && packet.is_received());
    packets.extend(of_peers.filter(|packet| !owned.links.contains(&packet.inbound) && !packet.is_reply()));
    packet_path::packet_paths(reading.netlink, &packets, &reading.devices).unwrap_or_default()
}

/// Returns the packets of the passages, one for each direction.
fn packets(owned: &Owned, passages: &[Passage], addresses: &[FoundAddress]) -> Vec<Packet> {
    let known: Vec<_> = addresses.iter().map(|found| found.facts.clone()).collect();
    passages.iter().flat_map(|passage| passage.packets(pods_bridge(passage, &known, &owned.links))).collect()
}

fn underlay(reading: Reading<'_>) -> Underlay {
    Underlay {
        links: reading.devices.into_facts(),
        addresses: reading.addresses.into_iter().map(|found| found.facts).collect(),
        routes: reading.routes,
        beside: Vec::new(),
        firewall: FirewallFacts::default(),
        sysctls: Vec::new(),
        lookups: Vec::new(),
    }
}
