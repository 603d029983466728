//! The lab's traffic tools work as tests expect, without a daemon. They are outside host, witness, forged packet,
//! long-lived connection and foreign packet filter rules.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{
    Forgery, Iptables, Lab, OUTSIDE, OUTSIDE6, Protocol, Talk, Timing, Topology, Witness, rules, seen_source,
    seen_source_of,
};

const SOON: Duration = Duration::from_secs(5);
const OUTSIDES: [IpAddr; 2] = [IpAddr::V4(OUTSIDE), IpAddr::V6(OUTSIDE6)];

fn masquerade(lab: &Lab) {
    lab.node(1).ns.run(
        "nft 'table inet test { chain out { type nat hook postrouting priority srcnat; masquerade fully-random; }; }'",
    );
}

#[test]
fn a_witness_sends_each_client_its_address_in_both_families() {
    lab::test(Timing::Free, || {
        let lab = Topology::routed(1, 1).outside().build();
        let witness = Witness::start(lab.outside());
        for node in lab.nodes() {
            for (own, to) in [IpAddr::from(node.ip), IpAddr::from(node.ip6)].into_iter().zip(OUTSIDES) {
                for protocol in [Protocol::Udp, Protocol::Tcp] {
                    let seen = seen_source(&node.ns, protocol, to).expect("an answer");
                    assert_eq!(seen.ip(), own, "{protocol:?}");
                    let received = witness.received();
                    assert!(
                        received
                            .iter()
                            .any(|received| (received.protocol, received.source) == (protocol, seen)),
                        "{received:?}"
                    );
                }
                assert_eq!(seen_source_of(&node.ns, (own, 4567).into(), to), Some((own, 4567).into()));
                let before = witness.count("knock");
                lab::knock(&node.ns, to);
                lab::wait_for("the knock is received", SOON, || witness.count("knock") == before + 1);
            }
        }
    });
}

#[test]
fn the_outside_host_receives_packets_of_pods_and_has_no_route_to_them() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).outside().build();
        let witness = Witness::start(lab.outside());
        let node = lab.node(1);
        node.ns.run("ip address add 10.244.1.2/32 dev lo; ip address add fd00:244:0:1::2/128 dev lo");
        let pods: [SocketAddr; 2] =
            ["10.244.1.2:4567", "[fd00:244:0:1::2]:4567"].map(|pod| pod.parse().expect("an address"));
        for (own, to) in pods.into_iter().zip(OUTSIDES) {
            assert_eq!(seen_source_of(&node.ns, own, to), None);
            assert!(
                witness.received().iter().any(|received| received.source == own),
                "{:?}",
                witness.received()
            );
        }
        masquerade(&lab);
        let own = SocketAddr::from((pods[0].ip(), 4568));
        let seen = seen_source_of(&node.ns, own, OUTSIDES[0]).expect("an answer");
        assert_eq!(seen.ip(), IpAddr::from(node.ip));
    });
}

#[test]
fn a_forged_packet_reaches_a_pod_through_the_tunnel_device() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).outside().build();
        let node = lab.node(1);
        node.ns.batch(
            "link add tunnel address 02:00:00:00:00:99 type vxlan id 7 dev eth0 dstport 8472 nolearning\n\
             link set tunnel up\naddress add 10.244.1.2/32 dev tunnel\naddress add fd00:244:0:1::2/128 dev tunnel\n",
        );
        let witness = Witness::start(&node.ns);
        let inner = |from: &str, to: &str| {
            let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
            (SocketAddr::from((ip(from), 999)), SocketAddr::from((ip(to), Witness::port())))
        };
        let ends = [inner("10.244.2.2", "10.244.1.2"), inner("fd00:244:0:2::2", "fd00:244:0:1::2")];
        for (vni, mac, expected) in
            [(7, "02:00:00:00:00:99", 1), (8, "02:00:00:00:00:99", 0), (7, "02:00:00:00:00:98", 0)]
        {
            for (family, inner) in ends.into_iter().enumerate() {
                let said = format!("forged {family} {vni} {mac}");
                let forgery = Forgery { vni, mac: mac.into(), inner, said: said.clone() };
                forgery.send(lab.outside(), OUTSIDE.into(), (node.ip, 8472).into());
                // The last packet of each round is a correct one and comes after the wrong one.
                let last =
                    Forgery { vni: 7, mac: "02:00:00:00:00:99".into(), inner, said: format!("after {said}") };
                last.send(lab.outside(), OUTSIDE.into(), (node.ip, 8472).into());
                lab::wait_for(&last.said, SOON, || witness.count(&last.said) == 1);
                assert_eq!(witness.count(&said), expected, "{said}");
            }
        }
        assert!(witness.received().iter().all(|received| [ends[0].0, ends[1].0].contains(&received.source)));
    });
}

#[test]
fn a_connection_lasts_and_reports_that_it_was_cut() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).outside().build();
        let witness = Witness::start(lab.outside());
        let node = lab.node(1);
        let talks = OUTSIDES.map(|to| Talk::start(&node.ns, to));
        lab::wait_for("both talk", SOON, || talks.iter().all(|talk| talk.bytes() > 5));
        for report in talks.map(Talk::stop) {
            assert!(report.cut.is_none(), "{report:?}");
            lab::in_time("the longest gap", report.longest_gap, SOON);
        }
        let talk = Talk::start(&node.ns, OUTSIDES[0]);
        lab::wait_for("it talks", SOON, || talk.bytes() > 5);
        node.ns.run("iptables-nft -I OUTPUT -p tcp -j REJECT --reject-with tcp-reset");
        lab::wait_for("it stops", SOON, || {
            let before = talk.bytes();
            std::thread::sleep(Duration::from_millis(50));
            before == talk.bytes()
        });
        drop(witness);
        let report = talk.stop();
        assert!(report.cut.is_some(), "{report:?}");
    });
}

#[test]
fn both_iptables_show_their_rules_and_drop() {
    lab::test(Timing::Free, || {
        for variant in Iptables::BOTH {
            let lab = Topology::routed(1, 1).outside().build();
            let _witness = Witness::start(lab.outside());
            let reaches = |to| seen_source(&lab.node(2).ns, Protocol::Udp, to).is_some();
            assert_eq!(OUTSIDES.map(reaches), [true; 2]);
            variant.run(lab.router(), "-P FORWARD DROP");
            assert_eq!(OUTSIDES.map(reaches), [false; 2], "{variant:?}");
            for text in variant.saved(lab.router()) {
                assert!(text.contains("*filter\n") && text.contains(":FORWARD DROP\n"), "{text}");
            }
            variant.run(lab.router(), "-A FORWARD -j ACCEPT");
            assert_eq!(OUTSIDES.map(reaches), [true; 2], "{variant:?}");
            assert_eq!(rules::nft_ruleset(lab.router()).contains("policy drop"), variant == Iptables::Nft);
        }
    });
}

#[test]
fn a_one_to_one_nat_translates_both_directions() {
    lab::test(Timing::Free, || {
        let lab = Topology::routed(1, 1).outside().build();
        let (outside, inner) = (Witness::start(lab.outside()), Witness::start(&lab.node(2).ns));
        let public: [IpAddr; 2] =
            ["192.168.100.150", "fd00:100::150"].map(|ip| ip.parse().expect("an address"));
        let node = lab.node(2);
        for ((inside, public), to) in [node.ip.into(), node.ip6.into()].into_iter().zip(public).zip(OUTSIDES)
        {
            rules::nat_one_to_one(lab.router(), "eth0", inside, public);
            // The first connection may wait for a neighbour longer than the one second that it has.
            let seen = |from, to| {
                let source = || seen_source(from, Protocol::Tcp, to).map(|seen| seen.ip());
                lab::until(SOON, source)
            };
            assert_eq!(seen(&node.ns, to), Some(public));
            assert_eq!(seen(lab.outside(), public), Some(to));
        }
        let received = [&outside, &inner].map(|witness| witness.received().len());
        assert!(received.iter().all(|count| *count >= 2), "{received:?}");
    });
}
