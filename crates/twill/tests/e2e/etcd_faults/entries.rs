//! Foreign changes of single keys: garbage beside or in place of our leases, and deleted, taken or reserved leases.

use std::time::Duration;

use lab::{EtcdSetup, Timing};

use super::{NAMED, SUBNETS, Vigil, additions, calm, lab, named, nothing, says, start};
use crate::cluster::{FLAGS, SOON, lease_name};

/// Maximum time until a lost lease is back.
const BACK: Duration = Duration::from_secs(2);

#[test]
fn garbage_beside_the_leases_is_named_and_does_no_harm() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let etcd = lab.etcd();
        let vigil = Vigil::begin(&lab, &pods);
        let large = "x".repeat(100_000);
        let malformed = [
            ("not-a-key", "{}"),
            ("10.244.250.0-24", r#"{"PublicIP":"192.168.100.2"#),
            ("10.244.251.0-24", large.as_str()),
            ("10.244.252.0-24/deeper", "{}"),
        ];
        let foreign = ["/coreos.com/networks", "/coreos.com/network/foreign", "/coreos.com/network/subnetsX"];
        malformed.iter().for_each(|(key, value)| etcd.put(&format!("{SUBNETS}{key}"), value));
        foreign.iter().for_each(|key| etcd.put(key, "{half"));
        for (key, _) in malformed {
            named(lab.nodes(), &format!("store entry {key:?}"));
        }
        assert!(!foreign.iter().any(|key| says(lab.nodes(), key.rsplit('/').next().unwrap())));
        malformed.iter().for_each(|(key, _)| etcd.delete(&format!("{SUBNETS}{key}")));
        calm(lab.nodes());
        vigil.end(&mut daemons, nothing);
    });
}

#[test]
fn garbage_in_place_of_a_lease_is_overwritten() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let leases = lab.store.leases();
        let vigil = Vigil::begin(&lab, &pods[1..]);
        for nonsense in ["{half a lease", "", r#"{"PublicIP":"nonsense"}"#] {
            lab.store.put_lease(&lease_name(&lab.node(3).subnet()), nonsense);
            lab::wait_for("node 3 writes it again", BACK, || lab.store.leases() == leases);
        }
        calm(lab.nodes());
        vigil.end(&mut daemons, nothing);
    });
}

#[test]
fn a_deleted_lease_is_acquired_again_at_once() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let (etcd, leases) = (lab.etcd(), lab.store.leases());
        let vigil = Vigil::begin(&lab, &pods);
        let own = lease_name(&lab.node(2).subnet());
        for _ in 0..3 {
            etcd.delete(&format!("{SUBNETS}{own}"));
            lab::wait_for("it is back, as it was", BACK, || lab.store.leases() == leases);
            assert!(etcd.ttl(etcd.leases()[&own].lease).is_some(), "it ends when the node does");
        }
        // A revoked etcd lease takes the key with it, as an expired one does.
        etcd.ctl(&["lease", "revoke", &format!("{:x}", etcd.leases()[&own].lease)]);
        lab::wait_for("it is back, as it was", BACK, || lab.store.leases() == leases);
        calm(lab.nodes());
        vigil.end(&mut daemons, nothing);
    });
}

/// The conflict is reported and not fought over, since both nodes may have pods in the subnet.
#[test]
fn a_lease_that_another_node_has_taken_is_reported() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let (etcd, node) = (lab.etcd(), &lab.nodes()[2]);
        let own = lease_name(&node.subnet());
        let theirs = etcd.leases()[&own].value.replace(&node.ip.to_string(), "192.168.100.99");
        let vigil = Vigil::begin(&lab, &pods);
        // The lease is deleted and taken before the suspended daemon can react.
        daemons[2].pause();
        etcd.delete(&format!("{SUBNETS}{own}"));
        lab.store.put_lease(&own, &theirs);
        let taken = etcd.leases();
        daemons[2].resume();
        named(std::slice::from_ref(node), "192.168.100.99 holds our lease");
        lab::holds_for("it stays theirs", NAMED, || etcd.leases() == taken);
        etcd.delete(&format!("{SUBNETS}{own}"));
        lab::wait_for("it is node 3's again", SOON, || {
            etcd.leases().get(&own).is_some_and(|entry| entry.value.contains(&node.ip.to_string()))
        });
        calm(lab.nodes());
        // Nodes 2 and 3 followed the lease.
        let subnet = node.subnet().replace(".0/24", ".");
        vigil.end(&mut daemons, |line| {
            line.contains(&subnet) || additions(line) || line.contains("192.168.100.")
        });
    });
}

/// A key without an etcd lease, as an operator writes it, belongs to the node for ever.
#[test]
fn a_reservation_is_used_and_stays_one() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http());
        let (etcd, node) = (lab.etcd(), lab.node(1));
        lab.store.put_lease("10.244.77.0-24", &format!(r#"{{"PublicIP":"{}"}}"#, node.ip));
        let (mut daemons, _pods) = start(&lab);
        assert_eq!(node.subnet(), "10.244.77.0/24");
        let reserved = |value: &str| value.contains("VtepMAC") && value.contains(&node.ip.to_string());
        let entry = etcd.leases()["10.244.77.0-24"].clone();
        assert!(entry.lease == 0 && reserved(&entry.value), "{entry:?}");
        for _ in 0..2 {
            daemons[0].kill9();
            daemons[0] = node.start(FLAGS);
            daemons[0].wait_ready();
            assert_eq!(etcd.leases()["10.244.77.0-24"], entry);
        }
        // A lost reservation becomes an ordinary lease, and the subnet stays.
        etcd.delete(&format!("{SUBNETS}10.244.77.0-24"));
        lab::wait_for("it is back", BACK, || etcd.leases().contains_key("10.244.77.0-24"));
        calm(lab.nodes());
    });
}
