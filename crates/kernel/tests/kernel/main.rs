//! Tests of the crate against ip(8) and bridge(8): each side reads what the other one writes. They run on the real
//! kernel, each test in network namespaces of its own. Without the right to create these they fail; no test is ever
//! skipped.
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
