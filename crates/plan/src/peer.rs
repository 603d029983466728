//! Paths to the peers: how each peer's subnet is reached. `desired` decides it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::name::LinkName;
use crate::tunnel_id::TunnelKind;

/// First UDP port that is not well-known. A peer's tunnel never uses a lower one, unless our own does.
pub(crate) const UNPRIVILEGED: u16 = 1024;

/// Path by which one peer's subnet is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerPath {
    pub subnet: IpNet,
    pub public_ip: IpAddr,
    pub path: Path,
    /// True if the peer's address is on the uplink's segment.
    pub on_link: bool,
    /// Tunnel to the peer; `None` if the peer announces no VTEP.
    pub tunnel: Option<Tunnel>,
    /// True if the peer is reached directly while probes prove that this works, and by tunnel otherwise.
    #[serde(rename = "path_by_probes")]
    pub by_evidence: bool,
    /// Revision or file time at which the peer's lease was made, see [`Lease::born`](crate::lease::Lease::born).
    #[serde(skip)]
    pub born: u64,
}

/// Encapsulation of packets to a peer: `{"kind":"vxlan","link":"flannel.1","mac":"02:00:00:00:00:02","port":8472,"mtu":1450}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tunnel {
    pub kind: TunnelKind,
    pub link: LinkName,
    /// MAC of the peer's device; `None` if the tunnel carries no Ethernet frames.
    pub mac: Option<Mac>,
    /// UDP port on which the peer listens; `None` if the tunnel does not use UDP.
    pub port: Option<u16>,
    /// MTU of our device, in bytes.
    pub mtu: u32,
}

/// Kind of path to a peer: `vxlan` (the label of a tunnel's kind), `direct`, `unreachable` or `waiting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "Box<str>")]
pub enum Path {
    /// Encapsulated.
    Tunnel(TunnelKind),
    /// Straight to the peer's address.
    Direct,
    /// Refused with an ICMP error, because the path cannot work.
    Unreachable,
    /// Suspended: the uplink or our device is down, gone or unusable, or the route could not be set. While the uplink is
    /// not ready, routes that the kernel kept stay.
    Waiting,
}

impl Path {
    /// Returns every path, tunnels first.
    pub fn all() -> impl Iterator<Item = Self> {
        let others = [Self::Direct, Self::Unreachable, Self::Waiting];
        TunnelKind::ALL.into_iter().map(Self::Tunnel).chain(others)
    }

    /// Returns true if packets are encapsulated.
    pub fn is_tunnel(self) -> bool {
        matches!(self, Self::Tunnel(_))
    }

    /// Returns the word for the path in status, metrics and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tunnel(kind) => kind.label(),
            Self::Direct => "direct",
            Self::Unreachable => "unreachable",
            Self::Waiting => "waiting",
        }
    }
}

impl From<Path> for &'static str {
    fn from(path: Path) -> Self {
        path.label()
    }
}

impl TryFrom<Box<str>> for Path {
    type Error = String;

    fn try_from(label: Box<str>) -> Result<Self, String> {
        Self::all().find(|path| path.label() == &*label).ok_or_else(|| format!("{label:?} is no path"))
    }
}
