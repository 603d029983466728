//! Prober: a thread of its own that sends the probes that each peer's judge wants. The judge receives the outcome.
//! `plan::verdict` chooses the probes and judges the replies.
//!
//! A panic ends the whole daemon, as in every thread: the kernel objects stay. The next start knows no health, which
//! changes nothing. No packet of any sender may cause a panic.

mod asker;
mod frame;
mod next_hops;
mod own_address;
mod post;
mod sent;
mod wires;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use plan::node::Node;
use plan::verdict::Health;
use plan::{Mac, PeerPath};
use tokio::sync::watch;

use crate::trigger::Bell;
use asker::Asker;
pub(crate) use own_address::{Holder, Rival, holder};
use post::Post;

#[cfg(fuzzing)]
pub(crate) use frame::fuzz;

/// Peers to probe, and the node to probe from; set by the reconcile loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// This node; `None` before the first pass.
    pub(crate) node: Option<Node>,
    /// MAC of the uplink. After a change everything known about our devices is read again.
    pub(crate) mac: Option<Mac>,
    /// Peers by subnet; kept once for all readers.
    pub(crate) peers: Arc<Vec<PeerPath>>,
    /// True if our own uplink cannot carry anything. A loss then says nothing about peers.
    pub(crate) suspect: bool,
    /// Subnets of peers whose packets a policy rule or route of this node diverts.
    pub(crate) diverted: Vec<IpNet>,
    /// Number of changes of our links: the uplink and the tunnels' devices.
    pub(crate) links: u64,
    /// MTU of our pods, bytes.
    pub(crate) mtu: u32,
}

/// Health of the peers, sorted by subnet.
pub(crate) type Healths = Arc<Vec<Health>>;

/// Troubles of the prober that concern the whole node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Complaints {
    /// Reason why a socket for probes could not be opened, if one is missing.
    pub(crate) refused: Option<Box<str>>,
    /// Second machine that has an address of ours.
    pub(crate) rival: Option<Rival>,
}

/// Schedule of the probes (`--probe`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    Off,
    /// Probes a peer while it is new or changes.
    OnChange,
    #[default]
    Periodic,
}

/// Ends of the channels that belong to the reconcile loop.
pub(crate) struct Probes {
    pub(crate) targets: watch::Sender<Targets>,
    /// Socket for wake-ups: a byte means that the targets have changed.
    pub(crate) wake: UnixStream,
    pub(crate) healths: watch::Receiver<Healths>,
    pub(crate) complaints: watch::Receiver<Complaints>,
}

/// Starts the prober, unless it is off. Each change of a finding or of a path rings the bell. Returns an error if the
/// thread cannot be started.
pub(crate) fn start(pace: Pace, bell: &Bell) -> anyhow::Result<Probes> {
    let (targets, received) = watch::channel(Targets::default());
    let (health_sender, healths) = watch::channel(Healths::default());
    let (complain, complaints) = watch::channel(Complaints::default());
    let (wake, woken) = UnixStream::pair().context("waking thread probes")?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    if pace != Pace::Off {
        let mut dice = [0; 4];
        getrandom::fill(&mut dice).map_err(|error| anyhow!("drawing random numbers: {error}"))?;
        let dice = [[dice[0], dice[1]], [dice[2], dice[3]]].map(u16::from_ne_bytes);
        let bell = bell.clone();
        let body =
            move || Asker::new(pace, bell, received, woken, health_sender, complain, Post::new(dice)).run();
        thread::Builder::new().name("probes".into()).spawn(body).context("starting thread probes")?;
    }
    Ok(Probes { targets, wake, healths, complaints })
}
