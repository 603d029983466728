//! Judges each peer by probes: samples and the time go in, a verdict comes out. It is pure: it sends nothing and reads no
//! clock. The daemon's `probe` sends the probes.
//!
//! Times are counted from the daemon's start.

mod diagnosis;
mod evidence;
mod finding;
mod judge;
mod ladder;
mod questions;
mod rare;
mod suspicion;
mod track;

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{LinkName, Mac, PeerPath};

pub use finding::Finding;
pub use judge::{Judge, Local, PATIENCE};
pub use suspicion::suspect;

/// Probe of a peer, which needs only the peer's kernel to reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// ARP request or neighbour solicitation for the peer's address on the uplink.
    NextHop,
    /// Echo request to the peer's own address, which crosses nothing of ours.
    Node,
    /// Echo request to the peer's own address, in an IP packet of this many bytes that must not be fragmented.
    NodeSized(u16),
    /// Echo request between pod subnets, on the path that the pods' packets take.
    Path,
    /// Echo request on the pods' path, in an IP packet of this many bytes.
    PathSized(u16),
    /// Echo request on the pods' path, but from this node's own address: the reply needs no path back to our pods.
    There,
    /// Echo request between pod subnets in a frame of our own, straight to the MAC that replied. It does not depend on
    /// the path in use.
    Direct,
    /// Two datagrams to a closed port between pod subnets. The first leaves its checksum to the devices; the other is
    /// complete.
    Checksum,
}

/// Result of a probe. A probe may have several replies; without any by [`PATIENCE`] after it was sent it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Came {
        after: Duration,
    },
    /// Reply to [`Probe::NextHop`]: the MAC that claims the address, and another address for which the same MAC has
    /// replied. If two MACs claim the address, each gives a sample with the time of the one request.
    Is {
        mac: Mac,
        also: Option<std::net::IpAddr>,
    },
    /// Report of a router on the path, or of our own kernel, that it carries at most this many bytes.
    TooBig {
        mtu: u16,
    },
    /// Report of a router on the path that the packet goes no further.
    Refused {
        by: std::net::IpAddr,
    },
    /// Result of [`Probe::Checksum`]: which of the two datagrams got a reply.
    Checksums {
        offloaded: bool,
        complete: bool,
    },
    Lost,
    /// Probe that could not be sent. One side has no address in its pod subnet yet, or the link has no next hops.
    Impossible,
}

/// Probe with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub probe: Probe,
    pub sent: Duration,
    pub answer: Answer,
}

/// Path of a peer that both paths may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    Direct,
    Tunnel,
}

/// Path of one peer, in a list that all holders share.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Vec<PeerPath>>, u32);

impl Shared {
    pub fn all(peers: &Arc<Vec<PeerPath>>) -> impl Iterator<Item = Self> {
        (0..).zip(peers.iter()).map(|(at, _)| Self(peers.clone(), at))
    }
}

impl From<PeerPath> for Shared {
    fn from(peer: PeerPath) -> Self {
        Self(Arc::new(vec![peer]), 0)
    }
}

impl Deref for Shared {
    type Target = PeerPath;

    fn deref(&self) -> &PeerPath {
        &self.0[self.1 as usize]
    }
}

/// Health of one peer, as the evidence shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub subnet: IpNet,
    /// Address that was probed; the verdict does not apply to another address that the peer has by now.
    pub node: IpAddr,
    /// Uplink through which it was probed; the verdict does not apply to another uplink that we have by now.
    pub uplink: LinkName,
    pub finding: Finding,
    /// Path that the evidence supports. `None` until there is evidence; the existing path stays until then.
    #[serde(default)]
    pub way: Option<Way>,
    /// True if the peer's pod subnet replies; `None` until there is evidence. While this node may be the one that is cut
    /// off, the previous value stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
}

/// Verdict with further values for `status` and the metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub verdict: Verdict,
    /// Time of the finding.
    pub since: Duration,
    /// Latency of the last echo that was answered on the path in use.
    pub latency: Option<Duration>,
    /// Loss among the last echoes on the path in use, per thousand.
    pub loss: u16,
    /// Largest IP packet between pods that is known to arrive, in bytes.
    pub mtu: Option<u16>,
}
