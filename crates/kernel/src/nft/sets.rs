//! The two sets of the source filter: how they are made, and whether what stands there under their names is them.

use plan::input::Family;

use super::netlink::Set;

/// A set of ours. An element of the second stays for so long after its last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetName {
    /// The underlay addresses that VXLAN packets may come from.
    Peers,
    /// Those that they came from nevertheless.
    Strangers,
}

/// Whether a set that is there is as we make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Right,
    Wrong,
}

/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`; nft's word for the second is dynamic.
const FORGETS_AND_LEARNS: u32 = 0x10 | 0x20;
const STRANGERS: u32 = 1024;
const MINUTES: u64 = 10;

impl SetName {
    pub(crate) const ALL: [Self; 2] = [Self::Peers, Self::Strangers];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Peers => "vteps",
            Self::Strangers => "strangers",
        }
    }

    /// As nft(8) has it.
    pub(super) fn definition(self, family: Family) -> String {
        let address = match family {
            Family::Ipv4 => "ipv4_addr",
            Family::Ipv6 => "ipv6_addr",
        };
        match self {
            Self::Peers => format!("{{ type {address}; }}"),
            Self::Strangers => {
                format!("{{ type {address}; size {STRANGERS}; flags dynamic,timeout; timeout {MINUTES}m; }}")
            }
        }
    }

    pub(super) fn shape(self, set: &Set, family: Family) -> Shape {
        /// nft's own numbers of `ipv4_addr` and `ipv6_addr`.
        const KEYS: [u32; 2] = [7, 8];
        let key = KEYS[usize::from(family == Family::Ipv6)];
        let wanted = match self {
            Self::Peers => (key, 0, 0, 0),
            Self::Strangers => (key, FORGETS_AND_LEARNS, STRANGERS, MINUTES * 60_000),
        };
        let has = (set.key_type, set.flags, set.size, set.timeout);
        if has == wanted { Shape::Right } else { Shape::Wrong }
    }
}
