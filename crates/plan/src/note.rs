//! Warnings that come with a plan: each has one fault, its subject, and what to do about it, in plain words. Notes are
//! values; the daemon decides who sees them, where and how often.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::firewall::{Fault, NftTable};
use crate::input::Family;
use crate::state::Route;
use crate::verdict::Finding;
use crate::{Diversion, LinkName, Mac, environment, sysctls};

/// Warning: a single fault and its subject, such as `{"peer":{"subnet":"10.244.3.0/24","fault":"misaligned"}}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Note {
    /// Fault of this node.
    Node(NodeFault),
    /// Fault of the peer that holds this subnet.
    Peer { subnet: IpNet, fault: PeerFault },
    /// Entry of the datastore that is no lease.
    Entry { key: Box<str>, why: Box<str> },
    /// Entries beyond those that are named, at least this many.
    MoreEntries { at_least: u64 },
    /// Entry of the datastore that was a lease and cannot be read any more.
    Stale { key: Box<str>, why: Box<str> },
    /// Fault of the datastore as a whole.
    Store(StoreFault),
    /// File of ours that cannot be written, and that only a later run needs.
    Unwritable { path: Box<str>, why: Box<str>, loss: Box<str> },
    /// Object that looks like flannel's and may belong to another program.
    Unclaimed(Unclaimed),
}

/// Object that is left alone, though it may be a left-over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unclaimed {
    Route(Route),
    Device(LinkName),
    /// Chain in our nftables table.
    Chain(NftTable, Box<str>),
}

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
    SysctlRefused {
        path: Box<str>,
        value: Box<str>,
    },
    Firewall(Fault),
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
    /// Direct routing is to be verified, but this process may open no socket for probes.
    NoProbeSocket {
        why: Box<str>,
    },
    /// A second machine on the uplink's segment has an address of this node.
    AddressTaken {
        uplink: LinkName,
        address: IpAddr,
        mac: Mac,
    },
    /// Packets of pods do not take our routes.
    Diverted(Box<Diversion>),
}

/// Fault of the store's content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreFault {
    /// More than half of the peers are missing at once, or some after a break in the store's history.
    PeersMissing,
    OwnLeaseGone {
        why: Box<str>,
    },
    OwnLeaseStale {
        why: Box<str>,
    },
    /// Our lease has expired, since the store was not there to renew it.
    OwnLeaseOver,
    /// Our lease is held by another node now.
    OwnLeaseTaken {
        subnet: Box<str>,
        holder: Box<str>,
    },
    /// Our lease is overwritten again and again; `theirs` is what the other writer puts there.
    OwnLeaseContested {
        subnet: Box<str>,
        theirs: Box<str>,
    },
    ConfigUnusable {
        why: Box<str>,
    },
    ConfigRefused {
        what: Box<str>,
    },
}

/// Fault of a peer. All but the last two leave the peer out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerFault {
    OutsideNetwork,
    /// Prefix length that no `SubnetLen` gives.
    BadLength,
    Misaligned,
    OverlapsOurs(IpNet),
    /// Subnet that overlaps `with`, which is a network of the uplink or a peer's address.
    OverlapsUplink {
        uplink: LinkName,
        with: IpNet,
    },
    Overlaps(IpNet),
    NoPublicAddress(Family),
    BadPublicAddress(IpAddr),
    OurPublicAddress(IpAddr),
    NoVtep(Family),
    BadVtepMac(Mac),
    OurVtepMac(Mac),
    SharedVtepMac {
        mac: Mac,
        with: IpNet,
    },
    UnusableVni(u32),
    /// Well-known port that is not the one of this node's config.
    BadPort(u16),
    OtherBackend {
        theirs: Box<str>,
        ours: Box<str>,
    },
    NotOnLink {
        next_hop: IpAddr,
        uplink: LinkName,
    },
    /// Finding of the probes.
    Probed(Finding),
}

impl Note {
    /// Returns the kind of fault, such as `peer-not-on-link`. It is the same for all subjects.
    pub fn reason(&self) -> String {
        match self {
            Self::Node(NodeFault::Firewall(fault)) => format!("firewall-{}", variant(fault)),
            Self::Node(fault) => format!("node-{}", variant(fault)),
            Self::Peer { fault: PeerFault::Probed(finding), .. } => format!("peer-{}", variant(finding)),
            Self::Peer { fault, .. } => format!("peer-{}", variant(fault)),
            Self::Store(fault) => format!("store-{}", variant(fault)),
            Self::Unclaimed(what) => format!("unclaimed-{}", variant(what)),
            Self::Entry { .. } => "entry".into(),
            Self::MoreEntries { .. } => "more-entries".into(),
            Self::Stale { .. } => "stale".into(),
            Self::Unwritable { .. } => "unwritable".into(),
        }
    }
}

/// Returns the name of an enum's variant as serde writes it.
fn variant(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        Ok(Value::Object(fields)) => fields.into_iter().next().map(|(name, _)| name).unwrap_or_default(),
        _ => String::new(),
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(fault) => write!(f, "{fault}"),
            Self::Peer { subnet, fault } => write!(f, "peer {subnet}: {fault}"),
            Self::Entry { key, why } => write!(f, "store entry {key:?}: {why}; left out"),
            Self::MoreEntries { at_least } => write!(
                f,
                "store: {at_least} more entries, or somewhat over, are no leases; left out. Delete what is no node's"
            ),
            Self::Stale { key, why } => {
                write!(f, "store entry {key:?} cannot be read: {why}; what it said before stays in force")
            }
            Self::Store(fault) => write!(f, "store: {fault}"),
            Self::Unwritable { path, why, loss } => write!(f, "{path} cannot be written: {why}; {loss}"),
            Self::Unclaimed(what) => write!(f, "{what}"),
        }
    }
}

impl fmt::Display for Unclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, command) = match self {
            Self::Route(row) => {
                let what = row.to_string();
                let command = what.replacen("route ", "ip route del ", 1);
                (what, command)
            }
            Self::Device(link) => (format!("device {link}"), format!("ip link del {link}")),
            Self::Chain(table, chain) => {
                let table = table.name();
                return write!(
                    f,
                    "chain {chain} in nftables' table {table} is none of ours and stays. If nothing needs it: nft delete \
                     chain {table} {chain}"
                );
            }
        };
        write!(
            f,
            "{what} is in the pod network and belongs to no peer; it is left, since it may not be flannel's. If nothing \
             needs it: {command}"
        )
    }
}

impl fmt::Display for PeerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsideNetwork
            | Self::BadLength
            | Self::Misaligned
            | Self::OverlapsOurs(_)
            | Self::OverlapsUplink { .. }
            | Self::Overlaps(_) => self.explain_subnet(f),
            Self::NoPublicAddress(_) | Self::BadPublicAddress(_) | Self::OurPublicAddress(_) => {
                self.explain_address(f)
            }
            Self::NoVtep(_) | Self::BadVtepMac(_) | Self::OurVtepMac(_) | Self::SharedVtepMac { .. } => {
                self.explain_vtep(f)
            }
            Self::UnusableVni(vni) => write!(
                f,
                "it uses VNI {vni}, which another daemon here has or which is one VNI too many; left out until all nodes \
                 read the same network config"
            ),
            Self::BadPort(port) => bad_port(f, *port),
            Self::OtherBackend { theirs, ours } if theirs.is_empty() => write!(
                f,
                "its lease names no BackendType (flannel's udp and alloc write none) and we run {ours}; left out until both agree"
            ),
            Self::OtherBackend { theirs, ours } => {
                write!(f, "it announces backend {theirs:?} and we run {ours}; left out until both agree")
            }
            Self::NotOnLink { next_hop, uplink } => write!(
                f,
                "{next_hop} is not on the layer-2 segment of {uplink}, so host-gw cannot reach it; its subnet is \
                 unreachable. Use auto or vxlan, or put both nodes on one segment"
            ),
            Self::Probed(finding) => write!(f, "{}: {finding}", finding.name()),
        }
    }
}

impl PeerFault {
    /// Writes the words for a fault of the peer's subnet, and nothing for other faults.
    fn explain_subnet(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsideNetwork => {
                f.write_str("its subnet lies outside our network; left out. Correct its lease")
            }
            Self::BadLength => {
                f.write_str("no SubnetLen gives a subnet of that length; left out. Delete its lease")
            }
            Self::Misaligned => f.write_str("its subnet has host bits set; left out. Correct its lease"),
            Self::OverlapsOurs(ours) => {
                write!(f, "its subnet overlaps ours, {ours}; left out. Delete one of the two leases")
            }
            Self::OverlapsUplink { uplink, with } => write!(
                f,
                "its subnet overlaps {with}, a network of the nodes on {uplink}; left out. Delete its lease, or set SubnetMin and \
                 SubnetMax in the network config so that they leave the nodes' networks out"
            ),
            Self::Overlaps(other) => {
                write!(
                    f,
                    "its subnet overlaps that of {other}, whose node answers or wrote its lease last; left out. Delete the \
                     lease that no node holds any more"
                )
            }
            _ => Ok(()),
        }
    }

    /// Writes the words for a fault of the peer's underlay address, and nothing for other faults.
    fn explain_address(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPublicAddress(family) => {
                write!(f, "its lease names no public {family} address; left out. Restart the daemon there")
            }
            Self::BadPublicAddress(address) => write!(
                f,
                "it announces {address}, which no node can have, since it is no host's or a pod's; left out. Correct its \
                 --public-ip"
            ),
            Self::OurPublicAddress(address) => {
                write!(f, "it announces our own address {address}; left out. Give each node its own address")
            }
            _ => Ok(()),
        }
    }

    /// Writes the words for a fault of the peer's VTEP, and nothing for other faults.
    fn explain_vtep(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVtep(family) => {
                write!(
                    f,
                    "its lease names no {family} VTEP MAC that can be read; left out. Restart the daemon there"
                )
            }
            Self::BadVtepMac(mac) => {
                write!(f, "its VTEP MAC {mac} is not a unicast address; left out. Restart the daemon there")
            }
            Self::OurVtepMac(mac) => {
                write!(
                    f,
                    "its VTEP MAC {mac} is ours too (a cloned machine?); left out. Delete its lease and its VTEP device and \
                     restart the daemon there"
                )
            }
            Self::SharedVtepMac { mac, with } => {
                write!(
                    f,
                    "its VTEP MAC {mac} is that of {with} too, whose node answers or wrote its lease last; left out. If one \
                     node had both, delete this lease; if one machine is a clone, delete its lease and its VTEP device and \
                     restart the daemon there"
                )
            }
            _ => Ok(()),
        }
    }
}

impl NodeFault {
    /// Writes the words for a fault of this node's networks, and nothing for other faults.
    fn explain_network(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UplinkWithoutRoute { uplink, address } => write!(
                f,
                "uplink {uplink} has {address} but no route to its segment; routes through it wait until it is back"
            ),
            Self::UplinkAmongPods { uplink, address, pods } => write!(
                f,
                "uplink {uplink} has {address}, and pods' subnets are leased from {pods}: nodes and pods may get one address. Set \
                 SubnetMin and SubnetMax in the network config so that they leave the nodes' networks out, or choose another \
                 Network"
            ),
            Self::InterfaceAmongPods { link, address, pods } => write!(
                f,
                "{link} has {address}, and pods' subnets are leased from {pods}: what is on that network is out of reach once pods \
                 get its addresses. Set SubnetMin and SubnetMax in the network config so that they leave it out, or choose another \
                 Network"
            ),
            Self::AddressTaken { uplink, address, mac } => write!(
                f,
                "a second machine, with MAC {mac}, has our address {address} on {uplink}: packets for this node and its pods \
                 reach either machine by chance. Take the address from one of the two"
            ),
            _ => Ok(()),
        }
    }
}

fn bad_port(f: &mut fmt::Formatter<'_>, port: u16) -> fmt::Result {
    write!(
        f,
        "it announces UDP port {port}, which is another service's; left out. Use 8472, 4789 or a Port above 1023, or the \
         same Port on all nodes"
    )
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeersMissing => f.write_str(
                "it has lost more than half of the peers at once, or some together with its history, which is not believed \
                 yet; they are kept until --shrink-grace is over. Was it emptied or restored?",
            ),
            Self::OwnLeaseGone { why } => {
                write!(f, "our lease is gone and cannot be taken again: {why}. Pods keep their addresses meanwhile")
            }
            Self::OwnLeaseStale { why } => {
                write!(
                    f,
                    "our lease does not say what we announce and cannot be written: {why}. Until it is, other nodes may not \
                     reach this one's pods"
                )
            }
            Self::OwnLeaseOver => f.write_str(
                "our lease is over, since the store was not there to renew it; another node may get our subnet before this one \
                 is heard. Bring the store back",
            ),
            Self::OwnLeaseTaken { subnet, holder } => write!(
                f,
                "{holder} holds our lease {subnet} now, so other nodes send there what is for the pods of this one. It is not \
                 fought over: move the pods away, and start the daemon anew without its subnet file"
            ),
            Self::OwnLeaseContested { subnet, theirs } => write!(
                f,
                "somebody else writes our lease {subnet}, last with {theirs}: another node announces our address \
                 too, or another daemon runs here. Give each node an address of its own with --iface or --public-ip"
            ),
            Self::ConfigUnusable { why } => write!(f, "{why}; the last good network config stays in force"),
            Self::ConfigRefused { what } => write!(
                f,
                "the network config has another {what}, which cannot change under running pods; the old one stays in \
                 force. Restart the daemon once the pods are gone"
            ),
        }
    }
}

impl NodeFault {
    fn explain_mtu(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::TooNarrow { uplink, family, outer, inner, needs, alone } = self else { return Ok(()) };
        write!(
            f,
            "{family} needs packets of {inner} bytes inside the tunnel and {needs} on {uplink}, which carries {outer}: "
        )?;
        match alone {
            Some(alone) => write!(f, "pods have {alone} alone. ")?,
            None => f.write_str("pods have no network. ")?,
        }
        write!(
            f,
            "Raise the MTU of {uplink}, and MTU in the network config if it is there, to {needs} or more"
        )
    }
}

impl fmt::Display for NodeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UplinkMissing(link) => {
                write!(f, "uplink {link} does not exist; nothing is changed until it is back")
            }
            Self::UplinkDown(link) => {
                write!(f, "uplink {link} is down; routes through it wait. Try: ip link set {link} up")
            }
            Self::UplinkWithoutCarrier(link) => {
                write!(
                    f,
                    "uplink {link} has no carrier, so nothing leaves this node; its routes stay. Look at its cable or switch"
                )
            }
            Self::UplinkWithoutAddress { uplink, address } => {
                write!(
                    f,
                    "uplink {uplink} has lost our address {address}; routes through it wait until it is back"
                )
            }
            Self::UplinkWithoutFamily { uplink, family } => {
                write!(
                    f,
                    "uplink {uplink} has no {family} address, but {family} is configured; nothing is withdrawn"
                )
            }
            Self::UplinkWithoutRoute { .. }
            | Self::UplinkAmongPods { .. }
            | Self::InterfaceAmongPods { .. }
            | Self::AddressTaken { .. } => self.explain_network(f),
            Self::ForeignDevice { name, kind } => foreign_device(f, *name, kind),
            Self::NotLeased(family) => {
                write!(f, "{family} is configured but our lease has no {family} subnet; that family is off")
            }
            Self::NoPeerOnLink { uplink, family, peer_on } => no_peer_on_link(f, *uplink, *family, *peer_on),
            Self::TooNarrow { .. } => self.explain_mtu(f),
            Self::NotInternalIp { uplink, address, node_ip, on } => {
                write!(f, "Kubernetes knows this node by {node_ip}, but {address} of {uplink} is chosen: ")?;
                f.write_str("is it the wrong interface? Name another with --iface")?;
                on.map_or(Ok(()), |on| write!(f, " ({node_ip} is on {on})"))
            }
            Self::SysctlRefused { path, value } => {
                write!(f, "sysctl {path} cannot be written. {}", sysctls::Remedy(path, value))
            }
            Self::Firewall(fault) => fault.fmt(f),
            Self::SysctlUnset { path, value, is } => {
                let remedy = sysctls::Remedy(path, value);
                write!(f, "sysctl {path} is {is}, and --set-sysctls=false leaves it so. {remedy}")
            }
            Self::BridgeNetfilterMissing => f.write_str(environment::BRIDGE_NETFILTER_MISSING),
            Self::BridgeNetfilterOff { path } => environment::bridge_netfilter_off(f, path),
            Self::Firewalld { port, networks } => environment::firewalld(f, *port, networks),
            Self::NeighboursLimited { path, limit, enough } => {
                environment::neighbours_limited(f, path, *limit, *enough)
            }
            Self::NothingVerified => f.write_str(environment::NOTHING_VERIFIED),
            Self::NoProbeSocket { why } => environment::no_probe_socket(f, why),
            Self::Diverted(diversion) => diversion.fmt(f),
        }
    }
}

fn foreign_device(f: &mut fmt::Formatter<'_>, name: LinkName, kind: &str) -> fmt::Result {
    write!(
        f,
        "{name} exists and is a {kind} device, not vxlan: it is not touched and no peer is reachable through it. \
         Remove it (ip link del {name}) or choose another VNI"
    )
}

fn no_peer_on_link(
    f: &mut fmt::Formatter<'_>,
    uplink: LinkName,
    family: Family,
    peer_on: Option<(IpAddr, LinkName)>,
) -> fmt::Result {
    write!(
        f,
        "no peer is on the layer-2 segment of {uplink}, so host-gw reaches none by {family}: is it the wrong interface? Name \
         another with --iface"
    )?;
    if let Some((peer, link)) = peer_on {
        write!(f, " ({peer} is on the segment of {link})")?;
    }
    f.write_str(", or use auto or vxlan")
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Variant;
    use crate::state::{MAIN_TABLE, RoutePath};

    /// Makes a note of each kind, with the words by which docs/reference/messages.md lists it. A kind without a
    /// line does not compile.
    macro_rules! kinds {
        ($($kind:pat => $note:expr, $words:literal;)*) => {
            fn words(note: &Note) -> &'static str {
                match note {
                    $($kind => $words,)*
                    Note::Peer {
                        fault: PeerFault::Probed(Finding::Healthy | Finding::Unverified | Finding::NoEcho), ..
                    } => "no fault",
                }
            }

            fn one_of_each() -> Vec<Note> {
                vec![$($note),*]
            }
        };
    }

    kinds! {
        Note::Node(NodeFault::UplinkMissing(_)) => node(NodeFault::UplinkMissing(link())), "does not exist; nothing is changed";
        Note::Node(NodeFault::UplinkDown(_)) => node(NodeFault::UplinkDown(link())), "is down; routes through it wait";
        Note::Node(NodeFault::UplinkWithoutCarrier(_)) =>
            node(NodeFault::UplinkWithoutCarrier(link())), "has no carrier, so nothing leaves this node";
        Note::Node(NodeFault::UplinkWithoutFamily { .. }) =>
            node(NodeFault::UplinkWithoutFamily { uplink: link(), family: Family::Ipv6 }), "is configured; nothing is withdrawn";
        Note::Node(NodeFault::UplinkWithoutAddress { .. }) =>
            node(NodeFault::UplinkWithoutAddress { uplink: link(), address: ip() }), "has lost our address";
        Note::Node(NodeFault::AddressTaken { .. }) =>
            node(NodeFault::AddressTaken { uplink: link(), address: ip(), mac: Mac([2, 0, 0, 0, 0, 7]) }), "a second machine";
        Note::Node(NodeFault::UplinkWithoutRoute { .. }) =>
            node(NodeFault::UplinkWithoutRoute { uplink: link(), address: ip() }), "but no route to its segment";
        Note::Node(NodeFault::UplinkAmongPods { .. }) =>
            node(NodeFault::UplinkAmongPods { uplink: link(), address: net(), pods: "a".into() }), "nodes and pods may get one address";
        Note::Node(NodeFault::InterfaceAmongPods { .. }) =>
            node(NodeFault::InterfaceAmongPods { link: link(), address: net(), pods: "a".into() }), "what is on that network is out of reach";
        Note::Node(NodeFault::ForeignDevice { .. }) =>
            node(NodeFault::ForeignDevice { name: link(), kind: "bridge".into() }), "device, not vxlan";
        Note::Node(NodeFault::NotLeased(_)) => node(NodeFault::NotLeased(Family::Ipv6)), "that family is off";
        Note::Node(NodeFault::NoPeerOnLink { .. }) =>
            node(NodeFault::NoPeerOnLink { uplink: link(), family: Family::Ipv4, peer_on: Some((ip(), link())) }), "so host-gw reaches none by";
        Note::Node(NodeFault::TooNarrow { .. }) =>
            node(NodeFault::TooNarrow { uplink: link(), family: Family::Ipv6, outer: 1280, inner: 1280, needs: 1350, alone: None }),
            "bytes inside the tunnel and";
        Note::Node(NodeFault::NotInternalIp { .. }) =>
            node(NodeFault::NotInternalIp { uplink: link(), address: ip(), node_ip: ip(), on: Some(link()) }), "Kubernetes knows this node by";
        Note::Node(NodeFault::SysctlRefused { .. }) =>
            node(NodeFault::SysctlRefused { path: "a/b".into(), value: "0".into() }), "cannot be written. Run: sysctl";
        Note::Node(NodeFault::Firewall(Fault::NftUnusable { .. })) =>
            firewall(Fault::NftUnusable { why: "no".into() }), "so iptables has the traffic rules and VXLAN is not filtered";
        Note::Node(NodeFault::Firewall(Fault::IptablesMissing)) => firewall(Fault::IptablesMissing), "there is no iptables on this node";
        Note::Node(NodeFault::Firewall(Fault::Nothing)) => firewall(Fault::Nothing), "so nothing is accepted that others drop";
        Note::Node(NodeFault::Firewall(Fault::NoMasquerade)) => firewall(Fault::NoMasquerade), "so nothing is masqueraded";
        Note::Node(NodeFault::Firewall(Fault::Foreign { .. })) => firewall(Fault::Foreign { keeper: "another daemon of this node".into() }), "keeps the traffic rules, so this one makes none";
        Note::Node(NodeFault::Firewall(Fault::Unlocked(_))) => firewall(Fault::Unlocked("no".into())), "because they cannot be locked";
        Note::Node(NodeFault::Firewall(Fault::ForwardRefused { .. })) =>
            firewall(Fault::ForwardRefused { variant: Variant::Nft, family: Family::Ipv4, what: "policy DROP".into() }), "so the accept rules are there too";
        Note::Node(NodeFault::Firewall(Fault::PodsRefused { .. })) => firewall(Fault::PodsRefused {
            place: "chain a".into(), what: "policy drop".into(), from: ip(), to: ip(), remedy: "b".into()
        }), "Accept the pods' network ahead of it";
        Note::Node(NodeFault::Firewall(Fault::ForwardOff { .. })) =>
            firewall(Fault::ForwardOff { variant: Variant::Nft, family: Family::Ipv4, what: "policy DROP".into() }), "accepts nothing ahead of it";
        Note::Node(NodeFault::Firewall(Fault::Unread(_))) => firewall(Fault::Unread("no".into())), "may go unseen";
        Note::Node(NodeFault::Firewall(Fault::Stranger(_))) => firewall(Fault::Stranger(ip())), "sends us VXLAN packets and no peer has that address";
        Note::Node(NodeFault::Firewall(Fault::PodSender(_))) => firewall(Fault::PodSender(ip())), "sends VXLAN packets with our VNI";
        Note::Node(NodeFault::SysctlUnset { .. }) =>
            node(NodeFault::SysctlUnset { path: "a/b".into(), value: "1".into(), is: "0".into() }), "and --set-sysctls=false leaves it so";
        Note::Node(NodeFault::BridgeNetfilterMissing) => node(NodeFault::BridgeNetfilterMissing), "br_netfilter is not loaded";
        Note::Node(NodeFault::BridgeNetfilterOff { .. }) =>
            node(NodeFault::BridgeNetfilterOff { path: "a/b".into() }), "is 0, so rules for traffic do not see";
        Note::Node(NodeFault::Firewalld { .. }) =>
            node(NodeFault::Firewalld { port: Some(8472), networks: [net()].into() }), "firewalld runs here";
        Note::Node(NodeFault::NeighboursLimited { .. }) =>
            node(NodeFault::NeighboursLimited { path: "a/b".into(), limit: 1024, enough: 4096 }), "neighbours at most";
        Note::Node(NodeFault::NothingVerified) => node(NodeFault::NothingVerified), "but --probe=off asks nobody";
        Note::Node(NodeFault::NoProbeSocket { .. }) =>
            node(NodeFault::NoProbeSocket { why: "no".into() }), "but this daemon cannot open a socket to probe peers";
        Note::Node(NodeFault::Diverted(_)) => node(NodeFault::Diverted(Box::new(Diversion {
            from: ip(), to: ip(), expected: link(), by: "a".into(), fate: "b".into(), network: net(), table: MAIN_TABLE
        }))), "do not leave through";
        Note::Peer { fault: PeerFault::OutsideNetwork, .. } => peer(PeerFault::OutsideNetwork), "lies outside our network";
        Note::Peer { fault: PeerFault::BadLength, .. } => peer(PeerFault::BadLength), "no SubnetLen gives";
        Note::Peer { fault: PeerFault::Misaligned, .. } => peer(PeerFault::Misaligned), "has host bits set";
        Note::Peer { fault: PeerFault::OverlapsOurs(_), .. } => peer(PeerFault::OverlapsOurs(net())), "subnet overlaps ours";
        Note::Peer { fault: PeerFault::OverlapsUplink { .. }, .. } =>
            peer(PeerFault::OverlapsUplink { uplink: link(), with: net() }), "a network of the nodes on";
        Note::Peer { fault: PeerFault::Overlaps(_), .. } =>
            peer(PeerFault::Overlaps(net())), "subnet overlaps that of";
        Note::Peer { fault: PeerFault::NoPublicAddress(_), .. } =>
            peer(PeerFault::NoPublicAddress(Family::Ipv4)), "its lease names no public";
        Note::Peer { fault: PeerFault::BadPublicAddress(_), .. } =>
            peer(PeerFault::BadPublicAddress(ip())), "which no node can have";
        Note::Peer { fault: PeerFault::OurPublicAddress(_), .. } =>
            peer(PeerFault::OurPublicAddress(ip())), "it announces our own address";
        Note::Peer { fault: PeerFault::NoVtep(_), .. } => peer(PeerFault::NoVtep(Family::Ipv4)), "VTEP MAC that can be read; left out";
        Note::Peer { fault: PeerFault::BadVtepMac(_), .. } =>
            peer(PeerFault::BadVtepMac(Mac::default())), "is not a unicast address";
        Note::Peer { fault: PeerFault::OurVtepMac(_), .. } => peer(PeerFault::OurVtepMac(Mac::default())), "is ours too";
        Note::Peer { fault: PeerFault::SharedVtepMac { .. }, .. } =>
            peer(PeerFault::SharedVtepMac { mac: Mac::default(), with: net() }), "is that of";
        Note::Peer { fault: PeerFault::UnusableVni(_), .. } => peer(PeerFault::UnusableVni(7)), "which is one VNI too many";
        Note::Peer { fault: PeerFault::BadPort(_), .. } => peer(PeerFault::BadPort(53)), "which is another service's";
        Note::Peer { fault: PeerFault::OtherBackend { .. }, .. } =>
            peer(PeerFault::OtherBackend { theirs: "".into(), ours: "vxlan".into() }), "left out until both agree";
        Note::Peer { fault: PeerFault::NotOnLink { .. }, .. } =>
            peer(PeerFault::NotOnLink { next_hop: ip(), uplink: link() }), "is not on the layer-2 segment of";
        Note::Peer { fault: PeerFault::Probed(Finding::NextHopSilent { .. }), .. } =>
            probed(Finding::NextHopSilent { next_hop: ip(), uplink: link() }), "next hop silent:";
        Note::Peer { fault: PeerFault::Probed(Finding::Silent { .. }), .. } => probed(Finding::Silent { node: ip() }), "silent:";
        Note::Peer { fault: PeerFault::Probed(Finding::EchoLost { .. }), .. } =>
            probed(Finding::EchoLost { node: ip() }), "echo lost:";
        Note::Peer { fault: PeerFault::Probed(Finding::Flapping { .. }), .. } =>
            probed(Finding::Flapping { node: ip() }), "flapping:";
        Note::Peer { fault: PeerFault::Probed(Finding::Refused { .. }), .. } =>
            probed(Finding::Refused { node: ip(), by: ip() }), "refused:";
        Note::Peer { fault: PeerFault::Probed(Finding::TunnelLost { .. }), .. } =>
            probed(Finding::TunnelLost { node: ip(), port: 8472 }), "tunnel lost:";
        Note::Peer { fault: PeerFault::Probed(Finding::PodAddressesLost { .. }), .. } =>
            probed(Finding::PodAddressesLost { next_hop: ip(), uplink: link() }), "pod addresses lost:";
        Note::Peer { fault: PeerFault::Probed(Finding::Diverted { .. }), .. } =>
            probed(Finding::Diverted { node: ip() }), "diverted:";
        Note::Peer { fault: PeerFault::Probed(Finding::NoWayBack { .. }), .. } =>
            probed(Finding::NoWayBack { node: ip() }), "no way back:";
        Note::Peer { fault: PeerFault::Probed(Finding::ProxyArp { .. }), .. } =>
            probed(Finding::ProxyArp { next_hop: ip(), mac: Mac::default(), also: ip() }), "proxy ARP:";
        Note::Peer { fault: PeerFault::Probed(Finding::DuplicateAddress { .. }), .. } =>
            probed(Finding::DuplicateAddress { next_hop: ip(), macs: [Mac::default(); 2] }), "duplicate address:";
        Note::Peer { fault: PeerFault::Probed(Finding::LostAbove { .. }), .. } =>
            probed(Finding::LostAbove { mtu: 1400 }), "large packets lost:";
        Note::Peer { fault: PeerFault::Probed(Finding::Fragmented { .. }), .. } =>
            probed(Finding::Fragmented { mtu: 1400 }), "fragmented:";
        Note::Peer { fault: PeerFault::Probed(Finding::ChecksumFault { .. }), .. } =>
            probed(Finding::ChecksumFault { node: ip() }), "checksum fault:";
        Note::Entry { .. } => Note::Entry { key: "a".into(), why: "b".into() }, "store entry";
        Note::MoreEntries { .. } => Note::MoreEntries { at_least: 9 }, "more entries, or somewhat over";
        Note::Stale { .. } =>
            Note::Stale { key: "a".into(), why: "b".into() }, "what it said before stays in force";
        Note::Store(StoreFault::PeersMissing) => Note::Store(StoreFault::PeersMissing), "more than half of the peers at once";
        Note::Store(StoreFault::OwnLeaseGone { .. }) =>
            Note::Store(StoreFault::OwnLeaseGone { why: "a".into() }), "our lease is gone and cannot be taken again";
        Note::Store(StoreFault::OwnLeaseStale { .. }) =>
            Note::Store(StoreFault::OwnLeaseStale { why: "a".into() }), "our lease does not say what we announce and cannot";
        Note::Store(StoreFault::OwnLeaseOver) => Note::Store(StoreFault::OwnLeaseOver), "our lease is over";
        Note::Store(StoreFault::OwnLeaseTaken { .. }) =>
            Note::Store(StoreFault::OwnLeaseTaken { subnet: "a".into(), holder: "b".into() }), "holds our lease";
        Note::Store(StoreFault::OwnLeaseContested { .. }) =>
            Note::Store(StoreFault::OwnLeaseContested { subnet: "a".into(), theirs: "b".into() }), "somebody else writes our lease";
        Note::Store(StoreFault::ConfigUnusable { .. }) =>
            Note::Store(StoreFault::ConfigUnusable { why: "a".into() }), "the last good network config stays in force";
        Note::Store(StoreFault::ConfigRefused { .. }) =>
            Note::Store(StoreFault::ConfigRefused { what: "a".into() }), "cannot change under running pods";
        Note::Unwritable { .. } =>
            Note::Unwritable { path: "/a".into(), why: "b".into(), loss: "c".into() }, "cannot be written:";
        Note::Unclaimed(Unclaimed::Route(_)) => Note::Unclaimed(Unclaimed::Route(route())), "If nothing needs it: ip route del";
        Note::Unclaimed(Unclaimed::Device(_)) => Note::Unclaimed(Unclaimed::Device(link())), "If nothing needs it: ip link del";
        Note::Unclaimed(Unclaimed::Chain(..)) =>
            Note::Unclaimed(Unclaimed::Chain(NftTable { family: Family::Ipv4 }, "mine".into())), "If nothing needs it: nft delete chain";
    }

    fn node(fault: NodeFault) -> Note {
        Note::Node(fault)
    }

    fn firewall(fault: Fault) -> Note {
        node(NodeFault::Firewall(fault))
    }

    fn probed(finding: Finding) -> Note {
        peer(PeerFault::Probed(finding))
    }

    fn peer(fault: PeerFault) -> Note {
        Note::Peer { subnet: net(), fault }
    }

    fn link() -> LinkName {
        "eth0".parse().unwrap()
    }

    fn ip() -> IpAddr {
        [192, 0, 2, 1].into()
    }

    fn net() -> IpNet {
        "10.244.3.0/24".parse().unwrap()
    }

    fn route() -> Route {
        let path = RoutePath::Via { gateway: ip(), link: link(), onlink: false };
        Route { table: MAIN_TABLE, destination: net(), path, protocol: 3, metric: 0, unknown: None }
    }

    #[test]
    fn the_documents_list_every_kind_of_note_and_no_other() {
        let text = include_str!("../../../docs/reference/messages.md");
        let (_, section) = text.split_once("\n## Warnings\n").unwrap();
        let lines = section.lines().take_while(|line| !line.starts_with("## "));
        let listed: Vec<&str> =
            lines.filter_map(|line| line.strip_prefix("#### `")?.split('`').next()).collect();
        let notes = one_of_each();
        let expected: Vec<&str> = notes.iter().map(words).collect();
        assert_eq!(listed, expected);
        let reasons: std::collections::BTreeSet<String> = notes.iter().map(Note::reason).collect();
        assert_eq!(reasons.len(), notes.len(), "{reasons:?}");
        assert!(
            reasons.contains("peer-not-on-link")
                && reasons.contains("peer-next-hop-silent")
                && reasons.contains("store-peers-missing"),
            "{reasons:?}"
        );
        for (note, words) in notes.iter().zip(expected) {
            assert!(note.to_string().contains(words), "{words:?} are no words of: {note}");
        }
    }
}
