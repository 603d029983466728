//! A writer of the store writes another node's lease, or makes all nodes write theirs.

use std::time::Duration;

use lab::{Capture, EtcdSetup, Lab, Timing, Topology};

use super::Watch;
use crate::cluster::{self, SOON, VXLAN, VXLAN_DUAL, lease_name};

fn peer(port: Option<u16>, turn: u8) -> String {
    let port = port.map(|port| format!(r#""Port":{port},"#)).unwrap_or_default();
    format!(
        r#"{{"PublicIP":"192.168.100.77","BackendType":"vxlan","BackendData":{{"VNI":1,{port}"VtepMAC":"02:00:00:00:77:{turn:02x}"}}}}"#
    )
}

/// Returns the number of writes of the nodes since `before`: each write is one revision.
fn writes(lab: &Lab, before: i64, attackers: i64) -> i64 {
    lab.etcd().revision() - before - attackers
}

fn ports(key: &str, most: i64) {
    let lab = cluster::lab(Topology::flat(3).etcd(EtcdSetup::http()), VXLAN);
    let (daemons, pods) = cluster::start(&lab);
    cluster::reach_each_other(&pods);
    let watch = Watch::begin("ports", lab.node(1), &daemons[0], Some((&pods[0], &pods[2])));
    let before = lab.etcd().revision();
    for turn in 0..30 {
        lab.store.put_lease(key, &peer((turn % 2 == 0).then_some(4789), turn));
        std::thread::sleep(Duration::from_millis(200));
    }
    let writes = writes(&lab, before, 30);
    println!("{writes} writes of three nodes");
    assert!(writes <= most, "{writes} writes of three nodes");
    watch.is_quick(lab.node(2));
    watch.end();
}

/// Three nodes write their leases once each, not once for each of the attacker's writes.
#[test]
fn a_port_that_comes_and_goes_causes_one_write_a_minute() {
    lab::test(Timing::Timed, || ports("10.244.5.0-24", 3));
}

#[test]
fn a_port_of_a_peer_that_is_not_admitted_causes_no_write() {
    lab::test(Timing::Timed, || ports("10.99.5.0-24", 0));
}

/// The attacker writes a lease with another address over the node's own.
#[test]
fn an_overwritten_lease_is_restored_and_the_node_stays_ready() {
    lab::test(Timing::Timed, || {
        for topology in [Topology::flat(3), Topology::flat(3).etcd(EtcdSetup::http())] {
            let lab = cluster::lab(topology, VXLAN);
            let (daemons, pods) = cluster::start(&lab);
            cluster::reach_each_other(&pods);
            let node = lab.node(2);
            let watch = Watch::begin("hijack", node, &daemons[1], None);
            let own = lease_name(&node.subnet());
            let lease = lab.store.leases()[&own].clone();
            let theirs = lease.replace(&node.ip.to_string(), "192.168.100.77");
            lab.store.put_lease(&own, &theirs);
            lab::wait_for("it is the node's again", SOON, || lab.store.leases()[&own] == lease);
            lab::wait_for("its pods are reached", SOON, || {
                pods[0].reaches(pods[1].ip(), Duration::from_secs(1)).is_some()
            });
            // The daemon does not fight over repeated writes, and stays ready for its own part.
            for _ in 0..20 {
                lab.store.put_lease(&own, &theirs);
                std::thread::sleep(Duration::from_millis(300));
                assert_eq!(node.get("/readyz").unwrap().status, 200);
            }
            let status = node.twill(&["status"]);
            assert!(
                status.contains(&format!("our lease {own} is overwritten by another writer")),
                "{status}"
            );
            lab::wait_for("it comes back all the same", SOON * 3, || lab.store.leases()[&own] == lease);
            watch.is_quick(lab.node(1));
            watch.end();
        }
    });
}

/// The attacker overwrites the lease while the daemon is down, and later in a quiet moment.
#[test]
fn a_restarted_node_takes_back_an_overwritten_lease() {
    lab::test(Timing::Free, || {
        for topology in [Topology::flat(2), Topology::flat(2).etcd(EtcdSetup::http())] {
            let lab = cluster::lab(topology, VXLAN);
            let (mut daemons, pods) = cluster::start(&lab);
            let (node, subnet) = (lab.node(2), lab.node(2).subnet());
            let own = lease_name(&subnet);
            let lease = lab.store.leases()[&own].clone();
            let theirs = lease.replace(&node.ip.to_string(), "192.168.100.77");
            for is_down in [true, false] {
                if is_down {
                    daemons[1].kill9();
                }
                for _ in 0..10 {
                    lab.store.put_lease(&own, &theirs);
                    std::thread::sleep(Duration::from_millis(100));
                }
                daemons[1].restart();
                daemons[1].wait_ready();
                lab::wait_for("it is the node's again", SOON, || lab.store.leases()[&own] == lease);
                assert_eq!((node.subnet(), lab.store.leases().len()), (subnet.clone(), 2), "{is_down}");
                lab::wait_for("its pods are reached", SOON, || {
                    pods[0].reaches(pods[1].ip(), Duration::from_secs(1)).is_some()
                });
            }
        }
    });
}

/// The attacker writes leases that contain every subnet, then deletes the lease of a node.
#[test]
fn a_deleted_lease_comes_back_beside_leases_that_overlap_it() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2).etcd(EtcdSetup::http()), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let (node, subnet) = (lab.node(2), lab.node(2).subnet());
        let own = lease_name(&subnet);
        let lease = lab.store.leases()[&own].clone();
        for third in [0, 64, 128, 192] {
            let wide = r#"{"PublicIP":"203.0.113.9","BackendType":"host-gw"}"#;
            lab.store.put_lease(&format!("10.244.{third}.0-18"), wide);
        }
        lab.store.remove_lease(&own);
        lab::wait_for("it is back", SOON, || lab.store.leases().get(&own) == Some(&lease));
        lab::holds_for("the node is ready", Duration::from_secs(2), || {
            node.get("/readyz").is_some_and(|reply| reply.status == 200)
        });
        cluster::reach_each_other(&pods);
        // The new key is younger than the others, and the node has had the subnet for longer.
        daemons[1].restart();
        daemons[1].wait_ready();
        assert_eq!((node.subnet(), lab.store.leases().get(&own)), (subnet, Some(&lease)));
    });
}

/// The attacker's lease has the node's own address and another MAC, so that peers' packets miss its device.
#[test]
fn a_lease_overwritten_with_another_mac_is_restored_each_time() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let (_daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let node = lab.node(2);
        let own = lab.store.leases().into_iter().find(|(_, lease)| lease.contains(&node.ip.to_string()));
        let (own, lease) = own.unwrap();
        let at = lease.find(r#""VtepMAC":""#).unwrap() + 11;
        let theirs = format!("{}02:00:00:00:77:01{}", &lease[..at], &lease[at + 17..]);
        for _ in 0..3 {
            lab.store.put_lease(&own, &theirs);
            lab::wait_for("it is the node's again", SOON * 3, || lab.store.leases()[&own] == lease);
        }
        cluster::reach_each_other(&pods);
    });
}

/// The leases name addresses and ports at which no node has a tunnel.
#[test]
fn a_lease_cannot_direct_packets_to_foreign_services_or_addresses() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let (_daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let filter =
            "(udp and (port 53 or port 123 or port 1023)) or host 169.254.169.254 or host 192.168.100.255";
        let wire = Capture::start(&node.ns, "eth0", &[filter]);
        let mut reported = Vec::new();
        let mut plant = |third: u8, address: &str, address6: &str, port: u16, words: &'static str| {
            let mac = format!("02:00:00:00:88:{third:02x}");
            let (subnet4, subnet6) = (format!("10.244.{third}.0"), format!("fd00:244:0:{third:x}::"));
            let data = format!(r#"{{"VNI":1,"Port":{port},"VtepMAC":"{mac}"}}"#);
            let lease = format!(
                r#"{{"PublicIP":"{address}","PublicIPv6":"{address6}","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
            );
            lab.store.put_lease(&format!("{subnet4}-24&{subnet6}-64"), &lease);
            // The parser takes it for the IPv4 address in it, so the lease has none of IPv6.
            let is_mapped = address6.starts_with("::ffff:");
            let words6 = if is_mapped { "names no public IPv6 address" } else { words };
            reported.extend([(subnet4, words), (subnet6, words6)]);
        };
        let host = lab.node(2).ip.to_string();
        let host6 = lab.node(2).ip6.to_string();
        for (nth, port) in [53, 123, 1023].into_iter().enumerate() {
            plant(nth as u8 + 1, &host, &host6, port, "another service");
        }
        let addresses = [
            ("127.0.0.1", "::1"),
            ("169.254.169.254", "fe80::1"),
            ("224.0.0.1", "ff02::1"),
            ("255.255.255.255", "::ffff:192.168.100.12"),
            ("192.168.100.255", "::192.168.100.12"),
            ("0.0.0.1", "fe80::2"),
        ];
        for (nth, (four, six)) in addresses.into_iter().enumerate() {
            plant(nth as u8 + 10, four, six, 8472, "which no node can have");
        }
        for (subnet, words) in &reported {
            lab::wait_for(&format!("{subnet} is left out: {words}"), SOON, || {
                let status = node.twill(&["status"]);
                status.lines().any(|line| line.contains(&format!("peer {subnet}/")) && line.contains(words))
            });
        }
        for (to, _) in &reported {
            let first = if to.contains(':') { format!("{to}5") } else { to.replace(".0", ".5") };
            let _ = pods[0].ns.output(&format!("ping -n -c 1 -W 0.2 {first}"));
        }
        let fdb = node.ns.run("bridge fdb show");
        assert!(!fdb.contains("02:00:00:00:88:"), "{fdb}");
        assert_eq!(wire.stop(), Vec::<String>::new());
    });
}
