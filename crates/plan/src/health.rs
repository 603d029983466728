//! Health of each peer, judged from probes: samples and the time go in, a [`PeerHealth`] comes out. The module is pure: the
//! daemon's `probe` module sends the packets and supplies the clock.
//!
//! Times are durations since the daemon's start.

mod choice;
mod diagnose;
mod evidence;
mod finding;
mod history;
mod judge;
mod mtu_search;
mod probe_results;
mod reported;
mod schedule;
mod self_suspect;
mod time;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::name::LinkName;

pub use finding::Finding;
pub use judge::{Judge, Local, PATIENCE};
pub use self_suspect::suspect;

/// A probe that a peer's kernel answers by itself; no program of ours has to run there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// ARP request or neighbour solicitation for the peer's address on the uplink.
    NextHop,
    /// ICMP echo to the peer's own address on the underlay, without pod addresses or tunnel.
    Node,
    /// [`Probe::Node`] in an IP packet of this many bytes that must not be fragmented.
    NodeSized(u16),
    /// ICMP echo between the pod subnets, along the path that the pods' packets take.
    Path,
    /// [`Probe::Path`] in an IP packet of this many bytes that must not be fragmented.
    PathSized(u16),
    /// [`Probe::Path`] from this node's own address: the reply does not depend on the peer's route to our pods.
    There,
    /// ICMP echo between the pod subnets, in a raw frame to the next hop's MAC address.
    Direct,
    /// Two UDP datagrams to a closed port between the pod subnets. The first leaves its checksum to the devices, the second is
    /// complete.
    Checksum,
}

/// Outcome of a probe. A probe may have several outcomes; one without any within [`PATIENCE`] is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The expected reply, with its round-trip time.
    Came { after: Duration },
    /// Reply to [`Probe::NextHop`]: the MAC address that claims the next hop's address, and another address that it answers
    /// for. Two claimants give two samples with the time of the one request.
    Is { mac: Mac, also: Option<std::net::IpAddr> },
    /// Report by a router on the path or by this node's kernel: packets above this many bytes do not pass.
    TooBig { mtu: u16 },
    /// ICMP error from a host on the path, which says that the packet goes no further.
    Refused { by: std::net::IpAddr },
    /// Reply to [`Probe::Checksum`]: which of the two datagrams was answered.
    Checksums { offloaded: bool, complete: bool },
    /// No reply within [`PATIENCE`].
    Lost,
    /// The probe could not be sent. One side has no address in its pod subnet yet, or the link does not resolve next hops.
    Impossible,
}

/// A probe and its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub probe: Probe,
    /// Time at which the probe was sent.
    pub sent: Duration,
    pub answer: Answer,
}

/// Path to a peer that can be reached both directly and by tunnel; serialized as `"direct"` or `"tunnel"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreferredPath {
    Direct,
    Tunnel,
}

/// Health of one peer, as far as the evidence goes. Sample:
///
/// ```json
/// {"subnet": "10.244.46.0/24", "node": "192.168.100.12", "uplink": "eth0",
///  "finding": {"silent": {"node": "192.168.100.12"}}, "way": "tunnel"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerHealth {
    pub subnet: IpNet,
    /// Underlay address that was probed. The finding does not apply once the peer has another address.
    pub node: IpAddr,
    /// Uplink that the probes went through. The finding does not apply once this node has another uplink.
    pub uplink: LinkName,
    pub finding: Finding,
    /// Path that the evidence favours. Until there is evidence it is `None`, and the path in the kernel stays.
    #[serde(default, rename = "way")]
    pub preferred_path: Option<PreferredPath>,
    /// True if the peer's pod subnet answers; `None` until there is evidence. While this node may be the one that is
    /// cut off, the previous value stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
}

/// Health of one peer with the numbers that `twill status` and the metrics show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub peer: PeerHealth,
    /// Time at which the finding was made.
    pub since: Duration,
    /// Round-trip time of the last echo that was answered along the path in use.
    pub latency: Option<Duration>,
    /// Lost echoes per thousand among the last 63 regular ones along the path in use.
    pub loss: u16,
    /// Size in bytes of the largest IP packet between pods that is known to arrive.
    pub mtu: Option<u16>,
}
