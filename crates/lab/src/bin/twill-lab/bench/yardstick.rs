//! Writes the same objects by `ip -batch`, `bridge -batch` and `nft -f` on a node without a daemon. It shows the time that the
//! kernel and the plainest programs need for them.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, Node};

use super::held;
use super::options::{Backend, Case, Families};
use super::peers::{Peer, Place};

pub(super) struct Yardstick {
    /// Time of `ip` and `bridge`.
    pub(super) objects: Duration,
    /// Time of the traffic rules, sets included; `None` if the kernel refuses that many at once.
    pub(super) rules: Option<Duration>,
    /// Number of peers that the daemon's own traffic rules name.
    pub(super) named: usize,
}

pub(super) fn run(lab: &Lab, case: &Case) -> Result<Yardstick, String> {
    let (like, node) = (lab.node(1), lab.node(3));
    let by_objects = like.ns.run("ip nexthop show | head -1").contains("id ");
    devices(node, case);
    let rules = like.ns.run("nft list ruleset");
    let bridge = Batch { program: "bridge", arguments: &["-batch"], text: fdb(case) };
    let ip =
        Batch { program: "ip", arguments: &["-batch"], text: neighbours(case) + &routes(case, by_objects) };
    let objects = bridge.run(node)? + ip.run(node)?;
    held::verify(node, case)?;
    let named = rules.matches("172.17.").count() + rules.matches("172.18.").count();
    if (1..case.peers as usize).contains(&named) || (named == 0 && rules.contains("set vteps")) {
        println!("    the traffic rules name {named} of {} peers: see the daemon's log", case.peers);
    }
    let rules = Batch { program: "nft", arguments: &["-f"], text: rules }.run(node);
    if let Err(why) = &rules {
        println!("    the same rules once more: {why}");
    }
    Ok(Yardstick { objects, rules: rules.ok(), named })
}

struct Batch {
    program: &'static str,
    arguments: &'static [&'static str],
    text: String,
}

impl Batch {
    fn run(&self, node: &Node) -> Result<Duration, String> {
        if self.text.is_empty() {
            return Ok(Duration::ZERO);
        }
        let file = lab::enter::work_dir().join("tmp").join("batch");
        fs::write(&file, &self.text).map_err(|e| format!("{}: {e}", file.display()))?;
        let mut command: Command = node.ns.command(self.program);
        command.args(self.arguments).arg(&file).stdout(Stdio::null());
        let begun = Instant::now();
        let out = command.output().map_err(|e| format!("{}: {e}", self.program))?;
        let took = begun.elapsed();
        if out.status.success() {
            return Ok(took);
        }
        let said = String::from_utf8_lossy(&out.stderr);
        Err(format!(
            "{} {}: {}",
            self.program,
            self.arguments.join(" "),
            said.lines().next().unwrap_or_default()
        ))
    }
}

/// Adds the tunnel devices, before anything is timed.
fn devices(node: &Node, case: &Case) {
    if case.backend != Backend::Vxlan {
        return;
    }
    let mut lines = String::new();
    let all = [("flannel.1", "172.16.0.3"), ("flannel-v6.1", "fd00:ac::3")];
    for (name, local) in all.into_iter().take(if case.families == Families::Dual { 2 } else { 1 }) {
        let _ = writeln!(
            lines,
            "link add {name} type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning\nlink set {name} up"
        );
    }
    node.ns.batch(&lines);
}

/// Returns a line of each peer for IPv4, and one for IPv6 if the case is dual-stack.
fn lines(case: &Case, one: impl Fn(Peer) -> String, other: impl Fn(Peer) -> String) -> String {
    let peers = || (0..case.peers).map(Peer);
    let mut text: String = peers().map(one).collect();
    if case.families == Families::Dual {
        text.extend(peers().map(other));
    }
    text
}

fn fdb(case: &Case) -> String {
    if case.backend == Backend::HostGw {
        return String::new();
    }
    let line = |mac: String, device: &str, to: String| {
        format!("fdb replace {mac} dev {device} dst {to} self permanent\n")
    };
    lines(
        case,
        |peer| line(peer.mac(), "flannel.1", peer.address(Place::First).to_string()),
        |peer| line(peer.mac6(), "flannel-v6.1", peer.address6(Place::First).to_string()),
    )
}

fn neighbours(case: &Case) -> String {
    if case.backend == Backend::HostGw {
        return String::new();
    }
    let line = |at: String, mac: String, device: &str| {
        format!("neigh replace {at} lladdr {mac} dev {device} nud permanent\n")
    };
    lines(
        case,
        |peer| line(peer.subnet().to_string(), peer.mac(), "flannel.1"),
        |peer| line(peer.subnet6().to_string(), peer.mac6(), "flannel-v6.1"),
    )
}

/// Returns the routes in the daemon's shape: by next hop objects if it uses them.
fn routes(case: &Case, by_objects: bool) -> String {
    let vxlan = case.backend == Backend::Vxlan;
    let way = |peer: Peer| match vxlan {
        true => format!("via {} dev flannel.1 onlink", peer.subnet()),
        false => format!("via {} dev eth0", peer.address(Place::First)),
    };
    let way6 = |peer: Peer| match vxlan {
        true => format!("via {} dev flannel-v6.1 onlink", peer.subnet6()),
        false => format!("via {} dev eth0", peer.address6(Place::First)),
    };
    let one = |peer: Peer| match by_objects {
        true => format!(
            "nexthop replace id {id} {} proto 84\nroute replace {}/24 nhid {id} proto 84\n",
            way(peer),
            peer.subnet(),
            id = peer.0 + 1
        ),
        false => format!("route replace {}/24 {} proto 84\n", peer.subnet(), way(peer)),
    };
    lines(case, one, |peer| format!("route replace {}/64 {} proto 84\n", peer.subnet6(), way6(peer)))
}
