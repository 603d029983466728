//! A node of the lab: its namespace, addresses, its own /run/flannel, and the programs that run on it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::daemon::Daemon;
use crate::ns::{Ns, ip_batch};
use crate::ping::ping;
use crate::pod::{Pod, pod_name};
use crate::store::Store;
use crate::subnet_env::SubnetEnv;
use crate::wait::{patient, until};

/// Port on which every daemon of the lab serves /healthz, /readyz and /metrics, at 127.0.0.1 of its node.
pub const HEALTHZ_PORT: u16 = 8081;
/// Maximum time for an HTTP answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Maximum time until a daemon has written its subnet file.
const SUBNET_FILE: Duration = Duration::from_secs(15);

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

/// A node; its daemon is started by [`Node::start`].
#[derive(Debug)]
pub struct Node {
    /// Number of the node, counted from 1.
    pub index: usize,
    pub name: String,
    /// Segment, 'A' or 'B'.
    pub segment: char,
    pub ns: Ns,
    /// Address of eth0, such as 192.168.100.11 for node 1 on segment A.
    pub ip: Ipv4Addr,
    /// IPv6 address of eth0, such as fd00:100::11.
    pub ip6: Ipv6Addr,
    /// MAC address of eth0, such as `02:00:00:00:00:11`.
    pub mac: String,
    run: PathBuf,
    cache: PathBuf,
    store: Vec<String>,
    twill: PathBuf,
    pods: AtomicUsize,
    has_second_card: AtomicBool,
}

impl Node {
    pub(crate) fn new(index: usize, segment: char, home: &Path, store: &Store, twill: &Path) -> Self {
        let name = format!("node{index}");
        let run = home.join(&name);
        fs::create_dir_all(&run).unwrap_or_else(|e| panic!("{}: {e}", run.display()));
        let net = if segment == 'A' { 100 } else { 101 };
        let host = u8::try_from(index + 10).expect("at most 244 nodes");
        Self {
            index,
            segment,
            ns: Ns::named(&name),
            ip: Ipv4Addr::new(192, 168, net, host),
            ip6: format!("fd00:{net}::{host}").parse().expect("an IPv6 address"),
            mac: format!("02:00:00:00:00:{:02x}", index + 0x10),
            run,
            cache: home.join(format!("{name}-cache")),
            store: store.flags(),
            twill: twill.to_owned(),
            pods: AtomicUsize::new(0),
            has_second_card: AtomicBool::new(false),
            name,
        }
    }

    /// Returns the router's address on the node's segment.
    pub fn gateway(&self) -> Ipv4Addr {
        gateways(self.ip, self.ip6).0
    }

    /// Returns the router's IPv6 address on the node's segment.
    pub fn gateway6(&self) -> Ipv6Addr {
        gateways(self.ip, self.ip6).1
    }

    /// Returns the directory that this node's programs see as /run/flannel.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// Returns the directory in which this node's daemons cache the leases for the time after a reboot.
    pub fn cache_dir(&self) -> &Path {
        &self.cache
    }

    /// Replaces the network card by one with the same name, MAC and addresses, but another interface index.
    pub fn replug(&self) {
        let (name, segment, mac) = (&self.name, self.segment, &self.mac);
        let (own, port) = (50 + self.index, 1000 + self.index);
        ip_batch(
            &[],
            &format!(
                "link delete {name}\n\
                 link add eth0 index {own} mtu 1500 address {mac} netns {name} type veth peer name {name} index {port}\n\
                 link set {name} mtu 1500 master seg{segment} up\n"
            ),
        );
        self.ns.batch(&host_lines(self.ip, self.ip6));
    }

    /// Adds a second network card, `eth1`, on the segment of the first one: up, without an address.
    pub fn second_card(&self) {
        let (name, segment, port) = (&self.name, self.segment, self.second_port());
        ip_batch(
            &[],
            &format!(
                "link add eth1 mtu 1500 netns {name} type veth peer name {port}\n\
                 link set {port} mtu 1500 master seg{segment} up\n"
            ),
        );
        self.ns.batch("link set eth1 up\n");
        self.has_second_card.store(true, Ordering::Relaxed);
    }

    /// Returns the switch's port of the second card, if there is one.
    pub(crate) fn second_card_port(&self) -> Option<String> {
        self.has_second_card.load(Ordering::Relaxed).then(|| self.second_port())
    }

    fn second_port(&self) -> String {
        format!("{}-eth1", self.name)
    }

    /// Removes what does not survive a reboot: the daemon's objects in the kernel and its files in /run. The uplink and the pods
    /// stay, as they would be after the boot.
    pub fn reboot(&self) {
        for entry in fs::read_dir(&self.run).into_iter().flatten().flatten() {
            fs::remove_file(entry.path()).unwrap_or_else(|e| panic!("{}: {e}", entry.path().display()));
        }
        self.ns.run("ip route flush proto 84; ip -6 route flush proto 84");
        let devices = self.ns.run("ip -o link show type vxlan");
        for device in devices.lines().filter_map(|line| line.split(": ").nth(1)) {
            self.ns.run(&format!("ip link delete {device}"));
        }
    }

    /// Starts `twill daemon` with the lab's store, the health port and `args`, such as `--iface=eth0`.
    pub fn start(&self, args: &[&str]) -> Daemon<'_> {
        self.start_under(&[], args)
    }

    /// Same as [`Self::start`], under a program that becomes the daemon, such as `setpriv --bounding-set=-net_admin`.
    pub fn start_under(&self, under: &[&str], args: &[&str]) -> Daemon<'_> {
        self.start_line(under, &self.twill.display().to_string(), args)
    }

    /// Same as [`Self::start`], with another twill executable.
    pub fn start_binary(&self, twill: &str, args: &[&str]) -> Daemon<'_> {
        self.start_line(&[], twill, args)
    }

    fn start_line(&self, under: &[&str], twill: &str, args: &[&str]) -> Daemon<'_> {
        let cache = self.cache.display().to_string();
        let store: Vec<_> = self.store.iter().map(String::as_str).collect();
        let health = ["--healthz-ip=127.0.0.1", &format!("--healthz-port={HEALTHZ_PORT}")];
        let own = [twill, "daemon", "--cache-dir", &cache];
        let line = [under, &own, &store, &health, args].concat();
        Daemon::start(self, line.into_iter().map(str::to_owned).collect())
    }

    /// Starts another program in the daemon's place, such as flanneld. It must serve /readyz where daemons of the lab do.
    pub fn start_other(&self, line: Vec<String>) -> Daemon<'_> {
        Daemon::start(self, line)
    }

    /// Unplugs the node's cable from the switch: its uplink stays up and loses the carrier.
    pub fn unplug(&self) {
        ip_batch(&[], &format!("link set {} down\n", self.name));
    }

    /// Plugs the cable in again.
    pub fn plug(&self) {
        ip_batch(&[], &format!("link set {} up\n", self.name));
    }

    /// Runs `twill ARGS` on this node and returns its output. Panics if it fails.
    pub fn twill(&self, args: &[&str]) -> String {
        let out = self.twill_output(args);
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            panic!("{}: `twill {}`: {}: {}", self.name, args.join(" "), out.status, said.trim());
        }
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs `twill ARGS` on this node and returns its exit status and output.
    pub fn twill_output(&self, args: &[&str]) -> Output {
        let mut command = self.twill_command(args);
        command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{}: twill: {e}", self.name))
    }

    /// Builds the command `twill ARGS` in the node's network namespace, with the node's /run/flannel. Its process id is twill's
    /// own.
    pub fn twill_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.command(&[&self.twill]);
        command.args(args);
        command
    }

    /// Same as [`Self::twill_command`], for any program.
    pub fn command<S: AsRef<OsStr>>(&self, line: &[S]) -> Command {
        let mut command = Command::new("ip");
        // `ip netns exec` makes a mount namespace (with the node's /sys), in which the bind mount stays private.
        let enter = r#"mount --bind "$1" /run/flannel && shift && exec "$@""#;
        command.args(["netns", "exec", &self.name, "sh", "-c", enter, "sh"]);
        command.arg(&self.run).args(line);
        command
    }

    /// Returns the subnet file, if there is a complete one.
    pub fn subnet_env(&self) -> Option<SubnetEnv> {
        SubnetEnv::read(&self.run.join("subnet.env"))
    }

    /// Returns the node's pod subnet, such as 10.244.34.0/24. Waits up to 15 s for the subnet file, then panics.
    pub fn subnet(&self) -> String {
        self.wait_subnet_env().subnet4().unwrap_or_else(|| panic!("{} has no IPv4 subnet", self.name))
    }

    /// Returns the node's IPv6 pod subnet, such as fd00:244:0:51::/64. Waits as [`Self::subnet`] does.
    pub fn subnet6(&self) -> String {
        self.wait_subnet_env().subnet6().unwrap_or_else(|| panic!("{} has no IPv6 subnet", self.name))
    }

    pub(crate) fn wait_subnet_env(&self) -> SubnetEnv {
        until(SUBNET_FILE, || self.subnet_env()).unwrap_or_else(|| {
            panic!("{}: no subnet.env after {} s", self.name, patient(SUBNET_FILE).as_secs())
        })
    }

    /// Makes a new pod on this node, as a CNI plugin would. Waits for subnet.env.
    pub fn pod(&self) -> Pod {
        Pod::create(self, self.pods.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn pod_names(&self) -> impl Iterator<Item = String> {
        (0..self.pods.load(Ordering::Relaxed)).map(|nth| pod_name(self.index, nth))
    }

    /// Sends one echo and waits one second. Returns the round-trip time, or `None` without an answer.
    pub fn ping(&self, to: impl Into<IpAddr>) -> Option<Duration> {
        ping(&self.ns, to.into(), &[])
    }

    /// Sends an HTTP GET to the daemon of this node, such as `/readyz`. Returns `None` if there is no answer.
    pub fn get(&self, path: &str) -> Option<Reply> {
        self.ns.within(|| {
            let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], HEALTHZ_PORT))).ok()?;
            stream.set_read_timeout(Some(patient(ANSWER))).ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            let (head, body) = text.split_once("\r\n\r\n")?;
            Some(Reply { status: head.split(' ').nth(1)?.parse().ok()?, body: body.to_owned() })
        })
    }
}

/// Returns the router's addresses on the segment of a host with these addresses.
fn gateways(ip: Ipv4Addr, ip6: Ipv6Addr) -> (Ipv4Addr, Ipv6Addr) {
    let ([a, b, net, _], [c, d, ..]) = (ip.octets(), ip6.segments());
    (Ipv4Addr::new(a, b, net, 1), Ipv6Addr::new(c, d, 0, 0, 0, 0, 0, 1))
}

/// Returns the `ip -batch` lines that configure a host in a namespace with a cable.
pub(crate) fn host_lines(ip: Ipv4Addr, ip6: Ipv6Addr) -> String {
    let (gateway, gateway6) = gateways(ip, ip6);
    format!(
        "link set lo up\nlink set eth0 up\naddress add {ip}/24 dev eth0\naddress add {ip6}/64 dev eth0\n\
         route add default via {gateway} dev eth0\nroute add default via {gateway6} dev eth0\n"
    )
}
