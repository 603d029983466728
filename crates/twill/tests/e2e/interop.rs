//! Compares a node's objects with what a real flannel left in the same place, read with the same tools.

use std::collections::BTreeMap;
use std::fs;

use lab::{Timing, Topology, View};

use crate::cluster::{self, FLAGS};
use crate::recording::{self, Recording};

/// Starts daemons that find the recorded leases in the store.
fn replay(case: &'static str, topology: Topology) {
    let recording = Recording::of(case);
    let lab = cluster::lab(topology, &recording.config());
    recording.fill(&lab);
    let _daemons = lab.start_all(FLAGS);
    for node in lab.nodes() {
        let flannels = recording::objects(&recording.view(node));
        // flannel leaves such a peer to the default route; twill adds an unreachable route.
        let mut ours = recording::objects(&View::of(&node.ns));
        ours.retain(|row| !row.contains("type=unreachable"));
        assert_eq!(ours, flannels, "{case}: {}", node.name);
        let subnet_env = fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
        assert_eq!(subnet_env, recorded_subnet_env(&recording, node));
    }
    let mut recorded: BTreeMap<String, String> = recording.leases().into_iter().collect();
    if case == "vxlan-options" {
        // flannel never announces its port; twill announces one that is not the default.
        for lease in recorded.values_mut() {
            *lease = lease.replace(r#"{"VNI":42,"#, r#"{"VNI":42,"Port":4789,"#);
        }
    }
    assert_eq!(lab.store.leases(), recorded, "{case}: the leases are as flannel wrote them");
}

/// Returns the recorded subnet file with the MTU corrected for IPv6. flannel's 50 bytes are too few: its own device has 1430, set
/// by the kernel.
fn recorded_subnet_env(recording: &Recording, node: &lab::Node) -> String {
    let recorded = recording.subnet_env(node);
    if recording.case == "vxlan-dual" { recorded.replace("MTU=1450", "MTU=1430") } else { recorded }
}

#[test]
fn vxlan() {
    lab::test(Timing::Free, || replay("vxlan", Topology::flat(3)));
}

#[test]
fn vxlan_with_every_option() {
    lab::test(Timing::Free, || replay("vxlan-options", Topology::flat(3)));
}

#[test]
fn vxlan_with_direct_routing() {
    lab::test(Timing::Free, || replay("vxlan-directrouting", Topology::routed(2, 1)));
}

#[test]
fn host_gw() {
    lab::test(Timing::Free, || replay("host-gw", Topology::flat(3)));
}

#[test]
fn host_gw_behind_a_router() {
    lab::test(Timing::Free, || replay("host-gw-l3", Topology::routed(2, 1)));
}

#[test]
fn vxlan_in_dual_stack() {
    lab::test(Timing::Free, || replay("vxlan-dual", Topology::flat(3)));
}

#[test]
fn host_gw_in_dual_stack() {
    lab::test(Timing::Free, || replay("host-gw-dual", Topology::flat(3)));
}

#[test]
fn alloc() {
    lab::test(Timing::Free, || replay("alloc", Topology::flat(3)));
}
