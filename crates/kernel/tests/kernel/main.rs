//! What the crate writes, ip(8) and bridge(8) read; what they write, the crate reads: on the real kernel, in namespaces
//! of each test's own. Without the right to make these the tests fail; none is ever skipped.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod addresses;
mod batches;
mod iptables;
mod iptables_facts;
mod iptables_failing;
mod iptables_scene;
mod iptables_watching;
mod links;
mod neighbours;
mod nexthops;
mod nft_crowd;
mod nft_failing;
mod nft_obstacles;
mod nft_scene;
mod nft_watching;
mod nftables;
mod packets;
mod rounds;
mod routes;
mod rules;
mod scene;
mod sysctls;
mod underlay;
mod watching;
