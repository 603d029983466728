//! A node that comes up again with an empty kernel and an empty /run. The store is there, away, or was emptied.

use std::fs;
use std::time::Duration;

use lab::{Daemon, Lab, Node, Timing, Topology, View};

use crate::cluster::{self, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL, lease_name};

/// Maximum time for the daemon to go on without the store.
const LATER: Duration = Duration::from_secs(20);

/// Returns true if the cache has everything that the store has.
fn remembers(node: &Node, subnets: &[String]) -> bool {
    let entries = fs::read_dir(node.cache_dir()).into_iter().flatten().flatten();
    let text: String = entries.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
    subnets.iter().all(|subnet| text.contains(subnet.trim_end_matches("/24")))
}

/// Starts a cluster, waits until node 1 has cached everything, and reboots it while the store is away.
fn reboot_without_store<'lab>(lab: &'lab Lab) -> (Vec<Daemon<'lab>>, View, Vec<lab::Pod>) {
    let (mut daemons, pods) = cluster::start(lab);
    let node = lab.node(1);
    let subnets: Vec<String> = lab.nodes().iter().map(Node::subnet).collect();
    lab::wait_for("it is remembered", LATER, || remembers(node, &subnets));
    let before = View::of(&node.ns);
    daemons[0].kill9();
    fs::rename(lab.store.path(), away(lab)).unwrap();
    node.reboot();
    assert_ne!(before.diff(&View::of(&node.ns)), "");
    (daemons, before, pods)
}

fn away(lab: &Lab) -> std::path::PathBuf {
    lab.store.path().with_extension("away")
}

fn comes_up_without_the_store(config: &str) {
    let lab = cluster::lab(Topology::flat(3), config);
    let (mut daemons, before, pods) = reboot_without_store(&lab);
    let node = lab.node(1);
    daemons[0].restart();
    lab::wait_for("it is ready without a store", LATER, || {
        node.get("/readyz").is_some_and(|reply| reply.status == 200)
    });
    cluster::reach_each_other(&pods);
    assert_eq!(before.diff(&View::of(&node.ns)), "", "the same subnet, MAC and peers");
    let status = node.twill(&["status"]);
    assert!(status.contains("lost; the last known leases stay in force"), "{status}");
    let asked = cluster::ops_asked(node);
    fs::rename(away(&lab), lab.store.path()).unwrap();
    lab::wait_for("the store answers again", SOON, || !node.twill(&["status"]).contains("lost"));
    assert_eq!(before.diff(&View::of(&node.ns)), "");
    assert_eq!(cluster::ops_asked(node), asked, "all of it was right");
}

#[test]
fn vxlan_comes_up_without_the_store() {
    lab::test(Timing::Free, || comes_up_without_the_store(VXLAN));
}

#[test]
fn vxlan_in_dual_stack_comes_up_without_the_store() {
    lab::test(Timing::Free, || comes_up_without_the_store(VXLAN_DUAL));
}

#[test]
fn host_gw_in_dual_stack_comes_up_without_the_store() {
    lab::test(Timing::Free, || comes_up_without_the_store(HOST_GW_DUAL));
}

/// With the store the start is an ordinary one: the same subnet, and the MAC that the peers know.
#[test]
fn a_node_with_the_store_keeps_its_subnet_and_mac() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        daemons[0].kill9();
        node.reboot();
        daemons[0].restart();
        daemons[0].wait_ready();
        cluster::reach_each_other(&pods);
        assert_eq!(before.diff(&View::of(&node.ns)), "");
    });
}

/// A cache that was copied to another machine is not used, nor is a file of another format.
#[test]
fn the_cache_of_another_machine_or_version_is_not_used() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, _, _pods) = reboot_without_store(&lab);
        let node = lab.node(1);
        let waits = |daemon: &mut Daemon<'_>, why: &str| {
            daemon.restart();
            lab::holds_for(why, Duration::from_secs(8), || {
                node.get("/readyz").is_none_or(|reply| reply.status == 503)
            });
            daemon.kill9();
        };
        node.ns.run("ip link set eth0 address 02:00:00:00:0c:01");
        waits(&mut daemons[0], "another uplink MAC");
        node.ns.run(&format!("ip link set eth0 address {}", node.mac));
        let file = fs::read_dir(node.cache_dir()).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen(r#""format":1"#, r#""format":9"#, 1)).unwrap();
        waits(&mut daemons[0], "another format");
        assert!(daemons[0].log().contains("its format is 9"), "{}", daemons[0].log());
        fs::write(&file, text).unwrap();
        daemons[0].restart();
        lab::wait_for("as it was, it is used", LATER, || {
            node.get("/readyz").is_some_and(|reply| reply.status == 200)
        });
    });
}

/// The guard against an emptied store works across a restart, because the peers are cached.
#[test]
fn a_store_emptied_while_the_daemon_was_down_is_not_believed_at_once() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(6), VXLAN);
        let flags = &["--iface=eth0", "--shrink-grace=4s"];
        let mut daemons = lab.start_all(flags);
        let pods = lab.pods();
        assert!(pods[0].reaches(pods[5].ip(), SOON).is_some());
        let node = lab.node(1);
        let subnets: Vec<String> = lab.nodes().iter().map(Node::subnet).collect();
        lab::wait_for("it is remembered", LATER, || remembers(node, &subnets));
        daemons.iter_mut().for_each(Daemon::kill9);
        let leases = lab.store.leases();
        leases.keys().for_each(|name| lab.store.remove_lease(name));
        daemons[0].restart();
        daemons[0].wait_ready();
        let status = node.twill(&["status"]);
        assert!(status.contains("more than half of the peers"), "{status}");
        assert!(pods[0].ping(pods[5].ip()).is_some());
        assert_eq!(
            lab.store.leases().get(&lease_name(&node.subnet())),
            leases.get(&lease_name(&node.subnet()))
        );
        lab::wait_for("given up after the grace", LATER, || !node.ns.run("ip route").contains(&subnets[5]));
    });
}
