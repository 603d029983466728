//! Streams, storms and repairs are measured correctly.

use std::time::{Duration, Instant};

use lab::{Harm, Monitors, PingStream, Storm, Timing, Topology, View, repair, wait_for};

#[test]
fn a_ping_stream_counts_losses_and_gaps() {
    lab::test(Timing::Timed, || {
        let lab = Topology::flat(2).build();
        let stream = PingStream::start(&lab.node(1).ns, lab.node(2).ip);
        wait_for("first answers", Duration::from_secs(2), || stream.received() >= 10);
        let healthy = PingStream::start(&lab.node(1).ns, lab.node(2).ip);
        wait_for("answers", Duration::from_secs(3), || healthy.received() >= 20);
        let report = healthy.stop();
        assert_eq!(report.lost, 0, "{report:?}");
        lab::in_time("the longest gap", report.longest_gap, Duration::from_millis(500));

        lab.node(2).ns.run("ip link set eth0 down");
        let outage = Instant::now();
        let silent = Duration::from_millis(400);
        wait_for("the outage to last", silent * 2, || outage.elapsed() >= silent);
        lab.node(2).ns.run("ip link set eth0 up");
        let so_far = stream.received();
        wait_for("answers again", Duration::from_secs(3), || stream.received() > so_far + 5);
        let report = stream.stop();
        // The kernel decides how soon the neighbour is found again.
        assert!(report.lost >= 10, "{report:?}");
        assert_eq!(report.sent, report.received + report.lost, "{report:?}");
        assert!(report.longest_gap >= silent, "{report:?}");
    });
}

#[test]
fn a_storm_keeps_its_rate() {
    lab::test(Timing::Timed, || {
        let lab = Topology::flat(1).build();
        let monitors = Monitors::start(&lab.node(1).ns);
        let (changes, took) = Storm::start(lab.node(1), 2000, Duration::from_secs(2)).finish();
        assert_eq!(changes, 4000);
        lab::in_time("the storm", took, Duration::from_secs(4));
        assert!(monitors.lines_about(&["storm0"]).len() > 3000);
    });
}

#[test]
fn a_repair_is_timed() {
    lab::test(Timing::Timed, || {
        let lab = Topology::flat(2).build();
        let node = lab.node(1);
        let route = "ip route replace 10.244.2.0/24 via 192.168.100.12 dev eth0";
        node.ns.run(route);
        let before = View::of(&node.ns);
        let line = format!("while sleep 0.3; do {route}; done");
        let mut repairer = node.ns.command("sh").args(["-c", &line]).spawn().expect("sh");
        let harm = Harm::RouteDeleted { subnet: "10.244.2.0/24".into() };
        let mut pings = 0;
        let took = repair::time_to_repair(node, &before, &harm, || {
            pings += 1;
            pings == 2
        });
        repairer.kill().expect("kill");
        repairer.wait().expect("dead");
        lab::in_time("the repair", took, Duration::from_secs(1));
        assert_eq!(pings, 2);
    });
}

#[test]
fn a_missing_repair_is_reported_with_the_difference() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        let node = lab.node(1);
        node.ns.run("ip route add 10.244.2.0/24 via 192.168.100.12 dev eth0");
        let before = View::of(&node.ns);
        let harm = Harm::RouteDeleted { subnet: "10.244.2.0/24".into() };
        let why = repair::try_repair(node, &before, &harm, Duration::from_secs(1), || true)
            .expect_err("nobody repairs it");
        assert!(
            why.contains("not repaired") && why.contains("- route4") && why.contains("10.244.2.0/24"),
            "{why}"
        );
    });
}

#[test]
fn a_harm_that_changes_nothing_is_an_error() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).build();
        let node = lab.node(1);
        node.ns.run("ip link add flannel.1 type bridge");
        let harm = Harm::AddressFlushed { dev: "flannel.1".into() };
        let why = repair::try_repair(node, &View::of(&node.ns), &harm, Duration::from_secs(1), || true)
            .expect_err("no harm done");
        assert!(why.contains("changed nothing"), "{why}");
    });
}

#[test]
fn every_kind_of_damage_changes_the_node() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        let dev = || "flannel.1".to_owned();
        let subnet = || "10.244.2.0/24".to_owned();
        let harms = [
            Harm::RouteReplaced { subnet: subnet(), via: "192.168.100.1".into(), dev: "eth0".into() },
            Harm::RouteDeleted { subnet: subnet() },
            Harm::FdbFlushed { dev: dev() },
            Harm::NeighboursFlushed { dev: dev() },
            Harm::MacChanged { dev: dev(), mac: "02:00:00:00:ba:ad".into() },
            Harm::AddressFlushed { dev: dev() },
            Harm::DeviceDown { dev: dev() },
            Harm::DeviceDeleted { dev: dev() },
        ];
        let node = lab.node(1);
        lab::foreign::plant(node, "10.244.2.0/24");
        for harm in harms {
            node.ns.output("ip link delete flannel.1");
            node.ns.run(crate::look::VXLAN);
            let before = View::of(&node.ns);
            harm.apply(node);
            let after = View::of(&node.ns);
            let changed = before.diff(&after);
            assert!(changed.contains("flannel.1"), "{harm:?}:\n{changed}");
            assert!(!changed.contains("foreign") && !changed.contains("203.0.113"), "{harm:?}:\n{changed}");
        }
        let before = View::of(&node.ns);
        Harm::UplinkDown.apply(node);
        assert!(!node.ns.output("ping -c 1 -W 0.2 192.168.100.12").status.success());
        Harm::UplinkUp.apply(node);
        let back = || View::of(&node.ns).link("eth0") == before.link("eth0");
        wait_for("the uplink as before", Duration::from_secs(2), back);
        assert!(node.ns.run("ip route").contains("default via"));
    });
}
