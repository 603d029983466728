//! The laboratory for tests: real network namespaces, the real kernel, real daemon processes, real pings. It builds and inspects
//! with iproute2, nft, tcpdump and ping only: a fault in twill's own code cannot hide itself. It never touches the host's network
//! and leaves nothing behind. It is test machinery, so it reports failures by panicking.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test machinery: a lab that cannot do what the test asked fails that test"
)]

mod capture;
mod control;
mod daemon;
mod disk;
pub mod enter;
mod etcd;
pub mod foreign;
mod forge;
pub mod harm;
mod lines;
mod monitors;
mod node;
mod ns;
mod ping;
pub mod plain;
mod pod;
pub mod repair;
mod router;
pub mod rules;
mod store;
mod storm;
mod subnet_env;
mod talk;
mod testing;
mod topology;
mod traffic;
pub mod view;
mod wait;
mod wire;
mod witness;

pub use capture::Capture;
pub use control::{in_time, is_in_time};
pub use daemon::Daemon;
pub use disk::Disk;
pub use etcd::{Entry, Etcd, EtcdSetup, Ttl};
pub use forge::Forgery;
pub use harm::Harm;
pub use lines::{Line, Lines};
pub use monitors::Monitors;
pub use node::{HEALTHZ_PORT, Node, Reply};
pub use ns::Ns;
pub use ping::{PingReport, PingStream};
pub use pod::Pod;
pub use repair::{time_to_repair, try_repair};
pub use router::advertise;
pub use rules::Iptables;
pub use store::Store;
pub use storm::Storm;
pub use subnet_env::SubnetEnv;
pub use talk::{Talk, TalkReport};
pub use testing::{Timing, test, test_within};
pub use topology::{Lab, OUTSIDE, OUTSIDE6, Topology};
pub use traffic::{Traffic, TrafficReport};
pub use view::View;
pub use wait::{holds_for, patient, until, wait_for};
pub use wire::{Filter, Relay};
pub use witness::{Protocol, Received, Witness, knock, seen_source, seen_source_of};
