//! Source addresses, shown by real packets. Pods see each other's own addresses, and the outside sees the node's. All
//! managers and backends are covered.

use std::net::IpAddr;

use lab::{
    Capture, Node, Ns, Pod, Protocol, Received, Timing, Topology, Witness, seen_source, seen_source_of,
};

use crate::cluster::{self, FLAGS, SOON};
use crate::traffic::{MASQ, Manager, NETWORKS, OUTSIDES, is_by, of_node, of_pod, of_tunnel, rules, socket};

/// Source and destination of a connection, and the source address that the destination sees.
struct Case<'a> {
    what: &'static str,
    from: &'a Ns,
    to: IpAddr,
    as_whom: IpAddr,
}

fn check(cases: &[Case<'_>]) {
    for Case { what, from, to, as_whom } in cases {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let seen = seen_source(from, protocol, *to).map(|seen| seen.ip());
            assert_eq!(seen, Some(*as_whom), "{what} at {to} by {protocol:?}");
        }
    }
}

fn everybody_is_seen_as_he_should(manager: Manager, backend: &str) {
    let lab = cluster::lab(Topology::flat(2).outside(), &manager.config(backend));
    let _daemons = lab.start_all(MASQ);
    let (pods, beside) = (lab.pods(), lab.node(1).pod());
    cluster::reach_each_other(&pods);
    let (node, peer, outside) = (lab.node(1), lab.node(2), lab.outside());
    let hosts = [&node.ns, &peer.ns, outside, &pods[0].ns, &pods[1].ns, &beside.ns];
    let _witnesses = hosts.map(Witness::start);
    // Through the tunnel a node is seen by the tunnel's own address.
    let through = if backend == "vxlan" { of_tunnel(node) } else { of_node(node) };
    assert!(is_by(&node.ns, manager), "{manager:?}: {}", rules(&node.ns));
    for family in 0..2 {
        let [own, theirs, pod, remote, beside] =
            [of_node(node), of_node(peer), of_pod(&pods[0]), of_pod(&pods[1]), of_pod(&beside)]
                .map(|both| both[family]);
        let (world, through) = (OUTSIDES[family], through[family]);
        let case = |what, from, to, as_whom| Case { what, from, to, as_whom };
        check(&[
            case("pod to the outside", &pods[0].ns, world, own),
            case("pod to another node", &pods[0].ns, theirs, own),
            case("pod to its own node", &pods[0].ns, own, pod),
            case("pod to a pod on another node", &pods[0].ns, remote, pod),
            case("pod to a pod beside it", &pods[0].ns, beside, pod),
            case("node to a pod on another node", &node.ns, remote, through),
        ]);
        let seen = seen_source_of(&node.ns, socket(own, 4001), remote).map(|seen| seen.ip());
        assert_eq!(seen, Some(through), "a node by its underlay address to a pod on another node");
        outside.run(&format!("ip route add {} via {own}", NETWORKS[family]));
        check(&[
            case("outside to a pod of the node it goes through", outside, pod, world),
            case("outside to a pod of another node", outside, remote, through),
        ]);
        outside.run(&format!("ip route del {} via {own}", NETWORKS[family]));
    }
}

#[test]
fn nft_with_vxlan() {
    lab::test(Timing::Free, || everybody_is_seen_as_he_should(Manager::Nft, "vxlan"));
}

#[test]
fn nft_with_host_gw() {
    lab::test(Timing::Free, || everybody_is_seen_as_he_should(Manager::Nft, "host-gw"));
}

#[test]
fn iptables_with_vxlan() {
    lab::test(Timing::Free, || everybody_is_seen_as_he_should(Manager::Iptables, "vxlan"));
}

#[test]
fn iptables_with_host_gw() {
    lab::test(Timing::Free, || everybody_is_seen_as_he_should(Manager::Iptables, "host-gw"));
}

/// A source port of the pod's own choice changes outside, or stays if that is disabled.
#[test]
fn source_ports_are_random_unless_that_is_disabled() {
    lab::test(Timing::Free, || {
        for manager in Manager::BOTH {
            let lab = cluster::lab(Topology::flat(1).outside(), &manager.config("vxlan"));
            let _witness = Witness::start(lab.outside());
            let mut daemon = lab.node(1).start(MASQ);
            daemon.wait_ready();
            let pod = lab.node(1).pod();
            let ports = |port: u16| {
                [0, 1].map(|family| {
                    let own = socket(of_pod(&pod)[family], port);
                    let seen = seen_source_of(&pod.ns, own, OUTSIDES[family]).unwrap();
                    assert_eq!(seen.ip(), of_node(lab.node(1))[family]);
                    assert!(is_by(&lab.node(1).ns, manager), "{manager:?}: {}", rules(&lab.node(1).ns));
                    seen.port()
                })
            };
            // A single one of 64,512 ports may stay the same by chance, but never two.
            let seen = [ports(4001), ports(4002)].concat();
            assert_ne!(seen, [4001, 4001, 4002, 4002], "{manager:?}");
            assert!(seen.iter().filter(|port| [4001, 4002].contains(*port)).count() < 2, "{seen:?}");
            daemon.kill9();
            let daemon = lab.node(1).start(&[MASQ, &["--ip-masq-fully-random-disable"]].concat());
            daemon.wait_ready();
            assert_eq!(ports(4003), [4003, 4003], "{manager:?}\n{}", rules(&lab.node(1).ns));
        }
    });
}

/// Returns true if a datagram to each family's outside arrives there with the pod's own address.
fn arrives_as_itself(pod: &Pod, witness: &Witness, port: u16) -> bool {
    let received = |source: IpAddr| {
        witness.received().iter().any(|received: &Received| received.source == socket(source, port))
    };
    of_pod(pod).into_iter().zip(OUTSIDES).all(|(own, to)| {
        let answer = seen_source_of(&pod.ns, socket(own, port), to);
        answer.is_none() && lab::until(SOON, || received(own).then_some(())).is_some()
    })
}

#[test]
fn pods_keep_their_source_and_no_rule_is_left_when_switched_off() {
    lab::test(Timing::Free, || {
        for manager in Manager::BOTH {
            let lab = cluster::lab(Topology::flat(1).outside(), &manager.config("vxlan"));
            let witness = Witness::start(lab.outside());
            let node = lab.node(1);
            let mut daemon = node.start(MASQ);
            daemon.wait_ready();
            let pod = node.pod();
            let masquerades = || rules(&node.ns).to_lowercase().contains("masquerade");
            assert!(masquerades(), "{manager:?}: {}", rules(&node.ns));
            daemon.kill9();
            node.start(FLAGS).wait_ready();
            let with = ["POSTROUTING", "POSTRTG", "postrtg", "masq"];
            lab::wait_for("all of them go", SOON, || !with.iter().any(|word| rules(&node.ns).contains(word)));
            assert!(arrives_as_itself(&pod, &witness, 4001), "{manager:?}: {:?}", witness.received());
        }
    });
}

/// Rules that an earlier run has left for another network and subnet are removed.
#[test]
fn rules_of_an_earlier_network_are_removed() {
    lab::test(Timing::Free, || {
        for manager in Manager::BOTH {
            let lab = cluster::lab(Topology::flat(1), &manager.config("vxlan"));
            let node = lab.node(1);
            let mut daemon = node.start(MASQ);
            daemon.wait_ready();
            assert!(rules(&node.ns).contains("10.244.0.0/16"), "{manager:?}: {}", rules(&node.ns));
            daemon.kill9();
            // Only the rules themselves show that there was an earlier run.
            std::fs::remove_file(node.run_dir().join("subnet.env")).unwrap();
            lab.store.config(
                &manager.config("vxlan").replace("10.244.", "10.99.").replace("fd00:244:", "fd00:99:"),
            );
            node.start(MASQ).wait_ready();
            let is_new = || {
                let rules = rules(&node.ns);
                !rules.contains("10.244.") && !rules.contains("fd00:244:") && rules.contains("10.99.0.0/16")
            };
            lab::wait_for("the old ones go", SOON, is_new);
        }
    });
}

/// Packets that the node sends to a group from an address of the pod network keep their source.
#[test]
fn multicast_keeps_its_source() {
    lab::test(Timing::Free, || {
        let owns: [IpAddr; 2] = ["10.244.10.1", "fd00:244:0:ffff::1"].map(|own| own.parse().unwrap());
        let groups: [IpAddr; 2] = ["239.1.1.1", "ff05::123"].map(|group| group.parse().unwrap());
        for manager in Manager::BOTH {
            let lab = cluster::lab(Topology::flat(1).outside(), &manager.config("vxlan"));
            let _daemons = lab.start_all(MASQ);
            let node = lab.node(1);
            node.ns.batch(&format!(
                "address add {}/32 dev eth0\naddress add {}/128 dev eth0\nroute add {}/32 dev eth0\n\
                 route add multicast {}/128 dev eth0 table local\n",
                owns[0], owns[1], groups[0], groups[1]
            ));
            let capture = Capture::start(lab.outside(), "eth0", &["udp", "port", "7071"]);
            for (own, group) in owns.into_iter().zip(groups) {
                seen_source_of(&node.ns, socket(own, 4001), group);
                let expected = format!("{own}.4001 > {group}.7071");
                let came = capture.wait_for(SOON, |packet| packet.contains(&expected));
                assert!(came, "{manager:?}: no {expected} in {:?}", capture.packets());
            }
        }
    });
}

/// Makes a service as kube-proxy does: packets from outside are marked by one bit, and masqueraded by that mark.
fn service(node: &Node, manager: Manager, to: &Pod) {
    let [pod, pod6] = of_pod(to);
    if manager == Manager::Nft {
        for (family, vip, pod, network) in [
            ("ip", "10.96.0.1", pod.to_string(), NETWORKS[0]),
            ("ip6", "fd00:96::1", format!("[{pod6}]"), NETWORKS[1]),
        ] {
            node.ns.run(&format!(
                "nft 'table {family} kube-proxy {{
                     chain services {{ type nat hook prerouting priority dstnat;
                         {family} daddr {vip} {family} saddr != {network} meta mark set mark or 0x4000
                         {family} daddr {vip} dnat to {pod}
                     }}
                     chain local {{ type nat hook output priority -100;
                         {family} daddr {vip} meta mark set mark or 0x4000
                         {family} daddr {vip} dnat to {pod}
                     }}
                     chain masquerading {{ type nat hook postrouting priority srcnat;
                         meta mark and 0x4000 == 0 return
                         meta mark set mark xor 0x4000
                         masquerade fully-random
                     }}
                 }}'"
            ));
        }
        return;
    }
    for (program, vip, pod, network) in
        [("iptables", "10.96.0.1", pod, NETWORKS[0]), ("ip6tables", "fd00:96::1", pod6, NETWORKS[1])]
    {
        node.ns.run(&format!(
            "set -e; t='{program} -w -t nat'; $t -N KUBE-SVC; $t -N KUBE-POSTROUTING
             $t -A KUBE-SVC ! -s {network} -j MARK --or-mark 0x4000; $t -A KUBE-SVC -j DNAT --to-destination {pod}
             $t -I PREROUTING -d {vip} -j KUBE-SVC; $t -I OUTPUT -d {vip} -j KUBE-SVC
             $t -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
             $t -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000; $t -A KUBE-POSTROUTING -j MASQUERADE --random-fully
             $t -I POSTROUTING -j KUBE-POSTROUTING"
        ));
    }
}

fn service_answers(manager: Manager, kube_proxy: Manager) {
    for backend in ["vxlan", "host-gw"] {
        let lab = cluster::lab(Topology::flat(2).outside(), &manager.config(backend));
        let _daemons = lab.start_all(MASQ);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let _witness = Witness::start(&pods[1].ns);
        let node = lab.node(1);
        service(node, kube_proxy, &pods[1]);
        // The node itself finds the service's address by its default route, as kube-proxy expects.
        let through = if backend == "vxlan" { of_tunnel(node) } else { of_node(node) };
        for (family, vip) in ["10.96.0.1", "fd00:96::1"].into_iter().enumerate() {
            let to: IpAddr = vip.parse().unwrap();
            lab.outside().run(&format!("ip route add {vip} via {}", of_node(node)[family]));
            let case = |what, from, as_whom| Case { what, from, to, as_whom };
            check(&[
                case("a pod of another node", &pods[0].ns, of_pod(&pods[0])[family]),
                case("the outside", lab.outside(), through[family]),
                case("the node", &node.ns, through[family]),
            ]);
        }
    }
}

#[test]
fn a_service_works_across_nodes_with_nft() {
    lab::test(Timing::Free, || service_answers(Manager::Nft, Manager::Nft));
}

#[test]
fn a_service_works_across_nodes_with_iptables() {
    lab::test(Timing::Free, || service_answers(Manager::Iptables, Manager::Iptables));
}

#[test]
fn a_service_of_iptables_works_with_our_rules_in_nft() {
    lab::test(Timing::Free, || service_answers(Manager::Nft, Manager::Iptables));
}

/// Software that marks a packet as kube-proxy does, by one bit, masquerades the packet itself. Here it uses a second
/// address.
#[test]
fn marked_packets_are_left_to_the_software_that_marked_them() {
    lab::test(Timing::Free, || {
        for manager in Manager::BOTH {
            let lab = cluster::lab(Topology::flat(1).outside(), &manager.config("vxlan"));
            let _witness = Witness::start(lab.outside());
            let _daemons = lab.start_all(MASQ);
            let node = lab.node(1);
            let pod = node.pod();
            for (family, second, other) in
                [("ip", "192.168.100.77", "10.244.0.0/16"), ("ip6", "fd00:100::77", "fd00:244::/48")]
            {
                let length = if family == "ip" { 32 } else { 128 };
                let flags = if family == "ip" { "" } else { "preferred_lft 0" };
                node.ns.run(&format!("ip address add {second}/{length} dev eth0 {flags}"));
                node.ns.run(&format!(
                    "nft 'table {family} marker {{
                         chain marking {{ type filter hook prerouting priority mangle;
                             {family} saddr {other} udp sport 4001 meta mark set 0x14001
                             {family} saddr {other} udp sport 4002 meta mark set 0x10001
                         }}
                         chain late {{ type nat hook postrouting priority 110;
                             meta mark and 0x4000 != 0 snat to {second}
                         }}
                     }}'"
                ));
            }
            let seconds: [IpAddr; 2] = ["192.168.100.77", "fd00:100::77"].map(|ip| ip.parse().unwrap());
            for family in 0..2 {
                let seen = |port| {
                    let own = socket(of_pod(&pod)[family], port);
                    seen_source_of(&pod.ns, own, OUTSIDES[family]).map(|seen| seen.ip())
                };
                assert_eq!(seen(4001), Some(seconds[family]), "{manager:?}: marked");
                assert_eq!(seen(4002), Some(of_node(node)[family]), "{manager:?}: another mark");
            }
        }
    });
}
