//! A store of any kind. Its calls wait for disks or servers, so they must not be made where a repair would wait for them.

use std::sync::Arc;

use plan::lease::Lease;
use plan::netconf::NetConf;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::claim::Claim;
use crate::dir::Dir;
#[cfg(feature = "etcd")]
use crate::etcd::Etcd;
use crate::stats::ConnectionStats;
use crate::view::{StoreError, View};

/// A store of the leases. Copies share the same store.
#[derive(Clone)]
pub enum Store {
    Dir(Dir),
    #[cfg(feature = "etcd")]
    Etcd(Etcd),
}

impl Store {
    /// Returns a text that identifies the store, for messages and for the cache, e.g. `etcd /coreos.com/network`.
    pub fn identity(&self) -> String {
        match self {
            Self::Dir(dir) => dir.identity(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.identity(),
        }
    }

    /// Returns the counters about the connection.
    pub fn stats(&self) -> Arc<ConnectionStats> {
        match self {
            Self::Dir(dir) => dir.stats(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.stats(),
        }
    }

    /// Reads all leases of the config's networks once.
    ///
    /// Returns an error if the store cannot be reached.
    pub async fn leases(&self, conf: &NetConf) -> Result<Arc<[Lease]>, StoreError> {
        match self {
            Self::Dir(dir) => dir.leases(conf),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.leases(conf).await,
        }
    }

    /// Reads the network config.
    ///
    /// Returns an error if the store cannot be reached, or if the config is missing or invalid.
    pub async fn net_conf(&self) -> Result<NetConf, StoreError> {
        match self {
            Self::Dir(dir) => dir.net_conf(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.net_conf().await,
        }
    }

    /// Returns the current network config if the store can be read without delay. With `None`, the view has the last
    /// one.
    pub fn net_conf_without_waiting(&self) -> Option<Result<NetConf, StoreError>> {
        match self {
            Self::Dir(dir) => Some(dir.net_conf()),
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => None,
        }
    }

    /// Records that this lease is ours. The networks of this config define which entries are leases.
    pub fn set_own_lease(&self, lease: &Lease, conf: &NetConf) {
        match self {
            Self::Dir(dir) => dir.hold(lease, conf),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.set_own_lease(&lease.subnet, conf),
        }
    }

    /// Writes our lease, unless it stands there already as it should.
    ///
    /// Returns an error if the store cannot be reached or has no acceptable subnet. The error is a refusal
    /// ([`StoreError::is_refusal`]) if another node seems to have our address.
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

    /// Keeps the view up to date and never returns.
    pub async fn watch(self, view: watch::Sender<View>) {
        match self {
            Self::Dir(dir) => dir.watch(view).await,
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.watch(view).await,
        }
    }
}
