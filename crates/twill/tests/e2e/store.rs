//! Leases that come, go or break, and a store that cannot be reached: one peer's fault is never another's.

use std::time::{Duration, Instant};

use lab::{PingStream, Timing, Topology};

use crate::cluster::{self, SOON, VXLAN, lease_name};

#[test]
fn a_malformed_lease_affects_no_other_peer() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        // The daemon of node 3 would write its lease again.
        daemons[2].kill9();
        let node = lab.node(1);
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab.store.put_lease("10.244.250.0-24", "{half a lease");
        lab.store.put_lease("not-a-key", "{}");
        lab.store.put_lease(&lease_name(&lab.node(3).subnet()), r#"{"PublicIP":"nonsense"}"#);
        lab::wait_for("the broken ones are named", SOON, || {
            let status = node.twill(&["status"]);
            ["10.244.250.0-24", "not-a-key", &lease_name(&lab.node(3).subnet())]
                .iter()
                .all(|key| status.contains(key))
        });
        let routes = node.ns.run("ip route");
        assert!(routes.contains(&lab.node(2).subnet()), "the good peer stays: {routes}");
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}

#[test]
fn a_lease_removed_while_the_daemon_was_down_is_swept() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (mut daemons, _pods) = cluster::start(&lab);
        let node = lab.node(1);
        let gone = lab.node(3).subnet();
        daemons[0].kill9();
        daemons[2].kill9();
        lab.store.remove_lease(&lease_name(&gone));
        daemons[0].restart();
        daemons[0].wait_ready();
        let left = || node.ns.run("ip route; ip neigh show dev flannel.1; bridge fdb show dev flannel.1");
        let address = lab.node(3).ip.to_string();
        lab::wait_for("nothing of it is left", SOON, || {
            let left = left();
            !left.contains(gone.trim_end_matches("/24")) && !left.contains(&address)
        });
        assert!(left().contains(&lab.node(2).subnet()));
    });
}

#[test]
fn a_lost_store_freezes_the_node_and_empties_nothing() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        let (subnets, away) = (lab.store.path().join("subnets"), lab.store.path().join("away"));
        std::fs::rename(&subnets, &away).unwrap();
        lab::wait_for("status says so", SOON, || {
            node.twill(&["status"]).contains("lost; the last known leases stay")
        });
        assert_eq!(node.get("/readyz").unwrap().status, 200, "the data plane stands");
        // A frozen node still repairs what is ours.
        node.ns.run("bridge fdb show dev flannel.1 | xargs -L1 bridge fdb del dev flannel.1");
        lab::wait_for("repaired", SOON, || {
            node.ns.run("bridge fdb show dev flannel.1").contains(&lab.node(2).ip.to_string())
        });
        std::fs::rename(&away, &subnets).unwrap();
        lab::wait_for("status is calm", SOON, || !node.twill(&["status"]).contains("lost"));
        let report = ping.stop();
        lab::in_time("the longest gap", report.longest_gap, Duration::from_secs(1));
    });
}

#[test]
fn a_start_after_many_kills_gives_each_node_one_lease() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        // The kill comes later as long as there is no lease yet, and sooner once there is one.
        let (mut before, mut after, mut delay) = (0, 0, Duration::ZERO);
        let around = || {
            let node = lab.node(1);
            let mut daemon = node.start(cluster::FLAGS);
            let killed_at = Instant::now() + delay;
            lab::until(SOON, || (Instant::now() >= killed_at).then_some(()));
            daemon.kill9();
            let leases = lab.store.leases();
            let is_whole = |json: &String| {
                let lease: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
                lease["PublicIP"] == node.ip.to_string() && lease["BackendData"]["VtepMAC"].is_string()
            };
            assert!(leases.values().all(is_whole), "{leases:?}");
            leases.keys().for_each(|name| lab.store.remove_lease(name));
            if leases.is_empty() {
                before += 1;
                delay += Duration::from_millis(1);
            } else {
                after += 1;
                delay /= 2;
            }
            before >= 5 && after >= 5
        };
        lab::wait_for("kills before the lease and after it", 6 * SOON, around);
        let _daemons = lab.start_all(cluster::FLAGS);
        let leases = lab.store.leases();
        assert_eq!(leases.len(), 3, "{leases:?}");
        for node in lab.nodes() {
            let json = &leases[&lease_name(&node.subnet())];
            assert!(json.contains(&node.ip.to_string()), "{json}");
        }
    });
}

/// The node takes its own lease again at once, and does not believe that the peers are gone.
#[test]
fn an_emptied_store_costs_no_packet() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(6), VXLAN);
        let flags = &["--iface=eth0", "--shrink-grace=3s"];
        let (mut daemons, node) = (lab.start_all(flags), lab.node(1));
        let pods = lab.pods();
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
        // Daemons run on nodes 1 and 2 alone, so only these write their leases again.
        daemons.iter_mut().skip(2).for_each(lab::Daemon::kill9);
        let before = lab.store.leases();
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        before.keys().for_each(|name| lab.store.remove_lease(name));
        let own = lease_name(&node.subnet());
        lab::wait_for("the own lease is back, as it was", SOON, || {
            lab.store.leases().get(&own) == before.get(&own)
        });
        let status = node.twill(&["status"]);
        assert!(status.contains("more than half of the peers at once"), "{status}");
        assert!(node.ns.run("ip route").contains(&lab.node(6).subnet()), "not believed yet");
        assert_eq!(node.get("/readyz").unwrap().status, 200);
        lab::wait_for("given up after the grace", SOON, || {
            !node.ns.run("ip route").contains(&lab.node(6).subnet())
        });
        assert!(
            node.ns.run("ip route").contains(&lab.node(2).subnet()),
            "node 2 has taken its lease again too"
        );
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}

/// The leases vanish one by one, as by `rm` on a busy machine. The guard counts the losses within a window.
#[test]
fn a_store_emptied_lease_by_lease_keeps_all_peers_in_the_end() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(6), VXLAN);
        let (mut daemons, node) = (lab.start_all(cluster::FLAGS), lab.node(1));
        daemons.iter_mut().skip(1).for_each(lab::Daemon::kill9);
        let (own, all) = (lease_name(&node.subnet()), lab.store.leases());
        for name in all.keys().filter(|name| **name != own) {
            lab.store.remove_lease(name);
            let subnet = name.replace("-24", "/24");
            let seen = || {
                !node.ns.run("ip route").contains(&subnet)
                    || node.twill(&["status"]).contains("more than half")
            };
            lab::wait_for("the daemon has noticed", SOON, seen);
        }
        let routes = node.ns.run("ip route");
        assert!(
            lab.nodes()[1..].iter().all(|peer| routes.contains(&peer.subnet())),
            "all are kept: {routes}"
        );
    });
}

/// Our entry in the store names another node's address: a subnet cannot be taken in that way.
#[test]
fn our_lease_with_another_address_is_taken_back_and_reported() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, _pods) = cluster::start(&lab);
        let node = lab.node(1);
        let own = lease_name(&node.subnet());
        let lease = lab.store.leases()[&own].clone();
        lab.store.put_lease(&own, &lease.replace(&node.ip.to_string(), "192.168.100.99"));
        let said =
            format!("our lease {own} is overwritten by another writer, last with address 192.168.100.99");
        lab::wait_for("it is said", SOON, || node.twill(&["status"]).contains(&said));
        lab::wait_for("it is ours again", SOON, || lab.store.leases()[&own] == lease);
        assert_eq!(node.get("/readyz").unwrap().status, 200);
        // An entry that is ours, with other contents, is corrected.
        lab.store.put_lease(&own, &lease.replace(r#""VNI":1"#, r#""VNI":5"#));
        lab::wait_for("it says again what we announce", SOON, || lab.store.leases()[&own] == lease);
        lab::wait_for("ready again", SOON, || node.get("/readyz").unwrap().status == 200);
    });
}

#[test]
fn an_invalid_config_changes_nothing_and_is_named() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        let before = lab::View::of(&node.ns);
        lab.store.config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":"one"}}"#);
        lab::wait_for("it is named with its key", SOON, || node.twill(&["status"]).contains(r#"key "VNI""#));
        assert_eq!(node.get("/readyz").unwrap().status, 200);
        lab.store.config(VXLAN);
        lab::wait_for("all is well", SOON, || !node.twill(&["status"]).contains("VNI"));
        assert_eq!(before.diff(&lab::View::of(&node.ns)), "");
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}
