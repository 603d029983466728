//! Runs `ip monitor`, `bridge monitor` and `nft monitor` on one node. They prove writes to the kernel, and their
//! absence.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::lines::{Line, Lines};
use crate::ns::Ns;
use crate::wait::until;

const PROGRAMS: [(&str, &[&str]); 3] =
    [("ip", &["-o", "monitor", "all"]), ("bridge", &["-o", "monitor", "all"]), ("nft", &["monitor"])];
/// Maximum time until every monitor has reported a marker.
const ANSWER: Duration = Duration::from_secs(5);
/// Time after which the marker's events are caused again.
const REPEAT: Duration = Duration::from_millis(200);

/// The three monitors of one namespace.
#[derive(Debug)]
pub struct Monitors {
    ns: Ns,
    monitors: Vec<(&'static str, Lines)>,
    from: Vec<usize>,
}

impl Monitors {
    /// Starts the monitors and returns once each has shown that it receives events. Panics if one does not within 5 s.
    pub fn start(ns: &Ns) -> Self {
        let start = |(program, args): (&'static str, &[&str])| {
            let mut command = ns.command(program);
            command.args(args);
            (program, Lines::start(command))
        };
        let mut monitors = Self { ns: ns.clone(), monitors: PROGRAMS.map(start).into(), from: vec![0; 3] };
        monitors.from = monitors.sync();
        monitors
    }

    /// Causes harmless events until every monitor has reported them: by then it has also reported all earlier events. Returns the
    /// number of lines of each monitor up to that point.
    fn sync(&self) -> Vec<usize> {
        static NTH: AtomicU16 = AtomicU16::new(0);
        let marker = Marker(NTH.fetch_add(1, Ordering::Relaxed));
        let reported = |(program, lines): &(&str, Lines)| {
            lines.all().iter().rposition(|line| marker.ends_with(program, &line.text))
        };
        let all = until(ANSWER, || {
            self.ns.run(&marker.command());
            until(REPEAT, || self.monitors.iter().map(reported).collect::<Option<Vec<_>>>())
        });
        let all = all.unwrap_or_else(|| panic!("{}: a monitor receives no events", self.ns.name()));
        all.into_iter().map(|position| position + 1).collect()
    }

    /// Returns each event's program and line since the start or the last [`Self::forget`], without the lab's own markers.
    pub fn events(&self) -> Vec<(&'static str, Line)> {
        self.sync();
        let since = self.monitors.iter().zip(&self.from).flat_map(|((program, lines), from)| {
            lines.all().into_iter().skip(*from).map(|line| (*program, line))
        });
        since.filter(|(_, line)| !Marker::is_any(&line.text)).collect()
    }

    /// Returns the events since then that contain one of `patterns`, as "ip: text".
    pub fn lines_about(&self, patterns: &[&str]) -> Vec<String> {
        let about = |text: &str| patterns.iter().any(|pattern| text.contains(pattern));
        let events = self.events().into_iter().filter(|(_, line)| about(&line.text));
        events.map(|(program, line)| format!("{program}: {}", line.text.trim())).collect()
    }

    /// Returns events about objects of a pod network's daemon: flannel devices, routes in 10.244.0.0/16, its nft tables.
    pub fn lines_of_ours(&self) -> Vec<String> {
        let mut lines = self.lines_about(&["flannel", "twill", "10.244."]);
        // The neighbours and routes of the bridge belong to the CNI plugin and the kernel.
        lines.retain(|line| !line.contains(" dev cni0"));
        lines
    }

    /// Ignores all events up to now.
    pub fn forget(&mut self) {
        self.from = self.sync();
    }
}

/// A neighbour, an FDB entry and an nft table that are added and deleted again. They are on eth0, which every namespace of the
/// lab has, and serve no other purpose.
struct Marker(u16);

impl Marker {
    fn ip(&self) -> String {
        let [high, low] = self.0.to_be_bytes();
        format!("169.254.{high}.{low} ")
    }

    fn mac(&self) -> String {
        let [high, low] = self.0.to_be_bytes();
        format!("02:00:00:fe:{high:02x}:{low:02x}")
    }

    fn table(&self) -> String {
        format!("table ip mark{:05}", self.0)
    }

    fn command(&self) -> String {
        let (ip, mac, table) = (self.ip(), self.mac(), self.table());
        format!(
            "ip neigh replace {ip} lladdr {mac} dev eth0 nud permanent && ip neigh delete {ip} dev eth0 && \
             bridge fdb add {mac} dev eth0 && bridge fdb delete {mac} dev eth0 && \
             nft add {table} && nft delete {table}"
        )
    }

    /// Returns true if this is the last line that `program` prints about the marker.
    fn ends_with(&self, program: &str, line: &str) -> bool {
        match program {
            "nft" => line.contains(&format!("delete {}", self.table())),
            "ip" => line.contains("Deleted") && line.contains(&self.ip()),
            _ => line.contains("Deleted") && line.contains(&self.mac()),
        }
    }

    fn is_any(line: &str) -> bool {
        ["169.254.", "02:00:00:fe:", "table ip mark", "# new generation"]
            .iter()
            .any(|part| line.contains(part))
    }
}
