//! Looks up routes of the underlay. They show which peers are on the uplink's layer-2 segment, and the MTU of the
//! path to each. The results are those of the kernel's lookup, without a query per peer. Evidence from ARP and probes
//! belongs to `health`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::name::LinkName;
use crate::underlay::{RouteFacts, Underlay};

/// Value of each route, ready for longest-prefix matches.
pub(crate) struct LongestPrefix<T> {
    /// Routes by descending prefix length; within one length sorted by address.
    lengths: Vec<(u8, Vec<(IpNet, T)>)>,
}

impl<T: Clone> LongestPrefix<T> {
    /// Builds the table. Of equal destinations the smallest metric counts, and of equal metrics the kernel's first route.
    pub(crate) fn new<'a>(
        routes: impl Iterator<Item = &'a RouteFacts>,
        value: impl Fn(&RouteFacts) -> T,
    ) -> Self {
        let mut routes: Vec<_> =
            routes.map(|route| (route.destination, route.metric, value(route))).collect();
        routes.sort_by_key(|(destination, metric, _)| {
            (std::cmp::Reverse(destination.prefix_len()), *destination, *metric)
        });
        routes.dedup_by_key(|(destination, ..)| *destination);
        let chunks = routes.chunk_by(|a, b| a.0.prefix_len() == b.0.prefix_len());
        let rows = |chunk: &[(IpNet, u32, T)]| {
            chunk.iter().map(|(net, _, value)| (*net, value.clone())).collect::<Vec<_>>()
        };
        Self { lengths: chunks.map(|chunk| (chunk[0].0.prefix_len(), rows(chunk))).collect() }
    }

    /// Returns the value of the best route to the address.
    pub(crate) fn find(&self, address: IpAddr) -> Option<&T> {
        self.lengths.iter().find_map(|(length, routes)| {
            let destination = IpNet::new(address, *length).ok()?.trunc();
            let at = routes.binary_search_by(|(other, _)| other.cmp(&destination)).ok()?;
            Some(&routes[at].1)
        })
    }
}

/// Routes through the uplink, in the tables where the kernel looks for its segment. Routes through other devices do not
/// count, as in a kernel lookup with an output interface. Two devices may be on one segment.
pub(crate) struct OnLink(LongestPrefix<bool>);

impl OnLink {
    pub(crate) fn new(underlay: &Underlay, uplink: LinkName) -> Self {
        let through = |route: &&RouteFacts| route.hops().any(|hop| hop.link == Some(uplink));
        let is_direct =
            |route: &RouteFacts| route.hops().any(|hop| hop.link == Some(uplink) && hop.gateway.is_none());
        let routes = underlay.routes.iter().chain(&underlay.beside);
        Self(LongestPrefix::new(routes.filter(through), is_direct))
    }

    /// Returns true if the best route out of the uplink to that address has no gateway.
    pub(crate) fn reaches(&self, address: IpAddr) -> bool {
        self.0.find(address).copied().unwrap_or(false)
    }
}

/// Returns the interface on whose segment the address is, by the best route to it.
pub(crate) fn segment_of(underlay: &Underlay, address: IpAddr) -> Option<LinkName> {
    let covering = underlay.routes.iter().filter(|route| route.destination.contains(&address));
    let better = |route: &&RouteFacts| (std::cmp::Reverse(route.destination.prefix_len()), route.metric);
    let best = covering.min_by_key(better)?;
    best.link.filter(|_| best.gateway.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::underlay::RouteFacts;

    #[test]
    fn the_longest_prefix_decides() {
        let route = |destination: &str, gateway: Option<&str>, link: &str| RouteFacts {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            link: Some(link.parse().unwrap()),
            ..RouteFacts::default()
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

    #[test]
    fn a_route_of_another_interface_to_the_segment_is_ignored() {
        let route = |destination: &str, gateway: Option<&str>, link: &str, metric| RouteFacts {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            link: Some(link.parse().unwrap()),
            metric,
            ..RouteFacts::default()
        };
        let routes = vec![
            route("192.0.2.0/24", None, "eth0", 100),
            route("192.0.2.0/24", Some("192.0.2.1"), "eth1", 300),
            route("192.0.2.0/24", None, "eth1", 101),
            // A host route counts only for its own device.
            route("192.0.2.7/32", None, "eth0", 0),
            route("192.0.2.8/32", Some("192.0.2.1"), "eth1", 0),
        ];
        let underlay = Underlay { routes, ..Default::default() };
        for (uplink, on, off) in [
            ("eth0", &["192.0.2.9", "192.0.2.7", "192.0.2.8"][..], &["198.51.100.1"][..]),
            ("eth1", &["192.0.2.9", "192.0.2.7"], &["192.0.2.8", "198.51.100.1"]),
            ("eth2", &[], &["192.0.2.9"]),
        ] {
            let on_link = OnLink::new(&underlay, uplink.parse().unwrap());
            let reaches = |address: &&str| on_link.reaches(address.parse().unwrap());
            assert!(on.iter().all(reaches) && !off.iter().any(reaches), "{uplink}");
        }
    }

    #[test]
    fn a_segment_in_another_table_counts() {
        let route = |destination: &str| RouteFacts {
            destination: destination.parse().unwrap(),
            link: Some("eth0".parse().unwrap()),
            ..RouteFacts::default()
        };
        let underlay = Underlay {
            routes: vec![RouteFacts { gateway: "192.0.2.1".parse().ok(), ..route("0.0.0.0/0") }],
            beside: vec![route("192.0.2.0/24")],
            ..Default::default()
        };
        let on_link = OnLink::new(&underlay, "eth0".parse().unwrap());
        assert!(on_link.reaches("192.0.2.9".parse().unwrap()));
        assert!(!on_link.reaches("198.51.100.9".parse().unwrap()));
    }
}
