//! An etcd that rejects the daemons, whose certificate has expired, or that is full; and the config's type alloc.

use std::time::Duration;

use lab::{EtcdSetup, Timing};

use super::{NAMED, SUBNETS, Vigil, calm, lab, named, nothing, start};
use crate::cluster::{self, FLAGS, SOON, lease_name};

#[test]
fn a_daemon_with_a_wrong_password_waits_and_reports_it() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http().with_auth());
        let (etcd, node) = (lab.etcd(), lab.node(1));
        set_password(etcd, "another");
        let mut daemon = node.start(cluster::FLAGS);
        lab::wait_for("status says so", NAMED, || {
            let out = node.twill_output(&["status"]);
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            said.contains("Correct --etcd-username and --etcd-password")
        });
        assert_eq!(node.get("/readyz").unwrap().status, 503);
        assert!(daemon.is_alive() && etcd.leases().is_empty());
        assert!(!daemon.log().contains("another") && !daemon.log().contains("secret"), "{}", daemon.log());
        set_password(etcd, "secret");
        lab::wait_for("it goes on by itself", SOON, || etcd.leases().len() == 1);
        daemon.wait_ready();
    });
}

#[test]
fn a_changed_password_is_reported_and_the_network_stands() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http().with_auth());
        let (mut daemons, pods) = start(&lab);
        let (etcd, leases) = (lab.etcd(), lab.store.leases());
        let vigil = Vigil::begin(&lab, &pods);
        set_password(etcd, "another");
        etcd.stop();
        etcd.start();
        named(lab.nodes(), "Correct --etcd-username and --etcd-password");
        set_password(etcd, "secret");
        calm(lab.nodes());
        assert_eq!(lab.store.leases(), leases);
        vigil.end(&mut daemons, nothing);
    });
}

#[test]
fn an_expired_certificate_is_reported_and_the_network_stands() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::tls());
        let (mut daemons, pods) = start(&lab);
        let (etcd, leases) = (lab.etcd(), lab.store.leases());
        let vigil = Vigil::begin(&lab, &pods);
        etcd.expire_certificate();
        etcd.stop();
        etcd.start();
        named(lab.nodes(), "expired");
        etcd.renew_certificate();
        etcd.stop();
        etcd.start();
        calm(lab.nodes());
        assert_eq!(lab.store.leases(), leases);
        vigil.end(&mut daemons, nothing);
    });
}

/// The rights of docs/reference/etcd.md, without writing the network config, are enough for the whole life of a daemon.
#[test]
fn the_documented_rights_are_enough_for_a_daemons_whole_life() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http().with_auth());
        let (mut daemons, pods) = start(&lab);
        let (etcd, leases) = (lab.etcd(), lab.etcd().leases());
        let denied = etcd.try_ctl_as_daemon(&["put", "/coreos.com/network/config", "{}"]).unwrap_err();
        assert!(denied.contains("permission denied"), "{denied}");
        let vigil = Vigil::begin(&lab, &pods);
        // The lease is renewed, though it is granted for a short time only.
        let own = lease_name(&lab.node(2).subnet());
        let key = format!("{SUBNETS}{own}");
        let granted = etcd.ctl(&["lease", "grant", "6"]);
        etcd.ctl(&["put", "--lease", granted.split(' ').nth(1).unwrap(), &key, &leases[&own].value]);
        lab::holds_for("it is renewed", Duration::from_secs(10), || etcd.leases().contains_key(&own));
        // A lost lease is taken again.
        etcd.delete(&key);
        lab::wait_for("it is back", SOON, || lab.store.leases().contains_key(&own));
        assert!(etcd.ttl(etcd.leases()[&own].lease).is_some());
        // A changed config is followed.
        lab.store.config(&cluster::VXLAN.replace("\"Type\"", "\"MTU\":1400,\"Type\""));
        lab::wait_for("it is followed", SOON, || {
            lab.node(1).ns.run("ip link show flannel.1").contains("mtu 1350")
        });
        calm(lab.nodes());
        vigil.end(&mut daemons, |_| true);
        daemons[0].kill9();
        daemons[0].restart();
        daemons[0].wait_ready();
    });
}

/// A single put of alloc would cut all pods off, while every node stays ready.
#[test]
fn a_change_to_or_from_alloc_is_refused_while_there_are_peers() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let vigil = Vigil::begin(&lab, &pods);
        let alloc = cluster::VXLAN.replace("vxlan", "alloc");
        lab.store.config(&alloc);
        named(lab.nodes(), "another Backend Type from or to alloc, which cannot change under running pods");
        // The loss of all leases at once does not prove that there are no peers.
        lab.etcd().ctl(&["del", "--prefix", SUBNETS]);
        lab::holds_for("all stays as it is", Duration::from_secs(4), || {
            lab.nodes().iter().all(|node| node.ns.run("ip route show proto 84").lines().count() == 2)
        });
        lab.store.config(cluster::VXLAN);
        calm(lab.nodes());
        vigil.end(&mut daemons, nothing);
        // The change from alloc to vxlan is refused as well.
        daemons.iter_mut().for_each(lab::Daemon::kill9);
        lab.store.config(&alloc);
        daemons.iter_mut().for_each(lab::Daemon::restart);
        daemons.iter().for_each(lab::Daemon::wait_ready);
        lab.store.config(cluster::VXLAN);
        named(lab.nodes(), "from or to alloc");
    });
}

/// The change is allowed where nobody loses anything by it.
#[test]
fn a_single_node_may_change_to_alloc_and_back() {
    lab::test(Timing::Free, || {
        let lab = lab(1, EtcdSetup::http());
        let node = lab.node(1);
        let daemon = node.start(FLAGS);
        daemon.wait_ready();
        for (config, backend) in
            [(cluster::VXLAN.replace("vxlan", "alloc"), "alloc"), (cluster::VXLAN.into(), "vxlan")]
        {
            lab.store.config(&config);
            lab::wait_for("it is followed", SOON, || {
                let status = node.twill(&["status"]);
                status.contains(backend) && !status.contains("from or to alloc")
            });
        }
    });
}

/// etcd accepts no write, and everything that exists goes on.
#[test]
fn a_full_etcd_is_reported_and_the_network_stands() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let etcd = lab.etcd();
        let vigil = Vigil::begin(&lab, &pods);
        etcd.ctl(&["put", "/quota", "x"]);
        etcd.stop();
        etcd.start_with(&["--quota-backend-bytes=1"]);
        let full = etcd.try_ctl(&["put", "/quota", "y"]).unwrap_err();
        assert!(full.contains("database space exceeded"), "{full}");
        etcd.delete(&format!("{SUBNETS}{}", lease_name(&lab.node(1).subnet())));
        named(&lab.nodes()[..1], "etcd is full: compact and defragment it");
        etcd.stop();
        etcd.start();
        etcd.ctl(&["alarm", "disarm"]);
        lab::wait_for("both leases stand", SOON, || lab.store.leases().len() == 2);
        calm(lab.nodes());
        let own = lab.node(1).ip.to_string();
        vigil.end(&mut daemons, |line| {
            line.contains(&own) || line.contains(&lab.node(1).subnet().replace(".0/24", "."))
        });
    });
}

/// Recreates the daemon's user, since etcdctl asks at a terminal for a changed password.
fn set_password(etcd: &lab::Etcd, password: &str) {
    etcd.ctl(&["user", "delete", "flannel"]);
    etcd.ctl(&["user", "add", &format!("flannel:{password}")]);
    etcd.ctl(&["user", "grant-role", "flannel", "network"]);
}
