//! Asks the peers: a thread of its own that sends what each peer's judge wants to know, and tells the judge what came of it.
//! It decides nothing: what to ask and what the answers mean is `plan::verdict`'s.
//! A panic ends the whole daemon, here as elsewhere: what is in the kernel stays, and the next start knows no verdict, which
//! changes nothing. So no packet may bring one about, whoever sends it.

mod asker;
mod frame;
mod next_hops;
mod post;
mod sent;
mod wires;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use plan::input::Node;
use plan::verdict::Health;
use plan::{Mac, PeerPath};
use tokio::sync::watch;

use crate::trigger::Bell;
use asker::Asker;
use post::Post;

/// Whom to ask, and from where; told by the rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// `None` before the first round.
    pub(crate) node: Option<Node>,
    /// The uplink's: where it is another one, all that is known of our devices is read again.
    pub(crate) mac: Option<Mac>,
    /// By subnet; kept once for all who want to know.
    pub(crate) peers: Arc<Vec<PeerPath>>,
    /// Our own uplink cannot carry anything: what is lost says nothing about peers.
    pub(crate) suspect: bool,
    /// Subnets of peers that a policy rule or route of this node keeps packets from.
    pub(crate) diverted: Vec<IpNet>,
    /// How often one of our links, the uplink or a tunnel's device, has changed.
    pub(crate) links: u64,
    /// Of our pods, bytes.
    pub(crate) mtu: u32,
}

/// What is known of the peers, by subnet.
pub(crate) type Healths = Arc<Vec<Health>>;

/// Why a socket to ask by could not be opened, if so.
pub(crate) type Refused = Option<Box<str>>;

/// How often peers are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    Off,
    /// When a peer is new or changes.
    OnChange,
    #[default]
    Periodic,
}

/// The rounds' end.
pub(crate) struct Probes {
    pub(crate) targets: watch::Sender<Targets>,
    /// A byte says that the targets are others.
    pub(crate) wake: UnixStream,
    pub(crate) healths: watch::Receiver<Healths>,
    pub(crate) refused: watch::Receiver<Refused>,
}

/// Starts asking; each change of a finding or of a way rings the bell.
pub(crate) fn start(pace: Pace, bell: &Bell) -> anyhow::Result<Probes> {
    let (targets, heard) = watch::channel(Targets::default());
    let (tell, healths) = watch::channel(Healths::default());
    let (complain, refused) = watch::channel(Refused::default());
    let (wake, woken) = UnixStream::pair().context("waking thread probes")?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    if pace != Pace::Off {
        let mut dice = [0; 4];
        getrandom::fill(&mut dice).map_err(|error| anyhow!("drawing random numbers: {error}"))?;
        let dice = [[dice[0], dice[1]], [dice[2], dice[3]]].map(u16::from_ne_bytes);
        let bell = bell.clone();
        let body = move || Asker::new(pace, bell, heard, woken, tell, complain, Post::new(dice)).run();
        thread::Builder::new().name("probes".into()).spawn(body).context("starting thread probes")?;
    }
    Ok(Probes { targets, wake, healths, refused })
}
