//! A node whose traffic rules `plan` assigns to iptables, and helpers for reconcile passes.

use kernel::{Kernel, Outcome};
use plan::config::Config;
use plan::lease::Leases;
use plan::node::Node;
use plan::owned::{Owned, Sweep};
use plan::state::Variant;
use plan::underlay::{FirewallFacts, IptablesFacts, Underlay};
use plan::{Family, Op, State};
use serde_json::json;

use crate::scene::{self, sh};

pub(crate) const JUMP: &str = "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD";

/// Returns the rules of that variant that `plan` desires on the node where flannel's rules were recorded.
pub(crate) fn wanted(variant: Variant) -> State {
    let config: Config = serde_json::from_value(json!({
        "ipv4": "10.244.0.0/16", "ipv6": "fd00:244::/48", "backend": {"vxlan": {"source_filter": "off"}},
        "firewall": {"nftables": false, "masquerade": true, "forward": true, "fully_random": true},
    }))
    .unwrap();
    let node: Node = serde_json::from_value(json!({
        "uplink": {"link": "eth0", "mtu": 1500, "ipv4": "192.0.2.1", "ipv6": "2001:db8::1"},
        "subnet": {"ipv4": "10.244.3.0/24", "ipv6": "fd00:244:0:c::/64"},
        "vtep": "02:00:00:00:00:01", "vtep_v6": "02:00:00:00:00:01",
    }))
    .unwrap();
    let facts = |family| IptablesFacts { variant, family, in_use: false, refuses: None };
    let iptables = Family::ALL.map(facts).into();
    let facts = FirewallFacts { iptables, usual: Some(variant), ..FirewallFacts::default() };
    let underlay = Underlay { firewall: facts, ..serde_json::from_value(json!({})).unwrap() };
    let wanted = rules(scene::desired(&config, &node, &Leases::Listed(Vec::new().into()), &underlay));
    assert_eq!(wanted.iptables.len(), 8, "two chains and two jumps in two families");
    wanted
}

/// Returns the programs of both families, without the ending `-save` or `-restore`.
pub(crate) fn tools(variant: Variant) -> [&'static str; 2] {
    match variant {
        Variant::Nft => ["iptables-nft", "ip6tables-nft"],
        Variant::Legacy => ["iptables-legacy", "ip6tables-legacy"],
    }
}

fn rules(state: State) -> State {
    State { iptables: state.iptables, ..State::default() }
}

pub(crate) fn bounds() -> Owned {
    Owned { firewall: true, sweep: Sweep::LeftOvers, ..scene::owned() }
}

/// Reads the rules again.
pub(crate) fn look(kernel: &mut Kernel) -> (State, FirewallFacts) {
    kernel.forget_firewall();
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

/// Applies all desired rules, and returns the kernel with them.
#[track_caller]
pub(crate) fn settled(variant: Variant) -> (Kernel, State) {
    let (mut kernel, wanted) = (Kernel::open().unwrap(), wanted(variant));
    round(&mut kernel, &wanted);
    (kernel, wanted)
}

/// Returns the output of iptables-save for both tables, without comments.
pub(crate) fn saved(tool: &str) -> String {
    sh(&format!("{{ {tool}-save -t filter; {tool}-save -t nat; }} | grep -v '^#'"))
}

/// Returns the loaded tables of iptables-legacy, of both families.
pub(crate) fn loaded() -> String {
    sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names")
}

/// Counts the calls of the programs in that file from now on.
pub(crate) fn count_calls(multi: &str) {
    sh(&format!(
        "cp /usr/sbin/{multi} /run/{multi}
         printf '#!/bin/bash\necho x >> /run/calls\nexec -a \"${{0##*/}}\" /run/{multi} \"$@\"\n' > /run/{multi}.spy
         chmod +x /run/{multi}.spy; mount --bind /run/{multi}.spy /usr/sbin/{multi}"
    ));
}

pub(crate) fn calls() -> usize {
    std::fs::read_to_string("/run/calls").unwrap_or_default().lines().count()
}
