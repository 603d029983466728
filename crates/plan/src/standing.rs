//! Finds the peers that the kernel reaches directly now, whichever program wrote the routes. A peer about which nothing
//! is known keeps this path.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::marks::{NEXTHOPS, PROTOCOL};
use crate::name::LinkName;
use crate::state::{RoutePath, State};

/// Route through the uplink to a pod subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DirectRoute {
    pub(crate) subnet: IpNet,
    pub(crate) next_hop: IpAddr,
}

/// Returns the routes to pod subnets that lead straight to a node through the uplink. Only our table counts, since pods'
/// packets meet its routes.
pub(crate) fn standing(observed: &State, table: u32, uplink: LinkName) -> Vec<DirectRoute> {
    let next_hop = |path| match path {
        RoutePath::Via { gateway, link, .. } => Some((gateway, link)),
        RoutePath::Nexthop(id) => {
            let object =
                &observed.nexthops[observed.nexthops.binary_search_by_key(&id, |object| object.id).ok()?];
            Some((object.gateway, object.link))
        }
        _ => None,
    };
    let routes = observed.routes.iter().filter(|route| (route.table, route.metric) == (table, 0));
    let routes = routes.filter_map(|route| {
        let (next_hop, _) = next_hop(route.path).filter(|(_, link)| *link == uplink)?;
        Some(DirectRoute { subnet: route.destination, next_hop })
    });
    routes.collect()
}

/// Returns true if the kernel holds next hop objects of ours, through which our routes lead.
pub(crate) fn has_nexthops(observed: &State) -> bool {
    observed.nexthops.iter().any(|row| NEXTHOPS.contains(&row.id) && row.protocol == PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{MAIN_TABLE, Nexthop, Route};

    #[test]
    fn any_route_through_the_uplink_counts_as_direct() {
        let route = |destination: &str, path, protocol, metric| Route {
            table: if destination.starts_with("10.245") { 500 } else { MAIN_TABLE },
            destination: destination.parse().unwrap(),
            path,
            protocol,
            metric,
            unknown: None,
        };
        let [uplink, tunnel] = ["eth0", "flannel.1"].map(|name| name.parse::<LinkName>().unwrap());
        let via = |link| RoutePath::Via { gateway: [192, 0, 2, 9].into(), link, onlink: false };
        let object = |id, link| Nexthop {
            id,
            gateway: [192, 0, 2, 9].into(),
            link,
            onlink: false,
            protocol: 84,
            unknown: None,
        };
        let observed = State {
            nexthops: vec![object(1, uplink), object(2, tunnel)].into(),
            routes: vec![
                route("10.244.1.0/24", via(uplink), 84, 0),
                route("10.244.2.0/24", via(uplink), 3, 0),
                route("10.244.3.0/24", RoutePath::Nexthop(1), 84, 0),
                route("10.244.4.0/24", RoutePath::Nexthop(2), 84, 0),
                route("10.244.5.0/24", via(tunnel), 84, 0),
                route("10.244.6.0/24", via(uplink), 84, 100),
                route("10.244.7.0/24", RoutePath::Unreachable, 84, 0),
                route("10.245.1.0/24", via(uplink), 84, 0),
            ]
            .into(),
            ..State::default()
        };
        let found = |table| -> Vec<String> {
            let rows = standing(&observed, table, uplink).into_iter();
            rows.map(|row| format!("{} {}", row.subnet, row.next_hop)).collect()
        };
        assert_eq!(found(500), ["10.245.1.0/24 192.0.2.9"]);
        assert_eq!(
            found(MAIN_TABLE),
            ["10.244.1.0/24 192.0.2.9", "10.244.2.0/24 192.0.2.9", "10.244.3.0/24 192.0.2.9"]
        );
    }
}
