//! What goes wrong between us and the kernel, told with the object, the kernel's own words and the remedy where one
//! is known. Takes no decision: whether an error matters is for the caller to say.

use std::borrow::Cow;
use std::io;

use plan::LinkName;

/// How often a torn dump is read before it becomes an error.
pub(crate) const ATTEMPTS: usize = 5;

const NO_RIGHT: &str = "; CAP_NET_ADMIN is needed: run as root, or give it in systemd with \
                        AmbientCapabilities=CAP_NET_ADMIN, in Kubernetes with hostNetwork and capabilities.add NET_ADMIN";

/// What to do where this process or the machine has run out of something, whatever was to be done; empty for other errors.
pub fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE => {
            "this daemon may open no more files: raise its limit, in systemd with LimitNOFILE=1024, in a shell with ulimit -n"
        }
        libc::ENFILE => {
            "this machine may open no more files: raise sysctl fs.file-max, or find the process that leaks them"
        }
        libc::ENOBUFS | libc::ENOMEM => {
            "the kernel has no memory for it: look at the memory limit of this service or container, and at what is free"
        }
        _ => "",
    }
}

/// Something that was asked of the kernel and did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}{advice}")]
pub struct Error {
    /// The operation and its object, such as `+ route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink`.
    pub what: Box<str>,
    /// Why it failed.
    pub cause: Cause,
    /// What to do about it, with the words that lead to it; empty where that is not known.
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
    /// Does somebody else hold it up, who will soon be done?
    pub fn is_busy(&self) -> bool {
        matches!(self.cause, Cause::Busy(_))
    }

    /// Was it forbidden, so that trying again is of no use?
    pub fn is_denial(&self) -> bool {
        self.cause.is_denial()
    }
}

/// Why it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The kernel said no; `text` holds its own words if it had any (`NLMSGERR_ATTR_MSG`).
    #[error("{}{}", io::Error::from_raw_os_error(*errno), aside(text.as_deref()))]
    Refused { errno: i32, text: Option<Box<str>> },
    /// No device of that name.
    #[error("there is no device {0}")]
    NoDevice(LinkName),
    /// Something of that key is there, and it is not what was to be created.
    #[error("it exists already and differs: {0}")]
    Differs(Box<str>),
    /// What was to be read changed during each reading.
    #[error("it changed during each of {ATTEMPTS} readings")]
    Torn,
    /// The kernel lacks what is needed.
    #[error("Linux {0} is too old: 5.4 or newer is needed")]
    TooOld(Box<str>),
    /// Somebody else holds what is needed, for a moment.
    #[error("{0}")]
    Busy(Box<str>),
    /// A tool did not do what it was told.
    #[error("{tool}: {text}")]
    Tool { tool: Box<str>, text: Box<str> },
    /// The kernel did not answer in time.
    #[error("the kernel did not answer within {0} s")]
    Silent(u64),
}

impl Cause {
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES | libc::EROFS))
    }

    /// The error number of a failed system call or of the kernel's answer.
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
    fn an_error_says_what_and_why_and_what_to_do() {
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
                "+ x: Too many open files (os error 24); this daemon may open no more files: raise its limit, in systemd \
                 with LimitNOFILE=1024, in a shell with ulimit -n",
            ),
            (
                refused(libc::ENOBUFS, Some("no room")),
                "+ x: No buffer space available (os error 105): no room; the kernel has no memory for it: look at the \
                 memory limit of this service or container, and at what is free",
            ),
            (Cause::Torn, "+ x: it changed during each of 5 readings"),
            (Cause::Silent(10), "+ x: the kernel did not answer within 10 s"),
        ] {
            assert_eq!(Error::new("+ x", cause).to_string(), expected);
        }
    }
}
