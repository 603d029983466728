//! Errors of the kernel and of the tools, each with the operation, the cause and a remedy if known. The caller decides
//! whether an error matters.

use std::borrow::Cow;
use std::io;

use plan::LinkName;

/// Maximum number of readings of a dump that changes while it is read; then the dump fails.
pub(crate) const ATTEMPTS: usize = 5;

const NO_RIGHT: &str = "; CAP_NET_ADMIN is needed: run as root, or give it in systemd with \
                        AmbientCapabilities=CAP_NET_ADMIN, in Kubernetes with hostNetwork and capabilities.add NET_ADMIN";

/// Returns what to do if this process or the machine has run out of a resource, whatever the operation was. `errno` is
/// an error number of the kernel. The result is empty for errors other than EMFILE, ENFILE, ENOBUFS and ENOMEM.
pub fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE => {
            "this daemon has reached its limit of open files: raise it, in systemd with LimitNOFILE=1024, in a shell \
             with ulimit -n"
        }
        libc::ENFILE => {
            "this machine has reached its limit of open files: raise sysctl fs.file-max, or find the process that leaks \
             them"
        }
        libc::ENOBUFS | libc::ENOMEM => {
            "the kernel has no memory for it: check the memory limit of this service or container, and the free memory"
        }
        _ => "",
    }
}

/// A request to the kernel or to a tool that failed. It prints as `WHAT: CAUSE; ADVICE`, for example:
///
/// ```text
/// + route 10.244.3.0/24 via 203.0.113.9 dev flannel.1: Network is unreachable (os error 101): Nexthop has invalid gateway
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}{advice}")]
pub struct Error {
    /// The operation and its object, such as `+ route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink`.
    pub what: Box<str>,
    /// Reason of the failure.
    pub cause: Cause,
    /// Remedy, with the `; ` before it; empty if none is known.
    pub advice: Cow<'static, str>,
}

impl Error {
    pub(crate) fn new(what: impl Into<Box<str>>, cause: Cause) -> Self {
        let advice = match cause.errno() {
            Some(libc::EPERM) => NO_RIGHT.into(),
            errno => match errno.map_or("", remedy) {
                "" => "".into(),
                remedy => format!("; {remedy}").into(),
            },
        };
        Self { what: what.into(), cause, advice }
    }
}

impl Error {
    /// Returns true if another program blocks the operation for a short time, so that a retry helps.
    pub fn is_busy(&self) -> bool {
        matches!(self.cause, Cause::Busy(_))
    }

    /// Returns true if the operation was forbidden (EPERM, EACCES or EROFS), so that a retry does not help.
    pub fn is_denial(&self) -> bool {
        self.cause.is_denial()
    }
}

/// Reason of a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Refused by the kernel; `text` holds its own words, if it sent any (`NLMSGERR_ATTR_MSG`).
    #[error("{}{}", io::Error::from_raw_os_error(*errno), aside(text.as_deref()))]
    Refused { errno: i32, text: Option<Box<str>> },
    /// Missing device of this name.
    #[error("there is no device {0}")]
    NoDevice(LinkName),
    /// An object of this key exists and differs from the one to create; the text describes the existing one.
    #[error("it exists already and differs: {0}")]
    Differs(Box<str>),
    /// The data changed during each reading.
    #[error("it changed during each of {ATTEMPTS} readings")]
    Torn,
    /// Release of a Linux that lacks a needed feature.
    #[error("Linux {0} is too old: 5.4 or newer is needed")]
    TooOld(Box<str>),
    /// Blocked by another program for a short time; the text says by which and what to do.
    #[error("{0}")]
    Busy(Box<str>),
    /// Failed tool, with its error messages.
    #[error("{tool}: {text}")]
    Tool { tool: Box<str>, text: Box<str> },
    /// The kernel did not answer within this number of seconds.
    #[error("the kernel did not answer within {0} s")]
    NoAnswer(u64),
}

impl Cause {
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES | libc::EROFS))
    }

    /// Returns the error number of a failed system call or of the kernel's answer.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

impl From<&io::Error> for Cause {
    fn from(error: &io::Error) -> Self {
        Self::Refused { errno: error.raw_os_error().unwrap_or(libc::EIO), text: None }
    }
}

fn aside(text: Option<&str>) -> String {
    text.map(|text| format!(": {text}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_cause_and_remedy() {
        let refused = |errno, text: Option<&str>| Cause::Refused { errno, text: text.map(Into::into) };
        for (cause, expected) in [
            (
                refused(libc::EPERM, None),
                "+ x: Operation not permitted (os error 1); CAP_NET_ADMIN is needed: run as root, or give it in systemd with \
                 AmbientCapabilities=CAP_NET_ADMIN, in Kubernetes with hostNetwork and capabilities.add NET_ADMIN",
            ),
            (refused(libc::EINVAL, Some("bad x")), "+ x: Invalid argument (os error 22): bad x"),
            (
                refused(libc::EMFILE, None),
                "+ x: Too many open files (os error 24); this daemon has reached its limit of open files: raise it, in \
                 systemd with LimitNOFILE=1024, in a shell with ulimit -n",
            ),
            (
                refused(libc::ENOBUFS, Some("no room")),
                "+ x: No buffer space available (os error 105): no room; the kernel has no memory for it: check the \
                 memory limit of this service or container, and the free memory",
            ),
            (Cause::Torn, "+ x: it changed during each of 5 readings"),
            (Cause::NoAnswer(10), "+ x: the kernel did not answer within 10 s"),
        ] {
            assert_eq!(Error::new("+ x", cause).to_string(), expected);
        }
    }
}
