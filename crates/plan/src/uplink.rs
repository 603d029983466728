//! Chooses the interface that carries the traffic between nodes, and its addresses (flannel-compat 3). Facts and flags go
//! in; a choice with its reason comes out.

mod lookup;
mod mtu;
mod rank;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Config;
use crate::family::Family;
use crate::ip_address::is_host_address;
use crate::name::LinkName;
use crate::node::Uplink;
use crate::range::Range;
use crate::underlay::{AddressFacts, Underlay};
use lookup::Lookup;
pub(crate) use mtu::{ipv6_mtu, leaves_node};
pub use mtu::{lower_devices, mtu};
pub(crate) use rank::Class;
pub use rank::leased;

/// Flags and other evidence by which the uplink is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// `--iface`: names or addresses, in order.
    pub ifaces: Vec<String>,
    /// `--iface-regex`: patterns, in order, tried after all of `ifaces`.
    pub patterns: Vec<String>,
    /// `--iface-can-reach`, tried last: the kernel's path to that address.
    pub can_reach: Option<Reach>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `--node-ip`.
    pub node_ips: Vec<IpAddr>,
    /// Kernel's paths to distant addresses, for families without a default route in the main table.
    pub outward: Vec<Reach>,
    /// Addresses that this node has announced or sent from before, the best evidence first. Of several addresses of one
    /// interface these are preferred.
    pub remembered: Vec<IpAddr>,
}

/// Kernel's path to an address, or the reason why it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    pub target: IpAddr,
    pub exit: Result<Exit, String>,
}

/// Interface and source address by which the kernel reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub link: Option<LinkName>,
    /// Source address that the kernel would choose.
    pub source: Option<IpAddr>,
}

/// Chosen uplink with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkChoice {
    pub uplink: Uplink,
    /// Reason for this interface and these addresses.
    pub reason: String,
    /// Attempts that failed before, each with its reason.
    pub failures: Vec<String>,
}

/// Reason why no interface can be chosen, with a list of the usable ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkError(String);

impl fmt::Display for UplinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UplinkError {}

/// Single criterion to try, with the flag that names it; the flag is empty for the default route.
struct Attempt<'a> {
    flag: String,
    by: By<'a>,
}

enum By<'a> {
    Name(&'a str),
    Address(IpAddr),
    Pattern(&'a str),
    Reach(&'a Reach),
    DefaultRoute,
}

impl Ask {
    /// Returns the attempts in the order of flannel-compat 3.1. The default route is tried only without flags: it is no
    /// fallback for flags that find nothing.
    fn attempts(&self) -> Vec<Attempt<'_>> {
        let ifaces = self.ifaces.iter().map(|value| {
            let address = value.parse().map(|address: IpAddr| By::Address(address.to_canonical()));
            Attempt { flag: format!("--iface {value}"), by: address.unwrap_or(By::Name(value)) }
        });
        let patterns = self
            .patterns
            .iter()
            .map(|pattern| Attempt { flag: format!("--iface-regex {pattern}"), by: By::Pattern(pattern) });
        let can_reach = self.can_reach.iter().map(|reach| Attempt {
            flag: format!("--iface-can-reach {}", reach.target),
            by: By::Reach(reach),
        });
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

    /// Returns the address to be announced, and the flag that names it.
    fn public(&self, family: Family) -> Option<(String, IpAddr)> {
        let (flag, address) = match family {
            Family::Ipv4 => ("--public-ip", self.public_ip.map(IpAddr::V4)),
            Family::Ipv6 => ("--public-ipv6", self.public_ipv6.map(IpAddr::V6)),
        };
        address.map(|address| (format!("{flag} {address}"), address))
    }

    /// Rejects public addresses on which flannel fails late or crashes (flannel-faults 85).
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
            if lookup::is_out_of_reach(address) {
                return Err(format!("{flag}: {}", lookup::out_of_reach(address)));
            }
            if let Some(pods) = config.pods_at(address) {
                return Err(format!("{flag}: it is a pod's address: {}", among_pods(pods)));
            }
        }
        Ok(())
    }
}

/// Tries the criteria one after the other and returns the first interface that is found. The error says what contradicts
/// the config, that nothing is found, or that the backend cannot use the interface.
pub fn choose(config: &Config, underlay: &Underlay, ask: &Ask) -> Result<UplinkChoice, UplinkError> {
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
                return Ok(UplinkChoice { uplink, reason, failures });
            }
            Err(why) if attempt.flag.is_empty() => failures.push(why),
            Err(why) => failures.push(format!("{}: {why}", attempt.flag)),
        }
    }
    let tried = failures.join("; ");
    Err(UplinkError(format!("{tried}; name one with --iface; {}", lookup.inventory())))
}

/// Returns the families without a default route in the main table. The kernel must be asked for their path.
pub fn without_default(config: &Config, underlay: &Underlay) -> Vec<Family> {
    let lookup = Lookup { config, underlay, ask: &Ask::default() };
    config.families().filter(|family| lookup.default_route(*family).is_none()).collect()
}

/// Returns true if an address in use is one that a node has only until it has a better one. Such an address is
/// link-local, deprecated, or without a network of its own.
pub fn is_makeshift(underlay: &Underlay, uplink: &Uplink) -> bool {
    let own =
        |facts: &AddressFacts| uplink.address(Family::of(facts.address.addr())) == Some(facts.address.addr());
    underlay.addresses.iter().filter(|facts| own(facts)).any(|facts| Class::of(facts).is_makeshift())
}

/// Returns words that name the pods' addresses, and what to do if a node's own addresses are among them.
pub(crate) fn among_pods(pods: Range) -> String {
    format!(
        "pods' subnets are leased from {pods}. Set SubnetMin and SubnetMax in the network config so that they leave the \
         nodes' own networks out, or choose another Network"
    )
}
