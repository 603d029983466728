//! Prober: a thread of its own that sends the probes that each peer's judge wants. The judge receives the outcome.
//! `plan::health` chooses the probes and judges the replies.
//!
//! A panic ends the whole daemon, as in every thread: the kernel objects stay. The next start knows no health, which
//! changes nothing. No packet of any sender may cause a panic.

mod frame;
mod next_hops;
mod own_address;
mod packet_io;
mod pending;
mod scheduler;
mod sockets;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use plan::health::Health;
use plan::node::Node;
use plan::{Mac, PeerPath};
use tokio::sync::watch;

use crate::trigger::CauseSender;
pub(crate) use own_address::{AddressConflict, Holder, holder};
use packet_io::PacketIo;
use scheduler::Scheduler;

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
pub(crate) struct ProbeFaults {
    /// Reason why a socket for probes could not be opened, if one is missing.
    pub(crate) refused: Option<Box<str>>,
    /// Second machine that has an address of ours.
    pub(crate) conflict: Option<AddressConflict>,
}

/// Schedule of the probes (`--probe`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ProbeMode {
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
    pub(crate) faults: watch::Receiver<ProbeFaults>,
}

/// Starts the prober, unless it is off. Each change of a finding or of a path sends a cause. Returns an error if the
/// thread cannot be started.
pub(crate) fn start(mode: ProbeMode, cause_sender: &CauseSender) -> anyhow::Result<Probes> {
    let (targets, received) = watch::channel(Targets::default());
    let (health_sender, healths) = watch::channel(Healths::default());
    let (faults_sender, faults) = watch::channel(ProbeFaults::default());
    let (wake, woken) = UnixStream::pair().context("waking thread probes")?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    if mode != ProbeMode::Off {
        let mut dice = [0; 4];
        getrandom::fill(&mut dice).map_err(|error| anyhow!("drawing random numbers: {error}"))?;
        let dice = [[dice[0], dice[1]], [dice[2], dice[3]]].map(u16::from_ne_bytes);
        let cause_sender = cause_sender.clone();
        let body = move || {
            Scheduler::new(
                mode,
                cause_sender,
                received,
                woken,
                health_sender,
                faults_sender,
                PacketIo::new(dice),
            )
            .run();
        };
        thread::Builder::new().name("probes".into()).spawn(body).context("starting thread probes")?;
    }
    Ok(Probes { targets, wake, healths, faults })
}
