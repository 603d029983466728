//! Pods reach each other though other software refuses to forward. The refusal exists before the daemon or comes while it runs,
//! in either iptables, whichever program has our rules.

use std::time::Duration;

use lab::{Iptables, Lab, Node, Pod, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON};
use crate::traffic::{BACKENDS, MASQ, Manager, lines, of_pod, rules};

/// Maximum time until a change by other software is followed; iptables-legacy reports none, so it is polled.
const FOLLOWED: Duration = Duration::from_secs(3);

/// Way to refuse all forwarded packets, and to take that back.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Policy,
    Rule,
}

impl Refusal {
    const BOTH: [Self; 2] = [Self::Policy, Self::Rule];

    fn set(self, node: &Node, variant: Iptables) {
        let arguments = match self {
            Self::Policy => "-P FORWARD DROP",
            Self::Rule => "-A FORWARD -j REJECT",
        };
        variant.run(&node.ns, arguments);
    }

    fn undo(self, node: &Node, variant: Iptables) {
        let arguments = match self {
            Self::Policy => "-P FORWARD ACCEPT",
            Self::Rule => "-D FORWARD -j REJECT",
        };
        variant.run(&node.ns, arguments);
    }
}

fn talk_within(limit: Duration, pods: &[Pod], node: &Node, why: &str) {
    for (from, to) in [(0, 1), (1, 0)] {
        for ip in of_pod(&pods[to]) {
            let reached = pods[from].reaches(ip, limit);
            assert!(reached.is_some(), "{why}: pod {from} does not reach {ip}:\n{}", rules(&node.ns));
        }
    }
}

/// Covers each pair of backend, variant and refusal; the tests with a running daemon cover all combinations.
fn refused_before_start(manager: Manager) {
    for (backend, variant, refusal) in [
        ("vxlan", Iptables::Nft, Refusal::Policy),
        ("host-gw", Iptables::Nft, Refusal::Rule),
        ("vxlan", Iptables::Legacy, Refusal::Rule),
        ("host-gw", Iptables::Legacy, Refusal::Policy),
    ] {
        let lab = cluster::lab(Topology::flat(2), &manager.config(backend));
        lab.nodes().iter().for_each(|node| refusal.set(node, variant));
        let _daemons = lab.start_all(MASQ);
        let pods = lab.pods();
        let why = format!("{manager:?} {backend}: {refusal:?} of {variant:?}");
        talk_within(SOON, &pods, lab.node(1), &why);
    }
}

#[test]
fn a_refusal_before_the_start_is_undone_with_nft() {
    lab::test(Timing::Free, || refused_before_start(Manager::Nft));
}

#[test]
fn a_refusal_before_the_start_is_undone_with_iptables() {
    lab::test(Timing::Free, || refused_before_start(Manager::Iptables));
}

#[test]
fn a_refusal_before_the_start_is_undone_with_automatic_choice() {
    lab::test(Timing::Free, || refused_before_start(Manager::Auto));
}

fn refused_while_running(manager: Manager) {
    for backend in BACKENDS {
        let lab = cluster::lab(Topology::flat(2), &manager.config(backend));
        let _daemons = lab.start_all(MASQ);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        for (variant, refusal) in
            Iptables::BOTH.iter().flat_map(|variant| Refusal::BOTH.map(|refusal| (*variant, refusal)))
        {
            let why = format!("{manager:?} {backend}: {refusal:?} of {variant:?}");
            lab.nodes().iter().for_each(|node| refusal.set(node, variant));
            talk_within(FOLLOWED, &pods, lab.node(1), &why);
            lab.nodes().iter().for_each(|node| refusal.undo(node, variant));
            talk_within(FOLLOWED, &pods, lab.node(1), &format!("{why}, undone"));
        }
    }
}

#[test]
fn a_refusal_while_running_is_undone_with_nft() {
    lab::test(Timing::Timed, || refused_while_running(Manager::Nft));
}

#[test]
fn a_refusal_while_running_is_undone_with_iptables() {
    lab::test(Timing::Timed, || refused_while_running(Manager::Iptables));
}

#[test]
fn a_refusal_while_running_is_undone_with_automatic_choice() {
    lab::test(Timing::Timed, || refused_while_running(Manager::Auto));
}

/// Returns the places of our jump and of a foreign rule in FORWARD, for both families.
fn places(node: &Node, variant: Iptables, rule: &str) -> Vec<(Option<usize>, Option<usize>)> {
    let chains = variant.programs().map(|program| node.ns.run(&format!("{program} -S FORWARD")));
    let place = |chain: &str, needle: &str| chain.lines().position(|line| line.contains(needle));
    chains.iter().map(|chain| (place(chain, "-j FLANNEL-FWD"), place(chain, rule))).collect()
}

#[test]
fn the_jump_is_the_last_rule_or_ahead_of_one_that_refuses_everything() {
    lab::test(Timing::Free, || {
        for variant in Iptables::BOTH {
            let lab = cluster::lab(Topology::flat(1), &Manager::Iptables.config("vxlan"));
            let node = lab.node(1);
            // Foreign rules in legacy make the daemon choose it.
            variant.run(&node.ns, "-A FORWARD -m mark --mark 0x77 -j DROP");
            let _daemons = lab.start_all(MASQ);
            let after = |rule: &'static str| {
                move |(jump, others): &(Option<usize>, Option<usize>)| {
                    jump.is_some() && others.is_some() && (jump > others) == (rule != "REJECT")
                }
            };
            let is_last = || places(node, variant, "0x77").iter().all(after("0x77"));
            lab::wait_for("the jump comes after what refuses a part", SOON, is_last);
            variant.run(&node.ns, "-A FORWARD -j REJECT");
            let is_first = || places(node, variant, "-j REJECT").iter().all(after("REJECT"));
            lab::wait_for("the jump comes before what refuses everything", SOON, is_first);
            assert!(is_last(), "{:?}", lines(&node.ns, variant));
        }
    });
}

fn without_forward_rules(lab: &Lab) -> bool {
    let words = ["FLANNEL-FWD", "flanneld forward", "chain forward"];
    lab.nodes().iter().all(|node| !words.iter().any(|word| rules(&node.ns).contains(word)))
}

#[test]
fn switched_off_no_forward_rule_is_left_and_refusals_hold() {
    lab::test(Timing::Free, || {
        for manager in Manager::ALL {
            let lab = cluster::lab(Topology::flat(2), &manager.config("vxlan"));
            let mut daemons = lab.start_all(MASQ);
            let pods = lab.pods();
            cluster::reach_each_other(&pods);
            assert!(!without_forward_rules(&lab), "{manager:?}");
            daemons.iter_mut().for_each(lab::Daemon::kill9);
            let _daemons = lab.start_all(&[FLAGS, &["--iptables-forward-rules=false"]].concat());
            lab::wait_for("all of them go", SOON, || without_forward_rules(&lab));
            cluster::reach_each_other(&pods);
            Refusal::Policy.set(lab.node(1), Iptables::Nft);
            assert!(of_pod(&pods[1]).iter().all(|ip| pods[0].ping(*ip).is_none()), "{manager:?}");
            assert!(without_forward_rules(&lab), "{manager:?}");
        }
    });
}
