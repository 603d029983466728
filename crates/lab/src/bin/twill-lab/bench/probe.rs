//! `bench probe`: what it costs to ask thousands of peers that answer, in the long run, and to look at what is known of them.
//! Node 2 has every peer's address, and answers for every pod subnet.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Daemon, Lab, Node, until};
use serde_json::{Value, json};

use super::held;
use super::options::{Backend, Case, Families, Named, Options, StoreKind};
use super::process::{Usage, is_alive, memory, of_thread};
use super::quantiles;
use super::report::{Report, mib, ms};
use super::stage;
use crate::paint::table;

const PEERS: [u32; 1] = [5_000];
const LIMIT: Duration = Duration::from_secs(60);
/// Until nothing is new to the prober any more.
const SETTLE: Duration = Duration::from_secs(90);
const SPAN: Duration = Duration::from_secs(120);
const LOOKS: usize = 20;
/// Node 2 is whoever is asked: peers' addresses, pod subnets and MACs are its own, and it answers as often as it is asked.
/// Without a rule of its own the local table would be one with the main one, where routes to peers are longer.
const EVERYBODY: &str = "ip rule add priority 1 lookup local; \
    ip route add local 172.16.0.0/12 dev lo; ip route add local 10.0.0.0/10 dev lo; \
    sysctl -qw net.ipv4.icmp_ratelimit=0; nft 'add table netdev lab; \
    add chain netdev lab mine { type filter hook ingress device flannel.1 priority 0; }; \
    add rule netdev lab mine meta pkttype set host'";

struct Outcome {
    prober: Duration,
    all: Duration,
    span: Duration,
    asked: u64,
    resident: u64,
    looks: Vec<Duration>,
}

pub(super) fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut rows = Vec::new();
    let is_meant = |case: &&Case| {
        (case.store, case.backend, case.families) == (StoreKind::Dir, Backend::Vxlan, Families::Ipv4)
    };
    for case in options.cases(&PEERS).iter().filter(is_meant) {
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
    let lab = stage::build_routed(case);
    let (node, others) = (lab.node(1), lab.node(2));
    let other = others.start(&["--iface=eth0", "--probe=off"]);
    let daemon = node.start(&["--iface=eth0"]);
    for (node, daemon) in [(node, &daemon), (others, &other)] {
        held::wait(node, case, LIMIT, || is_alive(daemon.pid()))?;
    }
    others.ns.run(EVERYBODY);
    other.pause();
    answer(&lab, &daemon)?;
    sleep(SETTLE);
    let (pid, begun) = (daemon.pid(), Instant::now());
    let (prober, all, asked) = (of_thread(pid, "probes"), Usage::of(pid), received(others)?);
    sleep(SPAN);
    let span = begun.elapsed();
    Ok(Outcome {
        prober: of_thread(pid, "probes").saturating_sub(prober),
        all: Usage::of(pid).since(all).total(),
        span,
        asked: received(others)? - asked,
        resident: memory(pid).0,
        looks: (0..LOOKS).map(|_| look(node)).collect(),
    })
}

/// Waits until a peer answers.
fn answer(lab: &Lab, daemon: &Daemon<'_>) -> Result<(), String> {
    let answered = until(LIMIT, || lab.node(1).ping(super::peers::Peer(0).subnet()));
    answered.map(drop).ok_or_else(|| {
        let log = daemon.log();
        format!("a peer does not answer; the log begins: {}", log.lines().take(10).collect::<String>())
    })
}

/// Packets that came out of the tunnel.
fn received(node: &Node) -> Result<u64, String> {
    let links: Value = serde_json::from_str(&node.ns.run("ip -s -j link show dev flannel.1"))
        .map_err(|error| format!("ip -s -j link: {error}"))?;
    links[0]["stats64"]["rx"]["packets"].as_u64().ok_or_else(|| "ip counts no packets".into())
}

fn look(node: &Node) -> Duration {
    let begun = Instant::now();
    node.twill(&["status"]);
    begun.elapsed()
}

const HEAD: [&str; 6] = ["peers", "prober CPU %", "all CPU %", "packets/s", "MiB", "status ms (worst)"];

fn row(case: &Case, outcome: &Outcome) -> [String; 6] {
    let share = |time: Duration| format!("{:.2}", time.as_secs_f64() / outcome.span.as_secs_f64() * 100.0);
    let worst = outcome.looks.iter().max().copied().unwrap_or_default();
    [
        case.peers.to_string(),
        share(outcome.prober),
        share(outcome.all),
        format!("{:.0}", outcome.asked as f64 / outcome.span.as_secs_f64()),
        mib(outcome.resident),
        format!("{} ({})", ms(quantiles(&outcome.looks).unwrap_or_default().0), ms(worst)),
    ]
}

fn line(case: &Case, outcome: &Outcome) -> Value {
    json!({
        "bench": "probe",
        "peers": case.peers,
        "span_s": outcome.span.as_secs_f64(),
        "prober_cpu_s": outcome.prober.as_secs_f64(),
        "cpu_s": outcome.all.as_secs_f64(),
        "packets": outcome.asked,
        "rss_bytes": outcome.resident,
        "status_median_s": quantiles(&outcome.looks).unwrap_or_default().0.as_secs_f64(),
    })
}
