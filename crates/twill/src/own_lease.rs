//! Our lease: taken at start, kept while we run, with the network config that it was taken under. It does not decide
//! which subnet: that is the plan's and the store's part.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use plan::Mac;
use plan::input::{Config, Node, Uplink};
use plan::lease::{Announced, Lease};
use plan::netconf::NetConf;
use plan::note::StoreFault;
use plan::subnet_alloc::Asker;
use store::{Choice, Claim, Dir, StoreError};
use tracing::warn;

/// So long the same words are not written again.
const REWRITE: Duration = Duration::from_secs(60);
/// The store has told of our own write by then.
const ECHO: Duration = Duration::from_secs(5);
/// So long it is said that somebody else writes our lease, who may do so as rarely as we.
const CONTEST: Duration = Duration::from_secs(150);
/// Until the lease is asked for again after the store refused it.
const RETRY: Duration = Duration::from_secs(5);

/// Our lease: what it takes to ask for it, and to ask again.
pub(crate) struct OwnLease {
    store: Dir,
    conf: NetConf,
    asker: Asker,
    /// What the store was last told to say, and when.
    written: Option<(Lease, Instant)>,
    /// What somebody else makes it say, and how long that is told.
    contest: Option<(StoreFault, Instant)>,
}

/// How our lease stands.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) fault: Option<StoreFault>,
    /// When to look at it again though nothing is heard.
    pub(crate) due: Option<Instant>,
}

impl OwnLease {
    pub(crate) fn new(store: Dir, conf: NetConf, asker: Asker) -> Self {
        Self { store, conf, asker, written: None, contest: None }
    }

    /// The config in force.
    pub(crate) fn conf(&self) -> &NetConf {
        &self.conf
    }

    /// The config that the store has now, whatever it told last.
    pub(crate) fn conf_in_store(&self) -> Result<NetConf, StoreError> {
        self.store.net_conf()
    }

    /// What we hold, as far as we know.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.asker.held.as_ref()
    }

    /// Announces another uplink, with the next `keep`.
    pub(crate) fn move_to(&mut self, uplink: &Uplink) {
        let Asker { public_ip, public_ipv6, .. } = Asker::at(uplink);
        (self.asker.public_ip, self.asker.public_ipv6) = (public_ip, public_ipv6);
    }

    /// From now on that lease is ours.
    pub(crate) fn holding(mut self, lease: Lease) -> (Self, Lease) {
        self.asker.previous = Some(lease.subnet);
        self.asker.held = Some(lease.clone());
        (self, lease)
    }

    pub(crate) fn take(&self, macs: &dyn Macs, choice: Choice) -> Result<Lease, StoreError> {
        let config = self.conf.config();
        let announce =
            |held: Option<&Lease>, others: &[&Lease]| config.backend.announced(&config, macs(held), others);
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
    pub(crate) fn keep(&mut self, listed: &[Lease], node: &Node, now: Instant) -> Kept {
        let refused = |fault| Kept { fault: Some(fault), due: Some(now + RETRY) };
        let gone = |why: String| refused(StoreFault::OwnLeaseGone { why: why.into() });
        let macs = [node.vtep.unwrap_or_default(), node.vtep_v6.unwrap_or_default()];
        let config = self.conf.config();
        let others: Vec<&Lease> = listed.iter().filter(|lease| !self.asker.owns(lease)).collect();
        let announced = config.backend.announced(&config, macs, &others);
        let standing = listed.iter().find(|lease| lease.subnet == node.subnet);
        let what = match standing {
            None => "was gone and is taken again",
            Some(lease) if !self.asker.owns(lease) => {
                let holder = lease.public_ip.map(IpAddr::V4).or(lease.public_ipv6.map(IpAddr::V6));
                return gone(holder.map_or("nobody holds it".into(), |holder| format!("{holder} holds it")));
            }
            Some(lease) if self.says(lease, &announced) => return self.kept(now),
            Some(lease) => {
                let written = self.written.as_ref().filter(|(what, _)| self.says(what, &announced));
                match written.map(|(_, at)| *at) {
                    Some(at) if now - at < ECHO => return Kept { due: Some(at + ECHO), ..self.kept(now) },
                    Some(at) => {
                        self.contest = Some((contested(lease), now + CONTEST));
                        // Another daemon with our address would undo it for ever.
                        if now - at < REWRITE {
                            return self.kept(now);
                        }
                    }
                    None => {}
                }
                "did not say what we announce and is written again"
            }
        };
        match self.take(&|_: Option<&Lease>| macs, Choice::Only(node.subnet)) {
            Ok(lease) => {
                warn!("our lease {} {what}", lease.subnet);
                self.written = Some((lease.clone(), now));
                self.asker.held = Some(lease);
                self.kept(now)
            }
            Err(error) if standing.is_some() => {
                refused(StoreFault::OwnLeaseStale { why: error.to_string().into() })
            }
            Err(error) => gone(error.to_string()),
        }
    }

    /// It stands, or has been written; perhaps somebody else writes it too.
    fn kept(&mut self, now: Instant) -> Kept {
        self.contest = self.contest.take().filter(|(_, until)| now < *until);
        let (fault, due) = self.contest.clone().unzip();
        Kept { fault, due }
    }

    /// Does the lease say all that we announce?
    fn says(&self, lease: &Lease, announced: &Announced) -> bool {
        let Asker { public_ip, public_ipv6, .. } = self.asker;
        (lease.public_ip, lease.public_ipv6, &lease.announced) == (public_ip, public_ipv6, announced)
    }
}

fn contested(lease: &Lease) -> StoreFault {
    let theirs = match lease.announced.macs().into_iter().flatten().next() {
        Some(mac) => format!("VTEP MAC {mac}"),
        None => format!("backend {:?}", lease.announced.backend_type()),
    };
    StoreFault::OwnLeaseContested { subnet: lease.subnet.to_string().into(), theirs: theirs.into() }
}

/// Gives the MACs to announce, given the lease that we hold.
pub(crate) trait Macs: Fn(Option<&Lease>) -> [Mac; 2] + Sync {}
impl<F: Fn(Option<&Lease>) -> [Mac; 2] + Sync> Macs for F {}
