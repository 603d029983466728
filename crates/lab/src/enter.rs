//! Enters new user, mount, pid and net namespaces by running the same executable again under util-linux's programs. It changes
//! nothing outside, and everything inside dies with the process that asked for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

/// Environment variable of processes in a lab: `user` in a user namespace of its own, `root` otherwise.
const MARK: &str = "TWILL_LAB_INSIDE";
const TOOLS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("ping", "iputils-ping"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
];
const OWN: [&str; 6] = ["--mount", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"];
const OWN_USER: [&str; 2] = ["--user", "--map-root-user"];
/// Options for a user namespace with more users than root; they need a range in /etc/subuid, and newuidmap.
const OWN_USERS: [&str; 3] = ["--user", "--map-root-user", "--map-auto"];
/// Id of the lab's user who is not root.
const OTHER: u32 = 1000;
/// User id map of root's lab: each id is the same inside and outside.
const USERS: &str = "0 0 65536";
/// Shell script that runs `unshare` with all arguments except the first one. It exits if the parent died before setpriv had asked
/// to die with it.
const GUARD: &str = r#"[ "$PPID" = "$1" ] || exit 1; shift; TWILL_LAB_DOOR=$$ exec unshare "$@""#;
/// Same as [`GUARD`], in a user namespace with all users. Only the parent of that namespace may write its id maps.
const GUARD_OF_ROOT: &str = r#"
[ "$PPID" = "$1" ] && users=$2 || exit 1
shift 2
env -i PATH="$PATH" unshare --user sleep 10 >/dev/null 2>&1 &
while [ "$(readlink /proc/$!/ns/user)" = "$(readlink /proc/$$/ns/user)" ]; do kill -0 $! || exit 1; done
echo "$users" >/proc/$!/uid_map && echo "$users" >/proc/$!/gid_map || exit 1
exec 9</proc/$!/ns/user
kill $!
TWILL_LAB_DOOR=$$ exec nsenter --user=/proc/self/fd/9 sh -c 'exec 9<&- unshare "$@"' lab "$@"
"#;

/// Returns the directory that lives and dies with the lab; `TMPDIR` inside the lab is its `tmp`.
pub fn work_dir() -> PathBuf {
    PathBuf::from("/run/twill-lab")
}

/// Returns true if this process is the first one of a lab. A process started in the lab is not: it may open a lab of its own.
pub fn inside() -> bool {
    std::env::var_os(MARK).is_some() && process::id() == 1
}

/// Returns true if the lab has its own user namespace, in which root may do less.
pub(crate) fn own_user() -> bool {
    std::env::var_os(MARK).is_some_and(|mark| mark == "user")
}

/// Returns the id of a user of the lab other than root, for `setpriv --reuid`. Panics if root is the only user.
pub fn other_user() -> u32 {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let count = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    let users: u64 = map.lines().filter_map(count).sum();
    assert!(
        users > OTHER.into(),
        "the lab knows root alone: apt-get install uidmap and add a range to /etc/subuid, or run as root"
    );
    OTHER
}

/// Runs `work` on this thread with the file system user id of [`other_user`]. Its new files and sockets belong to
/// that user.
pub fn as_other_user<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let user = other_user();
    let own = nix::unistd::setfsuid(user.into());
    let done = work();
    nix::unistd::setfsuid(own);
    done
}

/// Returns the id, as numbered outside, of the process whose only child is the first process of this lab. Another terminal can
/// enter the lab there.
pub fn door() -> Option<String> {
    std::env::var("TWILL_LAB_DOOR").ok()
}

/// Enters the lab. Outside, it runs this executable with the same arguments inside, then exits with its exit code. Inside, it
/// prepares the lab. The error is one line that says what to do.
pub fn enter() -> Result<(), String> {
    if inside() {
        return settle();
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let status = command()?.args(args).status().map_err(|e| format!("cannot start setpriv: {e}"))?;
    process::exit(exit_code(status))
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Returns the command that runs this executable inside; the caller adds the arguments. The process is killed when the thread
/// that spawned it ends, so spawn and wait on the same thread. The error is one line that says what to do.
pub fn command() -> Result<Command, String> {
    check_tools()?;
    let mut flags = allowed_flags()?;
    let exe = std::env::current_exe().map_err(|e| format!("cannot find this program's file: {e}"))?;
    let mut command = Command::new("setpriv");
    let own_user = flags.contains(&OWN_USER[0]);
    let parent = process::id().to_string();
    if own_user && nix::unistd::Uid::effective().is_root() {
        command.args(["--pdeathsig", "KILL", "sh", "-c", GUARD_OF_ROOT, "lab", &parent, USERS]);
        flags.retain(|flag| !OWN_USER.contains(flag));
    } else {
        command.args(["--pdeathsig", "KILL", "sh", "-c", GUARD, "lab", &parent]);
    }
    let mark = if own_user { "user" } else { "root" };
    command.args(flags).arg("--").arg(exe);
    command.env(MARK, mark).env("PATH", search_path()).env("TMPDIR", work_dir().join("tmp"));
    Ok(command)
}

/// Returns PATH with /usr/sbin and /sbin: Debian keeps bridge and nft there, outside the PATH of ordinary users.
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn check_tools() -> Result<(), String> {
    let path = search_path();
    let found = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    match TOOLS.iter().find(|(tool, _)| !found(tool)) {
        Some((tool, package)) => Err(format!("the lab needs `{tool}` in PATH: apt-get install {package}")),
        None if !Path::new("/proc/sys/net/ipv6").exists() => {
            Err("the lab's networks are dual-stack and this kernel has IPv6 off: boot without ipv6.disable=1"
                .into())
        }
        None => Ok(()),
    }
}

fn allowed_flags() -> Result<Vec<&'static str>, String> {
    let own_users: Vec<_> = OWN_USERS.into_iter().chain(OWN).collect();
    let own_user: Vec<_> = OWN_USER.into_iter().chain(OWN).collect();
    if !nix::unistd::Uid::effective().is_root() && probe(&own_users).is_ok() {
        return Ok(own_users);
    }
    let Err(refusal) = probe(&own_user) else { return Ok(own_user) };
    if !nix::unistd::Uid::effective().is_root() {
        return Err(format!("no user namespaces here ({refusal}): {}, or run as root", remedy()));
    }
    match probe(&OWN) {
        Ok(()) => Ok(OWN.to_vec()),
        Err(e) => {
            Err(format!("no namespaces even for root ({e}): in a container, start it with --privileged"))
        }
    }
}

fn probe(flags: &[&str]) -> Result<(), String> {
    let tried = Command::new("unshare").args(flags).args(["mount", "-t", "tmpfs", "tmpfs", "/run"]).output();
    match tried {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().replace('\n', "; ")),
        Err(e) => Err(e.to_string()),
    }
}

fn remedy() -> &'static str {
    let is = |key: &str, value: &str| fs::read_to_string(key).is_ok_and(|text| text.trim() == value);
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "allow them with `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "allow them with `sudo sysctl kernel.unprivileged_userns_clone=1`"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "allow them with `sudo sysctl user.max_user_namespaces=10000`"
    } else {
        "allow unprivileged user namespaces"
    }
}

/// Prepares the lab, once: /run for `ip netns`, /dev/shm, the work directory, and switches without traffic of their
/// own. Names in /dev/shm often contain the process id, which labs have in common.
pub(crate) fn settle() -> Result<(), String> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    DONE.get_or_init(|| {
        let mounts = "mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && \
                      if [ -d /dev/shm ]; then mount -t tmpfs -o mode=1777 tmpfs /dev/shm; fi";
        let out = Command::new("sh").args(["-c", mounts]).stdin(Stdio::null()).output();
        let out = out.map_err(|e| format!("cannot run sh: {e}"))?;
        if !out.status.success() {
            return Err(format!("cannot prepare the lab: {}", String::from_utf8_lossy(&out.stderr).trim()));
        }
        let dirs = ["tmp", "log"].map(|name| work_dir().join(name));
        let dirs = dirs.iter().map(PathBuf::as_path).chain([Path::new("/run/flannel")]);
        let made: io::Result<()> = dirs.into_iter().try_for_each(fs::create_dir_all);
        made.map_err(|e| format!("cannot prepare the lab: {e}"))?;
        // Bridges here are switches, not hosts: with IPv6 they would send neighbour discovery into the segments.
        for who in ["all", "default"] {
            let key = format!("/proc/sys/net/ipv6/conf/{who}/disable_ipv6");
            fs::write(&key, "1").map_err(|e| format!("cannot write {key}: {e}"))?;
        }
        Ok(())
    })
    .clone()
}

#[cfg(test)]
mod tests {
    use super::TOOLS;

    /// `make lab` and `make test` install the package of each tool that the lab needs.
    #[test]
    fn the_makefile_names_every_package_of_the_lab() {
        let makefile = include_str!("../../../Makefile");
        let packages = |name: &str| {
            let line = makefile.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let (_, packages) = line.split_once(":=").unwrap_or_else(|| panic!("no {name} in the Makefile"));
            packages.split_whitespace().collect::<Vec<_>>()
        };
        let lab = packages("lab_packages");
        for (tool, package) in TOOLS {
            assert!(lab.contains(&package), "`{tool}` is in {package}, which `make lab` does not install");
        }
        assert!(packages("test_packages").contains(&"$(lab_packages)"));
    }
}
