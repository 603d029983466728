//! The sets of the source filter: their definitions, and the comparison with existing sets of their names.

use std::time::Duration;

use plan::Family;

use super::netlink::Set;

/// A set of ours. An element of `UnknownSenders` expires some time after its last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetName {
    /// Underlay addresses that VXLAN packets may come from.
    Peers,
    /// Other addresses that VXLAN packets came from.
    UnknownSenders,
    /// UDP, as long as a daemon keeps the rules that drop packets.
    Keeper,
}

/// Comparison of an existing set with our definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Right,
    Wrong,
}

/// Flag `NFT_SET_TIMEOUT`.
const FORGETS: u32 = 0x10;
/// Flags `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`; nft(8) calls the second one dynamic.
const TIMEOUT_AND_DYNAMIC: u32 = FORGETS | 0x20;
/// Maximum number of elements of `UnknownSenders`.
const MAX_UNKNOWN_SENDERS: u32 = 1024;
/// Minutes from the last packet of a stranger until it expires.
const EXPIRY_MINUTES: u64 = 10;
/// Time for which rules that drop packets stay in force without a renewal.
pub(super) const KEPT: Duration = Duration::from_secs(120);

impl SetName {
    pub(crate) const ALL: [Self; 3] = [Self::Peers, Self::UnknownSenders, Self::Keeper];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Peers => "vteps",
            Self::UnknownSenders => "strangers",
            Self::Keeper => "keeper",
        }
    }

    /// Returns the definition in the syntax of nft(8).
    pub(super) fn definition(self, family: Family) -> String {
        let address = match family {
            Family::Ipv4 => "ipv4_addr",
            Family::Ipv6 => "ipv6_addr",
        };
        match self {
            Self::Peers => format!("{{ type {address}; }}"),
            Self::UnknownSenders => {
                format!(
                    "{{ type {address}; size {MAX_UNKNOWN_SENDERS}; flags dynamic,timeout; timeout {EXPIRY_MINUTES}m; }}"
                )
            }
            Self::Keeper => "{ type inet_proto; flags timeout; }".into(),
        }
    }

    pub(super) fn shape(self, set: &Set, family: Family) -> Shape {
        /// Types of the keys `ipv4_addr` and `ipv6_addr`; the numbers are nft's own.
        const KEYS: [u32; 2] = [7, 8];
        /// Type of the key `inet_proto`.
        const PROTOCOL: u32 = 12;
        let key = KEYS[usize::from(family == Family::Ipv6)];
        let defined = match self {
            Self::Peers => (key, 0, 0, 0),
            Self::UnknownSenders => (key, TIMEOUT_AND_DYNAMIC, MAX_UNKNOWN_SENDERS, EXPIRY_MINUTES * 60_000),
            Self::Keeper => (PROTOCOL, FORGETS, 0, 0),
        };
        let has = (set.key_type, set.flags, set.size, set.timeout);
        if has == defined { Shape::Right } else { Shape::Wrong }
    }
}
