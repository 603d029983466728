//! host-gw on the wire, and to a peer behind a router.

use lab::{Capture, Timing, Topology};

use crate::cluster::{self, HOST_GW, SOON};

#[test]
fn pod_packets_go_unencapsulated_to_the_peers_mac() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW);
        let (_daemons, pods) = cluster::start(&lab);
        let (from, to) = (pods[0].ip(), pods[1].ip());
        let capture = Capture::start(&lab.node(1).ns, "eth0", &["not arp and not ip6 multicast"]);
        assert!(pods[0].ping(to).is_some());
        assert!(capture.wait_for(SOON, |packet| packet.contains(&format!("{to} > {from}: ICMP echo reply"))));
        let packets = capture.stop();
        let (ours, theirs) = (lab.node(1).mac.to_string(), lab.node(2).mac.to_string());
        for packet in &packets {
            let request = format!("{from} > {to}: ICMP echo request");
            let reply = format!("{to} > {from}: ICMP echo reply");
            let sent = packet.contains(&format!("{ours} > {theirs}")) && packet.contains(&request);
            let received = packet.contains(&format!("{theirs} > {ours}")) && packet.contains(&reply);
            assert!(sent || received, "neither the request nor the reply: {packet}");
        }
        assert!(!lab.node(1).ns.output("ip link show flannel.1").status.success(), "host-gw needs no device");
    });
}

#[test]
fn a_peer_behind_a_router_is_unreachable_and_reported_everywhere() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(2, 1), HOST_GW);
        let (daemons, pods) = cluster::start(&lab);
        let (node, far) = (lab.node(1), lab.node(3));
        assert!(pods[0].ping(pods[1].ip()).is_some(), "the peer on the segment is reached");
        // The kernel answers with an error, at a limited rate.
        let ping = format!("ping -c 1 -W 1 {}", pods[2].ip());
        lab::wait_for("an error instead of silence", SOON, || {
            String::from_utf8_lossy(&pods[0].ns.output(&ping).stdout).contains("Destination Host Unreachable")
        });
        assert!(node.ns.run("ip route").contains(&format!("unreachable {}", far.subnet())));
        let why = format!("peer {}: {} is not on the layer-2 segment of eth0", far.subnet(), far.ip);
        let readyz = node.get("/readyz").unwrap();
        assert_eq!(readyz.status, 200, "a peer's trouble is not this node's");
        let status = node.twill(&["status"]);
        for (place, text) in [("log", daemons[0].log()), ("readyz", readyz.body), ("status", status)] {
            assert!(text.contains(&why), "{place}: {text}");
        }
        let metrics = node.get("/metrics").unwrap().body;
        assert!(metrics.contains("twill_peers{path=\"unreachable\"} 1"), "{metrics}");
        // The fault is reported once, with peer, address, interface and remedy, however often it is found.
        for round in 0..5 {
            node.ns.run(&format!("ip route del {}", lab.node(2).subnet()));
            let back = || node.ns.run("ip route").contains(&lab.node(2).subnet());
            lab::wait_for(&format!("round {round}"), SOON, back);
        }
        let log = daemons[0].log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&why)).collect();
        assert!(
            lines.len() == 1 && lines[0].contains("Use auto or vxlan, or put both nodes on one segment"),
            "{log}"
        );
    });
}
