//! Our objects in nftables (flannel-compat 7.2): flannel's tables `ip flannel-ipv4` and `ip6 flannel-ipv6`, and their
//! chains. The source filter adds sets with the peers' addresses.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Aside, Goes, Kind, Losses, Match, Rank, State, TrafficRule, Unknown};
use crate::family::Family;
use crate::owned::{Owned, Writer};
use crate::table::Row;

/// flannel's table of one family, such as `ip flannel-ipv4`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NftTable {
    pub family: Family,
}

/// Chain of flannel's table. The chains of the source filter come and go with their sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NftChain {
    pub family: Family,
    pub chain: NftChainName,
    pub rules: Box<[TrafficRule]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Unknown,
}

/// Names of the chains in flannel's tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NftChainName {
    Forward,
    /// `postrtg`
    Postrouting,
    /// `vxlan`: the source filter.
    Vxlan,
    /// `vxlan-pods`: the filter of VXLAN packets that pods and others send to nodes through this one.
    VxlanPods,
    /// Chain of another program in our table.
    Other(Box<str>),
}

impl NftChainName {
    /// Returns the chain of that name.
    pub fn parse(name: &str) -> Self {
        match name {
            "forward" => Self::Forward,
            "postrtg" => Self::Postrouting,
            "vxlan" => Self::Vxlan,
            "vxlan-pods" => Self::VxlanPods,
            _ => Self::Other(name.into()),
        }
    }

    /// Returns type, hook and priority of a base chain of ours, whose policy is to accept. Empty for other chains.
    pub fn hook(&self) -> &'static str {
        match self {
            Self::Forward => "type filter hook forward priority 0",
            Self::Postrouting => "type nat hook postrouting priority 100",
            Self::Vxlan => "type filter hook input priority 0",
            Self::VxlanPods => "type filter hook forward priority 0",
            Self::Other(_) => "",
        }
    }

    /// Returns the comment by which the chain explains itself.
    pub fn comment(&self) -> &'static str {
        match self {
            Self::Forward => "chain to accept flannel traffic",
            Self::Postrouting => "chain to manage traffic masquerading by flannel",
            Self::Vxlan => "chain to filter VXLAN packets by their source",
            Self::VxlanPods => "chain to filter VXLAN packets that pods send",
            Self::Other(_) => "",
        }
    }
}

impl NftChainName {
    /// Returns true for the two chains that filter VXLAN packets, which no pod's own traffic needs.
    pub fn is_filter(&self) -> bool {
        matches!(self, Self::Vxlan | Self::VxlanPods)
    }
}

impl fmt::Display for NftChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Postrouting => "postrtg",
            Self::Vxlan => "vxlan",
            Self::VxlanPods => "vxlan-pods",
            Self::Other(name) => name,
        })
    }
}

/// Element of the set `vteps`: an underlay address from which VXLAN packets may come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NftElement {
    pub address: IpAddr,
}

impl Row for NftTable {
    type Key<'a> = Family;

    fn key(&self) -> Family {
        self.family
    }
}

impl Row for NftChain {
    type Key<'a> = (Family, &'a NftChainName);

    fn key(&self) -> (Family, &NftChainName) {
        (self.family, &self.chain)
    }
}

impl Row for NftElement {
    type Key<'a> = IpAddr;

    fn key(&self) -> IpAddr {
        self.address
    }
}

impl Kind for NftTable {
    const NAME: &'static str = "nft";
    const RANK: Rank = Rank { put: 6, delete: 20 };

    /// Claims the table unless another program has put a chain into it.
    fn is_ours(&self, owned: &Owned, observed: &State) -> bool {
        let mut chains = observed.nft_chains.iter().filter(|chain| chain.family == self.family);
        owned.firewall && chains.all(|chain| chain.is_ours(owned, observed))
    }
}

impl Kind for NftChain {
    const NAME: &'static str = "nft";
    const RANK: Rank = Rank { put: 6, delete: 19 };

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.firewall && !matches!(self.chain, NftChainName::Other(_))
    }
}

impl Kind for NftElement {
    const NAME: &'static str = "nft";
    const RANK: Rank = Rank { put: 6, delete: 16 };
    const WRITER: Writer = Writer::Twill;

    /// Returns [`Goes::Last`] if the chains that use the set disappear.
    fn goes(&self, losses: &Losses) -> Goes {
        if losses.unfiltered.contains(&Family::of(self.address)) { Goes::Last } else { Goes::Never }
    }

    fn is_ours(&self, owned: &Owned, _: &State) -> bool {
        owned.firewall
    }
}

impl NftChain {
    /// Returns true if some of the rules apply only while a daemon keeps them.
    pub fn is_kept(&self) -> bool {
        self.rules.iter().any(|rule| rule.matches.contains(&Match::Kept))
    }
}

impl NftTable {
    /// Returns family and name, such as `ip flannel-ipv4`.
    pub fn name(&self) -> String {
        format!("{} {}", self.family.nft(), self.family.nft_table())
    }
}

impl fmt::Display for NftTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nft table {}", self.name())
    }
}

impl fmt::Display for NftChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, chain, rules, unknown } = self;
        write!(f, "nft chain {} {} {chain} {{", family.nft(), family.nft_table())?;
        rules.iter().try_for_each(|rule| write!(f, " {rule};"))?;
        write!(f, " }}{}", Aside(unknown))
    }
}

impl fmt::Display for NftElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = Family::of(self.address);
        write!(f, "nft element {} {} vteps {}", family.nft(), family.nft_table(), self.address)
    }
}
