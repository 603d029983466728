//! Finds the uplink by one criterion (flannel-compat 3.2 to 3.4): name, address, pattern, the kernel's path to an
//! address, or the default route. The result is an interface with its addresses, or the reason for the failure. The
//! parent module decides which criterion counts.

use std::net::IpAddr;

use regex::bytes::{Regex, RegexBuilder};

use super::{Ask, Attempt, By, Reach, among_pods, mtu, rank};
use crate::config::Config;
use crate::family::Family;
use crate::ip_address::is_link_local;
use crate::name::LinkName;
use crate::node::Uplink;
use crate::underlay::{AddressFacts, LinkFacts, RouteFacts, Underlay};

pub(super) struct Lookup<'a> {
    pub(super) config: &'a Config,
    pub(super) underlay: &'a Underlay,
    pub(super) ask: &'a Ask,
}

/// Interface, the addresses of it that were asked for, and the reason for this interface.
struct Found<'a> {
    link: &'a LinkFacts,
    fixed: Vec<IpAddr>,
    why: String,
}

impl<'a> Lookup<'a> {
    /// Returns the uplink with the reason for it. The error says why there is none.
    pub(super) fn answer(&self, attempt: &Attempt<'_>) -> Result<(Uplink, String), String> {
        let flag = &attempt.flag;
        let found = match attempt.by {
            By::Name(name) => self.by_name(name, flag),
            By::Address(address) => self.by_address(address, flag),
            By::Pattern(pattern) => self.by_pattern(pattern, flag),
            By::Reach(reach) => self.by_route(reach, flag),
            By::DefaultRoute => self.by_default_route(),
        };
        self.complete(found?)
    }

    fn by_name(&self, name: &str, flag: &str) -> Result<Found<'a>, String> {
        let link = self.underlay.links.iter().find(|link| link.name.as_str() == name);
        let link = link.ok_or("there is no such interface")?;
        Ok(Found { link, fixed: Vec::new(), why: format!("named by {flag}") })
    }

    fn by_address(&self, address: IpAddr, flag: &str) -> Result<Found<'a>, String> {
        let family = Family::of(address);
        if self.config.network(family).is_none() {
            return Err(format!("{family} is off in the network config"));
        }
        let asked = (flag.to_owned(), address);
        let public = self.ask.public(Family::Ipv6).filter(|_| self.config.families().count() == 2);
        let fixed = match (family, public) {
            (Family::Ipv4, Some(public)) => vec![asked, public],
            (Family::Ipv6, Some(public)) => vec![public],
            (Family::Ipv6, None) if self.config.ipv4.is_some() => {
                return Err("both families are on, and an IPv6 address finds only one: name the interface or its IPv4 \
                            address, or give --public-ipv6 too"
                    .into());
            }
            _ => vec![asked],
        };
        let mut owners = Vec::new();
        for (named, address) in &fixed {
            let what = if named == flag { "it" } else { named };
            let owner = self.underlay.addresses.iter().find(|facts| facts.address.addr() == *address);
            owners.push(owner.ok_or_else(|| format!("no interface has {what}"))?.link);
        }
        if let [first, other] = owners[..]
            && first != other
        {
            return Err(format!("{first} has it, but {other} has {}", fixed[1].0));
        }
        let (flags, fixed): (Vec<_>, Vec<_>) = fixed.into_iter().unzip();
        let why = format!("it has {}", flags.join(" and "));
        Ok(Found { link: self.link(owners[0])?, fixed, why })
    }

    /// Matches addresses before names. In dual stack one interface must have a matching address of each family
    /// (flannel-faults 84).
    fn by_pattern(&self, pattern: &str, flag: &str) -> Result<Found<'a>, String> {
        let regex = compile(pattern)?;
        let matches = |text: &str| regex.is_match(text.as_bytes());
        for link in &self.underlay.links {
            let of = |family| self.usable(link.name, family).into_iter().find(|ip| matches(&ip.to_string()));
            let fixed: Option<Vec<IpAddr>> = self.config.families().map(of).collect();
            if let Some(fixed) = fixed {
                let texts: Vec<String> = fixed.iter().map(ToString::to_string).collect();
                return Ok(Found { link, fixed, why: format!("{flag} matches {}", texts.join(" and ")) });
            }
        }
        let link = self.underlay.links.iter().find(|link| matches(link.name.as_str()));
        let link = link.ok_or("it matches no usable address and no name")?;
        Ok(Found { link, fixed: Vec::new(), why: format!("{flag} matches its name") })
    }

    fn by_route(&self, reach: &Reach, flag: &str) -> Result<Found<'a>, String> {
        if self.underlay.addresses.iter().any(|facts| facts.address.addr() == reach.target) {
            return Err("it is this node's own address: name another node's, or a gateway's".into());
        }
        let exit = reach.exit.as_ref().map_err(String::clone)?;
        let link = self.link(exit.link.ok_or("the kernel names no interface")?)?;
        Ok(Found {
            link,
            fixed: exit.source.into_iter().collect(),
            why: format!("the kernel's route to {flag} leaves through it"),
        })
    }

    /// Finds the interface of the default route. In dual stack both families must agree.
    fn by_default_route(&self) -> Result<Found<'a>, String> {
        let exits: Result<Vec<_>, String> = self.config.families().map(|family| self.exit(family)).collect();
        let exits = exits?;
        if let [v4, v6] = exits[..]
            && v4 != v6
        {
            return Err(format!("the IPv4 default route leaves through {v4}, the IPv6 one through {v6}"));
        }
        let link = self.link(*exits.first().ok_or("no family is on")?)?;
        Ok(Found { link, fixed: Vec::new(), why: "the default route leaves through it".into() })
    }

    /// Returns the interface through which traffic to distant addresses leaves. If the default route's next hops leave
    /// through several interfaces, the one with the route's source address counts. Without a source address that is an
    /// error.
    fn exit(&self, family: Family) -> Result<LinkName, String> {
        let Some(route) = self.default_route(family) else {
            // A policy rule may lead to another table.
            let ways = self.ask.outward.iter().filter(|reach| Family::of(reach.target) == family);
            let link = ways.filter_map(|reach| reach.exit.as_ref().ok()?.link).next();
            return link.ok_or_else(|| format!("there is no {family} default route"));
        };
        let mut links: Vec<LinkName> = route.hops().filter_map(|hop| hop.link).collect();
        links.sort_unstable();
        links.dedup();
        let home = |source| {
            let mut addresses = self.underlay.addresses.iter();
            addresses.find(|facts| Some(facts.address.addr()) == source).map(|facts| facts.link)
        };
        match (&links[..], route.source()) {
            ([link], _) => Ok(*link),
            ([], _) => Err(format!("the {family} default route has an interface that does not exist")),
            (several, source) => home(source).ok_or_else(|| {
                let names: Vec<&str> = several.iter().map(LinkName::as_str).collect();
                let names = names.join(" and ");
                format!("the {family} default route has several next hops, which leave through {names}")
            }),
        }
    }

    /// Returns the default route with the smallest metric, and of equal ones the kernel's first. Two routes to half
    /// of all addresses each count as a default route if their next hops are equal. VPN clients write such routes.
    pub(super) fn default_route(&self, family: Family) -> Option<&'a RouteFacts> {
        let of_length = |length: u8| {
            let of_family = move |route: &&RouteFacts| {
                route.destination.prefix_len() == length && Family::of(route.destination.addr()) == family
            };
            self.underlay.routes.iter().filter(of_family)
        };
        let halves = || {
            let mut halves: Vec<_> = of_length(1).collect();
            halves.sort_by_key(|route| (route.destination, route.metric));
            halves.dedup_by_key(|route| route.destination);
            let [low, high] = halves[..] else { return None };
            low.hops().eq(high.hops()).then_some(low)
        };
        of_length(0).min_by_key(|route| route.metric).or_else(halves)
    }

    /// Completes the uplink with addresses of the families for which none was asked.
    fn complete(&self, found: Found<'_>) -> Result<(Uplink, String), String> {
        let Found { link, fixed, mut why } = found;
        let name = link.name;
        if link.mtu == 0 {
            return Err(format!("{name} has an MTU of 0"));
        }
        let mut uplink = Uplink::new(name, mtu::to(self.underlay, name, std::iter::empty()));
        let mut best = Vec::new();
        for family in self.config.families() {
            let address = match fixed.iter().find(|address| Family::of(**address) == family) {
                Some(address) => self.check(*address, name)?,
                None => {
                    let first = self.best(name, family)?;
                    best.push(first.to_string());
                    first
                }
            };
            match address {
                IpAddr::V4(address) => uplink.ipv4 = Some(address),
                IpAddr::V6(address) => uplink.ipv6 = Some(address),
            }
        }
        match &best[..] {
            [] => {}
            [one] => why.push_str(&format!(", {one} is its best address")),
            more => why.push_str(&format!(", {} are its best addresses", more.join(" and "))),
        }
        Ok((uplink, why))
    }

    /// Returns the best address of an interface. An address whose network overlaps the pods' is passed over for a lasting
    /// one. It is not passed over for a link-local one: then the overlap is the error.
    fn best(&self, name: LinkName, family: Family) -> Result<IpAddr, String> {
        let is_lasting = |address: &IpAddr| !is_link_local(*address);
        let usable = self.usable(name, family);
        let among = self.underlay.addresses.iter().find_map(|facts| {
            let of_it = facts.link == name && Family::of(facts.address.addr()) == family;
            self.overlap(facts).filter(|_| of_it)
        });
        match (usable.first(), among) {
            (Some(first), None) => Ok(*first),
            (Some(first), Some(_)) if is_lasting(first) => Ok(*first),
            (_, Some(why)) => Err(why),
            (None, None) => {
                Err(format!("{name} has no usable {family} address{}", self.passed_over(name, family)))
            }
        }
    }

    /// Returns the addresses of an interface that are not usable, each with the reason. They do not overlap the pods'. An
    /// interface that is up has a link-local IPv6 address at least, unless IPv6 is off.
    fn passed_over(&self, link: LinkName, family: Family) -> String {
        let of_it = |facts: &&AddressFacts| facts.link == link && Family::of(facts.address.addr()) == family;
        let why = |facts: &AddressFacts| match (facts.address.addr(), facts.duplicate) {
            (address, true) => format!("{address} is on another machine too (duplicate address detection)"),
            (address, false) if address.is_loopback() => format!("{address} is a loopback address"),
            (address, false) if is_out_of_reach(address) => out_of_reach(address),
            (address, false) => format!("{address} is no address of a host"),
        };
        let all: Vec<String> = self.underlay.addresses.iter().filter(of_it).map(why).collect();
        match (family, &all[..]) {
            (Family::Ipv4, []) => String::new(),
            (Family::Ipv6, []) => {
                format!(
                    ", not even a link-local one: is the interface down, or is sysctl \
                         net/ipv6/conf/{link}/disable_ipv6 1?"
                )
            }
            (Family::Ipv4, _) => format!(": {}", all.join(", ")),
            (Family::Ipv6, _) => {
                let off = if self.config.ipv4.is_some() { ", or set EnableIPv6 to false" } else { "" };
                let all = all.join(", ");
                format!(
                    ": {all}; give it a global or unique local one (fd00::/8), by hand or by router advertisements{off}"
                )
            }
        }
    }

    /// Accepts an address that was asked for as it is, if traffic between nodes can start there. It must not overlap the
    /// pods' addresses. Only an address for a single host may be on another device.
    fn check(&self, address: IpAddr, name: LinkName) -> Result<IpAddr, String> {
        let its = || self.underlay.addresses.iter().filter(|facts| facts.address.addr() == address);
        if let Some(why) = its().find_map(|facts| self.overlap(facts)) {
            return Err(why);
        }
        if is_out_of_reach(address) {
            return Err(out_of_reach(address));
        }
        if !its().any(|facts| facts.serves(name)) {
            return Err(format!("the kernel would send from {address}, which is no address of {name}"));
        }
        Ok(address)
    }

    /// Returns why an address is none of the underlay's: pods could have it, or another address of its network.
    fn overlap(&self, facts: &AddressFacts) -> Option<String> {
        let AddressFacts { link, address, .. } = facts;
        let pods = self.config.pods_within(address)?;
        let what = if pods.contains(address.addr()) {
            "which is a pod's address"
        } else {
            "whose network is the pods' too"
        };
        Some(format!("{link} has {address}, {what}: {}", among_pods(pods)))
    }

    /// Returns the addresses of an interface by which nodes can be reached, the best one first.
    fn usable(&self, link: LinkName, family: Family) -> Vec<IpAddr> {
        let is_usable = |facts: &&AddressFacts| {
            let address = facts.address.addr();
            facts.link == link
                && Family::of(address) == family
                && !facts.duplicate
                && !is_out_of_reach(address)
                && !(address.is_loopback() || address.is_multicast() || address.is_unspecified())
                && self.overlap(facts).is_none()
        };
        let source =
            self.default_route(family).filter(|route| route.hops().any(|hop| hop.link == Some(link)));
        let source = source.and_then(RouteFacts::source);
        let mut usable: Vec<&AddressFacts> = self.underlay.addresses.iter().filter(is_usable).collect();
        usable.sort_by_key(|facts| rank::of(facts, &self.ask.remembered, source));
        usable.into_iter().map(|facts| facts.address.addr()).collect()
    }

    /// Lists the interfaces with usable addresses, for error messages. Link-local addresses do not count, which leaves
    /// out the many interfaces that lead to a single pod.
    pub(super) fn inventory(&self) -> String {
        let of = |link: &LinkFacts| {
            let usable = Family::ALL.into_iter().flat_map(|family| self.usable(link.name, family));
            let lasting = usable.filter(|address| !is_link_local(*address));
            let lasting: Vec<String> = lasting.map(|address| address.to_string()).collect();
            (!lasting.is_empty()).then(|| format!("{} ({})", link.name, lasting.join(", ")))
        };
        let links: Vec<String> = self.underlay.links.iter().filter_map(of).collect();
        if links.is_empty() {
            return "none has a usable address".into();
        }
        format!("those with addresses are: {}", links.join(", "))
    }

    fn link(&self, name: LinkName) -> Result<&'a LinkFacts, String> {
        self.underlay.link(name).ok_or_else(|| format!("{name} has just disappeared"))
    }
}

/// Returns true for an IPv6 link-local address. It means another machine on each link, and a lease names no link.
pub(super) fn is_out_of_reach(address: IpAddr) -> bool {
    address.is_ipv6() && is_link_local(address)
}

pub(super) fn out_of_reach(address: IpAddr) -> String {
    format!("{address} is link-local, by which no peer reaches this node")
}

/// Compiles a pattern as Go's RE2 does for ASCII text. It is not anchored, and classes such as `\d` are ASCII.
fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).unicode(false).build().map_err(|error| {
        // The lines before the last one only point at the place.
        let text = error.to_string();
        let why = text.lines().last().unwrap_or_default();
        format!("it is no regular expression: {}", why.trim_start_matches("error: "))
    })
}
