//! Log, `twill status` and `/readyz` show refusals by the kernel or the disk, with reason and remedy. Where twill can
//! act on them, it does.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use lab::{Daemon, Disk, Node, Timing, Topology, View};

use crate::cluster::{self, FLAGS, SOON, VXLAN, VXLAN_DUAL, VXLAN_IPV6};

/// Returns the body of `/readyz` if the node is not ready; otherwise it is empty.
fn readyz(node: &Node) -> String {
    let reply = node.get("/readyz").filter(|reply| reply.status == 503);
    reply.map(|reply| reply.body).unwrap_or_default()
}

fn not_ready_because(node: &Node, daemon: &Daemon<'_>, words: &str) {
    let said = lab::until(SOON, || readyz(node).contains(words).then_some(()));
    assert!(said.is_some(), "{words:?} is not in {}\nlog:\n{}", readyz(node), daemon.log());
}

fn subnet_env(node: &Node) -> String {
    fs::read_to_string(node.run_dir().join("subnet.env")).unwrap_or_default()
}

fn has_device(node: &Node, name: &str) -> bool {
    View::of(&node.ns).link(name).is_some()
}

#[test]
fn our_device_has_ipv6_even_if_it_is_off_for_new_devices() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let off = [("net.ipv6.conf.default.disable_ipv6", "1")];
        lab.nodes().iter().for_each(|node| node.ns.sysctl(&off));
        let daemons = lab.start_all(FLAGS);
        daemons.iter().for_each(Daemon::wait_ready);
        let [near, far] = [1, 2].map(|k| lab.node(k));
        let vtep: std::net::Ipv6Addr = far.subnet6().split('/').next().unwrap().parse().unwrap();
        lab::wait_for("IPv6 through the tunnel", SOON, || near.ping(vtep).is_some());
        // A later change is undone as well.
        near.ns.sysctl(&[("net.ipv6.conf.flannel-v6/1.disable_ipv6", "1")]);
        lab::wait_for("IPv6 again", SOON, || near.ping(vtep).is_some());
        assert!(!daemons[0].log().contains("Permission denied"), "{}", daemons[0].log());
    });
}

#[test]
fn an_uplink_too_narrow_for_ipv6_is_reported_and_serves_ipv4() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        lab.nodes().iter().for_each(|node| _ = node.ns.run("ip link set eth0 mtu 1280"));
        let daemons = lab.start_all(FLAGS);
        daemons.iter().for_each(Daemon::wait_ready);
        let node = lab.node(1);
        let why = "IPv6 needs packets of 1280 bytes inside the tunnel and 1350 on eth0, which carries 1280: pods have IPv4 alone";
        for text in [node.twill(&["status"]), daemons[0].log(), node.get("/readyz").unwrap().body] {
            assert!(text.contains(why), "{text}");
        }
        let env = subnet_env(node);
        assert!(!env.contains("IPV6") && env.contains("FLANNEL_MTU=1230\n"), "{env}");
        assert!(!has_device(node, "flannel-v6.1"));
        let log = daemons[0].log();
        assert!(!log.contains("retrying less often") && !log.contains("this node has a fault"), "{log}");
        // The log has a line for each change that is tried.
        assert!(log.contains("flannel.1") && !log.contains("flannel-v6.1"), "{log}");
        let vtep: std::net::Ipv4Addr = lab.node(2).subnet().split('/').next().unwrap().parse().unwrap();
        lab::wait_for("IPv4 through the tunnel", SOON, || node.ping(vtep).is_some());
        lab.nodes().iter().for_each(|node| _ = node.ns.run("ip link set eth0 mtu 1350"));
        lab::wait_for("both families", SOON, || {
            let env = subnet_env(node);
            env.contains("FLANNEL_IPV6_SUBNET")
                && env.contains("FLANNEL_MTU=1280\n")
                && has_device(node, "flannel-v6.1")
        });
        assert!(!node.twill(&["status"]).contains(why));
    });
}

#[test]
fn an_uplink_too_narrow_for_the_only_family_is_reported() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN_IPV6);
        let node = lab.node(1);
        node.ns.run("ip link set eth0 mtu 1300");
        let daemon = node.start(FLAGS);
        not_ready_because(node, &daemon, "1350 on eth0, which carries 1300: pods have no network");
        assert!(!has_device(node, "flannel-v6.1"));
        node.ns.run("ip link set eth0 mtu 1500");
        daemon.wait_ready();
    });
}

/// Tests a device that another program left, which has our port, our VNI or both.
fn left_device(line: &str, name: &str, words: &str) {
    let lab = cluster::lab(Topology::flat(1), VXLAN);
    let node = lab.node(1);
    node.ns.run(&format!("ip link add {name} type vxlan {line}; ip link set {name} up"));
    let daemon = node.start(FLAGS);
    not_ready_because(node, &daemon, words);
    let is_delayed = |text: &str| text.contains("retrying less often") && text.contains(words);
    lab::wait_for("the log says why it is delayed", SOON, || is_delayed(&daemon.log()));
    let status = node.twill(&["status"]);
    assert!(status.contains(words), "{status}");
    assert!(!daemon.log().contains("does another program manage it?"), "{}", daemon.log());
    node.ns.run(&format!("ip link del {name}"));
    daemon.wait_ready();
}

#[test]
fn a_leftover_external_device_on_our_port_is_named() {
    lab::test(Timing::Free, || {
        left_device(
            "external dstport 8472",
            "vxlan_sys",
            "the vxlan device vxlan_sys has UDP port 8472 already",
        );
    });
}

#[test]
fn a_leftover_device_with_our_vni_is_named() {
    lab::test(Timing::Free, || {
        left_device("id 1 dstport 8472 dev eth0", "old1", "the vxlan device old1 has UDP port 8472 already");
    });
}

#[test]
fn a_process_on_our_port_is_not_taken_for_a_device() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let socket = node.ns.within(|| UdpSocket::bind("0.0.0.0:8472").unwrap());
        let daemon = node.start(FLAGS);
        not_ready_because(
            node,
            &daemon,
            "UDP port 8472 is in use, but not by a device of this network namespace: a \
                                          process has it",
        );
        drop(socket);
        daemon.wait_ready();
    });
}

/// The limit is reported as such, whatever its value.
#[test]
fn a_low_limit_of_open_files_is_reported_as_such() {
    lab::test_within(Duration::from_secs(300), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), &VXLAN.replace(r#""Backend""#, r#""x":1,"Backend""#));
        let node = lab.node(1);
        let flags = [FLAGS, &["--ip-masq"]].concat();
        for limit in [8, 15, 31, 32, 33, 34, 36, 40] {
            let under = format!("--nofile={limit}:{limit}");
            let mut daemon = node.start_under(&["prlimit", &under], &flags);
            let before = daemon.log().len();
            lab::until(Duration::from_secs(3), || (!daemon.is_alive()).then_some(()));
            let log = daemon.log().split_off(before.min(daemon.log().len()));
            assert!(!log.contains("another daemon of this node keeps"), "{limit}: {log}");
            let reported = log.contains("has reached its limit of open files")
                || node.get("/readyz").is_some_and(|it| it.status == 200);
            assert!(reported, "{limit}: {log}");
            for line in log.lines().filter(|line| line.contains("os error 24")) {
                assert!(line.contains("raise it, in systemd with LimitNOFILE="), "{limit}: {line}");
            }
            daemon.kill9();
        }
    });
}

/// The subnet file is a single mounted file, as in a container.
#[test]
fn a_subnet_file_that_is_a_mount_is_written_in_place() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        let (there, outside) = (node.run_dir().join("subnet.env"), node.run_dir().join("outside"));
        let stale = "FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n# old\n";
        fs::write(&there, "").unwrap();
        for before in ["", stale] {
            fs::write(&outside, before).unwrap();
            let mount = r#"mount --bind /run/flannel/outside /run/flannel/subnet.env && exec "$@""#;
            let daemon = node.start_under(&["sh", "-c", mount, "sh"], FLAGS);
            lab::wait_for("it is written", SOON, || {
                let env = fs::read_to_string(&outside).unwrap();
                env.starts_with("FLANNEL_NETWORK=10.244.0.0/16\n") && env.ends_with("FLANNEL_IPMASQ=false\n")
            });
            lab::wait_for("it is ready", SOON, || {
                node.get("/readyz").is_some_and(|reply| reply.status == 200)
            });
            assert_eq!(fs::read_to_string(&there).unwrap(), "", "what is mounted over is not touched");
            assert!(!daemon.log().contains("cannot be written"), "{}", daemon.log());
            drop(daemon);
        }
    });
}

/// The file can be neither replaced, as a mount point, nor written in place.
#[test]
fn a_subnet_file_that_is_a_read_only_mount_is_told_with_both_reasons() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        for name in ["subnet.env", "outside"] {
            fs::write(node.run_dir().join(name), "").unwrap();
        }
        let mount = r#"mount --bind /run/flannel/outside /run/flannel/subnet.env &&
                       mount -o remount,bind,ro /run/flannel/subnet.env && exec "$@""#;
        let daemon = node.start_under(&["sh", "-c", mount, "sh"], FLAGS);
        let words = "subnet.env cannot be written: Read-only file system (os error 30); it is mounted read-only: mount it \
                     writable, or name another place; nor can it be replaced: Device or resource busy (os error 16)";
        not_ready_because(node, &daemon, words);
    });
}

/// The directory is read-only, so that no file can be made beside the subnet file.
#[test]
fn a_subnet_file_in_a_read_only_directory_is_written_in_place() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        fs::write(node.run_dir().join("subnet.env"), "").unwrap();
        fs::write(node.run_dir().join("outside"), "").unwrap();
        let outside = node.run_dir().join("outside");
        let line = format!(
            "mount --bind /run/flannel /run/flannel && mount -o remount,bind,ro /run/flannel && \
             mount --bind {} /run/flannel/subnet.env && exec \"$@\"",
            outside.display()
        );
        let socket = node.cache_dir().join("twill.sock");
        let socket = format!("--socket={}", socket.display());
        let daemon = node.start_under(&["sh", "-c", &line, "sh"], &[FLAGS, &[&socket]].concat());
        lab::wait_for("it is written", SOON, || {
            fs::read_to_string(&outside).unwrap().ends_with("FLANNEL_IPMASQ=false\n")
        });
        lab::wait_for("the footprint's loss is reported", SOON, || {
            let log = daemon.log();
            log.contains(".subnet.env.footprint cannot be written: Read-only file system (os error 30); it is mounted read-only")
        });
        drop(daemon);
    });
}

#[test]
fn a_full_disk_is_named_with_the_remedy() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let node = lab.node(1);
        fs::create_dir_all(node.cache_dir()).unwrap();
        let disk = Disk::mount(node.cache_dir());
        disk.fill();
        let daemon = node.start(FLAGS);
        daemon.wait_ready();
        let words = "No space left on device (os error 28); no space or no inodes are left there: check df and df -i, \
                     and free some";
        lab::wait_for("the cache's loss is reported", SOON, || node.twill(&["status"]).contains(words));
        disk.free();
        lab::wait_for("it is over", Duration::from_secs(60), || !node.twill(&["status"]).contains(words));
    });
}
