//! Which interface carries the traffic between nodes, and which of its addresses: facts and flags in, choice and reason
//! out (flannel-compat 3). It asks the kernel nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::LinkName;
use crate::input::{AddressFacts, Family, LinkFacts, Underlay, Uplink};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `--iface` with a name.
    Link(LinkName),
    /// `--iface` with an address, or `--public-ip` without `--iface`.
    Address(IpAddr),
    /// Nothing: the default route's interface.
    DefaultRoute,
}

/// The choice with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub uplink: Uplink,
    pub reason: String,
}

/// The families that are configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Families {
    fn has(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }
}

/// Why no interface can be chosen, and what is there instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkError(String);

impl fmt::Display for UplinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UplinkError {}

/// Answers one ask.
pub fn choose(underlay: &Underlay, ask: &Ask, families: Families) -> Result<Choice, UplinkError> {
    pick(underlay, ask, families)
        .map_err(|why| UplinkError(format!("{why}: name one with --iface; {}", inventory(underlay))))
}

fn pick(underlay: &Underlay, ask: &Ask, families: Families) -> Result<Choice, String> {
    let (link, fixed, reason) = match ask {
        Ask::Link(name) => (find(underlay, *name)?, None, format!("named by --iface {name}")),
        Ask::Address(address) => {
            let owner = underlay.addresses.iter().find(|facts| facts.address.addr() == *address);
            let owner = owner.ok_or_else(|| format!("no interface has {address}"))?;
            (find(underlay, owner.link)?, Some(*address), format!("it has the address {address}"))
        }
        Ask::DefaultRoute => {
            let name = default_route(underlay, families)?;
            (find(underlay, name)?, None, "the default route leaves through it".into())
        }
    };
    if link.mtu == 0 {
        return Err(format!("{} has an MTU of 0", link.name));
    }
    let address = |family: Family| -> Result<Option<IpAddr>, String> {
        match fixed {
            _ if !families.has(family) => Ok(None),
            Some(address) if Family::of(address) == family => Ok(Some(address)),
            _ => best_address(underlay, link.name, family).map(Some),
        }
    };
    let (ipv4, ipv6) = (address(Family::Ipv4)?.and_then(v4), address(Family::Ipv6)?.and_then(v6));
    Ok(Choice { uplink: Uplink { link: link.name, mtu: link.mtu, ipv4, ipv6 }, reason })
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(address) = address { Some(address) } else { None }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(address) = address { Some(address) } else { None }
}

fn find(underlay: &Underlay, name: LinkName) -> Result<&LinkFacts, String> {
    underlay.link(name).ok_or_else(|| format!("there is no interface {name}"))
}

/// The interface of the first default route; in dual stack both families must agree.
fn default_route(underlay: &Underlay, families: Families) -> Result<LinkName, String> {
    let of = |family: Family| {
        let mut defaults = underlay.routes.iter().filter(|route| {
            route.destination.prefix_len() == 0 && Family::of(route.destination.addr()) == family
        });
        match defaults.next() {
            None => Err(format!("there is no {family} default route")),
            Some(route) => {
                route.link.ok_or_else(|| format!("the {family} default route has several next hops"))
            }
        }
    };
    match (families.ipv4, families.ipv6) {
        (true, true) => {
            let (v4, v6) = (of(Family::Ipv4)?, of(Family::Ipv6)?);
            if v4 == v6 {
                return Ok(v4);
            }
            Err(format!("the IPv4 default route leaves through {v4}, the IPv6 one through {v6}"))
        }
        (_, ipv6) => of(if ipv6 { Family::Ipv6 } else { Family::Ipv4 }),
    }
}

/// flannel-compat 3.3: global before link-local, permanent before not, lasting before temporary; none deprecated.
fn best_address(underlay: &Underlay, link: LinkName, family: Family) -> Result<IpAddr, String> {
    let usable = |facts: &&AddressFacts| {
        facts.link == link && Family::of(facts.address.addr()) == family && is_usable(facts)
    };
    let rank = |facts: &&AddressFacts| (is_link_local(&facts.address), !facts.permanent, facts.temporary);
    let best = underlay.addresses.iter().filter(usable).min_by_key(rank);
    best.map(|facts| facts.address.addr()).ok_or_else(|| format!("{link} has no usable {family} address"))
}

fn is_usable(facts: &AddressFacts) -> bool {
    let address = facts.address.addr();
    !(facts.deprecated || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

fn is_link_local(address: &IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// What an error adds, so that the reader need not look it up: not the many that only a pod is behind.
fn inventory(underlay: &Underlay) -> String {
    let of = |link: &LinkFacts| {
        let usable = |facts: &&AddressFacts| {
            facts.link == link.name && is_usable(facts) && !is_link_local(&facts.address)
        };
        let addresses = underlay.addresses.iter().filter(usable);
        let addresses: Vec<String> = addresses.map(|facts| facts.address.addr().to_string()).collect();
        (!addresses.is_empty()).then(|| format!("{} ({})", link.name, addresses.join(", ")))
    };
    let links: Vec<String> = underlay.links.iter().filter_map(of).collect();
    if links.is_empty() {
        return "none has a usable address".into();
    }
    format!("those with addresses are: {}", links.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::RouteFacts;

    fn underlay() -> Underlay {
        let link = |name: &str, mtu| LinkFacts {
            name: name.parse().unwrap(),
            kind: "".into(),
            mac: Default::default(),
            mtu,
            up: true,
            carrier: true,
        };
        let address = |link: &str, address: &str, deprecated| AddressFacts {
            link: link.parse().unwrap(),
            address: address.parse().unwrap(),
            permanent: true,
            temporary: false,
            deprecated,
        };
        Underlay {
            links: vec![link("lo", 65536), link("eth0", 1500), link("eth1", 9000), link("bare", 1500)],
            addresses: vec![
                address("lo", "127.0.0.1/8", false),
                address("eth0", "169.254.3.4/16", false),
                address("eth0", "192.0.2.9/24", true),
                address("eth0", "192.0.2.1/24", false),
                address("eth1", "198.51.100.1/24", false),
                address("eth0", "fe80::1/64", false),
                address("eth0", "2001:db8::1/64", false),
            ],
            routes: vec![RouteFacts {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some("198.51.100.254".parse().unwrap()),
                link: Some("eth1".parse().unwrap()),
            }],
        }
    }

    const IPV4: Families = Families { ipv4: true, ipv6: false };
    const DUAL: Families = Families { ipv4: true, ipv6: true };

    #[test]
    fn the_default_route_decides_when_nothing_is_named() {
        let choice = choose(&underlay(), &Ask::DefaultRoute, IPV4).unwrap();
        assert_eq!(choice.uplink.link.as_str(), "eth1");
        assert_eq!((choice.uplink.ipv4, choice.uplink.mtu), (Some([198, 51, 100, 1].into()), 9000));
        assert!(choose(&underlay(), &Ask::DefaultRoute, DUAL).unwrap_err().0.contains("IPv6 default route"));
    }

    #[test]
    fn a_named_interface_gives_its_best_address() {
        let choice = choose(&underlay(), &Ask::Link("eth0".parse().unwrap()), DUAL).unwrap();
        assert_eq!(choice.uplink.ipv4, Some([192, 0, 2, 1].into()));
        assert_eq!(choice.uplink.ipv6, Some("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn an_address_finds_its_interface_even_when_deprecated() {
        let choice = choose(&underlay(), &Ask::Address([192, 0, 2, 9].into()), IPV4).unwrap();
        assert_eq!((choice.uplink.link.as_str(), choice.uplink.ipv4), ("eth0", Some([192, 0, 2, 9].into())));
    }

    #[test]
    fn errors_tell_what_is_there() {
        for (ask, word) in [
            (Ask::Link("eth7".parse().unwrap()), "there is no interface eth7: "),
            (Ask::Link("bare".parse().unwrap()), "bare has no usable IPv4 address: "),
            (Ask::Address([203, 0, 113, 1].into()), "no interface has 203.0.113.1: "),
        ] {
            let error = choose(&underlay(), &ask, IPV4).unwrap_err().0;
            let rest = error.strip_prefix(word);
            let there = "name one with --iface; those with addresses are: \
                         eth0 (192.0.2.1, 2001:db8::1), eth1 (198.51.100.1)";
            assert_eq!(rest, Some(there), "{error}");
        }
        let bare = Underlay { addresses: Vec::new(), routes: Vec::new(), ..underlay() };
        let error = choose(&bare, &Ask::DefaultRoute, IPV4).unwrap_err().0;
        assert_eq!(error, "there is no IPv4 default route: name one with --iface; none has a usable address");
    }
}
