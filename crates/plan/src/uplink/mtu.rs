//! Finds how large a packet may be to leave this node whole on its way to other nodes. An interface's own MTU is not
//! enough: an address on `lo` has 64 KiB and no wire. A route may carry less than its interface, and so may the device
//! below a VLAN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Config;
use crate::direct::LongestPrefix;
use crate::family::Family;
use crate::ip_address::is_host_address;
use crate::lease::Leases;
use crate::name::LinkName;
use crate::node::Uplink;
use crate::peer::PeerPath;
use crate::underlay::{LinkFacts, RouteFacts, Underlay};

/// MTU in bytes of a node whose uplink is no wire and that has no route to anywhere yet. It is Ethernet's MTU.
const ETHERNET: u32 = 1500;

/// Maximum number of layers of devices below a device that are examined.
const MAX_DEPTH: u8 = 4;

/// Maximum number of devices besides the uplink that are watched.
const MAX_WATCHED: usize = 8;

/// Kinds of devices that carry nothing out of the node: their addresses are reached through other devices.
const INTERNAL_KINDS: [&str; 3] = ["dummy", "ifb", "vrf"];

/// Kinds of devices that send packets through one of their ports.
const WITH_PORTS: [&str; 3] = ["bond", "bridge", "team"];

/// Kinds of a bridge's ports behind which guests of this node are: taps of virtual machines and ends of containers.
const OF_GUESTS: [&str; 2] = ["tun", "veth"];

/// Returns the smallest MTU in bytes on this node's side of the paths to the admitted peers. A family that the uplink
/// is too small to carry has no admitted peers. All leases count for it: without the one that made it too small, the
/// family would come and go in turn.
pub fn mtu(
    config: &Config,
    leases: &Leases,
    peers: &[PeerPath],
    uplink: &Uplink,
    underlay: &Underlay,
) -> u32 {
    let of_node = |address: &IpAddr| is_host_address(*address) && config.pods_at(*address).is_none();
    let carried = config.carried(uplink);
    let is_off = |family: &Family| carried.network(*family).is_none();
    let of_family = |family| leases.known().iter().filter_map(move |lease| lease.public(family));
    let without_peers = config.families().filter(is_off).flat_map(of_family).filter(of_node);
    let mtu = to(underlay, uplink.link, peers.iter().map(|peer| peer.public_ip).chain(without_peers));
    of_ipv6(config, underlay, uplink.link).map_or(mtu, |of_ipv6| mtu.min(of_ipv6))
}

/// Returns the MTU in bytes that the kernel uses for IPv6 packets out of the interface. A router's advertisement may have
/// lowered it. `None` without IPv6, or if it is not known.
fn of_ipv6(config: &Config, underlay: &Underlay, link: LinkName) -> Option<u32> {
    config.ipv6?;
    underlay.sysctl(&ipv6_mtu(link))?.parse().ok()
}

/// Returns the path of the sysctl with that MTU.
pub(crate) fn ipv6_mtu(link: LinkName) -> Box<str> {
    format!("net/ipv6/conf/{link}/mtu").into()
}

/// Returns the smallest MTU in bytes towards these underlay addresses. If the interface is no wire, paths to any address
/// count as well.
pub(super) fn to(underlay: &Underlay, uplink: LinkName, mut peers: impl Iterator<Item = IpAddr>) -> u32 {
    let own = of_link(underlay, uplink, MAX_DEPTH).unwrap_or(ETHERNET);
    let leaves_node = underlay.link(uplink).is_none_or(leaves_node);
    let of_route = |route: &RouteFacts| {
        let links = route.hops().filter_map(|hop| of_link(underlay, hop.link?, MAX_DEPTH));
        links.chain(route.mtu()).min()
    };
    // Usually no route carries less than the uplink, and no lookup is needed.
    let smaller = |route: &RouteFacts| of_route(route).is_some_and(|mtu| mtu < own);
    if leaves_node && !underlay.routes.iter().any(smaller) {
        return own;
    }
    let ways = LongestPrefix::new(underlay.routes.iter(), of_route);
    let least = |addresses: &mut dyn Iterator<Item = IpAddr>| {
        addresses.filter_map(|address| ways.find(address).copied().flatten()).min()
    };
    let to_peers = least(&mut peers);
    // If two routes cover half of all addresses each, both cover one of these.
    let anywhere = [
        IpAddr::V4(Ipv4Addr::new(0, 0, 0, 1)),
        Ipv4Addr::new(255, 255, 255, 254).into(),
        Ipv6Addr::from_bits(1 << 64).into(),
        Ipv6Addr::from_bits(u128::MAX - 1).into(),
    ];
    let anywhere = least(&mut anywhere.into_iter().filter(|_| !leaves_node));
    let limit = to_peers.into_iter().chain(anywhere).min();
    own.min(limit.unwrap_or(if leaves_node { own } else { ETHERNET }))
}

/// Returns the devices besides the uplink whose MTU counts for all peers, so that their changes must be watched. They are
/// the devices below the uplink and, if the uplink is no wire, the devices of the default routes. The list holds at most
/// [`MAX_WATCHED`].
pub fn lower_devices(underlay: &Underlay, uplink: LinkName) -> Vec<LinkName> {
    let mut all = parts(underlay, uplink);
    if !underlay.link(uplink).is_none_or(leaves_node) {
        let defaults = underlay.routes.iter().filter(|route| route.destination.prefix_len() <= 1);
        all.extend(defaults.flat_map(RouteFacts::hops).filter_map(|hop| hop.link));
    }
    let mut at = 0;
    while at < all.len() && all.len() < MAX_WATCHED {
        all.extend(parts(underlay, all[at]));
        at += 1;
    }
    all.sort_unstable();
    all.dedup();
    all.truncate(MAX_WATCHED);
    all
}

/// Returns the devices through which a device sends: the device below it, and its ports. Ports of a bridge to guests of
/// this node do not count, unless there are no others.
fn parts(underlay: &Underlay, name: LinkName) -> Vec<LinkName> {
    let Some(link) = underlay.link(name) else { return Vec::new() };
    let ports = underlay.links.iter().filter(|_| WITH_PORTS.contains(&&*link.kind));
    let mut ports: Vec<&LinkFacts> = ports.filter(|port| port.master == Some(name)).collect();
    let leads_out = |port: &&LinkFacts| !OF_GUESTS.contains(&&*port.kind);
    if ports.iter().any(leads_out) {
        ports.retain(leads_out);
    }
    link.lower.into_iter().chain(ports.into_iter().map(|port| port.name)).collect()
}

/// Returns true if the device carries packets out of the node.
pub(crate) fn leaves_node(link: &LinkFacts) -> bool {
    link.name.as_str() != "lo" && !INTERNAL_KINDS.contains(&&*link.kind)
}

/// Returns the smallest MTU of the device, of the devices below it and of its ports.
fn of_link(underlay: &Underlay, name: LinkName, depth: u8) -> Option<u32> {
    let link = underlay.link(name)?;
    let below = depth.checked_sub(1);
    let parts = parts(underlay, name).into_iter().filter_map(|part| of_link(underlay, part, below?));
    Some(parts.fold(link.mtu, u32::min))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::lease::Lease;
    use crate::peer::Path;
    use crate::state::Sysctl;
    use crate::underlay::{NextHop, RouteDetails};

    /// Returns a device: `eth0 9000`, `lo 65536`, `br0/bridge 1500`, `eth0>br0 1500` (a port), `vlan7:eth0 1500` (on top
    /// of `eth0`).
    fn link(text: &str) -> LinkFacts {
        let (name, mtu) = text.split_once(' ').unwrap();
        let (name, master) = name.split_once('>').map_or((name, None), |(name, master)| (name, Some(master)));
        let (name, lower) = name.split_once(':').map_or((name, None), |(name, lower)| (name, Some(lower)));
        let (name, kind) = name.split_once('/').unwrap_or((name, ""));
        let [lower, master] = [lower, master].map(|name| name.map(|name| name.parse().unwrap()));
        let (name, mtu) = (name.parse().unwrap(), mtu.parse().unwrap());
        LinkFacts { name, kind: kind.into(), mtu, lower, master, ..LinkFacts::default() }
    }

    /// Returns a route: `0.0.0.0/0 eth0+eth1 1400`. The last number is the route's own MTU.
    fn route(text: &str) -> RouteFacts {
        let mut words = text.split(' ');
        let destination = words.next().unwrap().parse().unwrap();
        let mut hops = words.next().unwrap().split('+').map(|link| link.parse().ok());
        let link = hops.next().unwrap();
        let more = hops.map(|link| NextHop { gateway: None, link }).collect();
        let mtu = words.next().map(|mtu| mtu.parse().unwrap());
        let details = Some(Box::new(RouteDetails { more, mtu, source: None }));
        RouteFacts { destination, link, details, ..RouteFacts::default() }
    }

    #[test]
    fn the_smallest_mtu_on_the_path_counts() {
        let one = "0.0.0.0/0 eth0, 192.0.2.0/24 eth0";
        for (links, routes, uplink, peers, expected) in [
            ("lo 65536, eth0 1500", one, "eth0", "192.0.2.2", 1500),
            // The node's address is on a device that is no wire.
            ("lo 65536, eth0 1500", one, "lo", "", 1500),
            ("lo 65536, eth0 9000, eth1 1500", "0.0.0.0/0 eth0+eth1", "lo", "", 1500),
            ("lo 65536, eth0 9000, eth1 9000", "0.0.0.0/0 eth0+eth1", "lo", "192.0.2.2", 9000),
            ("lo 65536, eth0 9000, eth1 1400", "0.0.0.0/0 eth0, 192.0.2.2/32 eth1", "lo", "192.0.2.2", 1400),
            ("lo 65536, eth0 9000, eth1 1400", "0.0.0.0/0 eth0, 192.0.2.2/32 eth1", "lo", "192.0.2.3", 9000),
            ("lo 65536, eth0 9000", "::/0 eth0", "lo", "2001:db8::2", 9000),
            ("lo 65536, eth0 9000, tun0 1280", "0.0.0.0/1 eth0, 128.0.0.0/1 tun0", "lo", "", 1280),
            ("lo 65536", "", "lo", "192.0.2.2", 1500),
            ("d0/dummy 1500, eth0 1400", "0.0.0.0/0 eth0", "d0", "", 1400),
            ("d0/dummy 65535, eth0 9000", "0.0.0.0/0 eth0", "d0", "", 9000),
            ("blue/vrf 65575, eth0>blue 1500", "0.0.0.0/0 eth0", "blue", "", 1500),
            // A wire's own MTU counts, unless a path to a peer carries less.
            ("eth0 9000, wg0 1420", "0.0.0.0/0 wg0, 192.0.2.0/24 eth0", "eth0", "192.0.2.2", 9000),
            (
                "eth0 9000, wg0 1420",
                "0.0.0.0/0 eth0, 198.51.100.0/24 wg0",
                "eth0",
                "192.0.2.2 198.51.100.1",
                1420,
            ),
            ("eth0 9000, eth1 1500", "192.0.2.0/24 eth1, 0.0.0.0/0 eth0", "eth0", "192.0.2.2", 1500),
            // A route's own MTU counts, locked or not.
            ("eth0 9000", "192.0.2.0/24 eth0, 0.0.0.0/0 eth0 1500", "eth0", "192.0.2.2", 9000),
            ("eth0 9000", "192.0.2.0/24 eth0, 0.0.0.0/0 eth0 1500", "eth0", "192.0.2.2 203.0.113.1", 1500),
            ("eth0 1500", "192.0.2.0/24 eth0 1400", "eth0", "192.0.2.2", 1400),
            ("eth0 1500", "192.0.2.0/24 eth0 9000", "eth0", "192.0.2.2", 1500),
            // Devices below the uplink and its ports count.
            ("eth0 1400, v7/vlan:eth0 1500", "0.0.0.0/0 v7", "v7", "", 1400),
            ("eth0>bond0 1400, eth1>bond0 9000, bond0/bond 9000", "0.0.0.0/0 bond0", "bond0", "", 1400),
            ("eth0>br0 1500, br0/bridge 9000", "0.0.0.0/0 br0", "br0", "192.0.2.2", 1500),
            ("eth0>bond0 1400, bond0/bond>br0 9000, br0/bridge 9000", "0.0.0.0/0 br0", "br0", "", 1400),
            ("a:b 1500, b:a 1400", "0.0.0.0/0 a", "a", "", 1400),
            // Ports to guests of this node count only if the bridge has no others.
            (
                "eth0>br0 1500, t0/tun>br0 1400, v0/veth>br0 1300, br0/bridge 1500",
                "0.0.0.0/0 br0",
                "br0",
                "192.0.2.2",
                1500,
            ),
            ("b0/bond>br0 1450, t0/tun>br0 1400, br0/bridge 1500", "0.0.0.0/0 br0", "br0", "", 1450),
            ("v7/vlan:e0>br0 1500, e0 1440, t0/tun>br0 1400, br0/bridge 1500", "", "br0", "", 1440),
            ("eth0/veth>br0 1400, t0/tun>br0 1450, br0/bridge 1500", "", "br0", "", 1400),
        ] {
            let links = links.split(", ").map(link).collect();
            let routes = routes.split(", ").filter(|text| !text.is_empty()).map(route).collect();
            let underlay = Underlay { links, routes, ..Underlay::default() };
            let peers = peers.split_whitespace().map(|peer| peer.parse().unwrap());
            assert_eq!(to(&underlay, uplink.parse().unwrap(), peers), expected, "{underlay:?}");
        }
    }

    #[test]
    fn a_lease_counts_only_if_its_peer_is_admitted_or_its_family_is_off() {
        let routes = "0.0.0.0/0 eth0, 203.0.113.0/24 eth0 1400, ::/0 eth0, 2001:db8::/32 eth0 1300";
        let routes = routes.split(", ").map(route).collect();
        let underlay = Underlay { links: vec![link("eth0 1500")], routes, ..Underlay::default() };
        let config = Config {
            ipv4: Some("10.244.0.0/16".parse().unwrap()),
            ipv6: Some("fd00:244::/48".parse().unwrap()),
            ..Config::new(Backend::default())
        };
        let value = br#"{"PublicIP":"203.0.113.9","PublicIPv6":"2001:db8::9","BackendType":"host-gw"}"#;
        let lease = Lease::parse("10.244.2.0-24&fd00:244:0:2::-64", value, 1).unwrap();
        let leases = Leases::Listed([lease].into());
        let peer = PeerPath {
            subnet: "10.244.2.0/24".parse().unwrap(),
            public_ip: [203, 0, 113, 9].into(),
            path: Path::Direct,
            on_link: true,
            tunnel: None,
            by_evidence: false,
            born: 1,
        };
        let mtu = |now: u32, peers: &[PeerPath]| {
            mtu(&config, &leases, peers, &Uplink::new("eth0".parse().unwrap(), now), &underlay)
        };
        assert_eq!(mtu(1500, &[]), 1500);
        assert_eq!(mtu(1500, &[peer]), 1400);
        // A tunnel for IPv6 needs 1350 bytes.
        assert_eq!(mtu(1300, &[]), 1300);
    }

    #[test]
    fn the_mtu_of_an_advertisement_counts_with_ipv6() {
        let link_name: LinkName = "eth0".parse().unwrap();
        let mtu = |ipv6: bool, value: &str| {
            let config = Config {
                ipv4: Some("10.244.0.0/16".parse().unwrap()),
                ipv6: ipv6.then(|| "fd00:244::/48".parse().unwrap()),
                ..Config::new(Backend::default())
            };
            let sysctls = vec![Sysctl { path: ipv6_mtu(link_name), value: value.into() }];
            let underlay = Underlay { links: vec![link("eth0 1500")], sysctls, ..Underlay::default() };
            super::mtu(&config, &Leases::Unknown, &[], &Uplink::new(link_name, 1500), &underlay)
        };
        assert_eq!([mtu(true, "1400"), mtu(true, "9000"), mtu(false, "1400")], [1400, 1500, 1500]);
    }

    #[test]
    fn the_watched_devices_are_those_that_the_mtu_depends_on() {
        for (links, routes, uplink, expected) in [
            (
                "lo 65536, eth0 1500, eth1 1500, eth2 1500",
                "0.0.0.0/0 eth0+eth1, 192.0.2.0/24 eth2",
                "lo",
                "eth0 eth1",
            ),
            ("eth0 1500, eth1 1500", "0.0.0.0/0 eth1", "eth0", ""),
            (
                "eth0>bond0 1500, eth1>bond0 1500, bond0/bond 1500, v7/vlan:bond0 1500",
                "0.0.0.0/0 v7",
                "v7",
                "bond0 eth0 eth1",
            ),
            ("eth0>br0 1500, t0/tun>br0 1400, br0/bridge 1500", "0.0.0.0/0 br0", "br0", "eth0"),
        ] {
            let links = links.split(", ").map(link).collect();
            let routes = routes.split(", ").map(route).collect();
            let underlay = Underlay { links, routes, ..Underlay::default() };
            let heard: Vec<String> =
                lower_devices(&underlay, uplink.parse().unwrap()).iter().map(ToString::to_string).collect();
            assert_eq!(heard.join(" "), expected);
        }
    }
}
