//! The demo's last part: the direct path to a peer is cut while pods talk, and `auto` takes the tunnel. It prints only what it
//! has seen happen.

use std::time::{Duration, Instant};

use lab::{Filter, Lab, PingStream, Pod, until};

use crate::backend::Backend;
use crate::paint::{BAD, GOOD, QUIET, TYPED, indented, paint};

const PROVEN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(5);
/// Time from which the change to the tunnel counts as slow.
const AIM: Duration = Duration::from_secs(3);

fn route(lab: &Lab, peer: usize) -> String {
    lab.node(1).ns.run(&format!("ip route show {}", lab.node(peer).subnet()))
}

/// Waits until node1's direct path to each node of its segment is proven, and prints it. Returns true at once for backends other
/// than `auto`.
pub(crate) fn proven_by(backend: Backend, lab: &Lab) -> bool {
    let start = Instant::now();
    let direct = || [2, 3].iter().all(|peer| route(lab, *peer).contains("dev eth0")).then_some(());
    let proven = backend != Backend::Auto || until(PROVEN, direct).is_some();
    if backend == Backend::Auto {
        let text = format!("proven after {:.1} s", start.elapsed().as_secs_f64());
        let text = if proven { paint(GOOD, &text) } else { paint(BAD, "not proven") };
        println!("the direct path from node1 to its neighbours: {text}");
    }
    proven
}

/// Cuts ARP between node1 and node2. Returns true if the path changed in time and no echo was lost; prints both.
pub(crate) fn arp(lab: &Lab, pods: &[Pod]) -> bool {
    let (node, peer) = (lab.node(1), lab.node(2));
    println!("ARP between node1 and node2 is cut on the switch while pod1 pings pod2 fifty times a second:");
    print!("{}", indented(&route(lab, 2)));
    let pings = PingStream::start(&pods[0].ns, pods[1].ip());
    let _cut = Filter::between(&node.name, &peer.name, "ether type arp");
    println!(
        "switch$ {}",
        paint(TYPED, "nft add rule bridge filter switch iifname node1 oifname node2 ether type arp drop")
    );
    let start = Instant::now();
    let left = until(PATIENCE, || route(lab, 2).contains("dev flannel.1").then(|| start.elapsed()));
    let report = pings.stop();
    let well = left.is_some_and(|took| took < AIM) && report.lost == 0;
    let style = if well { GOOD } else { BAD };
    let took =
        left.map_or("still direct".into(), |took| format!("by tunnel after {:.1} s", took.as_secs_f64()));
    let text = format!("{took}; {} echoes sent, {} lost", report.sent, report.lost);
    println!("{}", paint(style, &text));
    print!("{}", indented(&route(lab, 2)));
    println!("node1$ {}", paint(TYPED, "twill status"));
    let status = node.twill(&["status"]);
    let about: Vec<_> = status.lines().filter(|line| line.contains(&peer.subnet())).collect();
    print!("{}", indented(&about.join("\n")));
    println!("{}", paint(QUIET, "The direct path is taken again when it has been healthy for 30 s."));
    well
}
