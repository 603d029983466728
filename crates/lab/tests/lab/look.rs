//! Views, monitors and captures report what there is, and nothing else.

use std::time::Duration;

use lab::{Capture, Monitors, Timing, Topology, View};

pub(crate) const VXLAN: &str = "ip link add flannel.1 address 02:00:00:00:99:01 type vxlan id 1 local 192.168.100.11 dev eth0 \
     dstport 8472 nolearning && ip addr add 10.244.1.0/32 dev flannel.1 && ip link set flannel.1 up && \
     ip neigh replace 10.244.2.0 lladdr 02:00:00:00:99:02 dev flannel.1 nud permanent && \
     bridge fdb replace 02:00:00:00:99:02 dev flannel.1 dst 192.168.100.12 && \
     ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink";

#[test]
fn views_are_equal_though_the_device_was_recreated() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        let ns = &lab.node(1).ns;
        ns.run(VXLAN);
        let before = View::of(ns);
        let index = ns.run("cat /proc/net/dev | wc -l; ip -o link show flannel.1 | cut -d: -f1");
        ns.run("ip link delete flannel.1");
        let gone = View::of(ns);
        assert!(before.diff(&gone).contains("- route4"), "{}", before.diff(&gone));
        ns.run(VXLAN);
        let after = View::of(ns);
        assert_ne!(index, ns.run("cat /proc/net/dev | wc -l; ip -o link show flannel.1 | cut -d: -f1"));
        assert_eq!(before.diff(&after), "");
        assert_eq!(before, after);
        let ours: Vec<_> = lab::view::ours(&after).map(|row| row.kind).collect();
        for kind in ["link", "addr", "route4", "neigh", "fdb"] {
            assert!(ours.contains(&kind), "{kind} in:\n{after}");
        }
    });
}

#[test]
fn views_differ_after_every_relevant_change() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        let ns = &lab.node(1).ns;
        ns.run(VXLAN);
        let changes = [
            "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:99:03 dev flannel.1 nud permanent",
            "ip link set flannel.1 mtu 1400",
            "ip link set flannel.1 address 02:00:00:00:99:09",
            "ip route replace 10.244.2.0/24 via 192.168.100.12 dev eth0",
            "ip route add unreachable 10.244.7.0/24",
            "ip -6 route add fd00:7::/64 via fd00:100::12 dev eth0",
            "bridge fdb replace 02:00:00:00:99:02 dev flannel.1 dst 192.168.100.13",
            "bridge fdb append 02:00:00:00:99:0f dev flannel.1 dst 192.168.100.13",
            "ip addr add 10.244.1.7/32 dev flannel.1",
            "ip rule add from 10.244.0.0/16 lookup 100",
            "ip link set eth0 down",
        ];
        for change in changes {
            let before = View::of(ns);
            ns.run(change);
            let after = View::of(ns);
            assert_ne!(before, after, "{change}");
            let diff = before.diff(&after);
            println!("{change}\n{diff}");
            assert!(!diff.is_empty(), "{change}");
        }
    });
}

#[test]
fn monitors_report_a_change_and_nothing_without_one() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        let ns = &lab.node(1).ns;
        let mut monitors = Monitors::start(ns);
        assert_eq!(monitors.lines_about(&[""]), Vec::<String>::new(), "nothing has happened yet");
        ns.run(VXLAN);
        ns.run("nft add table ip twill");
        let lines = monitors.lines_of_ours();
        let received =
            |start: &str, text: &str| lines.iter().any(|line| line.starts_with(start) && line.contains(text));
        assert!(received("ip: ", "[LINK]"), "{lines:#?}");
        assert!(received("ip: ", "[ROUTE]10.244.2.0/24"), "{lines:#?}");
        assert!(received("bridge: ", "02:00:00:00:99:02"), "{lines:#?}");
        assert!(received("nft: ", "add table ip twill"), "{lines:#?}");
        monitors.forget();
        ns.run("ip route add 203.0.113.0/24 dev eth0");
        assert_eq!(monitors.lines_of_ours(), Vec::<String>::new());
        assert_eq!(monitors.lines_about(&["203.0.113"]).len(), 1);
    });
}

#[test]
fn a_capture_joins_inner_and_outer_packet() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        lab.node(1).ns.run(VXLAN);
        let wire = Capture::start(&lab.node(2).ns, "eth0", &["-T", "vxlan", "udp", "port", "8472"]);
        lab.node(1).ns.output("ping -n -c 1 -W 0.1 10.244.2.2");
        let seen = wire.wait_for(Duration::from_secs(2), |packet| {
            packet.contains("192.168.100.12.8472")
                && packet.contains("vni 1")
                && packet.contains("10.244.2.2: ICMP echo")
        });
        let packets = wire.stop();
        assert!(seen, "{packets:#?}");
        assert_eq!(packets.len(), 1, "{packets:#?}");
    });
}
