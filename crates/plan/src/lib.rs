//! Computes the desired kernel state of this node, and the ops that lead from the observed state to it.
//!
//! The crate is pure: no I/O, no clock, no random numbers, no interface indexes; its manifest proves it. `desired` and
//! `diff` never fail. A broken or dangerous lease becomes a warning and is left out: one peer's fault never affects
//! another peer. The crate `kernel` reads and writes the kernel; the crate `store` talks to the datastore.

pub mod backend;
mod check;
pub mod config;
mod desired;
mod diff;
mod direct;
mod each_kind;
pub mod env_file;
mod environment;
mod family;
pub mod fault;
mod fields;
pub mod firewall;
pub mod health;
pub mod ip_address;
pub mod lease;
pub mod lease_conflicts;
pub mod left_overs;
mod mac;
pub mod marks;
mod name;
pub mod netconf;
pub mod node;
mod op;
pub mod other_daemons;
pub mod owned;
pub mod passage;
mod peer;
mod planning;
mod policy;
pub mod pool;
pub mod range;
pub mod shrink_guard;
mod situation;
mod standing;
pub mod state;
pub mod subnet;
pub mod subnet_alloc;
pub mod subnet_env;
pub mod sysctls;
mod table;
pub mod text;
mod tunnel_id;
mod unclaimed;
pub mod underlay;
mod uninstall;
pub mod uplink;
pub mod uplink_follower;
pub mod warning;

pub use diff::diff;
pub use family::Family;
pub use mac::Mac;
pub use name::LinkName;
pub use op::{Object, Op, Verb};
pub use peer::{Path, PeerPath, Tunnel};
pub use planning::{Plan, plan, plan_at_start, scope};
pub use situation::{HealthInput, Memory, Situation};
pub use state::{Kind, Setting, State};
pub use sysctls::forwarding;
pub use table::{Row, Table};
pub use tunnel_id::{TunnelId, TunnelKind};
pub use unclaimed::unclaimed;
pub use uninstall::{hand_over, uninstall};
