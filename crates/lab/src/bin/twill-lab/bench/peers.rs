//! Peers that exist as leases only: subnets, addresses and MACs of peer number n, and the network config.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::options::{Backend, Case, Families};

/// Network of the peers; the daemon under test chooses its own subnet from a range behind them.
const NETWORK: &str =
    r#""Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.250.0.0","SubnetMax":"10.251.0.0""#;
const NETWORK6: &str = r#","EnableIPv6":true,"IPv6Network":"fd00:244::/48","IPv6SubnetMin":"fd00:244:0:f000::","IPv6SubnetMax":"fd00:244:0:ff00::""#;

/// Address of a peer: the first one, or the one after a move. Both are on the uplink's segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    First,
    Moved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(pub(super) u32);

impl Peer {
    /// Returns the first address of its /24.
    pub(super) fn subnet(self) -> Ipv4Addr {
        Ipv4Addr::from(0x0a01_0000 + (self.0 << 8))
    }

    /// Returns the first address of its /64.
    pub(super) fn subnet6(self) -> Ipv6Addr {
        Ipv6Addr::from((0xfd00_0244_0000_u128 << 80) + (u128::from(self.0 + 1) << 64))
    }

    pub(super) fn address(self, place: Place) -> Ipv4Addr {
        let first = if place == Place::First { 0xac11_0000 } else { 0xac12_0000 };
        Ipv4Addr::from(first + self.0)
    }

    pub(super) fn address6(self, place: Place) -> Ipv6Addr {
        let first: u128 = if place == Place::First { 1 } else { 2 };
        Ipv6Addr::from((0xfd00_00ac_u128 << 96) + (first << 32) + u128::from(self.0))
    }

    pub(super) fn mac(self) -> String {
        mac(0x00, self.0)
    }

    pub(super) fn mac6(self) -> String {
        mac(0x06, self.0)
    }

    /// Returns the lease's key and value as flannel writes them, such as `10.2.2.0-24` and
    /// `{"PublicIP":"172.17.1.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:01:02"}}`.
    pub(super) fn lease(self, case: &Case, place: Place) -> (String, String) {
        let (subnet, address) = (self.subnet(), self.address(place));
        let kind = match case.backend {
            Backend::Vxlan => "vxlan",
            Backend::HostGw => "host-gw",
        };
        let vtep = |name: &str, mac: &str| match case.backend {
            Backend::Vxlan => format!(r#","{name}":{{"VNI":1,"VtepMAC":"{mac}"}}"#),
            Backend::HostGw => String::new(),
        };
        let data = vtep("BackendData", &self.mac());
        match case.families {
            Families::Ipv4 => (
                format!("{subnet}-24"),
                format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"{kind}"{data}}}"#),
            ),
            Families::Dual => {
                let (address6, data6) = (self.address6(place), vtep("BackendV6Data", &self.mac6()));
                let value = format!(
                    r#"{{"PublicIP":"{address}","PublicIPv6":"{address6}","BackendType":"{kind}"{data}{data6}}}"#
                );
                (format!("{subnet}-24&{}-64", self.subnet6()), value)
            }
        }
    }
}

fn mac(family: u8, number: u32) -> String {
    let [_, high, middle, low] = number.to_be_bytes();
    format!("0a:{family:02x}:00:{high:02x}:{middle:02x}:{low:02x}")
}

pub(super) fn config(case: &Case) -> String {
    let kind = match case.backend {
        Backend::Vxlan => "vxlan",
        Backend::HostGw => "host-gw",
    };
    let network6 = if case.families == Families::Dual { NETWORK6 } else { "" };
    let keys = if case.keys.is_empty() { String::new() } else { format!(",{}", case.keys) };
    format!(r#"{{{NETWORK}{network6},"Backend":{{"Type":"{kind}"{keys}}}}}"#)
}

#[cfg(test)]
mod tests {
    use super::super::options::StoreKind;
    use super::*;

    #[test]
    fn peer_leases_match_backend_and_families() {
        let case = |backend, families| Case {
            store: StoreKind::Dir,
            backend,
            families,
            peers: 1,
            keys: r#""VNI":1"#.to_owned(),
        };
        let (key, value) = Peer(258).lease(&case(Backend::Vxlan, Families::Ipv4), Place::First);
        assert_eq!(key, "10.2.2.0-24");
        assert_eq!(
            value,
            r#"{"PublicIP":"172.17.1.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:01:02"}}"#
        );
        let dual = case(Backend::HostGw, Families::Dual);
        let (key, value) = Peer(0).lease(&dual, Place::Moved);
        assert_eq!(key, "10.1.0.0-24&fd00:244:0:1::-64");
        assert_eq!(
            value,
            r#"{"PublicIP":"172.18.0.0","PublicIPv6":"fd00:ac::2:0:0","BackendType":"host-gw"}"#
        );
        assert!(config(&dual).ends_with(r#","Backend":{"Type":"host-gw","VNI":1}}"#));
    }
}
