//! `bench churn`, the first part: a hundred nodes a second join or leave for 30 s. Meanwhile a peer that stays is
//! pinged.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Line, PingReport, PingStream, Store, until};
use serde_json::json;

use super::held;
use super::monitor::ChangeMonitor;
use super::options::{Case, Named, Options, StoreKind};
use super::peers::{Peer, Place};
use super::process::{Usage, is_alive, memory, rest};
use super::quantiles;
use super::report::{Report, mib, ms, seconds};
use super::stage::{self, Who};
use crate::paint::table;

const PEERS: [u32; 1] = [5_000];
const SPAN: Duration = Duration::from_secs(30);
/// Time between two changes; joins and leaves alternate.
const INTERVAL: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(120);
const IDLE: Duration = Duration::from_millis(300);
/// Maximum time for the last change. A removed lease is kept for 2 s before its route is deleted.
const LAST: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Join,
    Leave,
}

/// Changes of the store, and the time of each.
type Done = Vec<(Change, Peer, Instant)>;

struct Outcome {
    changes: usize,
    took: Duration,
    cpu: Duration,
    resident: u64,
    joins: Vec<Duration>,
    leaves: Vec<Duration>,
    /// Number of changes that no monitor ever reported.
    unreported: usize,
    pings: PingReport,
}

pub(super) fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut rows = Vec::new();
    for case in options.cases(&PEERS).iter().filter(|case| case.store == StoreKind::Dir) {
        println!(
            "{} peers, {}: 100 join or leave each second for {} s",
            case.peers,
            case.backend.name(),
            SPAN.as_secs()
        );
        let outcome = once(case)?;
        report.line(&line(case, &outcome))?;
        rows.push(row(case, &outcome));
    }
    if !rows.is_empty() {
        println!("\n{}", table(HEAD, rows));
    }
    Ok(())
}

fn once(case: &Case) -> Result<Outcome, String> {
    let lab = stage::build(case, 2);
    let daemons: Vec<_> = lab.nodes().iter().map(|node| stage::start(&lab, node, &Who::Twill)).collect();
    for (node, daemon) in lab.nodes().iter().zip(&daemons) {
        held::wait(node, case, LIMIT, || is_alive(daemon.pid()))?;
    }
    let pods = lab.pods();
    let answers = until(LAST, || pods[0].ping(pods[1].ip()));
    answers.ok_or("the two pods do not reach each other")?;
    let (node, daemon) = (lab.node(1), &daemons[0]);
    // The second daemon is suspended: its peer stays, and it takes no processor time from the measured one.
    daemons[1].pause();
    rest(daemon.pid(), IDLE, LIMIT);
    let monitor = ChangeMonitor::start(node)?;
    let pings = PingStream::start(&pods[0].ns, pods[1].ip());
    let before = Usage::of(daemon.pid());
    let begun = Instant::now();
    let done = disturb(&lab.store, case);
    let took = begun.elapsed();
    let last = done.last().map_or(Peer(0), |(_, peer, _)| *peer);
    monitor.wait_for(&format!("Deleted {}/24 ", last.subnet()), LAST);
    rest(daemon.pid(), IDLE, LIMIT);
    let cpu = Usage::of(daemon.pid()).since(before).total();
    let (joins, leaves) =
        (lags(&done, Change::Join, &monitor.routes()), lags(&done, Change::Leave, &monitor.routes()));
    Ok(Outcome {
        changes: done.len(),
        took,
        cpu,
        resident: memory(daemon.pid()).0,
        unreported: done.len() - joins.len() - leaves.len(),
        joins,
        leaves,
        pings: pings.stop(),
    })
}

/// Adds new peers, and removes the one that has been there longest, in turn.
fn disturb(store: &Store, case: &Case) -> Done {
    let begun = Instant::now();
    let mut done = Vec::new();
    for nth in 0.. {
        let due = INTERVAL * nth;
        if due >= SPAN {
            break;
        }
        sleep(due.saturating_sub(begun.elapsed()));
        let now = Instant::now();
        if nth % 2 == 0 {
            let peer = Peer(case.peers + nth / 2);
            let (name, json) = peer.lease(case, Place::First);
            store.put_lease(&name, &json);
            done.push((Change::Join, peer, now));
        } else {
            let peer = Peer(nth / 2);
            store.remove_lease(&peer.lease(case, Place::First).0);
            done.push((Change::Leave, peer, now));
        }
    }
    done
}

/// Returns the time of each change until the kernel reported its route. Changes that were never reported are left out.
fn lags(done: &Done, change: Change, lines: &[Line]) -> Vec<Duration> {
    let first = lines.iter().rev().filter_map(|line| Some((route(&line.text, change)?, line.at)));
    let first: BTreeMap<_, _> = first.collect();
    let wanted = done.iter().filter(|(kind, ..)| *kind == change);
    wanted
        .filter_map(|(_, peer, at)| {
            let reported = first.get(format!("{}/24", peer.subnet()).as_str())?;
            Some(reported.saturating_duration_since(*at))
        })
        .collect()
}

/// Returns the subnet whose route was added, or deleted, as `change` asks.
fn route(line: &str, change: Change) -> Option<&str> {
    let (gone, rest) = match line.strip_prefix("Deleted ") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let subnet = rest.split(' ').next()?;
    (gone == (change == Change::Leave) && subnet.ends_with("/24")).then_some(subnet)
}

const HEAD: [&str; 9] = [
    "backend",
    "peers",
    "changes/s",
    "pings lost",
    "CPU",
    "MiB",
    "join ms (p99)",
    "leave ms (p99)",
    "unreported",
];

fn row(case: &Case, outcome: &Outcome) -> [String; 9] {
    let lag = |lags: &[Duration]| {
        let (median, worst) = quantiles(lags).unwrap_or_default();
        format!("{} ({})", ms(median), ms(worst))
    };
    let rate = outcome.changes as f64 / outcome.took.as_secs_f64();
    [
        case.backend.name().to_owned(),
        case.peers.to_string(),
        format!("{rate:.0}"),
        format!("{} of {}", outcome.pings.lost, outcome.pings.sent),
        format!(
            "{} s ({:.0} %)",
            seconds(outcome.cpu),
            100.0 * outcome.cpu.as_secs_f64() / outcome.took.as_secs_f64()
        ),
        mib(outcome.resident),
        lag(&outcome.joins),
        lag(&outcome.leaves),
        outcome.unreported.to_string(),
    ]
}

fn line(case: &Case, outcome: &Outcome) -> serde_json::Value {
    let lag = |lags: &[Duration]| {
        let (median, worst) = quantiles(lags).unwrap_or_default();
        (median.as_secs_f64(), worst.as_secs_f64())
    };
    let ((join, join_worst), (leave, leave_worst)) = (lag(&outcome.joins), lag(&outcome.leaves));
    json!({
        "bench": "churn",
        "store": case.store.name(),
        "backend": case.backend.name(),
        "families": case.families.name(),
        "keys": case.keys,
        "peers": case.peers,
        "changes": outcome.changes,
        "took_s": outcome.took.as_secs_f64(),
        "cpu_s": outcome.cpu.as_secs_f64(),
        "rss_bytes": outcome.resident,
        "pings_sent": outcome.pings.sent,
        "pings_lost": outcome.pings.lost,
        "join_median_s": join,
        "join_p99_s": join_worst,
        "leave_median_s": leave,
        "leave_p99_s": leave_worst,
        "unheard": outcome.unreported,
    })
}
