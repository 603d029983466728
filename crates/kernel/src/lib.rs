//! The interface to Linux: reads the objects that may be ours, carries out ops, and reports changes. All calls block.
//!
//! This crate takes no decisions: an `if` that depends on a lease belongs in another crate. Each kind of object has one
//! file, which reads its rows from the kernel, writes them, and says which notifications matter. `dump`, `apply` and
//! `watch` are loops over the kinds (`kind`). The modules `wire` and `socket` below them know no kind of object.

mod addr;
mod apply;
mod command;
mod devices;
mod dump;
mod echo;
mod error;
mod fdb;
mod filter;
mod firewall;
#[cfg(fuzzing)]
pub mod fuzz;
mod iptables;
mod kind;
mod link;
mod names;
mod neigh;
mod nexthop;
mod nft;
pub mod packet;
mod reading;
mod route;
mod rule;
mod socket;
mod sysctl;
mod tools;
mod walk;
mod watch;
mod way;
mod wire;

pub use dump::Seen;
pub use error::{Cause, Error, remedy};
pub use filter::Interest;
pub use iptables::LegacyWatch;
pub use kind::Outcome;
pub use names::{AbstractName, abstract_names};
pub use nft::FirewallWatch;
pub use route::Lookup;
pub use sysctl::SYSCTLS;
pub use tools::{tool_dirs, xtables_lock};
pub use watch::{Change, Event, Filter, Watch};

/// Address families of the sockets that this crate opens (socket(2)).
pub const SOCKET_FAMILIES: [i32; 2] = [libc::AF_NETLINK, libc::AF_PACKET];

/// Access to the kernel of the network namespace in which it was opened. It has one owner and needs no locks.
pub struct Kernel {
    netlink: socket::Netlink,
    firewall: firewall::Firewall,
    echoes: echo::Echoes,
}

/// Oldest supported Linux version; it has strict dumps, next hop objects and their monitor group.
const OLDEST: (u32, u32) = (5, 4);

impl Kernel {
    /// Opens the netlink socket. This needs no capability; changes need `CAP_NET_ADMIN`, see [`Self::check_right`].
    /// Fails with [`Cause::TooOld`] on Linux before 5.4, and if the socket cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if version(&release).is_some_and(|version| version < OLDEST) {
            return Err(Error::new("start", Cause::TooOld(release.trim().into())));
        }
        Ok(Self {
            netlink: socket::Netlink::open()?,
            firewall: Default::default(),
            echoes: Default::default(),
        })
    }

    /// Fails if this process may not change the network. The kernel is asked, since a capability counts only in the
    /// user namespace that owns the network namespace. The request names no address, and the kernel checks the
    /// capability before it looks for one.
    pub fn check_right(&mut self) -> Result<(), Error> {
        let asked = self.netlink.ask(&mut addr::none_to_add(), |_| {});
        let denied = asked.err().map(|cause| Error::new("change the network of this node", cause));
        denied.filter(Error::is_denial).map_or(Ok(()), Err)
    }
}

/// Returns the major and minor number of a release such as `6.1.0-18-amd64`.
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
