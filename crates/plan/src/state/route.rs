//! Routes to pods.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Aside, Goes, Kind, Losses, Rank, State, Unknown};
use crate::marks::{FLANNELS_PROTOCOL, NEXTHOPS, PROTOCOL};
use crate::name::LinkName;
use crate::owned::{Owned, Writer};
use crate::table::Row;

/// Number of the main routing table (rtnetlink(7), `RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// Largest route metric, which puts a route behind every other route to its prefix.
pub const WORST_METRIC: u32 = u32::MAX;

/// Route to pods, without a TOS and with the default or the worst metric. Other routes are never ours and never listed
/// here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub table: u32,
    pub destination: IpNet,
    pub path: RoutePath,
    /// Protocol number (`rtm_protocol`).
    pub protocol: u8,
    /// Metric (`RTA_PRIORITY`); 0 stands for the family's default metric.
    #[serde(default, skip_serializing_if = "is_default")]
    pub metric: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

fn is_default(metric: &u32) -> bool {
    *metric == 0
}

/// Target of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoutePath {
    Via {
        gateway: IpAddr,
        link: LinkName,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        onlink: bool,
    },
    /// Through the next hop object with this id.
    Nexthop(u32),
    /// Out of a link, without a gateway.
    Link(LinkName),
    /// Refuses packets with an ICMP error.
    Unreachable,
    /// Drops packets in silence.
    Blackhole,
    /// Any other target; the row's `unknown` describes it.
    Other,
}

impl Row for Route {
    type Key<'a> = (u32, IpNet, u32);

    /// Returns table, destination and metric.
    fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.destination, self.metric)
    }
}

impl Kind for Route {
    const NAME: &'static str = "route";
    const RANK: Rank = Rank { put: 10, delete: 13 };

    fn link(&self) -> Option<LinkName> {
        match self.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => Some(link),
            _ => None,
        }
    }

    fn goes(&self, losses: &Losses) -> Goes {
        match self.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => losses.of_link(link),
            RoutePath::Nexthop(id) => losses.nexthops.get(&id).copied().unwrap_or(Goes::Never),
            RoutePath::Unreachable | RoutePath::Blackhole | RoutePath::Other => Goes::Never,
        }
    }

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        let ours = |link| link == owned.uplink || owned.has_link(link);
        owned.all_tables().any(|table| table == self.table)
            && owned.in_any_network(&self.destination)
            && (self.metric == 0 || self.path == RoutePath::Blackhole)
            && match (self.protocol, self.path) {
                (FLANNELS_PROTOCOL, _) => self.is_flannels(owned),
                (PROTOCOL, RoutePath::Via { link, .. } | RoutePath::Link(link)) => ours(link),
                (PROTOCOL, RoutePath::Nexthop(id)) => NEXTHOPS.contains(&id),
                (PROTOCOL, RoutePath::Unreachable | RoutePath::Blackhole) => true,
                _ => false,
            }
    }
}

impl Route {
    /// Returns true if flannel wrote the route. It leads through the subnet's own first address, which no other program's
    /// route does (flannel-compat 6.1). Or it is the blackhole of our own subnet (7.4). A route through the uplink may be
    /// anybody's; it is ours only under the key of a desired peer.
    fn is_flannels(&self, owned: &Owned) -> bool {
        owned.former_writer == Writer::Flannel
            && match self.path {
                RoutePath::Via { gateway, link, onlink: true } => {
                    owned.has_link(link) && gateway == self.destination.addr()
                }
                RoutePath::Blackhole => self.metric == 0 && owned.own_subnets.contains(&self.destination),
                _ => false,
            }
    }

    /// Returns true if the route looks like flannel's, inside our networks, and is not known to be flannel's.
    pub(crate) fn resembles_flannels(&self, owned: &Owned, observed: &State) -> bool {
        let through_ours = |link| link == owned.uplink || owned.has_link(link);
        self.protocol == FLANNELS_PROTOCOL
            && owned.is_pods(&self.destination)
            && match self.path {
                RoutePath::Via { link, .. } => through_ours(link),
                RoutePath::Blackhole => self.metric == 0,
                _ => false,
            }
            && !self.is_ours(owned, observed)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let destination = self.destination;
        match self.path {
            RoutePath::Via { gateway, link, onlink } => {
                let onlink = if onlink { " onlink" } else { "" };
                write!(f, "route {destination} via {gateway} dev {link}{onlink}")?;
            }
            RoutePath::Nexthop(id) => write!(f, "route {destination} nhid {id}")?,
            RoutePath::Link(link) => write!(f, "route {destination} dev {link}")?,
            RoutePath::Unreachable => write!(f, "route unreachable {destination}")?,
            RoutePath::Blackhole => write!(f, "route blackhole {destination}")?,
            RoutePath::Other => write!(f, "route {destination}")?,
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        write!(f, "{}", Aside(&self.unknown))
    }
}
