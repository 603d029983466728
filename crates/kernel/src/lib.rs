//! The interface to Linux: reads the objects that may be ours, carries out ops, and reports changes. All calls block.
//!
//! This crate takes no decisions: an `if` that depends on a lease belongs in another crate. Each kind of object has
//! one file. It reads the kind's rows from the kernel, writes them, and names the notifications that matter. `dump`,
//! `apply` and `watch` are loops over the kinds (`kind`). The modules `message` and `socket` below them know no kind of
//! object.

mod addr;
mod apply;
mod command;
mod devices;
mod dump;
mod echo;
mod error;
mod fdb;
mod filter;
mod firewall;
#[cfg(fuzzing)]
pub mod fuzz;
mod handle;
mod iptables;
mod kind;
mod link;
mod message;
mod names;
mod neigh;
mod nexthop;
mod nft;
pub mod packet;
mod packet_path;
mod reading;
mod route;
mod rule;
mod segment;
mod socket;
mod syn_filter;
mod sysctl;
mod tool_paths;
mod walk;
mod watch;

pub use dump::Observed;
pub use error::{Cause, Error, remedy};
pub use filter::Interest;
pub use handle::Kernel;
pub use iptables::LegacyWatch;
pub use kind::Outcome;
pub use names::{AbstractName, abstract_names};
pub use nft::FirewallWatch;
pub use route::Lookup;
pub use syn_filter::{admit_requests, drop_requests};
pub use sysctl::SYSCTLS;
pub use tool_paths::{tool_dirs, xtables_lock};
pub use watch::{Change, Event, Filter, Watch};

/// Address families of the sockets that this crate opens (socket(2)).
pub const SOCKET_FAMILIES: [i32; 2] = [libc::AF_NETLINK, libc::AF_PACKET];
