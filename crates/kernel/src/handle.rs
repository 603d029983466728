//! Handle to the kernel: its sockets, the last reading of the traffic rules, and the changes of ours that the monitor
//! expects. `dump`, `apply`, `packet` and `watch` use it.

use plan::Family;

use crate::addr;
use crate::echo::Echoes;
use crate::error::{Cause, Error};
use crate::firewall::Firewall;
use crate::nft::FirewallWatch;
use crate::socket::Netlink;

/// Access to the kernel of the network namespace in which it was opened. It has one owner and needs no locks.
pub struct Kernel {
    pub(crate) netlink: Netlink,
    pub(crate) firewall: Firewall,
    pub(crate) echoes: Echoes,
    /// Tables in which the kernel found segments of the uplink last: a route that has gone may come back there.
    pub(crate) beside: Vec<u32>,
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
        let (netlink, firewall, echoes) = (Netlink::open()?, Firewall::default(), Echoes::default());
        Ok(Self { netlink, firewall, echoes, beside: Vec::new() })
    }

    /// Fails if this process may not change the network. The kernel is asked, since a capability counts only in the
    /// user namespace that owns the network namespace. The request names no address, and the kernel checks the
    /// capability before it looks for one.
    pub fn check_right(&mut self) -> Result<(), Error> {
        let asked = self.netlink.ask(&mut addr::none_to_add(), |_| {});
        let denied = asked.err().map(|cause| Error::new("change the network of this node", cause));
        denied.filter(Error::is_denial).map_or(Ok(()), Err)
    }

    /// Marks the last reading of the traffic rules as outdated; the next dump reads them again.
    pub fn forget_firewall(&mut self) {
        self.firewall.forget();
    }

    /// Keeps the traffic rules of these families in force for two more minutes. Only rules that need a daemon end by
    /// themselves. Fails if a table or its set `keeper` is missing.
    pub fn keep_rules(&mut self, families: &[Family]) -> Result<(), Error> {
        self.firewall.keep(families).map_err(|cause| Error::new("keep the traffic rules in force", cause))
    }

    /// Opens the monitor socket of nf_tables. Fails if the kernel has no nf_tables.
    pub fn watch_firewall(&self) -> Result<FirewallWatch, Error> {
        self.firewall.watch()
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
