//! Linux, and nothing else: reads what may be ours, does what it is told, and says when to look again. Blocking.
//!
//! No decisions: if an `if` here depends on a lease, it is in the wrong crate. One file per kind of object, which knows
//! how its rows are read from and written to the kernel; `wire` and `socket` below them know no object.

mod addr;
mod apply;
mod dump;
mod error;
mod fdb;
mod filter;
mod link;
mod neigh;
mod nexthop;
mod route;
mod rule;
mod socket;
mod sysctl;
mod watch;
mod wire;

pub use apply::Outcome;
pub use dump::Seen;
pub use error::{Cause, Error};
pub use filter::Interest;
pub use route::Lookup;
pub use watch::{Event, Filter, Kind, Watch};

/// The kernel of the network namespace in which it was opened. One owner, no locks.
pub struct Kernel {
    netlink: socket::Rtnetlink,
}

impl Kernel {
    /// Needs no right; changing anything needs `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { netlink: socket::Rtnetlink::open()? })
    }
}
