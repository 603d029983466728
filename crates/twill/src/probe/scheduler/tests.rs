//! Decisions of the loop, tested without any peer.

use plan::TunnelKind;
use plan::node::{Node, Uplink};
use plan::subnet::Subnet;

use plan::health::Sample;

use super::*;
use crate::report::peers::tests::peer;

fn path(path: Path) -> PeerPath {
    PeerPath {
        subnet: "10.244.2.0/24".parse().unwrap(),
        public_ip: [192, 0, 2, 2].into(),
        path,
        on_link: true,
        tunnel: None,
        by_evidence: true,
        born: 0,
    }
}

fn targets(uplink: &str) -> Targets {
    let node = Node::new(Uplink::new(uplink.parse().unwrap(), 1500), Subnet::default());
    let peers = Arc::new(vec![path(Path::Direct)]);
    Targets { node: Some(node), mac: None, peers, suspect: false, links: 0, mtu: 1500, diverted: Vec::new() }
}

struct Loop {
    scheduler: Scheduler,
    targets: watch::Sender<Targets>,
    healths: watch::Receiver<Healths>,
    _wake: UnixStream,
}

fn new() -> Loop {
    let (targets, received) = watch::channel(targets("none0"));
    let (health_sender, healths) = watch::channel(Healths::default());
    let (_wake, woken) = UnixStream::pair().unwrap();
    let cause_sender = crate::trigger::channel().0;
    let scheduler = Scheduler::new(
        ProbeMode::OnChange,
        cause_sender,
        received,
        woken,
        health_sender,
        watch::channel(ProbeFaults::default()).0,
        PacketIo::new([1, 2]),
    );
    Loop { scheduler, targets, healths, _wake }
}

#[test]
fn a_path_chosen_by_evidence_is_always_probed() {
    let later = Duration::from_secs(3600);
    let local = Local { uplink: "eth0".parse().unwrap(), mtu: 1500 };
    let asked = |peer: PeerPath, mode| Peer::new(peer, local, Duration::ZERO).is_still_probed(mode, later);
    assert!(asked(path(Path::Direct), ProbeMode::OnChange));
    assert!(!asked(path(Path::Tunnel(TunnelKind::Vxlan)), ProbeMode::OnChange));
    assert!(!asked(PeerPath { by_evidence: false, ..path(Path::Direct) }, ProbeMode::OnChange));
    assert!(asked(path(Path::Tunnel(TunnelKind::Vxlan)), ProbeMode::Periodic));
}

#[test]
fn health_found_along_a_former_uplink_is_withdrawn() {
    let mut all = new();
    all.scheduler.update_targets();
    all.scheduler.publish(true, Duration::ZERO);
    let of_this = all.healths.borrow_and_update().clone();
    all.scheduler.update_targets();
    assert!(!all.healths.has_changed().unwrap(), "nothing is new");
    all.targets.send_replace(targets("none1"));
    all.scheduler.update_targets();
    assert!(all.healths.has_changed().unwrap());
    let uplinks = [&of_this, &*all.healths.borrow()]
        .map(|healths| healths.iter().map(|health| health.peer.uplink.to_string()).collect::<Vec<_>>());
    assert_eq!(uplinks, [["none0"], ["none1"]]);
}

/// Changes of a link spread the probes of thousands of peers, however often they come.
#[test]
fn probes_of_thousands_are_spread_after_a_change_of_a_link() {
    let mut all = new();
    let count = 5000_u16;
    let peers = (0..count).map(|n| {
        let [high, low] = n.to_be_bytes();
        let subnet = format!("10.{high}.{low}.0/24").parse().unwrap();
        PeerPath {
            subnet,
            public_ip: [192, 168, high, low].into(),
            by_evidence: false,
            ..path(Path::Tunnel(TunnelKind::Vxlan))
        }
    });
    all.targets.send_modify(|targets| targets.peers = Arc::new(peers.collect()));
    all.scheduler.update_targets();
    let schedule = &mut all.scheduler.schedule;
    for sent in [5_000, 5_150, 70_000, 70_150].map(Duration::from_millis) {
        for peer in &mut schedule.peers {
            for probe in peer.judge.due_probes(sent, MAX_PERIOD) {
                peer.judge.record(Sample { probe, sent, answer: Answer::Came { after: TICK } });
            }
        }
    }
    for _ in 0..3 {
        schedule.probe_all(Duration::from_secs(72));
    }
    let mut seconds = [0; 140];
    schedule.due.iter().for_each(|(due, _)| seconds[(*due * TICK_MS / 1000) as usize] += 1);
    assert_eq!(seconds[..72], [0; 72]);
    assert!(seconds[72..97].iter().all(|peers| (190..=240).contains(peers)), "{seconds:?}");
    // A peer whose neighbour entry has failed does not wait behind all others.
    let (last, now) = (schedule.peers.len() - 1, Duration::from_secs(73));
    schedule.hasten(last, now, now);
    assert_eq!(schedule.peers[last].judge.next(), now);
}

#[test]
fn no_health_is_known_once_the_prober_has_ended() {
    let mut all = new();
    all.scheduler.update_targets();
    all.scheduler.publish(true, Duration::ZERO);
    assert_eq!(all.healths.borrow().len(), 1);
    drop(all.scheduler);
    assert!(all.healths.borrow().is_empty());
}

#[test]
fn few_subnets_are_probed_behind_one_address() {
    let mut peers: Vec<PeerPath> =
        (1..=100).map(|number| peer(number, Path::Tunnel(TunnelKind::Vxlan))).collect();
    peers.iter_mut().skip(10).for_each(|peer| peer.public_ip = [192, 0, 2, 200].into());
    let known = Arc::new(peers);
    let mut asked = known.clone();
    limit_per_address(&mut asked, |_| false);
    assert_eq!(asked[..10], known[..10]);
    assert_eq!(asked.len(), 10 + MAX_PER_ADDRESS);
    let mut usual = Arc::new(known[..10].to_vec());
    let before = Arc::as_ptr(&usual);
    limit_per_address(&mut usual, |_| false);
    assert_eq!(Arc::as_ptr(&usual), before, "nothing is copied where nobody is left out");
}

/// The decoys' subnets come before the peer's.
#[test]
fn leases_with_a_peers_address_do_not_end_its_probes() {
    for (born, answers) in [(1, false), (99, true)] {
        let mut all = new();
        let behind = |number: u8, born: u64| {
            let public_ip = [192, 0, 2, 200].into();
            PeerPath { public_ip, born, ..peer(number, Path::Tunnel(TunnelKind::Vxlan)) }
        };
        let real = behind(200, born);
        all.targets.send_modify(|targets| targets.peers = Arc::new(vec![real.clone()]));
        all.scheduler.update_targets();
        if answers {
            all.scheduler.schedule.peers[0].record(Probe::Path, Answer::Came { after: TICK });
        }
        let peers = (1..=20).map(|number| behind(number, 50)).chain([real.clone()]).collect();
        all.targets.send_modify(|targets| targets.peers = Arc::new(peers));
        all.scheduler.update_targets();
        assert_eq!(all.scheduler.schedule.peers.len(), MAX_PER_ADDRESS);
        assert!(at(&all.scheduler.schedule.peers, real.subnet).is_some(), "born {born}, answers: {answers}");
    }
}
