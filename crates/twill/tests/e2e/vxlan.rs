//! vxlan on the wire, as tcpdump shows it on the uplink.

use lab::{Capture, Timing, Topology};

use crate::cluster::{self, DIRECT, SOON, VXLAN};

#[test]
fn a_full_size_pod_packet_uses_udp_8472_and_vni_1_unfragmented() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let (from, to) = (pods[0].ip4.unwrap(), pods[1].ip4.unwrap());
        let capture = Capture::start(
            &lab.node(1).ns,
            "eth0",
            &["-v", "-T", "vxlan", "udp port 8472 or ip[6:2]&0x3fff!=0"],
        );
        // The 1450 bytes inside are an IP header, an ICMP header and 1422 bytes.
        lab_ping(&pods[0], "-M do -s 1422", to);
        let outer = format!("{}.", lab.node(1).ip);
        let request = format!("{from} > {to}: ICMP echo request");
        let seen = capture.wait_for(SOON, |packet| packet.contains(&request));
        let packets = capture.stop();
        assert!(seen, "no echo request of {from} in:\n{}", packets.join("\n"));
        // The daemons' probes between pod addresses of the nodes may be smaller.
        let pods_own = [format!("{from} > {to}: ICMP echo"), format!("{to} > {from}: ICMP echo")];
        let packets_of_pods =
            packets.iter().filter(|packet| pods_own.iter().any(|ends| packet.contains(ends)));
        for packet in packets_of_pods {
            assert!(packet.contains(".8472: VXLAN, flags [I] (0x08), vni 1"), "{packet}");
            assert!(packet.contains("length 1500)"), "the outer packet is full: {packet}");
        }
        assert!(packets.iter().any(|packet| packet.contains(&outer)), "{packets:?}");
        assert!(!packets.iter().any(|packet| packet.contains("frag ")), "{packets:?}");
    });
}

#[test]
fn direct_routing_encapsulates_behind_the_router_only() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(2, 1), DIRECT);
        let (_daemons, pods) = cluster::start(&lab);
        let (near, far) = (pods[1].ip(), pods[2].ip());
        assert!(pods[0].reaches(far, SOON).is_some());
        let direct = format!("{} via {} dev eth0", lab.node(2).subnet(), lab.node(2).ip);
        lab::wait_for("direct is proven", SOON, || lab.node(1).ns.run("ip route").contains(&direct));
        let capture = Capture::start(&lab.node(1).ns, "eth0", &["-T", "vxlan", "icmp or udp port 8472"]);
        assert!(pods[0].ping(near).is_some() && pods[0].ping(far).is_some());
        let [to_near, to_far] = [near, far].map(|to| format!("> {to}: ICMP echo request"));
        assert!(capture.wait_for(SOON, |packet| packet.contains(&to_far)));
        let packets = capture.stop();
        let of = |needle: &str| packets.iter().find(|packet| packet.contains(needle)).unwrap().clone();
        assert!(!of(&to_near).contains("VXLAN"), "{}", of(&to_near));
        assert!(of(&to_far).contains("VXLAN"), "{}", of(&to_far));
    });
}

fn lab_ping(pod: &lab::Pod, options: &str, to: std::net::Ipv4Addr) {
    pod.ns.run(&format!("ping -c 1 -W 2 {options} {to}"));
}
