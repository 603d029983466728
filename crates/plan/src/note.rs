//! What a plan has to say besides the plan: one fault, about whom, and what to do about it, in plain words. Notes are
//! values; who shows them, where and how often is the daemon's part.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::input::Family;
use crate::state::Route;
use crate::{LinkName, Mac};

/// One thing that is not as it should be, and whom it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Note {
    /// This node.
    Node(NodeFault),
    /// The peer that holds this subnet.
    Peer { subnet: IpNet, fault: PeerFault },
    /// An entry of the datastore that is no lease.
    Entry { key: Box<str>, why: Box<str> },
    /// An entry of the datastore that was a lease and cannot be read any more.
    Stale { key: Box<str>, why: Box<str> },
    /// The datastore as a whole.
    Store(StoreFault),
    /// A file of ours that only a later run needs.
    Unwritable { path: Box<str>, why: Box<str>, loss: Box<str> },
    /// Looks like flannel's and may be somebody else's.
    Unclaimed(Unclaimed),
}

/// What is left alone though it may be left over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unclaimed {
    Route(Route),
    Device(LinkName),
}

/// What is wrong here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeFault {
    UplinkMissing(LinkName),
    UplinkDown(LinkName),
    UplinkWithoutCarrier(LinkName),
    UplinkWithoutFamily { uplink: LinkName, family: Family },
    UplinkWithoutAddress { uplink: LinkName, address: IpAddr },
    UplinkWithoutRoute { uplink: LinkName, address: IpAddr },
    ForeignDevice { name: LinkName, kind: Box<str> },
    NotLeased(Family),
    SysctlRefused { path: Box<str>, value: Box<str> },
}

/// What is wrong with what the store says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreFault {
    /// More than half of the peers at once.
    PeersMissing,
    OwnLeaseGone {
        why: Box<str>,
    },
    OwnLeaseStale {
        why: Box<str>,
    },
    ConfigUnusable {
        why: Box<str>,
    },
    ConfigRefused {
        what: Box<str>,
    },
}

/// What is wrong with a peer; all but the last leave it out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerFault {
    OutsideNetwork,
    Misaligned,
    OverlapsOurs(IpNet),
    Overlaps(IpNet),
    NoPublicAddress(Family),
    BadPublicAddress(IpAddr),
    OurPublicAddress(IpAddr),
    NoVtep(Family),
    BadVtepMac(Mac),
    OurVtepMac(Mac),
    SharedVtepMac { mac: Mac, with: IpNet },
    UnusableVni(u32),
    OtherBackend { theirs: Box<str>, ours: Box<str> },
    NotOnLink { next_hop: IpAddr, uplink: LinkName },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(fault) => write!(f, "{fault}"),
            Self::Peer { subnet, fault } => write!(f, "peer {subnet}: {fault}"),
            Self::Entry { key, why } => write!(f, "store entry {key:?}: {why}; left out"),
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
            Self::OutsideNetwork => {
                f.write_str("its subnet lies outside our network; left out. Correct its lease")
            }
            Self::Misaligned => f.write_str("its subnet has host bits set; left out. Correct its lease"),
            Self::OverlapsOurs(ours) => {
                write!(f, "its subnet overlaps ours, {ours}; left out. Delete one of the two leases")
            }
            Self::Overlaps(other) => {
                write!(
                    f,
                    "its subnet overlaps that of an older lease, {other}; left out. Delete one of the two"
                )
            }
            Self::NoPublicAddress(family) => {
                write!(f, "its lease names no public {family} address; left out. Restart the daemon there")
            }
            Self::BadPublicAddress(address) => {
                write!(f, "it announces {address}, which no node can have; left out. Correct its --public-ip")
            }
            Self::OurPublicAddress(address) => {
                write!(f, "it announces our own address {address}; left out. Give each node its own address")
            }
            Self::NoVtep(family) => {
                write!(f, "its lease names no {family} VTEP MAC; left out. Restart the daemon there")
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
                    "its VTEP MAC {mac} is that of {with} too (a cloned machine?); left out. Delete the lease and the VTEP \
                     device of one of the two and restart the daemon there"
                )
            }
            Self::UnusableVni(vni) => write!(
                f,
                "it uses VNI {vni}, which another daemon here has or which is one VNI too many; left out until all nodes \
                 read the same network config"
            ),
            Self::OtherBackend { theirs, ours } => {
                write!(f, "it announces backend {theirs:?} and we run {ours}; left out until both agree")
            }
            Self::NotOnLink { next_hop, uplink } => write!(
                f,
                "{next_hop} is not on the layer-2 segment of {uplink}, so host-gw cannot reach it; its subnet is \
                 unreachable. Use vxlan, or put both nodes on one segment"
            ),
        }
    }
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeersMissing => f.write_str(
                "it has lost more than half of the peers at once, which is not believed yet; they are kept until \
                 --shrink-grace is over. Was it emptied or restored?",
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
            Self::ConfigUnusable { why } => write!(f, "{why}; the last good network config stays in force"),
            Self::ConfigRefused { what } => write!(
                f,
                "the network config has another {what}, which cannot change under running pods; the old one stays in \
                 force. Restart the daemon once the pods are gone"
            ),
        }
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
            Self::UplinkWithoutRoute { uplink, address } => write!(
                f,
                "uplink {uplink} has {address} but no route to its segment; routes through it wait until it is back"
            ),
            Self::ForeignDevice { name, kind } => write!(
                f,
                "{name} exists and is a {kind} device, not vxlan: it is not touched and no peer is reachable through \
                 it. Remove it (ip link del {name}) or choose another VNI"
            ),
            Self::NotLeased(family) => {
                write!(f, "{family} is configured but our lease has no {family} subnet; that family is off")
            }
            Self::SysctlRefused { path, value } => {
                write!(f, "sysctl {path} cannot be written. Run: sysctl -w {path}={value}")
            }
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}
