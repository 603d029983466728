//! Where the leases are: the only crate that talks to a datastore.
//!
//! It hears and tells; it believes nothing and plans nothing. Loss of the store is said and never shown as an empty list.

mod dir;
mod own;
mod view;

pub use dir::Dir;
pub use own::{Choice, Claim};
pub use view::{StoreError, View};
