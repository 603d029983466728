//! `bench probe`: long-term cost of probing thousands of peers that answer. Also the time of `twill status`, and the time until
//! silent peers are reported. Node 2 has every peer's address, and answers for every pod subnet.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Daemon, Filter, Lab, Node, until};
use serde_json::{Value, json};

use super::options::{Backend, Case, Families, Named, Options, StoreKind};
use super::peers::{Peer, Place};
use super::process::{Usage, is_alive, memory, of_thread};
use super::report::{Report, mib, ms};
use super::{arp, held, nic, quantiles, stage};
use crate::paint::table;

const PEERS: [u32; 1] = [5_000];
/// Maximum number of peers on one segment: a lab cannot raise the kernel's limit of learned neighbours. Beyond 200 direct peers
/// each is probed less often; more peers than these would cause as many packets a second.
const NEIGHBOURS: u32 = 600;
const LIMIT: Duration = Duration::from_secs(60);
/// Time after which the prober learns nothing new.
const SETTLE: Duration = Duration::from_secs(90);
const SPAN: Duration = Duration::from_secs(120);
const LOOKS: usize = 20;
/// Number of peers that fall silent, from across the list.
const SILENT: u32 = 20;
const LOOK: Duration = Duration::from_millis(500);
/// Commands that give node 2 the addresses, pod subnets and MACs of all peers, and lift its rate limits. The local
/// table needs a rule of its own. Otherwise the kernel merges it with the main table, which has longer routes to the
/// peers.
const EVERYBODY: &str = "ip rule add priority 1 lookup local; \
    ip route add local 172.17.0.0/16 dev lo; ip route add local 10.0.0.0/10 dev lo; \
    sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.conf.all.arp_ignore=2; ip link set eth0 promisc on; \
    nft 'add table netdev lab; \
    add chain netdev lab mine { type filter hook ingress device DEVICE priority 0; }; \
    add rule netdev lab mine meta pkttype set host'";

struct Outcome {
    prober: Duration,
    all: Duration,
    span: Duration,
    asked: u64,
    resident: u64,
    looks: Vec<Duration>,
    /// Time until each silent peer is reported, since it fell silent.
    found: Vec<Duration>,
}

pub(super) fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut rows = Vec::new();
    let is_meant = |case: &&Case| (case.store, case.families) == (StoreKind::Dir, Families::Ipv4);
    for mut case in options.cases(&PEERS).into_iter().filter(|case| is_meant(&case)) {
        if case.backend == Backend::HostGw {
            case.peers = case.peers.min(NEIGHBOURS);
        }
        let case = &case;
        let took = (SETTLE + SPAN).as_secs();
        println!("{} peers that answer, {}: {took} s", case.peers, case.backend.name());
        let outcome = once(case)?;
        report.line(&line(case, &outcome))?;
        rows.push(row(case, &outcome));
    }
    println!("\n{}", table(HEAD, rows));
    Ok(())
}

fn once(case: &Case) -> Result<Outcome, String> {
    let (lab, device) = match case.backend {
        Backend::Vxlan => (stage::build_routed(case), "flannel.1"),
        Backend::HostGw => (stage::build(case, 2), "eth0"),
    };
    nic::of(&lab.node(1).name)?;
    let (node, others) = (lab.node(1), lab.node(2));
    let other = others.start(&["--iface=eth0", "--probe=off"]);
    let daemon = node.start(&["--iface=eth0"]);
    for (node, daemon) in [(node, &daemon), (others, &other)] {
        held::wait(node, case, LIMIT, || is_alive(daemon.pid()))?;
    }
    others.ns.run(&EVERYBODY.replace("DEVICE", device));
    other.pause();
    if case.backend == Backend::HostGw {
        arp::answer(others, case.peers)?;
        // The pod creates the node's bridge, whose address the probes need as their source.
        node.pod();
    }
    answer(&lab, &daemon)?;
    sleep(SETTLE);
    let (pid, begun) = (daemon.pid(), Instant::now());
    let (prober, all, asked) = (of_thread(pid, "probes"), Usage::of(pid), received(others, device)?);
    sleep(SPAN);
    let span = begun.elapsed();
    Ok(Outcome {
        prober: of_thread(pid, "probes").saturating_sub(prober),
        all: Usage::of(pid).since(all).total(),
        span,
        asked: received(others, device)? - asked,
        resident: memory(pid).0,
        looks: (0..LOOKS).map(|_| look(node)).collect(),
        found: silence(node, case)?,
    })
}

/// Cuts some peers off, and waits until each is reported as a fault. Returns the time of each.
fn silence(node: &Node, case: &Case) -> Result<Vec<Duration>, String> {
    let silent: Vec<_> = (0..SILENT).map(|n| Peer(n * (case.peers / SILENT))).collect();
    let list = |what: fn(&Peer) -> String| silent.iter().map(what).collect::<Vec<_>>().join(", ");
    let hosts = list(|peer| peer.address(Place::First).to_string());
    let subnets = list(|peer| format!("{}/24", peer.subnet()));
    let before = faults(node)?;
    if before > 0 {
        return Err(format!("{before} peers that answer are reported as faults"));
    }
    let _cut = Filter::drops(&[
        &format!("ip daddr {{ {hosts}, {subnets} }}"),
        &format!("arp operation request arp daddr ip {{ {hosts} }}"),
    ]);
    let (begun, mut found) = (Instant::now(), Vec::new());
    let all = until(2 * LIMIT, || {
        let faults = faults(node).unwrap_or_default();
        let now = begun.elapsed();
        found.resize(faults.max(found.len()), now);
        sleep(LOOK);
        (found.len() >= silent.len()).then_some(())
    });
    all.map(|()| found).ok_or_else(|| format!("not all of {SILENT} silent peers are reported as faults"))
}

/// Returns the number of peers that `twill status` reports as faults.
fn faults(node: &Node) -> Result<usize, String> {
    let status: Value = serde_json::from_str(&node.twill(&["status", "--json"]))
        .map_err(|error| format!("twill status --json: {error}"))?;
    let peers = status["peers"].as_array().ok_or("twill status --json has no peers")?;
    Ok(peers.iter().filter(|peer| peer["health"]["fault"] == true).count())
}

/// Waits until a peer answers.
fn answer(lab: &Lab, daemon: &Daemon<'_>) -> Result<(), String> {
    let answered = until(LIMIT, || lab.node(1).ping(Peer(0).subnet()));
    answered.map(drop).ok_or_else(|| {
        let log = daemon.log();
        format!("a peer does not answer; the log begins: {}", log.lines().take(10).collect::<String>())
    })
}

/// Returns the number of packets received on `device`.
fn received(node: &Node, device: &str) -> Result<u64, String> {
    let links: Value = serde_json::from_str(&node.ns.run(&format!("ip -s -j link show dev {device}")))
        .map_err(|error| format!("ip -s -j link: {error}"))?;
    links[0]["stats64"]["rx"]["packets"].as_u64().ok_or_else(|| "ip counts no packets".into())
}

fn look(node: &Node) -> Duration {
    let begun = Instant::now();
    node.twill(&["status"]);
    begun.elapsed()
}

const HEAD: [&str; 8] = [
    "backend",
    "peers",
    "prober CPU %",
    "all CPU %",
    "packets/s",
    "found s (worst)",
    "MiB",
    "status ms (worst)",
];

fn row(case: &Case, outcome: &Outcome) -> [String; 8] {
    let share = |time: Duration| format!("{:.2}", time.as_secs_f64() / outcome.span.as_secs_f64() * 100.0);
    let worst = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    let middle = |times: &[Duration]| quantiles(times).unwrap_or_default().0;
    let (looks, found) = (&outcome.looks, &outcome.found);
    [
        case.backend.name().into(),
        case.peers.to_string(),
        share(outcome.prober),
        share(outcome.all),
        format!("{:.0}", outcome.asked as f64 / outcome.span.as_secs_f64()),
        format!("{:.1} ({:.1})", middle(found).as_secs_f64(), worst(found).as_secs_f64()),
        mib(outcome.resident),
        format!("{} ({})", ms(middle(looks)), ms(worst(looks))),
    ]
}

fn line(case: &Case, outcome: &Outcome) -> Value {
    json!({
        "bench": "probe",
        "backend": case.backend.name(),
        "peers": case.peers,
        "span_s": outcome.span.as_secs_f64(),
        "prober_cpu_s": outcome.prober.as_secs_f64(),
        "cpu_s": outcome.all.as_secs_f64(),
        "packets": outcome.asked,
        "told_s": outcome.found.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
        "rss_bytes": outcome.resident,
        "status_median_s": quantiles(&outcome.looks).unwrap_or_default().0.as_secs_f64(),
    })
}
