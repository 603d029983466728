//! Limits of the log: length of a line, and amount per minute over all causes and levels. It is the last step before
//! stderr, so that no call site can bypass it.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use plan::text::{PRINTED, shortened};
use serde_json::Value;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::flags::LogFormat;

/// Bytes that may be written at once after a quiet minute, and that each minute adds. A minute thus has at most twice as
/// many.
const BYTES: f64 = 45_000.0;
/// Lines that may be written at once after a quiet minute, and that each minute adds.
const LINES: f64 = 250.0;
/// Share of both amounts that is reserved for warnings and errors.
const FOR_WARNINGS: f64 = 0.3;
/// Minimum time between two lines that give the number of omitted lines.
const NOTICE: Duration = Duration::from_secs(10);
/// Maximum number of characters of a line, with time and level.
const LINE: usize = PRINTED + 60;
/// Target of lines with our own text only: the flags and the number of omitted lines. They are neither shortened nor
/// omitted.
pub(crate) const OWN: &str = "twill::own";

/// Amount that may still be written (token bucket).
struct Bucket {
    bytes: f64,
    lines: f64,
    at: Instant,
    omitted: u64,
    noticed: Option<Instant>,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { bytes: BYTES, lines: LINES, at: now, omitted: 0, noticed: None }
    }

    /// Returns true, and counts the line, if it may be written. Lines below a warning leave the share for warnings.
    fn takes(&mut self, length: usize, level: Level, now: Instant) -> bool {
        self.fill(now);
        let kept = if level <= Level::WARN { 0.0 } else { FOR_WARNINGS };
        let length = length as f64;
        if self.bytes - length < kept * BYTES || self.lines - 1.0 < kept * LINES {
            self.omitted += 1;
            return false;
        }
        self.bytes -= length;
        self.lines -= 1.0;
        true
    }

    fn fill(&mut self, now: Instant) {
        let minutes = now.saturating_duration_since(self.at).as_secs_f64() / 60.0;
        self.bytes = (self.bytes + BYTES * minutes).min(BYTES);
        self.lines = (self.lines + LINES * minutes).min(LINES);
        self.at = now;
    }

    /// Returns the number of lines omitted since the last notice, if there are any and a notice is due.
    fn notice(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.noticed.is_none_or(|at| now.saturating_duration_since(at) >= NOTICE);
        if self.omitted == 0 || !is_due {
            return None;
        }
        self.noticed = Some(now);
        Some(std::mem::take(&mut self.omitted))
    }
}

/// Bucket of the whole process, as stderr is.
static BUCKET: Mutex<Option<Bucket>> = Mutex::new(None);

fn with_bucket<T>(act: impl FnOnce(&mut Bucket, Instant) -> T) -> T {
    let now = Instant::now();
    let mut bucket = BUCKET.lock().unwrap_or_else(PoisonError::into_inner);
    act(bucket.get_or_insert_with(|| Bucket::new(now)), now)
}

/// Logs the number of omitted lines, if there are any and a notice is due.
pub(crate) fn log_left_out() {
    if let Some(count) = with_bucket(Bucket::notice) {
        tracing::warn!(
            target: OWN,
            "left out {count} log lines: too many in a minute. twill status lists the current warnings"
        );
    }
}

/// Writer for stderr within the limits.
pub(super) struct Limited {
    pub(super) format: LogFormat,
}

impl MakeWriter<'_> for Limited {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { format: self.format, level: Level::INFO, is_own: false }
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Line {
        Line { format: self.format, level: *meta.level(), is_own: meta.target() == OWN }
    }
}

/// Writer for one line.
pub(super) struct Line {
    format: LogFormat,
    level: Level,
    is_own: bool,
}

impl Write for Line {
    /// Writes `line`, which is always a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let short;
        let out = match str::from_utf8(line) {
            Ok(text) if !self.is_own => {
                short = cut(text, self.format);
                short.as_deref().unwrap_or(text).as_bytes()
            }
            _ => line,
        };
        if self.is_own || with_bucket(|bucket, now| bucket.takes(out.len(), self.level, now)) {
            io::stderr().lock().write_all(out)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Returns the shortened line, or `None` if it is short enough. In JSON, each text is shortened on its own.
fn cut(line: &str, format: LogFormat) -> Option<String> {
    // Most lines are short in bytes already, which is cheaper to check.
    if line.len() <= LINE || line.chars().count() <= LINE {
        return None;
    }
    match format {
        LogFormat::Text => Some(shortened(line.trim_end(), LINE) + "\n"),
        LogFormat::Json => {
            let mut value: Value = serde_json::from_str(line).ok()?;
            for field in value.as_object_mut()?.values_mut() {
                if let Value::String(text) = field {
                    *text = shortened(&*text, PRINTED);
                }
            }
            Some(format!("{value}\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes and lines that pass, of `per_second` lines of `length` bytes during `span` seconds.
    fn pass(level: Level, length: usize, per_second: u32, span: u32) -> (usize, usize) {
        let begun = Instant::now();
        let (mut bucket, step) = (Bucket::new(begun), Duration::from_secs(1) / per_second);
        let times = (0..per_second * span).map(|nth| begun + step * nth);
        let lines = times.filter(|now| bucket.takes(length, level, *now)).count();
        (lines * length, lines)
    }

    #[test]
    fn a_flood_logs_at_most_100_kb_a_minute() {
        for length in [40, 120, 560, 2200] {
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::TRACE] {
                let (bytes, lines) = pass(level, length, 1000, 60);
                assert!(bytes < 95_000 && lines <= 501, "{length} {level}: {bytes} bytes, {lines} lines");
                assert!(bytes > 10_000, "{length} {level}: {bytes} bytes");
            }
        }
    }

    #[test]
    fn usual_lines_pass_unshortened() {
        assert_eq!(pass(Level::INFO, 200, 2, 600).1, 1200);
    }

    #[test]
    fn a_flood_of_information_leaves_room_for_warnings() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let passed = (0..10_000).filter(|_| bucket.takes(150, Level::INFO, now)).count();
        assert!(bucket.takes(560, Level::WARN, now) && bucket.takes(560, Level::ERROR, now));
        assert_eq!(bucket.notice(now), Some(10_000 - passed as u64));
        assert_eq!(bucket.notice(now), None);
        assert!(!bucket.takes(150, Level::INFO, now));
        assert_eq!(bucket.notice(now), None);
        assert_eq!(bucket.notice(now + NOTICE), Some(1));
    }

    #[test]
    fn a_line_is_shortened_in_each_format() {
        let text = format!("2026-01-01T00:00:00Z  WARN store entry: {}\n", "x".repeat(60_000));
        let line = cut(&text, LogFormat::Text).unwrap();
        assert!(line.chars().count() <= LINE + 1 && line.ends_with(" more)\n"), "{line}");
        let json = format!("{{\"level\":\"WARN\",\"message\":\"{}\"}}\n", "\\n".repeat(60_000));
        let line = cut(&json, LogFormat::Json).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "WARN");
        assert!(value["message"].as_str().unwrap().chars().count() <= PRINTED, "{line}");
        assert_eq!(cut("short\n", LogFormat::Text), None);
    }
}
