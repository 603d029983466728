//! A rule as one value, whoever enforces it, and its words for nftables. It knows no chain.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Matches that all have to hold, and what then becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub matches: Box<[Match]>,
    pub verdict: Verdict,
}

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// The packet's mark, after the mask.
    Mark {
        value: u32,
        mask: u32,
    },
    Source(Net),
    Destination(Net),
    /// Destination port.
    UdpPort(u16),
    /// The three bytes of a VXLAN header (RFC 7348, section 5).
    Vni(u32),
    /// The source is in the set of the peers' VTEPs of that family, or not.
    NoPeer(crate::input::Family),
}

/// A network, or all but that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    pub net: IpNet,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not: bool,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Return,
    Accept,
    Masquerade {
        fully_random: bool,
    },
    /// Its source is remembered in the set of strangers, with a counter; the next rule is next.
    Remember(crate::input::Family),
    /// Counted, and the next rule is next.
    Count,
    /// Counted and dropped.
    Drop,
    /// A rule that is none of ours, in its own words.
    Other(Box<str>),
}

impl fmt::Display for Rule {
    /// As nft(8) has it.
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
            Self::UdpPort(port) => write!(f, "udp dport {port}"),
            Self::Vni(vni) => write!(f, "@th,96,24 {vni:#x}"),
            Self::NoPeer(family) => write!(f, "{} saddr != @vteps", family.nft()),
        }
    }
}

impl Net {
    fn protocol(&self) -> &'static str {
        crate::input::Family::of(self.net.addr()).nft()
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.not { "!= " } else { "" }, self.net)
    }
}

impl fmt::Display for Verdict {
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
