//! Tables of the diagnosis: answers to probes go in, a finding comes out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use Probe::{Checksum, Direct, NextHop, Node, NodeSized, PathSized, There};

use super::*;
use crate::health::mtu_search::MtuSearch;
use crate::health::{Answer, Local, Probe};
use crate::mac::Mac;
use crate::name::LinkName;
use crate::peer::{PeerPath, Tunnel};
use crate::tunnel_id::TunnelKind;

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 254));
const MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
const MTU: u16 = 1450;
const OUTER: u16 = 1500;
const OUTER_V6: u16 = 1520;

/// Answers to one kind of probe, one character a second: `.` is the reply of a healthy peer, `x` a loss, `-` a probe that could
/// not be sent, `r` an ICMP error of a router, `n` one of the peer, `t` a reported MTU of 1400, `2` two MAC addresses, `p` a MAC
/// address that answers for the router, too, `b` a bad pair of datagrams, and a space no probe.
type Answers<'a> = (Probe, &'a str);

fn uplink() -> LinkName {
    "eth0".parse().unwrap()
}

fn peer(path: Path) -> PeerPath {
    let tunnel = Tunnel {
        kind: TunnelKind::Vxlan,
        link: "flannel.1".parse().unwrap(),
        mac: Some(MACS[0]),
        port: Some(8472),
        mtu: MTU.into(),
    };
    PeerPath {
        subnet: "10.244.1.0/24".parse().unwrap(),
        public_ip: NODE,
        path,
        on_link: true,
        tunnel: Some(tunnel),
        by_evidence: false,
        born: 0,
    }
}

fn direct() -> PeerPath {
    peer(Path::Direct)
}

fn tunnel() -> PeerPath {
    peer(Path::Tunnel(TunnelKind::Vxlan))
}

fn over_ipv6() -> PeerPath {
    PeerPath { public_ip: "fd00:100::12".parse().unwrap(), ..tunnel() }
}

/// Returns a peer behind a router.
fn far() -> PeerPath {
    PeerPath { on_link: false, ..tunnel() }
}

/// Returns a peer that is direct once this is proven.
fn auto() -> PeerPath {
    PeerPath { by_evidence: true, ..tunnel() }
}

/// Returns a peer that announces no VTEP.
fn host_gw() -> PeerPath {
    PeerPath { tunnel: None, ..direct() }
}

fn second(number: usize) -> Time {
    Duration::from_secs(number as u64).into()
}

fn evidence(peer: PeerPath, answers: &[Answers<'_>]) -> Evidence {
    let mut evidence = Evidence::new(peer, Local { uplink: uplink(), mtu: MTU.into() });
    let seconds = answers.iter().map(|(_, letters)| letters.len()).max().unwrap_or(0);
    for at in 0..seconds {
        for (probe, letters) in answers {
            for answer in letters.chars().nth(at).into_iter().flat_map(|letter| answers_of(*probe, letter)) {
                evidence.record(*probe, second(at), answer, true);
            }
        }
    }
    evidence
}

fn answers_of(probe: Probe, letter: char) -> Vec<Answer> {
    let is = |mac| Answer::Is { mac, also: None };
    vec![match letter {
        ' ' => return Vec::new(),
        '2' => return vec![is(MACS[0]), is(MACS[1])],
        '.' => match probe {
            NextHop => is(MACS[0]),
            Checksum => Answer::Checksums { offloaded: true, complete: true },
            _ => Answer::Came { after: Duration::from_millis(10) },
        },
        'x' => Answer::Lost,
        '-' => Answer::Impossible,
        'r' => Answer::Refused { by: ROUTER },
        'n' => Answer::Refused { by: NODE },
        't' => Answer::TooBig { mtu: 1400 },
        'p' => Answer::Is { mac: MACS[0], also: Some(ROUTER) },
        'b' => Answer::Checksums { offloaded: false, complete: true },
        other => panic!("{other}"),
    }]
}

#[test]
fn each_finding_follows_from_its_evidence() {
    let path = |letters| (Probe::Path, letters);
    let full = |letters| (PathSized(MTU), letters);
    let (node, next_hop, uplink) = (NODE, NODE, uplink());
    let silent = Finding::NextHopSilent { next_hop, uplink };
    let dropped = Finding::PodAddressesLost { next_hop, uplink };
    let refused = |by| Finding::Refused { node, by };
    let fragmented = Some(Finding::Fragmented { mtu: 1400 });
    let duplicate = Finding::DuplicateAddress { next_hop, macs: MACS };
    let proxy = Finding::ProxyArp { next_hop, mac: MACS[0], also: ROUTER };
    let lost = path("...xxxxx");
    let rows: &[(PeerPath, &[Answers<'_>], Option<Finding>)] = &[
        (direct(), &[path("...")], Some(Finding::Healthy)),
        (tunnel(), &[path("...xxxx")], Some(Finding::Healthy)),
        (auto(), &[path("..."), (NextHop, "..."), (Direct, "...")], Some(Finding::Healthy)),
        // Nothing is known yet.
        (direct(), &[], None),
        (peer(Path::Waiting), &[], None),
        (tunnel(), &[path("xxxxx.")], None),
        // There is nothing to probe, or no pod address to probe from.
        (peer(Path::Unreachable), &[], Some(Finding::Unverified)),
        (direct(), &[path("-")], Some(Finding::Unverified)),
        (host_gw(), &[path("xxxxx"), (NextHop, ".....")], Some(Finding::Unverified)),
        (tunnel(), &[path("xxxxx"), (NextHop, "....."), (Node, "xxxxx")], Some(Finding::NoEcho)),
        (tunnel(), &[lost, (NextHop, "........"), (Node, "   xxxxx")], Some(Finding::EchoLost { node })),
        (tunnel(), &[path("x.x.x.x.x.x.x.x.x.x")], Some(Finding::Flapping { node })),
        (direct(), &[lost, (NextHop, "...xxxxx"), (Node, "   .....")], Some(silent)),
        (direct(), &[path("........"), (NextHop, "...xxxxx")], Some(silent)),
        (auto(), &[path("........"), (NextHop, "...xxxxx")], Some(silent)),
        (far(), &[lost, (Node, "   xxxxx")], Some(Finding::Silent { node })),
        (far(), &[path("...rrrrr")], Some(refused(ROUTER))),
        (far(), &[path("...nnnnn"), (There, "   .....")], Some(refused(NODE))),
        (auto(), &[path("........"), (Direct, "...rrrrr")], Some(refused(ROUTER))),
        (far(), &[lost, (Node, "   .....")], Some(Finding::TunnelLost { node, port: 8472 })),
        (direct(), &[lost, (NextHop, "........"), (Node, "   .....")], Some(dropped)),
        (host_gw(), &[lost, (NextHop, "........"), (Node, "   .....")], Some(dropped)),
        (auto(), &[path("........"), (NextHop, "........"), (Direct, "...xxxxx")], Some(dropped)),
        (far(), &[lost, (Node, "   ....."), (There, "   .....")], Some(Finding::NoWayBack { node })),
        (direct(), &[lost, (NextHop, "pppppppp"), (Node, "   .....")], Some(proxy)),
        (direct(), &[lost, (NextHop, "22222222"), (Node, "   .....")], Some(duplicate)),
        // A path that is well has two NICs, not two machines.
        (direct(), &[path("........"), (NextHop, "22222222")], Some(Finding::Healthy)),
        (tunnel(), &[path("........"), full("...ttttt")], Some(Finding::LostAbove { mtu: 1400 })),
        (tunnel(), &[path("........"), full("...xxxxx")], None),
        (tunnel(), &[path("........"), (NodeSized(OUTER), "...t")], fragmented),
        (over_ipv6(), &[path("........"), full("..."), (NodeSized(OUTER_V6), "...t")], None),
        (over_ipv6(), &[path("........"), full("...."), (NodeSized(OUTER_V6), "...t")], fragmented),
        (tunnel(), &[path("........"), (Checksum, "b b b b")], Some(Finding::ChecksumFault { node })),
        (tunnel(), &[path("........"), (Checksum, "b b b")], Some(Finding::Healthy)),
        // Pairs less than two seconds apart share the rate limit of the peer.
        (tunnel(), &[path("........"), (Checksum, "bbbbbb")], Some(Finding::Healthy)),
    ];
    for (peer, answers, finding) in rows {
        let found = diagnose(&evidence(peer.clone(), answers), second(60));
        assert_eq!(found, *finding, "{:?} {answers:?}", peer.path);
    }
    let mut diverted = evidence(tunnel(), &[lost]);
    diverted.diverted = true;
    let found = diagnose(&diverted, second(60));
    assert_eq!(found, Some(Finding::Diverted { node }));
    let found = rows.iter().filter_map(|(_, _, finding)| *finding).chain(found);
    let names: BTreeSet<&str> = found.map(|finding| finding.name()).collect();
    assert_eq!(names.len(), 17, "each finding has a row: {names:?}");
}

/// A lost size is reported once its search is over, and not if all smaller packets arrived.
#[test]
fn a_size_is_reported_when_its_search_is_over() {
    let lost = [(Probe::Path, "........"), (PathSized(MTU), "...xxxxx")];
    for (arrives, mtu) in [(1400, Some(1396..=1400)), (MTU - 1, None)] {
        let mut evidence = evidence(tunnel(), &lost);
        let search = MtuSearch::new(MTU, NODE, Duration::ZERO, second(8));
        evidence.history.details_mut().path_search = Some(Box::new(search));
        let mut last = second(8);
        while let Some(now) = evidence.next_search_probe() {
            assert_eq!(diagnose(&evidence, now), None);
            for probe in evidence.search_probes(now) {
                let PathSized(size) = probe else { panic!("{probe:?}") };
                let answer = answers_of(probe, if size > arrives { 'x' } else { '.' })[0];
                evidence.record(probe, now, answer, false);
            }
            last = now;
        }
        let found = diagnose(&evidence, last + Duration::from_secs(1));
        match (found, mtu) {
            (Some(Finding::LostAbove { mtu }), Some(range)) => assert!(range.contains(&mtu), "{mtu}"),
            (found, mtu) => assert_eq!((found, mtu), (None, None)),
        }
    }
}
