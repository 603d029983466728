//! Prints results: lines of JSON for programs as soon as there are any, and figures for people.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::GC_THRESH;

pub(super) struct Report {
    json: Option<File>,
}

impl Report {
    pub(super) fn new(json: Option<&Path>) -> Result<Self, String> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|e| format!("{}: {e}", path.display()))
        };
        Ok(Self { json: json.map(open).transpose()? })
    }

    /// Appends a line of JSON to the file; does nothing without a file.
    pub(super) fn line(&mut self, value: &Value) -> Result<(), String> {
        let Some(file) = &mut self.json else { return Ok(()) };
        writeln!(file, "{value}").map_err(|e| format!("the file of JSON lines: {e}"))
    }
}

/// Returns a description of the machine: kernel, processors, load, and limit of the neighbour table.
pub(super) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = read("/proc/cpuinfo");
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
    let model = models.first().copied().unwrap_or("unknown processor");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let limit = std::env::var(GC_THRESH).unwrap_or_default();
    let limit = if limit.is_empty() { "unknown".to_owned() } else { limit };
    format!(
        "Linux {}, {} x {model}, load {load} at the start; learned neighbours at most {limit} (gc_thresh3, of the \
         whole machine: a lab cannot set it)",
        read("/proc/sys/kernel/osrelease"),
        models.len(),
    )
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

pub(super) fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// Formats a number of bytes as MiB (2^20 bytes).
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", Duration::from_micros(bytes).as_secs_f64() * 1e6 / 1_048_576.0)
}
