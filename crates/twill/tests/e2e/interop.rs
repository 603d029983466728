//! What a node holds, compared with what a real flannel left behind in the same place: the recordings of
//! `plan/tests/recordings`, looked at with the same tools.

use std::fs;
use std::path::{Path, PathBuf};

use lab::eyes::Row;
use lab::{Timing, Topology, View, eyes};
use serde_json::Value;

use crate::cluster::{self, FLAGS};

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plan/tests/recordings")
}

/// Starts daemons that find the recorded leases in the store, so that subnets and MACs are the recorded ones.
fn replay(case: &str, topology: Topology) {
    let dir = recordings().join(case);
    let read = |file: &str| {
        fs::read_to_string(dir.join(file)).unwrap_or_else(|error| panic!("{case}/{file}: {error}"))
    };
    let lab = cluster::lab(topology, &read("net-conf.json"));
    let entries = read("etcd.txt");
    let mut recorded = std::collections::BTreeMap::new();
    for (key, value) in entries.lines().zip(entries.lines().skip(1)) {
        if let Some(name) = key.strip_prefix("/coreos.com/network/subnets/") {
            lab.store.put_lease(name, value);
            recorded.insert(name.to_owned(), value.to_owned());
        }
    }
    assert_eq!(recorded.len(), lab.nodes().len());
    let _daemons = lab.start_all(FLAGS);
    for (index, node) in lab.nodes().iter().enumerate() {
        let json = |kind: &'static str| {
            let text = read(&format!("node{}/{kind}.json", index + 1));
            (kind, serde_json::from_str::<Value>(&text).unwrap())
        };
        let kinds = ["link", "addr", "route4", "neigh", "fdb"];
        let mut kinds: Vec<_> = kinds.into_iter().map(json).collect();
        if case.ends_with("-dual") {
            kinds.push(json("route6"));
        }
        let flannel = View::recorded(&kinds);
        assert_eq!(objects(&View::of(&node.ns)), objects(&flannel), "{case}: node{}", index + 1);
        let subnet_env = fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
        let recorded = read(&format!("node{}/subnet.env", index + 1));
        // flannel's 50 bytes are too few for IPv6: its own device has 1430, by the kernel's hand.
        let ours = if case == "vxlan-dual" { recorded.replace("MTU=1450", "MTU=1430") } else { recorded };
        assert_eq!(subnet_env, ours);
    }
    assert_eq!(lab.store.leases(), recorded, "{case}: the leases are as flannel wrote them");
}

/// The pod network's rows as text, without what is meant to differ: our route protocol, and the word that names the main
/// table when all tables are shown.
fn objects(view: &View) -> Vec<String> {
    let plain = |row: &Row| {
        let mut row = row.clone();
        row.fields.retain(|key, _| key != "protocol" && key != "table");
        row
    };
    // flannel leaves such a peer without a route, to the default route; ours is told that it cannot be reached.
    let silent = |row: &&Row| row.text("type") != "unreachable";
    let rows = eyes::ours(view).filter(silent).filter(|row| row.text("table") != "local").map(plain);
    let mut rows: Vec<String> =
        rows.map(|row| row.to_string()).filter(|row| !row.contains("fe80::")).collect();
    rows.sort();
    rows
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
