//! A foreign device under our name is not touched. A warning names it with the remedy, and once it is gone the node
//! is ready.

use std::time::Duration;

use lab::{Node, Timing, Topology, View};

use crate::cluster::{self, FLAGS, SOON, VXLAN};

/// Time longer than any reconcile pass that the device's arrival triggers.
const A_WHILE: Duration = Duration::from_secs(1);

/// Returns the lines of ip that make the device. It has rows like ours, as far as a foreign device can have them.
fn squatter(kind: &str) -> String {
    format!(
        "link add flannel.1 type {kind}\nlink set flannel.1 up\naddress add 10.244.250.0/32 dev flannel.1\n\
         neighbour add 10.244.251.0 lladdr 02:00:00:00:0f:09 dev flannel.1 nud permanent\n\
         route add 10.244.251.0/24 via 10.244.251.0 dev flannel.1 onlink proto 84\n"
    )
}

/// Returns what `ip` and `bridge` show of the device.
fn rows(node: &Node) -> Vec<String> {
    View::of(&node.ns).rows().filter(|row| row.device() == "flannel.1").map(ToString::to_string).collect()
}

fn is_said(node: &Node, kind: &str) -> bool {
    let said = format!("flannel.1 exists and is a {kind} device, not vxlan");
    node.get("/readyz").is_some_and(|reply| {
        reply.body.contains(&said) && reply.body.contains("Remove it (ip link del flannel.1)")
    })
}

fn stays_as_it_is(node: &Node, kind: &str) {
    let planted = rows(node);
    lab::wait_for("it is said", SOON, || is_said(node, kind));
    lab::wait_for("not ready", SOON, || node.get("/readyz").unwrap().status == 503);
    let asked = cluster::ops_asked(node);
    lab::holds_for("it is left alone", A_WHILE, || rows(node) == planted);
    assert_eq!(cluster::ops_asked(node), asked);
    assert_eq!(node.get("/readyz").unwrap().status, 503);
}

fn is_there_at_the_start(kind: &str) {
    let lab = cluster::lab(Topology::flat(2), VXLAN);
    let node = lab.node(1);
    node.ns.batch(&squatter(kind));
    let (daemon, other) = (node.start(FLAGS), lab.node(2).start(FLAGS));
    other.wait_ready();
    stays_as_it_is(node, kind);
    node.ns.run("ip link del flannel.1");
    daemon.wait_ready();
    let pods = lab.pods();
    cluster::reach_each_other(&pods);
    let log = daemon.log();
    assert_eq!(log.lines().filter(|line| line.contains("WARN flannel.1 exists")).count(), 1, "{log}");
}

#[test]
fn a_foreign_veth_at_the_start_stays_and_is_named() {
    lab::test(Timing::Free, || is_there_at_the_start("veth"));
}

#[test]
fn a_foreign_bridge_at_the_start_stays_and_is_named() {
    lab::test(Timing::Free, || is_there_at_the_start("bridge"));
}

#[test]
fn a_bridge_that_replaces_ours_stays_and_is_named() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        // The daemon is suspended: otherwise it would make its device again before the bridge takes the name.
        let stop = |signal: &str| node.ns.run(&format!("kill -{signal} {}", daemons[0].pid()));
        stop("STOP");
        node.ns.batch(&format!("link del flannel.1\n{}", squatter("bridge")));
        stop("CONT");
        stays_as_it_is(node, "bridge");
        node.ns.run("ip link del flannel.1");
        daemons[0].wait_ready();
        lab::wait_for("all is as before", SOON, || View::of(&node.ns) == before);
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
    });
}
