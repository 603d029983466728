//! A named network namespace. Command lines, batches for ip, threads and sysctls work in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::wait::wait_for;

/// Flag of an address whose duplicate address detection is not over: IFA_F_TENTATIVE of linux/if_addr.h.
const TENTATIVE: u8 = 0x40;
/// Maximum time until devices have their carrier.
const CARRIER: Duration = Duration::from_secs(5);

/// A network namespace, known by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ns {
    name: String,
}

impl Ns {
    /// Refers to the namespace that `ip netns` knows by this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file by which `ip netns` keeps the namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Builds a command for `program` in this network namespace; its process id is the program's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs `line` in a shell of this namespace.
    pub fn output(&self, line: &str) -> Output {
        let out = self.command("sh").args(["-c", line]).output();
        out.unwrap_or_else(|e| panic!("{}: `{line}`: {e}", self.name))
    }

    /// Runs `line` in a shell of this namespace and returns its output. Panics with its error message if it fails.
    pub fn run(&self, line: &str) -> String {
        let out = self.output(line);
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            panic!("{}: `{line}`: {}: {}", self.name, out.status, said.trim());
        }
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs many lines of `ip` in one process. Panics if one fails.
    pub fn batch(&self, lines: &str) {
        ip_batch(&["-n", &self.name], lines);
    }

    /// Runs `work` on a new thread that has entered this namespace.
    pub fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let ns = self.clone();
        thread::spawn(move || {
            ns.join();
            work()
        })
    }

    /// Runs `work` in this namespace and waits for it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            self.join();
            work()
        };
        thread::scope(|scope| match scope.spawn(entered).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    fn join(&self) {
        let file = File::open(self.path()).unwrap_or_else(|e| panic!("{}: {e}", self.path().display()));
        setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("cannot enter {}: {e}", self.name));
    }

    /// Writes sysctls given as in sysctl(8), such as ("net.ipv4.ip_forward", "1"); a `/` stands for a dot in a name.
    pub fn sysctl(&self, settings: &[(&str, &str)]) {
        self.within(|| {
            for (key, value) in settings {
                let path = format!("/proc/sys/{}", swapped(key));
                fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {path}={value}: {e}", self.name));
            }
        });
    }

    /// Waits until each of `devices` has its link-local address. The kernel reports a device's carrier late, at times by a
    /// second. Before that IPv6 forwarding does not work, and a view still changes.
    pub(crate) fn wait_up(&self, devices: &[&str]) {
        let settled = |line: &str, device: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, _, _, "20", flags, name] = fields[..] else { return false };
            name == device && u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & TENTATIVE == 0)
        };
        let all = || {
            let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
            devices.iter().all(|device| addresses.lines().any(|line| settled(line, device)))
        };
        self.within(|| wait_for(&format!("{}: {} up", self.name, devices.join(", ")), CARRIER, all));
    }
}

/// Swaps dots and slashes, sysctl(8)'s rule for device names with dots: "net.ipv4.conf.flannel/1.rp_filter".
fn swapped(key: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    key.chars().map(swap).collect()
}

/// Feeds `lines` to one `ip -batch`; panics at the first one that fails.
pub(crate) fn ip_batch(options: &[&str], lines: &str) {
    let mut command = Command::new("ip");
    command.args(options).args(["-batch", "-"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("ip starts");
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    // ip stops reading at the first failure; its error message below says more than our broken pipe.
    let _ = stdin.write_all(lines.as_bytes());
    drop(stdin);
    let out = child.wait_with_output().expect("ip ends");
    if !out.status.success() {
        panic!("ip {} -batch: {}in:\n{lines}", options.join(" "), String::from_utf8_lossy(&out.stderr));
    }
}
