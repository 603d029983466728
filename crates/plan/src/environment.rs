//! Finds settings of the machine that keep traffic rules or routes from working, though no object of ours is missing.
//! They are reported with the command that changes them, and never changed.

use ipnet::IpNet;

use crate::config::Config;
use crate::family::Family;
use crate::peer::PeerPath;
use crate::state::State;
use crate::underlay::{Firewalld, Underlay};
use crate::warning::{NodeFault, Warning};

/// Sysctls of the module br_netfilter; they do not exist without it.
const BRIDGE: [(Family, &str); 2] = [
    (Family::Ipv4, "net/bridge/bridge-nf-call-iptables"),
    (Family::Ipv6, "net/bridge/bridge-nf-call-ip6tables"),
];

/// Returns the sysctl paths that these checks read.
pub(crate) fn paths(config: &Config) -> impl Iterator<Item = Box<str>> {
    let neighbours = config.families().map(max_neighbours);
    bridge(config).map(Into::into).chain(neighbours)
}

/// Returns the sysctl for the maximum number of neighbours in the kernel, in all network namespaces. Permanent neighbours
/// do not count.
fn max_neighbours(family: Family) -> Box<str> {
    match family {
        Family::Ipv4 => "net/ipv4/neigh/default/gc_thresh3".into(),
        Family::Ipv6 => "net/ipv6/neigh/default/gc_thresh3".into(),
    }
}

fn bridge(config: &Config) -> impl Iterator<Item = &'static str> {
    BRIDGE.into_iter().filter(|(family, _)| config.network(*family).is_some()).map(|(_, path)| path)
}

/// Returns a warning for everything that is in the way of the desired rules and routes.
pub(crate) fn environment(
    config: &Config,
    observed: &Underlay,
    desired: &State,
    peers: &[PeerPath],
) -> Vec<Warning> {
    let mut faults = bridge_netfilter(config, observed, !desired.iptables.is_empty());
    faults.extend(config.families().filter_map(|family| crowded(family, observed, peers)));
    faults.extend(observed.firewall.firewalld.as_ref().and_then(|firewalld| refused(config, firewalld)));
    faults.into_iter().map(Warning::Node).collect()
}

/// Returns faults if rules of iptables do not see packets from one port of a bridge to another. `needed` says whether
/// iptables has rules of ours.
fn bridge_netfilter(config: &Config, observed: &Underlay, needed: bool) -> Vec<NodeFault> {
    let faults = bridge(config).filter(|_| needed).filter_map(|path| match observed.sysctl(path) {
        None => Some(NodeFault::BridgeNetfilterMissing),
        Some("0") => Some(NodeFault::BridgeNetfilterOff { path: path.into() }),
        Some(_) => None,
    });
    let mut faults: Vec<NodeFault> = faults.collect();
    faults.dedup();
    faults
}

/// Returns a fault if the peers of one family come near the number of neighbours that the kernel keeps. Every peer on the
/// segment counts: a packet of the tunnel, too, needs a neighbour for its outer destination.
fn crowded(family: Family, observed: &Underlay, peers: &[PeerPath]) -> Option<NodeFault> {
    let path = max_neighbours(family);
    let limit: usize = observed.sysctl(&path)?.parse().ok()?;
    let is_neighbour = |peer: &&PeerPath| peer.on_link && Family::of(peer.public_ip) == family;
    let neighbours = peers.iter().filter(is_neighbour).count();
    let enough = (neighbours * 2).next_power_of_two();
    (neighbours * 5 >= limit * 4).then_some(NodeFault::NeighboursLimited { path, limit, enough })
}

/// Returns a fault if firewalld runs and was not configured to accept VXLAN to our port and packets of pods.
fn refused(config: &Config, firewalld: &Firewalld) -> Option<NodeFault> {
    let is_trusted = |network: &IpNet| firewalld.sources.iter().any(|source| source.contains(network));
    let networks: Vec<IpNet> = config.networks().filter(|network| !is_trusted(network)).collect();
    let port = config.backend.port().filter(|port| !firewalld.ports.contains(port));
    (port.is_some() || !networks.is_empty()).then(|| NodeFault::Firewalld { port, networks: networks.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::netconf::NetConf;
    use crate::peer::Path;
    use crate::state::Sysctl;
    use crate::tunnel_id::TunnelKind;

    fn config() -> Config {
        let text = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", "Backend": {"Type": "vxlan"}}"#;
        NetConf::parse(text.as_bytes()).unwrap().config()
    }

    fn with(values: [&str; 2]) -> Underlay {
        let rows = BRIDGE.iter().zip(values).filter(|(_, value)| !value.is_empty());
        let rows = rows.map(|((_, path), value)| Sysctl { path: (*path).into(), value: value.into() });
        Underlay { sysctls: rows.collect(), ..Underlay::default() }
    }

    fn told(warnings: &[Warning]) -> Vec<String> {
        warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bridge_that_bypasses_the_rules_is_reported_where_that_matters() {
        let told = |values, needed| {
            let faults = bridge_netfilter(&config(), &with(values), needed).into_iter();
            told(&faults.map(Warning::Node).collect::<Vec<_>>())
        };
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
    fn a_nearly_full_neighbour_table_is_reported() {
        let underlay = Underlay {
            sysctls: vec![Sysctl { path: max_neighbours(Family::Ipv4), value: "1024".into() }],
            ..Underlay::default()
        };
        let peers = |path: Path, on_link: bool, count: u32| -> Vec<PeerPath> {
            let address = |number: u32| std::net::Ipv4Addr::from(0x0a00_0000 + number);
            let peer = |number| PeerPath {
                subnet: ipnet::Ipv4Net::new_assert(address(number << 8), 24).into(),
                public_ip: address(number).into(),
                path,
                on_link,
                tunnel: None,
                by_evidence: false,
                born: 0,
            };
            (0..count).map(peer).collect()
        };
        let told = |peers: &[PeerPath]| told(&environment(&config(), &underlay, &State::default(), peers));
        assert_eq!(
            told(&peers(Path::Tunnel(TunnelKind::Vxlan), false, 5000)),
            [""; 0],
            "the router is their only next hop"
        );
        for path in [Path::Direct, Path::Tunnel(TunnelKind::Vxlan)] {
            assert_eq!(told(&peers(path, true, 819)), [""; 0]);
            let near = &told(&peers(path, true, 820))[0];
            assert!(near.ends_with("Run: sysctl -w net/ipv4/neigh/default/gc_thresh3=2048"), "{near}");
        }
    }

    #[test]
    fn firewalld_is_reported_with_the_commands_for_port_and_pods() {
        let told = |config: &Config, firewalld: Option<Firewalld>| {
            let mut underlay = Underlay::default();
            underlay.firewall.firewalld = firewalld;
            told(&environment(config, &underlay, &State::default(), &[]))
        };
        assert_eq!(told(&config(), None), [""; 0]);
        let [all] = &told(&config(), Some(Firewalld::default()))[..] else { panic!("one warning") };
        assert!(
            all.ends_with(
                "Run: firewall-cmd --permanent --add-port=8472/udp; firewall-cmd --permanent --zone=trusted \
                 --add-source=10.244.0.0/16; firewall-cmd --permanent --zone=trusted --add-source=fd00:10:244::/48; \
                 firewall-cmd --reload"
            ),
            "{all}"
        );
        let known = Firewalld {
            ports: vec![8472],
            sources: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        };
        assert_eq!(told(&config(), Some(known.clone())), [""; 0]);
        let no_port = told(&config(), Some(Firewalld { ports: vec![], ..known }));
        assert!(no_port[0].contains("add-port") && !no_port[0].contains("add-source"), "{no_port:?}");
        let host_gw = Config { backend: Backend::HostGw, ..config() };
        assert!(!told(&host_gw, Some(Firewalld::default()))[0].contains("add-port"));
    }
}
