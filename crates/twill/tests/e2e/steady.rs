//! The steady state writes nothing: not when idle, not while peers are asked, and not while connections come and neighbours
//! expire. It costs next to nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lab::{Monitors, Timing, Topology, Traffic};

use crate::cluster::{self, HOST_GW, VXLAN};

const SPAN: Duration = Duration::from_secs(30);
/// Of the idle daemon that asks nobody, in [`SPAN`]: design budget.
const CPU: Duration = Duration::from_millis(10);
/// Of one that asks its one peer every second, 0.2 % of a processor; a debug build.
const CPU_ASKING: Duration = Duration::from_millis(60);

#[derive(Clone, Copy, PartialEq)]
enum Load {
    /// `--probe=off`.
    Idle,
    /// The peer is asked as by default.
    Asking,
    /// The same, and 500 new connections a second while the neighbours on the bridge expire.
    Connections,
}

fn writes_nothing(config: &str, load: Load) {
    let lab = cluster::lab(Topology::flat(2), config);
    let flags: &[&str] = if load == Load::Idle { &["--probe=off"] } else { &[] };
    let (daemons, pods) = cluster::start_with(&lab, flags);
    let node = lab.node(1);
    node.ns.sysctl(&[
        ("net.ipv4.neigh.cni0.base_reachable_time_ms", "500"),
        ("net.ipv4.neigh.cni0.gc_stale_time", "1"),
        ("net.ipv4.neigh.eth0.base_reachable_time_ms", "500"),
    ]);
    let file = fs::metadata(node.run_dir().join("subnet.env")).unwrap();
    let monitors = Monitors::start(&node.ns);
    let (cpu, asked) = (daemons[0].cpu(), cluster::ops_asked(node));
    let traffic = (load == Load::Connections).then(|| Traffic::start(&pods[0], &pods[1], 500, SPAN));
    // Traffic moves entries of cni0 and eth0, which are not ours; flannel's devices and routes must stay untouched.
    // Nothing looks meanwhile, so that idle is idle.
    lab::holds_for("the daemon runs", SPAN, || {
        std::path::Path::new(&format!("/proc/{}", daemons[0].pid())).exists()
    });
    let cpu = daemons[0].cpu() - cpu;
    if let Some(traffic) = traffic {
        let report = traffic.finish();
        assert!(report.made > 500 * 20 && report.failed == 0, "{report:?}");
        assert!(!monitors.lines_about(&["cni0"]).is_empty(), "neighbours were to expire meanwhile");
    } else {
        println!("{cpu:?} of CPU in {SPAN:?}");
        let limit = if load == Load::Asking { CPU_ASKING } else { CPU };
        assert!(cpu < limit, "{cpu:?} of CPU in {SPAN:?}");
    }
    let ours = monitors.lines_about(&["flannel", "proto 84"]);
    assert!(ours.is_empty(), "{ours:?}");
    assert_eq!(cluster::ops_asked(node), asked);
    let now = fs::metadata(node.run_dir().join("subnet.env")).unwrap();
    assert_eq!((now.ino(), now.mtime(), now.mtime_nsec()), (file.ino(), file.mtime(), file.mtime_nsec()));
}

#[test]
fn vxlan_idle_without_probes() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Idle));
}

#[test]
fn vxlan_idle_but_for_asking_one_peer() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Asking));
}

#[test]
fn vxlan_under_new_connections() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Connections));
}

#[test]
fn host_gw_idle_without_probes() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Idle));
}

#[test]
fn host_gw_idle_but_for_asking_one_peer() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Asking));
}

#[test]
fn host_gw_under_new_connections() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Connections));
}
