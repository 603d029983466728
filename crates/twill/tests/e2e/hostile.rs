//! Attacks by a writer of one key, the owner of one pod, or a local user. SECURITY.md gives the limits of memory,
//! processor time, log, repairs, packets of healthy peers, answers to the node, and readiness.

mod clients;
mod leases;
mod ownership;
mod pods;
mod tools;

use std::cell::Cell;
use std::fs;
use std::time::{Duration, Instant};

use lab::{Daemon, Node, PingStream, Pod};

/// Maximum resident memory of a daemon at any moment.
const MEMORY: u64 = 64 << 20;
/// Maximum share of a core that a daemon uses during an attack. The tests run a build without optimization.
const CPU: f64 = 0.9;
/// Maximum number of bytes of log in a minute, and so of each shorter time.
const LOG: usize = 100_000;
/// Maximum number of lines of log in a minute.
const LINES: usize = 520;
/// Maximum time of an answer to the node's own address.
const ANSWER: Duration = Duration::from_millis(100);
/// Maximum time of a repair.
const REPAIR: Duration = Duration::from_secs(1);
/// Number of repairs within a minute after which the daemon delays further ones, as in a conflict.
const REPAIRS: u32 = 6;

/// A control group that limits one daemon to 64 MiB. Where the machine has no such groups, only the peak that the kernel counts
/// is checked.
struct Cage(Option<std::path::PathBuf>);

impl Cage {
    fn around(daemon: &Daemon, name: &str) -> Self {
        let name = format!("twill-hostile-{name}-{}", daemon.pid());
        let places = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let cage = places.into_iter().find_map(|(root, limit)| {
            let dir = std::path::Path::new(root).join(&name);
            fs::create_dir(&dir).ok()?;
            let is_set = fs::write(dir.join(limit), MEMORY.to_string())
                .and_then(|()| fs::write(dir.join("cgroup.procs"), daemon.pid().to_string()));
            if is_set.is_err() {
                let _ = fs::remove_dir(&dir);
            }
            is_set.ok().map(|()| dir)
        });
        println!("in a control group: {}", cage.is_some());
        Self(cage)
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            // Its processes move to the group above.
            let above = dir.parent().map(|above| above.join("cgroup.procs")).unwrap_or_default();
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(&above, pid);
            }
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Returns the largest resident memory that the daemon has had, in bytes.
fn peak(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>();
    kib.unwrap_or_else(|_| panic!("the daemon is dead: {}", daemon.log())) * 1024
}

/// Measurements during an attack.
struct Watch<'a> {
    daemon: &'a Daemon<'a>,
    node: &'a Node,
    log: usize,
    lines: usize,
    cpu: Duration,
    begun: Instant,
    ping: Option<PingStream>,
    repairs: Cell<u32>,
    _cage: Cage,
}

impl<'a> Watch<'a> {
    /// Begins to measure. `pods` are one of that node and one of a healthy peer.
    fn begin(name: &str, node: &'a Node, daemon: &'a Daemon<'a>, pods: Option<(&Pod, &Pod)>) -> Self {
        let log = daemon.log();
        let ping = pods.map(|(from, to)| PingStream::start(&from.ns, to.ip()));
        let cage = Cage::around(daemon, name);
        let (log, lines) = (log.len(), log.lines().count());
        Self {
            daemon,
            node,
            log,
            lines,
            cpu: daemon.cpu(),
            begun: Instant::now(),
            ping,
            repairs: Cell::new(0),
            _cage: cage,
        }
    }

    /// Asserts that the node is quick: in an answer to itself, and in the repair of a deleted route. The node and the peer
    /// must be ready.
    fn is_quick(&self, peer: &Node) {
        let answer = (0..3).map(|_| self.answer("/healthz")).min().unwrap();
        assert!(answer < lab::patient(ANSWER), "/healthz took {answer:?}");
        for node in [self.node, peer] {
            assert_eq!(node.get("/readyz").map(|reply| reply.status), Some(200), "{}", node.name);
        }
        if self.repairs.replace(self.repairs.get() + 1) >= REPAIRS {
            return;
        }
        let route = peer.subnet();
        self.node.ns.run(&format!("ip route del {route}"));
        lab::wait_for("the route is back", REPAIR, || {
            self.node.ns.run("ip route show proto 84").contains(&route)
        });
    }

    fn answer(&self, path: &str) -> Duration {
        let begun = Instant::now();
        assert!(self.node.get(path).is_some_and(|reply| reply.status == 200), "no answer to {path}");
        begun.elapsed()
    }

    /// Ends the attack and asserts the limits.
    fn end(self) {
        let log = self.daemon.log();
        let (bytes, lines) = (log.len() - self.log, log.lines().count() - self.lines);
        let (span, memory, cpu) = (self.begun.elapsed(), peak(self.daemon), self.daemon.cpu() - self.cpu);
        let longest = log.lines().skip(self.lines).map(|line| line.chars().count()).max();
        println!(
            "{span:.0?}: {bytes} bytes and {lines} lines of log (longest {longest:?}), peak {} KiB, CPU {cpu:?}",
            memory >> 10
        );
        let minutes = span.as_secs() as usize / 60 + 1;
        assert!(bytes < LOG * minutes && lines < LINES * minutes, "{bytes} bytes, {lines} lines");
        assert!(longest.is_none_or(|longest| longest < 700), "a line of {longest:?} characters");
        assert!(memory < MEMORY, "{} KiB at the peak", memory >> 10);
        assert!(cpu < lab::patient(span.mul_f64(CPU)), "CPU {cpu:?} in {span:?}");
        let control = log.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(control, None, "a control character in the log");
        if let Some(ping) = self.ping {
            let report = ping.stop();
            assert_eq!(report.lost, 0, "{report:?}");
        }
    }
}
