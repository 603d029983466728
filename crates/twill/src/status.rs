//! `twill status`: asks the daemon of this node and prints the answer, as a table or as JSON.

mod peers;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, bail};
use plan::underlay::UnknownSender;
use tokio::signal::unix::{SignalKind, signal};

use crate::client;
use crate::flags::StatusFlags;
use crate::report::{FORMAT, PeerReport, Report};

/// Time between two pages with `--watch`.
const PERIOD: Duration = Duration::from_secs(1);
/// Escape sequences: cursor home, and clear everything below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Runs the command. Returns an error if the daemon does not answer, or the output cannot be written.
pub(crate) fn run(flags: &StatusFlags) -> anyhow::Result<()> {
    if flags.watch {
        return watch(flags);
    }
    match print(&client::runtime()?.block_on(text(flags))?) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("printing"),
    }
}

/// Prints pages until ctrl-c, or until nobody reads the output. An unreachable daemon gives an error page, since it may
/// come back.
fn watch(flags: &StatusFlags) -> anyhow::Result<()> {
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    client::runtime()?.block_on(async {
        let mut interrupts = signal(SignalKind::interrupt()).context("cannot handle ctrl-c")?;
        loop {
            let page = tokio::select! {
                page = text(flags) => page.unwrap_or_else(|error| format!("twill: {error:#}\n")),
                _ = interrupts.recv() => return Ok(()),
            };
            match print(&format!("{clear}{page}")) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                printed => printed.context("printing")?,
            }
            if tokio::time::timeout(PERIOD, interrupts.recv()).await.is_ok() {
                return Ok(());
            }
        }
    })
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Returns the page, or the daemon's JSON. Returns an error if the daemon does not answer or uses another format.
async fn text(flags: &StatusFlags) -> anyhow::Result<String> {
    let json = client::fetch(&flags.socket, "/status").await?;
    if flags.json {
        return Ok(format!("{}\n", String::from_utf8_lossy(&json)));
    }
    let report: Report =
        serde_json::from_slice(&json).context("the daemon is of another version; use --json")?;
    if report.format != FORMAT {
        bail!("the format of the daemon is {}, that of this command {FORMAT}; use --json", report.format);
    }
    Ok(page(&report, is_coloured()))
}

/// Returns true if the output may be coloured: it goes to a terminal, and `NO_COLOR` is not set.
pub(crate) fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Returns the whole page.
fn page(report: &Report, colour: bool) -> String {
    let paint =
        |style: Style, text: &str| if colour { format!("{style}{text}{style:#}") } else { text.to_owned() };
    let mut page = String::new();
    let state = match &report.not_ready {
        Some(why) => paint(AnsiColor::Red.on_default(), &format!("not ready: {why}")),
        None if report.fault.is_some() => {
            paint(AnsiColor::Yellow.on_default(), report.fault.as_deref().unwrap_or_default())
        }
        None => paint(AnsiColor::Green.on_default(), "ready"),
    };
    let mut line = |name: &str, value: &str| _ = writeln!(page, "{name:<9} {value}");
    line("state", &state);
    if let Some(node) = &report.node {
        let subnets: Vec<String> = node.identity.subnet.nets().map(|subnet| subnet.to_string()).collect();
        let uplink = &node.identity.uplink;
        let addresses: Vec<String> =
            [uplink.ipv4.map(|ip| ip.to_string()), uplink.ipv6.map(|ip| ip.to_string())]
                .into_iter()
                .flatten()
                .collect();
        let direct = node.direct.words();
        line("backend", &format!("{}{direct} ({})", node.backend, node.backend_source));
        line("network", &node.networks.join(", "));
        line("subnet", &format!("{} with MTU {}", subnets.join(", "), node.mtu));
        line("uplink", &format!("{} {} ({})", uplink.link, addresses.join(", "), node.uplink_reason));
    }
    let store = match &report.store_lost {
        Some(lost) => {
            paint(AnsiColor::Red.on_default(), &format!("lost; the last known leases stay in force: {lost}"))
        }
        None => "in sync".into(),
    };
    line("store", &store);
    line("firewall", report.firewall.as_deref().unwrap_or("no rules"));
    if let Some(last) = &report.last_change {
        let failed = if last.failed > 0 { format!(", {} refused", last.failed) } else { String::new() };
        let (ago, ms) = (ago(last.unix_time), last.milliseconds);
        line(
            "changed",
            &format!("{ago} ago: {} changes{failed} in {ms} ms, after {}", last.ops, last.causes),
        );
    }
    line("passes", &report.passes.to_string());
    page.push_str(&peers::page(&report.peers, colour));
    let senders: Vec<String> = report.unknown_senders.iter().map(unknown_sender).collect();
    section(&mut page, "VXLAN packets from unknown senders", &senders, ToOwned::to_owned);
    section(&mut page, "warnings", &warnings(report), |text| paint(AnsiColor::Yellow.on_default(), text));
    section(&mut page, "retried less often", &report.delayed, ToOwned::to_owned);
    page
}

fn unknown_sender(sender: &UnknownSender) -> String {
    format!("{}: {} packets", sender.address, sender.packets)
}

/// Returns the warnings that the table of peers does not show.
fn warnings(report: &Report) -> Vec<String> {
    let in_table = |reported: &PeerReport| {
        let reason = reported.health.reason.as_ref()?;
        Some(format!("peer {}: {}: {reason}", reported.peer.subnet, reported.health.finding))
    };
    let in_table: BTreeSet<String> = report.peers.iter().filter_map(in_table).collect();
    report.warnings.iter().map(ToString::to_string).filter(|text| !in_table.contains(text)).collect()
}

fn section(page: &mut String, title: &str, lines: &[String], paint: impl Fn(&str) -> String) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(page, "\n{title}:");
    for line in lines {
        let _ = writeln!(page, "  {}", paint(line));
    }
}

fn ago(unix_time: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    peers::age(now.saturating_sub(unix_time))
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(json: &[u8]) {
    let _ = serde_json::from_slice::<Report>(json).map(|report| page(&report, true));
}

#[cfg(test)]
mod tests {
    use plan::health::Finding;
    use plan::{Path, PeerPath, TunnelKind};

    use super::*;
    use crate::report::new_sender;
    use crate::report::peers::reported;
    use crate::report::peers::tests::{health, peer};
    use crate::report::warnings::tests::warning;

    fn report(peers: &[PeerPath], warnings: &[&str]) -> Report {
        let healths = [health(3, Finding::Silent { node: [192, 0, 2, 3].into() })];
        let peers = reported(peers, &healths, Duration::from_secs(20));
        let warnings = warnings.iter().copied().map(warning).collect();
        Report { peers, warnings, ..Report::clone(&new_sender().borrow()) }
    }

    /// A fault of a peer in the table is not repeated below it; all other warnings are listed there.
    #[test]
    fn each_fault_is_shown_once() {
        let reason = Finding::Silent { node: [192, 0, 2, 3].into() };
        let known = format!("peer 10.244.3.0/24: silent: {reason}");
        let other = "peer 10.244.9.0/24: its subnet lies outside our network";
        let report = report(&[peer(3, Path::Tunnel(TunnelKind::Vxlan))], &[&known, other]);
        let page = page(&report, false);
        assert_eq!(page.matches("10.244.3.0/24").count(), 1, "{page}");
        assert!(page.contains(&format!("\nwarnings:\n  {other}\n")), "{page}");
        assert!(page.contains("\n1 peer: 1 silent; 1 vxlan\n"), "{page}");
    }

    #[test]
    fn the_page_from_json_equals_the_page_of_the_report() {
        let reported = report(
            &[peer(2, Path::Direct), peer(3, Path::Tunnel(TunnelKind::Vxlan))],
            &["uplink eth0 is down"],
        );
        let json = serde_json::to_vec(&reported).unwrap();
        let parsed: Report = serde_json::from_slice(&json).unwrap();
        assert_eq!(page(&parsed, true), page(&reported, true));
        assert!(!String::from_utf8(json).unwrap().contains("paths"), "that is for the daemon alone");
    }

    /// Status of a real daemon, with all parts.
    fn whole() -> Report {
        serde_json::from_str(include_str!("../../../fuzz/corpus/answer/status")).unwrap()
    }

    /// Returns the block of a document in that language which begins with `start`.
    fn block<'a>(document: &'a str, language: &str, start: &str) -> &'a str {
        let fence = format!("\n```{language}\n");
        let mut blocks = document.split(fence.as_str()).skip(1);
        blocks.find(|block| block.starts_with(start)).unwrap().split("\n```").next().unwrap()
    }

    /// README.md and docs/reference/status.md show the lines and columns of a page.
    #[test]
    fn samples_in_the_docs_have_the_lines_and_columns_of_the_page() {
        let shape = |page: &str| -> Vec<String> {
            let lines = page.lines().take_while(|line| !line.is_empty()).map(|line| line.split(' ').next());
            let head = page.lines().find(|line| line.starts_with("ADDRESS")).unwrap().split_whitespace();
            lines.flatten().chain(head).map(str::to_owned).collect()
        };
        let page = page(&whole(), false);
        for document in
            [include_str!("../../../README.md"), include_str!("../../../docs/reference/status.md")]
        {
            assert_eq!(shape(block(document, "text", "state ")), shape(&page));
        }
    }

    /// docs/reference/status.md shows the fields of the JSON.
    #[test]
    fn the_json_sample_in_the_docs_has_the_actual_fields() {
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let sample = block(include_str!("../../../docs/reference/status.md"), "json", "{\"format\"");
        let sample: serde_json::Value = serde_json::from_str(&sample.replace("{...}", "{}")).unwrap();
        let real = serde_json::to_value(whole()).unwrap();
        for place in ["", "/node", "/peers/0", "/peers/0/tunnel", "/peers/0/health", "/last_change"] {
            let [sample, real] = [&sample, &real].map(|status| keys(status.pointer(place).unwrap()));
            assert_eq!(sample, real, "{place}");
        }
    }
}
