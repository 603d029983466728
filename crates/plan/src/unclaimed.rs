//! Finds objects in our networks that look like flannel's but belong to no program known here. They are reported with the
//! command that removes them, and never touched (ARCHITECTURE.md, invariant 6).

use crate::owned::Owned;
use crate::state::{NftChainName, NftTable, State};
use crate::underlay::Underlay;
use crate::warning::{Unclaimed, Warning};

/// Start of the name of every flannel device; its backend's own suffix follows.
const FLANNEL: &str = "flannel";

/// Returns one warning for each such route, device or chain.
pub fn unclaimed(desired: &State, observed: &State, owned: &Owned, underlay: &Underlay) -> Vec<Warning> {
    let at_no_desired_key = desired.routes.union(&observed.routes).filter(|(want, _)| want.is_empty());
    let routes = at_no_desired_key
        .flat_map(|(_, have)| have)
        .filter(|row| row.resembles_flannels(owned, observed))
        .map(|row| Unclaimed::Route(row.clone()));
    let strange = underlay.addresses.iter().filter(|facts| {
        facts.link.as_str().starts_with(FLANNEL)
            && !owned.links.contains(&facts.link)
            && owned.all_networks().any(|network| network.contains(&facts.address.addr()))
    });
    let chains = observed.nft_chains.iter().filter_map(|row| match &row.chain {
        NftChainName::Other(name) => Some(Unclaimed::Chain(NftTable { family: row.family }, name.clone())),
        _ => None,
    });
    let all = routes.chain(strange.map(|facts| Unclaimed::Device(facts.link))).chain(chains);
    let mut warnings: Vec<Warning> = all.map(Warning::Unclaimed).collect();
    warnings.sort_unstable();
    warnings.dedup();
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owned::{Sweep, Writer};
    use crate::state::{MAIN_TABLE, Route, RoutePath};
    use crate::underlay::AddressFacts;

    fn owned() -> Owned {
        Owned {
            links: vec!["flannel.1".parse().unwrap()],
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            former_networks: vec!["10.99.0.0/16".parse().unwrap()],
            former_writer: Writer::Flannel,
            firewall: true,
            sweep: Sweep::LeftOvers,
            ..Owned::new("eth0".parse().unwrap(), MAIN_TABLE)
        }
    }

    fn route(destination: &str, gateway: [u8; 4], link: &str, onlink: bool) -> Route {
        let (gateway, link) = (gateway.into(), link.parse().unwrap());
        let path = RoutePath::Via { gateway, link, onlink };
        Route {
            table: MAIN_TABLE,
            destination: destination.parse().unwrap(),
            path,
            protocol: 3,
            metric: 0,
            unknown: None,
        }
    }

    #[test]
    fn flannels_objects_go_and_similar_ones_are_reported() {
        let desired = route("10.244.5.0/24", [192, 0, 2, 9], "eth0", false);
        let rows = vec![
            route("10.244.2.0/24", [192, 0, 2, 2], "eth0", false),
            route("10.244.3.0/24", [10, 244, 3, 0], "flannel.1", true),
            route("10.244.3.0/24", [10, 244, 3, 1], "flannel.1", true),
            route("10.99.3.0/24", [10, 99, 3, 0], "flannel.1", true),
            route("10.244.4.0/24", [192, 0, 2, 2], "eth1", false),
            desired.clone(),
        ];
        let [desired, observed] =
            [vec![desired], rows.clone()].map(|routes| State { routes: routes.into(), ..State::default() });
        let told = unclaimed(&desired, &observed, &owned(), &Underlay::default());
        let expected: Vec<Warning> =
            [&rows[0], &rows[2]].map(|row| Warning::Unclaimed(Unclaimed::Route(row.clone()))).into();
        assert_eq!(told, expected);
        let deleted = crate::diff(&desired, &observed, &owned()).len();
        assert_eq!(deleted, 2);
        let later = Owned { former_writer: Writer::Twill, ..owned() };
        assert_eq!(crate::diff(&desired, &observed, &later), []);
        assert_eq!(unclaimed(&desired, &observed, &later, &Underlay::default()).len(), 4);
    }

    #[test]
    fn a_device_of_another_flannel_backend_is_reported() {
        let facts = |link: &str, address: &str| AddressFacts {
            link: link.parse().unwrap(),
            address: address.parse().unwrap(),
            permanent: true,
            temporary: false,
            deprecated: false,
            tentative: false,
            duplicate: false,
        };
        let addresses = vec![
            facts("flannel.1", "10.244.1.0/32"),
            facts("flannel.ipip", "10.244.1.0/32"),
            facts("flannel.7", "10.250.1.0/32"),
            facts("cni0", "10.244.1.1/24"),
        ];
        let underlay = Underlay { addresses, ..Underlay::default() };
        let told = unclaimed(&State::default(), &State::default(), &owned(), &underlay);
        assert_eq!(told, [Warning::Unclaimed(Unclaimed::Device("flannel.ipip".parse().unwrap()))]);
        assert!(told[0].to_string().contains("ip link del flannel.ipip"), "{}", told[0]);
    }
}
