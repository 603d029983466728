//! Appearance of the demo: colours, tables, and the drawing of the topology.

use std::io::{IsTerminal, stdout};

use anstyle::{AnsiColor, Style};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, Table};
use lab::{Lab, Node};

pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const TYPED: Style = AnsiColor::Cyan.on_default();
pub(crate) const TITLE: Style = Style::new().bold();
pub(crate) const QUIET: Style = Style::new().dimmed();

/// Inner width of a node's box in characters.
const BOX: usize = 16;
/// Space between the two segments in characters.
const GAP: usize = 6;

/// Returns true if colours are printed: on a terminal, or if CLICOLOR_FORCE is set; never with NO_COLOR.
pub(crate) fn coloured() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    (stdout().is_terminal() || is_set("CLICOLOR_FORCE")) && !is_set("NO_COLOR")
}

pub(crate) fn paint(style: Style, text: &str) -> String {
    if coloured() { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Builds a table whose cells are red if they begin with a cross.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(head);
    if coloured() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    for row in rows {
        let cells = row.into_iter().enumerate().map(|(column, text)| {
            let colour = if text.starts_with('✗') { Color::Red } else { Color::Reset };
            let align = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).fg(colour).set_alignment(align)
        });
        table.add_row(cells);
    }
    table
}

pub(crate) fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {}\n", line.trim_end())).collect()
}

/// Draws the nodes side by side on their segments, with the router between.
pub(crate) fn drawing(lab: &Lab) -> String {
    let mut lines = vec![String::new(); 6];
    let (near, far): (Vec<_>, Vec<_>) = lab.nodes().iter().partition(|node| node.segment == 'A');
    for node in &near {
        append(&mut lines, &boxed(node));
    }
    append(&mut lines, &[&" ".repeat(GAP); 6]);
    for node in &far {
        append(&mut lines, &boxed(node));
    }
    let left = near.len() * (BOX + 2) - 3;
    hang(&mut lines[5], [left, left + 9]);
    lines.push(format!("{:left$}│        │192.168.101.0/24", "  segment A 192.168.100.0/24"));
    lines.push(format!("{:left$}└[router]┘ segment B", ""));
    lines.iter().map(|line| format!(" {line}\n")).collect()
}

fn append<S: AsRef<str>>(lines: &mut [String], parts: &[S]) {
    lines.iter_mut().zip(parts).for_each(|(line, part)| line.push_str(part.as_ref()));
}

fn boxed(node: &Node) -> [String; 6] {
    let (half, rest) = ("─".repeat(BOX / 2), "─".repeat(BOX / 2 - 1));
    [
        format!("┌{half}─{rest}┐"),
        format!("│{:^BOX$}│", node.name),
        format!("│{:^BOX$}│", node.ip.to_string()),
        format!("│{:^BOX$}│", format!("[pod{}]", node.index)),
        format!("└{half}┬{rest}┘"),
        format!("═{0}╧{0}", "═".repeat(BOX / 2)),
    ]
}

/// Hangs the router's two cables from these columns of the segments' line.
fn hang(line: &mut String, columns: [usize; 2]) {
    let cable = |(column, sign)| if columns.contains(&column) { '╤' } else { sign };
    *line = line.chars().enumerate().map(cable).collect();
}
