//! Cost of a process so far, from /proc.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::until;

/// Unit of time in `/proc/PID/stat`, independent of the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) own: Duration,
    /// Time of programs that it ran and that have ended.
    pub(super) children: Duration,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Self {
        let (own, children) = ticks(pid).unwrap_or_default();
        // The sum over threads is exact to the nanosecond, but lacks threads that have ended.
        let precise = threads(pid);
        let own = if own > precise + 2 * TICK { own } else { precise };
        Self { own, children }
    }

    pub(super) fn total(self) -> Duration {
        self.own + self.children
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            own: self.own.saturating_sub(before.own),
            children: self.children.saturating_sub(before.children),
        }
    }
}

fn threads(pid: u32) -> Duration {
    spent(pid, |_| true)
}

/// Returns the processor time of the threads with this name.
pub(super) fn of_thread(pid: u32, name: &str) -> Duration {
    spent(pid, |task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name))
}

fn spent(pid: u32, counts: impl Fn(&Path) -> bool) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = tasks.filter(|task| counts(&task.path())).filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

/// Returns the processor time of the process and of its ended children.
fn ticks(pid: u32) -> Option<(Duration, Duration)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may contain anything; the third field follows it.
    let fields: Vec<_> = text.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
    Some((TICK * (field(14)? + field(15)?), TICK * (field(16)? + field(17)?)))
}

/// Returns the resident memory, current and peak, in bytes.
pub(super) fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    (kib("VmRSS:") * 1024, kib("VmHWM:") * 1024)
}

pub(super) fn is_alive(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// Waits until the process has used almost no processor time for `span`. It still probes its peers, which takes a few ms a
/// second.
pub(super) fn rest(pid: u32, span: Duration, limit: Duration) {
    let little = (span / 50).max(Duration::from_micros(500));
    let (mut before, mut since) = (threads(pid), Instant::now());
    until(limit, || {
        let now = threads(pid);
        if now > before + little {
            (before, since) = (now, Instant::now());
        }
        (since.elapsed() >= span).then_some(())
    });
}
