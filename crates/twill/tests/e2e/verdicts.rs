//! Findings about peers, read where people and probes read them, and the kernel's paths to the peers.

use std::time::{Duration, Instant};

use lab::plain::{Announce, settle};
use lab::{Daemon, Lab, Node, until};
use serde_json::Value;

use crate::cluster::SOON;

/// Network config with the backend `auto`; subnets as in [`crate::cluster`].
pub(crate) const AUTO: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"auto"}}"#;

/// Same as [`AUTO`], in both families.
pub(crate) const AUTO_DUAL: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"auto"}}"#;

/// Maximum time from the first lost packet to the finding, and to the change of the path.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(3);
/// Maximum time to the finding if only the daemon sends: its first lost packet comes within a second.
pub(crate) const REPORTED: Duration = Duration::from_secs(4);
/// Maximum time until a direct path is proven, by three answers in a row.
pub(crate) const PROVEN: Duration = Duration::from_secs(10);
/// Time without any loss before a path that was withdrawn is taken again.
pub(crate) const HEALTH: Duration = Duration::from_secs(30);

/// Returns `span` in `make soak`, and zero otherwise.
pub(crate) fn soaking(span: Duration) -> Duration {
    if std::env::var_os("TWILL_SOAK").is_some() { span } else { Duration::ZERO }
}

/// Configures node `k` without a daemon; returns its subnet.
pub(crate) fn plain(lab: &Lab, k: usize, announce: Announce) -> String {
    let subnet = format!("10.244.{k}.0/24");
    settle(lab.node(k), &lab.store, &subnet, announce);
    subnet
}

/// Returns the peers' objects in `twill status --json`.
fn peers(node: &Node) -> Vec<Value> {
    let out = node.twill_output(&["status", "--json"]);
    let status: Option<Value> = serde_json::from_slice(&out.stdout).ok();
    status.and_then(|mut status| Some(std::mem::take(status["peers"].as_array_mut()?))).unwrap_or_default()
}

pub(crate) fn peer(node: &Node, subnet: &str) -> Option<Value> {
    peers(node).into_iter().find(|peer| peer["subnet"] == subnet)
}

/// Returns the subnet and the finding of each peer, read at once.
pub(crate) fn findings(node: &Node) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    peers(node).iter().map(|peer| (text(&peer["subnet"]), text(&peer["health"]["finding"]))).collect()
}

/// Returns the name of the finding about a peer, such as `tunnel lost`.
pub(crate) fn finding(node: &Node, subnet: &str) -> Option<String> {
    Some(peer(node, subnet)?["health"]["finding"].as_str()?.to_owned())
}

/// Waits for this finding; returns how long it took.
pub(crate) fn found(node: &Node, subnet: &str, name: &str, limit: Duration) -> Duration {
    let start = Instant::now();
    if until(limit, || (finding(node, subnet)? == name).then_some(())).is_none() {
        panic!("{}: {subnet} is not found {name}: {}", node.name, node.twill(&["status"]));
    }
    start.elapsed()
}

/// Words of each finding for the person who has to act.
const WORDS: [(&str, &str); 13] = [
    ("next hop silent", "it is down, or not on this layer-2 segment, or"),
    ("silent", "answers no probe: the node or its network is down"),
    ("echo lost", "still answers ARP (or neighbour discovery) but no longer echoes"),
    ("flapping", "were lost, and the others were answered"),
    ("refused", "sends an ICMP error for packets between our pods and those of"),
    ("tunnel lost", "Open UDP 8472 in both directions"),
    ("pod addresses lost", "turn off the check of source and destination"),
    ("no way back", "may have lost its route, neighbour or FDB entry for us"),
    ("proxy ARP", "a router with proxy ARP seems to stand between"),
    ("duplicate address", "take the address away from the wrong one"),
    ("large packets lost", "and smaller ones arrive"),
    ("fragmented", "travel in fragments of tunnel packets"),
    ("checksum fault", "checksum offload of the tunnel's inner packets is broken"),
];

/// Asserts that status, `/readyz`, metrics and the log show the finding, the log once, and that the node stays ready.
pub(crate) fn reported(node: &Node, daemon: &Daemon, subnet: &str, name: &str) {
    let about = format!("peer {subnet}: {name}: ");
    // The finding is reported at once, the note by the reconcile pass that it triggers.
    let text = |warning: &Value| {
        let (problem, remedy) = (warning["problem"].as_str()?, warning["remedy"].as_str());
        Some(remedy.map_or_else(|| problem.to_owned(), |remedy| format!("{problem}. {remedy}")))
    };
    let note = until(SOON, || {
        let status: Value = serde_json::from_str(&node.twill(&["status", "--json"])).ok()?;
        let mut warnings = status["warnings"].as_array()?.iter().filter_map(text);
        warnings.find(|warning| warning.starts_with(&about))
    });
    let note = note.unwrap_or_else(|| panic!("no warning `{about}`: {}", daemon.log()));
    let note = note.as_str();
    let (_, words) = WORDS.iter().find(|(known, _)| *known == name).unwrap();
    assert!(note[about.len()..].contains(words), "{note}");
    // The report is published before the line is written.
    lab::wait_for(note, SOON, || daemon.log().contains(note));
    assert_eq!(daemon.log().matches(note).count(), 1, "{note}: {}", daemon.log());
    let table = node.twill(&["status"]);
    let reason = &note[about.len()..];
    let row = table.lines().find(|line| line.contains(subnet) && line.contains(name));
    assert!(row.is_some_and(|row| row.contains(reason)), "{name}: {table}");
    let readyz = node.get("/readyz").unwrap();
    assert!(readyz.status == 200 && readyz.body.contains(note), "{readyz:?}");
    let metrics = node.get("/metrics").unwrap().body;
    assert!(metrics.lines().any(|line| line.contains(name) && line.contains(subnet)), "{name}: {metrics}");
}

/// Returns the kernel's route to a peer, as ip shows it.
fn route(node: &Node, subnet: &str) -> String {
    let family = if subnet.contains(':') { "-6" } else { "-4" };
    node.ns.run(&format!("ip {family} route show {subnet}"))
}

pub(crate) fn is_direct(node: &Node, subnet: &str) -> bool {
    route(node, subnet).contains("dev eth0")
}

/// Waits until the kernel's route goes through this device; returns how long it took.
pub(crate) fn goes(node: &Node, subnet: &str, device: &str, limit: Duration) -> Duration {
    let start = Instant::now();
    let way = format!("dev {device} ");
    lab::wait_for(&format!("{}: {subnet} by {device}", node.name), limit, || {
        route(node, subnet).contains(&way)
    });
    start.elapsed()
}
