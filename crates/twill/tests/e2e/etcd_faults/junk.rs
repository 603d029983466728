//! Data that one compromised node may put below `subnets/`: megabytes, tens of thousands of keys, leases that no node has. No
//! start fails, no node loses its subnet, and memory stays bounded.

use std::time::Duration;

use lab::{EtcdSetup, Lab, Node, Timing};

use super::{SUBNETS, Vigil, additions, lab, named, start};
use crate::cluster::{self, FLAGS, SOON, lease_name};

/// Maximum resident memory of a debug build, in bytes.
const MEMORY: u64 = 60 << 20;
const JUNK: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"host-gw"}"#;

fn keys(names: impl Iterator<Item = String>) -> Vec<(String, String)> {
    names.map(|name| (format!("{SUBNETS}{name}"), JUNK.to_owned())).collect()
}

/// Asserts that both nodes see each other's pods, whatever stands beside their leases.
fn a_start_succeeds(lab: &Lab, says: &str) {
    let (daemons, _pods) = start(lab);
    named(lab.nodes(), says);
    for daemon in &daemons {
        assert!(daemon.rss() < MEMORY, "{} MB", daemon.rss() >> 20);
    }
}

#[test]
fn sixty_megabytes_of_junk_do_not_prevent_a_start() {
    lab::test(Timing::Timed, || {
        let lab = lab(2, EtcdSetup::http());
        let large = "x".repeat(1_400_000);
        for n in 0..45 {
            lab.etcd().put_all(&[(format!("{SUBNETS}junk-{n:02}"), large.clone())]);
        }
        a_start_succeeds(&lab, "store entry \"junk-07\"");
    });
}

#[test]
fn forty_thousand_junk_keys_keep_memory_bounded() {
    lab::test(Timing::Timed, || {
        let lab = lab(2, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let vigil = Vigil::begin(&lab, &pods);
        lab.etcd().put_all(&keys((0..20_000).map(|n| format!("10.244.{}.{}-32", n / 250, n % 250))));
        lab.etcd().put_all(&keys((0..20_000).map(|n| format!("nobody-{n}"))));
        named(lab.nodes(), "more entries, or somewhat over");
        for daemon in &daemons {
            assert!(daemon.rss() < MEMORY, "{} MB", daemon.rss() >> 20);
        }
        daemons[0].kill9();
        daemons[0] = lab.node(1).start(FLAGS);
        daemons[0].wait_ready();
        lab::wait_for("it has its peer", SOON, || {
            lab.node(1).ns.run("ip route show proto 84").lines().count() == 1
        });
        assert!(daemons[0].rss() < MEMORY, "{} MB", daemons[0].rss() >> 20);
        vigil.end(&mut daemons, additions);
    });
}

/// Leases of the whole network, of larger ones and of halves are older than all others, and hinder nobody.
#[test]
fn a_lease_of_the_whole_network_leaves_each_node_a_subnet() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let planted = ["10.244.0.0-16", "10.0.0.0-8", "10.244.0.0-17", "10.244.128.0-17"];
        lab.etcd().put_all(&keys(planted.into_iter().map(str::to_owned)));
        let (mut daemons, pods) = start(&lab);
        named(lab.nodes(), "store entry \"10.244.0.0-16\": no SubnetLen gives a subnet of that length");
        // A lease that comes later takes nothing from running nodes.
        let vigil = Vigil::begin(&lab, &pods);
        lab.etcd().delete(&format!("{SUBNETS}10.244.0.0-16"));
        lab.etcd().put(&format!("{SUBNETS}10.244.0.0-16"), JUNK);
        lab::holds_for("all are ready", Duration::from_secs(3), || {
            lab.nodes().iter().all(|node| node.get("/readyz").is_some_and(|reply| reply.status == 200))
        });
        vigil.end(&mut daemons, |_| false);
    });
}

/// While nodes change to another `SubnetLen`, nodes with the old one are peers.
#[test]
fn a_peer_of_another_subnet_len_is_reached() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http());
        let mut daemons = vec![lab.node(1).start(FLAGS)];
        daemons[0].wait_ready();
        let longer = cluster::VXLAN.replace("\"Backend\"", "\"SubnetLen\":26,\"Backend\"");
        lab.store.config(&longer);
        daemons.push(lab.node(2).start(FLAGS));
        daemons[1].wait_ready();
        let subnets = lab.nodes().iter().map(Node::subnet).collect::<Vec<_>>();
        assert!(subnets[0].ends_with("/24") && subnets[1].ends_with("/26"), "{subnets:?}");
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let leases = lab.store.leases();
        assert!(subnets.iter().all(|subnet| leases.contains_key(&lease_name(subnet))), "{leases:?}");
    });
}
