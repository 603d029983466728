//! A store, whichever it is. All of it waits for others; none of it may be called where repairs would have to wait, too.

use std::sync::Arc;

use plan::lease::{Lease, Subnet};
use plan::netconf::NetConf;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::dir::Dir;
#[cfg(feature = "etcd")]
use crate::etcd::Etcd;
use crate::own::Claim;
use crate::pulse::Pulse;
use crate::view::{StoreError, View};

/// Where the leases are. Copies are the same store.
#[derive(Clone)]
pub enum Store {
    Dir(Dir),
    #[cfg(feature = "etcd")]
    Etcd(Etcd),
}

impl Store {
    /// Tells this store from others, for people and for a cache.
    pub fn identity(&self) -> String {
        match self {
            Self::Dir(dir) => dir.identity(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.identity(),
        }
    }

    /// How it is heard.
    pub fn pulse(&self) -> Arc<Pulse> {
        match self {
            Self::Dir(dir) => dir.pulse(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.pulse(),
        }
    }

    /// Reads all leases, once.
    pub async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        match self {
            Self::Dir(dir) => dir.leases(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.leases().await,
        }
    }

    /// Reads the network config.
    pub async fn net_conf(&self) -> Result<NetConf, StoreError> {
        match self {
            Self::Dir(dir) => dir.net_conf(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.net_conf().await,
        }
    }

    /// The network config at this moment, where that takes no time; elsewhere the view is what there is.
    pub fn net_conf_at_hand(&self) -> Option<Result<NetConf, StoreError>> {
        match self {
            Self::Dir(dir) => Some(dir.net_conf()),
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => None,
        }
    }

    /// From now on that lease is ours, and leases are of that config's networks.
    pub fn hold(&self, subnet: &Subnet, conf: &NetConf) {
        match self {
            // A directory's leases do not end.
            Self::Dir(_) => _ = (subnet, conf),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.hold(subnet, conf),
        }
    }

    /// Takes our lease, or finds that it stands as it should.
    pub async fn acquire(&self, claim: Claim) -> Result<Lease, StoreError> {
        match self {
            Self::Dir(dir) => {
                let (dir, place) = (dir.clone(), dir.identity());
                let taken = spawn_blocking(move || dir.acquire(&claim)).await;
                taken.unwrap_or_else(|error| Err(StoreError::new(place, error)))
            }
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.acquire(&claim).await,
        }
    }

    /// Keeps the view up to date, for ever.
    pub async fn watch(self, view: watch::Sender<View>) {
        match self {
            Self::Dir(dir) => dir.watch(view).await,
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.watch(view).await,
        }
    }
}
