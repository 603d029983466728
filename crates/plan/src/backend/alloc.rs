//! Backend alloc: a lease and nothing else. It plans no kernel objects; the administrator provides the paths to other
//! nodes' pods (flannel-compat 6.7).

use crate::lease::Announced;

/// Returns the backend data of an alloc node's lease.
pub fn announced() -> Announced {
    Announced::Nothing
}
