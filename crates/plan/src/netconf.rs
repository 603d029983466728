//! Network config as flannel parses it (flannel-compat 2): the value of etcd's `config` key, or the file of
//! `--net-config-path`. The daemon decides what a change of it means for a running node.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::config::Config;
use crate::family::Family;
use crate::fields::Fields;
use crate::pool::Pool;
use crate::text::printed;

/// Network config, valid and with every default filled in. [`NetConf::parse`] reads it from flannel's JSON.
///
/// ```json
/// {"Network": "10.244.0.0/16", "SubnetLen": 24, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48",
///  "Backend": {"Type": "vxlan", "VNI": 1, "DirectRouting": true}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConf {
    /// `Network` and the subnets that are leased from it; `None` if IPv4 is off.
    pub ipv4: Option<Pool>,
    /// `IPv6Network` and the subnets that are leased from it; `None` if IPv6 is off.
    pub ipv6: Option<Pool>,
    /// `EnableNFTables`; `None` if the config does not have the key.
    pub nftables: Option<bool>,
    pub backend: Backend,
    /// True if the config names a backend; false if the backend is the default.
    #[serde(default)]
    pub names_backend: bool,
}

/// Reason why a network config cannot be used. It names the key, or the line and column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfError(String);

impl fmt::Display for NetConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network config: {}", self.0)
    }
}

impl std::error::Error for NetConfError {}

impl NetConf {
    /// Parses and validates a config (flannel-compat 2.1 to 2.3). The error names the key, or the line and column.
    pub fn parse(text: &[u8]) -> Result<Self, NetConfError> {
        Self::parse_imposing(None, text)
    }

    /// Parses the config of a node on which a backend type is imposed. Options of the config count if it names the same
    /// type; otherwise the defaults do.
    pub fn parse_imposing(backend: Option<&Backend>, text: &[u8]) -> Result<Self, NetConfError> {
        Self::read(text, backend).map_err(|error| NetConfError(printed(error)))
    }

    /// Returns the config that `parse_imposing` would have returned for the same text.
    pub fn imposing(mut self, backend: Option<&Backend>) -> Self {
        self.backend = self.backend.imposing(backend);
        self
    }

    fn read(text: &[u8], imposed: Option<&Backend>) -> Result<Self, String> {
        let fields = Fields::parse(text)?;
        let ipv4 = fields.get("EnableIPv4")?.unwrap_or(true).then(|| ipv4_pool(&fields)).transpose()?;
        let ipv6 = fields.get("EnableIPv6")?.unwrap_or(false).then(|| ipv6_pool(&fields)).transpose()?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err("EnableIPv4 and EnableIPv6 are both false: enable one of them".into());
        }
        let backend = fields.raw("Backend");
        let names_backend = backend.is_some();
        let backend =
            Backend::parse(backend, imposed).map_err(|error| format!("key \"Backend\": {error}"))?;
        backend.check_device_names(ipv6.is_some())?;
        Ok(Self { ipv4, ipv6, nftables: fields.get("EnableNFTables")?, backend, names_backend })
    }

    /// Returns the part on which plans depend.
    pub fn config(&self) -> Config {
        let (ipv4, ipv6) = (self.ipv4.map(|pool| pool.network), self.ipv6.map(|pool| pool.network));
        Config {
            ipv4: ipv4
                .and_then(|network| if let IpNet::V4(network) = network { Some(network) } else { None }),
            ipv6: ipv6
                .and_then(|network| if let IpNet::V6(network) = network { Some(network) } else { None }),
            leasable: [self.ipv4, self.ipv6].into_iter().flatten().map(|pool| pool.range()).collect(),
            ..Config::new(self.backend.clone())
        }
    }

    /// Returns the pool of the family.
    pub fn pool(&self, family: Family) -> Option<&Pool> {
        match family {
            Family::Ipv4 => self.ipv4.as_ref(),
            Family::Ipv6 => self.ipv6.as_ref(),
        }
    }
}

fn ipv4_pool(fields: &Fields) -> Result<Pool, String> {
    let network: Ipv4Net =
        fields.parsed("Network")?.ok_or("key \"Network\" is missing: write the pods' network")?;
    let keys = Keys { len: "SubnetLen", min: "SubnetMin", max: "SubnetMax", longest: 30, usual: 24 };
    pool::<Ipv4Addr>(fields, network.trunc().into(), &keys)
}

fn ipv6_pool(fields: &Fields) -> Result<Pool, String> {
    let missing = "key \"IPv6Network\" is missing: write the pods' network";
    let network: Ipv6Net = fields.parsed("IPv6Network")?.ok_or(missing)?;
    let keys =
        Keys { len: "IPv6SubnetLen", min: "IPv6SubnetMin", max: "IPv6SubnetMax", longest: 126, usual: 64 };
    pool::<Ipv6Addr>(fields, network.trunc().into(), &keys)
}

struct Keys {
    len: &'static str,
    min: &'static str,
    max: &'static str,
    longest: u8,
    /// Prefix length that is used if the network leaves room for it.
    usual: u8,
}

fn pool<A>(fields: &Fields, network: IpNet, keys: &Keys) -> Result<Pool, String>
where
    A: std::str::FromStr<Err: fmt::Display> + Into<IpAddr>,
{
    let bits = network.prefix_len();
    if bits == 0 {
        return Err(format!("{network} is no network to lease subnets from: give it a prefix length"));
    }
    let len = match fields.get::<u8>(keys.len)?.filter(|&len| len != 0) {
        Some(len) if len > keys.longest || len < bits + 2 => {
            let (key, longest) = (keys.len, keys.longest);
            return Err(format!(
                "key {key:?}: {len} is not between {} (four subnets in {network}) and {longest}",
                bits + 2
            ));
        }
        Some(len) => len,
        None if bits > keys.longest - 2 => return Err(format!("{network} is too small for four subnets")),
        None if bits <= keys.usual - 2 => keys.usual,
        None => bits + 2,
    };
    let bound = |key: &str| -> Result<Option<IpAddr>, String> {
        let address: Option<A> = fields.parsed(key)?;
        Ok(address.map(Into::into).filter(|address: &IpAddr| !address.is_unspecified()))
    };
    Pool::new(network, len, bound(keys.min)?, bound(keys.max)?)
        .map_err(|error| format!("keys {:?}, {:?}: {error}", keys.min, keys.max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Direct, vxlan};

    fn parse(text: &str) -> Result<NetConf, String> {
        NetConf::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_flannels_except_for_the_backend() {
        let conf = parse(r#"{"network":"10.3.1.2/16"}"#).unwrap();
        let pool = conf.ipv4.unwrap();
        assert_eq!(pool.to_string(), "10.3.0.0/16, subnets /24 from 10.3.1.0 to 10.3.255.0");
        assert_eq!(conf.ipv6, None);
        assert_eq!(conf.backend, Backend::Vxlan(vxlan::VxlanOptions::default()));
        let conf = parse(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#).unwrap();
        let pool = conf.ipv6.unwrap();
        assert_eq!(pool.to_string(), "fc00::/48, subnets /64 from fc00:0:0:1:: to fc00:0:0:ffff::");
    }

    #[test]
    fn option_names_match_in_any_letter_case() {
        let text = r#"{"Network":"10.244.0.0/16","SubnetLen":26,"subnetmin":"10.244.1.0","Backend":{"type":"VXLAN","vni":42,"Port":4789,"mtu":1400,"GBP":true,"directrouting":true}}"#;
        let conf = parse(text).unwrap();
        let options = vxlan::VxlanOptions {
            vni: 42,
            port: 4789,
            mtu: Some(1400),
            gbp: true,
            learning: false,
            direct: Direct::Verified,
            ..Default::default()
        };
        assert_eq!(conf.backend, Backend::Vxlan(options));
        assert_eq!(
            conf.ipv4.unwrap().to_string(),
            "10.244.0.0/16, subnets /26 from 10.244.1.0 to 10.244.255.192"
        );
    }

    #[test]
    fn an_imposed_backend_takes_options_from_its_own_type_alone() {
        let with = |backend: &str| format!(r#"{{"Network":"10.3.0.0/16","Backend":{backend}}}"#);
        let seven = r#"{"Type":"VXLAN","VNI":7}"#;
        for (backend, imposed, expected) in [
            (seven, "vxlan", Ok(7)),
            (seven, "auto", Ok(7)),
            (r#"{"Type":"auto","VNI":7}"#, "vxlan", Ok(7)),
            (r#"{"Type":"host-gw"}"#, "auto", Ok(1)),
            (seven, "host-gw", Ok(0)),
            (r#"{"Type":"host-gw"}"#, "vxlan", Ok(1)),
            ("null", "vxlan", Ok(1)),
            ("null", "alloc", Ok(0)),
            // A backend that is not used may be invalid.
            (r#"{"Type":"udp","Port":"x"}"#, "vxlan", Ok(1)),
            (r#"{"Type":"vxlan","VNI":-7}"#, "host-gw", Ok(0)),
            ("{}", "vxlan", Ok(1)),
            ("[]", "host-gw", Ok(0)),
            (r#"{"Type":"vxlan","VNI":-7}"#, "vxlan", Err("VNI")),
        ] {
            let imposed: Backend = imposed.parse().unwrap();
            let conf = NetConf::parse_imposing(Some(&imposed), with(backend).as_bytes());
            match (conf, expected) {
                (Ok(conf), Ok(vni)) => {
                    let got = if let Backend::Vxlan(options) = conf.backend { options.vni } else { 0 };
                    assert_eq!((conf.backend.name(), got), (imposed.name(), vni), "{backend}");
                }
                (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{error}"),
                (conf, _) => panic!("{backend}: {conf:?}"),
            }
        }
    }

    #[test]
    fn a_backend_can_be_imposed_during_or_after_parsing() {
        let text = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
        for imposed in ["vxlan", "auto", "host-gw", "alloc"].map(|name| name.parse::<Backend>().unwrap()) {
            let parsed = NetConf::parse_imposing(Some(&imposed), text.as_bytes()).unwrap();
            assert_eq!(parse(text).unwrap().imposing(Some(&imposed)), parsed);
        }
        assert_eq!(parse(text).unwrap().imposing(None), parse(text).unwrap());
        assert!(
            parse(text).unwrap().names_backend
                && !parse(r#"{"Network":"10.3.0.0/16"}"#).unwrap().names_backend
        );
    }

    #[test]
    fn direct_routing_is_verified_unless_disabled() {
        use Direct::{Never, OnLink, Verified};
        let with = |backend: &str, imposed: Option<&str>| {
            let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{{backend}}}}}"#);
            let imposed = imposed.map(|name| name.parse::<Backend>().unwrap());
            NetConf::parse_imposing(imposed.as_ref(), text.as_bytes())
        };
        for (backend, imposed, expected, words) in [
            (r#""Type":"vxlan""#, None, Never, "vxlan"),
            (r#""Type":"vxlan","VerifyDirect":true"#, None, Never, "vxlan"),
            (r#""Type":"vxlan","DirectRouting":true"#, None, Verified, "vxlan, direct where verified"),
            (r#""Type":"auto","DirectRouting":true"#, None, Verified, "vxlan, direct where verified"),
            (
                r#""Type":"vxlan","DirectRouting":true,"verifydirect":false"#,
                None,
                OnLink,
                "vxlan, direct on the segment",
            ),
            (
                r#""Type":"vxlan","DirectRouting":true,"VerifyDirect":false"#,
                Some("vxlan"),
                OnLink,
                "vxlan, direct on the segment",
            ),
            (
                r#""Type":"vxlan","DirectRouting":true,"VerifyDirect":false"#,
                Some("auto"),
                Verified,
                "vxlan, direct where verified",
            ),
            (r#""Type":"vxlan""#, Some("auto"), Verified, "vxlan, direct where verified"),
            (r#""Type":"auto""#, Some("vxlan"), Verified, "vxlan, direct where verified"),
            (r#""Type":"auto""#, Some("host-gw"), Never, "host-gw"),
        ] {
            let conf = with(backend, imposed).unwrap();
            assert_eq!(
                (conf.backend.direct(), conf.backend.to_string()),
                (expected, words.into()),
                "{backend}"
            );
        }
        for (backend, word) in [
            (r#""Type":"auto","DirectRouting":false"#, "DirectRouting"),
            (r#""Type":"auto","VerifyDirect":false"#, "VerifyDirect"),
            (r#""Type":"vxlan","DirectRouting":true,"VerifyDirect":1"#, "VerifyDirect"),
            (r#""Type":"vxlan","DirectMTU":true"#, "DirectMTU"),
        ] {
            let error = with(backend, None).unwrap_err().to_string();
            assert!(error.contains(&format!("{word:?}")), "{backend}: {error}");
        }
    }

    #[test]
    fn pods_get_the_tunnel_mtu_and_with_direct_mtu_the_uplinks() {
        let mtu = |backend: &str| {
            let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"auto"{backend}}}}}"#);
            let uplink = crate::node::Uplink {
                ipv4: Some([192, 0, 2, 1].into()),
                ..crate::node::Uplink::new("eth0".parse().unwrap(), 1500)
            };
            parse(&text).unwrap().backend.pod_mtu(&uplink)
        };
        assert_eq!([mtu(""), mtu(r#","MTU":1400"#)], [1450, 1350]);
        assert_eq!([mtu(r#","DirectMTU":true"#), mtu(r#","DirectMTU":true,"MTU":1400"#)], [1500, 1400]);
    }

    #[test]
    fn a_config_survives_a_round_trip_through_json() {
        let text = r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.9.0","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan","GBP":true}}"#;
        let conf = parse(text).unwrap();
        let kept = serde_json::to_value(&conf).unwrap();
        assert_eq!(serde_json::from_value::<NetConf>(kept).unwrap(), conf);
    }

    #[test]
    fn each_fault_names_its_key_or_place() {
        for (text, word) in [
            (r#"{"Network":"10.3.0.0/16","#, "line 1 column"),
            ("[]", "JSON object"),
            ("{}", "Network"),
            (r#"{"Network":"fc00::/48"}"#, "Network"),
            (r#"{"Network":"0.0.0.0/0"}"#, "prefix length"),
            (r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#, "SubnetLen"),
            (r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#, "SubnetLen"),
            (r#"{"Network":"10.3.0.0/29"}"#, "too small"),
            (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#, "SubnetMin"),
            (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.0.7"}"#, "SubnetMin"),
            (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#, "SubnetMax"),
            (r#"{"Network":"10.3.0.0/16","EnableIPv4":false}"#, "EnableIPv6"),
            (r#"{"Network":"10.3.0.0/16","EnableIPv4":"yes"}"#, "EnableIPv4"),
            (r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#, "IPv6Network"),
            (r#"{"Network":"10.3.0.0/16","Backend":{}}"#, "Type"),
            (r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#, "Backend"),
            (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"carrier-pigeon"}}"#, "carrier-pigeon"),
            (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, "VNI"),
            (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":10000000}}"#, "VNI"),
            (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#, "Port"),
            (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","MTU":50}}"#, "MTU"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
