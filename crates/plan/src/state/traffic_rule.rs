//! Traffic rule as one value, whichever tool enforces it, and its form in nftables. It belongs to no particular chain.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::range::Range;

/// Rule: conditions that must all hold, and the verdict on the packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficRule {
    pub matches: Box<[Match]>,
    pub verdict: RuleVerdict,
}

/// Condition on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// Mark of the packet, after the mask is applied.
    Mark {
        value: u32,
        mask: u32,
    },
    Source(Net),
    Destination(Net),
    /// Source in a range of addresses that is no network.
    SourceRange(Range),
    /// Destination port of a UDP packet.
    UdpPort(u16),
    /// VNI in the VXLAN header, three bytes (RFC 7348, section 5).
    Vni(u32),
    /// True if the source is not in the set of the peers' VTEPs of that family.
    NoPeer(Family),
    /// True if the destination is in the set of the peers' VTEPs of that family.
    ToPeer(Family),
    /// True for a fragment of an IPv6 packet.
    Fragment,
    /// True while the set `keeper` has its element, which expires when no daemon renews it.
    Kept,
}

/// Network, or all addresses outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    pub net: IpNet,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not: bool,
}

/// Verdict on the packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleVerdict {
    Return,
    Accept,
    Masquerade {
        fully_random: bool,
    },
    /// Records the source in the set of unknown senders, with a counter, and continues with the next rule.
    Remember(Family),
    /// Counts the packet and continues with the next rule.
    Count,
    /// Counts and drops the packet.
    Drop,
    /// Rule that is none of ours, in nft(8)'s words.
    Other(Box<str>),
}

impl fmt::Display for TrafficRule {
    /// Prints the rule as nft(8) does: `udp dport 8472 @th,96,24 0x1 ip saddr != @vteps counter`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        self.verdict.fmt(f)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark { value, mask } => write!(f, "meta mark & {mask:#010x} == {value:#010x}"),
            Self::Source(net) => write!(f, "{} saddr {net}", net.protocol()),
            Self::Destination(net) => write!(f, "{} daddr {net}", net.protocol()),
            Self::SourceRange(Range { first, last }) => {
                write!(f, "{} saddr {first}-{last}", Family::of(*first).nft())
            }
            Self::UdpPort(port) => write!(f, "udp dport {port}"),
            Self::Vni(vni) => write!(f, "@th,96,24 {vni:#x}"),
            Self::NoPeer(family) => write!(f, "{} saddr != @vteps", family.nft()),
            Self::ToPeer(family) => write!(f, "{} daddr @vteps", family.nft()),
            Self::Fragment => f.write_str("exthdr frag exists"),
            Self::Kept => f.write_str("meta l4proto @keeper"),
        }
    }
}

impl Net {
    fn protocol(&self) -> &'static str {
        Family::of(self.net.addr()).nft()
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.not { "!= " } else { "" }, self.net)
    }
}

impl fmt::Display for RuleVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("return"),
            Self::Accept => f.write_str("accept"),
            Self::Masquerade { fully_random: true } => f.write_str("masquerade fully-random"),
            Self::Masquerade { fully_random: false } => f.write_str("masquerade"),
            Self::Remember(family) => write!(f, "update @strangers {{ {} saddr counter }}", family.nft()),
            Self::Count => f.write_str("counter"),
            Self::Drop => f.write_str("counter drop"),
            Self::Other(words) => f.write_str(words),
        }
    }
}
