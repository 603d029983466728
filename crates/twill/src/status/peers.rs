//! Table of the peers: a line that counts them, then faulty peers, then the others, each by subnet.

use std::collections::BTreeMap;
use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use plan::backend;

use crate::report::PeerReport;

/// Heads of the columns.
const HEAD: [&str; 10] =
    ["ADDRESS", "SUBNET", "BACKEND", "PATH", "HEALTH", "LATENCY", "LOSS", "MTU", "AGE", "REASON"];
/// Text of an empty cell.
const NOTHING: &str = "-";

/// Text of a cell and its style.
struct Cell {
    text: String,
    style: Style,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: Style::new() }
    }
}

/// Returns the summary and the table.
pub(super) fn page(peers: &[PeerReport], colour: bool) -> String {
    if peers.is_empty() {
        return "\nno peers\n".into();
    }
    let mut order: Vec<&PeerReport> = peers.iter().collect();
    order.sort_by_key(|peer| (!peer.health.fault, peer.peer.subnet));
    let bold = Style::new().bold();
    let head = HEAD.map(|text| Cell { text: text.into(), style: bold });
    let rows: Vec<[Cell; 10]> = std::iter::once(head).chain(order.into_iter().map(row)).collect();
    let mut widths = [0; 10];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.text.chars().count().max(*width);
        }
    }
    // The last column needs no width.
    widths[9] = 0;
    let mut page = format!("\n{}\n", summary(peers));
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let Cell { text, style } = cell;
            let gap = width.saturating_sub(text.chars().count()) + 2;
            let _ = if colour {
                write!(line, "{style}{text}{style:#}{:gap$}", "")
            } else {
                write!(line, "{text}{:gap$}", "")
            };
        }
        page.push_str(line.trim_end());
        page.push('\n');
    }
    page
}

fn row(reported: &PeerReport) -> [Cell; 10] {
    let (peer, health) = (&reported.peer, &reported.health);
    let shade = match (health.fault, &*health.finding) {
        (true, _) => AnsiColor::Red,
        (_, "healthy") => AnsiColor::Green,
        _ => AnsiColor::Yellow,
    };
    let or_nothing = |text: Option<String>| Cell::from(text.unwrap_or_else(|| NOTHING.into()));
    [
        peer.public_ip.to_string().into(),
        peer.subnet.to_string().into(),
        String::from(backend::name_of(peer.tunnel.map(|tunnel| tunnel.kind))).into(),
        String::from(peer.path.label()).into(),
        Cell { text: health.finding.clone(), style: shade.on_default() },
        or_nothing(health.latency_microseconds.map(latency)),
        or_nothing(health.loss_per_mille.map(loss)),
        or_nothing(health.mtu.map(|mtu| mtu.to_string())),
        or_nothing(health.age_seconds.map(age)),
        health.reason.clone().unwrap_or_else(|| proven(&health.finding).into()).into(),
    ]
}

/// Returns the reason shown for a finding without a fault.
fn proven(name: &str) -> &'static str {
    if name == "healthy" { "node to node" } else { "" }
}

/// Counts the peers by finding and by path: `5 peers: 4 healthy, 1 next hop silent; 3 direct, 2 vxlan`.
fn summary(peers: &[PeerReport]) -> String {
    let (mut findings, mut paths) = (BTreeMap::new(), BTreeMap::new());
    for reported in peers {
        *findings.entry(&*reported.health.finding).or_insert(0) += 1;
        *paths.entry(reported.peer.path.label()).or_insert(0) += 1;
    }
    let count = peers.len();
    let word = if count == 1 { "peer" } else { "peers" };
    format!("{count} {word}: {}; {}", counts(findings), counts(paths))
}

/// Formats the counts, the largest first.
fn counts(counts: BTreeMap<&str, usize>) -> String {
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.into_iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

fn latency(microseconds: u64) -> String {
    match microseconds {
        0..10_000 => format!("{:.2} ms", microseconds as f64 / 1e3),
        _ => format!("{} ms", microseconds / 1000),
    }
}

fn loss(per_mille: u16) -> String {
    if per_mille.is_multiple_of(10) {
        format!("{} %", per_mille / 10)
    } else {
        format!("{:.1} %", f64::from(per_mille) / 10.0)
    }
}

/// Formats a duration in one unit: `119 s`, `10 min`, `2 h`, `5 d`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plan::health::Finding;
    use plan::{Path, TunnelKind};

    use super::*;
    use crate::report::peers::reported;
    use crate::report::peers::tests::{health, peer};

    fn peers() -> Vec<PeerReport> {
        let peers = [
            (2, Path::Direct),
            (3, Path::Direct),
            (4, Path::Tunnel(TunnelKind::Vxlan)),
            (5, Path::Unreachable),
        ];
        let silent = Finding::Silent { node: [192, 0, 2, 3].into() };
        let healths = [health(2, Finding::Healthy), health(3, silent), health(4, Finding::Healthy)];
        reported(&peers.map(|(number, path)| peer(number, path)), &healths, Duration::from_secs(200))
    }

    #[test]
    fn the_table_is_aligned_and_begins_with_faulty_peers() {
        let page = page(&peers(), false);
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[1], "4 peers: 2 healthy, 1 silent, 1 unreachable; 2 direct, 1 unreachable, 1 vxlan");
        assert_eq!(
            lines[2],
            "ADDRESS    SUBNET         BACKEND  PATH         HEALTH       LATENCY  LOSS   MTU   AGE    REASON"
        );
        assert!(lines[3].starts_with(
            "192.0.2.3  10.244.3.0/24  host-gw  direct       silent       0.21 ms  1.5 %  1450  3 min  192.0.2.3 answers"
        ));
        assert!(lines[4].starts_with(
            "192.0.2.5  10.244.5.0/24  host-gw  unreachable  unreachable  -        -      -     -      it is not on"
        ));
        assert_eq!(
            lines[5],
            "192.0.2.2  10.244.2.0/24  host-gw  direct       healthy      0.21 ms  1.5 %  1450  3 min  node to node"
        );
        assert_eq!(lines.len(), 7, "{page}");
    }

    #[test]
    fn colours_do_not_change_the_columns() {
        let coloured = page(&peers(), true);
        assert!(coloured.contains("\u{1b}[31msilent\u{1b}[0m") && coloured.contains("\u{1b}[32mhealthy"));
        let mut plain = String::new();
        for part in coloured.split('\u{1b}') {
            plain += part.split_once('m').filter(|_| part.starts_with('[')).map_or(part, |(_, text)| text);
        }
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(lines(&plain), lines(&page(&peers(), false)));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([latency(40), latency(1500), latency(12_345)], ["0.04 ms", "1.50 ms", "12 ms"]);
        assert_eq!([loss(0), loss(20), loss(21)], ["0 %", "2 %", "2.1 %"]);
        assert_eq!(
            [age(5), age(119), age(600), age(7200), age(500_000)],
            ["5 s", "119 s", "10 min", "2 h", "5 d"]
        );
        assert_eq!(page(&[], true), "\nno peers\n");
    }
}
