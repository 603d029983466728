//! `bench scale`: from the start of a daemon until the kernel holds all peers, and the cost of that. Single changes, a packet to
//! every next hop, and the yardstick follow.

use std::time::{Duration, Instant};

use lab::{Daemon, Lab};
use serde_json::json;

use super::changes::{self, Changes};
use super::held;
use super::options::{Backend, Case, Named, Options};
use super::packets::{self, Packets};
use super::process::{Usage, is_alive, memory, rest};
use super::quantiles;
use super::report::{Report, mib, ms, seconds};
use super::stage::{self, Who};
use super::yardstick::{self, Yardstick};
use crate::paint::table;

const SIZES: [u32; 5] = [1_000, 5_000, 10_000, 20_000, 50_000];
/// Maximum time for a start: flanneld needs minutes where twill needs a second.
const LIMIT: Duration = Duration::from_secs(900);
/// Idle time after which the reconcile pass counts as over.
const IDLE: Duration = Duration::from_millis(500);

/// Results of one start of one daemon.
struct Run {
    /// Time from the start of the process until the kernel held all peers.
    held: Duration,
    /// Duration of the last look at the kernel, by which `held` may be too long.
    look: Duration,
    cpu: Usage,
    resident: u64,
    peak: u64,
    changes: Changes,
    packets: Option<Packets>,
    yardstick: Yardstick,
}

pub(super) fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut rows = Vec::new();
    let other = (!options.against.is_empty()).then(|| Who::Other(options.against.clone()));
    for case in options.cases(&SIZES) {
        for who in std::iter::once(Who::Twill).chain(other.clone()) {
            let mut runs = Vec::new();
            for number in 1..=options.runs {
                let run = once(&case, &who)
                    .map_err(|why| format!("{}, {}, run {number}: {why}", who.name(), title(&case)))?;
                println!(
                    "{}, {}, run {number} of {}: {}",
                    who.name(),
                    title(&case),
                    options.runs,
                    summary(&run)
                );
                report.line(&line(&case, &who, number, &run))?;
                runs.push(run);
            }
            rows.push(row(&case, &who, &runs));
        }
    }
    println!("\n{}", table(HEAD, rows));
    Ok(())
}

fn title(case: &Case) -> String {
    let keys = if case.keys.is_empty() { String::new() } else { format!(" ({})", case.keys) };
    let (store, backend, families) = (case.store.name(), case.backend.name(), case.families.name());
    format!("{} peers, {store}, {backend}{keys}, {families}", case.peers)
}

fn once(case: &Case, who: &Who) -> Result<Run, String> {
    let lab = stage::build(case, 3);
    let node = lab.node(1);
    let begun = Instant::now();
    let daemon = stage::start(&lab, node, who);
    let measured = measure(&lab, &daemon, case, begun);
    measured.map_err(|why| {
        let log = daemon.log();
        let end: Vec<_> = log.lines().rev().take(10).collect();
        format!("{why}; the end of its log:\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"))
    })
}

fn measure(lab: &Lab, daemon: &Daemon<'_>, case: &Case, begun: Instant) -> Result<Run, String> {
    let (node, pid) = (lab.node(1), daemon.pid());
    let held = held::wait(node, case, LIMIT, || is_alive(pid))?;
    rest(pid, IDLE, LIMIT);
    let cpu = Usage::of(pid);
    let (resident, peak) = memory(pid);
    let changes = changes::run(lab, node, daemon, case)?;
    let packets = (case.backend == Backend::HostGw).then(|| packets::run(lab, case)).transpose()?;
    let yardstick = yardstick::run(lab, case)?;
    Ok(Run { held: held.at - begun, look: held.look, cpu, resident, peak, changes, packets, yardstick })
}

fn summary(run: &Run) -> String {
    let (median, _) = quantiles(&run.changes.lags).unwrap_or_default();
    format!("{} s, CPU {} s, a change {} ms", seconds(run.held), seconds(run.cpu.total()), ms(median))
}

fn line(case: &Case, who: &Who, number: usize, run: &Run) -> serde_json::Value {
    let (median, worst) = quantiles(&run.changes.lags).unwrap_or_default();
    json!({
        "bench": "scale",
        "daemon": who.name(),
        "store": case.store.name(),
        "backend": case.backend.name(),
        "families": case.families.name(),
        "keys": case.keys,
        "peers": case.peers,
        "run": number,
        "held_s": run.held.as_secs_f64(),
        "look_s": run.look.as_secs_f64(),
        "cpu_s": run.cpu.own.as_secs_f64(),
        "cpu_children_s": run.cpu.children.as_secs_f64(),
        "rss_bytes": run.resident,
        "peak_bytes": run.peak,
        "change_median_s": median.as_secs_f64(),
        "change_p99_s": worst.as_secs_f64(),
        "change_cpu_s": run.changes.cpu.as_secs_f64(),
        "packets_arrived": run.packets.map(|packets| packets.arrived),
        "packets_refused": run.packets.map(|packets| packets.refused),
        "batch_s": run.yardstick.objects.as_secs_f64(),
        "batch_rules_s": run.yardstick.rules.map(|time| time.as_secs_f64()),
        "rules_name_peers": run.yardstick.named,
    })
}

const HEAD: [&str; 13] = [
    "daemon",
    "store",
    "backend",
    "families",
    "peers",
    "held s",
    "CPU s (tools)",
    "MiB",
    "peak",
    "change ms (p99)",
    "CPU ms",
    "reached",
    "batch s (rules)",
];

/// Returns the medians of all runs.
fn row(case: &Case, who: &Who, runs: &[Run]) -> [String; 13] {
    let time = |of: fn(&Run) -> Duration| middle(runs, of);
    [
        who.name(),
        case.store.name().to_owned(),
        case.backend.name().to_owned(),
        case.families.name().to_owned(),
        case.peers.to_string(),
        seconds(time(|run| run.held)),
        format!("{} ({})", seconds(time(|run| run.cpu.total())), seconds(time(|run| run.cpu.children))),
        mib(middle(runs, |run| run.resident)),
        mib(middle(runs, |run| run.peak)),
        format!(
            "{} ({})",
            ms(time(|run| quantiles(&run.changes.lags).unwrap_or_default().0)),
            ms(time(|run| quantiles(&run.changes.lags).unwrap_or_default().1))
        ),
        ms(time(|run| run.changes.cpu)),
        reached(runs),
        format!("{} ({})", seconds(time(|run| run.yardstick.objects)), rules(runs)),
    ]
}

/// Returns the smallest number of packets that arrived in a run.
fn reached(runs: &[Run]) -> String {
    let arrived = runs.iter().filter_map(|run| run.packets).map(|packets| packets.arrived).min();
    arrived.map_or("-".into(), |arrived| arrived.to_string())
}

/// Returns the median time for the rules, or a cross if the kernel has refused them.
fn rules(runs: &[Run]) -> String {
    let times: Option<Vec<_>> = runs.iter().map(|run| run.yardstick.rules).collect();
    times.and_then(|times| quantiles(&times)).map_or("✗".into(), |(median, _)| seconds(median))
}

fn middle<T: PartialOrd + Copy + Default>(runs: &[Run], of: fn(&Run) -> T) -> T {
    quantiles(&runs.iter().map(of).collect::<Vec<_>>()).unwrap_or_default().0
}
