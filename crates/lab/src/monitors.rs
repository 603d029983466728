//! `ip monitor`, `bridge monitor` and `nft monitor` of one node: proof of what was written to the kernel, and of silence.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::lines::{Line, Lines};
use crate::ns::Ns;
use crate::wait::until;

const PROGRAMS: [(&str, &[&str]); 3] =
    [("ip", &["-o", "monitor", "all"]), ("bridge", &["-o", "monitor", "all"]), ("nft", &["monitor"])];
const ANSWER: Duration = Duration::from_secs(5);

/// The three monitors of one namespace.
#[derive(Debug)]
pub struct Monitors {
    ns: Ns,
    heard: Vec<(&'static str, Lines)>,
    from: Vec<usize>,
}

impl Monitors {
    /// Returns when each has proved that it hears.
    pub fn start(ns: &Ns) -> Self {
        let start = |(program, args): (&'static str, &[&str])| {
            let mut command = ns.command(program);
            command.args(args);
            (program, Lines::start(command))
        };
        let mut monitors = Self { ns: ns.clone(), heard: PROGRAMS.map(start).into(), from: vec![0; 3] };
        monitors.from = monitors.sync();
        monitors
    }

    /// Provokes a harmless event until every monitor has told of it: all that happened before has then been told, too.
    /// The number of lines up to the last such event.
    fn sync(&self) -> Vec<usize> {
        static NTH: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("mark{}", NTH.fetch_add(1, Ordering::Relaxed));
        let told = |(_, lines): &(&str, Lines), last: &str| {
            lines.all().iter().rposition(|line| line.text.contains(&mark) && line.text.contains(last))
        };
        let provoke = format!(
            "ip link add {mark} type bridge && bridge fdb add 02:00:00:00:fe:ed dev {mark} && \
             ip link delete {mark} && nft add table ip {mark} && nft delete table ip {mark}"
        );
        let all = until(ANSWER, || {
            self.ns.run(&provoke);
            until(Duration::from_millis(200), || {
                // ip tells of the device's end last; the others' last words about it are good enough as they come.
                let last = |program| if program == "ip" { "Deleted" } else { "" };
                self.heard.iter().map(|one| told(one, last(one.0))).collect::<Option<Vec<_>>>()
            })
        });
        let all = all.unwrap_or_else(|| panic!("{}: a monitor is deaf", self.ns.name()));
        all.into_iter().map(|position| position + 1).collect()
    }

    /// All events since the start or the last [`Self::forget`] but for the lab's own markers, by program.
    pub fn events(&self) -> Vec<(&'static str, Line)> {
        self.sync();
        let since = self.heard.iter().zip(&self.from).flat_map(|((program, lines), from)| {
            lines.all().into_iter().skip(*from).map(|line| (*program, line))
        });
        since.filter(|(_, line)| !is_marker(&line.text)).collect()
    }

    /// Events since the start that contain one of `patterns`, as "ip: text".
    pub fn lines_about(&self, patterns: &[&str]) -> Vec<String> {
        let about = |text: &str| patterns.iter().any(|pattern| text.contains(pattern));
        let events = self.events().into_iter().filter(|(_, line)| about(&line.text));
        events.map(|(program, line)| format!("{program}: {}", line.text.trim())).collect()
    }

    /// Events about what a pod network's daemon owns: flannel devices, routes in 10.244.0.0/16, nft tables of it.
    pub fn lines_of_ours(&self) -> Vec<String> {
        let mut lines = self.lines_about(&["flannel", "twill", "10.244."]);
        // The bridge's neighbours and routes are the CNI plugin's and the kernel's.
        lines.retain(|line| !line.contains(" dev cni0"));
        lines
    }

    /// Starts counting anew.
    pub fn forget(&mut self) {
        self.from = self.sync();
    }
}

fn is_marker(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word.strip_prefix("mark").is_some_and(|nth| nth.parse::<usize>().is_ok()))
        || text.contains("new generation")
}
