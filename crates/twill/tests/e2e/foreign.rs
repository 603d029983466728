//! Foreign objects on the node are neither touched nor listened to.

use std::time::Duration;

use lab::{Storm, Timing, Topology, View};

use crate::cluster::{self, SOON, VXLAN};

const SPAN: Duration = Duration::from_secs(10);

/// 10,000 neighbour changes a second on a foreign device wake nobody and cost less than 3 % of a core.
#[test]
fn a_storm_of_foreign_neighbours_wakes_nobody() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (daemons, _pods) = cluster::start(&lab);
        let node = lab.node(1);
        let passes = || metric(&node.get("/metrics").unwrap().body, "twill_passes_total");
        let (cpu, before) = (daemons[0].cpu(), passes());
        let (changes, took) = Storm::start(node, 10_000, SPAN).finish();
        let cpu = daemons[0].cpu() - cpu;
        println!("{changes} changes in {took:?} cost {cpu:?}");
        assert!(changes > 20_000, "no storm: {changes} changes in {took:?}");
        assert!(cpu < took * 3 / 100, "{cpu:?} of CPU in {took:?}");
        // The storm's device comes and goes, and the period may pass; the neighbours themselves cause no reconcile pass.
        assert!(passes() - before <= 4.0, "{} passes", passes() - before);
    });
}

#[test]
fn foreign_objects_survive_the_start() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        lab::foreign::plant(node, "10.244.250.0/24");
        let planted = View::of(&node.ns);
        let _daemons = lab.start_all(cluster::FLAGS);
        lab::wait_for("the peer is there", SOON, || node.ns.run("ip route").contains("flannel.1"));
        let now = View::of(&node.ns);
        let lost: Vec<String> =
            planted.diff(&now).lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect();
        assert!(lost.is_empty(), "gone: {lost:?}");
    });
}

fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
