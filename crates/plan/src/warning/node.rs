//! Faults of this node.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::FirewallFault;
use crate::family::Family;
use crate::fault::{Severity, Words};
use crate::mac::Mac;
use crate::name::LinkName;

/// Fault of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeFault {
    UplinkMissing(LinkName),
    UplinkDown(LinkName),
    UplinkWithoutCarrier(LinkName),
    UplinkWithoutFamily {
        uplink: LinkName,
        family: Family,
    },
    UplinkWithoutAddress {
        uplink: LinkName,
        address: IpAddr,
    },
    UplinkWithoutRoute {
        uplink: LinkName,
        address: IpAddr,
        extent: Extent,
    },
    /// Pods could have our own address or one of its network; `pods` is the range from which subnets are leased.
    UplinkAmongPods {
        uplink: LinkName,
        address: IpNet,
        pods: Box<str>,
    },
    /// Pods could have addresses of another interface's network, which is out of reach once a peer has that subnet.
    InterfaceAmongPods {
        link: LinkName,
        address: IpNet,
        pods: Box<str>,
    },
    ForeignDevice {
        name: LinkName,
        kind: Box<str>,
        extent: Extent,
    },
    NotLeased(Family),
    NoPeerOnLink {
        uplink: LinkName,
        family: Family,
        peer_on: Option<(IpAddr, LinkName)>,
    },
    /// Tunnels of the family need larger packets than the uplink, or the configured MTU, allows. Sizes are in bytes.
    /// `alone` is the family that still works.
    TooNarrow {
        uplink: LinkName,
        family: Family,
        outer: u32,
        inner: u32,
        needs: u32,
        alone: Option<Family>,
    },
    /// Kubernetes knows this node by another address, which may be on another interface.
    NotInternalIp {
        uplink: LinkName,
        address: IpAddr,
        node_ip: IpAddr,
        on: Option<LinkName>,
    },
    /// The kernel does not let us write this value, with its reason, such as `Read-only file system (os error 30)`.
    SysctlRefused {
        path: Box<str>,
        value: Box<str>,
        why: Box<str>,
    },
    Firewall(FirewallFault),
    SysctlUnset {
        path: Box<str>,
        value: Box<str>,
        is: Box<str>,
    },
    BridgeNetfilterMissing,
    BridgeNetfilterOff {
        path: Box<str>,
    },
    Firewalld {
        port: Option<u16>,
        networks: Box<[IpNet]>,
    },
    /// The kernel keeps at most `limit` neighbours; `enough` would do.
    NeighboursLimited {
        path: Box<str>,
        limit: usize,
        enough: usize,
    },
    /// Direct routing is to be verified, but probes are off.
    NothingVerified,
    /// This process may open no socket for probes. `direct` is true if direct routing is to be verified.
    NoProbeSocket {
        why: Box<str>,
        direct: bool,
    },
    /// A second machine on the uplink's segment has an address of this node.
    AddressTaken {
        uplink: LinkName,
        address: IpAddr,
        mac: Mac,
    },
    /// Packets of pods do not take our routes.
    Diverted(Box<Diversion>),
    /// The kernel drops peers' packets that come in by the uplink. Its `rp_filter` is 1, and the way back leaves by another
    /// device. `back` is that device, where the main table knows it.
    SourceChecked {
        uplink: LinkName,
        from: IpAddr,
        to: IpAddr,
        back: Option<LinkName>,
    },
}

/// Peers that a fault of this node cuts off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// All peers, since this node's own backend needs what is at fault.
    AllPeers,
    /// Peers of another backend or VNI, or direct paths of peers that a tunnel reaches.
    SomePeers,
}

impl Extent {
    fn severity(self) -> Severity {
        match self {
            Self::AllPeers => Severity::Blocking,
            Self::SomePeers => Severity::Warning,
        }
    }
}

/// Rule or route that diverts packets of pods, and the packets that it diverts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diversion {
    pub from: IpAddr,
    pub to: IpAddr,
    /// Device by which the packets should leave.
    pub expected: LinkName,
    /// Rule or route that diverts them.
    pub by: Box<str>,
    /// Effect on the packets, such as `drops them`.
    pub fate: Box<str>,
    pub cure: Cure,
    pub network: IpNet,
    /// Peers whose packets are diverted, among the peers of this family in the sample.
    pub extent: Extent,
}

/// Remedy for a diversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cure {
    /// Routing table of our own, whose rule comes before the one that diverts.
    OwnTable,
    /// Later priority of the rule that diverts, and then a routing table of our own.
    LaterPriority,
    /// Loose source check on the device by which the packets come in.
    LooseSource(LinkName),
    /// Change of the rule or route that diverts.
    Rule,
}

impl NodeFault {
    /// Returns the effect on readiness. Every fault decides it here.
    pub fn severity(&self) -> Severity {
        match self {
            Self::UplinkMissing(_)
            | Self::UplinkDown(_)
            | Self::UplinkWithoutCarrier(_)
            | Self::UplinkWithoutFamily { .. }
            | Self::UplinkWithoutAddress { .. }
            | Self::UplinkAmongPods { .. }
            | Self::NotLeased(_)
            | Self::TooNarrow { alone: None, .. } => Severity::Blocking,
            Self::UplinkWithoutRoute { extent, .. } | Self::ForeignDevice { extent, .. } => extent.severity(),
            Self::Diverted(diversion) => diversion.extent.severity(),
            Self::Firewall(fault) => fault.severity(),
            // No pod reaches another node then.
            Self::SysctlRefused { path, .. } | Self::SysctlUnset { path, .. }
                if path.ends_with("/ip_forward") =>
            {
                Severity::Unready
            }
            // Any machine on the segment can bring it about.
            Self::AddressTaken { .. } => Severity::Warning,
            Self::InterfaceAmongPods { .. }
            | Self::NoPeerOnLink { .. }
            | Self::TooNarrow { alone: Some(_), .. }
            | Self::NotInternalIp { .. }
            | Self::SysctlRefused { .. }
            | Self::SysctlUnset { .. }
            | Self::BridgeNetfilterMissing
            | Self::BridgeNetfilterOff { .. }
            | Self::Firewalld { .. }
            | Self::NeighboursLimited { .. }
            | Self::NothingVerified
            | Self::NoProbeSocket { .. }
            // Where two cards are on one segment, the other card may answer for our address.
            | Self::SourceChecked { .. } => Severity::Warning,
        }
    }

    /// Returns the problem and the remedy.
    pub fn words(&self) -> Words {
        match self {
            Self::UplinkMissing(link) => {
                Words::new(format!("uplink {link} does not exist; nothing is changed until it is back"))
            }
            Self::UplinkDown(link) => Words::new(format!("uplink {link} is down; routes through it wait"))
                .remedy(format!("Try: ip link set {link} up")),
            Self::UplinkWithoutCarrier(link) => Words::new(format!(
                "uplink {link} has no carrier, so nothing leaves this node; its routes stay"
            ))
            .remedy("Check its cable and the switch"),
            Self::UplinkWithoutFamily { uplink, family } => Words::new(format!(
                "uplink {uplink} has no {family} address, but {family} is configured; nothing is withdrawn"
            )),
            Self::UplinkWithoutAddress { uplink, address } => Words::new(format!(
                "uplink {uplink} has lost our address {address}; routes through it wait until it is back"
            )),
            Self::UplinkWithoutRoute { uplink, address, .. } => Words::new(format!(
                "uplink {uplink} has {address} but no route to its segment; routes through it wait until it is back"
            )),
            Self::UplinkAmongPods { uplink, address, pods } => uplink_among_pods(*uplink, address, pods),
            Self::InterfaceAmongPods { link, address, pods } => interface_among_pods(*link, address, pods),
            Self::ForeignDevice { name, kind, .. } => foreign_device(*name, kind),
            Self::NotLeased(family) => Words::new(format!(
                "{family} is configured but our lease has no {family} subnet; that family is off"
            )),
            Self::NoPeerOnLink { uplink, family, peer_on } => no_peer_on_link(*uplink, *family, *peer_on),
            Self::TooNarrow { uplink, family, outer, inner, needs, alone } => {
                too_narrow(*uplink, *family, *outer, *inner, *needs, *alone)
            }
            Self::NotInternalIp { uplink, address, node_ip, on } => {
                not_internal_ip(*uplink, *address, *node_ip, *on)
            }
            Self::SysctlRefused { path, value, why } => {
                Words::new(format!("the kernel refuses sysctl {path} = {value}: {why}"))
                    .remedy(set(path, value))
            }
            Self::Firewall(fault) => fault.words(),
            Self::SysctlUnset { path, value, is } => {
                Words::new(format!("sysctl {path} is {is}, and --set-sysctls=false leaves it so"))
                    .remedy(set(path, value))
            }
            Self::BridgeNetfilterMissing => bridge_netfilter_missing(),
            Self::BridgeNetfilterOff { path } => bridge_netfilter_off(path),
            Self::Firewalld { port, networks } => firewalld(*port, networks),
            Self::NeighboursLimited { path, limit, enough } => neighbours_limited(path, *limit, *enough),
            Self::NothingVerified => nothing_verified(),
            Self::NoProbeSocket { why, direct } => no_probe_socket(why, *direct),
            Self::AddressTaken { uplink, address, mac } => address_taken(*uplink, *address, *mac),
            Self::Diverted(diversion) => diverted(diversion),
            Self::SourceChecked { uplink, from, to, back } => source_checked(*uplink, *from, *to, *back),
        }
    }
}

impl fmt::Display for NodeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words().fmt(f)
    }
}

fn uplink_among_pods(uplink: LinkName, address: &IpNet, pods: &str) -> Words {
    Words::new(format!(
        "uplink {uplink} has {address}, and pods' subnets are leased from {pods}: nodes and pods may get one address"
    ))
    .remedy(
        "Set SubnetMin and SubnetMax in the network config so that they leave the nodes' networks out, or choose another \
         Network",
    )
}

fn interface_among_pods(link: LinkName, address: &IpNet, pods: &str) -> Words {
    Words::new(format!(
        "{link} has {address}, and pods' subnets are leased from {pods}: once pods get its addresses, that network is \
         out of reach"
    ))
    .remedy(
        "Set SubnetMin and SubnetMax in the network config so that they leave it out, or choose another Network",
    )
}

fn foreign_device(name: LinkName, kind: &str) -> Words {
    Words::new(format!(
        "{name} exists and is a {kind} device, not vxlan: it is not touched and no peer is reachable through it"
    ))
    .remedy(format!("Remove it (ip link del {name}) or choose another VNI"))
}

fn no_peer_on_link(uplink: LinkName, family: Family, peer_on: Option<(IpAddr, LinkName)>) -> Words {
    let hint = peer_on.map(|(peer, link)| format!(" ({peer} is on the segment of {link})"));
    Words::new(format!(
        "no peer is on the layer-2 segment of {uplink}, so host-gw reaches none by {family}: is it the wrong interface?"
    ))
    .remedy(format!("Name another with --iface{}, or use auto or vxlan", hint.unwrap_or_default()))
}

fn too_narrow(
    uplink: LinkName,
    family: Family,
    outer: u32,
    inner: u32,
    needs: u32,
    alone: Option<Family>,
) -> Words {
    let left = alone.map_or_else(|| "no network".to_owned(), |alone| format!("{alone} alone"));
    Words::new(format!(
        "{family} needs packets of {inner} bytes inside the tunnel and {needs} on {uplink}, which carries {outer}: pods have \
         {left}"
    ))
    .remedy(format!(
        "Raise the MTU of {uplink}, and MTU in the network config if it is set, to {needs} or more"
    ))
}

fn not_internal_ip(uplink: LinkName, address: IpAddr, node_ip: IpAddr, on: Option<LinkName>) -> Words {
    let hint = on.map(|on| format!(" ({node_ip} is on {on})"));
    Words::new(format!(
        "Kubernetes knows this node by {node_ip}, but {address} of {uplink} is chosen: is it the wrong interface?"
    ))
    .remedy(format!("Name another with --iface{}", hint.unwrap_or_default()))
}

/// Returns the remedy for a sysctl that should have another value: the command, and the harm without it.
fn set(path: &str, value: &str) -> String {
    format!("Run: sysctl -w {path}={value} ({})", harm(path, value))
}

/// Returns what goes wrong without the setting.
fn harm(path: &str, value: &str) -> &'static str {
    match (path.rsplit('/').next(), value) {
        (Some("ip_forward"), _) => "without it this node forwards no IPv4 packet of its pods",
        (Some("forwarding"), _) if path.starts_with("net/ipv4/") => {
            "without it packets of pods that come in by this device are dropped"
        }
        (Some("forwarding"), _) => "without it this node forwards no IPv6 packet of its pods",
        (Some("disable_ipv6"), _) => "without it the kernel refuses IPv6 addresses and routes on this device",
        (Some("rp_filter"), _) => {
            "without it packets of pods are dropped where the two directions to a peer take different paths"
        }
        (Some("accept_ra"), "2") => {
            "set it before forwarding is switched on, or the node loses its default route if that is from a router \
             advertisement"
        }
        _ => "without it a router advertisement from inside the tunnel could give this node a route",
    }
}

fn bridge_netfilter_missing() -> Words {
    Words::new(
        "the module br_netfilter is not loaded, so rules for traffic do not see what goes from one pod of this node to another",
    )
    .remedy("Run: modprobe br_netfilter")
}

fn bridge_netfilter_off(path: &str) -> Words {
    Words::new(format!(
        "sysctl {path} is 0, so rules for traffic do not see what goes from one pod of this node to another"
    ))
    .remedy(format!("Run: sysctl -w {path}=1"))
}

fn firewalld(port: Option<u16>, networks: &[IpNet]) -> Words {
    let port = port.map(|port| format!("firewall-cmd --permanent --add-port={port}/udp; "));
    let networks = networks
        .iter()
        .map(|network| format!("firewall-cmd --permanent --zone=trusted --add-source={network}; "));
    let commands: String = port.into_iter().chain(networks).collect();
    Words::new("firewalld runs here and refuses everything that it does not allow explicitly")
        .remedy(format!("Run: {commands}firewall-cmd --reload"))
}

fn neighbours_limited(path: &str, limit: usize, enough: usize) -> Words {
    Words::new(format!(
        "the kernel keeps {limit} neighbours at most, and the peers on our segment come near that or pass it: packets to \
         some of them will be lost"
    ))
    .remedy(format!("Run: sysctl -w {path}={enough}"))
}

fn nothing_verified() -> Words {
    Words::new(
        "direct routing is to be verified, but --probe=off sends no probes: peers that are direct now stay direct even \
         if their path fails, and all others stay on the tunnel",
    )
    .remedy("Leave --probe out, or write \"VerifyDirect\": false into the network config")
}

fn no_probe_socket(why: &str, direct: bool) -> Words {
    let (effect, choice) = match direct {
        true => (
            "peers that are direct now stay direct, and all others stay on the tunnel",
            ", or write \"VerifyDirect\": false into the network config",
        ),
        false => ("no fault of a path to a peer is found", ""),
    };
    Words::new(format!("this daemon cannot open a socket to probe peers: {why}; {effect}")).remedy(format!(
        "Allow AF_PACKET (in systemd by RestrictAddressFamilies=) and CAP_NET_RAW (in Kubernetes with capabilities.add NET_RAW)\
         {choice}"
    ))
}

fn address_taken(uplink: LinkName, address: IpAddr, mac: Mac) -> Words {
    Words::new(format!(
        "a second machine, with MAC {mac}, has our address {address} on {uplink}: packets for this node and its pods reach \
         either machine by chance"
    ))
    .remedy("Take the address from one of the two")
}

fn source_checked(uplink: LinkName, from: IpAddr, to: IpAddr, back: Option<LinkName>) -> Words {
    let back = match back {
        Some(back) => format!("the way back to {from} leaves by {back}"),
        None => format!("no way back to {from} leaves by {uplink}"),
    };
    Words::new(format!(
        "this node drops packets of peers that come in by {uplink}, such as from {from} to {to}: the source check is strict \
         there (rp_filter 1), and {back}"
    ))
    .remedy(loosen(uplink))
}

/// Returns the command for a loose source check on the device.
fn loosen(link: LinkName) -> String {
    format!("Run: sysctl -w net/ipv4/conf/{link}/rp_filter=2")
}

fn diverted(Diversion { from, to, expected, by, fate, cure, network, .. }: &Diversion) -> Words {
    let words = Words::new(format!(
        "packets of pods such as from {from} to {to} do not leave through {expected}: {by} of this node {fate}"
    ));
    words.remedy(match cure {
        Cure::OwnTable => format!(
            "Run the daemon with --route-table=flannel, whose rule (priority 5000) comes first, or take {network} out of that \
             rule or route"
        ),
        Cure::LaterPriority => format!(
            "Take {network} out of that rule, or give it a priority above 5000 and run the daemon with --route-table=flannel, \
             whose rule (priority 5000) then comes first"
        ),
        Cure::LooseSource(link) => loosen(*link),
        Cure::Rule => format!("Take {network} out of that rule or route"),
    })
}
