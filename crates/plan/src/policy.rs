//! Finds policy rules and routes of this node that take packets of pods away from this daemon's routes. They are reported
//! with the remedy, and never changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::family::Family;
use crate::name::LinkName;
use crate::note::{Diversion, NodeFault, Note};
use crate::peer::PeerPath;
use crate::state::{MAIN_TABLE, Route, RoutePath, State};
use crate::underlay::{AddressFacts, RouteAnswer, RouteLookup, Underlay};

/// Maximum number of diversions that are reported at once: one rule diverts the packets to all peers.
const TOLD: usize = 4;

/// `EXDEV`: result of a lookup whose source address may not come in by that device.
const CROSS_DEVICE: i32 = 18;
/// `EINVAL`: result of a lookup that ends at a blackhole.
const BLACKHOLE: i32 = 22;
/// `EACCES`: result of a lookup that ends at a prohibit route.
const PROHIBITED: i32 = 13;

/// Diversions that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Diversions {
    pub(crate) notes: Vec<Note>,
    /// Subnets of peers to which packets are not sent as they should be.
    pub(crate) subnets: Vec<IpNet>,
}

/// Finds the packets that this node sends elsewhere, though its routes are as desired.
pub(crate) fn diversions(
    config: &Config,
    wanted: &State,
    peers: &[PeerPath],
    seen: &State,
    underlay: &Underlay,
) -> Diversions {
    let mut by: BTreeSet<(Box<str>, Box<str>)> = BTreeSet::new();
    let mut all = Diversions::default();
    for way in &underlay.lookups {
        let Some(expected) = expected(way, config, wanted, seen, underlay) else { continue };
        let Some(diversion) = diversion(way, expected, config, underlay) else { continue };
        let peer = peers.iter().find(|peer| peer.subnet.contains(&way.packet.destination));
        all.subnets.extend(peer.map(|peer| peer.subnet).filter(|subnet| !all.subnets.contains(subnet)));
        if all.notes.len() < TOLD && by.insert((diversion.by.clone(), diversion.fate.clone())) {
            all.notes.push(Note::Node(NodeFault::Diverted(Box::new(diversion))));
        }
    }
    all
}

/// Returns the device by which the packet should leave, if everything that leads there is in place.
fn expected(
    way: &RouteLookup,
    config: &Config,
    wanted: &State,
    seen: &State,
    underlay: &Underlay,
) -> Option<LinkName> {
    let packet = &way.packet;
    let up = |link: LinkName| underlay.link(link).is_some_and(|link| link.up && link.carrier);
    let to_peer = |address: IpAddr| {
        let leads =
            |row: &&Route| row.table == config.table && row.metric == 0 && row.destination.contains(&address);
        let route = wanted.routes.iter().find(leads)?;
        seen.routes.iter().find(|row| *row == route)?;
        match route.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => Some(link),
            RoutePath::Nexthop(id) => seen.nexthops.iter().find(|row| row.id == id).map(|row| row.link),
            RoutePath::Unreachable | RoutePath::Blackhole | RoutePath::Other => None,
        }
    };
    if let Some(link) = to_peer(packet.destination) {
        return (up(link) && link == packet.outbound).then_some(link);
    }
    // Packets to our own pods leave through the bridge, whose route only the kernel makes. They must come in by the
    // device through which our packets to their source leave.
    let bridge = |facts: &AddressFacts| {
        facts.link == packet.outbound && facts.address.contains(&packet.destination) && up(facts.link)
    };
    let comes = to_peer(packet.source) == Some(packet.inbound);
    (comes && underlay.addresses.iter().any(bridge)).then_some(packet.outbound)
}

fn diversion(
    way: &RouteLookup,
    expected: LinkName,
    config: &Config,
    underlay: &Underlay,
) -> Option<Diversion> {
    let packet = &way.packet;
    let rule = |what: &str| way.rule.as_ref().map(|rule| format!("policy rule `{rule}`{what}"));
    let (by, fate) = match &way.answer {
        RouteAnswer::Via { link, .. } if *link == Some(expected) => return None,
        RouteAnswer::Via { link: None, .. } => return None,
        RouteAnswer::Via { link, gateway, table, destination } => {
            let prefix = destination.map_or_else(|| "a route".into(), |net| format!("the route to {net}"));
            let table = if *table == MAIN_TABLE { "the main table".into() } else { format!("table {table}") };
            let route = format!("{prefix} in {table}");
            let through = link.map_or_else(|| "elsewhere".into(), |link| format!("through {link}"));
            let via = gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
            (rule(&format!(", with {route},")).unwrap_or(route), format!("leads them {through}{via}"))
        }
        RouteAnswer::Refused(_) if !forwards(packet.inbound, underlay) => return None,
        RouteAnswer::Refused(CROSS_DEVICE) => (
            rule("").unwrap_or_else(|| "the source check (rp_filter)".into()),
            format!(
                "makes the kernel drop them on {}, since the way back leaves by another device",
                packet.inbound
            ),
        ),
        RouteAnswer::Refused(errno) => {
            let fate = match *errno {
                BLACKHOLE => "drops them",
                PROHIBITED => "prohibits them",
                _ => "makes them unreachable",
            };
            (rule("").unwrap_or_else(|| "a route or VRF of this node".into()), fate.into())
        }
    };
    let network = config.network(Family::of(packet.destination))?;
    Some(Diversion {
        from: packet.source,
        to: packet.destination,
        expected,
        by: by.into(),
        fate: fate.into(),
        network,
        table: config.table,
    })
}

/// Returns true if the device forwards packets that come in by it. If it does not, the kernel refuses every lookup for
/// them.
fn forwards(link: LinkName, underlay: &Underlay) -> bool {
    underlay.sysctl(&crate::sysctls::forwarding(link)) != Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Lease, Leases};
    use crate::netconf::NetConf;
    use crate::node::Node;
    use crate::passage::Packet;
    use crate::underlay::LinkFacts;
    use crate::wanted::{Wanted, at_first};

    fn link(name: &str) -> LinkName {
        name.parse().unwrap()
    }

    /// Scene of a node with one peer, whose routes are as desired, and a bridge.
    struct Scene {
        config: Config,
        wanted: Wanted,
        underlay: Underlay,
    }

    fn scene() -> Scene {
        let text = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        let config = NetConf::parse(text.as_bytes()).unwrap().config();
        let node: Node = serde_json::from_str(
            r#"{"uplink": {"link": "eth0", "mtu": 1500, "ipv4": "192.0.2.1"}, "subnet": {"ipv4": "10.244.1.0/24"},
                "vtep": "02:00:00:00:00:01"}"#,
        )
        .unwrap();
        let lease = r#"{"PublicIP": "192.0.2.2", "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"}}"#;
        let lease = Lease::parse("10.244.2.0-24", lease.as_bytes(), 0).unwrap();
        let facts = |name: &str, kind: &str| LinkFacts {
            name: link(name),
            kind: kind.into(),
            ..LinkFacts::default()
        };
        let address = |name: &str, address: &str| AddressFacts {
            link: link(name),
            address: address.parse().unwrap(),
            permanent: true,
            temporary: false,
            deprecated: false,
            duplicate: false,
            tentative: false,
        };
        let underlay = Underlay {
            links: vec![facts("eth0", ""), facts("flannel.1", "vxlan"), facts("cni0", "bridge")],
            addresses: vec![address("eth0", "192.0.2.1/24"), address("cni0", "10.244.1.1/24")],
            ..Underlay::default()
        };
        let wanted = at_first(&config, &node, &Leases::Listed([lease].into()), &underlay);
        Scene { config, wanted, underlay }
    }

    const OUT: [&str; 4] = ["10.244.1.254", "10.244.2.254", "cni0", "flannel.1"];
    const BACK: [&str; 4] = ["10.244.2.254", "10.244.1.254", "flannel.1", "cni0"];

    fn said(
        [source, destination, inbound, outbound]: [&str; 4],
        answer: RouteAnswer,
        rule: Option<&str>,
    ) -> Vec<String> {
        let mut scene = scene();
        let packet = Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            inbound: link(inbound),
            outbound: link(outbound),
        };
        scene.underlay.lookups = vec![RouteLookup { packet, answer, rule: rule.map(Into::into) }];
        let seen = scene.wanted.state.clone();
        let Scene { config, wanted, underlay } = &scene;
        let found = diversions(config, &wanted.state, &wanted.peers, &seen, underlay);
        let empty = diversions(config, &wanted.state, &wanted.peers, &State::default(), underlay);
        assert_eq!(empty, Diversions::default(), "our routes do not stand yet");
        found.notes.iter().map(ToString::to_string).collect()
    }

    fn via(name: &str, table: u32) -> RouteAnswer {
        RouteAnswer::Via {
            link: Some(link(name)),
            gateway: None,
            table,
            destination: "10.0.0.0/8".parse().ok(),
        }
    }

    #[test]
    fn packets_that_go_as_they_should_are_no_fault() {
        assert_eq!(said(OUT, via("flannel.1", 254), None), [""; 0]);
        assert_eq!(said(BACK, via("cni0", 254), None), [""; 0]);
        // The path through this device is not in use.
        assert_eq!(
            said(["10.244.1.254", "10.244.2.254", "cni0", "eth0"], via("flannel.1", 254), None),
            [""; 0]
        );
        assert_eq!(
            said(["10.244.2.254", "10.244.1.254", "eth0", "cni0"], RouteAnswer::Refused(18), None),
            [""; 0]
        );
    }

    #[test]
    fn what_takes_them_is_named_with_the_cure() {
        let one = |notes: Vec<String>, words: &[&str]| {
            assert_eq!(notes.len(), 1, "{notes:?}");
            words.iter().for_each(|word| assert!(notes[0].contains(word), "{word}: {}", notes[0]));
        };
        let rule = Some("5270: from all lookup 52");
        one(
            said(OUT, via("tun0", 52), rule),
            &[
                "policy rule `5270: from all lookup 52`",
                "the route to 10.0.0.0/8 in table 52",
                "through tun0",
                "--route-table=flannel",
            ],
        );
        one(said(BACK, via("tun0", 52), rule), &["to 10.244.1.254 do not leave through cni0"]);
        one(said(OUT, via("tun0", 254), None), &["the route to 10.0.0.0/8 in the main table of this node"]);
        one(
            said(OUT, RouteAnswer::Refused(BLACKHOLE), Some("9: from all blackhole")),
            &["`9: from all blackhole`", "drops them"],
        );
        one(said(OUT, RouteAnswer::Refused(113), None), &["VRF", "unreachable"]);
    }
}
