//! Linux, and nothing else: reads what may be ours, does what it is told, and says when to look again. Blocking.
//!
//! No decisions: if an `if` here depends on a lease, it is in the wrong crate. One file per kind of object, which knows
//! how its rows are read from and written to the kernel; `wire` and `socket` below them know no object.

mod addr;
mod apply;
mod command;
mod dump;
mod echo;
mod error;
mod fdb;
mod filter;
mod firewall;
mod iptables;
mod link;
mod names;
mod neigh;
mod nexthop;
mod nft;
pub mod packet;
mod route;
mod rule;
mod socket;
mod sysctl;
mod tools;
mod walk;
mod watch;
mod way;
mod wire;

pub use apply::Outcome;
pub use dump::Seen;
pub use error::{Cause, Error, remedy};
pub use filter::Interest;
pub use iptables::LegacyWatch;
pub use names::{AbstractName, abstract_names};
pub use nft::FirewallWatch;
pub use route::Lookup;
pub use sysctl::SYSCTLS;
pub use tools::{tool_dirs, xtables_lock};
pub use watch::{Event, Filter, Kind, Watch};

/// Address families of the sockets that this crate opens (socket(2)).
pub const SOCKET_FAMILIES: [i32; 2] = [libc::AF_NETLINK, libc::AF_PACKET];

/// The kernel of the network namespace in which it was opened. One owner, no locks.
pub struct Kernel {
    netlink: socket::Netlink,
    firewall: firewall::Firewall,
    echoes: echo::Echoes,
    /// The most of one kind that were read.
    rows: usize,
}

/// Strict dumps, next hop objects and their monitor group are there from 5.4 on.
const OLDEST: (u32, u32) = (5, 4);

impl Kernel {
    /// Needs no right; changing anything needs `CAP_NET_ADMIN`, see [`Self::check_right`].
    pub fn open() -> Result<Self, Error> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if version(&release).is_some_and(|version| version < OLDEST) {
            return Err(Error::new("start", Cause::TooOld(release.trim().into())));
        }
        Ok(Self {
            netlink: socket::Netlink::open()?,
            firewall: Default::default(),
            echoes: Default::default(),
            rows: 0,
        })
    }

    /// May anything be changed here? The kernel is asked, since a capability counts only in the user namespace to which
    /// the network namespace belongs: it looks for the right before it looks at the address, and there is none.
    pub fn check_right(&mut self) -> Result<(), Error> {
        let asked = self.netlink.ask(&mut addr::none_to_add(), |_| {});
        let denied = asked.err().map(|cause| Error::new("change the network of this node", cause));
        denied.filter(Error::is_denial).map_or(Ok(()), Err)
    }
}

/// Major and minor number of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-18-amd64\n"), Some((6, 1)));
        assert!(version("5.10.0").unwrap() > OLDEST && version("4.19.0-27").unwrap() < OLDEST);
        assert_eq!(version("unknown"), None);
    }
}
