//! What this process may do, given up at start and for good: of root's rights all but those over the network, of the
//! file system all but reading, writing in a few directories, and executing the tools for traffic rules. A fault in how we read what peers and stores say then
//! costs the pods' network and not the node. It must not end anything: what cannot be given up is said, and kept.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf, absolute};

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    make_bitflags,
};
use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use tracing::{debug, warn};

use crate::files::dir_of;
use crate::flags::Flags;

/// To change the network; to ask it what only raw packets can ask.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Everywhere.
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// Of where tools are, those for traffic rules among them, and of what loads them: by place, since an upgrade puts other
/// files there.
const EXECUTE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute});
const LOADERS: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
/// Of a file that is there.
const WRITE_FILE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{WriteFile | Truncate});
/// Files that are written beside and renamed, directories for them, a socket.
const WRITE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{WriteFile | Truncate | MakeReg | MakeDir | MakeSock | RemoveFile});

/// Directories in which this process may write. `/proc` forgets one that nobody has open, and with it what was allowed.
pub(crate) struct Confined {
    _open: Vec<PathFd>,
}

/// Confines this thread and those that it will start.
pub(crate) fn confine(flags: &Flags) -> Confined {
    for (what, done) in [
        ("no_new_privs cannot be set", set_no_new_privs(true)),
        // While the bounding set has it.
        ("the tools for traffic rules get no right over the network", hand_down()),
        // While CAP_SETPCAP is there.
        ("the bounding set cannot be emptied", empty_bounding_set()),
        ("the ambient capabilities cannot be given up", clear_ambient_capability_set()),
        ("capabilities cannot be given up", keep_needed()),
    ] {
        if let Err(error) = done {
            warn!("this daemon keeps rights that it does not need: {what}: {error}");
        }
    }
    let allowed = Allowed { dirs: writable(flags), lock: xtables_lock(), tools: kernel::tool_dirs() };
    let open = restrict(&allowed).unwrap_or_else(|error| {
        warn!("this daemon may write more files than it needs, Landlock fails: {error:#}");
        Vec::new()
    });
    Confined { _open: open }
}

fn empty_bounding_set() -> io::Result<()> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => break, // The kernel knows no more.
        }
        match remove_capability_from_bounding_set(capability) {
            // Whoever took CAP_SETPCAP from us, too; and without new privileges the set is of no use to anybody.
            Err(io::Errno::PERM) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// What root's programs are given, whatever the bounding set says.
fn hand_down() -> io::Result<()> {
    let held = capabilities(None)?;
    let inheritable = held.permitted & KEPT;
    let needed = CapabilitySets { inheritable, ..held };
    match set_capabilities(None, needed) {
        // Where a service manager forbids it the bounding set that it left has these rights, and hands them down.
        Err(io::Errno::PERM) if KEPT.contains(held.permitted) => Ok(()),
        done => done,
    }
}

fn keep_needed() -> io::Result<()> {
    let held = capabilities(None)?;
    let kept = held.permitted & KEPT;
    let needed = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    // A service manager that left us no more than this may well forbid the call.
    if KEPT.contains(held.permitted) { Ok(()) } else { set_capabilities(None, needed) }
}

/// Where this daemon has to write; made where it is missing, since what is made later would be out of reach.
fn writable(flags: &Flags) -> Vec<PathBuf> {
    let mut dirs = vec![dir_of(&flags.subnet_file), dir_of(&flags.socket)];
    if !flags.cache_dir.as_os_str().is_empty() {
        dirs.push(&flags.cache_dir);
    }
    for dir in &dirs {
        if let Err(error) = fs::create_dir_all(dir) {
            warn!("{} cannot be made, and not be written to before the next start: {error}", dir.display());
        }
    }
    dirs.retain(|dir| dir.is_dir());
    let mut dirs: Vec<_> = dirs.into_iter().map(Path::to_owned).collect();
    dirs.extend(around_store(&flags.store));
    dirs.push(kernel::SYSCTLS.into());
    dirs
}

/// The directory that the store is in: a store may be moved away and another one put in its place, a mount may be late.
/// For that reason, too, it is never made here.
fn around_store(store: &Path) -> Option<PathBuf> {
    let store = absolute(store).ok()?;
    // The whole file system would be too much.
    let around = store.parent().filter(|dir| dir.parent().is_some());
    let dir = around.into_iter().chain([store.as_path()]).find(|dir| dir.is_dir());
    if dir.is_none() {
        warn!("{} is not there, and not to be written to before the next start", store.display());
    }
    dir.map(Path::to_owned)
}

/// The lock that iptables-legacy takes, of all who use it; made here, since a directory of others is not ours to write in.
fn xtables_lock() -> Option<PathBuf> {
    let path = kernel::xtables_lock();
    let file = fs::File::options().create(true).append(true).mode(0o600).open(&path);
    file.and_then(|file| file.metadata()).ok().filter(fs::Metadata::is_file)?;
    Some(path)
}

/// What this process may do besides reading.
#[derive(Default)]
struct Allowed {
    /// To write in.
    dirs: Vec<PathBuf>,
    /// A file to write.
    lock: Option<PathBuf>,
    /// To execute.
    tools: Vec<PathBuf>,
}

/// On a kernel without Landlock all stays as it is.
fn restrict(allowed: &Allowed) -> anyhow::Result<Vec<PathFd>> {
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(ABI::V5))?.create()?;
    rules = rules.add_rule(PathBeneath::new(PathFd::new("/")?, READ))?;
    let loaders = LOADERS.iter().map(Path::new).filter(|dir| dir.is_dir() && !allowed.tools.is_empty());
    for path in loaders.chain(allowed.tools.iter().map(PathBuf::as_path)) {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(path)?, EXECUTE))?;
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
    // Not within the line, which is not even put together where nobody reads it.
    let status = rules.restrict_self()?.ruleset;
    debug!("Landlock: {status:?}");
    Ok(open)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Both restrict one thread, which is the whole of a process that has started none.
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
    fn nothing_is_written_elsewhere() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, other) = (here.path().join("deep/er/file"), there.path().join("file"));
        fs::write(&other, "kept").unwrap();
        let (written, elsewhere, removed, read) = confined(here.path(), move || {
            let own = crate::files::write(&own, "text", crate::files::Readers::Root);
            (own, fs::write(&other, "lost"), fs::remove_file(&other), fs::read_to_string(&other))
        });
        assert!(written.unwrap(), "made, renamed, in directories that it made");
        assert!(elsewhere.is_err() && removed.is_err(), "is there Landlock in this kernel?");
        assert_eq!(read.unwrap(), "kept");
    }

    #[test]
    fn nothing_is_executed_but_what_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ran = confined(dir.path(), || Command::new("/bin/true").status());
        assert!(ran.is_err());
    }

    #[test]
    fn what_is_named_is_executed_and_may_do_no_more_than_we() {
        let [cat, echo] = ["/bin/cat", "/bin/echo"].map(|file| Path::new(file).canonicalize().unwrap());
        let (told, other) = std::thread::spawn(move || {
            let _open = restrict(&Allowed { tools: vec![cat.clone()], ..Allowed::default() }).unwrap();
            keep_needed().unwrap();
            (Command::new(cat).arg("/proc/self/status").output(), Command::new(echo).status())
        })
        .join()
        .unwrap();
        let told = String::from_utf8(told.unwrap().stdout).unwrap();
        let held = told.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
        let held = u64::from_str_radix(held.trim(), 16).unwrap();
        assert_eq!(held & !KEPT.bits(), 0, "{told}");
        assert!(other.is_err());
    }

    #[test]
    fn no_capability_is_left_but_those_over_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let sets = confined(dir.path(), || capabilities(None).unwrap());
        assert!(KEPT.contains(sets.permitted), "{sets:?}");
        assert_eq!((sets.effective, sets.inheritable), (sets.permitted, sets.permitted));
    }

    #[test]
    fn a_store_may_be_replaced_and_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("away/store");
        assert_eq!((around_store(&store), store.exists()), (None, false));
        assert_eq!(around_store(&dir.path().join("store")).unwrap(), dir.path());
        assert_eq!(around_store(Path::new("/proc")).unwrap(), Path::new("/proc"));
    }
}
