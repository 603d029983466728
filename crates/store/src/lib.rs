//! Where the leases are: the only crate that talks to a datastore.
//!
//! It hears and tells; it believes nothing and plans nothing. Loss of the store is said and never shown as an empty list.

mod dir;
#[cfg(feature = "etcd")]
mod etcd;
mod own;
mod pulse;
mod store;
mod view;

pub use dir::Dir;
#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdOptions};
pub use own::{Announce, Choice, Claim};
pub use pulse::Pulse;
pub use store::Store;
pub use view::{StoreError, View};
