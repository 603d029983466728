//! Locks that keep two daemons of one node from fighting. A subnet file, a VNI, a network and the traffic rules have one
//! daemon each. Daemons with other VNIs, networks and files run side by side.
//!
//! Kernel objects are locked by an abstract unix address. It belongs to the same network namespace as the objects,
//! and it vanishes with its owner, however that ends. The address names its owner, and so does the message of a
//! daemon that is refused. Sample: `twill pid 812 of 4026531836 has VNI 1 #90c2f1d35a77e801`. Any user of the node
//! can bind such an address. An address counts only if its socket belongs to root or to our own user. It ends with a
//! random number, so that nobody can bind it first.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use kernel::{AbstractName, abstract_names};
use plan::TunnelId;
use plan::config::Config;
use plan::other_daemons::FirewallKeeper;
use tracing::warn;

use crate::errno::{self, WithRemedy, is_shortage};
use crate::files;

/// Maximum time to wait for a lock that is passed on. A process that holds it longer is a running daemon.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of attempts to take a lock while another daemon tries to take the same one.
const ATTEMPTS: u32 = 5;
/// Maximum length of a lock file's text, bytes.
const MAX_OWNER_BYTES: u64 = 64;
/// Prefix of every address.
const PREFIX: &str = "twill ";
/// Prefix of a statement that names a subnet file.
const SUBNET_FILE: &str = "subnet file ";

/// Locks that are held as long as this value lives.
#[derive(Default)]
pub(crate) struct Locks {
    file: Option<File>,
    held: Vec<Held>,
    /// Sockets whose addresses only state what we have.
    statements: Vec<UnixDatagram>,
    /// Users whose addresses look like ours and count for nothing; each is reported once.
    untrusted_users: BTreeSet<u32>,
}

/// Lock that we hold in the kernel.
struct Held {
    what: Resource,
    name: String,
    _socket: UnixDatagram,
}

/// Things that a network namespace grants to one daemon only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Network(IpNet),
    /// Devices of a tunnel.
    Tunnel(TunnelId),
    /// flannel's tables and chains, which exist once.
    Firewall,
}

impl Resource {
    /// Reports whether two daemons with these locks would fight.
    fn conflicts(self, other: Self) -> bool {
        match (self, other) {
            (Self::Network(one), Self::Network(other)) => one.contains(&other) || other.contains(&one),
            _ => self == other,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "network {network}"),
            Self::Tunnel(id) => write!(f, "{id}"),
            Self::Firewall => f.write_str("traffic rules"),
        }
    }
}

impl FromStr for Resource {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(' ').ok_or(())? {
            ("network", network) => network.parse().map(Self::Network).map_err(drop),
            ("traffic", "rules") => Ok(Self::Firewall),
            _ => text.parse().map(Self::Tunnel).map_err(drop),
        }
    }
}

/// Reason why a lock was not taken.
enum LockError {
    /// The daemon holds the given lock, which conflicts with ours.
    Other(OtherDaemon, Resource),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for LockError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl LockError {
    /// Makes an error that names the owner. `key` is the flag or config key to change in one of the daemons.
    fn into_error(self, resource: Resource, key: &str) -> anyhow::Error {
        match self {
            Self::Other(daemon, other) if other == resource => {
                anyhow!("{daemon} has {other}: stop it, or give one of them another {key}")
            }
            Self::Other(daemon, other) => {
                let resource = resource.to_string();
                let resource = resource.rsplit(' ').next().unwrap_or_default();
                anyhow!(
                    "{daemon} has {other}, which overlaps {resource}: stop it, or give one of them another {key}"
                )
            }
            Self::Failed(error) => error,
        }
    }
}

impl Locks {
    /// Locks the subnet file, before anything is read from it or written beside it. Returns an error that names the owner
    /// if another daemon has it.
    pub(crate) fn take_file(&mut self, subnet_file: &Path) -> anyhow::Result<()> {
        let path = lock_file(subnet_file);
        let mut place = open_lock(subnet_file, &path)?;
        let (LockFile::Beside(file) | LockFile::SubnetFile(file)) = &mut place;
        match lock_with_timeout(file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // Until we lock it, the file names the daemon that has.
                bail!(
                    "{} writes {}: stop it, or give this one another --subnet-file",
                    OtherDaemon { process: owner_in(file), subnet_file: None },
                    subnet_file.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                bail!("locking {}: {}", path.display(), WithRemedy(&error));
            }
        }
        self.file = Some(match place {
            LockFile::Beside(mut file) => {
                // On a full disk the file is still locked, but the next daemon reads no pid in it.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", Process::ours()));
                file
            }
            LockFile::SubnetFile(file) => file,
        });
        self.state(&format!("{SUBNET_FILE}{}", std::path::absolute(subnet_file)?.display()));
        Ok(())
    }

    /// States that we listen on that port, so that a daemon that wants it later learns who has it.
    pub(crate) fn state_healthz(&mut self, port: u16) {
        if port != 0 {
            self.state(&healthz_name(port));
        }
    }

    /// Binds an address that states what we have. No lock depends on it, so a name that is too long is left out.
    fn state(&mut self, what: &str) {
        self.statements.extend(bind(what).ok().map(|(_, socket)| socket));
    }

    /// Takes the locks for the networks and the tunnel of a config, and then drops those of other networks. Locks of an
    /// earlier tunnel stay until `keep_tunnels`. Returns an error that names the owner if another daemon has one; then all
    /// earlier locks stay.
    pub(crate) fn take_config(&mut self, config: &Config) -> anyhow::Result<()> {
        for network in config.networks().map(Resource::Network) {
            let key = "--etcd-prefix (or --store) with another Network in its network config";
            self.take(network).map_err(|refused| refused.into_error(network, key))?;
        }
        if let Some(id) = config.backend.tunnel_id() {
            let key = format!("{} in the Backend of its network config", id.kind.number());
            let tunnel = Resource::Tunnel(id);
            self.take(tunnel).map_err(|refused| refused.into_error(tunnel, &key))?;
        }
        let networks: Vec<IpNet> = config.networks().collect();
        self.held
            .retain(|held| !matches!(held.what, Resource::Network(network) if !networks.contains(&network)));
        Ok(())
    }

    /// Holds the locks of exactly these tunnels. Returns those that another daemon has.
    pub(crate) fn keep_tunnels(&mut self, tunnels: &[TunnelId]) -> Vec<TunnelId> {
        let is_gone = |what: Resource| matches!(what, Resource::Tunnel(id) if !tunnels.contains(&id));
        self.held.retain(|held| !is_gone(held.what));
        let is_others = |taken| match taken {
            Ok(()) => false,
            Err(LockError::Other(..)) => true,
            // After an I/O error no daemon is known to own the tunnel, so no peer is left out.
            Err(LockError::Failed(error)) => !error.root_cause().is::<io::Error>(),
        };
        tunnels.iter().copied().filter(|id| is_others(self.take(Resource::Tunnel(*id)))).collect()
    }

    /// Takes the lock for flannel's tables and chains, which exist once. Returns the daemon that has it.
    pub(crate) fn keep_firewall(&mut self) -> FirewallKeeper {
        match self.take(Resource::Firewall) {
            Ok(()) => FirewallKeeper::Us,
            Err(LockError::Other(daemon, _)) => FirewallKeeper::Other(daemon.to_string().into()),
            Err(LockError::Failed(error)) => FirewallKeeper::Unknown(errno::describe(&error).into()),
        }
    }

    /// Returns true if another daemon has that tunnel.
    pub(crate) fn is_others_tunnel(&mut self, id: TunnelId) -> bool {
        let tunnel = Resource::Tunnel(id);
        !self.holds(tunnel) && self.other(tunnel).is_ok_and(|other| other.is_some())
    }

    fn holds(&self, what: Resource) -> bool {
        self.held.iter().any(|held| held.what == what)
    }

    fn take(&mut self, what: Resource) -> Result<(), LockError> {
        if self.holds(what) {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            if let Some((process, other)) = self.other(what)? {
                let subnet_file = subnet_file_of(&statements(), process);
                return Err(LockError::Other(OtherDaemon { process: Some(process), subnet_file }, other));
            }
            if self.bind(what)? {
                return Ok(());
            }
        }
        Err(LockError::Failed(anyhow!("other daemons try to take {what} at the same time")))
    }

    /// Binds an address first and looks for conflicts then, so that at least one of two daemons sees the conflict. In
    /// a conflict both give way for random times. Returns true if the lock is ours.
    fn bind(&mut self, what: Resource) -> anyhow::Result<bool> {
        let (name, socket) = bind(&what.to_string()).with_context(|| format!("locking {what}"))?;
        self.held.push(Held { what, name, _socket: socket });
        if self.other(what)?.is_none() {
            return Ok(true);
        }
        self.held.pop();
        thread::sleep(Duration::from_millis(u64::from(draw()?[0]) / 8));
        Ok(false)
    }

    /// Returns another daemon's lock that conflicts with `what`, and its owner.
    fn other(&mut self, what: Resource) -> anyhow::Result<Option<(Process, Resource)>> {
        let mut found = None;
        for AbstractName { name, uid } in abstract_names(PREFIX)? {
            let Some((process, has)) = statement(&name) else { continue };
            let Ok(has) = has.parse::<Resource>() else { continue };
            if !has.conflicts(what) || self.held.iter().any(|held| held.name == name) {
                continue;
            }
            match uid.filter(|uid| !is_trusted(*uid)) {
                None => found = Some((process, has)),
                Some(untrusted) if self.untrusted_users.insert(untrusted) => warn!(
                    "user {untrusted} holds the abstract unix address @{name:?}; only root's locks count: ss -xpa names the process"
                ),
                Some(_) => {}
            }
        }
        Ok(found)
    }
}

/// Returns true for root and for our own user.
fn is_trusted(uid: u32) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&uid)
}

/// Daemon of this node that holds what we want, as far as it is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OtherDaemon {
    process: Option<Process>,
    subnet_file: Option<String>,
}

impl fmt::Display for OtherDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another daemon of this node")?;
        let pid = self.process.map(Process::shown);
        let file = self.subnet_file.as_ref().map(|file| format!("--subnet-file {file}"));
        let known: Vec<String> = pid.into_iter().chain(file).collect();
        if known.is_empty() { Ok(()) } else { write!(f, " ({})", known.join(", ")) }
    }
}

/// Returns the daemon that states to have `what`.
fn daemon_with(what: &str) -> OtherDaemon {
    let statements = statements();
    let process = statements.iter().find(|(_, has)| has == what).map(|(process, _)| *process);
    OtherDaemon { process, subnet_file: process.and_then(|process| subnet_file_of(&statements, process)) }
}

/// Returns the daemon that states to listen on that port.
pub(crate) fn daemon_on_port(port: u16) -> Option<OtherDaemon> {
    Some(daemon_with(&healthz_name(port))).filter(|daemon| daemon.process.is_some())
}

/// Returns the daemon with that pid; `None` if no daemon states to be it.
pub(crate) fn daemon_with_pid(pid: u32) -> Option<OtherDaemon> {
    let process = Process { pid, ..Process::ours() };
    let subnet_file = subnet_file_of(&statements(), process)?;
    Some(OtherDaemon { process: Some(process), subnet_file: Some(subnet_file) })
}

/// Returns the subnet files of all daemons of this node that state theirs.
pub(crate) fn subnet_files() -> Vec<String> {
    statements().iter().filter_map(|(_, has)| has.strip_prefix(SUBNET_FILE).map(Into::into)).collect()
}

fn subnet_file_of(statements: &[(Process, String)], process: Process) -> Option<String> {
    let own = statements.iter().filter(|(owner, _)| *owner == process);
    own.filter_map(|(_, has)| has.strip_prefix(SUBNET_FILE)).next().map(Into::into)
}

/// Process as it numbers itself: `pid 812 of 4026531836`. The second number is the inode of its pid namespace.
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

    /// Formats the pid for people. A daemon in a container has a pid that means nothing here, so the namespace is
    /// mentioned.
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

/// Returns the statements of all daemons in this network namespace: the daemon, and what it has.
fn statements() -> Vec<(Process, String)> {
    let trusted = |held: &AbstractName| held.uid.is_none_or(is_trusted);
    let names = abstract_names(PREFIX).unwrap_or_default().into_iter().filter(trusted);
    names.filter_map(|held| statement(&held.name).map(|(process, has)| (process, has.into()))).collect()
}

/// Parses `twill pid 812 of 4026531836 has VNI 1 #90c2f1d35a77e801`.
fn statement(name: &str) -> Option<(Process, &str)> {
    let (process, rest) = name.strip_prefix(PREFIX)?.split_once(" has ")?;
    let (has, nonce) = rest.rsplit_once(" #")?;
    u64::from_str_radix(nonce, 16).ok()?;
    Some((Process::parse(process)?, has)).filter(|_| !has.contains(char::is_control))
}

/// Binds an address that states what we have.
fn bind(what: &str) -> anyhow::Result<(String, UnixDatagram)> {
    let nonce = u64::from_ne_bytes(draw()?);
    let name = format!("{PREFIX}{} has {what} #{nonce:016x}", Process::ours());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    Ok((name, socket))
}

fn draw() -> anyhow::Result<[u8; 8]> {
    let mut dice = [0; 8];
    getrandom::fill(&mut dice).map_err(|error| anyhow!("drawing random numbers: {error}"))?;
    Ok(dice)
}

/// File that is locked on behalf of the subnet file.
enum LockFile {
    /// File beside the subnet file; its text names the owner.
    Beside(File),
    /// The subnet file itself, if no file can be made beside it. It is then written in place.
    SubnetFile(File),
}

/// Opens the lock file, or the subnet file itself if no lock file can be made. Returns an error if neither is possible.
fn open_lock(subnet_file: &Path, path: &Path) -> anyhow::Result<LockFile> {
    let beside = || {
        fs::create_dir_all(files::dir_of(path))?;
        files::lock(path)
    };
    let error = match beside() {
        Ok(file) => return Ok(LockFile::Beside(file)),
        Err(error) if is_shortage(&error) => {
            return Err(error).with_context(|| format!("creating {}", path.display()));
        }
        Err(error) => error,
    };
    match File::options().write(true).custom_flags(files::FLAGS).open(subnet_file) {
        Ok(file) => Ok(LockFile::SubnetFile(file)),
        Err(_) => Err(error).with_context(|| no_place(path)),
    }
}

/// Locks the file, with retries for [`LOCK_TIMEOUT`]. After a daemon was killed, its child holds the lock until it has
/// executed its tool.
fn lock_with_timeout(file: &File) -> Result<(), TryLockError> {
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOCK_TIMEOUT / 20),
            done => return done,
        }
    }
}

/// Returns the process that a lock file names.
fn owner_in(file: &mut File) -> Option<Process> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(MAX_OWNER_BYTES).read_to_string(&mut text).ok()?;
    Process::parse(text.trim())
}

/// Returns the path of the lock file: `/run/flannel/subnet.env` has `/run/flannel/.subnet.env.lock`.
pub(crate) fn lock_file(subnet_file: &Path) -> PathBuf {
    subnet_file.with_file_name(format!(".{}.lock", subnet_file.file_name().unwrap_or_default().display()))
}

fn no_place(path: &Path) -> String {
    format!("creating {}, name a writable place with --subnet-file", path.display())
}

fn healthz_name(port: u16) -> String {
    format!("healthz port {port}")
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(name: &str) {
    let Some((process, has)) = statement(name) else { return };
    let _ = (process.shown(), has.parse::<Resource>().map(|lock| lock.conflicts(Resource::Firewall)));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_addresses_in_the_form_of_a_lock_are_parsed() {
        for what in ["network 10.244.0.0/16", "network fd00:1::/48", "VNI 1", "traffic rules"] {
            assert_eq!(what.parse::<Resource>().unwrap().to_string(), what);
            let name = format!("twill pid 4711 of 12 has {what} #0000000000000007");
            assert_eq!(statement(&name), Some((Process { pid: 4711, namespace: 12 }, what)));
        }
        for name in [
            "twill VNI 1",
            "twill pid 1 of 2 has VNI 1",
            "twill pid 1 of 2 has VNI 1 #",
            "twill pid x of 2 has VNI 1 #1",
            "twill pid 1 of 2 has \n #1",
            "pid 1 of 2 has VNI 1 #1",
        ] {
            assert_eq!(statement(name), None, "{name}");
        }
        assert!(
            ["VNI -1", "VNI", "network 10.244.0.0", "traffic"]
                .iter()
                .all(|what| what.parse::<Resource>().is_err())
        );
    }

    #[test]
    fn networks_conflict_by_addresses_and_all_other_locks_by_name() {
        let conflict = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<Resource>().unwrap());
            assert_eq!(one.conflicts(other), other.conflicts(one));
            one.conflicts(other)
        };
        assert!(conflict("network 10.0.0.0/8", "network 10.244.0.0/16"));
        assert!(!conflict("network 10.1.0.0/16", "network 10.244.0.0/16"));
        assert!(!conflict("network ::/0", "network 0.0.0.0/0"));
        assert!(conflict("VNI 1", "VNI 1") && !conflict("VNI 1", "VNI 2"));
        assert!(!conflict("VNI 1", "traffic rules") && conflict("traffic rules", "traffic rules"));
    }

    #[test]
    fn of_many_daemons_one_gets_the_lock_and_the_next_one_after_its_end() {
        let number = 0x00ff_0000 | std::process::id() & 0xffff;
        let what = Resource::Tunnel(TunnelId { kind: plan::TunnelKind::Vxlan, number });
        let all: Vec<_> = (0..8).map(|_| thread::spawn(move || taken(what))).collect();
        let all: Vec<Locks> = all.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        assert!(all.len() <= 1, "{} of them have it", all.len());
        // Between fork and exec, a child of another test has a copy of a socket that is closed here.
        let soon = || lab::until(Duration::from_secs(10), || taken(what)).unwrap();
        let one = all.into_iter().next().unwrap_or_else(soon);
        assert!(taken(what).is_none());
        drop(one);
        drop(soon());
    }

    #[test]
    fn a_network_that_the_config_no_longer_has_is_free_again() {
        let pid = std::process::id();
        let network = |first: u8| format!("{first}.{}.{}.0/24", pid >> 8 & 0xff, pid & 0xff);
        let config = |first: u8| {
            let conf = format!(r#"{{"Network":"{}","Backend":{{"Type":"host-gw"}}}}"#, network(first));
            plan::netconf::NetConf::parse(conf.as_bytes()).unwrap().config()
        };
        let lock = |first: u8| Resource::Network(network(first).parse().unwrap());
        let mut locks = Locks::default();
        locks.take_config(&config(11)).unwrap();
        assert!(taken(lock(11)).is_none());
        let other = taken(lock(12)).unwrap();
        assert!(locks.take_config(&config(12)).is_err() && taken(lock(11)).is_none());
        drop(other);
        lab::wait_for("the other network", Duration::from_secs(10), || {
            locks.take_config(&config(12)).is_ok()
        });
        lab::wait_for("the first one is free", Duration::from_secs(10), || taken(lock(11)).is_some());
        assert!(taken(lock(12)).is_none());
    }

    fn taken(what: Resource) -> Option<Locks> {
        let mut locks = Locks::default();
        locks.take(what).is_ok().then_some(locks)
    }
}
