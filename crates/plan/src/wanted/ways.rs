//! Choice between direct and tunnel for a peer that can be reached both ways. The verdict decides; without one, the path in the
//! kernel stays.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::name::LinkName;
use crate::standing::DirectRoute;
use crate::verdict::{Finding, PreferredPath, Verdict};

/// Verdicts and direct routes of the peers, sorted for lookup.
pub(super) struct Ways<'a> {
    /// Verdicts, sorted by subnet.
    verdicts: Vec<&'a Verdict>,
    /// Direct routes in the kernel, sorted.
    standing: Vec<DirectRoute>,
}

impl<'a> Ways<'a> {
    /// Creates the lookup. Verdicts that were found through another uplink are left out.
    pub(super) fn new(verdicts: &'a [Verdict], mut standing: Vec<DirectRoute>, uplink: LinkName) -> Self {
        let verdicts = verdicts.iter().filter(|verdict| verdict.uplink == uplink);
        let mut verdicts: Vec<_> = verdicts.collect();
        verdicts.sort_unstable_by_key(|verdict| verdict.subnet);
        standing.sort_unstable();
        Self { verdicts, standing }
    }

    /// Returns the path for a peer. Without evidence the path in the kernel stays; without a route there, the tunnel is the
    /// safe choice.
    pub(super) fn way(&self, subnet: IpNet, public_ip: IpAddr) -> PreferredPath {
        let proven = self.verdict(subnet, public_ip).and_then(|verdict| verdict.way);
        let stands =
            || if self.stands(subnet, public_ip) { PreferredPath::Direct } else { PreferredPath::Tunnel };
        proven.unwrap_or_else(stands)
    }

    /// Returns true if the kernel has a direct route to the peer.
    pub(super) fn stands(&self, subnet: IpNet, public_ip: IpAddr) -> bool {
        self.standing.binary_search(&DirectRoute { subnet, next_hop: public_ip }).is_ok()
    }

    /// Returns the fault of the peer, if its finding is one.
    pub(super) fn fault(&self, subnet: IpNet, public_ip: IpAddr) -> Option<Finding> {
        let finding = self.verdict(subnet, public_ip)?.finding;
        finding.is_fault().then_some(finding)
    }

    /// Returns the verdict on the peer, if it is about this underlay address.
    fn verdict(&self, subnet: IpNet, public_ip: IpAddr) -> Option<&Verdict> {
        let at = self.verdicts.binary_search_by_key(&subnet, |verdict| verdict.subnet).ok()?;
        Some(self.verdicts[at]).filter(|verdict| verdict.node == public_ip)
    }
}
