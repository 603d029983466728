//! A real etcd on a machine of its own: 192.168.100.5 and fd00:100::5 on segment A. Starts, stops, stalls and rolls back the
//! process; its data is in `contents`. Only etcdctl reads and writes it here, never twill's own client.

mod certificates;
mod contents;

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::enter::work_dir;
use crate::ns::Ns;
use crate::wait::until;
use certificates::Certificates;

pub(crate) use contents::PREFIX;
pub use contents::{Entry, Ttl};

pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 5);
pub(crate) const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 5);
/// URL at which the only member expects other members.
const PEER: &str = "http://127.0.0.1:2380";
/// Text that etcd of any version logs when it has data, a leader and clients.
const SERVING: &str = "ready to serve client requests";
/// Maximum time until etcd serves.
const UP: Duration = Duration::from_secs(20);
/// Maximum time until etcd has stopped.
const DOWN: Duration = Duration::from_secs(10);
/// Password of both users: root, used by the lab, and flannel, used by the daemon.
const PASSWORD: &str = "secret";

/// Access to etcd; by default anybody over plain HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EtcdSetup {
    tls: bool,
    mutual: bool,
    auth: bool,
}

impl EtcdSetup {
    /// Uses plain HTTP without users.
    pub fn http() -> Self {
        Self::default()
    }

    /// Uses HTTPS, with a certificate of an authority that only the lab knows.
    pub fn tls() -> Self {
        Self { tls: true, ..Self::default() }
    }

    /// Uses HTTPS, and requires a client certificate, too.
    pub fn mutual_tls() -> Self {
        Self { mutual: true, ..Self::tls() }
    }

    /// Requires a user as well. The daemon's, `flannel`, may read the network config and the leases, and write the leases only.
    #[must_use]
    pub fn with_auth(self) -> Self {
        Self { auth: true, ..self }
    }
}

/// The process, and its present or last data directory.
#[derive(Debug)]
struct Process {
    child: Option<Child>,
    data: PathBuf,
    /// Number of earlier data directories.
    older: usize,
}

/// The machine of etcd, and the process while it runs; killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    ns: Ns,
    home: PathBuf,
    setup: EtcdSetup,
    certificates: Option<Certificates>,
    process: Mutex<Process>,
}

impl Etcd {
    pub(crate) fn create(setup: EtcdSetup, home: PathBuf) -> Self {
        fs::create_dir_all(&home).unwrap_or_else(|e| panic!("{}: {e}", home.display()));
        Self {
            ns: Ns::named("etcd"),
            setup,
            certificates: setup.tls.then(|| Certificates::create(home.join("tls"))),
            process: Mutex::new(Process { child: None, data: home.join("data0"), older: 0 }),
            home,
        }
    }

    /// Returns the network namespace of the machine.
    pub fn ns(&self) -> &Ns {
        &self.ns
    }

    /// Returns the client URL, such as `https://192.168.100.5:2379`.
    pub fn endpoint(&self) -> String {
        self.url(&ADDRESS.to_string())
    }

    /// Returns the client URL by IPv6, such as `https://[fd00:100::5]:2379`.
    pub fn endpoint6(&self) -> String {
        self.url(&format!("[{ADDRESS6}]"))
    }

    fn url(&self, host: &str) -> String {
        format!("{}://{host}:2379", if self.setup.tls { "https" } else { "http" })
    }

    /// Returns the daemon's flags for this etcd.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec![format!("--etcd-endpoints={}", self.endpoint())];
        if let Some(certificates) = &self.certificates {
            flags.push(format!("--etcd-cafile={}", certificates.path("ca.crt")));
            if self.setup.mutual {
                flags.push(format!("--etcd-certfile={}", certificates.path("client.crt")));
                flags.push(format!("--etcd-keyfile={}", certificates.path("client.key")));
            }
        }
        if self.setup.auth {
            flags.extend(["--etcd-username=flannel".to_owned(), format!("--etcd-password={PASSWORD}")]);
        }
        flags
    }

    /// Gives new connections a server certificate that has expired. [`Self::ctl`] accepts it.
    pub fn expire_certificate(&self) {
        self.certificates.as_ref().expect("only etcd with TLS has a certificate").expire_server();
    }

    /// Gives new connections a valid server certificate again.
    pub fn renew_certificate(&self) {
        self.certificates.as_ref().expect("only etcd with TLS has a certificate").renew_server();
    }

    /// Starts etcd on its present data and returns once it serves. Panics if it does not within 20 s.
    pub fn start(&self) {
        self.start_with(&[]);
    }

    /// Same as [`Self::start`], with more arguments for etcd. They do not apply to later starts.
    pub fn start_with(&self, args: &[&str]) {
        let mut process = self.process();
        assert!(process.child.is_none(), "etcd runs already");
        let new = !process.data.exists();
        let before = self.log().len();
        process.child = Some(self.spawn(&process.data, args));
        self.wait_serving(&mut process, before);
        drop(process);
        if new && self.setup.auth {
            self.set_up_auth();
        }
    }

    /// Same as [`Self::start`], without any data, as after the loss of its disk.
    pub fn start_empty(&self) {
        self.another_data_dir();
        self.start();
    }

    /// Sends SIGTERM and waits for the exit. Panics if etcd still runs after 10 s.
    pub fn stop(&self) {
        self.signal(Signal::SIGTERM);
        let mut process = self.process();
        let ended = || process.child.as_mut()?.try_wait().ok().flatten();
        assert!(until(DOWN, ended).is_some(), "etcd still runs; its log:\n{}", self.log());
        process.child = None;
    }

    /// Sends SIGKILL if etcd runs, and waits for the exit.
    pub fn kill9(&self) {
        if let Some(mut child) = self.process().child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Suspends the process with SIGSTOP: it keeps its connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Resumes a suspended process with SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Writes all present data to a new file, for [`Self::restore`], and returns its path.
    pub fn snapshot(&self) -> PathBuf {
        let path = (0..).map(|n| self.home.join(format!("snapshot{n}"))).find(|path| !path.exists());
        let path = path.expect("a free number");
        self.ctl(&["snapshot", "save", &path.display().to_string()]);
        path
    }

    /// Kills etcd if it runs, and starts it on the data of `snapshot`: its revision goes back.
    pub fn restore(&self, snapshot: &Path) {
        self.kill9();
        let data = self.another_data_dir();
        // Since 3.6 only etcdutl restores; before 3.5 it does not exist.
        let etcdutl = tool("etcdutl");
        let tool = if in_path(&etcdutl) { etcdutl } else { tool("etcdctl") };
        let mut command = self.ns.command(&tool);
        command.args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(data).args(member());
        let out =
            command.env("ETCDCTL_API", "3").output().unwrap_or_else(|e| panic!("{}: {e}", tool.display()));
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        self.start();
    }

    /// Returns everything that etcd has logged, across restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(log_path()).unwrap_or_default()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn another_data_dir(&self) -> PathBuf {
        let mut process = self.process();
        process.older += 1;
        process.data = self.home.join(format!("data{}", process.older));
        process.data.clone()
    }

    fn signal(&self, signal: Signal) {
        let process = self.process();
        let child = process.child.as_ref().unwrap_or_else(|| panic!("{signal} to etcd, which does not run"));
        kill(Pid::from_raw(child.id().cast_signed()), signal)
            .unwrap_or_else(|e| panic!("etcd: {signal}: {e}"));
    }

    fn spawn(&self, data: &Path, args: &[&str]) -> Child {
        let program = program();
        assert!(in_path(&program), "the lab needs `{}`: apt-get install etcd-server", program.display());
        let log = File::options().create(true).append(true).open(log_path());
        let log = log.unwrap_or_else(|e| panic!("{}: {e}", log_path().display()));
        let urls = [self.endpoint(), self.endpoint6(), self.url("127.0.0.1")].join(",");
        let mut command = self.ns.command(program);
        command.arg("--data-dir").arg(data).args(member());
        command.args(["--listen-client-urls", &urls, "--advertise-client-urls", &self.endpoint()]);
        command.args(["--listen-peer-urls", PEER]).args(args);
        // A single member waits for others before it leads: 0.2 s here, not the usual second. Passwords are hashed at the lowest
        // cost.
        command.args(["--heartbeat-interval", "20", "--election-timeout", "200", "--bcrypt-cost", "4"]);
        if let Some(certificates) = &self.certificates {
            command.args(["--cert-file", &certificates.path("server.crt")]);
            command.args(["--key-file", &certificates.path("server.key")]);
            if self.setup.mutual {
                command.args(["--client-cert-auth", "--trusted-ca-file", &certificates.path("ca.crt")]);
            }
        }
        let copy = log.try_clone().expect("a second descriptor of the log");
        command.stdin(Stdio::null()).stdout(copy).stderr(log).spawn().expect("nsenter starts")
    }

    fn wait_serving(&self, process: &mut Process, before: usize) {
        let mut serving = || {
            let gone = !matches!(process.child.as_mut()?.try_wait(), Ok(None));
            let up = self.log().get(before..).is_some_and(|said| said.contains(SERVING));
            (up || gone).then_some(up && !gone)
        };
        if until(UP, &mut serving) != Some(true) {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            panic!(
                "etcd does not serve; the end of its log:\n{}",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
    }

    fn set_up_auth(&self) {
        let root = format!("root:{PASSWORD}");
        let flannel = format!("flannel:{PASSWORD}");
        // The rights are the smallest set, as docs/reference/etcd.md gives them.
        let [config, end, subnets] =
            ["config", "subnets0", "subnets/"].map(|name| format!("{}/{name}", contents::PREFIX));
        for line in [
            &["user", "add", &root][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "network"],
            &["role", "grant-permission", "network", "read", &config, &end],
            &["role", "grant-permission", "network", "--prefix=true", "readwrite", &subnets],
            &["user", "add", &flannel],
            &["user", "grant-role", "flannel", "network"],
            &["auth", "enable"],
        ] {
            self.ctl_as(&[], line, "").unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Returns the flags that name the only member; etcd and a restore must use the same ones.
fn member() -> [String; 6] {
    let cluster = format!("lab={PEER}");
    ["--name", "lab", "--initial-advertise-peer-urls", PEER, "--initial-cluster", &cluster].map(str::to_owned)
}

fn log_path() -> PathBuf {
    work_dir().join("log").join("etcd.log")
}

/// Returns the etcd executable: `ETCD` in the environment, or the one in PATH.
fn program() -> PathBuf {
    std::env::var_os("ETCD").filter(|path| !path.is_empty()).map_or_else(|| "etcd".into(), PathBuf::from)
}

/// Returns the tool beside the etcd executable if there is one, or else the one in PATH.
fn tool(name: &str) -> PathBuf {
    let beside = program().with_file_name(name);
    if beside.is_file() { beside } else { name.into() }
}

fn in_path(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Returns the start of an etcdctl command line.
fn etcdctl(ns: &Ns) -> Command {
    let mut command = ns.command(tool("etcdctl"));
    command.env("ETCDCTL_API", "3");
    command
}
