//! System calls of this process and of the tools that it starts, as a seccomp filter. Every other call fails as if the
//! kernel did not know it (ENOSYS). systemd's unit forbids much the same; elsewhere nothing else does.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use anyhow::Context;
use libc::c_long;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// System calls that are allowed with any arguments: systemd's @system-service, without those that twill and its tools
/// never use. Left out are io_uring, keys, foreign memory, new namespaces, other users, and signals by other calls than
/// `kill`.
const ALLOWED: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_chdir,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_lgetxattr,
    libc::SYS_listen,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mkdirat,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Older system calls with the same effects.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_inotify_init,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_vfork,
];
/// System call `renameat`, for which libc has no name on ARM.
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[38];

/// Flags of `clone` that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
/// Requests of `ioctl` that make a file send signals (FIOSETOWN, SIOCSPGRP) or type into a terminal (TIOCSTI, TIOCLINUX).
const IOCTLS: [u64; 4] = [0x8901, 0x8902, 0x5412, 0x541c];
/// Requests of `fcntl` by which a file sends signals: F_SETOWN, F_SETSIG, F_SETOWN_EX.
const FCNTLS: [u64; 3] = [8, 10, 15];
/// Mask for the type of a socket; the bits above are flags.
const TYPE: u64 = 0xf;

/// Restricts this thread and the threads that it starts later. Returns an error if no filter exists for the architecture,
/// or it cannot be installed.
pub(super) fn restrict() -> anyhow::Result<()> {
    let arch = TargetArch::try_from(ARCH).with_context(|| format!("no filter is known for {ARCH}"))?;
    let (refuse, allow) = (SeccompAction::Errno(libc::ENOSYS.cast_unsigned()), SeccompAction::Allow);
    let filter: BpfProgram = SeccompFilter::new(rules()?, refuse, allow, arch)?.try_into()?;
    apply_filter(&filter).context("installing the filter")
}

/// Returns the allowed calls with their rules, of which one must match. A call without rules is always allowed.
fn rules() -> anyhow::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut all: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let own = u64::from(std::process::id());
    let (writes, runs) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    // Local sockets must be datagrams: container runtimes, D-Bus and other services that obey root listen on streams.
    let local = libc::AF_UNIX as u64;
    let datagram = when(&[(0, Eq, local), (1, MaskedEq(TYPE), libc::SOCK_DGRAM as u64)])?;
    let families = kernel::SOCKET_FAMILIES.into_iter().chain([libc::AF_INET, libc::AF_INET6]);
    let families = families.map(|family| when(&[(0, Eq, family as u64)]));
    let sockets = families.chain([Ok(datagram)]).collect::<anyhow::Result<_>>()?;
    // Memory is writable or executable, never both.
    let maps = [0, writes, runs].map(|rights| when(&[(2, MaskedEq(writes | runs), rights)]));
    let maps = maps.into_iter().collect::<anyhow::Result<_>>()?;
    // A tool that takes too long is killed. Landlock decides which processes may be signalled, if the kernel supports
    // that.
    let kills = [0, libc::SIGKILL as u64].map(|signal| when(&[(1, Eq, signal)]));
    let kills = kills.into_iter().collect::<anyhow::Result<_>>()?;
    let none_of =
        |requests: &[u64]| when(&requests.iter().map(|request| (1, Ne, *request)).collect::<Vec<_>>());
    all.extend([
        (libc::SYS_clone, vec![when(&[(0, MaskedEq(NAMESPACES), 0)])?]),
        (libc::SYS_fcntl, vec![none_of(&FCNTLS)?]),
        (libc::SYS_ioctl, vec![none_of(&IOCTLS)?]),
        (libc::SYS_kill, kills),
        (libc::SYS_mmap, maps),
        (libc::SYS_mprotect, vec![when(&[(2, MaskedEq(runs), 0)])?]),
        (libc::SYS_prlimit64, vec![when(&[(0, Eq, 0)])?]),
        (libc::SYS_socket, sockets),
        (libc::SYS_socketpair, vec![when(&[(0, Eq, local)])?]),
        (libc::SYS_tgkill, vec![when(&[(0, Eq, own)])?]),
    ]);
    Ok(all)
}

/// Makes a rule of conditions (number of the argument, comparison, value), all of which must hold.
fn when(conditions: &[(u8, SeccompCmpOp, u64)]) -> anyhow::Result<SeccompRule> {
    let conditions = conditions
        .iter()
        .map(|(place, compared, value)| {
            SeccompCondition::new(*place, SeccompCmpArgLen::Dword, compared.clone(), *value)
        })
        .collect::<Result<_, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::process::Command;

    use rustix::net::{AddressFamily, SocketType, socket};
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// Runs `body` under the filter on one thread, which is the whole of a process that has started no other.
    fn restricted<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let restricted = || {
            rustix::thread::set_no_new_privs(true).unwrap();
            restrict().unwrap();
            body()
        };
        std::thread::spawn(restricted).join().unwrap()
    }

    #[test]
    fn streams_to_local_services_and_other_families_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service");
        let _service = UnixListener::bind(&path).unwrap();
        restricted(move || {
            assert!(UnixStream::connect(&path).is_err());
            assert!(socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).is_err());
            assert!(socket(AddressFamily::VSOCK, SocketType::STREAM, None).is_err());
            assert!(UnixDatagram::unbound().is_ok() && UnixStream::pair().is_ok());
            assert!(UdpSocket::bind("127.0.0.1:0").is_ok());
        });
    }

    /// Installs a filter that allows the address families of the systemd unit, and no others.
    fn of_unit() -> anyhow::Result<()> {
        let unit = include_str!("../../../../deploy/twill.service");
        let families = unit.lines().find_map(|line| line.strip_prefix("RestrictAddressFamilies=")).unwrap();
        let number = |name: &str| match name {
            "AF_UNIX" => libc::AF_UNIX,
            "AF_NETLINK" => libc::AF_NETLINK,
            "AF_INET" => libc::AF_INET,
            "AF_INET6" => libc::AF_INET6,
            "AF_PACKET" => libc::AF_PACKET,
            other => panic!("{other} is not known here"),
        };
        let others: Vec<_> = families.split(' ').map(|name| (0, Ne, number(name) as u64)).collect();
        let refuse = SeccompAction::Errno(libc::EAFNOSUPPORT.cast_unsigned());
        let rules = [(libc::SYS_socket, vec![when(&others)?])].into();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::try_from(ARCH)?)?;
        let filter: BpfProgram = filter.try_into()?;
        Ok(apply_filter(&filter)?)
    }

    /// Every socket that the daemon uses opens under the unit's filter and our own. Needs CAP_NET_RAW, as the daemon
    /// does.
    #[test]
    fn every_socket_in_use_opens_under_the_units_and_our_filter() {
        lab::test(lab::Timing::Free, || {
            // The service manager's filter comes first.
            let of_unit = || {
                rustix::thread::set_no_new_privs(true).unwrap();
                of_unit().unwrap();
                restricted(open_each);
            };
            std::thread::spawn(of_unit).join().unwrap();
        });
    }

    fn open_each() {
        let marks = kernel::packet::Marks { echo: 1, port: 2 };
        let links = kernel::packet::interfaces().unwrap();
        let link = links.values().next().expect("the lab has a loopback device");
        for family in plan::Family::ALL {
            kernel::packet::Socket::sender(family).unwrap();
            kernel::packet::Socket::answers(family, marks).unwrap();
            kernel::packet::Socket::frames(link, kernel::packet::EtherType::of(family), marks).unwrap();
        }
        kernel::packet::Socket::frames(link, kernel::packet::EtherType::Arp, marks).unwrap();
        kernel::packet::Socket::neighbour_events(link).unwrap();
        let kernel = kernel::Kernel::open().unwrap();
        kernel::Watch::open(&kernel).unwrap();
        kernel.watch_firewall().unwrap();
        kernel::abstract_names("twill ").unwrap();
        for address in ["127.0.0.1:0", "[::]:0"] {
            UdpSocket::bind(address).unwrap();
            std::net::TcpListener::bind(address).unwrap();
        }
        assert!(UnixDatagram::unbound().is_ok() && UnixStream::pair().is_ok());
        let vsock = socket(AddressFamily::VSOCK, SocketType::STREAM, None);
        assert!(vsock.is_err(), "the unit's restriction is in force");
    }

    #[test]
    fn only_sigkill_is_sent() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let sent = restricted(move || {
            [Signal::TERM, Signal::HUP, Signal::KILL].map(|signal| kill_process(pid, signal))
        });
        assert!(sent[0].is_err() && sent[1].is_err() && sent[2].is_ok(), "{sent:?}");
        child.wait().unwrap();
    }

    #[test]
    fn threads_and_tools_start_but_no_namespace_is_created() {
        let (output, refused) = restricted(|| {
            std::thread::spawn(|| {}).join().unwrap();
            (
                Command::new("cat").arg("/proc/self/status").output(),
                Command::new("unshare").arg("--net").arg("true").output(),
            )
        });
        let status = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        assert!(!refused.unwrap().status.success());
    }
}
