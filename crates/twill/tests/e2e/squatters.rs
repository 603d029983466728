//! Other users of the node take addresses and files that look like the daemon's. They keep no daemon from starting, and freeze no
//! traffic rules.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;

use lab::enter::{as_other_user, other_user};
use lab::{Node, Timing, Topology};

use crate::cluster::{self, SOON, VXLAN};
use crate::traffic::Manager;

/// Sockets that hold addresses.
type Held = (Vec<UnixDatagram>, Vec<UnixListener>);

/// Binds abstract addresses of the node.
fn hold(node: &Node, names: &[String]) -> Held {
    let address = |name: &String| SocketAddr::from_abstract_name(name).unwrap();
    let (datagrams, streams) = names.split_at(names.len() / 2);
    node.ns.within(|| {
        let datagrams = datagrams.iter().map(|name| UnixDatagram::bind_addr(&address(name)).unwrap());
        let streams = streams.iter().map(|name| UnixListener::bind_addr(&address(name)).unwrap());
        (datagrams.collect(), streams.collect())
    })
}

/// Same as [`hold`], as another user.
fn squat(node: &Node, names: &[String]) -> Held {
    let address = |name: &String| SocketAddr::from_abstract_name(name).unwrap();
    let (datagrams, streams) = names.split_at(names.len() / 2);
    node.ns.within(|| {
        as_other_user(|| {
            let datagrams = datagrams.iter().map(|name| UnixDatagram::bind_addr(&address(name)).unwrap());
            let streams = streams.iter().map(|name| UnixListener::bind_addr(&address(name)).unwrap());
            (datagrams.collect(), streams.collect())
        })
    })
}

/// Returns the abstract addresses of twill on that node.
fn taken(node: &Node) -> Vec<String> {
    let sockets = node.ns.run("cat /proc/thread-self/net/unix");
    let names = sockets.lines().filter_map(|line| line.split_once(" @"));
    names.map(|(_, name)| name.to_owned()).filter(|name| name.starts_with("twill")).collect()
}

/// Returns the addresses that daemons of this network may want, in each form that they have used.
fn guessed() -> Vec<String> {
    let whats =
        ["traffic rules", "VNI 1", "network 10.244.0.0/16", "network 0.0.0.0/0", "network fd00:244::/48"];
    whats
        .iter()
        .flat_map(|what| [format!("twill {what}"), format!("twill pid 1 of 1 has {what} #0000000000000000")])
        .collect()
}

#[test]
fn addresses_of_another_user_do_not_prevent_a_start() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        let _held = squat(node, &guessed());
        let (daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        assert!(daemons[0].log().contains(&format!("user {}", other_user())), "{}", daemons[0].log());
    });
}

/// The addresses that a daemon had are known, and free once it is gone.
#[test]
fn addresses_of_another_user_do_not_freeze_a_dropping_filter() {
    lab::test(Timing::Free, || {
        let config = Manager::Nft.config_with(r#""Type":"vxlan","VxlanSourceFilter":"drop""#);
        let lab = cluster::lab(Topology::flat(3), &config);
        let node = lab.node(1);
        let mut daemon = node.start(cluster::FLAGS);
        daemon.wait_ready();
        let known = taken(node);
        assert!(known.iter().any(|name| name.contains("traffic rules")), "{known:?}");
        daemon.kill9();
        let _held = squat(node, &[known, guessed()].concat());
        // The existing rules do not know these peers.
        let others = [2, 3].map(|index| lab.node(index).start(cluster::FLAGS));
        others.iter().for_each(lab::Daemon::wait_ready);
        daemon.restart();
        daemon.wait_ready();
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let filter = node.ns.run("nft list chain ip flannel-ipv4 vxlan");
        assert!(filter.contains(" drop"), "{filter}");
    });
}

/// The lock belongs to a process of root, so the daemon changes no rule. It must not keep them dropping either.
#[test]
fn rules_that_another_process_locks_do_not_drop_for_ever() {
    lab::test(Timing::Free, || {
        let config = Manager::Nft.config_with(r#""Type":"vxlan","VxlanSourceFilter":"drop""#);
        let lab = cluster::lab(Topology::flat(1), &config);
        let node = lab.node(1);
        let mut daemon = node.start(cluster::FLAGS);
        daemon.wait_ready();
        let mut known = taken(node);
        known.retain(|name| name.contains("traffic rules"));
        daemon.kill9();
        let _held = hold(node, &known);
        let kept = || node.ns.run("nft list set ip flannel-ipv4 keeper").contains("udp");
        assert!(kept(), "the dead daemon's rules are still in force");
        // The test does not wait for the two minutes.
        node.ns.run("nft flush set ip flannel-ipv4 keeper");
        daemon.restart();
        daemon.wait_ready();
        lab::wait_for("the daemon leaves the rules alone", SOON, || {
            daemon.log().contains("keeps the traffic rules, so this one makes none")
        });
        let filter = node.ns.run("nft list chain ip flannel-ipv4 vxlan");
        assert!(filter.contains(" drop") && !kept(), "{filter}");
    });
}

/// Addresses that root holds belong to a daemon.
#[test]
fn a_lock_held_by_root_ends_the_start() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let held = hold(node, &["twill pid 4711 of 1 has VNI 1 #0000000000000001".into()]);
        let mut daemon = node.start(cluster::FLAGS);
        assert!(!daemon.wait_exit().success());
        let log = daemon.log();
        assert!(
            log.contains("another daemon of this node (pid 4711 of another pid namespace) has VNI 1"),
            "{log}"
        );
        drop(held);
        daemon.restart();
        daemon.wait_ready();
    });
}

/// The directory is writable by everybody, as /tmp is. Links are in place of each file that the daemon keeps there.
#[test]
fn no_file_is_written_through_a_link() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        let open = std::env::temp_dir().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        let victims = std::env::temp_dir().join("victims");
        fs::create_dir(&victims).unwrap();
        let cache = format!(
            "{}.leases",
            open.join("subnet.env").display().to_string().trim_start_matches('/').replace('/', "-")
        );
        let names = [
            "subnet.env",
            "subnet.env.lock",
            "subnet.env.new",
            "subnet.env.footprint",
            "subnet.env.footprint.new",
        ];
        let names: Vec<String> = names
            .iter()
            .map(|name| if *name == "subnet.env" { (*name).into() } else { format!(".{name}") })
            .chain(["..subnet.env.footprint.new".into(), format!(".{cache}.new"), cache])
            .collect();
        for (nth, name) in names.iter().enumerate() {
            let victim = victims.join(nth.to_string());
            // Every second link leads to a file that does not exist yet.
            if nth % 2 == 0 {
                fs::write(&victim, "kept").unwrap();
            }
            symlink(&victim, open.join(name)).unwrap();
            std::os::unix::fs::lchown(open.join(name), Some(other_user()), None).unwrap();
        }
        let subnet_file = format!("--subnet-file={}", open.join("subnet.env").display());
        let cache_dir = format!("--cache-dir={}", open.display());
        let daemon = node.start(&["--iface=eth0", &subnet_file, &cache_dir]);
        daemon.wait_ready();
        let _peer = lab.node(2).start(cluster::FLAGS);
        let is_file = |name: &str| fs::symlink_metadata(open.join(name)).is_ok_and(|there| there.is_file());
        lab::wait_for("the cache is written", SOON, || is_file(names.last().unwrap()));
        assert!(is_file("subnet.env") && is_file(".subnet.env.footprint") && is_file(".subnet.env.lock"));
        for (nth, name) in names.iter().enumerate() {
            let text = fs::read_to_string(victims.join(nth.to_string()));
            assert_eq!(text.ok().as_deref(), (nth % 2 == 0).then_some("kept"), "{name}");
        }
    });
}

/// Files of another user in place of ours are not believed, and do not keep that user's rights.
#[test]
fn files_of_another_user_are_replaced() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let mut daemon = node.start(cluster::FLAGS);
        daemon.wait_ready();
        daemon.kill9();
        let files = ["subnet.env", ".subnet.env.lock"].map(|name| node.run_dir().join(name));
        for file in &files {
            chown(file, Some(other_user()), None).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
        }
        daemon.restart();
        daemon.wait_ready();
        let of = |file: &Path| fs::metadata(file).map(|file| (file.uid(), file.mode() & 0o777)).unwrap();
        assert_eq!(files.each_ref().map(|file| of(file)), [(0, 0o644), (0, 0o600)]);
    });
}

/// Files of another user give the daemon neither flags nor left-overs nor leases.
#[test]
fn another_users_options_footprint_and_cache_are_not_read() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let mut daemon = node.start(cluster::FLAGS);
        daemon.wait_ready();
        let options = node.run_dir().join("options.env");
        fs::write(&options, "FLANNELD_BACKEND_TYPE=host-gw\n").unwrap();
        let cache = node.cache_dir().join("run-flannel-subnet.env.leases");
        lab::wait_for("the cache is written", SOON, || cache.exists());
        daemon.kill9();
        let files = [options, node.run_dir().join(".subnet.env.footprint"), cache];
        for file in &files {
            fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
            chown(file, Some(other_user()), None).unwrap();
        }
        daemon.restart();
        daemon.wait_ready();
        let log = daemon.log();
        for file in &files {
            let name = file.file_name().unwrap().to_str().unwrap();
            let said =
                log.lines().any(|line| line.contains(name) && line.contains("it is no regular file of root"));
            assert!(said, "{name}: {log}");
        }
        assert!(node.twill(&["status"]).contains("vxlan"));
    });
}
