//! A daemon that may not change the network ends at once. It names the missing capability and how to grant it.

use lab::{Timing, Topology, View};

use crate::cluster::{self, FLAGS, VXLAN};

#[test]
fn without_the_capability_the_daemon_ends_and_names_it() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        for under in [
            &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"][..],
            // It has the capability, but in a user namespace that does not own the network.
            &["unshare", "--user", "--map-root-user"],
        ] {
            let mut daemon = node.start_under(under, FLAGS);
            assert_eq!(daemon.wait_exit().code(), Some(1), "{}", daemon.log());
            let log = daemon.log();
            let last = log.lines().last().unwrap();
            assert!(
                last.starts_with("twill: change the network of this node: Operation not permitted")
                    && last.contains("CAP_NET_ADMIN is needed: run as root")
                    && last.contains("AmbientCapabilities=CAP_NET_ADMIN")
                    && last.contains("capabilities.add NET_ADMIN"),
                "{log}"
            );
            assert!(!log.contains(" WARN "), "one line is enough: {log}");
        }
        assert!(lab.store.leases().is_empty() && node.subnet_env().is_none());
        assert_eq!(before.diff(&View::of(&node.ns)), "");
    });
}

#[test]
fn the_net_admin_capability_alone_is_enough() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let under = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"];
        let daemons = [1, 2].map(|k| lab.node(k).start_under(&under, FLAGS));
        daemons.iter().for_each(lab::Daemon::wait_ready);
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemons[0].pid())).unwrap();
        assert!(status.contains("CapEff:\t0000000000001000\n"), "{status}");
        cluster::reach_each_other(&lab.pods());
    });
}
