//! Next hop objects for the routes of a large cluster. The kernel compares each new IPv4 route through a device with all routes
//! through it that have another gateway. Ten thousand such routes take a second; with objects they take a tenth of it. Smaller
//! clusters keep plain routes, in flannel's shape, and so does IPv6, which has no such cost.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};

use crate::marks::{NEXTHOPS, PROTOCOL};
use crate::state::{Nexthop, Route, RoutePath};

/// Number of routes above which objects are used.
const USE_ABOVE: usize = 2000;
/// Number of routes below which objects are given up again. The distance keeps a cluster of about that size from alternating.
const KEEP_FROM: usize = 1000;

/// Replaces the gateways of the routes by objects and returns the objects, if there are enough routes. `already` is true if the
/// kernel's routes use objects now. An object's id is the number of its subnet in the network, so it never changes.
pub(super) fn use_nexthops(network: Option<Ipv4Net>, already: bool, routes: &mut [Route]) -> Vec<Nexthop> {
    let Some(network) = network else { return Vec::new() };
    let many = if already { KEEP_FROM } else { USE_ABOVE + 1 };
    if routes.iter().filter(|route| by_gateway(route).is_some()).count() < many {
        return Vec::new();
    }
    let (mut taken, mut objects) = (BTreeSet::new(), Vec::new());
    for route in routes {
        let Some((subnet, RoutePath::Via { gateway, link, onlink })) = by_gateway(route) else { continue };
        let id = id(network, subnet);
        // Subnets of different sizes may have the same number; the second route then stays plain.
        if taken.insert(id) {
            objects.push(Nexthop { id, gateway, link, onlink, protocol: PROTOCOL, unknown: None });
            route.path = RoutePath::Nexthop(id);
        }
    }
    objects
}

/// Returns subnet and path of an IPv4 route with a gateway.
fn by_gateway(route: &Route) -> Option<(Ipv4Net, RoutePath)> {
    match (route.destination, route.path) {
        (IpNet::V4(subnet), path @ RoutePath::Via { .. }) => Some((subnet, path)),
        _ => None,
    }
}

/// Returns the object's id: the subnet's number in the network, shifted into [`NEXTHOPS`].
fn id(network: Ipv4Net, subnet: Ipv4Net) -> u32 {
    let offset = u32::from(subnet.network()).wrapping_sub(network.network().into());
    let number = offset.checked_shr(32 - u32::from(subnet.prefix_len())).unwrap_or_default();
    NEXTHOPS.start() + number % (NEXTHOPS.end() - NEXTHOPS.start() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MAIN_TABLE;

    fn routes(count: usize) -> Vec<Route> {
        let route = |number: usize| {
            let first = std::net::Ipv4Addr::from(0x0a00_0000 + ((number as u32) << 8));
            let path =
                RoutePath::Via { gateway: first.into(), link: "flannel.1".parse().unwrap(), onlink: true };
            let destination = IpNet::new(first.into(), 24).unwrap();
            Route { table: MAIN_TABLE, destination, path, protocol: PROTOCOL, metric: 0, unknown: None }
        };
        (1..=count).map(route).collect()
    }

    fn used(already: bool, routes: &mut [Route]) -> Vec<Nexthop> {
        use_nexthops(Some("10.0.0.0/8".parse().unwrap()), already, routes)
    }

    #[test]
    fn next_hop_objects_start_above_2000_routes_and_end_below_1000() {
        for (count, already, objects) in
            [(2000, false, 0), (2001, false, 2001), (2000, true, 2000), (1000, true, 1000), (999, true, 0)]
        {
            let mut routes = routes(count);
            assert_eq!(used(already, &mut routes).len(), objects, "{count} {already}");
            let by_object = routes.iter().filter(|route| matches!(route.path, RoutePath::Nexthop(_)));
            assert_eq!(by_object.count(), objects);
        }
    }

    #[test]
    fn a_next_hop_object_keeps_its_id_when_peers_leave() {
        let (mut all, mut some) = (routes(3000), routes(3000).split_off(500));
        let all = used(true, &mut all);
        assert_eq!(used(true, &mut some)[..], all[500..]);
        assert!(all.iter().all(|object| NEXTHOPS.contains(&object.id) && object.onlink));
    }

    #[test]
    fn a_route_with_a_colliding_id_stays_plain() {
        let mut routes = routes(2001);
        // 10.0.0.128/25 has the number 1 among the /25, as 10.0.1.0/24 has among the /24.
        routes[1].destination = "10.0.0.128/25".parse().unwrap();
        assert_eq!(used(false, &mut routes).len(), 2000);
        assert!(matches!(routes[1].path, RoutePath::Via { .. }));
        // A subnet outside the network gets a valid id, too.
        routes[2].destination = "9.0.0.0/24".parse().unwrap();
        routes[3].destination = "0.0.0.0/0".parse().unwrap();
        assert!(used(false, &mut routes).iter().all(|object| NEXTHOPS.contains(&object.id)));
    }

    #[test]
    fn ipv6_routes_have_no_next_hop_objects() {
        let mut routes = routes(2001);
        for (number, route) in routes.iter_mut().enumerate() {
            route.destination = format!("fd00:0:0:{number:x}::/64").parse().unwrap();
        }
        assert_eq!(used(true, &mut routes), []);
    }
}
