//! Faults of the lease directory: missing, not a directory, unreadable, full, or restored from an old copy. The network stays,
//! the message names the path, and everything goes on by itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use lab::{Daemon, Disk, Lab, PingStream, Pod, Timing, Topology, View};

use crate::cluster::{self, FLAGS, SOON, VXLAN, lease_name};

/// Time longer than the interval at which the directory is tried again.
const A_WHILE: Duration = Duration::from_millis(1500);

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// At the start there is no earlier state. The node waits until the directory has what it needs.
#[test]
fn a_start_waits_for_the_directory_and_names_the_obstacle() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let (node, root) = (lab.node(1), lab.store.path());
        let (subnets, away) = (root.join("subnets"), root.with_extension("away"));
        let says = |what: &str| {
            let said = format!("not ready: waiting for {what}");
            lab::wait_for(&said, SOON, || {
                node.get("/readyz").is_some_and(|reply| reply.status == 503 && reply.body.starts_with(&said))
            });
        };
        fs::rename(root, &away).unwrap();
        fs::write(root, "").unwrap();
        let daemon = node.start(FLAGS);
        says(&format!("the network config: {}/config: Not a directory", root.display()));
        fs::remove_file(root).unwrap();
        symlink("/nowhere", root).unwrap();
        says(&format!("the network config: {}/config: No such file or directory", root.display()));
        fs::remove_file(root).unwrap();
        fs::remove_dir(away.join("subnets")).unwrap();
        fs::write(away.join("subnets"), "").unwrap();
        fs::rename(&away, root).unwrap();
        says(&format!("a lease: {}: Not a directory", subnets.display()));
        fs::remove_file(&subnets).unwrap();
        daemon.wait_ready();
        let log = daemon.log();
        assert_eq!(log.lines().filter(|line| line.contains("WARN waiting for")).count(), 3, "{log}");
    });
}

#[test]
fn a_start_without_the_right_to_read_the_directory_reports_it() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let (node, root) = (lab.node(1), lab.store.path());
        set_mode(root, 0);
        let daemon = node.start_under(NOT_ABOVE_THE_MODE, FLAGS);
        lab::wait_for("it is said", SOON, || {
            node.get("/readyz").is_some_and(|reply| reply.body.contains("config: Permission denied"))
        });
        set_mode(root, 0o755);
        daemon.wait_ready();
    });
}

/// Command that gives up root's right to read regardless of file modes.
const NOT_ABOVE_THE_MODE: &[&str] = &[
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
];

/// Two nodes that stay connected whatever happens to the store of both.
struct Running<'lab> {
    lab: &'lab Lab,
    daemons: Vec<Daemon<'lab>>,
    before: View,
    ping: PingStream,
    _pods: Vec<Pod>,
}

impl<'lab> Running<'lab> {
    fn start(lab: &'lab Lab) -> Self {
        let daemons: Vec<_> =
            lab.nodes().iter().map(|node| node.start_under(NOT_ABOVE_THE_MODE, FLAGS)).collect();
        daemons.iter().for_each(Daemon::wait_ready);
        let pods = lab.pods();
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab::wait_for("the pings run", SOON, || ping.received() > 5);
        Self { lab, daemons, before: View::of(&lab.node(1).ns), ping, _pods: pods }
    }

    fn status(&self) -> String {
        self.lab.node(1).twill(&["status"])
    }

    /// Asserts that a harm to the store is reported in these words, once, and changes nothing. `undo` is all that it takes.
    fn frozen(&self, harm: impl FnOnce(), said: &str, undo: impl FnOnce()) {
        let said = format!("lost; the last known leases stay in force: {said}");
        let times =
            || self.daemons[0].log().lines().filter(|line| line.contains("WARN store is lost")).count();
        let (before, node) = (times(), self.lab.node(1));
        self.at_once(harm);
        lab::wait_for(&said, SOON, || self.status().contains(&said));
        lab::holds_for("the node is ready", A_WHILE, || node.get("/readyz").unwrap().status == 200);
        assert_eq!(self.before.diff(&View::of(&node.ns)), "");
        self.at_once(undo);
        lab::wait_for("all is well", SOON, || self.status().contains("store     in sync"));
        assert_eq!(times(), before + 1, "{}", self.daemons[0].log());
        assert_eq!(self.before.diff(&View::of(&node.ns)), "");
    }

    /// Takes several steps while no daemon can look between them.
    fn at_once(&self, steps: impl FnOnce()) {
        let all = |signal: &str| {
            for daemon in &self.daemons {
                self.lab.node(1).ns.run(&format!("kill -{signal} {}", daemon.pid()));
            }
        };
        all("STOP");
        steps();
        all("CONT");
    }

    fn lost_nothing(self) {
        let report = self.ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    }
}

#[test]
fn a_running_node_keeps_its_network_whatever_replaces_the_directory() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let running = Running::start(&lab);
        let root = lab.store.path();
        let (subnets, away) = (root.join("subnets"), root.with_extension("away"));
        let gone = format!("{}: No such file or directory", subnets.display());
        let put_back = |from: &Path, to: &Path| {
            fs::remove_file(to).unwrap();
            fs::rename(from, to).unwrap();
        };
        running.frozen(|| fs::rename(root, &away).unwrap(), &gone, || fs::rename(&away, root).unwrap());
        let file = |path: &Path| {
            fs::rename(path, &away).unwrap();
            fs::write(path, "").unwrap();
        };
        let not = format!("{}: Not a directory", subnets.display());
        running.frozen(|| file(&subnets), &not, || put_back(&away, &subnets));
        running.frozen(|| file(root), &not, || put_back(&away, root));
        let dangling = || {
            fs::rename(root, &away).unwrap();
            symlink("/nowhere", root).unwrap();
        };
        running.frozen(dangling, &gone, || put_back(&away, root));
        running.lost_nothing();
    });
}

/// A directory that cannot be searched, and a lease that cannot be read, do not count as missing leases.
#[test]
fn a_running_node_keeps_its_network_when_it_may_not_read_the_directory() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let running = Running::start(&lab);
        let (root, peer) = (lab.store.path(), lease_name(&lab.node(2).subnet()));
        let subnets = root.join("subnets");
        let denied = |path: &Path| format!("{}: Permission denied", path.display());
        for mode in [0, 0o444] {
            let said = denied(&subnets);
            running.frozen(|| set_mode(&subnets, mode), &said, || set_mode(&subnets, 0o755));
        }
        running.frozen(|| set_mode(root, 0), &denied(&subnets), || set_mode(root, 0o755));

        set_mode(&subnets.join(&peer), 0);
        let said = format!("store entry {peer:?} cannot be read: Permission denied");
        lab::wait_for("it is said", SOON, || running.status().contains(&said));
        assert_eq!(running.before.diff(&View::of(&lab.node(1).ns)), "");
        set_mode(&subnets.join(&peer), 0o644);
        lab::wait_for("all is well", SOON, || !running.status().contains(&said));

        set_mode(&root.join("config"), 0);
        let said = format!("{}; the last good network config stays", denied(&root.join("config")));
        let said = said.replace("denied;", "denied (os error 13);");
        lab::wait_for("it is said", SOON, || running.status().contains(&said));
        set_mode(&root.join("config"), 0o644);
        lab::wait_for("all is well", SOON, || !running.status().contains("Permission"));
        assert_eq!(running.before.diff(&View::of(&lab.node(1).ns)), "");
        running.lost_nothing();
    });
}

const GONE: &str = r#"{"PublicIP":"192.168.100.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:77"}}"#;

/// The copy is older than our lease. Ours is missing, a peer's has another MAC, and a node in it is long gone.
#[test]
fn an_old_copy_is_corrected_by_the_running_nodes() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (daemons, pods) = cluster::start(&lab);
        let [one, two, _] = [1, 2, 3].map(|k| lease_name(&lab.node(k).subnet()));
        let (root, away) = (lab.store.path(), lab.store.path().with_extension("away"));
        let (leases, before) = (lab.store.leases(), View::of(&lab.node(1).ns));
        let mac = View::of(&lab.node(2).ns).link("flannel.1").unwrap().text("address").to_owned();
        let copy = root.with_extension("copy");
        fs::create_dir_all(copy.join("subnets")).unwrap();
        fs::write(copy.join("config"), VXLAN).unwrap();
        let old = leases.iter().filter(|(name, _)| **name != one);
        let old = old.map(|(name, lease)| (name.clone(), lease.replace(&mac, "0a:00:00:00:00:42")));
        let gone = ("10.244.0.0-24".to_owned(), GONE.to_owned());
        for (name, lease) in old.chain([gone]) {
            fs::write(copy.join("subnets").join(name), lease).unwrap();
        }
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab::wait_for("the pings run", SOON, || ping.received() > 5);
        fs::rename(root, &away).unwrap();
        fs::rename(&copy, root).unwrap();
        lab::wait_for("each is as it was", SOON, || {
            let now = lab.store.leases();
            leases.iter().all(|(name, lease)| now.get(name) == Some(lease))
        });
        for (daemon, said) in [
            (&daemons[0], format!("our lease {one} had disappeared from the store; wrote it again")),
            (&daemons[1], format!("our lease {two} differed from what this node announces")),
        ] {
            lab::wait_for(&said, SOON, || daemon.log().contains(&said));
        }
        lab.store.remove_lease("10.244.0.0-24");
        lab::wait_for("all is as before", SOON, || View::of(&lab.node(1).ns) == before);
        let report = ping.stop();
        println!("{report:?}");
        lab::in_time("the longest gap", report.longest_gap, Duration::from_secs(2));
    });
}

#[test]
fn a_full_disk_is_reported_and_our_lease_corrected_once_there_is_room() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).twill(env!("CARGO_BIN_EXE_twill")).build();
        let disk = Disk::mount(lab.store.path());
        lab.store.config(VXLAN);
        let mut running = Running::start(&lab);
        // Node 2 would follow the wrong contents of our lease.
        running.daemons[1].kill9();
        let node = lab.node(1);
        let own = lease_name(&node.subnet());
        let lease = lab.store.leases()[&own].clone();
        disk.fill();
        let path = lab.store.path().join("subnets").join(&own);
        fs::write(&path, lease.replace(r#""VNI":1"#, r#""VNI":5"#)).unwrap();
        let said = format!(
            "our lease differs from what this node announces and cannot be written: {}: No space left on device",
            path.display()
        );
        lab::wait_for("it is said", SOON, || running.status().contains(&said));
        lab::holds_for("the node is ready", A_WHILE, || node.get("/readyz").unwrap().status == 200);
        assert_eq!(running.before.diff(&View::of(&node.ns)), "");
        disk.free();
        lab::wait_for("it is put right", SOON, || lab.store.leases()[&own] == lease);
        lab::wait_for("all is well", SOON, || !running.status().contains("cannot be written"));
        let log = running.daemons[0].log();
        let times = log.lines().filter(|line| line.contains("WARN") && line.contains(&said)).count();
        assert_eq!(times, 1, "{log}");
        running.lost_nothing();
    });
}
