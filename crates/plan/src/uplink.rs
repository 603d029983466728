//! Which interface carries the traffic between nodes, and which addresses: facts and flags in, choice and reason out
//! (flannel-compat 3). It asks the kernel nothing.

mod lookup;
mod mtu;
mod rank;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::LinkName;
use crate::input::{AddressFacts, Config, Family, Underlay, Uplink};
use crate::subnet_alloc::Range;
use crate::wanted::is_host_address;
use lookup::Lookup;
pub use mtu::{mtu, wires};
pub(crate) use rank::Class;
pub use rank::{is_link_local, leased};

/// What the flags ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// `--iface`, names or addresses, in order.
    pub ifaces: Vec<String>,
    /// `--iface-regex`, in order, after all of these.
    pub patterns: Vec<String>,
    /// `--iface-can-reach`, last.
    pub can_reach: Option<Reach>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `--node-ip`.
    pub node_ips: Vec<IpAddr>,
    /// The kernel's way to addresses far away, of families without a default route in the main table.
    pub outward: Vec<Reach>,
    /// Addresses that this node has announced or sent from before, the best evidence first. Of several addresses of one
    /// interface such a one goes first.
    pub remembered: Vec<IpAddr>,
}

/// What the kernel says of the way to an address, or why it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    pub target: IpAddr,
    pub way: Result<Way, String>,
}

/// The way out to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub link: Option<LinkName>,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
}

/// The choice with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub uplink: Uplink,
    /// Why this interface and these addresses.
    pub reason: String,
    /// What was tried before it, and why it gave nothing.
    pub failures: Vec<String>,
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

/// One thing to go by, and the flag that says so, if any.
struct Attempt<'a> {
    flag: String,
    by: By<'a>,
}

enum By<'a> {
    Name(&'a str),
    Address(IpAddr),
    Pattern(&'a str),
    Way(&'a Reach),
    DefaultRoute,
}

impl Ask {
    /// The order of flannel-compat 3.1. The default route is no last resort for flags that find nothing.
    fn attempts(&self) -> Vec<Attempt<'_>> {
        let ifaces = self.ifaces.iter().map(|value| {
            let address = value.parse().map(|address: IpAddr| By::Address(address.to_canonical()));
            Attempt { flag: format!("--iface {value}"), by: address.unwrap_or(By::Name(value)) }
        });
        let patterns = self
            .patterns
            .iter()
            .map(|pattern| Attempt { flag: format!("--iface-regex {pattern}"), by: By::Pattern(pattern) });
        let can_reach = self
            .can_reach
            .iter()
            .map(|reach| Attempt { flag: format!("--iface-can-reach {}", reach.target), by: By::Way(reach) });
        let mut all: Vec<_> = ifaces.chain(patterns).chain(can_reach).collect();
        if all.is_empty() {
            let public = Family::ALL.into_iter().find_map(|family| self.public(family));
            all.push(match public {
                Some((flag, address)) => Attempt { flag, by: By::Address(address) },
                None => Attempt { flag: String::new(), by: By::DefaultRoute },
            });
        }
        all
    }

    /// The address to be announced, and the flag that says so.
    fn public(&self, family: Family) -> Option<(String, IpAddr)> {
        let (flag, address) = match family {
            Family::Ipv4 => ("--public-ip", self.public_ip.map(IpAddr::V4)),
            Family::Ipv6 => ("--public-ipv6", self.public_ipv6.map(IpAddr::V6)),
        };
        address.map(|address| (format!("{flag} {address}"), address))
    }

    /// flannel fails late or crashes on these (flannel-faults 85).
    fn check(&self, config: &Config) -> Result<(), String> {
        if let Some((flag, _)) = self.public(Family::Ipv4).filter(|_| config.ipv4.is_none()) {
            return Err(format!(
                "{flag}: IPv4 is off in the network config: leave it out, or give --public-ipv6 instead"
            ));
        }
        for (flag, address) in Family::ALL.into_iter().filter_map(|family| self.public(family)) {
            if !is_host_address(address) {
                return Err(format!("{flag}: no node can have that address"));
            }
            if let Some(pods) = config.pods_at(address) {
                return Err(format!("{flag}: it is a pod's address: {}", among_pods(pods)));
            }
        }
        Ok(())
    }
}

/// Goes through what is asked for, one after the other: the first that is found is chosen.
pub fn choose(config: &Config, underlay: &Underlay, ask: &Ask) -> Result<Choice, UplinkError> {
    ask.check(config).map_err(UplinkError)?;
    let lookup = Lookup { config, underlay, ask };
    let mut failures = Vec::new();
    for attempt in ask.attempts() {
        match lookup.answer(&attempt) {
            Ok((mut uplink, mut reason)) => {
                (uplink.public_ip, uplink.public_ipv6) = (ask.public_ip, ask.public_ipv6);
                uplink.node_ips.clone_from(&ask.node_ips);
                config.backend.suits(&uplink).map_err(UplinkError)?;
                for family in Family::ALL {
                    if let Some((flag, address)) = ask.public(family)
                        && uplink.address(family).is_some_and(|own| own != address)
                    {
                        reason.push_str(&format!("; {flag} is announced in place of its own"));
                    }
                }
                return Ok(Choice { uplink, reason, failures });
            }
            Err(why) if attempt.flag.is_empty() => failures.push(why),
            Err(why) => failures.push(format!("{}: {why}", attempt.flag)),
        }
    }
    let tried = failures.join("; ");
    Err(UplinkError(format!("{tried}; name one with --iface; {}", lookup.inventory())))
}

/// Families whose default route the main table does not have, so that the kernel has to be asked the way.
pub fn without_default(config: &Config, underlay: &Underlay) -> Vec<Family> {
    let lookup = Lookup { config, underlay, ask: &Ask::default() };
    let on = Family::ALL.into_iter().filter(|family| config.network(*family).is_some());
    on.filter(|family| lookup.default_route(*family).is_none()).collect()
}

/// Is an address in use that a node has only as long as it has no better one: link-local, about to go, or without a network
/// of its own?
pub fn is_makeshift(underlay: &Underlay, uplink: &Uplink) -> bool {
    let own =
        |facts: &AddressFacts| uplink.address(Family::of(facts.address.addr())) == Some(facts.address.addr());
    underlay.addresses.iter().filter(|facts| own(facts)).any(|facts| Class::of(facts).is_makeshift())
}

/// Says which addresses are the pods', and what to do where a node's own are among them.
pub(crate) fn among_pods(pods: Range) -> String {
    format!(
        "pods' subnets are leased from {pods}. Set SubnetMin and SubnetMax in the network config so that they leave the \
         nodes' own networks out, or choose another Network"
    )
}
