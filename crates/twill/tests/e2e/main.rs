//! Whole behaviour: real daemons on a real kernel in namespaces of their own, looked at from outside. One binary; the
//! modules carry the names that the same things have in the other layers. Nothing here asks our own code what it did.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod addresses;
mod auto;
mod bad_input;
mod blackhole;
mod calm;
mod cluster;
mod diff;
mod direct_mtu;
mod docs;
mod dual_stack;
mod etcd;
mod etcd_faults;
mod firewall_peers;
mod firewall_repair;
mod firewall_switch;
mod firewall_trouble;
mod flags;
mod foreign;
mod forward;
mod hints;
mod host_gw;
mod interop;
mod ipv6_only;
mod live_change;
mod masquerade;
mod migrate;
mod nexthops;
mod old_leases;
mod paths;
mod probe;
mod reboot;
mod recording;
mod repair;
mod restart;
mod route_table;
mod second_daemon;
mod service;
mod source_filter;
mod squatters;
mod status;
mod steady;
mod store;
mod store_dir;
mod sysctls;
mod takeover;
mod traffic;
mod underlay;
mod uninstall;
mod uplink;
mod uplink_change;
mod verdicts;
mod vxlan;
