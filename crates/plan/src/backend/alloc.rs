//! alloc: a lease and nothing else. It plans no kernel object; pods of other nodes are reached by whatever the
//! administrator provides (flannel-compat 6.7).

use crate::lease::Announced;

/// What an alloc node writes into its lease.
pub fn announced() -> Announced {
    Announced::Nothing
}
