//! Common helpers for tests of the traffic rules: configs of each manager, addresses of each family, a node's rules.

use std::net::{IpAddr, SocketAddr};

use lab::{Iptables, Node, Ns, OUTSIDE, OUTSIDE6, Pod};

pub(crate) const MASQ: &[&str] = &["--iface=eth0", "--ip-masq"];
pub(crate) const BACKENDS: [&str; 2] = ["vxlan", "host-gw"];

/// Program that the network config selects to enforce the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manager {
    Nft,
    Iptables,
    Auto,
}

impl Manager {
    pub(crate) const BOTH: [Self; 2] = [Self::Nft, Self::Iptables];
    pub(crate) const ALL: [Self; 3] = [Self::Nft, Self::Iptables, Self::Auto];

    /// Returns the config of a dual-stack network with that backend.
    pub(crate) fn config(self, backend: &str) -> String {
        self.config_with(&format!(r#""Type":"{backend}""#))
    }

    /// Same as [`Self::config`], with these fields of the backend.
    pub(crate) fn config_with(self, backend: &str) -> String {
        let manager = match self {
            Self::Nft => r#""EnableNFTables":true,"#,
            Self::Iptables => r#""EnableNFTables":false,"#,
            Self::Auto => "",
        };
        format!(
            r#"{{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48",{manager}"Backend":{{{backend}}}}}"#
        )
    }
}

/// A value for each family, IPv4 first.
pub(crate) type Both<T> = [T; 2];

pub(crate) const OUTSIDES: Both<IpAddr> = [IpAddr::V4(OUTSIDE), IpAddr::V6(OUTSIDE6)];
pub(crate) const NETWORKS: Both<&str> = ["10.244.0.0/16", "fd00:244::/48"];

pub(crate) fn of_node(node: &Node) -> Both<IpAddr> {
    [node.ip.into(), node.ip6.into()]
}

pub(crate) fn of_pod(pod: &Pod) -> Both<IpAddr> {
    [pod.ip4.unwrap().into(), pod.ip6.unwrap().into()]
}

/// Returns the first address of the node's pod subnet, which a tunnel device has.
pub(crate) fn of_tunnel(node: &Node) -> Both<IpAddr> {
    [node.subnet(), node.subnet6()].map(|subnet| subnet.split('/').next().unwrap().parse().unwrap())
}

pub(crate) fn socket(ip: IpAddr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// Returns flannel's nftables tables, without counters; empty if there are none.
pub(crate) fn tables(ns: &Ns) -> String {
    ns.run("for t in 'ip flannel-ipv4' 'ip6 flannel-ipv6'; do nft -s list table $t 2>/dev/null; done; true")
}

/// Returns true if these tables have chains for masquerading or forwarding.
pub(crate) fn has_chains(ns: &Ns) -> bool {
    let tables = tables(ns);
    tables.contains("chain postrtg") || tables.contains("chain forward")
}

/// Returns flannel's lines of `iptables-save`, of one variant and both families, in their order.
pub(crate) fn lines(ns: &Ns, variant: Iptables) -> Vec<String> {
    let texts = variant.saved(ns);
    let all = texts.iter().flat_map(|text| text.lines());
    all.filter(|line| line.contains("FLANNEL") || line.contains("flanneld")).map(str::to_owned).collect()
}

/// Returns true if only `manager` has rules for masquerading and forwarding.
pub(crate) fn is_by(ns: &Ns, manager: Manager) -> bool {
    let iptables = Iptables::BOTH.iter().any(|variant| !lines(ns, *variant).is_empty());
    has_chains(ns) == (manager != Manager::Iptables) && iptables == (manager == Manager::Iptables)
}

/// Returns all of flannel's rules on a node, whichever program enforces them.
pub(crate) fn rules(ns: &Ns) -> String {
    Iptables::BOTH
        .iter()
        .flat_map(|variant| lines(ns, *variant))
        .fold(tables(ns), |text, line| text + &line + "\n")
}
