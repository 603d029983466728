//! Facts about the tools for traffic rules, and about the rules of other programs.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::passage::Packet;
use crate::state::{NftTable, Variant};

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

/// Facts about the tools for traffic rules, and about the rules of other programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirewallFacts {
    /// Reason why nftables cannot be used: no binary, no kernel support, unreadable tables, or refused rules.
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
    #[serde(rename = "strangers")]
    pub unknown_senders: Vec<UnknownSender>,
    /// Rules that refuse packets between pods, or may refuse them, and that no accept rule of ours overrides.
    pub obstacles: Vec<Obstacle>,
    /// True if packets between pods meet a rule of iptables that cannot be judged.
    pub unclear: bool,
}

impl FirewallFacts {
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
pub struct UnknownSender {
    pub address: IpAddr,
    pub packets: u64,
}

/// Reason why it is not certain that a policy or rule refuses a packet. It is a condition that cannot be evaluated here,
/// such as that of an ipset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uncertainty {
    /// The condition of this earlier rule, which keeps packets from the refusal.
    Unless(Box<str>),
    /// The condition of the rule that refuses.
    Condition,
}

/// Policy or rule that refuses a packet on its way through this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obstacle {
    pub manager: Manager,
    /// Family in nft(8)'s words, such as `inet`.
    pub family: Box<str>,
    pub table: Box<str>,
    /// Base chain, such as `FORWARD`.
    pub chain: Box<str>,
    /// Policy or rule, such as `-A LOGGING -j DROP`.
    pub what: Box<str>,
    /// Reason why the refusal is not certain; `None` if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty: Option<Uncertainty>,
    /// Example of a refused packet.
    pub packet: Packet,
}

impl Obstacle {
    /// Returns true if both are the same policy or rule, in the way of packets of one family and kind.
    pub fn is_like(&self, other: &Self) -> bool {
        let example = Self { packet: other.packet, uncertainty: other.uncertainty.clone(), ..self.clone() };
        let Packet { source, payload, .. } = other.packet;
        example == *other
            && self.packet.source.is_ipv4() == source.is_ipv4()
            && self.packet.payload.is_like(payload)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { manager, family, table, chain, .. } = self;
        match manager {
            Manager::Nftables => write!(f, "chain {chain} of nftables' table {family} {table}"),
            Manager::Iptables(variant) => {
                let family = Family::of(self.packet.source);
                write!(f, "the {family} {chain} chain of {variant}, table {table},")
            }
        }
    }
}
