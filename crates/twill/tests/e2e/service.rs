//! The daemon as a service: messages to the service manager, stop, SIGHUP, and the rights that it gives up.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant};

use lab::{Daemon, Harm, Node, Timing, Topology, View};

use crate::cluster::{self, SOON, VXLAN};
use crate::traffic::{self, MASQ};

const VNI_7: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
const VNI_8: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":8}}"#;
/// Maximum time between two signs of life, as the watchdog requires.
const LIMIT: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

/// The service manager's end of NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    name: String,
    received: Vec<(Instant, String)>,
}

impl Manager {
    fn on_a_path() -> Self {
        let path = std::env::temp_dir().join("notify");
        Self::on(UnixDatagram::bind(&path).unwrap(), path.display().to_string())
    }

    /// Binds an abstract address, which belongs to the node's network namespace.
    fn on_an_abstract_address(node: &Node) -> Self {
        let address = SocketAddr::from_abstract_name("service manager").unwrap();
        let socket = node.ns.within(|| UnixDatagram::bind_addr(&address).unwrap());
        Self::on(socket, "@service manager".into())
    }

    fn on(socket: UnixDatagram, name: String) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, name, received: Vec::new() }
    }

    fn start<'lab>(&self, node: &'lab Node, args: &[&str]) -> Daemon<'lab> {
        let socket = format!("NOTIFY_SOCKET={}", self.name);
        let limit = format!("WATCHDOG_USEC={}", LIMIT.as_micros());
        node.start_under(&["env", &socket, &limit], args)
    }

    /// Returns the time of each received line that begins with `line`.
    fn received(&mut self, line: &str) -> Vec<Instant> {
        let mut datagram = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut datagram) {
            let text = str::from_utf8(&datagram[..length]).unwrap();
            let now = Instant::now();
            self.received.extend(text.lines().map(|line| (now, line.to_owned())));
        }
        self.received.iter().filter(|(_, received)| received.starts_with(line)).map(|(at, _)| *at).collect()
    }

    fn wait_for(&mut self, line: &str) {
        lab::wait_for(line, SOON, || !self.received(line).is_empty());
    }

    /// Returns the last STATUS line.
    fn status(&mut self) -> &str {
        self.received("");
        let mut said = self.received.iter().rev().filter_map(|(_, line)| line.strip_prefix("STATUS="));
        said.next().unwrap_or_default()
    }

    /// Asserts four signs of life, the first one after this call, each in time.
    fn is_alive_in_time(&mut self, why: &str) {
        let before = self.received("WATCHDOG=1").len();
        lab::wait_for(why, 5 * LIMIT, || self.received("WATCHDOG=1").len() >= before + 4);
        let signs = &self.received("WATCHDOG=1")[before..];
        assert!(signs.windows(2).all(|pair| pair[1] - pair[0] < LIMIT), "{why}: {signs:?}");
    }

    fn gets_nothing(&mut self, why: &str) {
        let before = self.received("WATCHDOG=1").len();
        lab::holds_for(why, LIMIT, || self.received("WATCHDOG=1").len() == before);
    }
}

fn bare(nodes: usize) -> lab::Lab {
    Topology::flat(nodes).twill(env!("CARGO_BIN_EXE_twill")).build()
}

fn is(node: &Node, path: &str, status: u16) -> bool {
    node.get(path).is_some_and(|reply| reply.status == status)
}

#[test]
fn readiness_is_reported_once_and_the_status_at_each_change() {
    lab::test(Timing::Free, || {
        let lab = bare(2);
        let node = lab.node(1);
        let mut manager = Manager::on_an_abstract_address(node);
        let mut daemon = manager.start(node, cluster::FLAGS);
        manager.wait_for("STATUS=waiting for the network config: ");
        lab::holds_for("not ready without a config", 2 * SECOND, || {
            manager.received("READY=1").is_empty() && is(node, "/readyz", 503)
        });
        lab.store.config(VXLAN);
        manager.wait_for("READY=1");
        assert!(is(node, "/readyz", 200));
        lab::wait_for("ready alone", SOON, || manager.status() == "ready, 0 peers");
        let _peer = lab.node(2).start(cluster::FLAGS);
        lab::wait_for("ready with a peer", SOON, || manager.status() == "ready, 1 peers");
        Harm::UplinkDown.apply(node);
        lab::wait_for("in trouble", 2 * SOON, || manager.status().starts_with("not ready: uplink eth0"));
        assert!(is(node, "/readyz", 503));
        Harm::UplinkUp.apply(node);
        lab::wait_for("ready again", SOON, || manager.status() == "ready, 1 peers");
        assert!(manager.received("STOPPING=1").is_empty());
        assert!(daemon.terminate().success());
        manager.wait_for("STOPPING=1");
        assert_eq!(manager.received("READY=1").len(), 1);
    });
}

/// The test holds the store's lock, which makes the reconcile thread hang while everything else goes on.
#[test]
fn the_watchdog_message_depends_on_reconcile_passes_alone() {
    lab::test(Timing::Timed, || {
        let lab = bare(1);
        let node = lab.node(1);
        let mut manager = Manager::on_a_path();
        let daemon = manager.start(node, cluster::FLAGS);
        manager.is_alive_in_time("it waits for the config");
        let turn = File::create(lab.store.path().join(".lock")).unwrap();
        turn.lock().unwrap();
        lab.store.config(VXLAN);
        lab::wait_for("it waits for its turn", SOON, || {
            manager.received("WATCHDOG=1").last().is_some_and(|last| last.elapsed() > LIMIT)
        });
        manager.gets_nothing("the reconcile thread hangs");
        assert!(is(node, "/healthz", 200), "and no other does");
        turn.unlock().unwrap();
        manager.wait_for("READY=1");
        manager.is_alive_in_time("there is nothing to do");
        node.ns.run(&format!("kill -STOP {}", daemon.pid()));
        manager.gets_nothing("the process is stopped");
        node.ns.run(&format!("kill -CONT {}", daemon.pid()));
        manager.is_alive_in_time("it goes on");
    });
}

/// SIGTERM removes nothing and waits for nothing: when ready, without a config, or in the store's queue.
#[test]
fn sigterm_stops_the_daemon_at_once() {
    lab::test(Timing::Timed, || {
        let lab = bare(1);
        let node = lab.node(1);
        let mut manager = Manager::on_a_path();
        let mut ends = |state: &str| {
            let mut daemon = manager.start(node, cluster::FLAGS);
            lab::wait_for(state, SOON, || manager.status().starts_with(state));
            let (begun, before) = (Instant::now(), View::of(&node.ns));
            let success = daemon.terminate().success();
            let took = begun.elapsed();
            assert!(success, "{state}");
            lab::in_time(&format!("stopping while {state}"), took, SECOND);
            assert_eq!(manager.received("STOPPING=1").len(), 1);
            assert_eq!(before.diff(&View::of(&node.ns)), "");
            manager.received.clear();
        };
        ends("waiting for the network config");
        lab.store.config(VXLAN);
        let turn = File::create(lab.store.path().join(".lock")).unwrap();
        turn.lock().unwrap();
        ends("waiting for a lease");
        turn.unlock().unwrap();
        ends("ready, 0 peers");
    });
}

#[test]
fn sighup_applies_the_config_once_if_reload_is_disabled() {
    lab::test(Timing::Free, || {
        let lab = bare(1);
        let node = lab.node(1);
        let mut daemon = node.start(&["--iface=eth0", "--config-reload=false"]);
        let hangup = |daemon: &Daemon<'_>| node.ns.run(&format!("kill -HUP {}", daemon.pid()));
        lab::wait_for("it waits", SOON, || is(node, "/readyz", 503));
        hangup(&daemon);
        lab.store.config(VXLAN);
        daemon.wait_ready();
        let devices = || node.ns.run("ip -o link show type vxlan");
        let keeps = |device: &str| {
            lab::holds_for("nobody has asked", 2 * SECOND, || devices().contains(&format!(" {device}: ")));
        };
        lab.store.config(VNI_7);
        keeps("flannel.1");
        hangup(&daemon);
        lab::wait_for("the new VNI", SOON, || devices().contains(" flannel.7: "));
        lab.store.config(VXLAN);
        keeps("flannel.7");
        let log = daemon.log();
        assert!(log.lines().any(|line| line.contains("SIGHUP: ") && line.contains(" changes in ")), "{log}");
        // The answer of the store to a new request counts, not its earlier reports.
        let (subnets, away) = (lab.store.path().join("subnets"), lab.store.path().join("away"));
        fs::rename(&subnets, &away).unwrap();
        lab::wait_for("the store is lost", SOON, || node.twill(&["status"]).contains("lost"));
        lab.store.config(VNI_8);
        hangup(&daemon);
        lab::wait_for("the newest VNI", SOON, || devices().contains(" flannel.8: "));
        assert!(daemon.is_alive());
    });
}

/// Asserts the rights of each thread, as the kernel shows them.
fn has_only_what_it_needs(daemon: &Daemon<'_>) {
    const NET_ADMIN_AND_RAW: u64 = 1 << 12 | 1 << 13;
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let threads: Vec<_> =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect();
    assert!(threads.len() >= 3, "{threads:?}");
    for thread in threads {
        let field = |name: &str| {
            let value = thread.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(value.trim(), 16).unwrap()
        };
        assert_eq!(["CapEff:", "CapPrm:"].map(field), [NET_ADMIN_AND_RAW; 2], "{thread}");
        assert_eq!(["CapInh:", "CapAmb:"].map(field), [NET_ADMIN_AND_RAW, 0], "{thread}");
        assert_eq!(field("CapBnd:") & !NET_ADMIN_AND_RAW, 0, "{thread}");
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (1, 2), "{thread}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
}

/// Returns the address families of a process's open sockets, as the kernel lists them.
fn families(daemon: &Daemon<'_>) -> BTreeSet<&'static str> {
    const LISTS: [(&str, &str); 11] = [
        ("unix", "AF_UNIX"),
        ("netlink", "AF_NETLINK"),
        ("packet", "AF_PACKET"),
        ("tcp", "AF_INET"),
        ("udp", "AF_INET"),
        ("raw", "AF_INET"),
        ("icmp", "AF_INET"),
        ("tcp6", "AF_INET6"),
        ("udp6", "AF_INET6"),
        ("raw6", "AF_INET6"),
        ("icmp6", "AF_INET6"),
    ];
    let process = format!("/proc/{}", daemon.pid());
    let open = fs::read_dir(format!("{process}/fd")).unwrap().flatten();
    let links = open.filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.display().to_string()));
    let inode = |link: String| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    let inodes: Vec<String> = links.filter_map(inode).collect();
    let lists = LISTS.iter().map(|(list, family)| {
        (fs::read_to_string(format!("{process}/net/{list}")).unwrap_or_default(), *family)
    });
    let lists: Vec<_> = lists.collect();
    let family = |inode: &String| {
        let found = lists.iter().find(|(list, _)| list.split_whitespace().any(|word| word == inode));
        found.map(|(_, family)| *family)
    };
    inodes.iter().filter_map(family).collect()
}

/// A daemon that verifies direct paths has every kind of socket open that any daemon has.
#[test]
fn the_unit_allows_each_kind_of_socket_that_the_daemon_uses() {
    lab::test(Timing::Free, || {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/twill.service");
        let unit = fs::read_to_string(unit).unwrap();
        let allowed = unit.lines().find_map(|line| line.strip_prefix("RestrictAddressFamilies=")).unwrap();
        let allowed: BTreeSet<&str> = allowed.split(' ').collect();
        let lab = cluster::lab(Topology::flat(2), cluster::DIRECT_DUAL);
        let (daemons, _pods) = cluster::start(&lab);
        lab::wait_for("all of them are open", 2 * SOON, || families(&daemons[0]) == allowed);
    });
}

/// The unit or the container forbids AF_PACKET, or CAP_NET_RAW is missing.
#[test]
fn status_reports_that_no_frame_can_be_sent() {
    lab::test(Timing::Free, || {
        for config in [cluster::DIRECT, VXLAN] {
            let lab = cluster::lab(Topology::flat(2), config);
            let node = lab.node(1);
            let daemon = node.start_under(&["setpriv", "--bounding-set=-net_raw"], cluster::FLAGS);
            let _peer = lab.node(2).start(cluster::FLAGS);
            daemon.wait_ready();
            let words = "this daemon cannot open a socket to probe peers";
            lab::wait_for("status says it", 2 * SOON, || node.twill(&["status"]).contains(words));
            assert!(is(node, "/readyz", 200), "pods work all the same");
            assert!(!lab.node(2).twill(&["status"]).contains(words), "the other one can");
            assert!(daemon.log().contains("(os error 1); CAP_NET_RAW is needed"), "{}", daemon.log());
        }
    });
}

#[test]
fn a_health_port_that_cannot_be_bound_is_reported_with_the_reason() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let under = ["setpriv", "--bounding-set=-net_bind_service"];
        for (flag, words) in [
            ("--healthz-port=80", "(os error 13); a port below 1024 needs CAP_NET_BIND_SERVICE"),
            ("--healthz-ip=192.0.2.77", "(os error 99); this node has no such address"),
        ] {
            let mut daemon = lab.node(1).start_under(&under, &["--iface=eth0", flag]);
            assert_eq!(daemon.wait_exit().code(), Some(1), "{}", daemon.log());
            let log = daemon.log();
            assert!(log.lines().last().is_some_and(|line| line.contains(words)), "{log}");
        }
    });
}

/// If nothing that it needs belongs to root alone, neither the daemon nor its tools need root.
#[test]
fn the_daemon_runs_as_another_user_than_root() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), &traffic::Manager::Nft.config("vxlan"));
        let node = lab.node(1);
        let user = lab::enter::other_user();
        fs::create_dir_all(node.cache_dir()).unwrap();
        for dir in [node.run_dir(), node.cache_dir(), lab.store.path()] {
            node.ns.run(&format!("chown -R {user} {}", dir.display()));
        }
        let user = user.to_string();
        let under = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"];
        let caps = ["--inh-caps=+net_admin,+net_raw", "--ambient-caps=+net_admin,+net_raw"];
        let daemon = node.start_under(&[&under[..], &caps].concat(), MASQ);
        daemon.wait_ready();
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        assert!(status.contains(&format!("Uid:\t{user}\t{user}\t{user}\t{user}")), "{status}");
        lab::wait_for("its rules are there", SOON, || node.ns.run("nft list ruleset").contains("masquerade"));
        // A new device accepts router advertisements; the file belongs to root in a namespace of this user's networks.
        let accept_ra = node.ns.run("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra");
        assert_eq!(accept_ra.trim(), "0", "{}", daemon.log());
    });
}

#[test]
fn no_thread_keeps_a_right_that_it_does_not_need() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let daemons = lab.start_all(cluster::FLAGS);
        has_only_what_it_needs(&daemons[0]);
        assert!(!daemons[0].log().contains("WARN"), "{}", daemons[0].log());
    });
}

/// The unit file starts the daemon without the right to give up rights, and with none to warn about.
#[test]
fn a_daemon_with_few_rights_warns_of_nothing() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let under =
            ["setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all", "--no-new-privs"];
        let daemon = lab.node(1).start_under(&under, cluster::FLAGS);
        daemon.wait_ready();
        has_only_what_it_needs(&daemon);
        assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    });
}

/// The daemon may write only in the directories that existed at its start. A new directory in place of the cache is
/// out of its reach, even for root. It says so, with the remedy.
#[test]
fn the_daemon_writes_only_in_its_own_directories() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        // The cache is not beside the store, which may be replaced.
        let cache = std::env::temp_dir().join("cache");
        let cache_dir = format!("--cache-dir={}", cache.display());
        let mut daemon = node.start(&["--iface=eth0", &cache_dir]);
        daemon.wait_ready();
        let files = || fs::read_dir(&cache).into_iter().flatten().count();
        lab::wait_for("the cache is written", SOON, || files() > 0);
        fs::rename(&cache, cache.with_extension("old")).unwrap();
        fs::create_dir(&cache).unwrap();
        node.ns.run(&format!("setpriv --bounding-set=-all touch {0}/file && rm {0}/file", cache.display()));
        let _peer = lab.node(2).start(cluster::FLAGS);
        lab::wait_for("it is refused (does this kernel have Landlock?)", 2 * SOON, || {
            node.twill(&["status"]).contains("Permission denied")
        });
        let status = node.twill(&["status"]);
        assert!(status.contains("restart the daemon"), "{status}");
        assert_eq!(files(), 0);
        assert!(is(node, "/readyz", 200));
        daemon.restart();
        lab::wait_for("after a restart it is its own", 2 * SOON, || files() > 0);
    });
}
