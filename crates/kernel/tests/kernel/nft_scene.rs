//! A node whose traffic rules `plan` assigns to nftables, and helpers for reconcile passes.

use std::net::IpAddr;

use kernel::{Kernel, Outcome};
use plan::backend::SourceFilter;
use plan::config::Config;
use plan::lease::{Lease, Leases};
use plan::node::Node;
use plan::owned::{Owned, Sweep};
use plan::state::NftElement;
use plan::underlay::{FirewallFacts, Underlay};
use plan::{Op, State};
use serde_json::json;

use crate::scene;

/// Options of the desired rules.
#[derive(Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) filter: SourceFilter,
    pub(crate) fully_random: bool,
    pub(crate) network: &'static str,
}

impl Default for Wish {
    fn default() -> Self {
        Self { filter: SourceFilter::Count, fully_random: true, network: "10.244.0.0/16" }
    }
}

/// Returns the rules of nftables that `plan` desires with these options and two peers.
pub(crate) fn wanted(wish: Wish) -> State {
    let config: Config = serde_json::from_value(json!({
        "ipv4": wish.network, "ipv6": "fd00:244::/48",
        "backend": {"vxlan": {"source_filter": wish.filter}},
        "firewall": {"nftables": true, "masquerade": true, "forward": true, "fully_random": wish.fully_random},
    }))
    .unwrap();
    let node: Node = serde_json::from_value(json!({
        "uplink": {"link": "eth0", "mtu": 1500, "ipv4": "192.0.2.1", "ipv6": "2001:db8::1"},
        "subnet": {"ipv4": "10.244.52.0/24", "ipv6": "fd00:244:0:17::/64"},
        "vtep": "02:00:00:00:00:01", "vtep_v6": "02:00:00:00:00:01",
    }))
    .unwrap();
    let peer = |key: &str, ipv4: &str, ipv6: &str, mac: &str| {
        let vtep = json!({"VNI": 1, "VtepMAC": mac});
        let value = json!({
            "PublicIP": ipv4, "PublicIPv6": ipv6,
            "BackendType": "vxlan", "BackendData": vtep, "BackendV6Data": vtep,
        });
        Lease::parse(key, value.to_string().as_bytes(), 1).unwrap()
    };
    let peers = [
        peer("10.244.2.0-24&fd00:244:0:2::-64", "192.0.2.2", "2001:db8::2", "02:00:00:00:00:02"),
        peer("10.244.3.0-24&fd00:244:0:3::-64", "192.0.2.3", "2001:db8::3", "02:00:00:00:00:03"),
    ];
    let leases = Leases::Listed(peers.into());
    let underlay: Underlay = serde_json::from_value(json!({
        "links": [{"name": "eth0", "kind": "veth", "mtu": 1500, "up": true, "carrier": true}],
        "addresses": [
            {"link": "eth0", "address": "192.0.2.1/24", "permanent": true},
            {"link": "eth0", "address": "2001:db8::1/64", "permanent": true},
        ],
        "routes": [{"destination": "192.0.2.0/24", "link": "eth0"}],
    }))
    .unwrap();
    rules(scene::desired(&config, &node, &leases, &underlay))
}

fn rules(state: State) -> State {
    let State { nft_tables, nft_chains, nft_elements, .. } = state;
    State { nft_tables, nft_chains, nft_elements, ..State::default() }
}

pub(crate) fn bounds() -> Owned {
    Owned { firewall: true, sweep: Sweep::LeftOvers, ..scene::owned() }
}

/// Reads the rules again.
pub(crate) fn look(kernel: &mut Kernel) -> (State, FirewallFacts) {
    kernel.forget_firewall();
    look_again(kernel)
}

/// Reads the kernel, with the last reading of the rules still valid.
pub(crate) fn look_again(kernel: &mut Kernel) -> (State, FirewallFacts) {
    let seen = kernel.dump(&bounds()).unwrap();
    (rules(seen.state), seen.underlay.firewall)
}

pub(crate) fn to_do(kernel: &mut Kernel, wanted: &State) -> Vec<Op> {
    plan::diff(wanted, &look(kernel).0, &bounds())
}

/// Carries out one reconcile pass, asserts that nothing is left to do, and returns the ops.
#[track_caller]
pub(crate) fn round(kernel: &mut Kernel, wanted: &State) -> Vec<Op> {
    let ops = to_do(kernel, wanted);
    assert_eq!(kernel.apply(&ops), vec![Outcome::Done; ops.len()], "{ops:#?}");
    let left = to_do(kernel, wanted);
    assert!(left.is_empty(), "after {ops:#?}\nthere is left {left:#?}");
    ops
}

/// Applies all desired rules, and returns the kernel.
#[track_caller]
pub(crate) fn settled(wanted: &State) -> Kernel {
    let mut kernel = Kernel::open().unwrap();
    round(&mut kernel, wanted);
    kernel
}

pub(crate) fn element(address: impl Into<IpAddr>) -> NftElement {
    NftElement { address: address.into() }
}

/// Returns all rules as nft prints them.
pub(crate) fn ruleset() -> String {
    scene::sh("nft list ruleset")
}
