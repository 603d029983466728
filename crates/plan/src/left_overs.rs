//! Left-overs that an earlier config or an earlier daemon may have on this node.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::LinkName;
use crate::owned::Writer;

/// Left-overs that an earlier config or an earlier daemon may have on this node, and that are deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeftOvers {
    /// Our devices.
    pub links: Vec<LinkName>,
    /// Pod networks.
    pub networks: Vec<IpNet>,
    /// Pod subnets of this node.
    pub subnets: Vec<IpNet>,
    /// Routing tables.
    pub tables: Vec<u32>,
    pub writer: Writer,
    /// True if traffic rules may be left.
    pub firewall: bool,
}
