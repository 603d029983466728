//! Sysctls that a pod network needs. The node's own sysctls are planned only if necessary, only to raise them, and only
//! if they could be read. The crate `kernel` writes them.

use crate::backend::Direct;
use crate::config::Config;
use crate::environment;
use crate::family::Family;
use crate::name::LinkName;
use crate::node::Node;
use crate::state::{FORWARD, FORWARD_IPV6, State, Sysctl};
use crate::tunnel_id::family_of_device;
use crate::underlay::Underlay;
use crate::uplink::ipv6_mtu;
use crate::warning::NodeFault;

/// Value of `rp_filter` that checks sources strictly.
const STRICT: u8 = 1;
/// Value of `rp_filter` that checks sources loosely.
const LOOSE: &str = "2";
/// Value of `accept_ra` that accepts router advertisements unless the node forwards.
const ACCEPTS_RA_UNLESS_FORWARDING: &str = "1";
/// Value of `accept_ra` that accepts router advertisements in any case.
const ACCEPTS_RA: &str = "2";

/// Returns the paths of the sysctls that are read.
pub(crate) fn paths(config: &Config, uplink: LinkName, links: &[LinkName]) -> Vec<Box<str>> {
    let mut paths: Vec<Box<str>> = links.iter().map(|&link| accept_ra(link)).collect();
    if config.ipv6.is_some() {
        let ours = links.iter().filter(|link| !carries_ipv4(**link)).map(LinkName::as_str);
        paths.extend(["default"].into_iter().chain(ours).map(disable_ipv6));
    }
    if config.backend.reaches_peers() {
        if config.ipv4.is_some() {
            paths.extend([FORWARD.into(), rp_filter("all"), rp_filter("default")]);
            paths.extend(
                links.iter().filter(|link| carries_ipv4(**link)).map(|link| rp_filter(link.as_str())),
            );
            paths.extend([forwarding(uplink), forwarding_of("ipv4", "default")]);
            paths.extend(links.iter().filter(|link| carries_ipv4(**link)).map(|&link| forwarding(link)));
            paths.push(rp_filter(uplink.as_str()));
        }
        if config.ipv6.is_some() {
            paths.extend([FORWARD_IPV6.into(), accept_ra(uplink), forwarding_of("ipv6", "default")]);
            paths.push(ipv6_mtu(uplink));
            let ours = links.iter().filter(|link| !carries_ipv4(**link));
            paths.extend(ours.map(|link| forwarding_of("ipv6", link.as_str())));
        }
    }
    paths.extend(environment::paths(config));
    paths
}

/// Returns settings that are too low, and settings that our devices must keep. `devices` are the desired devices.
pub(crate) fn lacking(
    config: &Config,
    node: &Node,
    observed: &Underlay,
    devices: impl Iterator<Item = LinkName>,
) -> Vec<Sysctl> {
    if !config.backend.reaches_peers() {
        return Vec::new();
    }
    let mut rows = Vec::new();
    if config.network(Family::Ipv4).is_some() {
        rows.extend(switched_off(FORWARD, observed));
        let devices = devices.filter(|link| carries_ipv4(*link));
        rows.extend(
            devices.chain(two_ways(config, node.uplink.link)).filter_map(|link| loose(link, observed)),
        );
    }
    if config.network(Family::Ipv6).is_some() {
        rows.extend(forward_ipv6(&accept_ra(node.uplink.link), observed));
    }
    rows
}

/// Returns `forwarding` of our own devices, which must forward if the node does. A new device gets the default, which may
/// be off.
pub(crate) fn own_forwarding(config: &Config, observed: &Underlay, devices: &[LinkName]) -> Vec<Sysctl> {
    let off = |family: Family, link: &LinkName| {
        let (family, all) = if family == Family::Ipv4 { ("ipv4", FORWARD) } else { ("ipv6", FORWARD_IPV6) };
        let path = forwarding_of(family, link.as_str());
        let value = observed.sysctl(&path).or_else(|| observed.sysctl(&forwarding_of(family, "default")));
        let is_on = observed.sysctl(all).is_some_and(|value| value != "0");
        (is_on && value == Some("0")).then(|| Sysctl { path, value: "1".into() })
    };
    let of = |link: &LinkName| {
        let family = if carries_ipv4(*link) { Family::Ipv4 } else { Family::Ipv6 };
        config.network(family).and_then(|_| off(family, link))
    };
    devices.iter().filter_map(of).collect()
}

/// Returns `forwarding` of other programs' devices by which packets of pods come in. A device that does not forward loses
/// them, though the node forwards. IPv6 looks at the node's setting alone.
pub(crate) fn others_forwarding(
    config: &Config,
    node: &Node,
    observed: &Underlay,
    bridge: Option<LinkName>,
) -> Vec<Sysctl> {
    if !config.backend.reaches_peers() || config.ipv4.is_none() || observed.sysctl(FORWARD) == Some("0") {
        return Vec::new();
    }
    let links = [node.uplink.link].into_iter().chain(bridge);
    links.filter_map(|link| switched_off(&forwarding(link), observed)).collect()
}

/// Returns the settings that make the node forward IPv6. A node that forwards accepts router advertisements only if
/// `accept_ra` is 2, and otherwise loses its default route from them. Without the uplink this cannot be decided, and
/// nothing is planned.
fn forward_ipv6(accept_ra: &str, observed: &Underlay) -> Vec<Sysctl> {
    let Some(accepts) = observed.sysctl(accept_ra) else { return Vec::new() };
    let Some(forward) = switched_off(FORWARD_IPV6, observed) else { return Vec::new() };
    let router = (accepts == ACCEPTS_RA_UNLESS_FORWARDING)
        .then(|| Sysctl { path: accept_ra.into(), value: ACCEPTS_RA.into() });
    router.into_iter().chain([forward]).collect()
}

fn switched_off(path: &str, observed: &Underlay) -> Option<Sysctl> {
    (observed.sysctl(path) == Some("0")).then(|| Sysctl { path: path.into(), value: "1".into() })
}

/// Returns the uplink if a peer may send directly what we send through the tunnel. Each end finds out alone which path
/// works.
fn two_ways(config: &Config, uplink: LinkName) -> Option<LinkName> {
    (config.backend.direct() == Direct::Verified).then_some(uplink)
}

/// Returns a loose `rp_filter` for the device if the value in force is strict. In force is the larger of `all`'s and the
/// device's own value. A device that does not exist yet, or is loose already, is judged by the value of a new device.
fn loose(link: LinkName, observed: &Underlay) -> Option<Sysctl> {
    let own = rp_filter(link.as_str());
    let number = |path: &str| observed.sysctl(path).and_then(|value| value.parse::<u8>().ok());
    let by_itself = number(&own).filter(|value| *value <= STRICT);
    let in_force = number(&rp_filter("all"))?.max(by_itself.or(number(&rp_filter("default")))?);
    (in_force == STRICT).then(|| Sysctl { path: own, value: LOOSE.into() })
}

/// Returns true if the kernel checks strictly the sources of IPv4 packets that come in by the device.
pub(crate) fn is_strict(link: LinkName, observed: &Underlay) -> bool {
    let number = |whose: &str| observed.sysctl(&rp_filter(whose)).and_then(|value| value.parse::<u8>().ok());
    number("all").max(number(link.as_str())) == Some(STRICT)
}

/// Returns a fault if a setting that may not be written has another value; `None` if it does not exist.
pub(crate) fn unset_fault(row: Sysctl, observed: &Underlay) -> Option<NodeFault> {
    let is: Box<str> = observed.sysctl(&row.path)?.into();
    (is != row.value).then_some(NodeFault::SysctlUnset { path: row.path, value: row.value, is })
}

/// Returns true if the setting is still desired and not there.
pub(crate) fn is_missing(path: &str, value: &str, desired: &State, observed: &State) -> bool {
    let has = |state: &State| state.sysctls.iter().any(|row| *row.path == *path && *row.value == *value);
    has(desired) && !has(observed)
}

/// Returns the setting that keeps router advertisements from inside the tunnel from configuring the node (flannel-compat
/// 6.0).
pub(crate) fn no_advertisements(link: LinkName) -> Sysctl {
    Sysctl { path: accept_ra(link), value: "0".into() }
}

/// Returns the setting that turns IPv6 on for a device of ours that carries it, whatever new devices get.
pub(crate) fn ipv6_on(link: LinkName, observed: &Underlay) -> Option<Sysctl> {
    let own = disable_ipv6(link.as_str());
    let in_force = observed.sysctl(&own).or_else(|| observed.sysctl(&disable_ipv6("default")))?;
    (!carries_ipv4(link) && in_force != "0").then(|| Sysctl { path: own.clone(), value: "0".into() })
}

fn disable_ipv6(whose: &str) -> Box<str> {
    format!("net/ipv6/conf/{whose}/disable_ipv6").into()
}

/// Returns the path of the sysctl by which a device forwards IPv4 packets that come in by it.
pub fn forwarding(link: LinkName) -> Box<str> {
    forwarding_of("ipv4", link.as_str())
}

fn forwarding_of(family: &str, whose: &str) -> Box<str> {
    format!("net/{family}/conf/{whose}/forwarding").into()
}

pub(crate) fn accept_ra(link: LinkName) -> Box<str> {
    format!("net/ipv6/conf/{link}/accept_ra").into()
}

/// Returns the path of the sysctl by which a device, or `all`, checks the sources of IPv4 packets.
pub(crate) fn rp_filter(whose: &str) -> Box<str> {
    format!("net/ipv4/conf/{whose}/rp_filter").into()
}

fn carries_ipv4(link: LinkName) -> bool {
    family_of_device(link) == Family::Ipv4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SysctlPolicy;
    use crate::desired::{Desired, at_first};
    use crate::diff;
    use crate::lease::Leases;
    use crate::netconf::NetConf;
    use crate::underlay::LinkFacts;

    const NEEDED: [(&str, &str); 8] = [
        (FORWARD, "0"),
        (FORWARD_IPV6, "0"),
        ("net/ipv6/conf/eth0/accept_ra", "1"),
        ("net/ipv4/conf/all/rp_filter", "1"),
        ("net/ipv4/conf/default/rp_filter", "1"),
        ("net/ipv4/conf/flannel.1/rp_filter", "1"),
        ("net/ipv6/conf/flannel.1/accept_ra", "0"),
        ("net/ipv6/conf/flannel-v6.1/accept_ra", "0"),
    ];

    fn config(backend: &str) -> Config {
        let text = format!(
            r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", "Backend": {{"Type": "{backend}"}}}}"#
        );
        NetConf::parse(text.as_bytes()).unwrap().config()
    }

    fn node() -> Node {
        serde_json::from_str(
            r#"{"uplink": {"link": "eth0", "mtu": 1500, "ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}, "subnet":
                {"ipv4": "10.244.1.0/24", "ipv6": "fd00:10:244:1::/64"}, "vtep": "02:00:00:00:00:01", "vtep_v6": "02:00:00:00:00:06"}"#,
        )
        .unwrap()
    }

    /// Returns facts with these values in place of [`NEEDED`]; an empty value stands for an absent sysctl.
    fn facts(others: &[(&str, &str)]) -> Underlay {
        let row = |(path, value): &(&str, &str)| Sysctl { path: (*path).into(), value: (*value).into() };
        let kept = NEEDED.iter().filter(|(path, _)| others.iter().all(|(other, _)| other != path));
        let sysctls = kept.chain(others).filter(|(_, value)| !value.is_empty()).map(row).collect();
        let link = LinkFacts { name: "eth0".parse().unwrap(), ..LinkFacts::default() };
        Underlay { links: vec![link], sysctls, ..Underlay::default() }
    }

    fn planned(config: &Config, underlay: &Underlay) -> Desired {
        at_first(config, &node(), &Leases::Unknown, underlay)
    }

    /// Returns the ops on sysctls, including those of a device that the same plan creates.
    fn steps(config: &Config, others: &[(&str, &str)]) -> Vec<String> {
        let underlay = facts(others);
        let Desired { state, owned, .. } = planned(config, &underlay);
        let sysctls = underlay.sysctls.iter().filter(|row| owned.sysctls.contains(&row.path)).cloned();
        let observed = State { sysctls: sysctls.collect(), ..State::default() };
        let steps = diff(&state, &observed, &owned).into_iter().map(|op| op.to_string());
        steps.filter(|step| step.contains("sysctl")).collect()
    }

    #[test]
    fn low_values_are_raised_and_forwarding_comes_last() {
        assert_eq!(
            steps(&config("vxlan"), &[]),
            [
                "~ sysctl net/ipv4/conf/flannel.1/rp_filter = 2 (was 1)",
                "~ sysctl net/ipv6/conf/eth0/accept_ra = 2 (was 1)",
                "~ sysctl net/ipv4/ip_forward = 1 (was 0)",
                "~ sysctl net/ipv6/conf/all/forwarding = 1 (was 0)",
            ]
        );
        assert_eq!(
            steps(&config("host-gw"), &[])[0],
            "~ sysctl net/ipv6/conf/eth0/accept_ra = 2 (was 1)",
            "no device, no rp_filter"
        );
        assert_eq!(steps(&config("alloc"), &[]), [""; 0]);
    }

    #[test]
    fn sysctls_of_a_disabled_family_are_left_alone() {
        let ipv4 = Config { ipv6: None, ..config("host-gw") };
        assert_eq!(steps(&ipv4, &[]), ["~ sysctl net/ipv4/ip_forward = 1 (was 0)"]);
        let ipv6 = Config { ipv4: None, ..config("vxlan") };
        assert_eq!(
            steps(&ipv6, &[("net/ipv6/conf/eth0/accept_ra", "0")]),
            ["~ sysctl net/ipv6/conf/all/forwarding = 1 (was 0)"]
        );
    }

    #[test]
    fn ipv6_is_enabled_on_our_device_if_it_was_off() {
        let quiet = [(FORWARD, "1"), (FORWARD_IPV6, "1"), ("net/ipv4/conf/flannel.1/rp_filter", "2")];
        let with = |default: &str, own: &str| {
            let ours = [
                ("net/ipv6/conf/default/disable_ipv6", default),
                ("net/ipv6/conf/flannel-v6.1/disable_ipv6", own),
            ];
            steps(&config("vxlan"), &[&quiet[..], &ours].concat())
        };
        let off = "sysctl net/ipv6/conf/flannel-v6.1/disable_ipv6 = 0";
        assert_eq!([with("0", ""), with("0", "0"), with("1", "0"), with("", "")], [[""; 0]; 4]);
        assert_eq!(with("1", ""), [format!("+ {off}")], "a new device");
        for default in ["0", "1"] {
            assert_eq!(with(default, "1"), [format!("~ {off} (was 1)")]);
        }
    }

    #[test]
    fn a_value_that_is_high_enough_stays() {
        let on = [(FORWARD, "1"), (FORWARD_IPV6, "1"), ("net/ipv4/conf/flannel.1/rp_filter", "2")];
        assert_eq!(
            steps(&config("vxlan"), &on),
            [""; 0],
            "a router that accepts no advertisements is left so"
        );
        let odd = [(FORWARD, "2"), (FORWARD_IPV6, "2"), ("net/ipv4/conf/all/rp_filter", "2")];
        assert_eq!(steps(&config("vxlan"), &odd), [""; 0]);
        for heard in ["0", "2"] {
            let steps = steps(&config("vxlan"), &[on[0], on[2], ("net/ipv6/conf/eth0/accept_ra", heard)]);
            assert_eq!(steps, ["~ sysctl net/ipv6/conf/all/forwarding = 1 (was 0)"], "accept_ra {heard}");
        }
    }

    #[test]
    fn rp_filter_becomes_loose_if_the_effective_value_is_strict() {
        let ipv4 = Config { ipv6: None, ..config("vxlan") };
        let step = |all: &str, default: &str, own: &str| {
            let values = [
                (FORWARD, "1"),
                ("net/ipv4/conf/all/rp_filter", all),
                ("net/ipv4/conf/default/rp_filter", default),
                ("net/ipv4/conf/flannel.1/rp_filter", own),
            ];
            steps(&ipv4, &values)
        };
        let raised = |was: &str| [format!("~ sysctl net/ipv4/conf/flannel.1/rp_filter = 2 (was {was})")];
        assert_eq!(step("0", "0", "1"), raised("1"));
        assert_eq!(step("1", "0", "0"), raised("0"));
        assert_eq!(step("1", "1", "1"), raised("1"));
        let new = "+ sysctl net/ipv4/conf/flannel.1/rp_filter = 2";
        assert_eq!((step("0", "1", ""), step("1", "0", "")), (vec![new.into()], vec![new.into()]));
        for (all, default, own) in [
            ("0", "1", "0"),
            ("2", "1", "1"),
            ("2", "0", "0"),
            ("1", "1", "2"),
            ("0", "0", ""),
            ("2", "1", ""),
        ] {
            assert_eq!(step(all, default, own), [""; 0], "all {all}, default {default}, own {own}");
        }
        assert!(
            planned(&ipv4, &facts(&[("net/ipv4/conf/flannel.1/rp_filter", "2")]))
                .state
                .sysctls
                .iter()
                .any(|row| &*row.path == "net/ipv4/conf/flannel.1/rp_filter"),
            "a device that is made anew gets it again"
        );
    }

    #[test]
    fn rp_filter_of_the_uplink_becomes_loose_with_backend_auto() {
        let uplink = "net/ipv4/conf/eth0/rp_filter";
        let step = |backend: &str, all: &str, own: &str| {
            let ipv4 = Config { ipv6: None, ..config(backend) };
            let values = [
                (FORWARD, "1"),
                ("net/ipv4/conf/flannel.1/rp_filter", "2"),
                ("net/ipv4/conf/all/rp_filter", all),
                (uplink, own),
            ];
            steps(&ipv4, &values)
        };
        assert_eq!(step("auto", "0", "1"), [format!("~ sysctl {uplink} = 2 (was 1)")]);
        assert_eq!(step("auto", "1", "0"), [format!("~ sysctl {uplink} = 2 (was 0)")]);
        for (all, own) in [("0", "0"), ("0", "2"), ("2", "1"), ("2", "0")] {
            assert_eq!(step("auto", all, own), [""; 0], "all {all}, own {own}");
        }
        assert_eq!(step("vxlan", "1", "1"), [""; 0], "plain vxlan has one way");
    }

    #[test]
    fn forwarding_is_enabled_on_devices_of_a_forwarding_node() {
        let on = [(FORWARD, "1"), (FORWARD_IPV6, "1"), ("net/ipv4/conf/flannel.1/rp_filter", "2")];
        let off = [
            ("net/ipv4/conf/flannel.1/forwarding", "0"),
            ("net/ipv6/conf/flannel-v6.1/forwarding", "0"),
            ("net/ipv4/conf/eth0/forwarding", "0"),
            ("net/ipv4/conf/cni0/forwarding", "0"),
        ];
        let all = [&on[..], &off].concat();
        let mut written = steps(&config("vxlan"), &all);
        written.sort();
        assert_eq!(
            written,
            [
                "+ sysctl net/ipv4/conf/cni0/forwarding = 1",
                "~ sysctl net/ipv4/conf/eth0/forwarding = 1 (was 0)",
                "~ sysctl net/ipv4/conf/flannel.1/forwarding = 1 (was 0)",
                "~ sysctl net/ipv6/conf/flannel-v6.1/forwarding = 1 (was 0)",
            ]
        );
        let born = [&on[..], &[("net/ipv4/conf/default/forwarding", "0")]].concat();
        assert_eq!(steps(&config("vxlan"), &born), ["+ sysctl net/ipv4/conf/flannel.1/forwarding = 1"]);
        let told = Config { sysctls: SysctlPolicy::Report, ..config("vxlan") };
        assert_eq!(steps(&told, &all).len(), 2, "ours are written");
        let warnings: Vec<String> =
            planned(&told, &facts(&all)).warnings.iter().map(ToString::to_string).collect();
        let of = |words: &str| warnings.iter().filter(|warning| warning.contains(words)).count();
        assert_eq!(of("sysctl -w net/ipv4/conf/cni0/forwarding=1"), 1, "{warnings:#?}");
        // The node's own setting sets all of them.
        let node_off = [&off[..], &[("net/ipv4/conf/flannel.1/rp_filter", "2")]].concat();
        assert!(!steps(&config("vxlan"), &node_off).iter().any(|step| step.contains("/conf/cni0/")));
    }

    #[test]
    fn an_unreadable_sysctl_is_left_and_ipv6_waits_for_its_uplink() {
        let gone = [(FORWARD, ""), (FORWARD_IPV6, ""), ("net/ipv4/conf/all/rp_filter", "")];
        assert_eq!(steps(&config("vxlan"), &gone), [""; 0]);
        let waits = steps(&config("host-gw"), &[("net/ipv6/conf/eth0/accept_ra", "")]);
        assert_eq!(waits, ["~ sysctl net/ipv4/ip_forward = 1 (was 0)"]);
    }

    #[test]
    fn without_the_right_to_write_the_command_is_reported() {
        let config = Config { sysctls: SysctlPolicy::Report, ..config("vxlan") };
        assert_eq!(steps(&config, &[]), [""; 0]);
        let warnings: Vec<String> =
            planned(&config, &facts(&[])).warnings.iter().map(ToString::to_string).collect();
        let of = |path: &str| warnings.iter().filter(|warning| warning.contains(path)).count();
        for command in [
            "sysctl -w net/ipv4/ip_forward=1 (without it",
            "sysctl -w net/ipv6/conf/all/forwarding=1 (without it",
            "sysctl -w net/ipv6/conf/eth0/accept_ra=2 (set it before forwarding",
            "sysctl net/ipv4/conf/flannel.1/rp_filter is 1, and --set-sysctls=false leaves it so. Run: sysctl -w \
             net/ipv4/conf/flannel.1/rp_filter=2",
        ] {
            assert_eq!(of(command), 1, "{command}: {warnings:#?}");
        }
        let enough = [(FORWARD, "1"), (FORWARD_IPV6, "1"), ("net/ipv4/conf/flannel.1/rp_filter", "2")];
        let warnings = planned(&config, &facts(&enough)).warnings;
        assert!(!warnings.iter().any(|warning| warning.to_string().contains("sysctl")), "{warnings:#?}");
        let ours = [("net/ipv6/conf/flannel.1/accept_ra", "1")];
        assert_eq!(steps(&config, &ours), ["~ sysctl net/ipv6/conf/flannel.1/accept_ra = 0 (was 1)"]);
    }

    #[test]
    fn a_sysctl_op_survives_a_round_trip_through_json() {
        let underlay = facts(&[]);
        let observed = State { sysctls: underlay.sysctls.clone().into(), ..State::default() };
        let Desired { state, owned, .. } = planned(&config("vxlan"), &underlay);
        let steps = diff(&state, &observed, &owned);
        let text = serde_json::to_string(&steps).unwrap();
        assert!(
            text.contains(r#"{"sysctl":{"path":"net/ipv4/ip_forward","value":"1","was":"0"}}"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Vec<crate::op::Op>>(&text).unwrap(), steps);
    }
}
