//! Finds policy rules and routes of this node that take packets of pods away from this daemon's routes. They are reported
//! with the remedy, and never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::direct::LongestPrefix;
use crate::family::Family;
use crate::marks::RULE_PRIORITY;
use crate::name::LinkName;
use crate::passage::Packet;
use crate::peer::PeerPath;
use crate::state::{MAIN_TABLE, Route, RoutePath, State};
use crate::sysctls::{is_strict, rp_filter};
use crate::underlay::{AddressFacts, LinkFacts, RouteAnswer, RouteFacts, RouteLookup, Underlay};
use crate::uplink::leaves_node;
use crate::warning::{Cure, Diversion, Extent, NodeFault, Warning};

/// Maximum number of diversions that are reported at once: one rule diverts the packets to all peers.
const MAX_REPORTED: usize = 4;

/// `EXDEV`: result of a lookup whose source address may not come in by that device.
const CROSS_DEVICE: i32 = 18;
/// `EINVAL`: result of a lookup that ends at a blackhole.
const BLACKHOLE: i32 = 22;
/// `EACCES`: result of a lookup that ends at a prohibit route.
const PROHIBITED: i32 = 13;

/// Diversions that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Diversions {
    pub(crate) warnings: Vec<Warning>,
    /// Subnets of peers to which packets are not sent as they should be.
    pub(crate) subnets: Vec<IpNet>,
}

/// Finds the packets that this node sends elsewhere, though its routes are as desired.
pub(crate) fn diversions(
    config: &Config,
    desired: &State,
    peers: &[PeerPath],
    observed: &State,
    underlay: &Underlay,
) -> Diversions {
    let mut by: BTreeSet<(Box<str>, Box<str>)> = BTreeSet::new();
    let (mut found, mut subnets): (Vec<Diversion>, Vec<IpNet>) = (Vec::new(), Vec::new());
    // Subnets of the sampled peers; true for those of which any packet is diverted.
    let mut sampled: BTreeMap<IpNet, bool> = BTreeMap::new();
    for lookup in underlay.lookups.iter().filter(|lookup| !lookup.packet.is_received()) {
        let Some(expected) = expected(lookup, config, desired, observed, underlay) else { continue };
        let diversion = diversion(lookup, expected, config, underlay);
        let peer_of = |address: IpAddr| peers.iter().find(|peer| peer.subnet.contains(&address));
        let to = peer_of(lookup.packet.destination);
        if let Some(peer) = to.or_else(|| peer_of(lookup.packet.source)) {
            *sampled.entry(peer.subnet).or_default() |= diversion.is_some();
        }
        let Some(diversion) = diversion else { continue };
        subnets.extend(to.map(|peer| peer.subnet).filter(|subnet| !subnets.contains(subnet)));
        if found.len() < MAX_REPORTED && by.insert((diversion.by.clone(), diversion.fate.clone())) {
            found.push(diversion);
        }
    }
    let warning = |diversion: Diversion| {
        let family = Family::of(diversion.to);
        let mut peers = sampled.iter().filter(|(subnet, _)| Family::of(subnet.addr()) == family);
        let extent = if peers.all(|(_, diverted)| *diverted) { Extent::AllPeers } else { Extent::SomePeers };
        Warning::Node(NodeFault::Diverted(Box::new(Diversion { extent, ..diversion })))
    };
    Diversions { warnings: found.into_iter().map(warning).collect(), subnets }
}

/// Finds the packets of peers to this node that the uplink's source check drops.
pub(crate) fn source_checks(desired: &State, underlay: &Underlay) -> Option<Warning> {
    let is_dropped = |lookup: &&RouteLookup| {
        let Packet { inbound, destination, .. } = lookup.packet;
        let works = |link: &LinkFacts| link.up && link.carrier && leaves_node(link);
        let has_it = underlay.addresses.iter().any(|facts| facts.address.addr() == destination);
        let will_be_loose = desired.sysctls.iter().any(|row| *row.path == *rp_filter(inbound.as_str()));
        lookup.packet.is_received()
            && matches!(lookup.answer, RouteAnswer::Refused(CROSS_DEVICE))
            && is_strict(inbound, underlay)
            && underlay.link(inbound).is_some_and(works)
            && has_it
            && !will_be_loose
    };
    let Packet { source, destination, inbound, .. } = underlay.lookups.iter().find(is_dropped)?.packet;
    let back = LongestPrefix::new(underlay.routes.iter(), |route: &RouteFacts| route.link);
    let back = back.find(source).copied().flatten().filter(|back| *back != inbound);
    Some(Warning::Node(NodeFault::SourceChecked { uplink: inbound, from: source, to: destination, back }))
}

/// Returns the device by which the packet should leave, if everything that leads there is in place.
fn expected(
    lookup: &RouteLookup,
    config: &Config,
    desired: &State,
    observed: &State,
    underlay: &Underlay,
) -> Option<LinkName> {
    let packet = &lookup.packet;
    let up = |link: LinkName| underlay.link(link).is_some_and(|link| link.up && link.carrier);
    let to_peer = |address: IpAddr| {
        let leads =
            |row: &&Route| row.table == config.table && row.metric == 0 && row.destination.contains(&address);
        let route = desired.routes.iter().find(leads)?;
        observed.routes.iter().find(|row| *row == route)?;
        match route.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => Some(link),
            RoutePath::Nexthop(id) => observed.nexthops.iter().find(|row| row.id == id).map(|row| row.link),
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
    lookup: &RouteLookup,
    expected: LinkName,
    config: &Config,
    underlay: &Underlay,
) -> Option<Diversion> {
    let packet = &lookup.packet;
    let rule = |what: &str| lookup.rule.as_ref().map(|rule| format!("policy rule `{}`{what}", rule.words));
    let (by, fate) = match &lookup.answer {
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
    Some(Diversion {
        from: packet.source,
        to: packet.destination,
        expected,
        by: by.into(),
        fate: fate.into(),
        cure: cure(lookup, config.table),
        network: config.network(Family::of(packet.destination))?,
        extent: Extent::AllPeers,
    })
}

/// Returns the remedy for a diversion. A routing table of our own is one only if its rule comes before the rule that
/// diverts. A rule of the same priority as ours is older, so it comes first.
fn cure(lookup: &RouteLookup, table: u32) -> Cure {
    match (&lookup.answer, &lookup.rule) {
        (RouteAnswer::Refused(CROSS_DEVICE), _) => Cure::LooseSource(lookup.packet.inbound),
        _ if table != MAIN_TABLE => Cure::Rule,
        (_, Some(rule)) if rule.priority > RULE_PRIORITY => Cure::OwnTable,
        (_, Some(_)) => Cure::LaterPriority,
        (RouteAnswer::Via { table: MAIN_TABLE, .. }, None) => Cure::OwnTable,
        (_, None) => Cure::Rule,
    }
}

/// Returns true if the device forwards packets that come in by it. If it does not, the kernel refuses every lookup for
/// them.
fn forwards(link: LinkName, underlay: &Underlay) -> bool {
    underlay.sysctl(&crate::sysctls::forwarding(link)) != Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Desired, at_first};
    use crate::fault::Severity;
    use crate::lease::{Lease, Leases};
    use crate::netconf::NetConf;
    use crate::node::Node;
    use crate::passage::Payload;
    use crate::state::Sysctl;
    use crate::underlay::PolicyRule;

    fn link(name: &str) -> LinkName {
        name.parse().unwrap()
    }

    /// Scene of a node with two peers, whose routes are as desired, and a bridge.
    struct Scene {
        config: Config,
        desired: Desired,
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
        let lease = |k: u8| {
            let text = format!(
                r#"{{"PublicIP": "192.0.2.{k}", "BackendType": "vxlan", "BackendData": {{"VNI": 1, "VtepMAC": "02:00:00:00:00:0{k}"}}}}"#
            );
            Lease::parse(&format!("10.244.{k}.0-24"), text.as_bytes(), 0).unwrap()
        };
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
        let desired = at_first(&config, &node, &Leases::Listed([lease(2), lease(3)].into()), &underlay);
        Scene { config, desired, underlay }
    }

    const OUT: [&str; 4] = ["10.244.1.254", "10.244.2.254", "cni0", "flannel.1"];
    const BACK: [&str; 4] = ["10.244.2.254", "10.244.1.254", "flannel.1", "cni0"];

    fn lookup(
        [source, destination, inbound, outbound]: [&str; 4],
        answer: RouteAnswer,
        rule: Option<&str>,
    ) -> RouteLookup {
        let packet = Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            inbound: link(inbound),
            outbound: link(outbound),
            payload: Default::default(),
        };
        let rule = rule.map(|words| PolicyRule {
            priority: words.split(':').next().unwrap().parse().unwrap(),
            words: words.into(),
        });
        RouteLookup { packet, answer, rule }
    }

    fn found(lookups: Vec<RouteLookup>) -> Diversions {
        let mut scene = scene();
        scene.underlay.lookups = lookups;
        let observed = scene.desired.state.clone();
        let Scene { config, desired, underlay } = &scene;
        let empty = diversions(config, &desired.state, &desired.peers, &State::default(), underlay);
        assert_eq!(empty, Diversions::default(), "our routes do not stand yet");
        diversions(config, &desired.state, &desired.peers, &observed, underlay)
    }

    fn said(ends: [&str; 4], answer: RouteAnswer, rule: Option<&str>) -> Vec<String> {
        found(vec![lookup(ends, answer, rule)]).warnings.iter().map(ToString::to_string).collect()
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
    fn packets_on_the_expected_path_are_no_fault() {
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
    fn a_diverting_rule_or_route_is_named_with_the_remedy() {
        let one = |warnings: Vec<String>, words: &[&str]| {
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            words.iter().for_each(|word| assert!(warnings[0].contains(word), "{word}: {}", warnings[0]));
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
        one(
            said(OUT, RouteAnswer::Refused(113), None),
            &["VRF", "unreachable", ". Take 10.244.0.0/16 out of"],
        );
    }

    #[test]
    fn the_cure_for_a_rule_that_comes_first_is_not_a_table_alone() {
        let one = |answer, rule: Option<&str>| said(OUT, answer, rule).concat();
        for priority in ["100", "5000"] {
            let rule = format!("{priority}: from all lookup 52");
            let text = one(via("tun0", 52), Some(&rule));
            assert!(
                text.contains("or give it a priority above 5000 and run the daemon with --route-table"),
                "{text}"
            );
        }
        let text = one(via("tun0", 52), Some("5001: from all lookup 52"));
        assert!(text.contains("Run the daemon with --route-table=flannel"), "{text}");
        let text = one(via("tun0", 10), None);
        assert!(text.ends_with("Take 10.244.0.0/16 out of that rule or route"), "of a VRF: {text}");
        let text = one(RouteAnswer::Refused(CROSS_DEVICE), None);
        assert!(text.ends_with("Run: sysctl -w net/ipv4/conf/cni0/rp_filter=2"), "{text}");
    }

    /// Returns the warning about packets from a peer to this node, with these values of `rp_filter`.
    fn checked(answer: RouteAnswer, values: [&str; 2], change: impl FnOnce(&mut Underlay)) -> Option<String> {
        let ends = ["192.0.2.2", "192.0.2.1", "eth0", "lo"];
        let mut lookup = lookup(ends, answer, None);
        lookup.packet.payload = Payload::Tunnel(8472);
        let Scene { mut underlay, .. } = scene();
        let sysctl = |(whose, value): (&str, &str)| Sysctl { path: rp_filter(whose), value: value.into() };
        underlay.sysctls = ["all", "eth0"].into_iter().zip(values).map(sysctl).collect();
        underlay.lookups = vec![lookup];
        change(&mut underlay);
        source_checks(&State::default(), &underlay).map(|warning| warning.to_string())
    }

    #[test]
    fn packets_of_peers_that_the_source_check_drops_are_a_fault_of_this_node() {
        let route = |link_name: &str| RouteFacts {
            destination: "192.0.2.0/24".parse().unwrap(),
            link: Some(link(link_name)),
            ..RouteFacts::default()
        };
        let refused = || RouteAnswer::Refused(CROSS_DEVICE);
        for values in [["1", "0"], ["0", "1"], ["1", "1"]] {
            let text = checked(refused(), values, |underlay| {
                underlay.routes = vec![route("eth1"), route("eth0")];
            });
            let text = text.unwrap();
            assert!(text.contains("come in by eth0, such as from 192.0.2.2 to 192.0.2.1"), "{text}");
            let end = "leaves by eth1. Run: sysctl -w net/ipv4/conf/eth0/rp_filter=2";
            assert!(text.ends_with(end), "{text}");
        }
        let strict = ["1", "0"];
        for values in [["0", "0"], ["2", "1"], ["1", "2"]] {
            assert_eq!(checked(refused(), values, |_| {}), None, "{values:?}");
        }
        assert_eq!(checked(via("lo", 255), strict, |_| {}), None);
        assert_eq!(checked(RouteAnswer::Refused(BLACKHOLE), strict, |_| {}), None);
        assert_eq!(checked(refused(), strict, |underlay| underlay.links[0].carrier = false), None);
        assert_eq!(checked(refused(), strict, |underlay| underlay.addresses.clear()), None);
        // Packets to an address that is on no wire come in by another device.
        assert_eq!(checked(refused(), strict, |underlay| underlay.links[0].kind = "dummy".into()), None);
    }

    #[test]
    fn a_diversion_of_some_peers_is_a_warning_and_of_all_sampled_ones_a_fault_of_the_node() {
        let other = ["10.244.1.254", "10.244.3.254", "cni0", "flannel.1"];
        let rule = Some("5270: from all lookup 52");
        let severity = |lookups: Vec<RouteLookup>| {
            let Diversions { warnings, .. } = found(lookups);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            warnings[0].severity()
        };
        let diverted = |ends| lookup(ends, via("tun0", 52), rule);
        let well = lookup(other, via("flannel.1", 254), None);
        let back = lookup(BACK, via("cni0", 254), None);
        assert_eq!(severity(vec![diverted(OUT), back.clone(), well.clone()]), Severity::Warning);
        assert_eq!(severity(vec![diverted(BACK), well]), Severity::Warning);
        assert_eq!(severity(vec![diverted(OUT), back, diverted(other)]), Severity::Blocking);
    }
}
