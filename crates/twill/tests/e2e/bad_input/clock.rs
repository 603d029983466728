//! Clocks that jump: of two overlapping leases the one whose node answers is used, whatever the times of their files.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use lab::{Lab, PingStream, Timing, Topology, View};

use crate::cluster::{self, SOON, VXLAN, lease_name};

const YEAR: i64 = 365 * 86400;

/// Sets the time of a lease's file to that many years after 1970, or before it.
fn set_year(lab: &Lab, lease: &str, years: i64) {
    let path: PathBuf = lab.store.path().join("subnets").join(lease);
    let span = Duration::from_secs((years * YEAR).unsigned_abs());
    let time = if years < 0 { UNIX_EPOCH - span } else { UNIX_EPOCH + span };
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn file_times_from_1910_to_2600_never_change_the_lease_in_use() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let (node, peer) = (lab.node(1), lab.node(2));
        let (good, bad) = (lease_name(&peer.subnet()), lease_name(&peer.subnet().replace("/24", "/25")));
        let lease = r#"{"PublicIP":"192.168.100.66","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:66:66"}}"#;
        lab.store.put_lease(&bad, lease);
        let said =
            |what: &str| node.twill(&["status"]).contains(&format!("peer {what}: its subnet overlaps"));
        let bad_subnet = bad.replace('-', "/");
        lab::wait_for("the younger one is left out", SOON, || said(&bad_subnet));
        let before = View::of(&node.ns);
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab::wait_for("the pings run", SOON, || ping.received() > 5);
        // All files have one time first, then the good lease looks like the younger one.
        for (good_year, bad_year) in [(0, 0), (100, 100), (129, 0), (190, -60)] {
            lab.store.leases().keys().for_each(|name| set_year(&lab, name, good_year));
            set_year(&lab, &bad, bad_year);
            // Once this lease is reported, everything before it was read, too.
            let marker = format!("10.244.{}.7", good_year + bad_year.abs());
            lab.store.put_lease(&format!("{marker}-24"), lease);
            lab::wait_for("the lease is read", SOON, || {
                node.twill(&["status"]).contains(&format!("{marker}-24"))
            });
            assert!(said(&bad_subnet));
            assert_eq!(before.diff(&View::of(&node.ns)), "");
        }
        // After a restart the good lease stays as well, whatever the years of the files.
        for (good_year, bad_year) in [(-60, -59), (-1, 0), (0, 1), (129, 630)] {
            set_year(&lab, &good, good_year);
            set_year(&lab, &bad, bad_year);
            daemons[0].kill9();
            daemons[0].restart();
            daemons[0].wait_ready();
            lab::wait_for("the younger one is left out", SOON, || said(&bad_subnet));
            assert_eq!(before.diff(&View::of(&node.ns)), "", "{good_year} before {bad_year}");
        }
        let report = ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}
