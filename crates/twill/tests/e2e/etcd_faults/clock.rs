//! A node's clock that jumps: the daemon measures durations and does not read the time of day.

use std::fs;

use lab::{EtcdSetup, Timing};

use super::{Vigil, calm, lab, nothing};
use crate::cluster::{self, FLAGS, SOON};

const LIBRARY: &str = "/usr/lib/*/faketime/libfaketimeMT.so.1";

#[test]
fn a_clock_that_jumps_two_days_changes_nothing() {
    lab::test(Timing::Free, || {
        let lab = lab(2, EtcdSetup::http());
        let (node, etcd) = (lab.node(1), lab.etcd());
        let offset = node.run_dir().join("offset");
        let set = |text: &str| fs::write(&offset, text).unwrap();
        set("+0");
        let library = node.ns.run(&format!("ls {LIBRARY}"));
        let [preload, file] = [
            format!("LD_PRELOAD={}", library.trim()),
            format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
        ];
        // libfaketime keeps a semaphore in /dev/shm if it can. Programs that the daemon starts may not open it, because a daemon
        // writes only in its own directories. Without the semaphore every process reads the file. The mount is the lab's own.
        node.ns.run("mount -o remount,ro /dev/shm");
        // Only the wall clock changes, as when an administrator sets it.
        let under = ["env", &preload, &file, "FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"];
        let mut daemons = vec![node.start_under(&under, FLAGS), lab.node(2).start(FLAGS)];
        daemons.iter().for_each(lab::Daemon::wait_ready);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let leases = etcd.leases();
        let vigil = Vigil::begin(&lab, &pods);
        let day = |days: i64| node.ns.run(&format!("date -u -d '{days} days' +%F")).trim().to_owned();
        for (jump, days) in [("+2d", 2), ("+0", 0), ("-2d", -2), ("+0", 0)] {
            set(jump);
            let lines = daemons[0].log().lines().count();
            lab::wait_for("the daemon lives in another time", SOON, || {
                node.ns.run(&format!("kill -HUP {}", daemons[0].pid()));
                let log = daemons[0].log();
                log.lines().skip(lines).any(|line| line.starts_with(&day(days)))
            });
            etcd.stop();
            etcd.start();
            calm(lab.nodes());
        }
        assert_eq!(etcd.leases(), leases);
        for entry in leases.values() {
            let ttl = etcd.ttl(entry.lease).unwrap();
            assert!(ttl.granted == 86400 && ttl.remaining > 86000, "{ttl:?}");
        }
        vigil.end(&mut daemons, nothing);
    });
}
