//! Sets up log lines on stderr, as text for people or as JSON for machines.

mod limit;

use std::io::IsTerminal;

use plan::text::shortened;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::debug_fn;

use crate::flags::LogFormat;
use limit::Limited;
pub(crate) use limit::{OWN, log_left_out};

/// Sets up logging. Must be called once, before anything is logged.
pub(crate) fn init(verbosity: i64, format: LogFormat) {
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(verbosity))
        .with_target(false)
        .with_ansi(ansi)
        .with_writer(Limited { format });
    // Each event is one line, without characters that a terminal would act on. JSON escapes such characters itself.
    let escaped = debug_fn(|writer, field, value| {
        let value = shortened(format_args!("{value:?}"), usize::MAX);
        if field.name() == "message" { write!(writer, "{value}") } else { write!(writer, "{field}={value}") }
    });
    match format {
        LogFormat::Text => log.fmt_fields(escaped.delimited(" ")).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Translates klog's level (`-v`). It applies to our own crates, not to the libraries below. RUST_LOG overrides it.
fn filter(verbosity: i64) -> EnvFilter {
    if std::env::var_os("RUST_LOG").is_some_and(|value| !value.is_empty()) {
        return EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    }
    let own = match verbosity {
        ..=0 => "info",
        1..=4 => "debug",
        5.. => "trace",
    };
    EnvFilter::new(format!("info,twill={own},plan={own},kernel={own},store={own}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Returns all source text below `dir`, concatenated.
    fn source(dir: &Path) -> String {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| if path.is_dir() { source(&path) } else { fs::read_to_string(path).unwrap() })
            .collect()
    }

    /// Returns the parts of `line` between those that vary.
    fn fixed<'a>(line: &'a str, varying: &[char]) -> impl Iterator<Item = &'a str> {
        line.split(|c| varying.contains(&c)).map(str::trim).filter(|part| part.len() > 3)
    }

    #[test]
    fn messages_md_lists_exactly_the_log_lines() {
        let text = include_str!("../../../docs/reference/messages.md");
        let (_, section) = text.split_once("\n## Log lines\n").unwrap();
        let (section, _) = section.split_once("\n## Errors that end a start\n").unwrap();
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let source: String =
            ["twill", "store", "kernel"].map(|name| source(&crates.join(name).join("src"))).concat();
        for level in ["info", "warn", "error"] {
            for call in source.split(&format!("{level}!(")).skip(1) {
                let line = call.split('"').nth(1).unwrap();
                // Braces hold the parts that vary; the text outside them is fixed.
                let line: String =
                    line.split('{').map(|part| part.rsplit('}').next().unwrap().to_owned() + "{").collect();
                for part in fixed(&line, &['{']) {
                    assert!(
                        section.contains(part),
                        "{part:?}, a line of level {level}, is not in docs/reference/messages.md"
                    );
                }
            }
        }
        for row in section.lines().filter_map(|line| line.strip_prefix("- `")?.split('`').next()) {
            for part in fixed(row, &['…']) {
                assert!(source.contains(part), "messages.md lists {row:?}, which no line says");
            }
        }
    }
}
