//! Faults of a peer. They never change the readiness of this node (ARCHITECTURE.md, invariant 13).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::fault::Words;
use crate::health::Finding;
use crate::mac::Mac;
use crate::name::LinkName;

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

impl PeerFault {
    /// Returns the problem and the remedy; the subject is the peer.
    pub fn words(&self) -> Words {
        match self {
            Self::OutsideNetwork => {
                Words::new("its subnet lies outside our network; left out").remedy("Correct its lease")
            }
            Self::BadLength => {
                Words::new("no SubnetLen gives a subnet of that length; left out").remedy("Delete its lease")
            }
            Self::Misaligned => {
                Words::new("its subnet has host bits set; left out").remedy("Correct its lease")
            }
            Self::OverlapsOurs(ours) => Words::new(format!("its subnet overlaps ours, {ours}; left out"))
                .remedy("Delete one of the two leases"),
            Self::OverlapsUplink { uplink, with } => overlaps_uplink(*uplink, with),
            Self::Overlaps(other) => overlaps(other),
            Self::NoPublicAddress(family) => {
                Words::new(format!("its lease names no public {family} address; left out")).remedy(RESTART)
            }
            Self::BadPublicAddress(address) => Words::new(format!(
                "it announces {address}, which no node can have, since it is no host's or a pod's; left out"
            ))
            .remedy("Correct its --public-ip"),
            Self::OurPublicAddress(address) => {
                Words::new(format!("it announces our own address {address}; left out"))
                    .remedy("Give each node its own address")
            }
            Self::NoVtep(family) => {
                Words::new(format!("its lease names no {family} VTEP MAC that can be read; left out"))
                    .remedy(RESTART)
            }
            Self::BadVtepMac(mac) => {
                Words::new(format!("its VTEP MAC {mac} is not a unicast address; left out")).remedy(RESTART)
            }
            Self::OurVtepMac(mac) => {
                Words::new(format!("its VTEP MAC {mac} is ours too (a cloned machine?); left out"))
                    .remedy("Delete its lease and its VTEP device and restart the daemon there")
            }
            Self::SharedVtepMac { mac, with } => shared_vtep_mac(*mac, with),
            Self::UnusableVni(vni) => Words::new(format!(
                "it uses VNI {vni}, which another daemon here has or which is one VNI too many; left out until all nodes \
                 read the same network config"
            )),
            Self::BadPort(port) => {
                Words::new(format!("it announces UDP port {port}, which is another service's; left out"))
                    .remedy("Use 8472, 4789 or a Port above 1023, or the same Port on all nodes")
            }
            Self::OtherBackend { theirs, ours } => other_backend(theirs, ours),
            Self::NotOnLink { next_hop, uplink } => not_on_link(*next_hop, *uplink),
            Self::Probed(finding) => finding.words().about(finding.name()),
        }
    }
}

/// Remedy for a lease that lacks a part which every daemon writes.
const RESTART: &str = "Restart the daemon there";

fn overlaps_uplink(uplink: LinkName, with: &IpNet) -> Words {
    Words::new(format!("its subnet overlaps {with}, a network of the nodes on {uplink}; left out")).remedy(
        "Delete its lease, or set SubnetMin and SubnetMax in the network config so that they leave the nodes' networks out",
    )
}

fn overlaps(other: &IpNet) -> Words {
    Words::new(format!(
        "its subnet overlaps that of {other}, whose node answers or wrote its lease last; left out"
    ))
    .remedy("Delete the lease that no node holds any more")
}

fn shared_vtep_mac(mac: Mac, with: &IpNet) -> Words {
    Words::new(format!(
        "its VTEP MAC {mac} is that of {with} too, whose node answers or wrote its lease last; left out"
    ))
    .remedy(
        "If one node had both, delete this lease; if one machine is a clone, delete its lease and its VTEP device and \
         restart the daemon there",
    )
}

fn other_backend(theirs: &str, ours: &str) -> Words {
    Words::new(match theirs {
        "" => format!(
            "its lease names no BackendType (flannel's udp and alloc write none) and we run {ours}; left out until both agree"
        ),
        theirs => format!("it announces backend {theirs:?} and we run {ours}; left out until both agree"),
    })
}

fn not_on_link(next_hop: IpAddr, uplink: LinkName) -> Words {
    Words::new(format!(
        "{next_hop} is not on the layer-2 segment of {uplink}, so host-gw cannot reach it; its subnet is unreachable"
    ))
    .remedy("Use auto or vxlan, or put both nodes on one segment")
}
