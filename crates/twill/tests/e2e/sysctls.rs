//! Sysctls that pods need: raised where they are too low, reported where they cannot or may not be changed.

use std::time::{Duration, Instant};

use lab::{Daemon, Lab, Node, Timing, Topology};

use crate::cluster::{self, SOON, VXLAN, VXLAN_DUAL};

const NEEDED: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/eth0/accept_ra", "2"),
    ("net/ipv4/conf/flannel.1/rp_filter", "2"),
];

const ALL_NEEDED: [&str; 4] = ["1", "1", "2", "2"];

/// Gives the node the settings of a distribution, in place of the lab's.
fn plain(node: &Node) {
    set(node, &["net/ipv4/ip_forward=0", "net/ipv6/conf/all/forwarding=0"]);
    set(node, &["net/ipv6/conf/eth0/accept_ra=1", "net/ipv4/conf/all/rp_filter=1"]);
}

fn set(node: &Node, settings: &[&str]) {
    node.ns.run(&format!("sysctl -qw {}", settings.join(" ")));
}

fn value(node: &Node, path: &str) -> String {
    node.ns.run(&format!("cat /proc/sys/{path}")).trim().into()
}

fn values(node: &Node) -> [String; 4] {
    NEEDED.map(|(path, _)| value(node, path))
}

/// Returns the default route that a router advertises to the node; empty if there is none.
fn advertised(node: &Node) -> String {
    node.ns.run("ip -6 route show default proto ra")
}

/// Makes the daemon look twice: by then the work of the first look is done.
fn look_again(daemon: &Daemon<'_>, node: &Node) {
    node.ns.run(&format!("kill -HUP {}", daemon.pid()));
    node.twill_output(&["diff"]);
}

fn lab() -> Lab {
    let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
    plain(lab.node(1));
    lab
}

#[test]
fn a_value_that_is_too_low_is_raised_and_the_old_one_logged() {
    lab::test(Timing::Free, || {
        let lab = lab();
        let node = lab.node(1);
        lab::wait_for("the node has a default route from a router", SOON, || {
            lab::advertise(&lab.node(2).ns, "eth0");
            advertised(node).contains("dev eth0")
        });
        let (mut daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        assert_eq!(values(node), ALL_NEEDED);
        assert!(
            advertised(node).contains("dev eth0"),
            "forwarding takes the route away unless accept_ra is 2"
        );
        let log = daemons[0].log();
        let at = |line: &str| log.find(line).unwrap_or_else(|| panic!("{line}: {log}"));
        at("~ sysctl net/ipv4/ip_forward = 1 (was 0)");
        let (accepts, forwards) = (
            at("~ sysctl net/ipv6/conf/eth0/accept_ra = 2 (was 1)"),
            at("~ sysctl net/ipv6/conf/all/forwarding = 1 (was 0)"),
        );
        assert!(accepts < forwards, "{log}");
        node.ns.run("ip -6 route del default proto ra");
        lab::wait_for("a router is used as before", SOON, || {
            lab::advertise(&lab.node(2).ns, "eth0");
            advertised(node).contains("dev eth0")
        });
        set(node, &["net/ipv4/ip_forward=0", "net/ipv4/conf/flannel.1/rp_filter=1"]);
        look_again(&daemons[0], node);
        lab::wait_for("they are raised again", SOON, || values(node) == ALL_NEEDED);
        // The kernel has them before the line is written.
        let line = "~ sysctl net/ipv4/conf/flannel.1/rp_filter = 2 (was 1)";
        lab::wait_for(line, SOON, || daemons[0].log().contains(line));
        // A recreated device has the kernel's values.
        node.ns.run("ip link del flannel.1");
        lab::wait_for("the device is back", SOON, || {
            node.ns.output("ip link show flannel.1").status.success() && values(node) == ALL_NEEDED
        });
        // The pods stay without the daemon, and so do the values that they need.
        assert!(daemons[0].terminate().success());
        assert_eq!(values(node), ALL_NEEDED);
    });
}

/// The kernel reports such changes, so that no regular pass is waited for.
#[test]
fn a_value_that_is_lowered_on_a_quiet_node_is_raised_within_a_second() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let node = lab.node(1);
        set(node, &["net/ipv4/conf/all/rp_filter=1"]);
        let (_daemons, _pods) = cluster::start(&lab);
        // From this pass on, the daemon knows the bridge.
        node.twill_output(&["diff"]);
        for (path, low, high) in [
            ("net/ipv4/conf/flannel.1/forwarding", "0", "1"),
            ("net/ipv6/conf/flannel-v6.1/forwarding", "0", "1"),
            ("net/ipv4/conf/cni0/forwarding", "0", "1"),
            ("net/ipv4/conf/eth0/forwarding", "0", "1"),
            ("net/ipv4/ip_forward", "0", "1"),
            ("net/ipv6/conf/all/forwarding", "0", "1"),
            ("net/ipv4/conf/flannel.1/rp_filter", "1", "2"),
        ] {
            lab::wait_for("it is as it should be", SOON, || value(node, path) == high);
            set(node, &[&format!("{path}={low}")]);
            let begun = Instant::now();
            lab::wait_for(path, SOON, || value(node, path) == high);
            lab::in_time(path, begun.elapsed(), Duration::from_secs(1));
        }
    });
}

#[test]
fn a_value_that_is_high_enough_is_left() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let node = lab.node(1);
        set(node, &["net/ipv6/conf/eth0/accept_ra=1", "net/ipv4/conf/all/rp_filter=2"]);
        set(node, &["net/ipv4/conf/default/rp_filter=1"]);
        let (daemons, _pods) = cluster::start(&lab);
        assert_eq!(values(node), ["1", "1", "1", "1"], "it forwards already, and is loose enough");
        let others = || {
            node.ns.run("grep -r . /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv6/conf/*/accept_ra")
        };
        let (before, asked) = (others(), cluster::ops_asked(node));
        look_again(&daemons[0], node);
        assert_eq!((others(), cluster::ops_asked(node)), (before, asked));
        assert!(!daemons[0].log().contains("(was "), "{}", daemons[0].log());
    });
}

/// Runs the command of every note, forwarding last as one of them says.
fn run_commands(node: &Node, status: &str) {
    let command = |line: &str| Some(line.split_once("Run: ")?.1.split(" (").next()?.to_owned());
    let mut commands: Vec<String> = status.lines().filter_map(command).collect();
    commands.sort_by_key(|command| command.contains("forward"));
    commands.iter().for_each(|command| _ = node.ns.run(command));
}

fn not_ready_because(node: &Node, words: &str) {
    lab::wait_for(words, SOON, || {
        node.get("/readyz").is_some_and(|reply| reply.status == 503 && reply.body.contains(words))
    });
}

#[test]
fn with_set_sysctls_false_only_the_commands_are_reported() {
    lab::test(Timing::Free, || {
        let lab = lab();
        let node = lab.node(1);
        let flags = ["--iface=eth0", "--set-sysctls=false"];
        let daemons: Vec<_> = lab.nodes().iter().map(|node| node.start(&flags)).collect();
        let status = || node.twill(&["status"]);
        not_ready_because(node, "sysctl net/ipv4/ip_forward is 0, and --set-sysctls=false leaves it so");
        for (path, value) in NEEDED {
            let words = format!("leaves it so. Run: sysctl -w {path}={value} (");
            lab::wait_for(&words, SOON, || status().contains(&words));
        }
        let status = status();
        assert_eq!(values(node), ["0", "0", "1", "0"]);
        assert_eq!(value(node, "net/ipv6/conf/flannel.1/accept_ra"), "0", "our own device is ours");
        look_again(&daemons[0], node);
        let log = daemons[0].log();
        assert_eq!(log.matches("WARN sysctl ").count(), 4, "each is said once: {log}");
        let other = lab.node(2).twill(&["status"]);
        assert!(!other.contains("sysctl"), "{other}");
        run_commands(node, &status);
        look_again(&daemons[0], node);
        lab::wait_for("nothing is left to say", SOON, || !node.twill(&["status"]).contains("sysctl"));
        assert_eq!(values(node), ALL_NEEDED);
        daemons.iter().for_each(Daemon::wait_ready);
        lab::wait_for("and that is said", SOON, || daemons[0].log().matches("resolved: sysctl").count() == 4);
        cluster::reach_each_other(&lab.pods());
    });
}

#[test]
fn a_read_only_proc_is_reported_once_and_without_forwarding_the_node_is_not_ready() {
    lab::test(Timing::Free, || {
        let lab = lab();
        let node = lab.node(1);
        let read_only =
            "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
        let daemon = node.start_under(&["unshare", "--mount", "sh", "-c", read_only, "sh"], cluster::FLAGS);
        let refusal = |path: &str| {
            format!("the kernel refuses sysctl {path} = 1: Read-only file system (os error 30). Run: ")
        };
        not_ready_because(node, &refusal("net/ipv4/ip_forward"));
        assert_eq!(values(node), ["0", "0", "1", "2"], "rp_filter has another way");
        let reported = ["ip_forward=1", "all/forwarding=1", "eth0/accept_ra=2", "flannel.1/accept_ra=0"];
        let status = || node.twill(&["status"]);
        lab::wait_for("all are reported", SOON, || reported.iter().all(|command| status().contains(command)));
        let status = status();
        assert!(status.contains(&refusal("net/ipv6/conf/all/forwarding")), "{status}");
        let asked = cluster::ops_asked(node);
        look_again(&daemon, node);
        assert_eq!(cluster::ops_asked(node), asked, "none is tried again");
        let log = daemon.log();
        assert_eq!(log.matches("WARN the kernel refuses sysctl").count(), 5, "each is said once: {log}");
        // An administrator makes the change, and later undoes it, which is a new fault.
        run_commands(node, &status);
        look_again(&daemon, node);
        lab::wait_for("nothing is left to say", SOON, || !node.twill(&["status"]).contains("sysctl"));
        daemon.wait_ready();
        set(node, &["net/ipv4/ip_forward=0"]);
        look_again(&daemon, node);
        not_ready_because(node, "sysctl -w net/ipv4/ip_forward=1");
    });
}

/// IPv6 settings do not concern an IPv4 network.
#[test]
fn ipv6_values_are_left_alone_in_an_ipv4_network() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        plain(lab.node(1));
        let (_daemons, _pods) = cluster::start(&lab);
        assert_eq!(values(lab.node(1)), ["1", "0", "1", "2"]);
    });
}
