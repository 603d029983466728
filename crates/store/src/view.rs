//! What a store last told, and whether it can still be heard: one value, whatever the store.

use std::fmt;
use std::time::SystemTime;

use plan::belief::History;
use plan::input::Leases;
use plan::netconf::NetConf;
use plan::note::Note;
use plan::text::printed;

/// Bytes of a lease or config: they have some 300, and what is larger is none.
pub(crate) const LARGEST: u64 = 64 * 1024;

/// The last complete picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub leases: Leases,
    /// The network config as it stands, or why it cannot be used; `None` before it was read.
    pub conf: Option<Result<NetConf, String>>,
    /// Entries that are no leases.
    pub notes: Vec<Note>,
    /// Why nothing is heard at present; the leases above then are the last good ones.
    pub lost: Option<String>,
    /// Where the leases stand in the store's own history, if it keeps one.
    pub history: Option<History>,
    /// When our lease ends unless it is renewed; `None` where it does not end or nobody knows.
    pub own_until: Option<SystemTime>,
}

/// What a store could not do, where and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    text: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nobody could be asked.
    Trouble,
    /// It answered, and no.
    Decided,
    /// And trying again is of no use.
    Refused,
}

impl StoreError {
    /// `doing` says what and where, `why` in the words of whoever refused.
    pub(crate) fn new(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { text: printed(format_args!("{doing}: {why}")), kind: Kind::Trouble }
    }

    /// The same of what was well understood and cannot be at present.
    pub(crate) fn decided(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { kind: Kind::Decided, ..Self::new(doing, why) }
    }

    /// Is it an answer, rather than that there is none?
    #[cfg(feature = "etcd")]
    pub(crate) fn is_decision(&self) -> bool {
        self.kind != Kind::Trouble
    }

    /// The same where trying again is of no use.
    pub(crate) fn refused(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { kind: Kind::Refused, ..Self::new(doing, why) }
    }

    /// Must somebody do something before it is tried again?
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
