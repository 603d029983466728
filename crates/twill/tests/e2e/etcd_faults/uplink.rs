//! The uplink's address changes while the store is etcd. The daemon connects again from the new address and rewrites the lease;
//! pods talk again in less than two seconds.

use std::time::Duration;

use lab::{EtcdSetup, PingStream, Timing};

use super::{calm, lab, start};
use crate::cluster::SOON;

const LIMIT: Duration = Duration::from_secs(2);

/// Changes the first node's address with a shell line, and asserts that its pods were not cut off for [`LIMIT`].
fn moves(setup: EtcdSetup, change: &str, to: &str) {
    let lab = lab(2, setup);
    let (mut daemons, pods) = start(&lab);
    let (node, subnet) = (lab.node(1), lab.node(1).subnet());
    let pings = [(0, 1), (1, 0)].map(|(from, to)| PingStream::start(&pods[from].ns, pods[to].ip()));
    lab::wait_for("the pods talk", SOON, || pings.iter().all(|ping| ping.received() > 5));
    node.ns.run(change);
    lab::wait_for("the lease says so", SOON, || {
        lab.store.leases().values().any(|lease| lease.contains(&format!("\"{to}\"")))
    });
    let seen = pings.each_ref().map(PingStream::received);
    lab::wait_for("the pods talk again", SOON, || {
        pings.iter().zip(seen).all(|(ping, seen)| ping.received() > seen + 5)
    });
    let gaps = pings.map(|ping| ping.stop().longest_gap);
    assert!(gaps.iter().all(|gap| *gap < LIMIT), "{gaps:?}");
    assert_eq!((node.subnet(), lab.store.leases().len()), (subnet, 2));
    calm(lab.nodes());
    assert!(daemons.iter_mut().all(lab::Daemon::is_alive));
}

#[test]
fn a_new_address_is_announced_at_once() {
    lab::test(Timing::Timed, || {
        moves(
            EtcdSetup::http(),
            "ip address del 192.168.100.11/24 dev eth0; ip address add 192.168.100.51/24 dev eth0",
            "192.168.100.51",
        );
    });
}

#[test]
fn a_new_address_is_announced_at_once_over_tls_with_a_user() {
    lab::test(Timing::Timed, || {
        moves(
            EtcdSetup::mutual_tls().with_auth(),
            "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1; ip address add 192.168.100.52/24 dev eth0; ip address del 192.168.100.11/24 dev eth0",
            "192.168.100.52",
        );
    });
}

/// The new address comes after a moment without one, as from a DHCP server.
#[test]
fn an_address_that_comes_later_is_announced_at_once() {
    lab::test(Timing::Timed, || {
        moves(
            EtcdSetup::http(),
            "ip address del 192.168.100.11/24 dev eth0; sleep 0.4; ip address add 192.168.100.53/24 dev eth0",
            "192.168.100.53",
        );
    });
}
