//! Choice between direct and tunnel for a peer that can be reached both ways. The evidence decides; without any, the path in the
//! kernel stays.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::health::{Finding, PeerHealth, PreferredPath};
use crate::name::LinkName;
use crate::standing::DirectRoute;

/// Health and direct routes of the peers, sorted for lookup.
pub(super) struct PreferredPaths<'a> {
    /// Health of the peers, sorted by subnet.
    healths: Vec<&'a PeerHealth>,
    /// Direct routes in the kernel, sorted.
    standing: Vec<DirectRoute>,
}

impl<'a> PreferredPaths<'a> {
    /// Creates the lookup. Findings made through another uplink are left out.
    pub(super) fn new(healths: &'a [PeerHealth], mut standing: Vec<DirectRoute>, uplink: LinkName) -> Self {
        let healths = healths.iter().filter(|health| health.uplink == uplink);
        let mut healths: Vec<_> = healths.collect();
        healths.sort_unstable_by_key(|health| health.subnet);
        standing.sort_unstable();
        Self { healths, standing }
    }

    /// Returns the path for a peer. Without evidence the path in the kernel stays; without a route there, the tunnel is the
    /// safe choice.
    pub(super) fn path_of(&self, subnet: IpNet, public_ip: IpAddr) -> PreferredPath {
        let proven = self.health(subnet, public_ip).and_then(|health| health.preferred_path);
        let in_kernel =
            || if self.has_route(subnet, public_ip) { PreferredPath::Direct } else { PreferredPath::Tunnel };
        proven.unwrap_or_else(in_kernel)
    }

    /// Returns true if the kernel has a direct route to the peer.
    pub(super) fn has_route(&self, subnet: IpNet, public_ip: IpAddr) -> bool {
        self.standing.binary_search(&DirectRoute { subnet, next_hop: public_ip }).is_ok()
    }

    /// Returns the fault of the peer, if its finding is one.
    pub(super) fn fault(&self, subnet: IpNet, public_ip: IpAddr) -> Option<Finding> {
        let finding = self.health(subnet, public_ip)?.finding;
        finding.is_fault().then_some(finding)
    }

    /// Returns the health of the peer, if it is about this underlay address.
    fn health(&self, subnet: IpNet, public_ip: IpAddr) -> Option<&PeerHealth> {
        let at = self.healths.binary_search_by_key(&subnet, |health| health.subnet).ok()?;
        Some(self.healths[at]).filter(|health| health.node == public_ip)
    }
}
