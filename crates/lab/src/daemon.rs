//! A node's daemon as a real process: starting, killing, restarting it, and what it costs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::enter::work_dir;
use crate::node::Node;
use crate::wait::until;

const READY: Duration = Duration::from_secs(15);
const STOPPED: Duration = Duration::from_secs(10);

/// A running `twill daemon`; killed when dropped.
#[derive(Debug)]
pub struct Daemon<'lab> {
    node: &'lab Node,
    /// The program's arguments behind what it is run under.
    line: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl<'lab> Daemon<'lab> {
    /// `line` is run on the node.
    pub(crate) fn start(node: &'lab Node, line: Vec<String>) -> Self {
        let log = work_dir().join("log").join(format!("{}.log", node.name));
        let child = spawn(&mut node.command(&line), &log);
        Self { node, line, log, child }
    }

    /// The daemon's own process id, not a wrapper's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until /readyz says 200; panics with the end of the log when the daemon exits or time is up.
    pub fn wait_ready(&self) {
        let ready = || {
            let gone = !fs::exists(format!("/proc/{}/exe", self.pid())).unwrap_or(false);
            let up = self.node.get("/readyz").is_some_and(|reply| reply.status == 200);
            (up || gone).then_some(up)
        };
        if until(READY, ready) != Some(true) {
            let answer = self.node.get("/readyz");
            panic!("{} is not ready (/readyz: {answer:?}); its log:\n{}", self.node.name, self.log());
        }
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, signal).unwrap_or_else(|e| panic!("{}: {signal}: {e}", self.node.name));
    }

    /// From now on it does nothing and knows nothing of it.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    /// Waits for its end; panics when it runs on.
    pub fn wait_exit(&mut self) -> ExitStatus {
        until(STOPPED, || self.child.try_wait().ok().flatten())
            .unwrap_or_else(|| panic!("{} runs on; its log:\n{}", self.node.name, self.log()))
    }

    /// Runs a shell line among the mounts that the daemon sees: each daemon has its own.
    pub fn run_in_its_mounts(&self, line: &str) {
        let pid = self.pid().to_string();
        let out = Command::new("nsenter").args(["--mount", "--target", &pid, "sh", "-c", line]).output();
        let out = out.expect("nsenter starts");
        assert!(out.status.success(), "`{line}`: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Starts it again with the same arguments after `kill9` or `terminate`; does not wait until it is ready.
    pub fn restart(&mut self) {
        self.kill9();
        self.child = spawn(&mut self.node.command(&self.line), &self.log);
    }

    /// All that the daemon ever said, across restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Processor time of all its living threads.
    pub fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let spent = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }

    /// Returns how often its living threads have gone to sleep since they began, and so how often they were woken. Unlike
    /// processor time this does not depend on the speed of the machine. Source: `voluntary_ctxt_switches` of
    /// /proc/PID/task/TID/status, proc_pid_status(5).
    pub fn wakeups(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let counts = tasks.filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?
                .trim()
                .parse::<u64>()
                .ok()
        });
        counts.sum()
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>();
        kib.unwrap_or_else(|_| panic!("{path} has no VmRSS: is the daemon dead?")) * 1024
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.kill9();
    }
}

fn spawn(command: &mut Command, log: &PathBuf) -> Child {
    let file = File::options().create(true).append(true).open(log);
    let file = file.unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    let copy = file.try_clone().expect("a second descriptor of the log");
    command.stdin(std::process::Stdio::null()).stdout(copy).stderr(file).spawn().expect("ip starts")
}
