//! The steady state writes nothing, whether idle, probing, or under connections and expiring neighbours. It costs
//! next to nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::{Daemon, Monitors, Timing, Topology, Traffic};

use crate::cluster::{self, HOST_GW, VXLAN};

const SPAN: Duration = Duration::from_secs(30);
/// Window in which the number of wakeups shows whether the start is over.
const WINDOW: Duration = Duration::from_secs(2);
/// Maximum number of wakeups per second of a daemon that probes nobody, on average. A thread checks every 2 s for legacy
/// iptables, and a periodic pass wakes several.
const WAKEUPS_A_SECOND: u64 = 1;
/// Maximum number of wakeups per second of a daemon that probes one peer: probe, reply, at times three more.
const WAKEUPS_A_SECOND_ASKING: u64 = 4;

#[derive(Clone, Copy, PartialEq)]
enum Load {
    /// No peer is probed: `--probe=off`.
    Idle,
    /// The peer is probed, as by default.
    Asking,
    /// Same as `Asking`, with 500 new connections a second while the neighbours on the bridge expire.
    Connections,
}

fn is_running(daemon: &Daemon<'_>) -> bool {
    Path::new(&format!("/proc/{}", daemon.pid())).exists()
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
    // The start and the pods cause work that is not the steady state. On a busy machine it goes on for a while.
    let limit = if load == Load::Idle { WAKEUPS_A_SECOND } else { WAKEUPS_A_SECOND_ASKING };
    lab::wait_for("the start is over", SPAN, || {
        let before = daemons[0].wakeups();
        lab::holds_for("it runs", WINDOW, || is_running(&daemons[0]));
        daemons[0].wakeups().saturating_sub(before) < 2 * limit * WINDOW.as_secs()
    });
    let file = fs::metadata(node.run_dir().join("subnet.env")).unwrap();
    let monitors = Monitors::start(&node.ns);
    let asked = cluster::ops_asked(node);
    let (wakeups, cpu) = (daemons[0].wakeups(), daemons[0].cpu());
    let traffic = (load == Load::Connections).then(|| Traffic::start(&pods[0], &pods[1], 500, SPAN));
    // Traffic changes entries of cni0 and eth0, which are not ours; flannel's devices and routes must stay untouched. The test
    // asks the daemon nothing meanwhile, so that idle is idle.
    let (mut seconds, mut next) = (Vec::new(), Instant::now());
    lab::holds_for("the daemon runs", SPAN, || {
        if Instant::now() >= next {
            next += Duration::from_secs(1);
            seconds.push(daemons[0].wakeups().saturating_sub(wakeups));
        }
        is_running(&daemons[0])
    });
    let woken = daemons[0].wakeups().saturating_sub(wakeups);
    let cpu = daemons[0].cpu().saturating_sub(cpu);
    if let Some(traffic) = traffic {
        let report = traffic.finish();
        assert!(report.made > 500 * 20 && report.failed == 0, "{report:?}");
        assert!(!monitors.lines_about(&["cni0"]).is_empty(), "neighbours were to expire meanwhile");
    } else {
        println!("{woken} wakeups and {cpu:?} of CPU in {SPAN:?}");
        let most = limit * SPAN.as_secs();
        assert!(
            woken < most,
            "{woken} wakeups in {SPAN:?}, by the seconds {seconds:?}; {}",
            daemons[0].log()
        );
    }
    let ours = monitors.lines_about(&["flannel", "proto 84"]);
    assert!(ours.is_empty(), "{ours:?}");
    assert_eq!(cluster::ops_asked(node), asked);
    let now = fs::metadata(node.run_dir().join("subnet.env")).unwrap();
    assert_eq!((now.ino(), now.mtime(), now.mtime_nsec()), (file.ino(), file.mtime(), file.mtime_nsec()));
}

#[test]
fn vxlan_writes_nothing_while_idle_without_probes() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Idle));
}

#[test]
fn vxlan_writes_nothing_while_probing_one_peer() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Asking));
}

#[test]
fn vxlan_writes_nothing_under_new_connections() {
    lab::test(Timing::Free, || writes_nothing(VXLAN, Load::Connections));
}

#[test]
fn host_gw_writes_nothing_while_idle_without_probes() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Idle));
}

#[test]
fn host_gw_writes_nothing_while_probing_one_peer() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Asking));
}

#[test]
fn host_gw_writes_nothing_under_new_connections() {
    lab::test(Timing::Free, || writes_nothing(HOST_GW, Load::Connections));
}
