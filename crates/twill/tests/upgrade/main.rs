//! Change from an earlier version to this one and back on running nodes. No packet is lost, and nothing is written.
//! `make upgrade` builds the earlier daemon and runs these tests, which need the repository's history.

#![expect(clippy::panic, reason = "a test fails by panicking")]

#[path = "../e2e/cluster.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "all e2e tests begin with it")]
mod cluster;

use std::time::Duration;

use lab::{Daemon, Monitors, Node, PingStream, Timing, Topology, View};

use cluster::{HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL};

fn earlier() -> String {
    std::env::var("TWILL_EARLIER")
        .unwrap_or_else(|_| panic!("TWILL_EARLIER names no daemon: run make upgrade"))
}

fn start<'a>(node: &'a Node, binary: &str) -> Daemon<'a> {
    let daemon = node.start_binary(binary, cluster::FLAGS);
    daemon.wait_ready();
    daemon
}

fn there_and_back(config: &str) {
    let (earlier, this) = (earlier(), env!("CARGO_BIN_EXE_twill"));
    let lab = cluster::lab(Topology::flat(2), config);
    let mut daemons: Vec<_> = lab.nodes().iter().map(|node| start(node, &earlier)).collect();
    let pods = lab.pods();
    cluster::reach_each_other(&pods);
    let leases = lab.store.leases();
    let before: Vec<_> = lab.nodes().iter().map(|node| View::of(&node.ns)).collect();
    let pings: Vec<_> = pods[1].ips().map(|ip| PingStream::start(&pods[0].ns, ip)).collect();
    lab::wait_for("the pings run", SOON, || pings.iter().all(|ping| ping.received() > 10));
    for binary in [this, &earlier] {
        for (daemon, node) in daemons.iter_mut().zip(lab.nodes()) {
            let monitors = Monitors::start(&node.ns);
            daemon.kill9();
            *daemon = start(node, binary);
            lab::holds_for("no object of ours is written", Duration::from_secs(3), || {
                let mut ours = monitors.lines_about(&["flannel", "proto 84"]);
                // The earlier version has no traffic rules: this one adds them.
                ours.retain(|line| !line.starts_with("nft: add "));
                assert!(ours.is_empty(), "{binary}: {ours:?}");
                true
            });
            let metrics = node.get("/metrics").unwrap().body;
            let mut asked = metrics.lines().filter(|line| line.starts_with("twill_ops_total"));
            assert!(asked.all(|line| line.contains("nft") || line.ends_with(" 0")), "{binary}: {metrics}");
        }
    }
    for report in pings.into_iter().map(PingStream::stop) {
        assert!(report.sent > 500 && report.lost == 0, "{report:?}");
    }
    for (node, before) in lab.nodes().iter().zip(&before) {
        assert_eq!(before.diff(&View::of(&node.ns)), "");
    }
    assert_eq!(lab.store.leases(), leases);
}

#[test]
fn vxlan() {
    lab::test(Timing::Free, || there_and_back(VXLAN));
}

#[test]
fn vxlan_in_dual_stack() {
    lab::test(Timing::Free, || there_and_back(VXLAN_DUAL));
}

#[test]
fn host_gw() {
    lab::test(Timing::Free, || there_and_back(HOST_GW));
}

#[test]
fn host_gw_in_dual_stack() {
    lab::test(Timing::Free, || there_and_back(HOST_GW_DUAL));
}
