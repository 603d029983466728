//! Access to the store of the leases, in etcd or a directory. No other crate talks to a datastore.
//!
//! The crate reports what the store holds; it neither validates nor plans. A store that cannot be reached is reported as lost,
//! never as an empty list.

mod bounds;
mod claim;
mod dir;
#[cfg(feature = "etcd")]
mod etcd;
mod stats;
mod store;
mod view;

pub use claim::{AcceptableSubnet, Announce, Claim};
pub use dir::Dir;
#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdOptions};
pub use stats::ConnectionStats;
pub use store::Store;
pub use view::{StoreError, View};
