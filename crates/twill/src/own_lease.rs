//! Who this node is: the network config in force, its uplink and its lease. Established at start, where it waits for the
//! store as long as it takes; afterwards the lease is kept.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use kernel::Kernel;
use plan::Mac;
use plan::backend::Backend;
use plan::input::{Config, Family, Node};
use plan::lease::{Announced, Lease};
use plan::netconf::NetConf;
use plan::note::StoreFault;
use plan::subnet_alloc::Asker;
use plan::uplink::{self, Ask, Families};
use store::{Choice, Claim, Dir, StoreError};
use tracing::{info, warn};

use crate::flags::Flags;
use crate::locks::Locks;
use crate::report::{self, Board};
use crate::subnet_file;

const RETRY: Duration = Duration::from_secs(1);
/// So long the same words are not written again.
const REWRITE: Duration = Duration::from_secs(60);

/// Our lease: what it takes to ask for it, and to ask again.
pub(crate) struct OwnLease {
    store: Dir,
    conf: NetConf,
    asker: Asker,
    /// What the store was last told to say, and when.
    written: Option<(Announced, Instant)>,
}

/// The configuration in force, and this node in it.
pub(crate) struct Identity {
    pub(crate) config: Config,
    pub(crate) node: Node,
    /// Why this uplink.
    pub(crate) uplink_reason: String,
    pub(crate) own_lease: OwnLease,
}

pub(crate) fn establish(
    flags: &Flags,
    store: &Dir,
    (kernel, locks): (&mut Kernel, &mut Locks),
    board: &Board,
) -> anyhow::Result<Identity> {
    let conf = until_done(board, "the network config", || store.net_conf());
    let config = conf.config();
    locks.take_config(&config)?;
    let networks: Vec<_> = Family::ALL.into_iter().filter_map(|family| config.network(family)).collect();
    let underlay = kernel.underlay(&networks).context("reading this node's interfaces")?;
    let families = Families { ipv4: config.ipv4.is_some(), ipv6: config.ipv6.is_some() };
    let uplink::Choice { uplink, reason } =
        uplink::choose(&underlay, &ask(flags)?, families).context("choosing the interface")?;
    info!("uplink is {}: {reason}", uplink.link);
    if let (Backend::HostGw, Some(public_ip)) = (&config.backend, flags.public_ip)
        && uplink.ipv4.is_some_and(|own| own != public_ip)
    {
        bail!(
            "host-gw needs the uplink's own address as next hop, but --public-ip is {public_ip}: leave it out or use vxlan"
        );
    }
    let asker = Asker {
        public_ip: flags.public_ip.or(uplink.ipv4),
        public_ipv6: uplink.ipv6,
        previous: subnet_file::previous(&flags.subnet_file),
    };
    let mut own_lease = OwnLease { store: store.clone(), conf, asker, written: None };
    let drawn = [Mac::local_unicast(draw()?), Mac::local_unicast(draw()?)];
    let macs = |held: Option<&Lease>| config.backend.macs(held, &underlay, drawn);
    let dice = u64::from_ne_bytes(draw()?);
    let lease = until_done(board, "a lease", || own_lease.take(&macs, Choice::Any { dice }));
    own_lease.asker.previous = Some(lease.subnet);
    let [vtep, vtep_v6] = match lease.announced {
        Announced::Vxlan { ipv4, ipv6 } => [ipv4.map(|vtep| vtep.mac), ipv6.map(|vtep| vtep.mac)],
        _ => [None; 2],
    };
    // A node that announces no VTEP still needs one towards peers that do.
    let (vtep, vtep_v6) = (vtep.or(Some(drawn[0])), vtep_v6.or(Some(drawn[1])));
    let former = plan::backend::vxlan::left_devices(&underlay, &lease.subnet);
    let node = Node { uplink, subnet: lease.subnet, vtep, vtep_v6, former, foreign_vnis: Vec::new() };
    Ok(Identity { config, node, uplink_reason: reason, own_lease })
}

impl OwnLease {
    fn take(&self, macs: &dyn Macs, choice: Choice) -> Result<Lease, StoreError> {
        let config = self.conf.config();
        let announce = |held: Option<&Lease>| config.backend.announced(&config, macs(held));
        self.store.acquire(&Claim {
            conf: &self.conf,
            asker: self.asker.clone(),
            announce: &announce,
            choice,
        })
    }

    /// Follows a config that `may_follow`; what is announced changes with the next `keep`.
    pub(crate) fn follow(&mut self, conf: &NetConf) -> Config {
        self.conf = conf.clone();
        conf.config()
    }

    /// Is it another config than the one in force? The error says what of it cannot change while pods run.
    pub(crate) fn may_follow(&self, conf: &NetConf) -> Result<bool, StoreFault> {
        for (now, then, key) in [
            (&self.conf.ipv4, &conf.ipv4, "Network or SubnetLen"),
            (&self.conf.ipv6, &conf.ipv6, "IPv6Network or IPv6SubnetLen"),
        ] {
            if now.as_ref().map(|pool| (pool.network, pool.len))
                != then.as_ref().map(|pool| (pool.network, pool.len))
            {
                return Err(StoreFault::ConfigRefused { what: key.into() });
            }
        }
        Ok(self.conf != *conf)
    }

    /// Takes our lease again if it is not among those listed, and writes it anew if it does not say what we announce: the
    /// same subnet, since pods have addresses from it. Gives what is wrong if that cannot be.
    pub(crate) fn keep(&mut self, listed: &[Lease], node: &Node, now: Instant) -> Option<StoreFault> {
        let gone = |why: String| Some(StoreFault::OwnLeaseGone { why: why.into() });
        let macs = [node.vtep.unwrap_or_default(), node.vtep_v6.unwrap_or_default()];
        let config = self.conf.config();
        let announced = config.backend.announced(&config, macs);
        let what = match listed.iter().find(|lease| lease.subnet == node.subnet) {
            None => "was gone and is taken again",
            Some(lease) if !self.asker.owns(lease) => {
                let holder = lease.public_ip.map(IpAddr::V4).or(lease.public_ipv6.map(IpAddr::V6));
                return gone(holder.map_or("nobody holds it".into(), |holder| format!("{holder} holds it")));
            }
            Some(lease) if lease.announced == announced => return None,
            // The store tells late of our own write, and another daemon with our address would undo it for ever.
            Some(_)
                if self
                    .written
                    .as_ref()
                    .is_some_and(|(what, at)| *what == announced && now - *at < REWRITE) =>
            {
                return None;
            }
            Some(_) => "did not say what we announce and is written again",
        };
        match self.take(&|_: Option<&Lease>| macs, Choice::Only(node.subnet)) {
            Ok(lease) => {
                warn!("our lease {} {what}", lease.subnet);
                self.written = Some((announced, now));
                None
            }
            Err(error) => gone(error.to_string()),
        }
    }
}

/// Gives the MACs to announce, given the lease that we hold.
trait Macs: Fn(Option<&Lease>) -> [Mac; 2] + Sync {}
impl<F: Fn(Option<&Lease>) -> [Mac; 2] + Sync> Macs for F {}

fn ask(flags: &Flags) -> anyhow::Result<Ask> {
    Ok(match (&flags.iface, flags.public_ip) {
        (Some(iface), _) => match iface.parse() {
            Ok(address) => Ask::Address(address),
            Err(_) => Ask::Link(iface.parse().map_err(anyhow::Error::msg).context("--iface")?),
        },
        (None, Some(address)) => Ask::Address(address.into()),
        (None, None) => Ask::DefaultRoute,
    })
}

/// From the kernel's own dice: nodes that boot in the same instant must not draw the same MAC.
fn draw<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("drawing random numbers: {error}"))?;
    Ok(bytes)
}

/// Tries until it works; says once what is wrong, and again only when it is something else.
fn until_done<T, E: Display>(board: &Board, what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let mut said = String::new();
    loop {
        let error = match attempt() {
            Ok(done) => return done,
            Err(error) => error.to_string(),
        };
        if error != said {
            warn!("waiting for {what}: {error}");
            report::wait_for(board, &format!("{what}: {error}"));
            said = error;
        }
        std::thread::sleep(RETRY);
    }
}
