//! The steady state writes nothing: not when idle, and not while connections come and neighbours expire.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lab::{Monitors, Timing, Topology, Traffic};

use crate::cluster::{self, HOST_GW, VXLAN};

const SPAN: Duration = Duration::from_secs(30);
/// Of the idle daemon, in 30 s: design budget.
const CPU: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, PartialEq)]
enum Load {
    Idle,
    /// 500 new connections a second while the neighbours on the bridge expire.
    Connections,
}

fn writes_nothing(config: &str, load: Load) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (daemons, pods) = cluster::start(&lab);
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
        assert!(cpu < CPU, "{cpu:?} of CPU in {SPAN:?}");
    }
    let ours = monitors.lines_about(&["flannel", "proto 84"]);
    assert!(ours.is_empty(), "{ours:?}");
    assert_eq!(cluster::ops_asked(node), asked);
    let now = fs::metadata(node.run_dir().join("subnet.env")).unwrap();
    assert_eq!((now.ino(), now.mtime(), now.mtime_nsec()), (file.ino(), file.mtime(), file.mtime_nsec()));
}

#[test]
fn vxlan_idle() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Idle));
}

#[test]
fn vxlan_under_new_connections() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Connections));
}

#[test]
fn host_gw_idle() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Idle));
}

#[test]
fn host_gw_under_new_connections() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Connections));
}
