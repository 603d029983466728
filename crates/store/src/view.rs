//! Last state read from a store, and whether the store is reachable: one type for all stores.

use std::fmt;
use std::time::SystemTime;

use plan::lease::Leases;
use plan::netconf::NetConf;
use plan::shrink_guard::StoreHistory;
use plan::text::printed;
use plan::warning::Warning;

/// Maximum size of a lease or config in bytes; usual ones have about 300.
pub(crate) const MAX_BYTES: u64 = 64 * 1024;

/// Last complete state of a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub leases: Leases,
    /// Network config, or the reason for which it cannot be used; `None` before it was read.
    pub conf: Option<Result<NetConf, String>>,
    /// Warnings about entries that are not leases.
    pub warnings: Vec<Warning>,
    /// Reason for which the store cannot be read at present; the leases are then the last good ones.
    pub lost: Option<String>,
    /// Position in the store's own history, if the store keeps one.
    pub history: Option<StoreHistory>,
    /// Time at which our lease ends unless it is renewed; `None` if it never ends or the time is unknown.
    pub own_until: Option<SystemTime>,
}

/// Error of a store: the action, the place and the reason, e.g. `http://10.0.0.5:2379: no answer within 1.5 s`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    text: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The store could not be reached.
    Unreachable,
    /// The store answered, and the action is not possible at present.
    NotNow,
    /// The store answered, and a retry is useless.
    Refused,
}

impl StoreError {
    /// Creates an error of an unreachable store. `doing` is the action or place, `why` the reason in the words of its source.
    pub(crate) fn new(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { text: printed(format_args!("{doing}: {why}")), kind: Kind::Unreachable }
    }

    /// Creates an error of an action that is not possible at present, although the store answered.
    pub(crate) fn not_now(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { kind: Kind::NotNow, ..Self::new(doing, why) }
    }

    /// Returns true if the store answered.
    #[cfg(feature = "etcd")]
    pub(crate) fn is_answer(&self) -> bool {
        self.kind != Kind::Unreachable
    }

    /// Creates an error for which a retry is useless.
    pub(crate) fn refused(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { kind: Kind::Refused, ..Self::new(doing, why) }
    }

    /// Returns true if a retry is useless until an administrator has changed something.
    pub fn is_refusal(&self) -> bool {
        self.kind == Kind::Refused
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StoreError {}
