//! Builds the underlay: nodes on one layer-2 segment, or on two with a router between. The pod network is the daemon's work; what
//! a CNI plugin would do is in `pod`.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::daemon::Daemon;
use crate::enter::work_dir;
use crate::etcd::{self, Etcd, EtcdSetup};
use crate::node::{Node, host_lines};
use crate::ns::{Ns, ip_batch};
use crate::pod::Pod;
use crate::store::Store;

/// Sysctls that a network manager and a CNI plugin would have set on the machine.
const FORWARDING: [(&str, &str); 2] = [("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")];
/// Sysctls with known values, whatever the host has. Addresses are usable at once, and IPv6 ones stay when a device goes down.
pub(crate) const PLAIN: [(&str, &str); 7] = [
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.all.keep_addr_on_down", "1"),
    ("net.ipv6.conf.default.keep_addr_on_down", "1"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
];

/// Address of the outside host.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 200);
/// IPv6 address of the outside host.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x200);

/// Sysctls that ignore redirects: otherwise a shorter path would replace the one that the test has set up.
const NO_REDIRECTS: [(&str, &str); 3] = [
    ("net.ipv4.conf.all.accept_redirects", "0"),
    ("net.ipv4.conf.eth0.accept_redirects", "0"),
    ("net.ipv6.conf.eth0.accept_redirects", "0"),
];

/// Description of a lab. Node k is 192.168.100.(10+k) on segment A, 192.168.101.(10+k) on segment B.
#[derive(Clone, Debug)]
pub struct Topology {
    near: usize,
    far: usize,
    twill: Option<PathBuf>,
    etcd: Option<EtcdSetup>,
    outside: bool,
}

impl Topology {
    /// Puts `nodes` nodes on one segment.
    pub fn flat(nodes: usize) -> Self {
        Self { near: nodes, far: 0, twill: None, etcd: None, outside: false }
    }

    /// Puts `near` nodes on segment A, then `far` nodes on segment B, with a router between.
    pub fn routed(near: usize, far: usize) -> Self {
        Self { near, far, twill: None, etcd: None, outside: false }
    }

    /// Sets the daemon's executable; `TWILL_BIN` in the environment takes precedence.
    pub fn twill(mut self, path: impl Into<PathBuf>) -> Self {
        self.twill = Some(path.into());
        self
    }

    /// Adds a real etcd in place of the shared directory, at 192.168.100.5 on segment A.
    pub fn etcd(mut self, setup: EtcdSetup) -> Self {
        self.etcd = Some(setup);
        self
    }

    /// Adds a host on segment A, 192.168.100.200, that knows the nodes and no pod network.
    pub fn outside(mut self) -> Self {
        self.outside = true;
        self
    }

    /// Returns the executable that the nodes will run, without checking that it exists.
    pub fn executable(&self) -> PathBuf {
        twill_path(self.twill.as_deref())
    }

    /// Builds namespaces, switches, cables and addresses, and starts etcd if there is one. Starts no daemon.
    pub fn build(self) -> Lab {
        static LABS: AtomicUsize = AtomicUsize::new(0);
        let home = work_dir().join(format!("lab{}", LABS.fetch_add(1, Ordering::Relaxed)));
        let etcd = self.etcd.map(|setup| Arc::new(Etcd::create(setup, home.join("etcd"))));
        let store = match &etcd {
            Some(etcd) => Store::etcd(Arc::clone(etcd)),
            None => Store::directory(home.join("store")),
        };
        let twill = self.executable();
        let node = |k| Node::new(k, if k <= self.near { 'A' } else { 'B' }, &home, &store, &twill);
        let nodes: Vec<_> = (1..=self.near + self.far).map(node).collect();
        let router = (self.far > 0).then(|| Ns::named("router"));
        let outside = self.outside.then(|| Ns::named("outside"));
        let lab = Lab { store, nodes, router, etcd, outside };
        lab.wire();
        lab.etcd.iter().for_each(|etcd| etcd.start());
        lab
    }
}

fn twill_path(given: Option<&Path>) -> PathBuf {
    let beside = || std::env::current_exe().map(|exe| exe.with_file_name("twill")).unwrap_or_default();
    match std::env::var_os("TWILL_BIN").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => given.map_or_else(beside, Path::to_owned),
    }
}

/// A built topology; everything in it is removed when it is dropped.
#[derive(Debug)]
pub struct Lab {
    pub store: Store,
    nodes: Vec<Node>,
    router: Option<Ns>,
    etcd: Option<Arc<Etcd>>,
    outside: Option<Ns>,
}

impl Lab {
    /// Returns node `k`, counted from 1.
    pub fn node(&self, k: usize) -> &Node {
        &self.nodes[k - 1]
    }

    /// Returns all nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the router's namespace. Panics if the topology has one segment.
    pub fn router(&self) -> &Ns {
        self.router.as_ref().expect("only a routed topology has a router")
    }

    /// Returns the host that is not a node; its addresses are [`OUTSIDE`] and [`OUTSIDE6`]. Panics if the topology has none.
    pub fn outside(&self) -> &Ns {
        self.outside.as_ref().expect("only a topology with an outside has one")
    }

    /// Returns the lab's etcd. Panics if the store is a directory.
    pub fn etcd(&self) -> &Etcd {
        self.etcd.as_ref().expect("only a topology with etcd has one")
    }

    /// Starts the daemon on every node and waits until all are ready.
    pub fn start_all(&self, args: &[&str]) -> Vec<Daemon<'_>> {
        let daemons: Vec<_> = self.nodes.iter().map(|node| node.start(args)).collect();
        daemons.iter().for_each(Daemon::wait_ready);
        daemons
    }

    /// Makes one pod on each node.
    pub fn pods(&self) -> Vec<Pod> {
        self.nodes.iter().map(Node::pod).collect()
    }

    fn spaces(&self) -> impl Iterator<Item = &Ns> {
        let etcd = self.etcd.iter().map(|etcd| etcd.ns());
        self.nodes
            .iter()
            .map(|node| &node.ns)
            .chain(self.router.as_ref())
            .chain(etcd)
            .chain(self.outside.as_ref())
    }

    fn segments(&self) -> &'static [char] {
        if self.router.is_some() { &['A', 'B'] } else { &['A'] }
    }

    fn wire(&self) {
        ip_batch(
            &[],
            &self.spaces().fold(String::new(), |lines, ns| lines + "netns add " + ns.name() + "\n"),
        );
        for ns in self.spaces() {
            ns.sysctl(&PLAIN);
            ns.sysctl(&FORWARDING);
        }
        ip_batch(&[], &self.switch_lines());
        for node in &self.nodes {
            node.ns.batch(&host_lines(node.ip, node.ip6));
        }
        if let Some(etcd) = &self.etcd {
            etcd.ns().batch(&host_lines(etcd::ADDRESS, etcd::ADDRESS6));
            etcd.ns().wait_up(&["eth0"]);
        }
        if let Some(outside) = &self.outside {
            outside.sysctl(&NO_REDIRECTS);
            outside.batch(&outside_lines());
            outside.wait_up(&["eth0"]);
        }
        if let Some(router) = &self.router {
            let mut lines = "link set lo up\n".to_owned();
            for (net, dev) in [("100", "eth0"), ("101", "eth1")] {
                let _ = writeln!(lines, "link set {dev} up\naddress add 192.168.{net}.1/24 dev {dev}");
                let _ = writeln!(lines, "address add fd00:{net}::1/64 dev {dev}");
            }
            router.batch(&lines);
            router.wait_up(&["eth0", "eth1"]);
        }
        self.nodes.iter().for_each(|node| node.ns.wait_up(&["eth0"]));
    }

    /// Returns the `ip -batch` lines for the switches in the lab's root namespace, and for the cables to their hosts.
    /// A port is named after its host.
    fn switch_lines(&self) -> String {
        let mut lines = String::new();
        // Older kernels (6.12) require a requested index to be free here, too. The hosts' 2 and 3 must not be taken.
        for (index, segment) in (90..).zip(self.segments()) {
            let _ = writeln!(lines, "link add seg{segment} index {index} type bridge mcast_snooping 0");
            let _ = writeln!(lines, "link set seg{segment} up");
        }
        // With equal indexes at both ends the kernel takes up to a second to report the carrier.
        let mut index = 100;
        let mut cable = |(ns, dev, mac): (&str, &str, &str), (port, segment): (&str, char)| {
            index += 1;
            let own = if dev == "eth0" { 2 } else { 3 };
            let _ = write!(lines, "link add {dev} index {own} mtu 1500 address {mac} netns {ns} ");
            let _ = writeln!(lines, "type veth peer name {port} index {index}");
            let _ = writeln!(lines, "link set {port} mtu 1500 master seg{segment} up");
        };
        for node in &self.nodes {
            cable((&node.name, "eth0", &node.mac), (&node.name, node.segment));
        }
        if self.router.is_some() {
            cable(("router", "eth0", "02:00:00:00:01:00"), ("routerA", 'A'));
            cable(("router", "eth1", "02:00:00:00:01:01"), ("routerB", 'B'));
        }
        if self.etcd.is_some() {
            cable(("etcd", "eth0", "02:00:00:00:01:02"), ("etcd", 'A'));
        }
        if self.outside.is_some() {
            cable(("outside", "eth0", "02:00:00:00:01:03"), ("outside", 'A'));
        }
        lines
    }
}

/// Returns the `ip -batch` lines for the outside host. Its only route leads to segment B, since a default route might
/// lead to the pods.
fn outside_lines() -> String {
    format!(
        "link set lo up\nlink set eth0 up\naddress add {OUTSIDE}/24 dev eth0\naddress add {OUTSIDE6}/64 dev eth0\n\
         route add 192.168.101.0/24 via 192.168.100.1 dev eth0\nroute add fd00:101::/64 via fd00:100::1 dev eth0\n"
    )
}

impl Drop for Lab {
    /// Removes everything at once, so that the next lab can use the same names in the same process.
    fn drop(&mut self) {
        self.etcd.iter().for_each(|etcd| etcd.kill9());
        let mut lines = String::new();
        let ports = self.nodes.iter().map(|node| node.name.as_str());
        let etcd = self.etcd.iter().map(|_| "etcd");
        let outside = self.outside.iter().map(|_| "outside");
        let routers = self.router.iter().flat_map(|_| ["routerA", "routerB"]);
        for port in ports.chain(routers).chain(etcd).chain(outside) {
            let _ = writeln!(lines, "link delete {port}");
        }
        for segment in self.segments() {
            let _ = writeln!(lines, "link delete seg{segment}");
        }
        for port in self.nodes.iter().filter_map(Node::second_card_port) {
            let _ = writeln!(lines, "link delete {port}");
        }
        let pods = self.nodes.iter().flat_map(Node::pod_names);
        for name in self.spaces().map(|ns| ns.name().to_owned()).chain(pods) {
            let _ = writeln!(lines, "netns delete {name}");
        }
        // While a failed test unwinds, a second panic would hide the first one, and the lab dies with us anyway.
        if !std::thread::panicking() {
            ip_batch(&["-force"], &lines);
        }
    }
}
