//! An etcd that does not let the daemons in any more, or whose certificate is over.

use lab::{EtcdSetup, Timing};

use super::{NAMED, Vigil, calm, lab, named, nothing, start};
use crate::cluster::{self, SOON};

#[test]
fn a_daemon_with_a_wrong_password_waits_and_says_so() {
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
fn a_password_that_is_changed_is_named_and_the_network_stands() {
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
fn an_expired_certificate_is_named_and_the_network_stands() {
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

/// The daemon's user is made anew, since etcdctl asks at a terminal for another password.
fn set_password(etcd: &lab::Etcd, password: &str) {
    etcd.ctl(&["user", "delete", "flannel"]);
    etcd.ctl(&["user", "add", &format!("flannel:{password}")]);
    etcd.ctl(&["user", "grant-role", "flannel", "network"]);
}
