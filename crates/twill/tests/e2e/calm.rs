//! No false alarm: many healthy nodes, a busy machine, a wire that loses a little; and little noise.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use lab::{Capture, Daemon, Filter, Lab, Node, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON};
use crate::verdicts::{AUTO, soaking};

const SPAN: Duration = Duration::from_secs(30);
/// In `make soak`.
const SOAK: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(180);
/// For all of them to be started and every path to be proven, on a machine that has better to do.
const SETTLED: Duration = Duration::from_secs(60);
/// Per node.
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

/// What a node has said and asked for so far.
#[derive(PartialEq)]
struct Said {
    faults: usize,
    changes: f64,
}

impl Said {
    fn by(node: &Node, daemon: &Daemon) -> Self {
        let faults = daemon.log().lines().filter(|line| line.contains("peer 10.244.")).count();
        Self { faults, changes: cluster::ops_asked(node) }
    }
}

/// In the turmoil of the start a peer may not have known the way back; then nothing is told any more, and no way is left.
fn calm(lab: &Lab, span: Duration, harm: impl FnOnce() -> Vec<Busy>) -> usize {
    let daemons: Vec<_> = lab.nodes().iter().map(|node| node.start(FLAGS)).collect();
    daemons.iter().for_each(Daemon::wait_ready);
    let _pods = lab.pods();
    all_direct(lab);
    let nothing_told = |node: &Node| {
        node.get("/readyz").is_some_and(|reply| reply.status == 200 && !reply.body.contains("peer "))
    };
    lab::wait_for("nothing is told of any peer", SETTLED, || lab.nodes().iter().all(nothing_told));
    let all = || lab.nodes().iter().zip(&daemons);
    let before: Vec<_> = all().map(|(node, daemon)| Said::by(node, daemon)).collect();
    let _busy = harm();
    let wire = Capture::start(lab.outside(), "eth0", &["arp and ether broadcast"]);
    // One that has to be heard, or nothing could be.
    let nobody = "192.168.100.199";
    lab.node(1).ns.output(&format!("ping -n -c 1 -W 1 {nobody}"));
    assert!(wire.wait_for(SOON, |packet| packet.contains(nobody)));
    lab::holds_for("the daemons run", span, || Path::new(&format!("/proc/{}", daemons[0].pid())).exists());
    for ((node, daemon), before) in all().zip(&before) {
        assert!(nothing_told(node) && Said::by(node, daemon) == *before, "{}: {}", node.name, daemon.log());
    }
    wire.stop().len()
}

fn healthy_nodes(nodes: usize, span: Duration) {
    let lab = cluster::lab(Topology::flat(nodes).outside(), AUTO);
    let broadcasts = calm(&lab, span, Vec::new);
    let limit = BROADCASTS_A_SECOND * nodes * span.as_secs() as usize;
    println!("{broadcasts} broadcasts of {nodes} nodes in {span:?}");
    assert!(broadcasts < limit, "{broadcasts} broadcasts");
}

/// Killed when dropped.
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

#[test]
fn thirty_healthy_nodes() {
    lab::test_within(soaking(SOAK) + DEADLINE, Timing::Free, || healthy_nodes(30, SPAN.max(soaking(SOAK))));
}

#[test]
fn four_nodes_on_a_busy_machine_and_a_wire_that_loses_a_little() {
    lab::test_within(soaking(SOAK) + DEADLINE, Timing::Timed, || busy_nodes(SPAN.max(soaking(SOAK))));
}
