//! A subnet file that cannot be written stays whole, and the network goes on. The node says why it is not ready, and goes on by
//! itself once there is room.

use std::fs;
use std::time::Duration;

use lab::{Daemon, Disk, Lab, Node, PingStream, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON, VXLAN};

const MTU_1400: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#;
/// Time longer than the interval at which the daemon tries again.
const A_WHILE: Duration = Duration::from_secs(3);

fn text(node: &Node) -> String {
    fs::read_to_string(node.run_dir().join("subnet.env")).unwrap()
}

fn is_said(node: &Node, why: &str) -> bool {
    let said = format!("not ready: /run/flannel/subnet.env cannot be written: {why}");
    node.get("/readyz").is_some_and(|reply| reply.status == 503 && reply.body.starts_with(&said))
}

fn times_said(daemon: &Daemon<'_>) -> usize {
    daemon.log().lines().filter(|line| line.contains("subnet.env cannot be written")).count()
}

/// Makes the file change while it cannot be written; `mend` makes it writable again.
fn stays_whole_while_it_cannot_be_written(
    lab: &Lab,
    why: &str,
    change: impl FnOnce(&Daemon<'_>),
    mend: impl FnOnce(&Daemon<'_>),
) {
    let (daemons, pods) = cluster::start(lab);
    let (node, daemon) = (lab.node(1), &daemons[0]);
    let before = text(node);
    assert!(before.contains("FLANNEL_MTU=1450\n"), "{before}");
    let ping = PingStream::start(&pods[0].ns, pods[1].ip());
    lab::wait_for("the pings run", SOON, || ping.received() > 5);
    change(daemon);
    lab.store.config(MTU_1400);
    lab::wait_for("it is said", SOON, || is_said(node, why));
    assert!(node.ns.run("ip link show flannel.1").contains("mtu 1350 "), "the network follows all the same");
    lab::holds_for("it stays whole", A_WHILE, || text(node) == before && is_said(node, why));
    assert_eq!(times_said(daemon), 1, "{}", daemon.log());
    mend(daemon);
    daemon.wait_ready();
    assert_eq!(text(node), before.replace("1450", "1350"));
    let report = ping.stop();
    assert_eq!(report.lost, 0, "{report:?}");
}

#[test]
fn a_file_on_a_full_disk_stays_whole() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let disk = Disk::mount(lab.node(1).run_dir());
        let why = "No space left on device";
        stays_whole_while_it_cannot_be_written(&lab, why, |_| disk.fill(), |_| disk.free());
    });
}

#[test]
fn a_file_in_a_directory_that_became_read_only_stays_whole() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        // The read-only mount is a second one on top, since the daemon's lock file keeps the first one writable.
        let read_only = "mount --bind /run/flannel /run/flannel && mount -o remount,bind,ro /run/flannel";
        stays_whole_while_it_cannot_be_written(
            &lab,
            "Read-only file system",
            |daemon| daemon.run_in_its_mounts(read_only),
            |daemon| daemon.run_in_its_mounts("umount /run/flannel"),
        );
    });
}

/// The network comes up, and the file of the last run stays as it was; its pods keep their subnet.
#[test]
fn an_old_file_stays_whole_if_the_disk_is_full_at_the_start() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let disk = Disk::mount(node.run_dir());
        let old = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.77.1/24\nFLANNEL_MTU=9000\nFLANNEL_IPMASQ=false\n";
        fs::write(node.run_dir().join("subnet.env"), old).unwrap();
        disk.fill();
        let daemon = node.start(FLAGS);
        lab::wait_for("it is said", SOON, || is_said(node, "No space left on device"));
        assert!(node.ns.run("ip addr show flannel.1").contains("inet 10.244.77.0/32 "), "the network is up");
        lab::holds_for("it stays whole", A_WHILE, || text(node) == old);
        assert_eq!(times_said(&daemon), 1, "{}", daemon.log());
        disk.free();
        daemon.wait_ready();
        assert_eq!(text(node), old.replace("9000", "1450"));
    });
}

#[test]
fn a_read_only_directory_ends_the_start_with_the_remedy() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let line = r#"mount -o remount,bind,ro /run/flannel && exec "$@""#;
        let mut daemon = node.start_under(&["sh", "-c", line, "sh"], FLAGS);
        assert_eq!(daemon.wait_exit().code(), Some(1), "{}", daemon.log());
        let expected = "twill: creating /run/flannel/.subnet.env.lock, name a writable place with --subnet-file: \
                        Read-only file system (os error 30); it is mounted read-only: mount it writable, or name another place";
        assert_eq!(daemon.log().lines().last(), Some(expected));
        assert!(lab.store.leases().is_empty());
    });
}
