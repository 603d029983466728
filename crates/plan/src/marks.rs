//! The names and numbers by which this node's objects are known to be twill's or flannel's (docs/wire.md).

use std::ops::RangeInclusive;

/// The `rtm_protocol` of our routes, rules and next hops; free in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 84;

/// The `rtm_protocol` of flannel's routes: flannel names none, and the kernel makes `boot` of it.
pub(crate) const FLANNELS_PROTOCOL: u8 = 3;

/// Ids of our next hop objects.
pub const NEXTHOPS: RangeInclusive<u32> = 0x7477_0000..=0x747f_ffff;

/// Start of the names of our IPv4 vxlan devices; the VNI follows.
pub(crate) const IPV4_DEVICE: &str = "flannel.";

/// Start of the names of our IPv6 vxlan devices; the VNI follows.
pub(crate) const IPV6_DEVICE: &str = "flannel-v6.";
