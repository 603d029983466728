//! More packets than can be read at once, sockets that cannot be opened, and bytes that nobody has asked for.

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

#[test]
fn no_probe_expires_while_answers_are_waiting() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            ask.comes(Probe::Node);
            let own = IpAddr::from(lab.node(1).ip);
            let flood = flood(ask.packet_io.marks.echo, own);
            let sender = Socket::sender(Family::Ipv4).unwrap();
            (0..=sockets::MAX_PACKETS_AT_ONCE).for_each(|_| sender.send_to(&flood, own).unwrap());
            let now = ask.begun.elapsed();
            assert_eq!(ask.packet_io.ask(&ask.peer, Probe::Node, false, now), None);
            // By then the reply to the probe has come in, too.
            lab.node(1).ns.run(&format!("ping -n -c 1 {}", lab.node(2).ip));
            let late = now + 2 * PATIENCE;
            // The daemon does not run for a while.
            lab::until(late.saturating_sub(ask.begun.elapsed()), || None::<()>);
            let late = ask.begun.elapsed();
            assert_eq!(ask.packet_io.receive(late), []);
            let answers: Vec<_> = ask.packet_io.receive(late).into_iter().map(|(_, it)| it.answer).collect();
            assert!(matches!(answers[..], [Answer::Came { .. }]), "{answers:?}");
        });
    });
}

/// Anybody who knows the mark of our echoes can send packets faster than they are read.
#[test]
fn packets_that_never_end_hide_no_loss() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        lab.node(2).ns.run(
            "nft add table ip t; nft add chain ip t c '{ type filter hook input priority 0; }'
             nft add rule ip t c icmp type echo-request drop",
        );
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            let own = IpAddr::from(lab.node(1).ip);
            let sender = Socket::sender(Family::Ipv4).unwrap();
            let now = ask.begun.elapsed();
            assert_eq!(ask.packet_io.ask(&ask.peer, Probe::Node, false, now), None);
            let lost = lab::until(5 * PATIENCE, || {
                // More are left after each reading.
                let flood = flood(ask.packet_io.marks.echo, own);
                (0..=sockets::MAX_PACKETS_AT_ONCE).for_each(|_| sender.send_to(&flood, own).unwrap());
                ask.packet_io.receive(ask.begun.elapsed()).pop()
            });
            assert_eq!(lost.map(|(_, sample)| sample.answer), Some(Answer::Lost));
            assert!(ask.begun.elapsed() >= now + PATIENCE);
        });
    });
}

/// Returns an echo reply with our mark that belongs to no probe.
fn flood(mark: u16, own: IpAddr) -> Vec<u8> {
    let number = Number { sequence: 0, cookie: 0 };
    let mut packet = frame::echo(Endpoints { from: own, to: own }, mark, number, ECHO_SIZE);
    // Type 0 makes it a reply.
    packet[20] = 0;
    packet
}

#[test]
fn a_socket_that_could_not_be_opened_is_opened_later() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        inquire(&lab, |ask| {
            let before = ask.packet_io.sockets().count();
            let mut opened = |seconds| {
                let now = Duration::from_secs(seconds);
                assert_eq!(ask.packet_io.ask(&ask.peer, Probe::Node, false, now), None);
                ask.packet_io.sockets().count() > before
            };
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
            assert!(!opened(1));
            setrlimit(Resource::Nofile, limit).unwrap();
            assert!(!opened(30));
            assert!(opened(31));
            ask.begun -= Duration::from_secs(31);
            ask.of(Probe::NextHop);
            ask.comes(Probe::Node);
        });
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Arbitrary packets are replies to none of the probes that wait, and cause no panic.
    #[test]
    fn arbitrary_packets_answer_no_probe(all in vec((any::<u8>(), vec(any::<u8>(), 0..120)), 1..20)) {
        let peer = PeerPath {
            subnet: "10.244.2.0/24".parse().unwrap(),
            public_ip: [192, 0, 2, 2].into(),
            path: Path::Tunnel(TunnelKind::Vxlan),
            on_link: true,
            tunnel: None,
            by_evidence: true,
            born: 0,
        };
        let mut packet_io = PacketIo::new([0x1234, 0xfffe]);
        let ask = |packet_io: &mut PacketIo, probe, state| packet_io.add_pending(PeerProbe { peer: &peer, probe }, peer.public_ip, state, PATIENCE);
        ask(&mut packet_io, Probe::Path, ProbeState::Open);
        ask(&mut packet_io, Probe::NextHop, ProbeState::Open);
        let datagrams = ProbeState::Datagrams { port: 7, offloaded: false, complete: false };
        ask(&mut packet_io, Probe::Checksum, datagrams);
        for (kind, bytes) in all {
            let kind = [EtherType::Arp, EtherType::Ipv4, EtherType::Ipv6][usize::from(kind % 3)];
            let mut icmp = bytes.clone();
            icmp.iter_mut().take(1).for_each(|first| *first = [0, 1, 2, 3, 11, 129][usize::from(*first % 6)]);
            let from = if kind == EtherType::Ipv4 { peer.public_ip } else { peer.subnet.addr() };
            let received = [frame::read_frame(kind, None, &bytes), frame::read_icmp(from, &icmp)];
            for received in received.into_iter().flatten() {
                prop_assert_eq!(packet_io.sample_of(received, PATIENCE * 2), None);
            }
        }
    }
}
