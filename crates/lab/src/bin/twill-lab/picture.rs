//! Draws the demo's output as an SVG picture for the README: `twill-lab demo --picture FILE`.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

/// Width of the picture in characters; longer lines end in an ellipsis.
const COLUMNS: usize = 112;
/// Font size in pixels.
const FONT: usize = 13;
/// Distance between lines in pixels.
const LINE: usize = 17;
/// Margin of the picture in pixels.
const MARGIN: usize = 16;
/// Width of a character of that font, in hundredths of a pixel.
const ADVANCE: usize = 783;

/// Runs the demo once more in colour and returns the picture of it.
pub(crate) fn draw() -> Result<String, String> {
    let demo = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut command = Command::new(demo);
    command.arg("demo").env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR").stderr(Stdio::inherit());
    let output = command.output().map_err(|e| format!("cannot run the demo: {e}"))?;
    if !output.status.success() {
        return Err(format!("the demo failed:\n{}", String::from_utf8_lossy(&output.stdout)));
    }
    Ok(svg(&shown(&String::from_utf8_lossy(&output.stdout))))
}

/// Returns the parts worth a picture: the network, the section vxlan, the cut of ARP, the summary.
fn shown(text: &str) -> Vec<&str> {
    let (mut lines, mut is_shown) = (Vec::new(), true);
    for line in text.lines() {
        let plain: String = spans(line).into_iter().map(|span| span.text).collect();
        if ["━━ host-gw", "━━ auto", "The lab is removed"].iter().any(|start| plain.starts_with(start))
        {
            is_shown = false;
        }
        if ["ARP between", "━━ summary"].iter().any(|start| plain.starts_with(start)) {
            lines.extend((!is_shown).then_some(""));
            is_shown = true;
        }
        lines.extend(is_shown.then_some(line));
    }
    lines
}

/// A run of characters in one style; `style` is a list of SVG attributes.
struct Span<'a> {
    text: &'a str,
    style: String,
}

/// Cuts a line at its colour codes, such as `ESC[32m`.
fn spans(line: &str) -> Vec<Span<'_>> {
    let (mut spans, mut style) = (Vec::new(), String::new());
    let mut parts = line.split("\u{1b}[");
    spans.extend(parts.next().map(|text| Span { text, style: String::new() }));
    for part in parts {
        let (codes, text) = part.split_once('m').unwrap_or(("", part));
        for code in codes.split(';') {
            match code {
                "1" => style += " font-weight=\"bold\"",
                "2" => style += " fill=\"#8b949e\"",
                "31" | "9" => style += " fill=\"#ff7b72\"",
                "32" => style += " fill=\"#7ee787\"",
                "36" => style += " fill=\"#79c0ff\"",
                _ => style.clear(),
            }
        }
        spans.push(Span { text, style: style.clone() });
    }
    spans
}

fn svg(lines: &[&str]) -> String {
    let (width, height) = (2 * MARGIN + COLUMNS * ADVANCE / 100, 2 * MARGIN + lines.len() * LINE);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>What make lab prints</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>\n\
         <g font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace\" font-size=\"{FONT}\" fill=\"#e6edf3\" \
         xml:space=\"preserve\">\n"
    );
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
        let _ = writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{}\">{}</text>",
            MARGIN + (number + 1) * LINE - 4,
            drawn(line)
        );
    }
    svg + "</g>\n</svg>\n"
}

/// Returns one line as SVG text.
fn drawn(line: &str) -> String {
    let (mut drawn, mut left) = (String::new(), COLUMNS);
    for Span { text, style } in spans(line) {
        let length = text.chars().count();
        let mut shown: String = text.chars().take(left).collect();
        if length > left {
            shown.pop();
            shown.push('…');
        }
        left = left.saturating_sub(length);
        let shown = shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        match (shown.is_empty(), style.is_empty()) {
            (true, _) => {}
            (false, true) => drawn += &shown,
            (false, false) => _ = write!(drawn, "<tspan{style}>{shown}</tspan>"),
        }
        if left == 0 {
            break;
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_spans_and_long_lines_are_cut() {
        assert_eq!(drawn("a \u{1b}[32mok\u{1b}[0m <b>"), "a <tspan fill=\"#7ee787\">ok</tspan> &lt;b&gt;");
        let long = "x".repeat(COLUMNS + 1);
        assert_eq!(drawn(&long), "x".repeat(COLUMNS - 1) + "…");
        assert_eq!(drawn(&long[1..]), "x".repeat(COLUMNS));
    }

    #[test]
    fn sections_of_other_backends_are_left_out() {
        let text = "head\n━━ vxlan ━━\na\n━━ host-gw ━━\nb\n━━ auto ━━\nc\nARP between\nd\n━━ summary ━━\ne\nThe lab is removed\nf";
        assert_eq!(shown(text), ["head", "━━ vxlan ━━", "a", "", "ARP between", "d", "━━ summary ━━", "e"]);
    }
}
