//! Each kind of probe, sent to a kernel that knows nothing of us. Two nodes of the lab are set up by ip(8) as any flannel
//! would.

use std::time::Instant;

use lab::{Lab, Timing, Topology};
use plan::health::PATIENCE;
use plan::node::Uplink;
use plan::subnet::Subnet;
use plan::{Tunnel, TunnelKind};

use super::*;

mod trouble;

const NEAR: &str = "02:00:00:00:01:01";
const FAR: &str = "02:00:00:00:01:02";

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// Builds two nodes with a VTEP each, and the routes through it.
fn two_nodes() -> Lab {
    let lab = Topology::flat(2).build();
    for (own, peer, mac, theirs) in [(1, 2, NEAR, FAR), (2, 1, FAR, NEAR)] {
        let (node, other) = (lab.node(own), lab.node(peer));
        node.ns.run(&format!(
            "ip link add flannel.1 address {mac} mtu 1450 type vxlan id 1 local {} dev eth0 dstport 8472 nolearning
             ip addr add 10.244.{own}.0/32 dev flannel.1
             ip link set flannel.1 up
             ip neigh add 10.244.{peer}.0 lladdr {theirs} dev flannel.1
             bridge fdb add {theirs} dev flannel.1 dst {}
             ip route add 10.244.{peer}.0/24 via 10.244.{peer}.0 dev flannel.1 onlink",
            node.ip, other.ip
        ));
    }
    lab
}

fn node(lab: &Lab) -> Node {
    let uplink = Uplink { ipv4: Some(lab.node(1).ip), ..Uplink::new(name("eth0"), 1500) };
    Node::new(uplink, Subnet { ipv4: Some("10.244.1.0/24".parse().unwrap()), ipv6: None })
}

fn peer(lab: &Lab) -> PeerPath {
    PeerPath {
        subnet: "10.244.2.0/24".parse().unwrap(),
        public_ip: lab.node(2).ip.into(),
        path: Path::Tunnel(TunnelKind::Vxlan),
        on_link: true,
        tunnel: Some(Tunnel {
            kind: TunnelKind::Vxlan,
            link: name("flannel.1"),
            mac: FAR.parse().ok(),
            port: Some(8472),
            mtu: 1450,
        }),
        by_evidence: true,
        born: 0,
    }
}

fn only(peer: &PeerPath) -> Arc<Vec<PeerPath>> {
    Arc::new(vec![peer.clone()])
}

/// Sends probes from the first node, and waits for everything that comes of them.
struct Inquiry {
    packet_io: PacketIo,
    begun: Instant,
    peer: PeerPath,
}

impl Inquiry {
    fn of(&mut self, probe: Probe) -> Vec<Answer> {
        let now = self.begun.elapsed();
        let known = self.packet_io.ask(&self.peer, probe, false, now);
        let mut answers: Vec<_> = known.into_iter().map(|sample| sample.answer).collect();
        let until = now + PATIENCE + PATIENCE / 2;
        while self.begun.elapsed() < until {
            let (now, peer) = (self.begun.elapsed(), self.peer.clone());
            self.packet_io.ask_all(|_| Some(&peer), now);
            let samples = self.packet_io.receive(now);
            answers.extend(samples.into_iter().filter(|(_, it)| it.probe == probe).map(|(_, it)| it.answer));
            // A second machine may reply to a next-hop request, too.
            if !answers.is_empty() && probe != Probe::NextHop {
                break;
            }
            std::thread::yield_now();
        }
        answers
    }

    fn comes(&mut self, probe: Probe) {
        let answers = self.of(probe);
        assert!(matches!(answers[..], [Answer::Came { .. }]), "{probe:?}: {answers:?}");
    }
}

fn inquire(lab: &Lab, body: impl FnOnce(&mut Inquiry) + Send) {
    lab.node(1).ns.within(|| {
        let mut packet_io = PacketIo::new([0x1234, 0xfffe]);
        let peer = peer(lab);
        packet_io.set_peers(Some(&node(lab)), &only(&peer), Duration::ZERO);
        body(&mut Inquiry { packet_io, begun: Instant::now(), peer });
    });
}

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

#[test]
fn every_probe_to_a_healthy_peer_is_answered() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        let next_hop = mac(&lab.node(2).mac);
        inquire(&lab, |ask| {
            for probe in [Probe::Direct, Probe::Path] {
                assert_eq!(ask.of(probe), [], "nobody has answered for it yet: not asked");
            }
            for probe in
                [Probe::Node, Probe::NodeSized(1500), Probe::Path, Probe::PathSized(1450), Probe::There]
            {
                ask.comes(probe);
            }
            assert_eq!(ask.of(Probe::NextHop), [Answer::Is { mac: next_hop, also: None }]);
            ask.comes(Probe::Direct);
            let both = Answer::Checksums { offloaded: true, complete: true };
            assert_eq!(ask.of(Probe::Checksum), [both]);
            ask.peer.path = Path::Direct;
            ask.comes(Probe::There);
        });
    });
}

#[test]
fn a_direct_echo_bypasses_the_tunnel_and_the_rules() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        lab.node(1).ns.run(
            "nft add table ip t; nft add chain ip t c '{ type filter hook input priority 0; }'
            nft add rule ip t c ct state invalid drop",
        );
        let wire = lab::Capture::start(&lab.node(1).ns, "eth0", &["icmp"]);
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            ask.comes(Probe::Direct);
            ask.comes(Probe::There);
        });
        assert!(wire.wait_for(Duration::from_secs(5), |it| {
            it.contains("10.244.1.0 > 10.244.2.0: ICMP echo request")
        }));
    });
}

#[test]
fn each_loss_is_seen_by_the_matching_probe() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        let far = &lab.node(2).ns;
        far.run("nft add table ip t; nft add chain ip t c '{ type filter hook prerouting priority -500; }'");
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            far.run("nft add rule ip t c udp dport 8472 drop");
            assert_eq!(ask.of(Probe::Path), [Answer::Lost]);
            ask.comes(Probe::Node);
            ask.comes(Probe::Direct);
            let neither = Answer::Checksums { offloaded: false, complete: false };
            assert_eq!(ask.of(Probe::Checksum), [neither]);
            far.run("nft flush chain ip t c; nft add rule ip t c iif eth0 ip saddr 10.244.0.0/16 drop");
            assert_eq!(ask.of(Probe::Direct), [Answer::Lost]);
            ask.comes(Probe::Path);
            far.run(
                "nft flush chain ip t c; nft add table arp t
                 nft add chain arp t c '{ type filter hook input priority 0; }'; nft add rule arp t c drop",
            );
            assert_eq!(ask.of(Probe::NextHop), [Answer::Lost]);
            ask.comes(Probe::Node);
        });
    });
}

#[test]
fn a_packet_that_is_too_large_is_reported_with_the_size_that_fits() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            assert_eq!(ask.of(Probe::NodeSized(1501)), [Answer::TooBig { mtu: 1500 }]);
            assert_eq!(ask.of(Probe::PathSized(1451)), [Answer::TooBig { mtu: 1450 }]);
            lab.node(2).ns.run("ip link set flannel.1 mtu 1400");
            ask.comes(Probe::PathSized(1400));
        });
        assert!(lab.node(1).ns.run("ip route show cache").is_empty(), "nothing is learnt by it");
    });
}

#[test]
fn two_machines_with_one_address_give_two_replies() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(3).build();
        let (second, third) = (lab.node(2), lab.node(3));
        third.ns.run(&format!("ip addr add {}/24 dev eth0", second.ip));
        inquire(&lab, |ask| {
            let mut received = ask.of(Probe::NextHop);
            received.sort_by_key(|it| format!("{it:?}"));
            let mut macs = [&second.mac, &third.mac].map(|it| mac(it));
            macs.sort();
            let received: Vec<_> = received
                .iter()
                .map(|it| if let Answer::Is { mac, .. } = it { *mac } else { panic!("{it:?}") })
                .collect();
            assert_eq!(received, macs);
            // A unicast request would get one reply.
            assert_eq!(ask.of(Probe::NextHop).len(), 2, "all are asked again");
        });
    });
}

#[test]
fn an_impossible_probe_is_reported_and_sent_once_it_is_possible() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        lab.node(1).ns.run("ip addr del 10.244.1.0/32 dev flannel.1");
        inquire(&lab, |ask| {
            for probe in [Probe::Path, Probe::PathSized(1450), Probe::Direct, Probe::Checksum] {
                assert_eq!(ask.of(probe), [Answer::Impossible]);
            }
            ask.of(Probe::NextHop);
            ask.comes(Probe::Node);
            lab.node(1).ns.run("ip addr add 10.244.1.1/24 dev flannel.1");
            lab.node(2).ns.run("ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink");
            let later = Duration::from_secs(3600);
            ask.packet_io.refresh_if_due(later);
            assert!(
                ask.packet_io
                    .pod_endpoints(&ask.peer)
                    .is_some_and(|ends| ends.from.to_string() == "10.244.1.1")
            );
            lab.node(1).ns.run("ip link set eth0 arp off");
            ask.packet_io.set_peers(Some(&node(&lab)), &only(&ask.peer), later);
            assert_eq!(ask.of(Probe::NextHop), [Answer::Impossible]);
            lab.node(1)
                .ns
                .run(&format!("ip link set eth0 arp on; ip addr del {}/24 dev eth0", lab.node(1).ip));
            ask.packet_io.set_peers(Some(&node(&lab)), &only(&ask.peer), later);
            assert_eq!(ask.of(Probe::NextHop), [Answer::Impossible], "not with an address of nobody");
        });
    });
}

#[test]
fn answers_arrive_again_after_a_device_was_recreated() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            ask.comes(Probe::There);
            lab.node(1).ns.run(&format!(
                "ip link del flannel.1
                 ip link add flannel.1 address {NEAR} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning
                 ip addr add 10.244.1.0/32 dev flannel.1; ip link set flannel.1 up
                 bridge fdb add {FAR} dev flannel.1 dst {}",
                lab.node(1).ip, lab.node(2).ip
            ));
            assert_eq!(ask.of(Probe::There), [Answer::Lost]);
            ask.packet_io.refresh_if_due(Duration::from_secs(20));
            ask.comes(Probe::There);
        });
    });
}

#[test]
fn ipv6_gets_the_same_probes() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        for (own, peer, mac, theirs) in [(1, 2, NEAR, FAR), (2, 1, FAR, NEAR)] {
            let (node, other) = (lab.node(own), lab.node(peer));
            node.ns.run(&format!(
                "ip link add flannel-v6.1 address {mac} mtu 1430 type vxlan id 2 local {} dev eth0 dstport 8473 nolearning
                 sysctl -qw net.ipv6.conf.flannel-v6/1.disable_ipv6=0
                 ip addr add fd00:244:0:{own}::/128 dev flannel-v6.1 nodad; ip link set flannel-v6.1 up
                 ip neigh add fd00:244:0:{peer}:: lladdr {theirs} dev flannel-v6.1
                 bridge fdb add {theirs} dev flannel-v6.1 dst {}
                 ip route add fd00:244:0:{peer}::/64 via fd00:244:0:{peer}:: dev flannel-v6.1 onlink",
                node.ip6, other.ip6
            ));
        }
        let next_hop = mac(&lab.node(2).mac);
        let mut own = node(&lab);
        own.uplink.ipv6 = Some(lab.node(1).ip6);
        own.subnet.ipv6 = Some("fd00:244:0:1::/64".parse().unwrap());
        inquire(&lab, |ask| {
            ask.peer.subnet = "fd00:244:0:2::/64".parse().unwrap();
            ask.peer.public_ip = lab.node(2).ip6.into();
            ask.peer.tunnel =
                ask.peer.tunnel.map(|it| Tunnel { link: name("flannel-v6.1"), mtu: 1430, ..it });
            ask.packet_io.set_peers(Some(&own), &only(&ask.peer), Duration::ZERO);
            ask.of(Probe::NextHop);
            for probe in
                [Probe::Node, Probe::NodeSized(1500), Probe::Path, Probe::PathSized(1430), Probe::There]
            {
                ask.comes(probe);
            }
            // The first request goes to all machines, the second one is a unicast.
            for _ in 0..2 {
                assert_eq!(ask.of(Probe::NextHop), [Answer::Is { mac: next_hop, also: None }]);
            }
            ask.comes(Probe::Direct);
            let both = Answer::Checksums { offloaded: true, complete: true };
            assert_eq!(ask.of(Probe::Checksum), [both]);
            assert_eq!(ask.of(Probe::NodeSized(1501)), [Answer::TooBig { mtu: 1500 }]);
            // A smaller MTU in the kernel's route does not fragment the probe.
            lab.node(1).ns.run("ip route replace fd00:100::/64 dev eth0 metric 256 mtu 1400");
            let fragments = lab::Capture::start(&lab.node(1).ns, "eth0", &["ip6[6] == 44"]);
            ask.comes(Probe::NodeSized(1500));
            assert_eq!(fragments.stop(), Vec::<String>::new());
        });
    });
}

#[test]
fn a_refusal_by_this_node_itself_is_a_loss() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        lab.node(1).ns.run(
            "nft add table ip t; nft add chain ip t c '{ type filter hook output priority 0; }'
             nft add rule ip t c ip daddr 10.244.2.0 icmp type echo-request reject with icmp type admin-prohibited",
        );
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            assert_eq!(ask.of(Probe::Path), [Answer::Lost]);
            ask.comes(Probe::Node);
        });
    });
}

#[test]
fn the_machine_that_refuses_is_reported() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        lab.node(2).ns.run(
            "nft add table ip t; nft add chain ip t c '{ type filter hook input priority 0; }'
             nft add rule ip t c iif flannel.1 icmp type echo-request reject with icmp type admin-prohibited",
        );
        inquire(&lab, |ask| {
            ask.of(Probe::NextHop);
            let by = IpAddr::from([10, 244, 2, 0]);
            assert_eq!(ask.of(Probe::Path), [Answer::Refused { by }]);
        });
    });
}

#[test]
fn a_neighbour_set_by_hand_need_not_answer() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        let (near, far) = (lab.node(1), lab.node(2));
        near.ns.run(&format!("ip neigh replace {} lladdr {} dev eth0 nud permanent", far.ip, far.mac));
        far.ns.run(&format!(
            "ip neigh replace {} lladdr {} dev eth0 nud permanent; nft add table arp t
             nft add chain arp t c '{{ type filter hook input priority 0; }}'; nft add rule arp t c drop",
            near.ip, near.mac
        ));
        inquire(&lab, |ask| {
            assert_eq!(ask.of(Probe::NextHop), [Answer::Impossible]);
            [Probe::Direct, Probe::Node, Probe::Path].into_iter().for_each(|probe| ask.comes(probe));
        });
    });
}

#[test]
fn a_silent_peer_makes_the_kernel_send_no_requests() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        lab.node(2).ns.run("ip link set eth0 down");
        inquire(&lab, |ask| {
            assert_eq!(ask.of(Probe::NextHop), [Answer::Lost]);
            for probe in [Probe::Node, Probe::Path, Probe::There] {
                let now = ask.begun.elapsed();
                let known = ask.packet_io.ask(&ask.peer, probe, false, now).map(|sample| sample.answer);
                assert_eq!(known, Some(Answer::Lost), "{probe:?}");
            }
            lab.node(2).ns.run("ip link set eth0 up");
            assert!(
                lab::until(Duration::from_secs(10), || {
                    matches!(ask.of(Probe::NextHop)[..], [Answer::Is { .. }]).then_some(())
                })
                .is_some()
            );
            ask.comes(Probe::Path);
        });
    });
}

#[test]
fn answers_about_neighbours_are_ignored_on_the_tunnel() {
    lab::test(Timing::Free, || {
        let lab = two_nodes();
        for (own, peer) in [(1, 2), (2, 1)] {
            lab.node(own).ns.run(&format!(
                "sysctl -qw net.ipv6.conf.flannel/1.disable_ipv6=0
                 ip addr add fd00:9::{own}/64 dev flannel.1 nodad
                 bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst {}",
                lab.node(peer).ip
            ));
        }
        let mut own = node(&lab);
        own.uplink.ipv6 = Some(lab.node(1).ip6);
        inquire(&lab, |ask| {
            ask.peer.public_ip = "fd00:9::2".parse().unwrap();
            ask.packet_io.set_peers(Some(&own), &only(&ask.peer), Duration::ZERO);
            let place = (name("flannel.1"), EtherType::Ipv6);
            assert!(ask.packet_io.sockets.listen(place.0, place.1, Duration::ZERO));
            assert_eq!(ask.packet_io.ask(&ask.peer, Probe::NextHop, false, Duration::ZERO), None);
            let now = ask.begun.elapsed();
            ask.packet_io.ask_all(|_| Some(&ask.peer), now);
            lab.node(1).ns.run("ping -c 1 -W 5 fd00:9::2");
            let answers: Vec<_> = ask.packet_io.receive(now).into_iter().map(|(_, it)| it.answer).collect();
            assert_eq!(answers, []);
        });
    });
}
