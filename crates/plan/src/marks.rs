//! Names and numbers that mark this node's objects as twill's or flannel's (docs/wire.md).

use std::ops::RangeInclusive;

/// Protocol number (`rtm_protocol`) of our routes, rules and next hops; free in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 84;

/// Protocol number (`rtm_protocol`) of flannel's routes: `boot`, the default of flannel's netlink library.
pub(crate) const FLANNELS_PROTOCOL: u8 = 3;

/// Priority of our policy rules: before the main table's 32766, and behind rules that others put first.
pub(crate) const RULE_PRIORITY: u32 = 5000;

/// Range of the ids of our next hop objects.
pub const NEXTHOPS: RangeInclusive<u32> = 0x7477_0000..=0x747f_ffff;

/// Prefix of the names of our IPv4 vxlan devices; the VNI follows: `flannel.1`.
pub(crate) const IPV4_DEVICE: &str = "flannel.";

/// Prefix of the names of our IPv6 vxlan devices; the VNI follows: `flannel-v6.1`.
pub(crate) const IPV6_DEVICE: &str = "flannel-v6.";
