//! Leaving a node: everything of twill goes and nothing else. With `--hand-over` only what flannel would not have written goes,
//! and no packet is lost.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

use lab::{Daemon, Lab, Node, PingStream, Timing, Topology, View, foreign};

use crate::cluster::{self, DIRECT_BY_ADDRESS, HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL};
use crate::recording::{self, Recording};

fn uninstall(node: &Node, args: &[&str]) -> Output {
    let cache = node.cache_dir().display().to_string();
    node.twill_output(&[&["uninstall", "--cache-dir", &cache], args].concat())
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

fn files(node: &Node) -> BTreeSet<String> {
    let dirs =
        [node.run_dir(), node.cache_dir()].map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    dirs.into_iter().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn terminate(daemons: &mut [Daemon<'_>]) {
    daemons.iter_mut().for_each(|daemon| assert!(daemon.terminate().success()));
}

/// Asserts that everything of twill goes, and that foreign objects stay, some of them inside the pod network.
fn everything_goes(config: &str, topology: Topology) {
    let lab = cluster::lab(topology, config);
    let node = lab.node(1);
    foreign::plant(node, "10.244.240.0/24");
    foreign::plant6(node, "fd00:244:0:f0::/64");
    let (clean, no_files) = (View::of(&node.ns), files(node));
    let mut daemons = lab.start_all(cluster::FLAGS);
    let refused = uninstall(node, &[]);
    assert!(
        !refused.status.success() && said(&refused).contains("stop the daemon first"),
        "{}",
        said(&refused)
    );
    // A daemon that was killed leaves as much as one that was stopped.
    daemons[0].kill9();
    let installed = View::of(&node.ns);
    assert_ne!(clean.diff(&installed), "");
    let with_files = files(node);
    let dry = uninstall(node, &["--dry-run"]);
    assert!(dry.status.success(), "{}", said(&dry));
    assert_eq!((installed.diff(&View::of(&node.ns)), files(node)), (String::new(), with_files.clone()));
    let wet = uninstall(node, &[]);
    assert!(wet.status.success(), "{}", said(&wet));
    assert!(said(&wet).starts_with(&said(&dry)), "what was announced is what was done: {}", said(&wet));
    assert_eq!((clean.diff(&View::of(&node.ns)), files(node)), (String::new(), no_files));
    assert!(with_files.len() >= 3, "{with_files:?}");
    let again = uninstall(node, &[]);
    assert!(again.status.success() && said(&again).contains("nothing to remove"), "{}", said(&again));
}

#[test]
fn vxlan_is_removed() {
    lab::test(Timing::Free, || everything_goes(VXLAN, Topology::flat(3)));
}

#[test]
fn vxlan_in_dual_stack_is_removed() {
    lab::test(Timing::Free, || everything_goes(VXLAN_DUAL, Topology::flat(3)));
}

#[test]
fn direct_routing_is_removed() {
    lab::test(Timing::Free, || everything_goes(DIRECT_BY_ADDRESS, Topology::routed(2, 1)));
}

#[test]
fn host_gw_is_removed() {
    lab::test(Timing::Free, || everything_goes(HOST_GW, Topology::routed(2, 1)));
}

#[test]
fn host_gw_in_dual_stack_is_removed() {
    lab::test(Timing::Free, || everything_goes(HOST_GW_DUAL, Topology::routed(2, 1)));
}

fn hand_over(case: &'static str, topology: Topology) {
    let recording = Recording::of(case);
    let lab = cluster::lab(topology, &recording.config());
    recording.fill(&lab);
    let mut daemons = lab.start_all(cluster::FLAGS);
    let pods = lab.pods();
    let pings: Vec<PingStream> = match case {
        "alloc" => Vec::new(),
        _ => pods[1].ips().map(|ip| PingStream::start(&pods[0].ns, ip)).collect(),
    };
    lab::wait_for("the pods talk", SOON, || pings.iter().all(|ping| ping.received() > 10));
    terminate(&mut daemons);
    for node in lab.nodes() {
        let output = uninstall(node, &["--hand-over"]);
        assert!(output.status.success(), "{}", said(&output));
        let flannels = recording::objects(&recording.view(node));
        assert_eq!(recording::objects(&View::of(&node.ns)), flannels, "{case}: {}", node.name);
        assert_eq!(files(node), BTreeSet::from(["subnet.env".to_owned()]), "flannel goes on with it");
    }
    let seen: Vec<u64> = pings.iter().map(PingStream::received).collect();
    lab::wait_for("and go on talking", SOON, || {
        pings.iter().zip(&seen).all(|(ping, seen)| ping.received() > seen + 20)
    });
    for report in pings.into_iter().map(PingStream::stop) {
        assert_eq!(report.lost, 0, "{case}: {report:?}");
    }
}

#[test]
fn vxlan_is_handed_over() {
    lab::test(Timing::Free, || hand_over("vxlan", Topology::flat(3)));
}

#[test]
fn vxlan_with_every_option_is_handed_over() {
    lab::test(Timing::Free, || hand_over("vxlan-options", Topology::flat(3)));
}

#[test]
fn vxlan_with_direct_routing_is_handed_over() {
    lab::test(Timing::Free, || hand_over("vxlan-directrouting", Topology::routed(2, 1)));
}

#[test]
fn vxlan_in_dual_stack_is_handed_over() {
    lab::test(Timing::Free, || hand_over("vxlan-dual", Topology::flat(3)));
}

#[test]
fn host_gw_is_handed_over() {
    lab::test(Timing::Free, || hand_over("host-gw", Topology::flat(3)));
}

#[test]
fn host_gw_behind_a_router_is_handed_over() {
    lab::test(Timing::Free, || hand_over("host-gw-l3", Topology::routed(2, 1)));
}

#[test]
fn host_gw_in_dual_stack_is_handed_over() {
    lab::test(Timing::Free, || hand_over("host-gw-dual", Topology::flat(3)));
}

#[test]
fn alloc_is_handed_over() {
    lab::test(Timing::Free, || hand_over("alloc", Topology::flat(3)));
}

/// flannel looks in the main table only.
#[test]
fn routes_in_our_table_are_handed_over_in_the_main_table() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let mut daemons = lab.start_all(&["--iface=eth0", "--route-table=flannel"]);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let pings: Vec<PingStream> = pods[1].ips().map(|ip| PingStream::start(&pods[0].ns, ip)).collect();
        lab::wait_for("the pods talk", SOON, || pings.iter().all(|ping| ping.received() > 10));
        terminate(&mut daemons);
        for (node, peer) in [(lab.node(1), lab.node(2)), (lab.node(2), lab.node(1))] {
            let output = uninstall(node, &["--hand-over"]);
            assert!(output.status.success(), "{}", said(&output));
            let left = "ip rule; ip -6 rule; ip route show table 8472; ip -6 route show table 8472";
            let left = node.ns.run(left);
            assert!(!left.contains("10.244.") && !left.contains("fd00:244"), "{left}");
            let main = node.ns.run("ip route; ip -6 route");
            assert!(main.contains(&peer.subnet()) && main.contains(&peer.subnet6()), "{main}");
        }
        let seen: Vec<u64> = pings.iter().map(PingStream::received).collect();
        lab::wait_for("and go on talking", SOON, || {
            pings.iter().zip(&seen).all(|(ping, seen)| ping.received() > seen + 20)
        });
        for report in pings.into_iter().map(PingStream::stop) {
            assert_eq!(report.lost, 0, "{report:?}");
        }
    });
}

fn with_flannel_back(lab: &Lab) -> (String, String) {
    let (node, peer) = (lab.node(1), lab.node(2).subnet());
    let first = peer.trim_end_matches("/24").to_owned();
    node.ns.run(&format!("ip route replace {peer} via {first} dev flannel.1 onlink"));
    (peer, first)
}

/// flannel was started meanwhile and has written its routes: its device is not ours any more.
#[test]
fn a_device_that_flannel_uses_again_stays() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        terminate(&mut daemons);
        let (peer, _) = with_flannel_back(&lab);
        let before = View::of(&node.ns);
        let output = uninstall(node, &[]);
        assert!(!output.status.success() && said(&output).contains(&peer), "{}", said(&output));
        assert_eq!(before.diff(&View::of(&node.ns)), "");
        assert!(uninstall(node, &["--hand-over"]).status.success());
        assert!(pods[0].ping(pods[1].ip()).is_some());
    });
}
