//! Advice for errors of system calls, by error number. Messages about one error number give the same advice everywhere.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// Displays an I/O error with its remedy, if one is known. Sample: `Read-only file system (os error 30); it is
/// mounted read-only: mount it writable, or name another place`.
pub(crate) struct WithRemedy<'a>(pub(crate) &'a io::Error);

impl fmt::Display for WithRemedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        match remedy_of(error) {
            "" => write!(f, "{error}"),
            remedy => write!(f, "{error}; {remedy}"),
        }
    }
}

/// Displays the error of a socket with its remedy, if one is known:
/// `Permission denied (os error 13); a port below 1024 needs CAP_NET_BIND_SERVICE`.
pub(crate) struct WithSocketRemedy<'a>(pub(crate) &'a io::Error);

impl fmt::Display for WithSocketRemedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        match errno(error).map_or("", socket_remedy) {
            "" => write!(f, "{error}"),
            remedy => write!(f, "{error}; {remedy}"),
        }
    }
}

fn socket_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => {
            "CAP_NET_RAW is needed: give it in systemd with AmbientCapabilities=CAP_NET_RAW, in Kubernetes with \
             capabilities.add NET_RAW"
        }
        Errno::ACCESS => "a port below 1024 needs CAP_NET_BIND_SERVICE: choose a higher one, or give that",
        Errno::ADDRNOTAVAIL => "this node has no such address",
        Errno::ADDRINUSE => "another process has that port: ss -ltnp names it",
        Errno::AFNOSUPPORT => {
            "the kernel has no sockets of this kind, or the service may not use them (in systemd RestrictAddressFamilies=)"
        }
        other => kernel::remedy(other.raw_os_error()),
    }
}

/// Returns the error number if the operating system reported the error.
pub(crate) fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}

/// Returns true if this process or the machine has run out of a resource. The error then says nothing about its object.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    errno(error).is_some_and(|errno| shortages.contains(&errno))
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC => "no space or no inodes are left there: check df and df -i, and free some",
        Errno::DQUOT => "the disk quota is used up: free some space, or raise the quota",
        Errno::ROFS => "it is mounted read-only: mount it writable, or name another place",
        Errno::ACCESS => {
            "its mode, its owner or a security module forbids it (if its directory was replaced since the start, restart the \
             daemon)"
        }
        Errno::PERM => "the file is immutable (lsattr shows it), or a security module forbids it",
        Errno::BUSY => "it is a mount point: unmount it, or mount its directory instead",
        Errno::NOTDIR => "a part of its path is no directory",
        Errno::STALE => "its file server no longer knows it (stale handle): mount it again",
        Errno::IO => "the disk or its file system fails: check dmesg",
        other => kernel::remedy(other.raw_os_error()),
    }
}

/// Returns the remedy for the error; empty if none is known.
pub(crate) fn remedy_of(error: &io::Error) -> &'static str {
    errno(error).map_or("", remedy)
}

/// Formats the error and its causes, then the remedy for the root cause unless the text contains it already.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let bottom = error.root_cause().downcast_ref::<io::Error>();
    let (words, remedy) = (format!("{error:#}"), bottom.map_or("", remedy_of));
    if remedy.is_empty() || words.contains(remedy) { words } else { format!("{words}; {remedy}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_error_has_a_remedy_and_an_unknown_one_stays_as_it_is() {
        let text = |errno: Errno| WithRemedy(&errno.into()).to_string();
        assert!(
            text(Errno::MFILE)
                .starts_with("Too many open files (os error 24); this daemon has reached its limit")
        );
        assert!(text(Errno::NOSPC).contains("df -i"));
        assert!(text(Errno::ROFS).contains("read-only: mount it writable"));
        assert_eq!(text(Errno::NAMETOOLONG), "File name too long (os error 36)");
        let of_socket = |errno: Errno| WithSocketRemedy(&errno.into()).to_string();
        assert!(
            of_socket(Errno::PERM).starts_with("Operation not permitted (os error 1); CAP_NET_RAW is needed")
        );
        assert!(
            of_socket(Errno::ACCESS).contains("(os error 13); a port below 1024 needs CAP_NET_BIND_SERVICE")
        );
        assert!(of_socket(Errno::ADDRNOTAVAIL).ends_with("; this node has no such address"));
        assert!(of_socket(Errno::MFILE).contains("has reached its limit"));
        assert_eq!(WithRemedy(&io::Error::other("no")).to_string(), "no");
        assert!(is_shortage(&Errno::NFILE.into()) && !is_shortage(&Errno::ACCESS.into()));
    }
}
