//! Which way a peer goes that may go either way: by the verdict, and while there is none as it stands in the kernel. It makes
//! no verdicts.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::LinkName;
use crate::input::{DirectRoute, Underlay};
use crate::verdict::{Finding, Verdict, Way};

/// What is known of the peers, ready to be looked up.
pub(super) struct Ways<'a> {
    /// By subnet.
    verdicts: Vec<&'a Verdict>,
    standing: Vec<DirectRoute>,
}

impl<'a> Ways<'a> {
    /// What was proven through another uplink is none of it.
    pub(super) fn new(underlay: &'a Underlay, uplink: LinkName) -> Self {
        let verdicts = underlay.verdicts.iter().filter(|verdict| verdict.uplink == uplink);
        let (mut verdicts, mut standing) = (verdicts.collect::<Vec<_>>(), underlay.standing.clone());
        verdicts.sort_unstable_by_key(|verdict| verdict.subnet);
        standing.sort_unstable();
        Self { verdicts, standing }
    }

    /// Without evidence what stands stays; where nothing stands the tunnel is the safe one.
    pub(super) fn way(&self, subnet: IpNet, public_ip: IpAddr) -> Way {
        let proven = self.verdict(subnet, public_ip).and_then(|verdict| verdict.way);
        let stands = || if self.stands(subnet, public_ip) { Way::Direct } else { Way::Tunnel };
        proven.unwrap_or_else(stands)
    }

    /// Does a direct route to it stand in the kernel?
    pub(super) fn stands(&self, subnet: IpNet, public_ip: IpAddr) -> bool {
        self.standing.binary_search(&DirectRoute { subnet, next_hop: public_ip }).is_ok()
    }

    /// What is wrong with the way to that peer.
    pub(super) fn fault(&self, subnet: IpNet, public_ip: IpAddr) -> Option<Finding> {
        let finding = self.verdict(subnet, public_ip)?.finding;
        finding.is_fault().then_some(finding)
    }

    fn verdict(&self, subnet: IpNet, public_ip: IpAddr) -> Option<&Verdict> {
        let at = self.verdicts.binary_search_by_key(&subnet, |verdict| verdict.subnet).ok()?;
        Some(self.verdicts[at]).filter(|verdict| verdict.node == public_ip)
    }
}
