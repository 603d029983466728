//! Leases in a real etcd, read back with etcdctl: flannel's keys, values and times, by each kind of connection.

use std::time::Duration;

use lab::{Entry, Etcd, EtcdSetup, Lab, Monitors, PingStream, Timing, Topology};

use crate::cluster::{self, HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL, VXLAN_IPV6};
use crate::recording::Recording;

/// Lifetime of an etcd lease that flannel grants, in seconds (flannel-compat 4.4).
const TTL: i64 = 86400;

fn lab(nodes: usize, setup: EtcdSetup, config: &str) -> Lab {
    cluster::lab(Topology::flat(nodes).etcd(setup), config)
}

/// Replaces the MACs of a lease, its only random part.
fn without_macs(value: &str) -> String {
    let mut parts = value.split("\"VtepMAC\":\"");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "\"VtepMAC\":\"MAC" + &part[17..])
}

fn are_as_recorded(config: &str, setup: EtcdSetup, recorded: &'static str) {
    let lab = lab(3, setup, config);
    let (mut daemons, pods) = cluster::start(&lab);
    cluster::reach_each_other(&pods);
    let leases = lab.etcd().leases();
    assert_eq!(leases.len(), 3);
    let recorded = Recording::of(recorded).leases();
    for node in lab.nodes() {
        let (key, entry) = of_node(lab.etcd(), &node.ip.to_string());
        let env = node.subnet_env().unwrap();
        let nets = [env.subnet4(), env.subnet6()].into_iter().flatten().map(|net| net.replace('/', "-"));
        assert_eq!(key, nets.collect::<Vec<_>>().join("&"));
        let theirs = recorded
            .iter()
            .map(|(_, value)| value)
            .find(|value| value.contains(&format!("\"{}\"", node.ip)))
            .unwrap();
        assert_eq!(without_macs(&entry.value), without_macs(theirs));
        for mac in entry.value.split("\"VtepMAC\":\"").skip(1).map(|part| &part[..17]) {
            assert!(node.ns.run("ip link").contains(mac), "{mac} is no device's");
        }
        let ttl = lab.etcd().ttl(entry.lease).unwrap();
        assert!(ttl.granted == TTL && ttl.remaining > TTL - 60, "{ttl:?}");
    }
    // A daemon that comes back writes no lease and is granted none.
    daemons[0].kill9();
    daemons[0].restart();
    daemons[0].wait_ready();
    assert_eq!(lab.etcd().leases(), leases);
}

fn of_node(etcd: &Etcd, ip: &str) -> (String, Entry) {
    let leases = etcd.leases();
    let own = leases.iter().find(|(_, entry)| entry.value.contains(&format!("\"{ip}\"")));
    own.map(|(key, entry)| (key.clone(), entry.clone()))
        .unwrap_or_else(|| panic!("{ip} has no lease: {leases:?}"))
}

#[test]
fn vxlan_leases_are_as_recorded() {
    lab::test(Timing::Free, || are_as_recorded(VXLAN, EtcdSetup::http(), "vxlan"));
}

#[test]
fn host_gw_leases_are_as_recorded_over_tls() {
    lab::test(Timing::Free, || are_as_recorded(HOST_GW, EtcdSetup::tls(), "host-gw"));
}

#[test]
fn dual_vxlan_leases_are_as_recorded_over_mutual_tls_with_a_user() {
    lab::test(Timing::Free, || {
        are_as_recorded(VXLAN_DUAL, EtcdSetup::mutual_tls().with_auth(), "vxlan-dual");
    });
}

#[test]
fn dual_host_gw_leases_are_as_recorded_with_a_user() {
    lab::test(Timing::Free, || are_as_recorded(HOST_GW_DUAL, EtcdSetup::http().with_auth(), "host-gw-dual"));
}

/// flannel has no such network; the key is one that its parser would accept.
#[test]
fn an_ipv6_only_lease_has_a_zero_ipv4_subnet_in_its_key() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http(), VXLAN_IPV6);
        let (_daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let leases = lab.etcd().leases();
        assert_eq!(leases.len(), 3);
        for node in lab.nodes() {
            let key = format!("0.0.0.0-0&{}", node.subnet6().replace('/', "-"));
            assert!(leases[&key].value.contains(&format!("\"PublicIPv6\":\"{}\"", node.ip6)), "{leases:?}");
        }
    });
}

/// flannel's renewal puts the same value with another etcd lease; ours writes nothing at all.
#[test]
fn a_renewal_without_a_change_writes_to_no_kernel() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http(), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let etcd = lab.etcd();
        let (key, before) = of_node(etcd, &lab.node(2).ip.to_string());
        let path = format!("/coreos.com/network/subnets/{key}");
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        let monitors: Vec<_> = lab.nodes().iter().map(|node| Monitors::start(&node.ns)).collect();
        let asked: Vec<_> = lab.nodes().iter().map(cluster::ops_asked).collect();
        for _ in 0..10 {
            etcd.put(&path, &before.value);
        }
        // The lease is short enough to end within the test unless it is kept alive.
        let granted = etcd.ctl(&["lease", "grant", "6"]);
        let id = granted.split(' ').nth(1).unwrap();
        etcd.ctl(&["put", "--lease", id, &path, &before.value]);
        let (_, renewed) = of_node(etcd, &lab.node(2).ip.to_string());
        lab::holds_for("it stands and nobody does anything", Duration::from_secs(14), || {
            for monitor in &monitors {
                let ours = monitor.lines_about(&["flannel", "proto 84"]);
                assert!(ours.is_empty(), "{ours:?}");
            }
            etcd.leases().get(&key) == Some(&renewed)
        });
        assert_eq!(lab.nodes().iter().map(cluster::ops_asked).collect::<Vec<_>>(), asked);
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}

/// The lease ends while etcd is away and it cannot be renewed; then it comes back with the same subnet.
#[test]
fn a_lease_that_ends_while_etcd_is_away_is_reported() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http(), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let (etcd, node) = (lab.etcd(), lab.node(1));
        let (key, before) = of_node(etcd, &node.ip.to_string());
        let granted = etcd.ctl(&["lease", "grant", "8"]);
        let path = format!("/coreos.com/network/subnets/{key}");
        etcd.ctl(&["put", "--lease", granted.split(' ').nth(1).unwrap(), &path, &before.value]);
        lab::holds_for("it is kept alive", Duration::from_secs(9), || etcd.leases().contains_key(&key));
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        // etcd is killed, because a regular stop would give it time to end the lease.
        etcd.kill9();
        lab::wait_for("it is said", SOON * 2, || node.twill(&["status"]).contains("our lease has expired"));
        assert_eq!(node.get("/readyz").unwrap().status, 200, "the data plane stands");
        etcd.start();
        lab::wait_for("all is well", SOON * 2, || {
            let status = node.twill(&["status"]);
            !status.contains("our lease has expired")
                && !status.contains("lost")
                && of_node(etcd, &node.ip.to_string()).0 == key
        });
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}

/// The resolver puts the address of nobody first, since it has more leading bits in common with the node's.
#[test]
fn a_host_name_whose_first_address_is_dead_leads_to_the_next_one() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http(), VXLAN);
        let endpoint = lab.etcd().endpoint();
        let (_, live) = endpoint.split_once("://").unwrap();
        let (live, port) = live.rsplit_once(':').unwrap();
        let daemons: Vec<_> = lab
            .nodes()
            .iter()
            .map(|node| {
                let hosts = node.run_dir().join("hosts");
                std::fs::write(&hosts, format!("192.168.100.10 etcd\n{live} etcd\n")).unwrap();
                let line = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
                let endpoints = format!("--etcd-endpoints=http://etcd:{port}");
                node.start_under(
                    &["unshare", "--mount", "sh", "-c", &line, "sh"],
                    &["--iface=eth0", &endpoints],
                )
            })
            .collect();
        daemons.iter().for_each(lab::Daemon::wait_ready);
        cluster::reach_each_other(&lab.pods());
    });
}

/// Nothing listens at the first endpoint, as in flannel's own default list.
#[test]
fn a_dead_endpoint_is_skipped() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http(), VXLAN);
        let endpoints = format!("--etcd-endpoints=http://192.168.100.5:4001,{}", lab.etcd().endpoint());
        let flags = &["--iface=eth0", &endpoints];
        let _daemons = lab.start_all(flags);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        lab::holds_for("nothing is wrong", Duration::from_secs(4), || {
            !lab.node(1).twill(&["status"]).contains("lost")
        });
        assert!(lab.etcd().ttl(of_node(lab.etcd(), &lab.node(1).ip.to_string()).1.lease).is_some());
        lab::wait_for("the store answers", SOON, || {
            lab.node(1).get("/metrics").unwrap().body.contains("twill_store_lists_total")
        });
    });
}
