//! Who this node is: the network config in force, its uplink and its lease. Established at start, where it waits for the
//! store as long as it takes; afterwards the lease is kept.

use std::fmt::Display;
use std::time::Duration;

use anyhow::Context;
use kernel::Kernel;
use plan::Mac;
use plan::input::{Config, Family, Node, Underlay};
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

/// Our lease: what it takes to ask for it, and to ask again.
pub(crate) struct OwnLease {
    store: Dir,
    conf: NetConf,
    config: Config,
    asker: Asker,
    /// Of the VTEPs, where neither a device nor a lease has any yet.
    drawn: [Mac; 2],
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
    let asker = Asker {
        public_ip: flags.public_ip.or(uplink.ipv4),
        public_ipv6: uplink.ipv6,
        previous: subnet_file::previous(&flags.subnet_file),
    };
    let drawn = [draw_mac(), draw_mac()];
    let mut own_lease = OwnLease { store: store.clone(), conf, config: config.clone(), asker, drawn };
    let any = || Choice::Any { dice: fastrand::u64(..) };
    let lease = until_done(board, "a lease", || own_lease.take(&underlay, any()));
    own_lease.asker.previous = Some(lease.subnet);
    let (vtep, vtep_v6) = match lease.announced {
        Announced::Vxlan { ipv4, ipv6 } => (ipv4.map(|vtep| vtep.mac), ipv6.map(|vtep| vtep.mac)),
        _ => (None, None),
    };
    let node = Node { uplink, subnet: lease.subnet, vtep, vtep_v6 };
    Ok(Identity { config, node, uplink_reason: reason, own_lease })
}

impl OwnLease {
    fn take(&self, underlay: &Underlay, choice: Choice) -> Result<Lease, StoreError> {
        let announce =
            |held: Option<&Lease>| self.config.backend.announced(&self.config, held, underlay, self.drawn);
        self.store.acquire(&Claim {
            conf: &self.conf,
            asker: self.asker.clone(),
            announce: &announce,
            choice,
        })
    }

    /// Takes our lease again if it is not among those listed: the same subnet, since pods have addresses from it. Our
    /// device is there, and its MAC with it. Gives what is wrong if that fails.
    pub(crate) fn keep(&self, listed: &[Lease], node: &Node, underlay: &Underlay) -> Option<StoreFault> {
        if listed.iter().any(|lease| lease.subnet == node.subnet) {
            return None;
        }
        match self.take(underlay, Choice::Only(node.subnet)) {
            Ok(lease) => {
                warn!("our lease {} was gone from the store and is taken again", lease.subnet);
                None
            }
            Err(error) => Some(StoreFault::OwnLeaseGone { why: error.to_string().into() }),
        }
    }
}

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

fn draw_mac() -> Mac {
    Mac::local_unicast(std::array::from_fn(|_| fastrand::u8(..)))
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
