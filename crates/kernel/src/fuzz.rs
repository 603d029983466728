//! Entry points into the parsers for `make fuzz`: netlink messages, and what the tools for traffic rules print. Compiled with
//! `cfg(fuzzing)` alone.

use plan::Family;
use plan::owned::Owned;
use plan::passage::{Packet, Payload};

use crate::devices::Devices;
use crate::message::parts;
use crate::reading::Objects;
use crate::route::{Bounds, Routes};
use crate::{
    addr, devices, fdb, iptables, names, neigh, nexthop, nft, packet, packet_path, route, rule, watch,
};

/// Bounds of a node with one IPv4 network.
const OWNED: &str = r#"{"links": ["flannel.1"], "uplink": "eth0", "networks": ["10.244.0.0/16"], "table": 254,
    "sysctls": [], "sweep": "left-overs"}"#;

/// Reads messages of rtnetlink and sock_diag as every kind of object.
pub fn netlink(datagram: &[u8]) {
    let owned: Owned = serde_json::from_str(OWNED).unwrap_or_else(|error| panic!("{error}"));
    let (flannel, networks) = (owned.links[0], &*owned.networks);
    let devices = Devices::new(parts(datagram).filter_map(devices::decode).collect());
    let mut objects = Objects::default();
    parts(datagram).for_each(|part| objects.collect(part, &devices));
    let pods = [networks[0].into()];
    let mut routes = Routes::default();
    for part in parts(datagram) {
        let _ = (addr::decode(part, &devices), fdb::decode(part, flannel), neigh::decode(part, flannel));
        let _ = (neigh::known_neighbour(part), nexthop::decode(part, &devices), watch::event(part));
        let _ = (names::name_in(part), rule::decode(part, libc::AF_INET as u8, &owned));
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let (inside, outside, devices, objects) = (networks, Some(&pods[..]), &devices, &objects);
            Bounds { family, table: 254, inside, outside, devices, objects }.collect(&mut routes, part);
        }
        for packet in packets() {
            let _ = route::decode_lookup(part, packet.destination, &devices);
            packet_path::fuzz(part, &packet);
        }
    }
    let _ = packet::neighbour_event(datagram);
    let rows: Vec<_> = devices.row(flannel).into_iter().collect();
    let _ = (rows, devices.into_facts());
}

/// Reads messages of nf_tables as every kind of object, and follows packets of pods through the rules among them.
pub fn nftables(datagram: &[u8]) {
    nft::fuzz_messages(datagram, &packets());
}

/// Reads what `nft -j` prints, and `nft` for firewalld's table and for its own version.
pub fn nft(text: &str) {
    for family in Family::ALL {
        nft::fuzz_text(text, family);
    }
}

/// Reads what `iptables-save` and the other tools of iptables print.
pub fn iptables(text: &str) {
    iptables::fuzz_text(text, &packets());
}

/// Reads `/proc/net/unix`.
pub fn unix(text: &str) -> Vec<String> {
    names::listing(text).into_iter().map(|held| held.name).collect()
}

/// A packet of a pod in each family.
fn packets() -> [Packet; 2] {
    let [bridge, tunnel] =
        ["cni0", "flannel.1"].map(|name| name.parse().unwrap_or_else(|error: String| panic!("{error}")));
    let payload = Payload::Tcp;
    let packet =
        |source, destination| Packet { source, destination, inbound: bridge, outbound: tunnel, payload };
    [
        packet([10, 244, 1, 2].into(), [10, 244, 2, 2].into()),
        packet([0xfd00, 0x244, 0, 1, 0, 0, 0, 2].into(), [0xfd00, 0x244, 0, 2, 0, 0, 0, 2].into()),
    ]
}
