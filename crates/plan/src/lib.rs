//! What this node's kernel should hold, and the steps from what it holds to that.
//!
//! Pure: no I/O, no clock, no dice, no interface index; the manifest proves it. `wanted` and `diff` never fail:
//! what is broken or dangerous becomes a note and is left out, so that one peer's fault is never another's.
//! Reading and writing the kernel is `kernel`'s part, talking to a datastore is `store`'s.

pub mod backend;
pub mod belief;
pub mod check;
mod diff;
mod direct;
mod environment;
mod fields;
pub mod firewall;
pub mod follow;
pub mod input;
pub mod lease;
mod leaving;
mod mac;
pub mod marks;
mod name;
pub mod netconf;
pub mod note;
mod op;
pub mod owned;
mod policy;
pub mod rivals;
mod standing;
pub mod state;
pub mod subnet_alloc;
pub mod subnet_env;
pub mod sysctls;
mod table;
pub mod text;
mod unclaimed;
pub mod uplink;
pub mod verdict;
mod wanted;

pub use diff::diff;
pub use environment::environment;
pub use leaving::{hand_over, uninstall};
pub use mac::Mac;
pub use name::LinkName;
pub use op::{Object, Op, Setting, Verb};
pub use policy::{Diversion, Diversions, diversions};
pub use standing::{has_nexthops, standing};
pub use state::{Kind, State};
pub use sysctls::forwarding;
pub use table::{Row, Table};
pub use unclaimed::unclaimed;
pub use wanted::{Path, PeerPath, Tunnel, Wanted, bounds, carried, name_faulty, vnis, wanted};
