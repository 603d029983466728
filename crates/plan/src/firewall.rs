//! Masquerade, forward and source filter: which rules this node should have, and by whose hand. Pure, as all of `plan`; a
//! rule is one value, whether nftables or iptables enforces it. Only twill's and flannel's own tables and chains are ever
//! named (flannel-compat 7).

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

use crate::input::Family;

pub use fault::Fault;
pub use iptables::{IptablesChain, IptablesTable, Variant, comment_of, is_ours};
pub use nft::{NftChain, NftChainName, NftElement, NftTable};
pub use passage::{Obstacle, Packet, Passage};
pub use rule::{Match, Net, Rule, Verdict};
pub(crate) use wanted::{Rules, rules};

/// What of it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// `EnableNFTables`, where it is said.
    pub nftables: Option<bool>,
    /// `--ip-masq`
    pub masquerade: bool,
    /// `--iptables-forward-rules`
    pub forward: bool,
    /// Source ports without `--ip-masq-fully-random-disable`.
    pub fully_random: bool,
}

/// `VxlanSourceFilter`: what becomes of VXLAN packets from an address that no peer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceFilter {
    Off,
    /// They are counted and named.
    #[default]
    Count,
    Drop,
}

/// Who enforces the rules.
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

/// What there is to tell of the traffic rules besides faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// `None` where there are none, or nobody can enforce them.
    pub choice: Option<Choice>,
    /// Who sends VXLAN and is no peer.
    pub strangers: Vec<Stranger>,
}

/// The manager, and why it is that one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub manager: Manager,
    pub reason: Box<str>,
}

/// What the node has to enforce rules with, and what others enforce.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Facts {
    /// Why nftables cannot be used: no such binary, or not in this kernel.
    pub no_nft: Option<Box<str>>,
    /// One for each variant and family whose tools are there.
    pub iptables: Vec<IptablesFacts>,
    /// What plain `iptables` is.
    pub usual: Option<Variant>,
    /// All tables of nftables, such as `inet firewalld`.
    pub tables: Vec<Box<str>>,
    /// What it lets through, where it runs.
    pub firewalld: Option<Firewalld>,
    /// What cannot be read, and why: it is as it was known.
    pub unread: Vec<Box<str>>,
    /// VXLAN packets from addresses that no peer has.
    pub strangers: Vec<Stranger>,
    /// What refuses packets between pods, and no accept rule of ours undoes.
    pub obstacles: Vec<Obstacle>,
}

impl Facts {
    /// Are flannel's tables of nftables there?
    pub fn has_our_tables(&self) -> bool {
        let ours = Family::ALL.map(|family| NftTable { family }.name());
        self.tables.iter().any(|table| ours.contains(&table.to_string()))
    }
}

/// What firewalld was told to let through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Firewalld {
    /// UDP ports.
    pub ports: Vec<u16>,
    /// Sources that it trusts.
    pub sources: Vec<IpNet>,
}

/// One variant of iptables in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IptablesFacts {
    pub variant: Variant,
    pub family: Family,
    /// Others have rules or a policy there.
    #[serde(default)]
    pub in_use: bool,
    /// What of others refuses forwarded packets: `policy DROP`, or a rule.
    #[serde(default)]
    pub refuses: Option<Box<str>>,
}

/// An address that VXLAN packets came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stranger {
    pub address: std::net::IpAddr,
    pub packets: u64,
}
