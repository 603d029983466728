//! A node's daemon as a real process: starts, kills and restarts it, and measures its cost.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::enter::work_dir;
use crate::node::Node;
use crate::wait::until;

/// Maximum time until a daemon is ready.
const READY: Duration = Duration::from_secs(15);
/// Maximum time until a daemon has stopped.
const STOPPED: Duration = Duration::from_secs(10);

/// A running `twill daemon`; killed when dropped.
#[derive(Debug)]
pub struct Daemon<'lab> {
    node: &'lab Node,
    /// Complete command line of the daemon, including a wrapper program if there is one.
    line: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl<'lab> Daemon<'lab> {
    /// Runs the command line `line` on the node and appends its output to the node's log file.
    pub(crate) fn start(node: &'lab Node, line: Vec<String>) -> Self {
        let log = work_dir().join("log").join(format!("{}.log", node.name));
        let child = spawn(&mut node.command(&line), &log);
        Self { node, line, log, child }
    }

    /// Returns the process id of the daemon itself, not of a wrapper.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until /readyz answers 200. Panics with the log if the daemon exits or is not ready within 15 s.
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

    /// Returns true while the process runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGKILL and waits for the exit.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends `signal`. Panics if that fails.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, signal).unwrap_or_else(|e| panic!("{}: {signal}: {e}", self.node.name));
    }

    /// Suspends the daemon with SIGSTOP, which it cannot notice.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Resumes a suspended daemon with SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends SIGTERM and waits for the exit.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    /// Waits for the exit. Panics if the daemon still runs after 10 s.
    pub fn wait_exit(&mut self) -> ExitStatus {
        until(STOPPED, || self.child.try_wait().ok().flatten())
            .unwrap_or_else(|| panic!("{} runs on; its log:\n{}", self.node.name, self.log()))
    }

    /// Runs a shell line in the mount namespace of the daemon: each daemon has its own. Panics if the line fails.
    pub fn run_in_its_mounts(&self, line: &str) {
        let pid = self.pid().to_string();
        let out = Command::new("nsenter").args(["--mount", "--target", &pid, "sh", "-c", line]).output();
        let out = out.expect("nsenter starts");
        assert!(out.status.success(), "`{line}`: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Kills the daemon if it runs and starts it again with the same arguments, without waiting until it is ready.
    pub fn restart(&mut self) {
        self.kill9();
        self.child = spawn(&mut self.node.command(&self.line), &self.log);
    }

    /// Returns everything that the daemons of this node have logged, across restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the processor time of all its living threads.
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

    /// Returns the resident memory in bytes. Panics if the daemon is dead.
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
