//! Subnet file (`/run/flannel/subnet.env`), which flannel's CNI plugin and Docker read (flannel-compat 8). It is printed
//! as flannel prints it, and an old file is read for what this node had before. The daemon writes it to disk.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Config;
use crate::env_file;
use crate::subnet::Subnet;

/// Content of the subnet file.
///
/// ```text
/// FLANNEL_NETWORK=10.5.0.0/16
/// FLANNEL_SUBNET=10.5.72.1/24
/// FLANNEL_IPV6_NETWORK=fd00:5::/32
/// FLANNEL_IPV6_SUBNET=fd00:5:72::1/64
/// FLANNEL_MTU=1450
/// FLANNEL_IPMASQ=true
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Pod network and subnet of the node.
    pub ipv4: Option<(Ipv4Net, Ipv4Net)>,
    pub ipv6: Option<(Ipv6Net, Ipv6Net)>,
    /// MTU of pods, in bytes.
    pub mtu: u32,
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Returns the content for a node. A family is included if it is configured and leased.
    pub fn new(config: &Config, subnet: &Subnet, mtu: u32, ip_masq: bool) -> Self {
        Self { ipv4: config.ipv4.zip(subnet.ipv4), ipv6: config.ipv6.zip(subnet.ipv6), mtu, ip_masq }
    }
}

impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut family = |prefix: &str, network: IpNet, subnet: IpNet| {
            let first = subnet.hosts().next().unwrap_or(subnet.addr());
            writeln!(f, "FLANNEL_{prefix}NETWORK={network}")?;
            writeln!(f, "FLANNEL_{prefix}SUBNET={first}/{}", subnet.prefix_len())
        };
        if let Some((network, subnet)) = self.ipv4 {
            family("", network.into(), subnet.into())?;
        }
        if let Some((network, subnet)) = self.ipv6 {
            // `hosts()` of an IPv6 network starts at its network address. flannel adds one to that address in both
            // families.
            let first = std::net::Ipv6Addr::from(u128::from(subnet.network()) + 1);
            writeln!(f, "FLANNEL_IPV6_NETWORK={network}")?;
            writeln!(f, "FLANNEL_IPV6_SUBNET={first}/{}", subnet.prefix_len())?;
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

/// Returns the subnets that an existing file names: the node's previous ones. Anything unreadable counts as absent.
pub fn previous_subnet(text: &str) -> Option<Subnet> {
    let subnet = Subnet {
        ipv4: value::<Ipv4Net>(text, "FLANNEL_SUBNET").map(|net| net.trunc()),
        ipv6: value::<Ipv6Net>(text, "FLANNEL_IPV6_SUBNET").map(|net| net.trunc()),
    };
    subnet.nets().next().is_some().then_some(subnet)
}

/// Returns the pod networks that an existing file names.
pub fn networks(text: &str) -> Vec<IpNet> {
    let ipv4 = value::<Ipv4Net>(text, "FLANNEL_NETWORK").map(IpNet::V4);
    let ipv6 = value::<Ipv6Net>(text, "FLANNEL_IPV6_NETWORK").map(IpNet::V6);
    [ipv4, ipv6].into_iter().flatten().map(|network| network.trunc()).collect()
}

/// Returns the value of a key as a shell would: the last line of a name counts.
fn value<T: std::str::FromStr>(text: &str, key: &str) -> Option<T> {
    let lines = env_file::parse(text).filter_map(|line| line.assignment.ok());
    lines.filter(|(name, _)| name == key).last()?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_file_equals_flannels_and_reads_back() {
        let subnet = Subnet::parse("10.5.72.0-24&fd00:5:72::-64").unwrap();
        let config = Config {
            ipv4: Some("10.5.0.0/16".parse().unwrap()),
            ipv6: Some("fd00:5::/32".parse().unwrap()),
            ..Config::new(crate::backend::Backend::HostGw)
        };
        let text = SubnetEnv::new(&config, &subnet, 1450, true).to_string();
        let expected = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/32\n\
                        FLANNEL_IPV6_SUBNET=fd00:5:72::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(text, expected);
        assert_eq!(previous_subnet(&text), Some(subnet));
        assert_eq!(networks(&text), ["10.5.0.0/16".parse().unwrap(), "fd00:5::/32".parse().unwrap()]);
    }

    #[test]
    fn an_incomplete_subnet_file_gives_no_subnet() {
        assert_eq!(previous_subnet(""), None);
        assert_eq!(previous_subnet("FLANNEL_SUBNET=10.5."), None);
        assert_eq!(networks("FLANNEL_NETWORK=10.5.0.0/"), []);
        assert_eq!(
            previous_subnet("# x\nexport FLANNEL_SUBNET=\"10.5.72.1/24\"\r\n").unwrap().to_string(),
            "10.5.72.0-24"
        );
    }
}
