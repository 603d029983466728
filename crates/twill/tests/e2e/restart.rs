//! A daemon is killed and started again: no packet is lost, and nothing is written to the kernel.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lab::{Monitors, PingStream, Timing, Topology, View};

use crate::cluster::{self, HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL, VXLAN_IPV6};

fn killed_and_back(config: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (mut daemons, pods) = cluster::start(&lab);
    let node = lab.node(1);
    let file = node.run_dir().join("subnet.env");
    let (before, stamp) = (View::of(&node.ns), stamp(&file));
    let pings: Vec<_> = pods[1].ips().map(|ip| PingStream::start(&pods[0].ns, ip)).collect();
    lab::wait_for("the pings run", SOON, || pings.iter().all(|ping| ping.received() > 10));
    let monitors = Monitors::start(&node.ns);
    daemons[0].kill9();
    daemons[0].restart();
    daemons[0].wait_ready();
    // The kernel itself adds and removes the pods' neighbours on cni0; flannel's device and the routes are ours.
    lab::holds_for("no object of ours is written", Duration::from_secs(10), || {
        let ours = monitors.lines_about(&["flannel", "proto 84"]);
        assert!(ours.is_empty(), "{ours:?}");
        true
    });
    for report in pings.into_iter().map(PingStream::stop) {
        assert!(report.sent > 350 && report.lost == 0, "{report:?}");
    }
    assert_eq!(before.diff(&View::of(&node.ns)), "");
    assert_eq!(stamp, self::stamp(&file), "subnet.env is not rewritten");
    assert_eq!(cluster::ops_asked(node), 0.0, "the second start had nothing to ask for");
}

fn stamp(path: &std::path::Path) -> (u64, i64, i64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

#[test]
fn vxlan() {
    lab::test(Timing::Free, || killed_and_back(VXLAN));
}

#[test]
fn host_gw() {
    lab::test(Timing::Free, || killed_and_back(HOST_GW));
}

#[test]
fn vxlan_in_dual_stack() {
    lab::test(Timing::Free, || killed_and_back(VXLAN_DUAL));
}

#[test]
fn host_gw_in_dual_stack() {
    lab::test(Timing::Free, || killed_and_back(HOST_GW_DUAL));
}

#[test]
fn vxlan_of_ipv6_only() {
    lab::test(Timing::Free, || killed_and_back(VXLAN_IPV6));
}

/// SIGTERM is quick and leaves the data plane alone. The socket goes, so that `twill status` can say what is wrong.
#[test]
fn a_stop_leaves_the_data_plane_in_place() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        assert!(daemons[0].terminate().success());
        assert_eq!(before.diff(&View::of(&node.ns)), "");
        assert!(pods[0].ping(pods[1].ip()).is_some());
        let status = node.twill_output(&["status"]);
        let said = String::from_utf8_lossy(&status.stderr).into_owned();
        assert!(!status.status.success() && said.contains("is twill daemon running here"), "{said}");
    });
}

/// A device that vanished while no daemon ran comes back with the MAC that the peers know.
#[test]
fn a_recreated_device_keeps_its_mac() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        daemons[0].kill9();
        node.ns.run("ip link del flannel.1");
        daemons[0].restart();
        daemons[0].wait_ready();
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
        assert_eq!(before.diff(&View::of(&node.ns)), "");
    });
}
