//! `twill status`: asks the daemon of this node and shows the answer, as a table for people or as JSON for machines. It
//! looks at nothing itself.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, bail};
use comfy_table::{Attribute, Cell, Table, presets};
use plan::Path;
use plan::firewall::Stranger;
use plan::input::Family;

use crate::client;
use crate::flags::StatusFlags;
use crate::report::{FORMAT, Report};

pub(crate) fn run(flags: &StatusFlags) -> anyhow::Result<()> {
    let json = client::get(&flags.socket, "/status")?;
    if flags.json {
        println!("{}", String::from_utf8_lossy(&json));
        return Ok(());
    }
    let report: Report =
        serde_json::from_slice(&json).context("the daemon is of another version; use --json")?;
    if report.format != FORMAT {
        bail!("the daemon speaks format {}, this command {FORMAT}; use --json", report.format);
    }
    print!("{}", page(&report, is_coloured()));
    Ok(())
}

/// May what is printed be coloured?
pub(crate) fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The whole page.
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
        let subnets = Family::ALL.into_iter().filter_map(|family| node.node.subnet.of(family));
        let subnets: Vec<String> = subnets.map(|subnet| subnet.to_string()).collect();
        let uplink = &node.node.uplink;
        let addresses: Vec<String> =
            [uplink.ipv4.map(|ip| ip.to_string()), uplink.ipv6.map(|ip| ip.to_string())]
                .into_iter()
                .flatten()
                .collect();
        line("backend", &format!("{} ({})", node.backend, node.backend_source));
        line("network", &node.networks.join(", "));
        line("subnet", &format!("{} with MTU {}", subnets.join(", "), node.mtu));
        line("uplink", &format!("{} {} ({})", uplink.link, addresses.join(", "), node.uplink_reason));
    }
    let store = match &report.store_lost {
        Some(lost) => {
            paint(AnsiColor::Red.on_default(), &format!("lost, the last known leases stay in force: {lost}"))
        }
        None => "heard".into(),
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
    line("rounds", &report.rounds.to_string());
    peers(&mut page, report, colour);
    let strangers: Vec<String> = report.strangers.iter().map(stranger).collect();
    section(&mut page, "VXLAN from no peer", &strangers, ToOwned::to_owned);
    section(&mut page, "to look at", &report.notes, |text| paint(AnsiColor::Yellow.on_default(), text));
    section(&mut page, "put off, because they keep coming back", &report.held, ToOwned::to_owned);
    page
}

fn stranger(stranger: &Stranger) -> String {
    format!("{}: {} packets", stranger.address, stranger.packets)
}

fn peers(page: &mut String, report: &Report, colour: bool) {
    if report.peers.is_empty() {
        page.push_str("\nno peers\n");
        return;
    }
    let mut table = Table::new();
    let heading =
        |text: &str| if colour { Cell::new(text).add_attribute(Attribute::Bold) } else { Cell::new(text) };
    table.load_style(presets::NOTHING).set_header(["PEER", "ADDRESS", "PATH"].map(heading));
    for peer in &report.peers {
        let (path, shade) = match peer.path {
            Path::Vxlan => ("vxlan", comfy_table::Color::Green),
            Path::Direct => ("direct", comfy_table::Color::Green),
            Path::Unreachable => ("unreachable", comfy_table::Color::Red),
            Path::Waiting => ("waiting", comfy_table::Color::Yellow),
        };
        let path = if colour { Cell::new(path).fg(shade) } else { Cell::new(path) };
        table.add_row([Cell::new(peer.subnet), Cell::new(peer.public_ip), path]);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim_end().trim_start_matches(' ')));
    let _ = write!(page, "\n{}", lines.collect::<String>());
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
    match now.saturating_sub(unix_time) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
