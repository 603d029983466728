//! Properties of a single address: whether a node can have it, whether it is link-local, and its value as a number.

use std::net::IpAddr;

/// Returns the address as a number, for arithmetic within one family.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => address.into(),
    }
}

/// Returns true if a node can have this address on its uplink.
pub(crate) fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let of_no_host =
                v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast();
            !of_no_host && v4.octets()[0] != 0
        }
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast()),
    }
}

/// Returns true for 169.254.0.0/16 and fe80::/10.
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
