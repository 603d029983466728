//! Computes the ops that take twill off a node. With a hand-over they remove only what flannel would not have
//! written. Both are ordinary diffs, which name only what is ours.

use crate::diff::diff;
use crate::each_kind::EachKind;
use crate::name::LinkName;
use crate::op::{Object, Op};
use crate::owned::{Owned, Sweep, Writer};
use crate::state::{Kind, MAIN_TABLE, Route, RoutePath, State};
use crate::table::Table;

/// Returns the ops that remove everything that is ours.
pub fn uninstall(observed: &State, owned: &Owned) -> Vec<Op> {
    diff(&State::default(), observed, &Owned { sweep: Sweep::LeftOvers, ..owned.clone() })
}

/// Returns the ops that remove what flannel would not have written, and leave what carries its traffic. They remove
/// `unreachable` and `blackhole` routes, rules, next hop objects and source filters. They also remove all devices but
/// `own`, the devices of the config in force. Routes through next hop objects become plain ones, and all routes move to
/// the main table.
pub fn hand_over(observed: &State, owned: &Owned, own: &[LinkName]) -> Vec<Op> {
    let goes = |link: LinkName| owned.links.contains(&link) && !own.contains(&link);
    let moved = |row: &Route| {
        let path = match row.path {
            RoutePath::Unreachable | RoutePath::Blackhole => return None,
            RoutePath::Nexthop(id) => {
                let object = observed.nexthops.iter().find(|object| object.id == id)?;
                RoutePath::Via { gateway: object.gateway, link: object.link, onlink: object.onlink }
            }
            path => path,
        };
        let row = Route { table: MAIN_TABLE, path, ..row.clone() };
        row.link().is_none_or(|link| !goes(link)).then_some(row)
    };
    let mut gone = Gone { observed, goes: &goes, gone: State::default() };
    State::each_kind(&mut gone);
    let ours: Table<Route> =
        observed.routes.iter().filter(|row| row.is_ours(owned, observed)).cloned().collect();
    let desired = State { routes: ours.iter().filter_map(moved).collect(), ..State::default() };
    let nft_chains = observed.nft_chains.iter().filter(|row| row.chain.is_filter()).cloned().collect();
    let gone = State { routes: ours, nft_chains, ..gone.gone };
    diff(&desired, &gone, &Owned { sweep: Sweep::LeftOvers, ..owned.clone() })
}

/// Collects the rows that go if they are ours: those on a deleted link, and those that flannel does not write. The rows
/// that stay are left out of the comparison, since several of them may share a key.
struct Gone<'a, G> {
    observed: &'a State,
    goes: &'a G,
    gone: State,
}

impl<G: Fn(LinkName) -> bool> EachKind for Gone<'_, G> {
    fn kind<K: Kind + Into<Object>>(
        &mut self,
        table: fn(&State) -> &Table<K>,
        table_mut: fn(&mut State) -> &mut Table<K>,
    ) {
        let goes = |row: &&K| K::WRITER == Writer::Twill || row.link().is_some_and(self.goes);
        *table_mut(&mut self.gone) = table(self.observed).iter().filter(goes).cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::{NEXTHOPS, PROTOCOL};
    use crate::state::{Address, Link, LinkKind, Nexthop, Rule, Vxlan};

    fn owned() -> Owned {
        Owned {
            links: ["flannel.1", "flannel.42"].map(|name| name.parse().unwrap()).into(),
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            firewall: true,
            ..Owned::new("eth0".parse().unwrap(), MAIN_TABLE)
        }
    }

    fn device(name: &str) -> Link {
        let kind = LinkKind::Vxlan(Vxlan {
            vni: 1,
            local: [192, 0, 2, 1].into(),
            uplink: Some("eth0".parse().unwrap()),
            port: 8472,
            learning: false,
            gbp: false,
        });
        Link {
            name: name.parse().unwrap(),
            kind,
            mac: Default::default(),
            mtu: 1450,
            up: true,
            unknown: None,
        }
    }

    fn observed() -> State {
        let route = |destination: &str, path, protocol| Route {
            table: MAIN_TABLE,
            destination: destination.parse().unwrap(),
            path,
            protocol,
            metric: 0,
            unknown: None,
        };
        let via = |link: &str| RoutePath::Via {
            gateway: [10, 244, 2, 0].into(),
            link: link.parse().unwrap(),
            onlink: true,
        };
        let id = *NEXTHOPS.start();
        let rule = |protocol, priority| Rule {
            priority,
            to: "10.244.0.0/16".parse().unwrap(),
            table: 100,
            protocol,
            unknown: None,
        };
        State {
            links: vec![device("flannel.1"), device("flannel.42")].into(),
            addresses: vec![Address {
                link: "flannel.1".parse().unwrap(),
                address: "10.244.1.0/32".parse().unwrap(),
                unknown: None,
            }]
            .into(),
            nexthops: vec![Nexthop {
                id,
                gateway: [10, 244, 4, 0].into(),
                link: "flannel.1".parse().unwrap(),
                onlink: true,
                protocol: PROTOCOL,
                unknown: None,
            }]
            .into(),
            routes: vec![
                route("10.244.2.0/24", via("flannel.1"), PROTOCOL),
                route("10.244.3.0/24", RoutePath::Unreachable, PROTOCOL),
                route("10.244.4.0/24", RoutePath::Nexthop(id), PROTOCOL),
                route("10.244.5.0/24", via("flannel.42"), PROTOCOL),
                route("10.244.6.0/24", RoutePath::Blackhole, 4),
            ]
            .into(),
            rules: vec![rule(PROTOCOL, 5000), rule(4, 5001)].into(),
            ..State::default()
        }
    }

    fn lines(ops: &[Op]) -> Vec<String> {
        ops.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn uninstall_deletes_exactly_our_objects() {
        let ops = lines(&uninstall(&observed(), &owned()));
        assert_eq!(
            ops[..2],
            ["- rule priority 5000 to 10.244.0.0/16 lookup 100", "- route unreachable 10.244.3.0/24"]
        );
        assert_eq!(ops.len(), 4, "what is on the devices goes with them: {ops:#?}");
    }

    #[test]
    fn routes_are_handed_over_in_the_main_table_before_deletion() {
        let [owned, observed] = [(); 2].map(|()| (owned(), observed())).map(|(owned, observed)| {
            let routes = observed.routes.iter().take(1).map(|row| Route { table: 100, ..row.clone() });
            let rules = observed.rules.iter().take(1).cloned().collect();
            let state =
                State { routes: routes.collect(), rules, links: observed.links.clone(), ..State::default() };
            (Owned { table: 100, ..owned }, state)
        });
        assert_eq!(
            lines(&hand_over(
                &observed.1,
                &owned.0,
                &["flannel.1", "flannel.42"].map(|name| name.parse().unwrap())
            )),
            [
                "+ route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
                "- rule priority 5000 to 10.244.0.0/16 lookup 100",
                "- route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink table 100",
            ]
        );
    }

    #[test]
    fn handing_over_leaves_flannels_objects() {
        assert_eq!(
            lines(&hand_over(&observed(), &owned(), &["flannel.1".parse().unwrap()])),
            [
                "~ route 10.244.4.0/24 via 10.244.4.0 dev flannel.1 onlink",
                "- rule priority 5000 to 10.244.0.0/16 lookup 100",
                "- route unreachable 10.244.3.0/24",
                "- nexthop id 1953955840 via 10.244.4.0 dev flannel.1 onlink",
                "- link flannel.42 address 00:00:00:00:00:00 mtu 1450 type vxlan id 1 local 192.0.2.1 dstport 8472 dev eth0 nolearning",
            ]
        );
    }
}
