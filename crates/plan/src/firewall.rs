//! Masquerading, forwarding and the VXLAN source filter: which rules this node should have, and which tool enforces them.
//! A rule is one value, whether nftables or iptables enforces it. Only twill's and flannel's own tables and chains are
//! ever named (flannel-compat 7).

mod choice;
mod fault;
mod iptables;
mod nft;
mod passage;
mod rule;
mod wanted;

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::family::Family;

pub use fault::Fault;
pub use iptables::{IptablesChain, IptablesTable, Variant, comment_of, is_ours};
pub use nft::{NftChain, NftChainName, NftElement, NftTable};
pub use passage::{Obstacle, Packet, Passage};
pub use rule::{Match, Net, Rule, Verdict};
pub(crate) use wanted::{Rules, rules};

/// Options for traffic rules, from flags and the network config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// `EnableNFTables`; `None` if the config does not have the key.
    pub nftables: Option<bool>,
    /// `--ip-masq`
    pub masquerade: bool,
    /// `--iptables-forward-rules`
    pub forward: bool,
    /// True if masquerading draws source ports fully at random: `--ip-masq-fully-random-disable` is not given.
    pub fully_random: bool,
}

/// `VxlanSourceFilter`: treatment of VXLAN packets from an address that no peer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceFilter {
    Off,
    /// Counts the packets and reports their senders.
    #[default]
    Count,
    Drop,
}

/// Tool that enforces the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    Nftables,
    Iptables(Variant),
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("nftables"),
            Self::Iptables(variant) => variant.fmt(f),
        }
    }
}

/// Report on the traffic rules, besides faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tool in use; `None` if no rules are configured, or if no tool can enforce them.
    pub choice: Option<Choice>,
    /// Senders of VXLAN packets that are no peers.
    pub strangers: Vec<Stranger>,
}

/// Tool that enforces the rules, and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub manager: Manager,
    pub reason: Box<str>,
}

/// Facts about the tools for traffic rules, and about the rules of other programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Facts {
    /// Reason why nftables cannot be used: no binary, no kernel support, tables that cannot be read, or rules that it
    /// refuses.
    pub no_nft: Option<Box<str>>,
    /// Facts about iptables, one entry for each variant and family whose tools exist.
    pub iptables: Vec<IptablesFacts>,
    /// Variant that the plain command `iptables` belongs to.
    pub usual: Option<Variant>,
    /// Names of all nftables tables, such as `inet firewalld`.
    pub tables: Vec<Box<str>>,
    /// Traffic that firewalld accepts; `None` if it does not run.
    pub firewalld: Option<Firewalld>,
    /// Rules that cannot be read, each with the reason; their last known state is used.
    pub unread: Vec<Box<str>>,
    /// Senders of VXLAN packets whose addresses no peer has.
    pub strangers: Vec<Stranger>,
    /// Rules that refuse packets between pods, and that no accept rule of ours overrides.
    pub obstacles: Vec<Obstacle>,
}

impl Facts {
    /// Returns true if flannel's nftables tables exist.
    pub fn has_our_tables(&self) -> bool {
        let ours = Family::ALL.map(|family| NftTable { family }.name());
        self.tables.iter().any(|table| ours.contains(&table.to_string()))
    }
}

/// Traffic that firewalld was configured to accept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Firewalld {
    /// UDP ports that it accepts.
    pub ports: Vec<u16>,
    /// Source networks that it trusts.
    pub sources: Vec<IpNet>,
}

/// State of one variant of iptables in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IptablesFacts {
    pub variant: Variant,
    pub family: Family,
    /// True if other programs have rules or a policy there.
    #[serde(default)]
    pub in_use: bool,
    /// Policy or rule of another program that refuses forwarded packets, such as `policy DROP`.
    #[serde(default)]
    pub refuses: Option<Box<str>>,
}

/// Address from which VXLAN packets came, and their number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stranger {
    pub address: std::net::IpAddr,
    pub packets: u64,
}
