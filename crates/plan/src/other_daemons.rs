//! Other daemons of this node, and which of the daemons keeps the traffic rules.

use serde::{Deserialize, Serialize};

use crate::tunnel_id::TunnelId;

/// Other daemons of this node, and what they hold that exists once per node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtherDaemons {
    /// Tunnels that they have the devices of.
    pub tunnels: Vec<TunnelId>,
    /// Owner of the traffic rules: another daemon, or this one.
    pub firewall: FirewallKeeper,
}

/// Owner of flannel's tables and chains for traffic rules, which exist once per node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallKeeper {
    #[default]
    Us,
    /// No daemon: none of our rules is configured, and none ever was.
    Nobody,
    /// Name of another daemon of this node: `another daemon of this node (pid 812)`.
    Other(Box<str>),
    /// Unknown owner: locking the rules failed, for this reason.
    Unknown(Box<str>),
}

impl FirewallKeeper {
    pub fn is_us(&self) -> bool {
        *self == Self::Us
    }
}
