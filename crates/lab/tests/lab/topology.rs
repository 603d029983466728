//! Nodes reach each other as the topology says, and building it is quick.

use std::time::{Duration, Instant};

use lab::{Timing, Topology};

fn reach(lab: &lab::Lab, from: usize, to: std::net::IpAddr) -> bool {
    lab.node(from).ns.output(&format!("ping -n -c 1 -W 1 {to}")).status.success()
}

#[test]
fn nodes_on_a_segment_reach_each_other() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(3).build();
        for (from, to) in [(1, 2), (1, 3), (3, 2)] {
            assert!(reach(&lab, from, lab.node(to).ip.into()), "node{from} -> node{to}");
            assert!(reach(&lab, from, lab.node(to).ip6.into()), "node{from} -> node{to} by IPv6");
        }
        let link = lab.node(2).ns.run("ip -o link show eth0");
        assert!(link.contains("mtu 1500") && link.contains("02:00:00:00:00:12"), "{link}");
        assert!(lab.node(2).ns.run("ip route").contains("default via 192.168.100.1 dev eth0"));
    });
}

#[test]
fn two_segments_reach_each_other_through_the_router() {
    lab::test(Timing::Free, || {
        let lab = Topology::routed(2, 1).build();
        assert_eq!(lab.node(3).ip.to_string(), "192.168.101.13");
        assert!(reach(&lab, 1, lab.node(3).ip.into()));
        assert!(reach(&lab, 3, lab.node(2).ip6.into()));
        let path = lab.node(1).ns.run("ping -n -c 1 -W 1 192.168.101.13");
        assert!(path.contains("ttl=63"), "through the router: {path}");
    });
}

#[test]
fn four_nodes_are_built_quickly_and_can_be_built_again() {
    lab::test(Timing::Timed, || {
        let start = Instant::now();
        let lab = Topology::routed(3, 1).build();
        let took = start.elapsed();
        println!("built in {took:?}");
        // Usually a twentieth of that is enough, but the kernel may take a second to report a device's carrier.
        lab::in_time("four nodes", took, Duration::from_millis(1700));
        drop(lab);
        let again = Topology::routed(3, 1).build();
        assert!(reach(&again, 4, again.node(1).ip.into()));
    });
}

#[test]
fn closures_run_in_the_namespace() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).build();
        let own = || std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
        let outside = own();
        assert_ne!(lab.node(1).ns.within(own), outside);
        assert_ne!(lab.node(1).ns.thread(own).join().expect("no panic"), outside);
        assert_eq!(own(), outside);
    });
}

#[test]
fn a_cable_can_be_pulled_and_put_back() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        let node = lab.node(1);
        let carrier = || node.ns.run("ip -br link show eth0").contains("LOWER_UP");
        node.unplug();
        lab::wait_for("no carrier", Duration::from_secs(5), || !carrier());
        assert!(!reach(&lab, 1, lab.node(2).ip.into()));
        node.plug();
        lab::wait_for("a carrier", Duration::from_secs(5), carrier);
        // The kernel sends nothing before its linkwatch has seen the carrier, which takes up to a second more.
        lab::wait_for("an answer", Duration::from_secs(5), || reach(&lab, 1, lab.node(2).ip.into()));
    });
}

#[test]
fn a_disk_can_be_full_and_have_room_again() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).build();
        let dir = lab.node(1).run_dir();
        let disk = lab::Disk::mount(dir);
        let write = || std::fs::write(dir.join("file"), "text");
        disk.fill();
        assert!(write().is_err() && dir.join("file").exists());
        disk.free();
        assert!(write().is_ok());
    });
}
