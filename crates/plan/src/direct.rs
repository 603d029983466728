//! Which peers are on the uplink's own layer-2 segment, by address: the same answer that the kernel's route lookup
//! gives, without asking it once per peer. Evidence beyond addresses (ARP, probes) is not this file's.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::LinkName;
use crate::input::Underlay;

/// The underlay's routes, ready for longest-prefix matches.
pub(crate) struct OnLink {
    /// By descending prefix length; within one length sorted by address, and of equal destinations the first counts.
    lengths: Vec<(u8, Vec<(IpNet, bool)>)>,
}

impl OnLink {
    pub(crate) fn new(underlay: &Underlay, uplink: LinkName) -> Self {
        let mut routes: Vec<(IpNet, bool)> = underlay
            .routes
            .iter()
            .map(|route| (route.destination, route.gateway.is_none() && route.link == Some(uplink)))
            .collect();
        routes.sort_by_key(|(destination, _)| (std::cmp::Reverse(destination.prefix_len()), *destination));
        routes.dedup_by_key(|(destination, _)| *destination);
        let chunks = routes.chunk_by(|a, b| a.0.prefix_len() == b.0.prefix_len());
        Self { lengths: chunks.map(|chunk| (chunk[0].0.prefix_len(), chunk.to_vec())).collect() }
    }

    /// Does the best route to that address lead out of the uplink without a gateway?
    pub(crate) fn reaches(&self, address: IpAddr) -> bool {
        let candidates = self.lengths.iter().filter_map(|(length, routes)| {
            let destination = IpNet::new(address, *length).ok()?.trunc();
            let at = routes.binary_search_by(|(other, _)| other.cmp(&destination)).ok()?;
            Some(routes[at].1)
        });
        candidates.into_iter().next().unwrap_or(false)
    }
}

/// The interface whose segment that address is on, by the best route to it.
pub(crate) fn segment_of(underlay: &Underlay, address: IpAddr) -> Option<LinkName> {
    let covering = underlay.routes.iter().filter(|route| route.destination.contains(&address));
    // Of equal ones the kernel takes the first, and `max_by_key` the last.
    let best = covering.rev().max_by_key(|route| route.destination.prefix_len())?;
    best.link.filter(|_| best.gateway.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::RouteFacts;

    #[test]
    fn the_longest_prefix_decides() {
        let route = |destination: &str, gateway: Option<&str>, link: &str| RouteFacts {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            link: Some(link.parse().unwrap()),
        };
        let routes = vec![
            route("0.0.0.0/0", Some("192.0.2.1"), "eth0"),
            route("192.0.2.0/24", None, "eth0"),
            route("192.0.2.7/32", Some("192.0.2.1"), "eth0"),
            route("198.51.100.0/24", None, "eth1"),
            route("2001:db8::/64", None, "eth0"),
        ];
        let underlay = Underlay { routes, ..Default::default() };
        let on_link = OnLink::new(&underlay, "eth0".parse().unwrap());
        for (address, expected) in [
            ("192.0.2.9", true),
            ("192.0.2.7", false),
            ("203.0.113.1", false),
            ("198.51.100.2", false),
            ("2001:db8::5", true),
            ("2001:db8:1::5", false),
        ] {
            assert_eq!(on_link.reaches(address.parse().unwrap()), expected, "{address}");
        }
        for (address, expected) in [
            ("192.0.2.9", Some("eth0")),
            ("192.0.2.7", None),
            ("203.0.113.1", None),
            ("198.51.100.2", Some("eth1")),
        ] {
            let link = segment_of(&underlay, address.parse().unwrap());
            assert_eq!(link.as_ref().map(LinkName::as_str), expected, "{address}");
        }
    }
}
