//! Rights that this process gives up at start and for good.
//!
//! - It keeps root's capabilities over the network, and no others.
//! - It reads the files that it and its tools need, and writes in a few directories.
//! - It executes only programs in the directories of `PATH`, which hold the tools for traffic rules.
//! - It keeps the system calls of a service that talks to the network.
//! - It connects to no local service, signals no other process and leaves no core dump.
//!
//! A flaw in reading data from peers and stores then costs the pods' network and not the node. A right that cannot be
//! given up is logged and kept; the daemon runs on.
//!
//! The user stays the same, most often root. etcd's keys, the lock and tables of iptables-legacy, and flannel's files
//! belong to root. The daemon reads them again while it runs.

mod syscalls;

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf, absolute};

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
    make_bitflags,
};
use rustix::io;
use rustix::process::{DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use tracing::{debug, warn};

use crate::files::{self, dir_of};
use crate::flags::Flags;
use crate::notify;

/// Capabilities that are kept: changing the network, and raw packets for probes.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Files and directories that may be read, besides those that flags name: programs, what they load, and the kernel's
/// files.
const READABLE: [&str; 11] = [
    "/proc",
    "/sys/devices/system",
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/nix/store",
    "/gnu/store",
    "/dev/urandom",
    "/dev/null",
];
/// Files and directories that may be read for names of addresses, protocols and users, and for their servers.
const NAMES: [&str; 17] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/ethertypes",
    "/etc/networks",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/iproute2",
    "/etc/ld.so.cache",
];
/// Files and directories that may be read for trusted certificates of TLS.
const CERTIFICATES: [&str; 5] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
];
/// Rights to read a directory and the files in it.
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// Right to execute in the directories of the loader and of `PATH`, which hold the tools for traffic rules. It is
/// granted by directory, since an upgrade replaces the files.
const EXECUTE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute});
/// Directories of the dynamic loader.
const LOADERS: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
/// Rights to write an existing file.
const WRITE_FILE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});
/// Rights to write in a directory: files that are written beside others and renamed, subdirectories, and a socket.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | MakeSock | RemoveFile});

/// Open directories in which this process may write. `/proc` forgets a directory that nobody has open, and with it the
/// permission.
pub(crate) struct Confined {
    _open: Vec<PathFd>,
}

/// Confines this thread and the threads that it starts later.
pub(crate) fn confine(flags: &Flags) -> Confined {
    notify::connect();
    for (what, done) in [
        ("other processes can read its memory", set_dumpable_behavior(DumpableBehavior::NotDumpable)),
        ("it can write core dumps", forbid_core()),
        ("no_new_privs is not set", set_no_new_privs(true)),
        // The bounding set must still contain the capabilities.
        ("nft and iptables get no CAP_NET_ADMIN", hand_down()),
        // The process must still have CAP_SETPCAP.
        ("the bounding set is not empty", empty_bounding_set()),
        ("unneeded capabilities are not dropped", keep_needed()),
        ("the ambient capabilities are not set", set_ambient()),
    ] {
        if let Err(error) = done {
            warn!("this daemon could not drop all privileges: {what}: {error}");
        }
    }
    let tools = kernel::tool_dirs();
    let allowed = Allowed { dirs: writable(flags), lock: xtables_lock(), tools, read: readable(flags) };
    let open = restrict(&allowed).unwrap_or_else(|error| {
        warn!("Landlock failed, so this daemon may read and write more files than it needs: {error:#}");
        Vec::new()
    });
    if let Err(error) = syscalls::restrict() {
        warn!("seccomp failed, so this daemon may make more system calls than it needs: {error:#}");
    }
    Confined { _open: open }
}

/// Forbids core dumps of this process and of the tools.
fn forbid_core() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

/// Sets the ambient capabilities. Root's tools get their rights from the bounding and inheritable sets, those of another
/// user from the ambient set.
fn set_ambient() -> io::Result<()> {
    clear_ambient_capability_set()?;
    if geteuid().is_root() {
        return Ok(());
    }
    let held = capabilities(None)?.permitted & KEPT;
    held.iter().try_for_each(|capability| configure_capability_in_ambient_set(capability, true))
}

fn empty_bounding_set() -> io::Result<()> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => break, // The kernel knows no higher capability.
        }
        match remove_capability_from_bounding_set(capability) {
            // CAP_SETPCAP was taken from us before the start. Under no_new_privs the bounding set is of no use to
            // anybody.
            Err(io::Errno::PERM) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Makes the kept capabilities inheritable, so that root's programs get them whatever the bounding set says.
fn hand_down() -> io::Result<()> {
    let held = capabilities(None)?;
    let inheritable = held.permitted & KEPT;
    let needed = CapabilitySets { inheritable, ..held };
    match set_capabilities(None, needed) {
        // A service manager may forbid the call. The bounding set that it left then has these rights, and hands them
        // down.
        Err(io::Errno::PERM) if KEPT.contains(held.permitted) => Ok(()),
        done => done,
    }
}

fn keep_needed() -> io::Result<()> {
    let held = capabilities(None)?;
    let kept = held.permitted & KEPT;
    let needed = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    // A service manager that left us no other capability may forbid the call.
    if KEPT.contains(held.permitted) { Ok(()) } else { set_capabilities(None, needed) }
}

/// Returns the directories in which the daemon has to write. Missing ones are made now, since later they would be out of
/// reach.
fn writable(flags: &Flags) -> Vec<PathBuf> {
    let mut dirs = vec![dir_of(&flags.subnet_file), dir_of(&flags.socket)];
    if !flags.cache_dir.as_os_str().is_empty() {
        dirs.push(&flags.cache_dir);
    }
    for dir in &dirs {
        if let Err(error) = fs::create_dir_all(dir) {
            warn!(
                "cannot create {}, so nothing is written there before the next start: {error}",
                dir.display()
            );
        }
    }
    dirs.retain(|dir| dir.is_dir());
    let mut dirs: Vec<_> = dirs.into_iter().map(Path::to_owned).collect();
    dirs.extend(around_store(&flags.store));
    dirs.push(kernel::SYSCTLS.into());
    dirs
}

/// Returns the files and directories that the daemon reads while it runs.
fn readable(flags: &Flags) -> Vec<PathBuf> {
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let fixed = READABLE.iter().chain(&NAMES).chain(&CERTIFICATES).map(PathBuf::from);
    // Files such as resolv.conf may be replaced under the same name, which needs their directory.
    let by_etcd = flags.store.as_os_str().is_empty();
    let names = (by_etcd && flags.etcd.names_hosts()).then(|| PathBuf::from("/etc"));
    fixed.chain(named).chain(names).chain(flags.etcd.files().flat_map(around)).collect()
}

/// Returns the directories of a file and of the file that it links to. A renewed file may link to another one in them.
fn around(file: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let real = file.canonicalize().ok();
    let dirs = [Some(file.to_owned()), real].into_iter().flatten();
    dirs.map(|file| dir_of(&file).to_owned())
}

/// Returns the directory around the store, since a store may be moved away and replaced. Falls back to the store itself.
/// A missing store is never made here, since a mount may be late.
fn around_store(store: &Path) -> Option<PathBuf> {
    let store = absolute(store).ok()?;
    // The parent `/` would allow the whole file system.
    let around = store.parent().filter(|dir| dir.parent().is_some());
    let dir = around.into_iter().chain([store.as_path()]).find(|dir| dir.is_dir());
    if dir.is_none() {
        warn!(
            "there is no directory {}, so nothing is read or written there before the next start",
            store.display()
        );
    }
    dir.map(Path::to_owned)
}

/// Returns the lock file that all users of iptables-legacy take. It is made here, since the daemon may not write in its
/// directory later.
fn xtables_lock() -> Option<PathBuf> {
    let path = kernel::xtables_lock();
    let mut create = fs::File::options();
    let file = create.create(true).append(true).mode(0o600).custom_flags(files::FLAGS).open(&path);
    file.and_then(|file| file.metadata()).ok().filter(fs::Metadata::is_file)?;
    Some(path)
}

/// Files and directories that this process may use.
#[derive(Default)]
struct Allowed {
    /// Files and directories to read, if they exist.
    read: Vec<PathBuf>,
    /// Directories to read and write in.
    dirs: Vec<PathBuf>,
    /// File to write.
    lock: Option<PathBuf>,
    /// Files and directories to execute.
    tools: Vec<PathBuf>,
}

/// Restricts file access by Landlock. Returns the open `dirs`. A kernel without Landlock restricts nothing.
fn restrict(allowed: &Allowed) -> anyhow::Result<Vec<PathFd>> {
    // If the kernel supports it, abstract unix addresses and signals of processes outside are forbidden, too.
    let all =
        Ruleset::default().handle_access(AccessFs::from_all(ABI::V5))?.scope(Scope::from_all(ABI::V6))?;
    let mut rules = all.create()?;
    // A missing file is not needed, and neither is one that we may not even name.
    for path in allowed.read.iter().filter_map(|path| PathFd::new(path).ok()) {
        let rights = if is_dir(&path) { READ } else { make_bitflags!(AccessFs::{ReadFile}) };
        rules = rules.add_rule(PathBeneath::new(path, rights))?;
    }
    let loaders = LOADERS.iter().map(Path::new).filter(|dir| dir.is_dir() && !allowed.tools.is_empty());
    for path in loaders.chain(allowed.tools.iter().map(PathBuf::as_path)) {
        let path = PathFd::new(path)?;
        let rights = if is_dir(&path) { EXECUTE | READ } else { EXECUTE | AccessFs::ReadFile };
        rules = rules.add_rule(PathBeneath::new(path, rights))?;
    }
    if let Some(lock) = &allowed.lock {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(lock)?, WRITE_FILE))?;
    }
    let mut open = Vec::new();
    for dir in &allowed.dirs {
        let dir = PathFd::new(dir)?;
        rules = rules.add_rule(PathBeneath::new(&dir, WRITE))?;
        open.push(dir);
    }
    // The log macro does not evaluate its arguments if nobody reads the line, so the call stands outside.
    let status = rules.restrict_self()?.ruleset;
    debug!("Landlock restricts access to files: {status:?}");
    Ok(open)
}

fn is_dir(path: &PathFd) -> bool {
    rustix::fs::fstat(path).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// docs/reference/files.md lists the files and directories that a confined daemon may read.
    #[test]
    fn the_documents_list_every_readable_place_and_no_other() {
        let text = include_str!("../../../docs/reference/files.md");
        let (_, section) = text.split_once("\n## What the daemon may access\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        for (name, places) in
            [("programs", &READABLE[..]), ("names", &NAMES[..]), ("certificates", &CERTIFICATES[..])]
        {
            let row = section.lines().find(|line| line.starts_with(&format!("- **{name}**: "))).unwrap();
            let listed: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
            assert_eq!(listed, places, "{name}");
        }
        assert!(section.contains(&format!("; `{}` |", kernel::SYSCTLS)), "{section}");
    }

    /// Runs `body` confined. Both restrictions cover one thread, which is the whole of a process that has started no
    /// other.
    fn confined<T: Send + 'static>(dir: &Path, body: impl FnOnce() -> T + Send + 'static) -> T {
        let dir = dir.to_owned();
        let thread = std::thread::spawn(move || {
            let _open = restrict(&Allowed { dirs: vec![dir], ..Allowed::default() }).unwrap();
            keep_needed().unwrap();
            body()
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_confined_process_writes_only_in_its_directories() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, other) = (here.path().join("deep/er/file"), there.path().join("file"));
        fs::write(&other, "kept").unwrap();
        let (written, elsewhere, removed, read) = confined(here.path(), move || {
            let own = crate::files::write(&own, "text", crate::files::Readers::Root);
            (own, fs::write(&other, "lost"), fs::remove_file(&other), fs::read_to_string(&other))
        });
        assert!(written.unwrap(), "made, renamed, in directories that it made");
        assert!(elsewhere.is_err() && removed.is_err() && read.is_err(), "is there Landlock in this kernel?");
    }

    #[test]
    fn only_the_named_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let [named, renewed, other] =
            ["named", "renewed", "other"].map(|name| dir.path().join(name).join("key"));
        for file in [&named, &renewed, &other] {
            fs::create_dir(dir_of(file)).unwrap();
            fs::write(file, "text").unwrap();
        }
        std::os::unix::fs::symlink(&renewed, dir_of(&named).join("link")).unwrap();
        let read = around(&dir_of(&named).join("link")).collect();
        let of_root = Path::new("/etc/shadow");
        let done = std::thread::spawn(move || {
            let _open = restrict(&Allowed { read, ..Allowed::default() }).unwrap();
            [&named, &renewed, &other, &of_root.to_owned()].map(|file| fs::read(file).is_ok())
        });
        assert_eq!(done.join().unwrap(), [true, true, false, false]);
    }

    /// A confined process neither signals another process nor reaches it by an abstract address. Both have the same user,
    /// so that only Landlock can refuse it.
    #[test]
    fn no_process_outside_is_signalled_or_reached_by_an_abstract_address() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&other);
        let address = SocketAddr::from_abstract_name(format!("confine {}", std::process::id())).unwrap();
        let _service = UnixDatagram::bind_addr(&address).unwrap();
        let (signalled, reached) = std::thread::spawn(move || {
            let _open = restrict(&Allowed::default()).unwrap();
            let signalled = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            (signalled, UnixDatagram::unbound().unwrap().connect_addr(&address))
        })
        .join()
        .unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(signalled.is_err() && reached.is_err(), "is this kernel older than Linux 6.12?");
    }

    #[test]
    fn only_the_named_programs_are_executed() {
        let dir = tempfile::tempdir().unwrap();
        let ran = confined(dir.path(), || Command::new("/bin/true").status());
        assert!(ran.is_err());
    }

    #[test]
    fn a_named_program_has_no_more_rights_than_the_daemon() {
        let [cat, echo] = ["/bin/cat", "/bin/echo"].map(|file| Path::new(file).canonicalize().unwrap());
        let (output, other) = std::thread::spawn(move || {
            let read = READABLE.map(PathBuf::from).to_vec();
            let _open = restrict(&Allowed { tools: vec![cat.clone()], read, ..Allowed::default() }).unwrap();
            keep_needed().unwrap();
            (Command::new(cat).arg("/proc/self/status").output(), Command::new(echo).status())
        })
        .join()
        .unwrap();
        let output = String::from_utf8(output.unwrap().stdout).unwrap();
        let held = output.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
        let held = u64::from_str_radix(held.trim(), 16).unwrap();
        assert_eq!(held & !KEPT.bits(), 0, "{output}");
        assert!(other.is_err());
    }

    #[test]
    fn only_the_capabilities_over_the_network_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let sets = confined(dir.path(), || capabilities(None).unwrap());
        assert!(KEPT.contains(sets.permitted), "{sets:?}");
        assert_eq!((sets.effective, sets.inheritable), (sets.permitted, sets.permitted));
    }

    #[test]
    fn the_directory_around_a_store_is_found_and_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("away/store");
        assert_eq!((around_store(&store), store.exists()), (None, false));
        assert_eq!(around_store(&dir.path().join("store")).unwrap(), dir.path());
        assert_eq!(around_store(Path::new("/proc")).unwrap(), Path::new("/proc"));
    }
}
