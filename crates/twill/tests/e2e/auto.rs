//! `auto`: direct where the evidence says that it works, by tunnel elsewhere, back in time, and never to and fro.

use std::time::{Duration, Instant};

use lab::plain::Announce;
use lab::{Capture, Filter, Lab, Monitors, Node, PingStream, Timing, Topology, View, patient};

use crate::cluster::{self, FLAGS, SOON};
use crate::verdicts::{
    AT_ONCE, AUTO, AUTO_DUAL, HEALTH, PROVEN, found, goes, is_direct, plain, soaking, told,
};

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

/// Without a packet lost; a peer behind a router stays on the tunnel, and a restart that knows of no verdict writes nothing.
#[test]
fn the_segment_goes_direct_and_a_restart_leaves_it() {
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

/// In both families: pod addresses are dropped, ARP and neighbour discovery are, a peer is down, echoes are dropped. All leave
/// within the limit, of which the second one's traffic notices nothing, and none is back before it was healthy for long enough.
#[test]
fn what_is_cut_goes_by_tunnel_and_comes_back_when_it_is_healthy() {
    lab::test(Timing::Timed, || {
        // Those that nothing happens to are many enough that nobody suspects us.
        let lab = cluster::lab(Topology::flat(9), AUTO_DUAL);
        let (daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let peers = [2, 3, 4, 5].map(|k| [lab.node(k).subnet(), lab.node(k).subnet6()]);
        let each = || peers.iter().flatten();
        each().for_each(|peer| {
            goes(node, peer, "eth0", PROVEN);
        });
        let pings =
            [1, 2, 4].map(|k| pods[k].ips().map(|ip| PingStream::start(&pods[0].ns, ip)).collect::<Vec<_>>());
        lab::wait_for("the pings run", SOON, || pings.iter().flatten().all(|ping| ping.received() > 10));
        let cuts = [
            Filter::between("node1", "node2", POD_ADDRESSES),
            Filter::between("node1", "node2", POD_ADDRESSES6),
            Filter::between("node1", "node3", "ether type arp"),
            Filter::between("node1", "node3", "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"),
            Filter::between("node1", "node5", "ip protocol icmp"),
            Filter::between("node1", "node5", "icmpv6 type { echo-request, echo-reply }"),
        ];
        lab.node(4).unplug();
        let start = Instant::now();
        for (peer, device) in each().zip(["flannel.1", "flannel-v6.1"].into_iter().cycle()) {
            goes(node, peer, device, AT_ONCE);
        }
        let took = start.elapsed();
        assert!(took <= patient(AT_ONCE), "{took:?}");
        println!("on the tunnel after {took:?}");
        let names = ["pod addresses lost", "next hop silent", "next hop silent", "echo lost"];
        for (peers, name) in peers.iter().zip(names) {
            for peer in peers {
                found(node, peer, name, SOON);
                told(node, &daemons[0], peer, name);
            }
        }
        drop(cuts);
        lab.node(4).plug();
        lab::holds_for("it has to be healthy first", HEALTH - Duration::from_secs(3), || {
            !each().any(|peer| is_direct(node, peer))
        });
        each().for_each(|peer| {
            goes(node, peer, "eth0", SOON);
        });
        let [pods, next_hop, echoes] =
            pings.map(|pings| pings.into_iter().map(PingStream::stop).collect::<Vec<_>>());
        let limit = patient(AT_ONCE + Duration::from_millis(200));
        assert!(pods.iter().chain(&echoes).all(|it| it.longest_gap < limit), "{pods:?} {echoes:?}");
        assert!(
            next_hop.iter().all(|report| report.lost == 0),
            "the kernel's own neighbour is good: {next_hop:?}"
        );
    });
}

/// The direct way comes and goes every second.
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
    let told = monitors.lines_about(&[&peer]);
    let routes: Vec<_> =
        told.iter().filter(|line| line.contains(" dev ") && !line.contains("cni0")).collect();
    assert!(routes.len() == 1 && routes[0].contains("dev flannel.1"), "{routes:#?}");
}

#[test]
fn a_way_that_flaps_is_left_once() {
    lab::test_within(soaking(LONG_FLAP) + DEADLINE, Timing::Free, || flapping(FLAP.max(soaking(LONG_FLAP))));
}

/// Three nodes of ours with each of the settings, three plain kernels with each: only where the peer's own filter is strict
/// does the direct way not work, and then no packet is lost for it.
#[test]
fn reverse_path_filters_of_either_side() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(6), AUTO);
        for k in 1..=6 {
            let filter = ["0", "1", "2"][(k - 1) % 3];
            lab.node(k).ns.sysctl(&[
                ("net.ipv4.conf.default.rp_filter", filter),
                ("net.ipv4.conf.eth0.rp_filter", filter),
            ]);
        }
        let daemons: Vec<_> = (1..=3).map(|k| lab.node(k).start(FLAGS)).collect();
        daemons.iter().for_each(lab::Daemon::wait_ready);
        (1..=3).for_each(|k| drop(lab.node(k).subnet()));
        let plains: Vec<_> = (4..=6).map(|k| plain(&lab, k, Announce::Vxlan)).collect();
        let pods = lab.pods();
        for from in &pods[..3] {
            assert!(pods.iter().all(|to| from.reaches(to.ip(), SOON).is_some()));
        }
        let pings: Vec<_> = pods[..3]
            .iter()
            .flat_map(|from| {
                pods[3..].iter().map(|to| PingStream::every(&from.ns, to.ip(), Duration::from_millis(100)))
            })
            .collect();
        all_direct(&lab, &[1, 2, 3]);
        let direct = |node: &Node| [0, 1, 2].map(|k| is_direct(node, &plains[k]));
        for k in 1..=3 {
            lab::wait_for(&format!("node {k}"), PROVEN, || direct(lab.node(k)) == [true, false, true]);
        }
        found(lab.node(1), &plains[1], "pod addresses lost", SOON);
        told(lab.node(1), &daemons[0], &plains[1], "pod addresses lost");
        assert!(lab.node(1).twill(&["status"]).contains("rp_filter 1"));
        lab::holds_for("a strict filter keeps it on the tunnel", QUIET, || {
            !is_direct(lab.node(1), &plains[1])
        });
        for report in pings.into_iter().map(PingStream::stop) {
            assert!(report.sent > 50 && report.lost == 0, "{report:?}");
        }
        // What is loosened is direct, what is made strict again goes back.
        let strict = |how| lab.node(5).ns.sysctl(&[("net.ipv4.conf.eth0.rp_filter", how)]);
        strict("2");
        goes(lab.node(1), &plains[1], "eth0", PROVEN);
        let ping = PingStream::start(&pods[0].ns, pods[4].ip());
        lab::wait_for("the ping runs", SOON, || ping.received() > 10);
        strict("1");
        goes(lab.node(1), &plains[1], "flannel.1", 2 * AT_ONCE);
        lab::wait_for("it arrives by tunnel", SOON, || pods[0].ping(pods[4].ip()).is_some());
        let report = ping.stop();
        assert!(report.longest_gap < patient(AT_ONCE + Duration::from_millis(200)), "{report:?}");
    });
}

/// Then we are the suspect: with the store away besides, nothing is withdrawn, and the node is as ready as ever.
#[test]
fn three_of_four_peers_dead_and_the_store_away() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(5), AUTO);
        let (_daemons, pods) = cluster::start(&lab);
        all_direct(&lab, &[1, 2, 3, 4, 5]);
        let node = lab.node(1);
        let monitors = Monitors::start(&node.ns);
        let away = lab.store.path().with_extension("away");
        std::fs::rename(lab.store.path(), &away).unwrap();
        (3..=5).for_each(|k| lab.node(k).unplug());
        lab::holds_for("ready and alive", Duration::from_secs(15), || {
            ["/readyz", "/healthz"].iter().all(|path| node.get(path).is_some_and(|reply| reply.status == 200))
        });
        let ours = monitors.lines_about(&["flannel", "proto 84"]);
        assert!(ours.is_empty(), "{ours:?}");
        assert!(pods[0].ping(pods[1].ip()).is_some());
        std::fs::rename(&away, lab.store.path()).unwrap();
        (3..=5).for_each(|k| lab.node(k).plug());
        cluster::reach_each_other(&pods);
    });
}

/// A cable that is out, then an uplink that is down, with which the kernel's routes go: nothing is withdrawn by us, and what
/// comes back is proven anew.
#[test]
fn our_own_uplink_down_withdraws_nothing() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), AUTO);
        let (_daemons, pods) = cluster::start(&lab);
        all_direct(&lab, &[1, 2, 3]);
        let node = lab.node(1);
        let peers = [lab.node(2).subnet(), lab.node(3).subnet()];
        let monitors = Monitors::start(&node.ns);
        let tunnelled = || {
            let mut told = monitors.lines_about(&peers.each_ref().map(String::as_str));
            told.retain(|line| line.contains("dev flannel.1"));
            told
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

/// Somebody has set where the others are, and nobody answers for a next hop: what is direct is judged by whether its packets
/// come back.
#[test]
fn an_uplink_without_arp() {
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
        // Of whom nobody knows where it is.
        let unknown = plain(&lab, 3, Announce::Vxlan);
        let daemons: Vec<_> = [1, 2].map(|k| lab.node(k).start(FLAGS)).into();
        let pods = [1, 2].map(|k| lab.node(k).pod());
        let peer = lab.node(2).subnet();
        goes(node, &peer, "eth0", PROVEN);
        found(node, &peer, "healthy", SOON);
        // The kernel takes our own MAC for it, which is no answer.
        found(node, &unknown, "unverified", SOON);
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab::wait_for("the ping runs", SOON, || ping.received() > 10);
        let _cut = Filter::between("node1", "node2", POD_ADDRESSES);
        goes(node, &peer, "flannel.1", AT_ONCE);
        found(node, &peer, "pod addresses lost", SOON);
        told(node, &daemons[0], &peer, "pod addresses lost");
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
        let report = ping.stop();
        assert!(report.longest_gap < patient(AT_ONCE + Duration::from_millis(200)), "{report:?}");
        assert_eq!(wire.stop(), Vec::<String>::new());
    });
}
