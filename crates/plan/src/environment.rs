//! What of the machine around us keeps traffic rules from working, though no object of ours is missing: told, with the
//! command, and never changed.

use std::fmt;

use ipnet::IpNet;

use crate::input::{Config, Family, Underlay};
use crate::note::{NodeFault, Note};

/// Of the module br_netfilter; without it they are not there.
const BRIDGE: [(Family, &str); 2] = [
    (Family::Ipv4, "net/bridge/bridge-nf-call-iptables"),
    (Family::Ipv6, "net/bridge/bridge-nf-call-ip6tables"),
];

/// What the kernel is read for.
pub(crate) fn paths(config: &Config) -> impl Iterator<Item = Box<str>> {
    bridge(config).map(Into::into)
}

fn bridge(config: &Config) -> impl Iterator<Item = &'static str> {
    BRIDGE.into_iter().filter(|(family, _)| config.network(*family).is_some()).map(|(_, path)| path)
}

/// Do the rules of iptables, where these are `needed`, see what goes from one port of a bridge to another?
pub fn bridge_netfilter(config: &Config, seen: &Underlay, needed: bool) -> Vec<Note> {
    let faults = bridge(config).filter(|_| needed).filter_map(|path| match seen.sysctl(path) {
        None => Some(NodeFault::BridgeNetfilterMissing),
        Some("0") => Some(NodeFault::BridgeNetfilterOff { path: path.into() }),
        Some(_) => None,
    });
    let mut notes: Vec<Note> = faults.map(Note::Node).collect();
    notes.dedup();
    notes
}

/// A firewalld that runs refuses what it was not told of: VXLAN to our port, and what pods send.
pub fn firewalld(config: &Config, active: bool) -> Vec<Note> {
    let networks = Family::ALL.into_iter().filter_map(|family| config.network(family));
    let networks: Vec<IpNet> = networks.filter(|_| active).collect();
    let port = config.backend.port();
    networks.into_iter().map(|network| Note::Node(NodeFault::FirewalldActive { port, network })).collect()
}

pub(crate) const BRIDGE_NETFILTER_MISSING: &str = "the module br_netfilter is not loaded, so rules for traffic do not see \
     what goes from one pod of this node to another. Run: modprobe br_netfilter";

pub(crate) fn bridge_netfilter_off(f: &mut fmt::Formatter<'_>, path: &str) -> fmt::Result {
    write!(
        f,
        "sysctl {path} is 0, so rules for traffic do not see what goes from one pod of this node to another. Run: sysctl -w \
         {path}=1"
    )
}

pub(crate) fn firewalld_active(
    f: &mut fmt::Formatter<'_>,
    port: Option<u16>,
    network: &IpNet,
) -> fmt::Result {
    f.write_str("firewalld runs here and refuses what it was not told to let through. Unless it was, run: ")?;
    if let Some(port) = port {
        write!(f, "firewall-cmd --permanent --add-port={port}/udp; ")?;
    }
    write!(f, "firewall-cmd --permanent --zone=trusted --add-source={network}; firewall-cmd --reload")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::netconf::NetConf;
    use crate::state::Sysctl;

    fn config() -> Config {
        let text = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", "Backend": {"Type": "vxlan"}}"#;
        NetConf::parse(text.as_bytes()).unwrap().config()
    }

    fn with(values: [&str; 2]) -> Underlay {
        let rows = BRIDGE.iter().zip(values).filter(|(_, value)| !value.is_empty());
        let rows = rows.map(|((_, path), value)| Sysctl { path: (*path).into(), value: value.into() });
        Underlay { sysctls: rows.collect(), ..Underlay::default() }
    }

    fn told(notes: &[Note]) -> Vec<String> {
        notes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bridge_that_passes_by_the_rules_is_told_where_that_matters() {
        let told = |values, needed| told(&bridge_netfilter(&config(), &with(values), needed));
        assert_eq!(told(["1", "1"], true), [""; 0]);
        assert_eq!(told(["", ""], false), [""; 0]);
        assert!(
            matches!(&told(["", ""], true)[..], [missing] if missing.ends_with("Run: modprobe br_netfilter"))
        );
        let off = told(["1", "0"], true);
        assert!(
            matches!(&off[..], [off] if off.ends_with("Run: sysctl -w net/bridge/bridge-nf-call-ip6tables=1")),
            "{off:?}"
        );
        let ipv4 = Config { ipv6: None, ..config() };
        assert_eq!(bridge_netfilter(&ipv4, &with(["1", ""]), true), []);
    }

    #[test]
    fn firewalld_is_told_with_the_commands_for_port_and_pods() {
        assert_eq!(firewalld(&config(), false), []);
        let notes = told(&firewalld(&config(), true));
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(
            notes[0].ends_with(
                "run: firewall-cmd --permanent --add-port=8472/udp; firewall-cmd --permanent --zone=trusted \
                 --add-source=10.244.0.0/16; firewall-cmd --reload"
            ),
            "{notes:?}"
        );
        let host_gw = Config { backend: Backend::HostGw, ..config() };
        let notes = told(&firewalld(&host_gw, true));
        assert!(!notes[0].contains("add-port"), "{notes:?}");
    }
}
