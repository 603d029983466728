//! Tests of judges in a simulated network: peers with latency, loss and filters, and a plan that follows the findings. They
//! check which findings are made, how soon, and which are never made.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod health {
    mod chance;
    pub(crate) mod world;
}

use std::time::Duration;

use health::world::{LATENCY, Link, Sim, World, big, came, peer, refused, too_big};
use plan::health::{Answer, Finding, Judge, Local, PATIENCE, PreferredPath, Probe, Sample};
use plan::{Path, PeerPath, TunnelKind};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
type Make = fn() -> Link;
/// Time from the first lost packet until a fault is found.
const SOON: Duration = Duration::from_secs(3);
/// Time until a fault of a near peer is found.
const NEAR: Duration = Duration::from_millis(2420);

/// Returns the time within which a fault must be found. A lost size is distinguished from chance by small echoes, which take
/// longer if the peer is far.
fn limit(name: &str, phase: u64) -> Duration {
    match (name == "large packets lost", phase % 2 == 1) {
        (true, true) => SOON + SECOND / 2,
        (false, true) => SOON,
        _ => NEAR,
    }
}

/// Runs a healthy peer for 40 s and this phase, then replaces its link. Returns the next finding, which must come in time.
fn found(sim: Sim, phase: u64, link: Link, within: Duration) -> (World, &'static str) {
    let mut world = World::new(vec![sim], 1);
    // Peers with an odd phase are far away.
    if phase % 2 == 1 {
        world.latency = (LATENCY * 23, LATENCY * 24);
    }
    world.run(SECOND * 40 + Duration::from_millis(phase));
    let before = world.finding(0).name();
    assert_eq!(before, "healthy");
    world.sims[0].link = link;
    world.run_while(within, |world| world.finding(0).name() == before);
    let name = world.finding(0).name();
    assert_ne!(name, before, "{phase}: not within {within:?}");
    (world, name)
}

fn path(probe: Probe) -> bool {
    matches!(probe, Probe::Path | Probe::PathSized(_))
}

fn only(kinds: fn(Probe) -> bool) -> Link {
    Box::new(move |probe, _, _| kinds(probe).then(|| came(probe)))
}

fn nothing() -> Link {
    only(|_| false)
}

#[test]
fn direct_path_faults_are_found_within_3_5_seconds_and_avoided() {
    let cases: [(&str, Make); 8] = [
        ("next hop silent", nothing),
        ("next hop silent", || only(|probe| !matches!(probe, Probe::NextHop))),
        ("pod addresses lost", || only(|probe| matches!(probe, Probe::NextHop | Probe::Node))),
        ("no way back", || only(|probe| matches!(probe, Probe::NextHop | Probe::Node | Probe::There))),
        ("echo lost", || only(|probe| matches!(probe, Probe::NextHop))),
        ("refused", || {
            Box::new(|probe, way, _| match probe {
                Probe::Direct => refused(),
                _ if path(probe) && way == Path::Direct => refused(),
                _ => Some(came(probe)),
            })
        }),
        ("proxy ARP", || {
            Box::new(|probe, _, _| match probe {
                Probe::NextHop => {
                    Some(Answer::Is { mac: Default::default(), also: Some([192, 0, 2, 99].into()) })
                }
                Probe::Node => Some(came(probe)),
                _ => None,
            })
        }),
        ("large packets lost", || big(1380)),
    ];
    for (name, link) in cases {
        for phase in (0..1000).step_by(93) {
            // The fault is reported with host-gw and `auto` alike; only `auto` can leave the direct path.
            let (_, found_name) =
                found(Sim::new(peer(1, Path::Direct, false)), phase, link(), limit(name, phase));
            assert_eq!(found_name, name, "host-gw, {phase}");
            let (mut world, found_name) = found(
                Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true)),
                phase,
                link(),
                limit(name, phase),
            );
            assert_eq!(found_name, name, "auto, {phase}");
            if name != "large packets lost" {
                assert_eq!(world.preferred_path(0), Some(PreferredPath::Tunnel), "{name}");
                world.run(SECOND);
                assert_eq!(
                    (world.sims[0].peer.path, world.sims[0].switches),
                    (Path::Tunnel(TunnelKind::Vxlan), 2),
                    "{name}"
                );
            }
            if name == "refused" {
                world.run(SECOND * 20);
                assert_eq!(world.finding(0).name(), name, "it stays the reason");
            }
        }
    }
}

#[test]
fn a_lost_peer_on_the_segment_is_found_within_2_42_seconds() {
    // In the second range a closer look is lost just before.
    for phase in (0..8000).step_by(50).chain((12_000..12_300).step_by(10)) {
        for by_evidence in [true, false] {
            found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), by_evidence)), phase, nothing(), NEAR);
        }
    }
}

#[test]
fn tunnel_faults_are_found_within_3_5_seconds() {
    let cases: [(&str, bool, Make); 6] = [
        ("silent", false, nothing),
        ("next hop silent", true, nothing),
        ("tunnel lost", false, || only(|probe| matches!(probe, Probe::Node | Probe::NodeSized(_)))),
        ("no way back", true, || only(|probe| matches!(probe, Probe::Node | Probe::There | Probe::NextHop))),
        ("echo lost", true, || only(|probe| matches!(probe, Probe::NextHop))),
        ("large packets lost", false, || big(1399)),
    ];
    for (name, on_link, link) in cases {
        // The phases cover all other probes of a healthy tunnel.
        for phase in (0..4000).step_by(93) {
            let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false));
            sim.peer.on_link = on_link;
            let sim = Sim::new(sim.peer);
            assert_eq!(found(sim, phase, link(), limit(name, phase)).1, name, "{phase}");
        }
    }
}

#[test]
fn the_largest_packet_size_is_found_within_a_few_bytes() {
    for mtu in [576, 900, 1280, 1379, 1400, 1442] {
        let (world, _) = found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false)), 0, big(mtu), SOON);
        let Finding::LostAbove { mtu: found } = world.finding(0) else { panic!("{:?}", world.finding(0)) };
        assert!(found <= mtu && mtu - found < 5, "{mtu}: {found}");
        assert_eq!(world.sims[0].judge.health().mtu, Some(found));
    }
    let (world, _) = found(Sim::new(peer(1, Path::Direct, false)), 0, too_big(1400), SOON);
    assert_eq!(world.finding(0), Finding::LostAbove { mtu: 1400 });
}

/// A node without a pod has no address to ask from.
#[test]
fn large_packet_loss_is_found_soon_after_the_first_pod() {
    let mut sim = Sim::new(peer(1, Path::Direct, false));
    sim.link = Box::new(|probe, _, _| match probe {
        Probe::Path | Probe::PathSized(_) => Some(Answer::Impossible),
        _ => Some(came(probe)),
    });
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 5);
    assert_eq!(world.finding(0).name(), "unverified");
    world.sims[0].link = big(1399);
    world.run_while(SOON, |world| world.finding(0).name() == "unverified");
    // A second until the next regular probe, four quick ones, and the time for the last reply.
    world.run(SECOND + SECOND * 6 / 10 + PATIENCE + SECOND / 10);
    assert_eq!(world.finding(0).name(), "large packets lost");
}

#[test]
fn an_impossible_reported_mtu_is_ignored() {
    for told in [0, 68, 575, 9000] {
        let liar: Link = Box::new(move |probe, _, _| match probe {
            Probe::PathSized(size) if size > 1400 => Some(Answer::TooBig { mtu: told }),
            _ => Some(came(probe)),
        });
        let (world, name) = found(Sim::new(peer(1, Path::Direct, false)), 0, liar, SOON);
        let Finding::LostAbove { mtu } = world.finding(0) else { panic!("{told}: {name}") };
        assert!((1396..=1400).contains(&mtu), "{told}: {mtu}");
    }
    // The next case has the largest possible MTU.
    let mut sim = Sim::new(peer(1, Path::Direct, false));
    sim.judge.update_path(sim.peer.clone(), Local { mtu: 65535, ..health::world::local() }, Duration::ZERO);
    let (mut world, _) = found(sim, 0, big(65000), SOON + SECOND);
    let (sent, answer) = (world.now, Answer::Came { after: LATENCY });
    world.sims[0].judge.record(Sample { probe: Probe::PathSized(65534), sent, answer });
    world.run(SECOND * 10);
}

/// A path that fails again before any large packet was sent is not reported as "large packets lost".
#[test]
fn a_path_lost_again_is_not_blamed_on_packet_size() {
    for phase in (0..1000).step_by(93) {
        let mut sim = Sim::new(peer(1, Path::Direct, false));
        sim.link = only(|probe| matches!(probe, Probe::NextHop | Probe::Node));
        let mut world = World::new(vec![sim], 1);
        world.run(SECOND * 20 + Duration::from_millis(phase));
        world.sims[0].link = only(|_| true);
        world.run_while(SECOND * 20, |world| world.finding(0).is_fault());
        world.sims[0].link = only(|probe| matches!(probe, Probe::NextHop | Probe::Node));
        world.run(SECOND * 20);
        assert_eq!(world.sims[0].findings(), ["pod addresses lost", "healthy", "pod addresses lost"]);
    }
}

#[test]
fn fragmented_tunnel_packets_are_reported_with_the_size_that_fits() {
    let whole: Link = Box::new(|probe, _, _| match probe {
        Probe::NodeSized(size) if size > 1400 => None,
        _ => Some(came(probe)),
    });
    let (world, name) =
        found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false)), 0, whole, SECOND * 10);
    let Finding::Fragmented { mtu } = world.finding(0) else { panic!("{name}") };
    assert!((1395..=1400).contains(&mtu), "{mtu}");
    for phase in (0..4000).step_by(93) {
        let told: Link = Box::new(|probe, _, _| match probe {
            Probe::NodeSized(size) if size > 1400 => Some(Answer::TooBig { mtu: 1400 }),
            _ => Some(came(probe)),
        });
        let (world, _) = found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false)), phase, told, SOON);
        assert_eq!(world.finding(0), Finding::Fragmented { mtu: 1400 });
    }
}

/// A closer look at the tunnel may come before the first large packet between pods is lost.
#[test]
fn large_packets_whose_fragments_are_dropped_are_reported_in_time() {
    for phase in (0..12_000).step_by(93) {
        let small: Link = Box::new(|probe, _, _| match probe {
            Probe::NodeSized(size) if size > 1400 => Some(Answer::TooBig { mtu: 1400 }),
            Probe::PathSized(size) if size > 1350 => None,
            _ => Some(came(probe)),
        });
        let within = limit("large packets lost", phase);
        let (mut world, _) =
            found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false)), phase, small, within);
        world.run_while(within, |world| world.finding(0).name() != "large packets lost");
        let took = world.now - SECOND * 40 - Duration::from_millis(phase);
        assert!(took <= within, "{phase}: {took:?}, {:?}", world.sims[0].findings());
    }
}

#[test]
fn only_lost_offloaded_checksums_are_a_checksum_fault() {
    let pairs = |offloaded, complete| -> Link {
        Box::new(move |probe, _, _| match probe {
            Probe::Checksum => Some(Answer::Checksums { offloaded, complete }),
            _ => Some(came(probe)),
        })
    };
    for phase in (0..4000).step_by(93) {
        let sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false));
        assert_eq!(found(sim, phase, pairs(false, true), SECOND * 10).1, "checksum fault", "{phase}");
    }
    let (mut world, _) =
        found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false)), 0, pairs(false, true), SECOND * 10);
    world.sims[0].link = pairs(true, true);
    world.run(SECOND * 4);
    assert_eq!(world.finding(0), Finding::Healthy);
    for link in [pairs(false, false), only(|probe| probe != Probe::Checksum)] {
        let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false));
        sim.link = link;
        let mut world = World::new(vec![sim], 1);
        world.run(SECOND * 120);
        assert_eq!(world.sims[0].findings(), ["healthy"]);
    }
}

#[test]
fn two_machines_with_one_address_are_reported_and_a_failover_is_not() {
    // The last case is close to the latest possible reply.
    for later in [0, 100, 400, 780] {
        two_machines(Duration::from_millis(later));
    }
}

fn two_machines(later: Duration) {
    let mut sim = Sim::new(peer(1, Path::Direct, false));
    sim.twin = Some(later);
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 20);
    assert_eq!(world.sims[0].findings(), ["healthy"], "two NICs, maybe");
    world.sims[0].link = only(|probe| matches!(probe, Probe::NextHop | Probe::Node));
    world.run(SECOND * 20);
    assert!(matches!(world.finding(0), Finding::DuplicateAddress { macs: [one, other], .. } if one != other));
    world.sims[0].link = only(|_| true);
    world.run(SECOND * 6);
    assert_eq!(world.sims[0].findings(), ["healthy", "duplicate address", "healthy"]);
    for (link, name) in [(only(|probe| !path(probe)), "no way back"), (nothing(), "next hop silent")] {
        world.sims[0].twin = (name != "no way back").then_some(later);
        world.sims[0].link = link;
        world.run(SECOND * 20);
        assert_eq!(world.finding(0).name(), name, "another reason");
    }
    let moving: Link = Box::new(|probe, _, sent| match probe {
        Probe::NextHop => {
            Some(Answer::Is { mac: plan::Mac([2, 0, 0, 0, 0, u8::from(sent > SECOND * 9)]), also: None })
        }
        _ => Some(came(probe)),
    });
    let mut sim = Sim::new(peer(1, Path::Direct, false));
    sim.link = moving;
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 30);
    assert_eq!(world.sims[0].findings(), ["healthy"]);
}

#[test]
fn an_impossible_probe_or_a_peer_that_never_replied_is_no_fault() {
    // Before the first pod, one side has no address to probe from or to.
    let impossible: Link = Box::new(|probe, _, _| match probe {
        Probe::NextHop | Probe::Node => Some(came(probe)),
        _ => Some(Answer::Impossible),
    });
    for link in [impossible, only(|probe| matches!(probe, Probe::NextHop | Probe::Node))] {
        let mut sim = Sim::new(peer(1, Path::Direct, false));
        sim.peer.tunnel = None;
        let mut sim = Sim::new(sim.peer);
        sim.link = link;
        let mut world = World::new(vec![sim], 1);
        world.run(SECOND * 60);
        assert_eq!(world.sims[0].findings(), [""; 0]);
        assert_eq!(world.finding(0), Finding::Unverified);
        world.sims[0].link = only(|probe| path(probe) || matches!(probe, Probe::Node));
        world.run(SOON + SECOND * 2);
        assert_eq!(world.finding(0).name(), "next hop silent");
    }
    // In the next case, ICMP is filtered from the start.
    let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true));
    sim.link = only(|probe| matches!(probe, Probe::NextHop));
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 60);
    assert_eq!(world.sims[0].findings(), ["no echo"]);
    assert_eq!(world.preferred_path(0), None);
}

#[test]
fn a_new_peer_goes_direct_only_after_pod_addresses_pass() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], 1);
    world.run(Duration::from_millis(1800));
    assert_eq!(world.preferred_path(0), None, "it is proven over about a second");
    world.run(SECOND * 2);
    assert_eq!(
        (world.preferred_path(0), world.sims[0].peer.path),
        (Some(PreferredPath::Direct), Path::Direct)
    );
    let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true));
    sim.link = Box::new(|probe, _, _| (probe != Probe::Direct).then(|| came(probe)));
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 4);
    assert_eq!(world.finding(0).name(), "pod addresses lost");
    world.run(SECOND * 60);
    assert_eq!(
        (world.sims[0].findings(), world.preferred_path(0)),
        (vec!["healthy", "pod addresses lost"], None)
    );
}

#[test]
fn existing_routes_are_kept_at_the_start() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Direct, true))], 1);
    world.run(SECOND * 60);
    assert_eq!((world.sims[0].switches, world.sims[0].findings()), (0, vec!["healthy"]));
    // A link without ARP is judged by its echoes alone.
    let noarp = || -> Link {
        Box::new(|probe, _, _| match probe {
            Probe::NextHop => Some(Answer::Impossible),
            _ => Some(came(probe)),
        })
    };
    let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true));
    sim.link = noarp();
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 5);
    assert_eq!((world.preferred_path(0), world.finding(0)), (Some(PreferredPath::Direct), Finding::Healthy));
    world.sims[0].link =
        Box::new(|probe, _, _| matches!(probe, Probe::NextHop).then_some(Answer::Impossible));
    world.run(SOON);
    assert_eq!((world.preferred_path(0), world.finding(0).name()), (Some(PreferredPath::Tunnel), "silent"));
}

#[test]
fn the_direct_path_returns_after_thirty_healthy_seconds() {
    for phase in (0..1000).step_by(171) {
        let cut = Box::new(|probe, used, _| (!on_segment(probe, used)).then(|| came(probe)));
        let (mut world, _) =
            found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true)), phase, cut, SOON);
        world.run(SECOND * 20);
        assert_eq!(world.sims[0].switches, 2);
        world.sims[0].link = only(|_| true);
        world.run(SECOND * 30);
        assert_eq!(world.sims[0].switches, 2, "{phase}: too early");
        world.run(SECOND * 4);
        assert_eq!((world.sims[0].switches, world.finding(0)), (3, Finding::Healthy), "{phase}");
    }
}

#[test]
fn healthy_time_counts_from_leaving_the_direct_path() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], 1);
    world.run(SECOND * 100);
    world.sims[0].link = Box::new(|probe, used, _| (!on_segment(probe, used)).then(|| came(probe)));
    world.run_while(SOON, |world| world.preferred_path(0) == Some(PreferredPath::Direct));
    assert_eq!(world.preferred_path(0), Some(PreferredPath::Tunnel));
    // The fault ends at once, so that no echo along the path that was left is lost.
    world.sims[0].link = only(|_| true);
    world.run(SECOND * 29);
    assert_eq!(world.preferred_path(0), Some(PreferredPath::Tunnel), "too early");
    world.run(SECOND * 4);
    assert_eq!(world.preferred_path(0), Some(PreferredPath::Direct));
}

/// If echoes pass a filter only in the tunnel, "echo lost" stays the reason against the direct path.
#[test]
fn a_lost_direct_echo_is_reported_while_it_lasts() {
    let filtered = || -> Link {
        Box::new(|probe, used, _| {
            let passes = probe == Probe::NextHop || (used == Path::Tunnel(TunnelKind::Vxlan) && path(probe));
            passes.then(|| came(probe))
        })
    };
    for phase in (0..1000).step_by(93) {
        let (mut world, name) = found(
            Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true)),
            phase,
            filtered(),
            limit("echo lost", phase),
        );
        assert_eq!(name, "echo lost", "{phase}");
        world.run(SECOND * 60);
        assert_eq!(
            (world.finding(0).name(), world.preferred_path(0)),
            ("echo lost", Some(PreferredPath::Tunnel)),
            "{phase}"
        );
        world.sims[0].link = only(|_| true);
        world.run(SECOND * 35);
        assert_eq!(
            (world.finding(0).name(), world.preferred_path(0)),
            ("healthy", Some(PreferredPath::Direct)),
            "{phase}"
        );
    }
}

#[test]
fn a_reply_of_the_node_itself_ends_the_reason_against_the_direct_path() {
    for phase in (0..1000).step_by(93) {
        let filtered: Link = Box::new(|probe, used, _| {
            (probe == Probe::NextHop || (used == Path::Tunnel(TunnelKind::Vxlan) && path(probe)))
                .then(|| came(probe))
        });
        let (mut world, name) = found(
            Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true)),
            phase,
            filtered,
            limit("echo lost", phase),
        );
        assert_eq!(name, "echo lost", "{phase}");
        world.run(SECOND * 20);
        world.sims[0].link = Box::new(|probe, used, _| (!on_segment(probe, used)).then(|| came(probe)));
        world.run(SECOND * 30);
        assert_eq!(world.finding(0).name(), "pod addresses lost", "{phase}");
    }
}

/// Returns true for a probe that goes without the tunnel and needs the peer to accept pod addresses.
fn on_segment(probe: Probe, used: Path) -> bool {
    probe == Probe::Direct || (used == Path::Direct && !matches!(probe, Probe::NextHop | Probe::Node))
}

#[test]
fn a_flapping_direct_path_is_left_once() {
    let slow = [(1000, 1000), (900, 1100), (1100, 900), (1500, 1500), (3000, 2000)];
    // Periods in step with the regular probes, or with a part of the time between two.
    let periods = slow.into_iter().chain([700, 500, 400, 300, 250, 100].map(|half| (half, half)));
    for ((up, down), latency) in periods.flat_map(|period| [(period, 1), (period, 250)]) {
        for phase in (0..up + down).step_by(149) {
            let about = format!("{up}/{down} ms, {latency} ms away, phase {phase}");
            let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], phase);
            world.latency = (Duration::from_millis(latency), Duration::from_millis(latency + 5));
            world.run(SECOND * 10 + Duration::from_millis(phase));
            assert_eq!(world.sims[0].switches, 1);
            world.sims[0].link = Box::new(move |probe, _, sent| {
                let lost = sent.as_millis() % u128::from(up + down) >= u128::from(up);
                (!lost).then(|| came(probe))
            });
            let soon = if latency == 1 { 30 } else { 60 };
            world.run(SECOND * soon);
            assert_eq!(world.sims[0].switches, 2, "{about}: after {soon} s");
            world.run(SECOND * (120 - soon));
            assert_eq!(world.sims[0].switches, 2, "{about}: after 120 s");
            let said = world.sims[0].findings();
            assert!(said.len() <= 6, "{about}: {said:?}");
        }
    }
}

#[test]
fn a_direct_path_that_loses_half_is_left_once() {
    let mut world =
        World::new((1..=20).map(|n| Sim::new(peer(n, Path::Tunnel(TunnelKind::Vxlan), true))).collect(), 5);
    world.run(SECOND * 10);
    // The loss applies to probes and to replies, so half of the replies are missing.
    world.loss = 0.293;
    world.run(SECOND * 60);
    assert!(world.sims.iter().all(|sim| sim.switches == 2), "each is left once");
    world.run(SECOND * 90);
    assert!(world.sims.iter().all(|sim| sim.switches == 2), "it is not taken again");
}

#[test]
fn random_loss_is_no_fault() {
    for (seed, path, evidence) in [
        (7, Path::Direct, false),
        (8, Path::Tunnel(TunnelKind::Vxlan), true),
        (9, Path::Tunnel(TunnelKind::Vxlan), false),
    ] {
        let sims = (1..=30).map(|n| Sim::new(peer(n, path, evidence)));
        let mut world = World::new(sims.collect(), seed);
        world.loss = 0.02;
        world.latency = (Duration::from_millis(1), Duration::from_millis(400));
        world.run(SECOND * 600);
        for sim in &world.sims {
            assert_eq!(sim.findings(), ["healthy"], "seed {seed}");
            assert_eq!(sim.switches, usize::from(evidence));
            let loss = sim.judge.health().loss;
            assert!(loss < 200, "{loss}");
        }
    }
}

#[test]
fn paths_stay_when_most_peers_fall_silent_at_once() {
    for total in [4, 30] {
        let mut world = World::new(
            (1..=total).map(|n| Sim::new(peer(n, Path::Tunnel(TunnelKind::Vxlan), true))).collect(),
            3,
        );
        world.run(SECOND * 10);
        let dead = usize::from(total) * 3 / 4;
        world.sims.iter_mut().take(dead).for_each(|sim| sim.link = nothing());
        world.run(SECOND * 15);
        for sim in &world.sims {
            assert_eq!(
                (sim.switches, sim.judge.health().peer.preferred_path),
                (1, Some(PreferredPath::Direct))
            );
        }
        assert!(world.finding(0).is_fault(), "it is told nevertheless");
        world.sims.iter_mut().for_each(|sim| sim.link = only(|_| true));
        world.run(SECOND * 15);
        assert!(world.sims.iter().all(|sim| sim.switches == 1), "nor afterwards");
        // If only a few are silent, the peers are at fault.
        world.sims.iter_mut().take(1).for_each(|sim| sim.link = nothing());
        world.run(SECOND * 4);
        assert_eq!((world.sims[0].switches, world.sims[1].switches), (2, 1));
    }
}

#[test]
fn a_fault_of_a_replying_peer_counts_despite_silent_peers() {
    for phase in (0..1000).step_by(93) {
        let mut world = World::new(
            (1..=3).map(|n| Sim::new(peer(n, Path::Tunnel(TunnelKind::Vxlan), true))).collect(),
            3,
        );
        world.run(SECOND * 10 + Duration::from_millis(phase));
        world.sims[0].link = nothing();
        world.sims[1].link = nothing();
        world.run(SECOND * 5);
        assert_eq!(
            (world.preferred_path(0), world.preferred_path(1)),
            (Some(PreferredPath::Direct), Some(PreferredPath::Direct))
        );
        let cases: [fn(Probe) -> bool; 2] =
            [|probe| matches!(probe, Probe::NextHop | Probe::Node), |probe| matches!(probe, Probe::Node)];
        for (turn, answers) in cases.into_iter().enumerate() {
            world.sims[2].link = only(answers);
            world.run(NEAR);
            let ways = (world.preferred_path(2), world.preferred_path(0), world.preferred_path(1));
            assert_eq!(
                ways,
                (Some(PreferredPath::Tunnel), Some(PreferredPath::Direct), Some(PreferredPath::Direct)),
                "{turn}"
            );
            world.sims[2].link = only(|_| true);
            // A path that is lost again this soon must be healthy for twice as long.
            world.run(SECOND * [35, 65][turn]);
            assert_eq!(world.preferred_path(2), Some(PreferredPath::Direct), "{turn}");
        }
    }
}

#[test]
fn a_refusal_is_reported_only_while_it_arrives() {
    // First case, host-gw: the machine refuses packets during its shutdown, and then is off.
    let mut world = World::new(vec![Sim::new(peer(1, Path::Direct, false))], 1);
    world.run(SECOND * 20);
    world.sims[0].link = Box::new(|probe, _, _| if path(probe) { refused() } else { Some(came(probe)) });
    world.run(SECOND * 3);
    assert_eq!(world.finding(0).name(), "refused");
    world.sims[0].link = nothing();
    world.run(SECOND * 15);
    assert_eq!(world.finding(0).name(), "next hop silent");
    // Second case: the refusal came on another path.
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], 1);
    world.run(SECOND * 20);
    world.sims[0].link = Box::new(|probe, way, _| match probe {
        Probe::Direct => refused(),
        _ if path(probe) => {
            if way == Path::Direct {
                refused()
            } else {
                None
            }
        }
        Probe::There => None,
        _ => Some(came(probe)),
    });
    world.run(SECOND * 15);
    assert_eq!(world.finding(0).name(), "tunnel lost");
    // Third case: the peer has never been direct.
    let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true));
    sim.link = Box::new(|probe, _, _| if probe == Probe::Direct { refused() } else { Some(came(probe)) });
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 20);
    assert_eq!(world.finding(0).name(), "refused");
}

#[test]
fn a_graver_fault_replaces_a_fault_at_once() {
    let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true));
    sim.link = only(|probe| probe != Probe::Direct);
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 30);
    assert_eq!(world.finding(0).name(), "pod addresses lost");
    world.sims[0].link = only(|probe| matches!(probe, Probe::NextHop | Probe::Node));
    world.run(SOON);
    assert_eq!(world.finding(0).name(), "tunnel lost");
}

#[test]
fn a_smaller_size_is_reported_soon() {
    let (mut world, _) = found(Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false)), 0, big(1400), SOON);
    world.sims[0].link = big(1300);
    world.run(SECOND * 75);
    let Finding::LostAbove { mtu } = world.finding(0) else { panic!("{:?}", world.finding(0)) };
    assert!(mtu <= 1300, "{mtu}");
}

/// A direct path that fails as soon as it is used is taken less and less often. The peer's firewall may drop pod addresses from
/// its uplink, for example.
#[test]
fn a_path_that_fails_in_use_is_tried_less_and_less_often() {
    let mut sim = Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true));
    sim.link = Box::new(|probe, way, _| {
        (way == Path::Tunnel(TunnelKind::Vxlan) || !path(probe)).then(|| came(probe))
    });
    let mut world = World::new(vec![sim], 1);
    world.run(SECOND * 600);
    assert!(world.sims[0].switches <= 10, "{}", world.sims[0].switches);
    let before = world.sims[0].switches;
    world.run(SECOND * 1800);
    assert!(world.sims[0].switches - before <= 8, "{before} {}", world.sims[0].switches);
    // After a repair the path is taken and kept, and the relapses are forgotten.
    world.sims[0].link = only(|_| true);
    world.run(SECOND * 2000);
    assert_eq!(world.preferred_path(0), Some(PreferredPath::Direct));
    world.sims[0].link = nothing();
    world.run(SECOND * 5);
    world.sims[0].link = only(|_| true);
    world.run(SECOND * 35);
    assert_eq!(world.preferred_path(0), Some(PreferredPath::Direct), "after thirty seconds, as at first");
}

#[test]
fn a_second_address_of_a_machine_hides_no_other_finding() {
    type Answered = fn(Probe) -> bool;
    let cases: [(&str, Answered); 3] = [
        ("no way back", |probe| matches!(probe, Probe::Node | Probe::There)),
        ("echo lost", |_| false),
        ("proxy ARP", |probe| probe == Probe::Node),
    ];
    for (name, answered) in cases {
        let link: Link = Box::new(move |probe, _, _| match probe {
            Probe::NextHop => {
                Some(Answer::Is { mac: Default::default(), also: Some([192, 0, 2, 99].into()) })
            }
            _ => answered(probe).then(|| came(probe)),
        });
        assert_eq!(found(Sim::new(peer(1, Path::Direct, false)), 0, link, SOON).1, name);
    }
}

#[test]
fn a_moment_off_the_segment_restarts_the_healthy_time() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], 3);
    let flicker = |world: &mut World| {
        let sim = &mut world.sims[0];
        let path = Path::Tunnel(TunnelKind::Vxlan);
        for on_link in [false, true] {
            sim.peer = plan::PeerPath { on_link, path, ..peer(1, path, on_link) };
            sim.judge.update_path(sim.peer.clone(), health::world::local(), world.now);
        }
    };
    world.run(SECOND * 10);
    flicker(&mut world);
    world.run(SECOND * 4);
    assert_eq!(world.preferred_path(0), Some(PreferredPath::Direct), "it was never left");
    world.sims[0].link = Box::new(|probe, used, _| (!on_segment(probe, used)).then(|| came(probe)));
    world.run(SECOND * 10);
    world.sims[0].link = only(|_| true);
    world.run(SECOND * 20);
    flicker(&mut world);
    world.run(SECOND * 29);
    assert_eq!(world.preferred_path(0), None, "too early");
    world.run(SECOND * 4);
    assert_eq!(world.preferred_path(0), Some(PreferredPath::Direct));
}

#[test]
fn a_next_hop_that_replies_every_second_time_is_healthy() {
    for (path, evidence) in [(Path::Tunnel(TunnelKind::Vxlan), true), (Path::Direct, false)] {
        let mut world = World::new(vec![Sim::new(peer(1, path, evidence))], 3);
        world.run(SECOND * 10);
        let count = std::cell::Cell::new(0);
        world.sims[0].link = Box::new(move |probe, _, _| {
            count.set(count.get() + u32::from(probe == Probe::NextHop));
            (probe != Probe::NextHop || count.get().is_multiple_of(2)).then(|| came(probe))
        });
        world.run(SECOND * 120);
        let sim = &world.sims[0];
        assert_eq!((sim.findings(), sim.switches), (vec!["healthy"], usize::from(evidence)));
    }
}

#[test]
fn a_peer_that_restarts_without_pods_is_no_fault() {
    let mut sim = Sim::new(peer(1, Path::Direct, false));
    sim.peer.tunnel = None;
    let (mut world, _) = found(Sim::new(sim.peer), 0, nothing(), SOON);
    world.run(SECOND * 15);
    world.sims[0].link = only(|probe| matches!(probe, Probe::NextHop | Probe::Node));
    world.run(SECOND * 20);
    assert_eq!(world.finding(0), Finding::Unverified);
    assert_eq!(world.sims[0].findings(), ["healthy", "next hop silent", "unverified"]);
}

/// A path that is lost after flapping was reached until then, whatever the moment.
#[test]
fn pod_addresses_that_are_lost_after_flapping_are_a_fault() {
    for phase in (0..2000).step_by(93) {
        let mut sim = Sim::new(peer(1, Path::Direct, false));
        sim.peer.tunnel = None;
        let mut world = World::new(vec![Sim::new(sim.peer)], 1);
        world.run(SECOND * 20);
        world.sims[0].link = Box::new(|probe, _, sent| (sent.as_secs() % 2 == 0).then(|| came(probe)));
        world.run(SECOND * 60 + Duration::from_millis(phase));
        assert_eq!(world.finding(0).name(), "flapping", "{phase}");
        world.sims[0].link = only(|probe| matches!(probe, Probe::NextHop | Probe::Node));
        world.run(SECOND * 45);
        assert_eq!(world.finding(0).name(), "pod addresses lost", "{phase}");
    }
}

#[test]
fn a_changing_detail_is_no_new_finding() {
    let proxy: Link = Box::new(|probe, _, sent| match probe {
        Probe::NextHop => {
            let also = [192, 0, 2, 100 + (sent.as_secs() / 20 % 2) as u8].into();
            Some(Answer::Is { mac: Default::default(), also: Some(also) })
        }
        Probe::Node => Some(came(probe)),
        _ => None,
    });
    let (mut world, _) = found(Sim::new(peer(1, Path::Direct, false)), 0, proxy, SOON);
    world.run(SECOND * 400);
    assert_eq!(world.sims[0].findings(), ["healthy", "proxy ARP"]);
}

#[test]
fn a_new_peer_has_time_before_a_fault_is_reported() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], 3);
    world.sims[0].link = only(|probe| !path(probe) && probe != Probe::Direct);
    world.run(SECOND * 10);
    assert!(world.sims[0].asked[0].0 >= SECOND, "nor is it asked at once");
    assert_eq!(world.sims[0].findings(), [""; 0]);
    world.run(SECOND * 3);
    assert_eq!(world.sims[0].findings(), ["no way back"]);
}

#[test]
fn random_loss_of_datagrams_is_no_checksum_fault() {
    let sims = (1..=30).map(|n| Sim::new(peer(n, Path::Tunnel(TunnelKind::Vxlan), false)));
    let mut world = World::new(sims.collect(), 5);
    world.loss = 0.05;
    world.run(SECOND * 900);
    for sim in &world.sims {
        assert!(!sim.findings().contains(&"checksum fault"), "{:?}", sim.findings());
    }
}

#[test]
fn our_uplink_going_down_withdraws_no_path() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], 3);
    world.run(SECOND * 10);
    world.sims[0].link = nothing();
    world.uplink_down = true;
    world.run(SECOND * 60);
    world.sims[0].link = only(|_| true);
    world.uplink_down = false;
    world.run(SECOND * 10);
    assert_eq!((world.sims[0].switches, world.finding(0)), (1, Finding::Healthy));
}

#[test]
fn long_dead_peers_do_not_make_us_the_suspect() {
    let mut sims: Vec<Sim> =
        (1..=9).map(|n| Sim::new(peer(n, Path::Tunnel(TunnelKind::Vxlan), true))).collect();
    sims.iter_mut().skip(5).for_each(|sim| sim.link = nothing());
    let mut world = World::new(sims, 3);
    world.run(SECOND * 20);
    for n in 0..5 {
        world.sims[n].link = nothing();
        world.run(SECOND * 10);
        assert_eq!(world.preferred_path(n), Some(PreferredPath::Tunnel), "{n}");
    }
}

#[test]
fn a_long_probe_interval_still_finds_faults_and_recovery() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false))], 1);
    world.pace = SECOND * 60;
    world.run(SECOND * 600);
    let asked = world.sims[0].asked.len();
    assert!(asked < 20, "{asked} in ten minutes");
    world.sims[0].link = nothing();
    world.run(SECOND * 63);
    assert_eq!(world.finding(0).name(), "next hop silent");
    world.sims[0].link = only(|_| true);
    world.run(SECOND * 63);
    assert_eq!(world.finding(0), Finding::Healthy);
}

#[test]
fn a_hastened_peer_is_probed_early_but_once_a_second_at_most() {
    let local = Local { uplink: "eth0".parse().unwrap(), mtu: 1500 };
    let mut judge = Judge::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), false), local, Duration::ZERO);
    let asked = SECOND * 70;
    for sent in [SECOND, SECOND + Duration::from_millis(150), asked, asked + Duration::from_millis(150)] {
        for probe in judge.due_probes(sent, SECOND * 60) {
            judge.record(Sample { probe, sent, answer: came(probe) });
        }
    }
    assert!(judge.next() > SECOND * 110);
    judge.probe_by(SECOND * 80);
    assert_eq!(judge.next(), SECOND * 80);
    judge.probe_by(SECOND * 90);
    assert_eq!(judge.next(), SECOND * 80, "never later");
    judge.probe_by(asked);
    assert_eq!(judge.next(), SECOND * 71);
}

/// Peers that appear at the same moment are probed at different times, by occasional probes as well.
#[test]
fn peers_added_at_once_are_probed_at_different_times() {
    let local = Local { uplink: "eth0".parse().unwrap(), mtu: 1500 };
    let (mut questions, mut rare) = ([0; 60], [0; 60]);
    for n in 0..5000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let path = PeerPath {
            subnet: format!("10.{high}.{low}.0/24").parse().unwrap(),
            ..peer(1, Path::Tunnel(TunnelKind::Vxlan), false)
        };
        let mut judge = Judge::new(path, local, Duration::ZERO);
        while judge.next() < SECOND * 300 {
            let sent = judge.next();
            let probes = judge.due_probes(sent, SECOND * 60);
            for probe in probes {
                let all = if matches!(probe, Probe::PathSized(_)) { &mut questions } else { &mut rare };
                if let Some(second) = (sent.as_secs() as usize).checked_sub(240) {
                    all[second] += 1;
                }
                judge.record(Sample { probe, sent, answer: came(probe) });
            }
        }
    }
    assert!(questions.iter().all(|count| (70..130).contains(count)), "{questions:?}");
    assert!(rare.iter().all(|count| *count < 400), "{rare:?}");
}

#[test]
fn losses_on_a_former_path_do_not_count() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Direct, true))], 1);
    world.run(SECOND * 10);
    let now = world.now;
    let judge = &mut world.sims[0].judge;
    judge.update_path(peer(1, Path::Tunnel(TunnelKind::Vxlan), true), health::world::local(), now);
    for n in (1..=20).rev() {
        let sent = now - Duration::from_millis(n * 40);
        judge.record(Sample { probe: Probe::Path, sent, answer: Answer::Lost });
        judge.decide(now, false);
    }
    assert_eq!((judge.health().peer.finding, judge.health().loss), (Finding::Healthy, 0));
    // The probe was sent in the same millisecond, but before the change.
    let judge = &mut world.sims[0].judge;
    judge.update_path(peer(1, Path::Direct, true), health::world::local(), now + Duration::from_micros(900));
    judge.record(Sample {
        probe: Probe::Path,
        sent: now + Duration::from_micros(100),
        answer: came(Probe::Path),
    });
    assert_eq!(judge.health().latency, None);
    assert!(judge.next() > now + Duration::from_micros(900) && judge.next() < now + Duration::from_millis(2));
}

#[test]
fn latency_loss_and_mtu_of_a_healthy_peer_are_reported() {
    let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], 1);
    world.run(SECOND * 10);
    let health = world.sims[0].judge.health();
    assert_eq!((health.latency, health.loss, health.mtu), (Some(LATENCY), 0, Some(1450)));
    assert!(health.since < SECOND * 2);
    // Only echoes between the pod subnets have the pods' latency.
    let (now, pods) = (world.now, LATENCY * 3);
    let judge = &mut world.sims[0].judge;
    for (probe, after) in [(Probe::Path, pods), (Probe::Node, LATENCY), (Probe::There, LATENCY)] {
        judge.record(Sample { probe, sent: now, answer: Answer::Came { after } });
    }
    assert_eq!(judge.health().latency, Some(pods));
}

fn probes() -> impl Strategy<Value = Probe> {
    prop_oneof![
        Just(Probe::NextHop),
        Just(Probe::Node),
        Just(Probe::NodeSized(1500)),
        Just(Probe::Path),
        Just(Probe::There),
        Just(Probe::Direct),
        Just(Probe::Checksum),
        Just(Probe::PathSized(1450)),
        any::<u16>().prop_map(Probe::PathSized),
        any::<u16>().prop_map(Probe::NodeSized),
    ]
}

fn waits() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..300_u64, 1 => 0..3_000_u64]
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => Just(Answer::Lost),
        4 => (0..2000_u64).prop_map(|after| Answer::Came { after: Duration::from_millis(after) }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(mac, also)| Answer::Is {
            mac: plan::Mac([2, 0, 0, 0, 0, mac]),
            also: also.then_some([192, 0, 2, 7].into()),
        }),
        1 => any::<u16>().prop_map(|mtu| Answer::TooBig { mtu }),
        1 => Just(Answer::Refused { by: [192, 0, 2, 8].into() }),
        1 => any::<(bool, bool)>().prop_map(|(offloaded, complete)| Answer::Checksums { offloaded, complete }),
        1 => Just(Answer::Impossible),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn invariants_hold_for_any_replies(
        steps in prop::collection::vec((waits(), probes(), answers(), 0..3_000_u64, any::<(bool, bool, bool)>()), 1..200),
        pace in 1..70_u64,
        evidence: bool,
        mtu in prop_oneof![Just(1450), Just(u32::from(u16::MAX)), Just(u32::MAX), any::<u32>()],
    ) {
        let local = Local { mtu, ..health::world::local() };
        let peer = |path| {
            let mut peer = peer(1, path, evidence);
            peer.tunnel.iter_mut().for_each(|tunnel| tunnel.mtu = u32::MAX);
            peer
        };
        let mut judge = Judge::new(peer(Path::Tunnel(TunnelKind::Vxlan)), local, Duration::ZERO);
        let (mut now, mut asked) = (Duration::ZERO, Vec::new());
        for (wait, probe, answer, ago, (follow, suspect, direct)) in steps {
            now += Duration::from_millis(wait);
            judge.record(Sample { probe, sent: now.saturating_sub(Duration::from_millis(ago)), answer });
            judge.decide(now, suspect);
            if follow {
                judge.update_path(peer(if direct { Path::Direct } else { Path::Tunnel(TunnelKind::Vxlan) }), local, now);
            }
            let probes = judge.due_probes(now, Duration::from_secs(pace));
            prop_assert!(judge.next() > now, "{:?} {:?}", judge.next(), now);
            health::world::count(&mut asked, &probes, now);
            prop_assert!(evidence || judge.health().peer.preferred_path.is_none());
            prop_assert!(judge.health().loss <= 1000);
        }
        prop_assert!(health::world::most_in_a_second(&asked) <= 10);
    }
}
