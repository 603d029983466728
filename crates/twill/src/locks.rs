//! One daemon per subnet file, VNI and network: a second one would fight the first without end. It decides nothing else,
//! and other VNIs, networks and files run side by side.
//!
//! What lives in the kernel is locked by an abstract unix address: it belongs to the same network namespace as the
//! objects do, and it is gone the moment its owner is, however that ends. A second address beside each lock names the
//! owner, `twill pid 812 of 4026531836 has VNI 1`, so that whoever is refused can say by whom.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use plan::backend::Backend;
use plan::input::{Config, Family};

/// What is locked, for as long as this value lives.
#[derive(Default)]
pub(crate) struct Locks {
    file: Option<File>,
    names: Vec<Held>,
    /// Addresses that only say what we have.
    statements: Vec<UnixDatagram>,
}

struct Held {
    name: String,
    _lock: UnixDatagram,
    /// `None`: it could not be said.
    _statement: Option<UnixDatagram>,
}

impl Locks {
    /// Takes the subnet file, before anything is read from it or written beside it.
    pub(crate) fn take_file(&mut self, subnet_file: &Path) -> anyhow::Result<()> {
        let path = lock_file(subnet_file);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| no_place(dir))?;
        }
        // Until it is locked it says who has locked it.
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let mut file = file.with_context(|| no_place(&path))?;
        match lock_soon(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = fs::read(&path).unwrap_or_default();
                let process = Process::parse(String::from_utf8_lossy(&text).trim());
                bail!(
                    "{} writes {}: stop it, or give this one another --subnet-file",
                    Rival { process, subnet_file: None },
                    subnet_file.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context(format!("locking {}", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", Process::ours()))
            .with_context(|| no_place(&path))?;
        self.file = Some(file);
        self.state(&format!("{SUBNET_FILE}{}", std::path::absolute(subnet_file)?.display()));
        Ok(())
    }

    /// Says that we listen on that port, so that whoever wants it later learns by whom it is taken.
    pub(crate) fn state_healthz(&mut self, port: u16) {
        if port != 0 {
            self.state(&healthz_name(port));
        }
    }

    fn state(&mut self, what: &str) {
        self.statements.extend(stated(what));
    }

    /// Takes what a config makes ours in the kernel; what an earlier one did stays until `keep_vnis`.
    pub(crate) fn take_config(&mut self, config: &Config) -> anyhow::Result<()> {
        for network in Family::ALL.into_iter().filter_map(|family| config.network(family)) {
            let key = "--etcd-prefix (or --store) with another Network in its network config";
            if let Some(other) = self.overlapping(&network)? {
                bail!(
                    "{} has network {other}, which overlaps {network}: stop it, or give one of them another {key}",
                    rival(&format!("{NETWORK}{other}"))
                );
            }
            self.take(&format!("{NETWORK}{network}")).map_err(|refused| refused.advising(key))?;
        }
        match &config.backend {
            Backend::Vxlan(options) => {
                let key = "VNI in the Backend of its network config";
                self.take(&vni_name(options.vni)).map_err(|refused| refused.advising(key))
            }
            _ => Ok(()),
        }
    }

    /// Holds exactly these VNIs. Gives those that another daemon has.
    pub(crate) fn keep_vnis(&mut self, vnis: &[u32]) -> Vec<u32> {
        let names: Vec<String> = vnis.iter().map(|vni| vni_name(*vni)).collect();
        self.names.retain(|Held { name, .. }| !name.starts_with(VNI) || names.contains(name));
        vnis.iter().copied().filter(|vni| self.take(&vni_name(*vni)).is_err()).collect()
    }

    /// Takes flannel's tables and chains for traffic rules, which are there once. Otherwise says who has them.
    pub(crate) fn keep_firewall(&mut self) -> Result<(), String> {
        self.take(FIREWALL).map_err(|_| rival(FIREWALL).to_string())
    }

    /// Does another daemon have that VNI?
    pub(crate) fn is_others_vni(&self, vni: u32) -> bool {
        let name = vni_name(vni);
        !self.holds(&name) && bind(&name).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }

    fn holds(&self, name: &str) -> bool {
        self.names.iter().any(|held| held.name == name)
    }

    /// A network of another daemon that shares addresses with ours.
    fn overlapping(&self, network: &IpNet) -> anyhow::Result<Option<IpNet>> {
        let names = names().context("listing unix sockets")?;
        let networks = names.iter().filter_map(|name| name.strip_prefix(NETWORK)?.parse::<IpNet>().ok());
        let mut others = networks.filter(|other| !self.holds(&format!("{NETWORK}{other}")));
        Ok(others.find(|other| other.contains(network) || network.contains(other)))
    }

    fn take(&mut self, name: &str) -> Result<(), Refused> {
        if self.holds(name) {
            return Ok(());
        }
        let lock = bind(name).map_err(|error| Refused { name: name.into(), error })?;
        self.names.push(Held { name: name.to_owned(), _lock: lock, _statement: stated(name) });
        Ok(())
    }
}

/// A name that could not be taken, and the reason.
struct Refused {
    name: String,
    error: io::Error,
}

impl Refused {
    /// Error that names the owner; `key` is the flag or config key to change in one of the two daemons.
    fn advising(self, key: &str) -> anyhow::Error {
        let Self { name, error } = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                anyhow!("{} has {name}: stop it, or give one of them another {key}", rival(&name))
            }
            _ => anyhow::Error::new(error).context(format!("locking {name}")),
        }
    }
}

/// Another daemon of this node, as far as it is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rival {
    process: Option<Process>,
    subnet_file: Option<String>,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another daemon of this node")?;
        let pid = self.process.map(Process::shown);
        let file = self.subnet_file.as_ref().map(|file| format!("--subnet-file {file}"));
        let known: Vec<String> = pid.into_iter().chain(file).collect();
        if known.is_empty() { Ok(()) } else { write!(f, " ({})", known.join(", ")) }
    }
}

/// The daemon that has said that it has that.
fn rival(what: &str) -> Rival {
    let statements = statements();
    let process = statements.iter().find(|(_, has)| has == what).map(|(process, _)| *process);
    Rival { process, subnet_file: process.and_then(|process| subnet_file_of(&statements, process)) }
}

/// The daemon that has said that it listens on that port.
pub(crate) fn rival_on_port(port: u16) -> Option<Rival> {
    Some(rival(&healthz_name(port))).filter(|rival| rival.process.is_some())
}

/// The daemon of that pid, if it is one.
pub(crate) fn rival_with_pid(pid: u32) -> Option<Rival> {
    let process = Process { pid, ..Process::ours() };
    let subnet_file = subnet_file_of(&statements(), process)?;
    Some(Rival { process: Some(process), subnet_file: Some(subnet_file) })
}

/// The subnet files of all daemons of this node that say which they have.
pub(crate) fn subnet_files() -> Vec<String> {
    statements().iter().filter_map(|(_, has)| has.strip_prefix(SUBNET_FILE).map(Into::into)).collect()
}

fn subnet_file_of(statements: &[(Process, String)], process: Process) -> Option<String> {
    let own = statements.iter().filter(|(owner, _)| *owner == process);
    own.filter_map(|(_, has)| has.strip_prefix(SUBNET_FILE)).next().map(Into::into)
}

/// A process as it numbers itself: `pid 812 of 4026531836`, the second number being its pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    namespace: u64,
}

impl Process {
    fn ours() -> Self {
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |ns| ns.ino());
        Self { pid: std::process::id(), namespace }
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, namespace) = text.strip_prefix("pid ")?.split_once(" of ")?;
        Some(Self { pid: pid.parse().ok()?, namespace: namespace.parse().ok()? })
    }

    /// A container's daemon has the pid 1 there, and that is nobody's here.
    fn shown(self) -> String {
        let elsewhere =
            if self.namespace == Self::ours().namespace { "" } else { " of another pid namespace" };
        format!("pid {}{elsewhere}", self.pid)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} of {}", self.pid, self.namespace)
    }
}

/// All statements of the daemons of this network namespace: the daemon, and what it has.
fn statements() -> Vec<(Process, String)> {
    let parse = |name: &String| {
        let (process, has) = name.split_once(" has ")?;
        Some((Process::parse(process)?, has.to_owned()))
    };
    names().unwrap_or_default().iter().filter_map(parse).collect()
}

/// All our abstract addresses of this network namespace, without their prefix. Anybody may have bound one.
fn names() -> io::Result<Vec<String>> {
    let sockets = fs::read("/proc/net/unix")?;
    let prefix = format!(" @{PREFIX}");
    let name = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        let (_, name) = line.split_once(&prefix)?;
        Some(name.trim().replace(char::is_control, "?"))
    };
    Ok(sockets.split(|byte| *byte == b'\n').filter_map(name).collect())
}

/// A daemon that was killed holds it until the tool that it was about to start has begun.
fn lock_soon(file: &File) -> Result<(), TryLockError> {
    let end = Instant::now() + PASSING;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PASSING / 20),
            done => return done,
        }
    }
}

/// The file that is locked for it.
pub(crate) fn lock_file(subnet_file: &Path) -> PathBuf {
    subnet_file.with_file_name(format!(".{}.lock", subnet_file.file_name().unwrap_or_default().display()))
}

fn no_place(path: &Path) -> String {
    format!("creating {}, name a writable place with --subnet-file", path.display())
}

/// Whoever holds a lock for longer means it.
const PASSING: Duration = Duration::from_secs(1);
/// How the addresses begin.
const PREFIX: &str = "twill ";
const NETWORK: &str = "network ";
const VNI: &str = "VNI ";
const FIREWALL: &str = "traffic rules";
const SUBNET_FILE: &str = "subnet file ";

fn healthz_name(port: u16) -> String {
    format!("healthz port {port}")
}

fn vni_name(vni: u32) -> String {
    format!("{VNI}{vni}")
}

/// Binds the address that states what we have. Nothing depends on it: one that is too long or taken is left out.
fn stated(what: &str) -> Option<UnixDatagram> {
    bind(&format!("{} has {what}", Process::ours())).ok()
}

fn bind(name: &str) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!("{PREFIX}{name}"))?)
}
