//! No false alarm and little noise: many healthy nodes, a busy machine, a wire with a little loss.

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::time::Duration;

use lab::{Capture, Daemon, Filter, Lab, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON};
use crate::verdicts::{AUTO, soaking};

const SPAN: Duration = Duration::from_secs(30);
/// Span in `make soak`.
const SOAK: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(180);
/// Maximum time for all daemons to start and for every path to be proven, on a busy machine.
const SETTLED: Duration = Duration::from_secs(60);
/// Maximum number of broadcasts per node and second.
const BROADCASTS_A_SECOND: usize = 10;

fn all_direct(lab: &Lab) {
    let subnets: Vec<_> = lab.nodes().iter().map(lab::Node::subnet).collect();
    lab::wait_for("every path is proven", SETTLED, || {
        lab.nodes().iter().all(|node| {
            let routes = node.ns.run("ip route show proto 84");
            let direct = routes.lines().filter(|line| line.contains("dev eth0")).count();
            direct + 1 == subnets.len()
        })
    });
}

/// Returns a node's warnings about peers.
fn warned(daemon: &Daemon) -> Vec<String> {
    daemon.log().lines().filter(|line| line.contains("WARN peer ")).map(str::to_owned).collect()
}

/// Asserts that no node ever warns about a peer, and that no path changes once every path is proven.
fn calm(lab: &Lab, span: Duration, harm: impl FnOnce() -> Vec<Busy>) {
    let mut daemons: Vec<_> = lab.nodes().iter().map(|node| node.start(FLAGS)).collect();
    daemons.iter().for_each(Daemon::wait_ready);
    let _pods = lab.pods();
    all_direct(lab);
    let asked = || lab.nodes().iter().map(cluster::ops_asked).collect::<Vec<_>>();
    let before = asked();
    let _busy = harm();
    few_broadcasts(lab, span, || daemons.iter_mut().all(Daemon::is_alive));
    for (node, daemon) in lab.nodes().iter().zip(&daemons) {
        assert_eq!(warned(daemon), Vec::<String>::new(), "{}", node.name);
        let reply = node.get("/readyz").unwrap();
        assert!(reply.status == 200 && !reply.body.contains("peer "), "{}: {reply:?}", node.name);
    }
    assert_eq!(before, asked());
}

/// Asserts that no node exceeds its share of broadcasts in any second of `span`, and that nobody else sends one.
fn few_broadcasts(lab: &Lab, span: Duration, mut alive: impl FnMut() -> bool) {
    let wire = Capture::start(lab.outside(), "eth0", &["arp and ether broadcast"]);
    // This broadcast has to be captured, or the capture would prove nothing.
    let nobody = "192.168.100.199";
    lab.node(1).ns.output(&format!("ping -n -c 1 -W 1 {nobody}"));
    assert!(wire.wait_for(SOON, |packet| packet.contains(nobody)));
    lab::holds_for("the daemons run", span, &mut alive);
    let packets = wire.stop();
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    for packet in &packets {
        let (second, source) = (&packet[..8], packet.split(' ').nth(1).unwrap());
        assert!(lab.nodes().iter().any(|node| node.mac == source), "of no node: {packet}");
        *counts.entry((source, second)).or_default() += 1;
    }
    println!("{} broadcasts of {} nodes in {span:?}", packets.len(), lab.nodes().len());
    // A second of the clock may begin just before one of the nodes' seconds.
    assert!(counts.values().all(|count| *count <= BROADCASTS_A_SECOND + 1), "{counts:#?}");
}

fn healthy_nodes(nodes: usize, span: Duration) {
    let lab = cluster::lab(Topology::flat(nodes).outside(), AUTO);
    calm(&lab, span, Vec::new);
}

/// A process that burns CPU; killed when dropped.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn busy_nodes(span: Duration) {
    let lab = cluster::lab(Topology::flat(4).outside(), AUTO);
    let mut lossy = None;
    calm(&lab, span, || {
        lossy = Some(Filter::drops(&["numgen random mod 100 < 2"]));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| Busy(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap());
        (0..cores).map(spin).collect()
    });
}

/// The test runs alone: the next hops nearly fill the machine's neighbour table, which all namespaces share.
#[test]
fn thirty_healthy_nodes_raise_no_alarm() {
    lab::test_within(soaking(SOAK) + DEADLINE, Timing::Timed, || healthy_nodes(30, SPAN.max(soaking(SOAK))));
}

#[test]
fn a_busy_machine_and_a_lossy_wire_raise_no_alarm() {
    lab::test_within(soaking(SOAK) + DEADLINE, Timing::Timed, || busy_nodes(SPAN.max(soaking(SOAK))));
}
