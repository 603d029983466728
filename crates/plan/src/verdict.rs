//! What is known of each peer by asking it: samples and the time go in, a verdict comes out. Pure: it sends nothing and reads
//! no clock; who asks is the daemon's `probe`.
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

/// A question to a peer that needs nothing of it but its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// ARP or neighbour discovery for its address on the uplink.
    NextHop,
    /// Echo to its own address: nothing of ours is in the way.
    Node,
    /// The same in an IP packet of so many bytes that must not be fragmented.
    NodeSized(u16),
    /// Echo between pod subnets, the way that the pods' packets go.
    Path,
    /// The same in an IP packet of so many bytes.
    PathSized(u16),
    /// That way, but from this node's own address: the answer needs no way back to our pods.
    There,
    /// Echo between pod subnets in a frame of our own, straight to the MAC that answered, whatever way is in use.
    Direct,
    /// Two datagrams to a closed port between pod subnets: the first one's checksum is left to the devices, the other's is complete.
    Checksum,
}

/// What came of a probe. One may have several answers; what has none by [`PATIENCE`] after it was sent is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Came {
        after: Duration,
    },
    /// To [`Probe::NextHop`]: who says to be it, and another address that the same MAC has answered for. Where two say so, each is
    /// a sample with the time of the one request.
    Is {
        mac: Mac,
        also: Option<std::net::IpAddr>,
    },
    /// Somebody on the way, or this node's own kernel, carries no more than so many bytes.
    TooBig {
        mtu: u16,
    },
    /// Somebody on the way says that it goes no further.
    Refused {
        by: std::net::IpAddr,
    },
    /// To [`Probe::Checksum`]: which of the two was answered.
    Checksums {
        offloaded: bool,
        complete: bool,
    },
    Lost,
    /// It could not be asked: one side has no address in its pod subnet yet, or the link has no such thing as a next hop.
    Impossible,
}

/// A probe and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub probe: Probe,
    pub sent: Duration,
    pub answer: Answer,
}

/// The way of a peer that may be reached by either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    Direct,
    Tunnel,
}

/// A peer's way, of many that are kept once for all.
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

/// What the evidence says of one peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub subnet: IpNet,
    /// That was asked: it says nothing of another one that the peer has by now.
    pub node: IpAddr,
    /// Through which it was asked: it says nothing of another one that we have by now.
    pub uplink: LinkName,
    pub finding: Finding,
    /// `None` until there is evidence: then what stands stays.
    #[serde(default)]
    pub way: Option<Way>,
    /// Does its pod subnet answer? `None` until there is evidence; while this node may be the one that is cut off, what was
    /// found before stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
}

/// A verdict with what people want to know besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub verdict: Verdict,
    /// When the finding was made.
    pub since: Duration,
    /// Of the last echo that was answered along the way in use.
    pub latency: Option<Duration>,
    /// Of the last echoes along the way in use, lost ones per thousand.
    pub loss: u16,
    /// Bytes; the largest IP packet between pods that is known to arrive.
    pub mtu: Option<u16>,
}
