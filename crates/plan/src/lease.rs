//! Lease: the pod subnet that a node holds, and how that node is reached. Key and JSON value are flannel's, byte for byte
//! (flannel-compat 4.2, 4.3). `desired` decides whether a lease is believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::backend::Announced;
use crate::family::Family;
use crate::fields::Fields;
use crate::subnet::Subnet;
use crate::text;

/// Maximum number of leases that are kept in memory, those of the largest network that was tried.
pub const MAX_LEASES: usize = 60_000;

/// Maximum length of a backend's name in bytes; flannel's longest has 11.
const LONGEST_NAME: usize = 64;

/// Lease of one node. Its key ends with `10.5.34.0-24`, and its value looks like this:
///
/// ```json
/// {"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",
///  "BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    /// Revision or file time at which the lease was made: greater means younger. It is only compared within one store.
    pub born: u64,
    /// Revision or file time at which the lease was last written or renewed.
    pub written: u64,
    pub subnet: Subnet,
    pub public_ip: Option<Ipv4Addr>,
    pub public_ipv6: Option<Ipv6Addr>,
    pub announced: Announced,
}

impl Lease {
    /// Returns a placeholder for a subnet whose lease cannot be read: its holder is unknown, and it loses every conflict.
    pub fn unknown(subnet: Subnet) -> Self {
        Self {
            born: u64::MAX,
            written: 0,
            subnet,
            public_ip: None,
            public_ipv6: None,
            announced: Announced::Nothing,
        }
    }

    /// Returns the pod subnet of the family.
    pub fn subnet_of(&self, family: Family) -> Option<IpNet> {
        self.subnet.of(family)
    }

    /// Returns true if both leases are equal apart from the times at which they were made and written.
    pub fn has_same_data(&self, other: &Self) -> bool {
        Self { born: self.born, written: self.written, ..other.clone() } == *self
    }

    /// Returns the announced underlay address of the family.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.public_ip.map(IpAddr::V4),
            Family::Ipv6 => self.public_ipv6.map(IpAddr::V6),
        }
    }

    /// Parses a key's last part and its value. The error says what is wrong with which of them, in at most [`text::READ`]
    /// characters.
    ///
    /// Values are read as Go's decoder reads them: see the table in this file's tests. A fault in one family's part does
    /// not affect the other family. It does not matter at all if the key does not name the family.
    pub fn parse(key: &str, value: &[u8], born: u64) -> Result<Self, String> {
        Self::read(key, value, born).map_err(text::excerpt)
    }

    fn read(key: &str, value: &[u8], born: u64) -> Result<Self, String> {
        let subnet = Subnet::parse(key)?;
        let fields = Fields::parse(value)?;
        let backend_type: String = fields.get("BackendType")?.unwrap_or_default();
        let backend_type = backend_type.to_ascii_lowercase();
        let mut announced = Announced::of_type(&backend_type);
        let halves = Family::ALL.map(|family| {
            let (address, data) = keys(family);
            let public = public(&fields, family, address)?;
            announced.read(family, &fields, data)?;
            Ok::<_, String>(public)
        });
        let named =
            || Family::ALL.into_iter().zip(&halves).filter(|(family, _)| subnet.of(*family).is_some());
        if named().all(|(_, half)| half.is_err()) {
            let error = named().find_map(|(_, half)| half.as_ref().err());
            return Err(error.cloned().unwrap_or_default());
        }
        if backend_type.len() > LONGEST_NAME {
            let len = backend_type.len();
            return Err(format!("key \"BackendType\": {len} characters are too many for a backend name"));
        }
        let [ipv4, ipv6] = halves.map(Result::unwrap_or_default);
        let public_ip = ipv4.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
        let public_ipv6 = ipv6.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None });
        Ok(Self { born, written: born, subnet, public_ip, public_ipv6, announced })
    }

    /// Returns the value as flannel writes it: compact, fields in flannel's order, absent backend fields left out.
    pub fn to_json(&self) -> String {
        let value = LeaseJson {
            public_ip: self.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: self.public_ipv6,
            backend_type: self.announced.backend_type(),
            data: self.announced.data(Family::Ipv4),
            data_v6: self.announced.data(Family::Ipv6),
        };
        serde_json::to_string(&value).unwrap_or_default()
    }
}

/// Leases as the datastore reported them. "Not known yet" is not "none".
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Leases {
    #[default]
    Unknown,
    /// Last list that an earlier run received. It is good enough to reach peers, but not to call anything a left-over.
    Remembered(Arc<[Lease]>),
    /// All leases of the cluster, our own included, in any order.
    Listed(Arc<[Lease]>),
}

impl Leases {
    /// Returns the leases by which peers are reached.
    pub fn known(&self) -> &[Lease] {
        match self {
            Self::Unknown => &[],
            Self::Remembered(leases) | Self::Listed(leases) => leases,
        }
    }
}

/// Returns the keys of a family's address and of its backend data.
fn keys(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::Ipv4 => ("PublicIP", "BackendData"),
        Family::Ipv6 => ("PublicIPv6", "BackendV6Data"),
    }
}

/// Reads the public address of a family; `None` if it is missing or unspecified.
fn public(fields: &Fields, family: Family, key: &str) -> Result<Option<IpAddr>, String> {
    // Go reads `::ffff:192.0.2.1` as the IPv4 address in it.
    let public: Option<IpAddr> = fields.parsed(key)?;
    let public = public.map(|public| public.to_canonical()).filter(|public| !public.is_unspecified());
    match public.filter(|public| Family::of(*public) != family) {
        Some(other) => Err(format!("key {key:?}: {other} is no {family} address")),
        None => Ok(public),
    }
}

#[derive(Serialize)]
struct LeaseJson<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    data_v6: Option<Box<RawValue>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::vxlan::Vtep;
    use crate::mac::Mac;

    #[test]
    fn values_survive_the_round_trip_byte_for_byte() {
        for (key, value) in [
            (
                "10.5.34.0-24",
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                "10.5.34.0-24&fd00:5:34::-64",
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00:64::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}}"#,
            ),
            (
                "10.5.34.0-24",
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"Port":4789,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                "10.5.34.0-24",
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            ("10.5.34.0-24", r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#),
            ("10.5.34.0-24", r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#),
        ] {
            let lease = Lease::parse(key, value.as_bytes(), 0).unwrap();
            assert_eq!(lease.to_json(), value);
            assert_eq!(lease.subnet.to_string(), key);
        }
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_one_wins() {
        let value = br#"{"publicip":"1.1.1.1","PUBLICIP":"192.0.2.1","backendtype":"VXLAN","BackendData":{"vni":7,"PORT":1,"port":4789,"vtepmac":"0A-1B-2C-3D-4E-5F"},"New":[1]}"#;
        let lease = Lease::parse("10.5.34.0-24", value, 0).unwrap();
        assert_eq!(lease.public_ip, Some(Ipv4Addr::new(192, 0, 2, 1)));
        let mac = Mac([0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);
        assert_eq!(
            lease.announced,
            Announced::Vxlan { ipv4: Some(Vtep { vni: Some(7), port: Some(4789), mac }), ipv6: None }
        );
    }

    const HEAD: &str = r#""PublicIP":"192.0.2.12","BackendType":"vxlan""#;

    fn vtep(vni: Option<u32>) -> Option<Vtep> {
        Some(Vtep { vni, port: None, mac: Mac([2, 0, 0, 0, 0x49, 1]) })
    }

    /// Backend data of an IPv4 lease gives the same VTEP as with flannel's Go decoder.
    #[test]
    fn backend_data_is_read_as_go_reads_it() {
        let none = || None;
        for (data, expected) in [
            // Every flannel before 0.14 writes this.
            (r#""BackendData":{"VtepMAC":"02:00:00:00:49:01"}"#, vtep(None)),
            (r#""BackendData":{"VNI":null,"VtepMAC":"02:00:00:00:49:01"}"#, vtep(None)),
            (r#""BackendData":{"VNI":0,"VtepMAC":"02:00:00:00:49:01"}"#, vtep(None)),
            (r#""BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:49:01"}"#, vtep(Some(1))),
            (r#""backenddata":{"vni":7,"vtepmac":"02-00-00-00-49-01"}"#, vtep(Some(7))),
            (r#""BackendData":{"vni":7,"VNI":8,"VtepMAC":"0200.0000.4901"}"#, vtep(Some(8))),
            (
                r#""BackendData":{"New":1e999,"Old":"\ud800","VtepMAC":"02:00:00:00:49:01"},"New":-1e999"#,
                vtep(None),
            ),
            (r#""BackendData":{"VNI":7,"vni":8,"VtepMAC":"0200.0000.4901"}"#, vtep(Some(8))),
            (r#""BackendData":{"VNI":7,"VNI":null,"VtepMAC":"02:00:00:00:49:01"}"#, vtep(Some(7))),
            (r#""BackendData":{"VNI":7,"New":{"VNI":9},"VtepMAC":"02:00:00:00:49:01"}"#, vtep(Some(7))),
            (r#""BackendData":{"VNI":7},"BackendData":{"VtepMAC":"02:00:00:00:49:01"}"#, vtep(None)),
            (r#""BackendData":{"Port":0,"VtepMAC":"02:00:00:00:49:01"}"#, vtep(None)),
            // These give no usable VTEP and no error: the plan reports what is missing.
            (r#""BackendData":null"#, none()),
            (r#""BackendData":{}"#, none()),
            (r#""BackendData":{"VNI":1}"#, none()),
            (r#""BackendData":{"VNI":1,"VtepMAC":null}"#, none()),
            (r#""BackendData":{"VNI":1,"VtepMAC":""}"#, none()),
            (r#""BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:49:01"}"#, none()),
            // The key names no IPv6, so this part is not read.
            (r#""BackendData":{"VtepMAC":"02:00:00:00:49:01"},"BackendV6Data":[1]"#, vtep(None)),
            (r#""BackendData":{"VtepMAC":"02:00:00:00:49:01"},"PublicIPv6":"nonsense""#, vtep(None)),
        ] {
            let value = format!("{{{HEAD},{data}}}");
            let lease = Lease::parse("10.5.34.0-24", value.as_bytes(), 0).unwrap();
            let Announced::Vxlan { ipv4, .. } = lease.announced else { panic!("{data}") };
            assert_eq!((ipv4, lease.public_ip), (expected, Some([192, 0, 2, 12].into())), "{data}");
        }
        for (data, word) in [
            (r#""BackendData":[]"#, "BackendData"),
            (r#""BackendData":"{}""#, "BackendData"),
            (r#""BackendData":7"#, "BackendData"),
            (r#""BackendData":{"VNI":"1","VtepMAC":"02:00:00:00:49:01"}"#, "VNI"),
            (r#""BackendData":{"VNI":1.0,"VtepMAC":"02:00:00:00:49:01"}"#, "VNI"),
            (r#""BackendData":{"VNI":-0,"VtepMAC":"02:00:00:00:49:01"}"#, "VNI"),
            (r#""BackendData":{"VNI":-1,"VtepMAC":"02:00:00:00:49:01"}"#, "VNI"),
            (r#""BackendData":{"VNI":true,"VtepMAC":"02:00:00:00:49:01"}"#, "VNI"),
            (r#""BackendData":{"VtepMAC":7}"#, "VtepMAC"),
            (r#""BackendData":{"VtepMAC":"02:00:00:00:49"}"#, "VtepMAC"),
        ] {
            let value = format!("{{{HEAD},{data}}}");
            let error = Lease::parse("10.5.34.0-24", value.as_bytes(), 0).unwrap_err();
            assert!(error.contains(word), "{data}: {error}");
        }
    }

    /// Address and backend type of an IPv4 lease are the same as with flannel's Go decoder.
    #[test]
    fn addresses_and_types_are_read_as_go_reads_them() {
        let ip = || Some(Ipv4Addr::new(192, 0, 2, 12));
        for (value, public_ip, backend) in [
            (r#"{"PublicIP":"192.0.2.12","BackendType":"host-gw"}"#, ip(), "host-gw"),
            (r#"{"publicIp":"192.0.2.12","BACKENDTYPE":"Host-GW"}"#, ip(), "host-gw"),
            (r#"{"PublicIP":"::ffff:192.0.2.12","BackendType":"host-gw"}"#, ip(), "host-gw"),
            (r#"{"PublicIP":"192.0.2.12"}"#, ip(), ""),
            (r#"{"PublicIP":"192.0.2.12","BackendType":null}"#, ip(), ""),
            (r#"{"PublicIP":"192.0.2.12","BackendType":"","BackendData":"x"}"#, ip(), ""),
            (r#"{"PublicIP":"192.0.2.12","BackendType":"extension","BackendData":"x"}"#, ip(), "extension"),
            // flannel reads a missing address as 0.0.0.0, which reaches no node.
            (r#"{"BackendType":"host-gw"}"#, None, "host-gw"),
            (r#"{"PublicIP":null,"BackendType":"host-gw"}"#, None, "host-gw"),
            (r#"{"PublicIP":"","BackendType":"host-gw"}"#, None, "host-gw"),
            (r#"{"PublicIP":"0.0.0.0","BackendType":"host-gw"}"#, None, "host-gw"),
            ("{}", None, ""),
        ] {
            let lease = Lease::parse("10.5.34.0-24", value.as_bytes(), 0).unwrap();
            assert_eq!((lease.public_ip, lease.announced.backend_type()), (public_ip, backend), "{value}");
        }
        for (value, word) in [
            (r#"{"PublicIP":3221225996}"#, "PublicIP"),
            (r#"{"PublicIP":"192.0.2.012"}"#, "PublicIP"),
            (r#"{"PublicIP":"2001:db8::1"}"#, "PublicIP"),
            (r#"{"PublicIP":"192.0.2.12/24"}"#, "PublicIP"),
            (r#"{"PublicIP":["192.0.2.12"]}"#, "PublicIP"),
            (r#"{"PublicIP":"192.0.2.12","BackendType":7}"#, "BackendType"),
            ("", "EOF"),
            ("null", "JSON object"),
        ] {
            let error = Lease::parse("10.5.34.0-24", value.as_bytes(), 0).unwrap_err();
            assert!(error.contains(word), "{value}: {error}");
        }
    }

    /// A fault in one family leaves the other family usable. flannel leaves the whole node out.
    #[test]
    fn a_fault_in_one_family_does_not_affect_the_second() {
        let good = r#"{"VtepMAC":"02:00:00:00:49:01"}"#;
        let with = |ipv4: &str, ipv6: &str, public_ipv6: &str| {
            let value = format!(
                r#"{{{HEAD},"PublicIPv6":{public_ipv6},"BackendData":{ipv4},"BackendV6Data":{ipv6}}}"#
            );
            Lease::parse("10.5.34.0-24&fd00:5:34::-64", value.as_bytes(), 0)
        };
        let vteps = |ipv4: &str, ipv6: &str, public_ipv6: &str| {
            let lease = with(ipv4, ipv6, public_ipv6).unwrap();
            let Announced::Vxlan { ipv4, ipv6 } = lease.announced else { panic!("no vxlan") };
            [ipv4.is_some(), ipv6.is_some(), lease.public_ip.is_some(), lease.public_ipv6.is_some()]
        };
        let ipv6 = r#""2001:db8::1""#;
        assert_eq!(vteps(good, good, ipv6), [true; 4]);
        assert_eq!(vteps(good, r#"{"VNI":"x"}"#, ipv6), [true, false, true, false]);
        assert_eq!(vteps(good, good, "7"), [true, false, true, false]);
        assert_eq!(vteps("[]", good, ipv6), [false, true, false, true]);
        assert_eq!(vteps(good, "null", "null"), [true, false, true, false]);
        assert!(with("[]", r#"{"VNI":"x"}"#, ipv6).unwrap_err().contains("BackendData"));
    }

    #[test]
    fn a_port_of_zero_counts_as_no_port() {
        for port in ["0", "null"] {
            let value = format!(
                r#"{{"BackendType":"vxlan","BackendData":{{"Port":{port},"VtepMAC":"0a:1b:2c:3d:4e:5f"}}}}"#
            );
            let lease = Lease::parse("10.5.34.0-24", value.as_bytes(), 0).unwrap();
            let Announced::Vxlan { ipv4: Some(vtep), ipv6: None } = lease.announced else { panic!("{port}") };
            assert_eq!(vtep.port, None);
        }
    }

    #[test]
    fn an_unreadable_lease_names_the_place() {
        for (key, value, word) in [
            ("10.5.34.0", "{}", "10.5.34.0"),
            ("10.5.34.0-33", "{}", "10.5.34.0-33"),
            ("10.5.34.0-24&FD00::-64", "{}", "lower case"),
            ("0.0.0.0-0", "{}", "no subnet"),
            ("10.5.34.0-24", "{", "line 1"),
            ("10.5.34.0-24", "[]", "JSON object"),
            ("10.5.34.0-24", r#"{"PublicIP":"300.1.1.1"}"#, "PublicIP"),
            ("10.5.34.0-24", r#"{"BackendType":"vxlan","BackendData":{"VtepMAC":"xx"}}"#, "VtepMAC"),
            ("0.0.0.0-0&fd00::-64", r#"{"BackendType":"vxlan","BackendV6Data":{"Port":65536}}"#, "Port"),
            (
                "10.5.34.0-24&fd00::-64",
                r#"{"BackendType":"vxlan","BackendData":{"VNI":"1"},"BackendV6Data":{"Port":65536}}"#,
                "BackendData: key \"VNI\"",
            ),
            ("10.5.34.0-24", r#"{"BackendType":"vxlan","BackendData":{"VNI":16777216}}"#, "24 bits"),
            ("10.5.34.0-24", r#"{"BackendType":"vxlan","BackendData":{"Port":-1}}"#, "Port"),
            ("10.5.34.0-24", r#"{"BackendType":"vxlan","BackendData":{"Port":"8472"}}"#, "Port"),
        ] {
            let error = Lease::parse(key, value.as_bytes(), 0).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
