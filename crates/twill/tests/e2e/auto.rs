//! `auto`: direct where probes prove that it works, by tunnel elsewhere; back in time, and without flapping.

mod reasons;

use std::time::{Duration, Instant};

use lab::plain::Announce;
use lab::{Capture, Filter, Lab, Monitors, PingStream, Timing, Topology, View};

use crate::cluster::{self, FLAGS, SOON};
use crate::verdicts::{AT_ONCE, AUTO, PROVEN, finding, found, goes, is_direct, plain, reported, soaking};

const POD_ADDRESSES: &str = "ip saddr 10.244.0.0/16";
const POD_ADDRESSES6: &str = "ip6 saddr fd00:244::/48";
const FLAP: Duration = Duration::from_secs(30);
const LONG_FLAP: Duration = Duration::from_secs(120);
const DEADLINE: Duration = Duration::from_secs(120);
const QUIET: Duration = Duration::from_secs(10);

fn all_direct(lab: &Lab, nodes: &[usize]) {
    for (one, other) in nodes.iter().flat_map(|one| nodes.iter().map(move |other| (*one, *other))) {
        if one != other {
            goes(lab.node(one), &lab.node(other).subnet(), "eth0", PROVEN);
        }
    }
}

/// No packet is lost, and a peer behind a router stays on the tunnel. A restarted daemon, which knows no health yet,
/// writes nothing.
#[test]
fn peers_on_the_segment_stay_direct_after_a_restart() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(2, 1), AUTO);
        let (mut daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let pings: Vec<_> = pods[1..].iter().map(|pod| PingStream::start(&pods[0].ns, pod.ip())).collect();
        all_direct(&lab, &[1, 2]);
        let before = View::of(&node.ns);
        let monitors = Monitors::start(&node.ns);
        daemons[0].kill9();
        daemons[0].restart();
        daemons[0].wait_ready();
        lab::holds_for("nothing of ours is written", QUIET, || {
            let ours = monitors.lines_about(&["flannel", "proto 84"]);
            assert!(ours.is_empty(), "{ours:?}");
            true
        });
        assert_eq!(cluster::ops_asked(node), 0.0, "the second start had nothing to ask for");
        assert_eq!(before.diff(&View::of(&node.ns)), "");
        assert!(is_direct(node, &lab.node(2).subnet()) && !is_direct(node, &lab.node(3).subnet()));
        for report in pings.into_iter().map(PingStream::stop) {
            assert!(report.sent > 400 && report.lost == 0, "{report:?}");
        }
    });
}

/// Cuts and restores the direct path every second.
fn flapping(span: Duration) {
    let lab = cluster::lab(Topology::flat(2), AUTO);
    let (_daemons, _pods) = cluster::start(&lab);
    all_direct(&lab, &[1, 2]);
    let node = lab.node(1);
    let peer = lab.node(2).subnet();
    let monitors = Monitors::start(&node.ns);
    let cut = Filter::drops(&[]);
    let start = Instant::now();
    lab::holds_for("a cut every other second", span, || {
        let open = start.elapsed().as_secs() % 2 == 1;
        cut.now_drops(if open { &[] } else { &[POD_ADDRESSES] });
        let next = Duration::from_secs(start.elapsed().as_secs() + 1);
        lab::until(Duration::from_secs(2), || (start.elapsed() >= next).then_some(()));
        true
    });
    let reported = monitors.lines_about(&[&peer]);
    let routes: Vec<_> =
        reported.iter().filter(|line| line.contains(" dev ") && !line.contains("cni0")).collect();
    assert!(routes.len() == 1 && routes[0].contains("dev flannel.1"), "{routes:#?}");
}

#[test]
fn a_flapping_path_is_left_once() {
    lab::test_within(soaking(LONG_FLAP) + DEADLINE, Timing::Free, || flapping(FLAP.max(soaking(LONG_FLAP))));
}

/// With most peers silent, node 1 itself is the suspect. Even without a store it withdraws nothing and stays ready.
#[test]
fn three_silent_peers_and_a_lost_store_withdraw_no_path() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(5), AUTO);
        let (_daemons, pods) = cluster::start(&lab);
        all_direct(&lab, &[1, 2, 3, 4, 5]);
        let node = lab.node(1);
        let monitors = Monitors::start(&node.ns);
        let away = lab.store.path().with_extension("away");
        std::fs::rename(lab.store.path(), &away).unwrap();
        (3..=5).for_each(|k| lab.node(k).unplug());
        let lost = || node.twill(&["status"]).contains("lost; the last known leases stay in force: ");
        lab::wait_for("the store is reported as lost", SOON, lost);
        for k in 3..=5 {
            found(node, &lab.node(k).subnet(), "next hop silent", SOON);
        }
        lab::holds_for("ready and alive", Duration::from_secs(15), || {
            ["/readyz", "/healthz"].iter().all(|path| node.get(path).is_some_and(|reply| reply.status == 200))
        });
        let dead = (3..=5).map(|k| finding(node, &lab.node(k).subnet()));
        assert!(lost() && dead.flatten().filter(|name| *name == "next hop silent").count() == 3);
        let ours = monitors.lines_about(&["flannel", "proto 84"]);
        assert!(ours.is_empty(), "{ours:?}");
        assert!(pods[0].ping(pods[1].ip()).is_some());
        std::fs::rename(&away, lab.store.path()).unwrap();
        (3..=5).for_each(|k| lab.node(k).plug());
        cluster::reach_each_other(&pods);
    });
}

/// A cable is unplugged, then the uplink is set down, which removes the kernel's routes. The daemon withdraws nothing, and proves
/// again what comes back.
#[test]
fn an_uplink_that_goes_down_withdraws_no_path() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), AUTO);
        let (_daemons, pods) = cluster::start(&lab);
        all_direct(&lab, &[1, 2, 3]);
        let node = lab.node(1);
        let peers = [lab.node(2).subnet(), lab.node(3).subnet()];
        let monitors = Monitors::start(&node.ns);
        let tunnelled = || {
            let mut reported = monitors.lines_about(&peers.each_ref().map(String::as_str));
            reported.retain(|line| line.contains("dev flannel.1"));
            reported
        };
        node.unplug();
        lab::holds_for("no route is touched", 2 * AT_ONCE, || peers.iter().all(|peer| is_direct(node, peer)));
        node.plug();
        cluster::reach_each_other(&pods);
        assert!(tunnelled().is_empty(), "{:?}", tunnelled());
        node.ns.run("ip link set eth0 down");
        lab::holds_for("none goes by tunnel", 2 * AT_ONCE, || tunnelled().is_empty());
        lab::Harm::UplinkUp.apply(node);
        for peer in &peers {
            goes(node, peer, "eth0", SOON);
        }
        cluster::reach_each_other(&pods);
    });
}

/// Neighbours are set by hand, and no next hop answers ARP. Only lost packets end a direct path.
#[test]
fn direct_paths_work_and_fail_over_without_arp() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), AUTO);
        for (own, other, state) in [(1, 2, "noarp"), (2, 1, "permanent")] {
            let other = lab.node(other);
            lab.node(own).ns.run(&format!(
                "ip link set eth0 arp off; ip neigh replace {} lladdr {} dev eth0 nud {state}",
                other.ip, other.mac
            ));
        }
        let node = lab.node(1);
        let wire = Capture::start(&node.ns, "eth0", &["arp"]);
        // No node has a neighbour entry for this one.
        let unknown = plain(&lab, 3, Announce::Vxlan);
        let daemons: Vec<_> = [1, 2].map(|k| lab.node(k).start(FLAGS)).into();
        let pods = [1, 2].map(|k| lab.node(k).pod());
        let peer = lab.node(2).subnet();
        goes(node, &peer, "eth0", PROVEN);
        found(node, &peer, "healthy", SOON);
        // The kernel uses our own MAC for it, which is not an answer.
        found(node, &unknown, "unverified", SOON);
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab::wait_for("the ping runs", SOON, || ping.received() > 10);
        let _cut = Filter::between("node1", "node2", POD_ADDRESSES);
        goes(node, &peer, "flannel.1", AT_ONCE);
        found(node, &peer, "pod addresses lost", SOON);
        reported(node, &daemons[0], &peer, "pod addresses lost");
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
        let report = ping.stop();
        lab::in_time("the longest gap", report.longest_gap, AT_ONCE + Duration::from_millis(200));
        assert_eq!(wire.stop(), Vec::<String>::new());
    });
}
