//! `bench churn`, the second part: restarts of a daemon whose thousands of peers the kernel holds already.

use std::time::{Duration, Instant};

use lab::{Monitors, until};
use serde_json::json;

use super::held;
use super::options::{Case, Named, Options};
use super::process::{Usage, is_alive, memory, rest};
use super::quantiles;
use super::report::{Report, mib, ms};
use super::stage::{self, Who};
use crate::paint::table;

const PEERS: [u32; 1] = [10_000];
const LIMIT: Duration = Duration::from_secs(120);
const IDLE: Duration = Duration::from_millis(500);
/// Texts that mark a monitor's line about the pod network.
const OURS: [&str; 5] = ["flannel", "twill", "proto 84", " 10.", "172.17."];

struct Restart {
    ready: Duration,
    cpu: Duration,
    peak: u64,
    writes: Vec<String>,
}

pub(super) fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut rows = Vec::new();
    for case in options.cases(&PEERS) {
        println!(
            "{} peers, {}, {}: {} restarts",
            case.peers,
            case.store.name(),
            case.backend.name(),
            options.runs
        );
        let restarts = all(&case, options.runs)?;
        for restart in &restarts {
            report.line(&line(&case, restart))?;
        }
        rows.push(row(&case, &restarts));
    }
    println!("\n{}", table(HEAD, rows));
    Ok(())
}

fn all(case: &Case, number: usize) -> Result<Vec<Restart>, String> {
    let lab = stage::build(case, 1);
    let node = lab.node(1);
    let mut daemon = stage::start(&lab, node, &Who::Twill);
    held::wait(node, case, LIMIT, || is_alive(daemon.pid()))?;
    rest(daemon.pid(), IDLE, LIMIT);
    let mut monitors = Monitors::start(&node.ns);
    let mut restarts = Vec::new();
    for _ in 0..number {
        daemon.kill9();
        monitors.forget();
        let begun = Instant::now();
        daemon.restart();
        let ready = || node.get("/readyz").filter(|reply| reply.status == 200).map(|_| begun.elapsed());
        let ready = until(LIMIT, ready).ok_or_else(|| format!("not ready again: {}", daemon.log()))?;
        rest(daemon.pid(), IDLE, LIMIT);
        restarts.push(Restart {
            ready,
            cpu: Usage::of(daemon.pid()).total(),
            peak: memory(daemon.pid()).1,
            writes: monitors.lines_about(&OURS),
        });
    }
    Ok(restarts)
}

const HEAD: [&str; 8] =
    ["store", "backend", "families", "peers", "ready ms (worst)", "CPU ms", "peak MiB", "writes (all)"];

fn row(case: &Case, restarts: &[Restart]) -> [String; 8] {
    let middle = |of: fn(&Restart) -> Duration| {
        quantiles(&restarts.iter().map(of).collect::<Vec<_>>()).unwrap_or_default().0
    };
    let worst = restarts.iter().map(|restart| restart.ready).max().unwrap_or_default();
    let peak = restarts.iter().map(|restart| restart.peak).max().unwrap_or_default();
    let writes: Vec<_> = restarts.iter().flat_map(|restart| &restart.writes).collect();
    if let Some(first) = writes.first() {
        println!("    written at a restart, first of {}: {first}", writes.len());
    }
    [
        case.store.name().to_owned(),
        case.backend.name().to_owned(),
        case.families.name().to_owned(),
        case.peers.to_string(),
        format!("{} ({})", ms(middle(|restart| restart.ready)), ms(worst)),
        ms(middle(|restart| restart.cpu)),
        mib(peak),
        writes.len().to_string(),
    ]
}

fn line(case: &Case, restart: &Restart) -> serde_json::Value {
    json!({
        "bench": "restart",
        "store": case.store.name(),
        "backend": case.backend.name(),
        "families": case.families.name(),
        "keys": case.keys,
        "peers": case.peers,
        "ready_s": restart.ready.as_secs_f64(),
        "cpu_s": restart.cpu.as_secs_f64(),
        "peak_bytes": restart.peak,
        "writes": restart.writes.len(),
    })
}
