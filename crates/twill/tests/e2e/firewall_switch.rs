//! Choice of the program that enforces the rules, by the config or by the node's other rules. Neither a switch nor a
//! takeover from flannel leaves rules of the former program.

use std::time::Duration;

use lab::{Iptables, Node, Timing, Topology};

use crate::cluster::{self, SOON};
use crate::recording::Recording;
use crate::traffic::{MASQ, Manager, has_chains, lines, rules, tables};

/// Maximum time until a change by other software is followed.
const FOLLOWED: Duration = Duration::from_secs(12);

/// Returns every program that has rules of ours, except the source filter.
fn managers(node: &Node) -> Vec<&'static str> {
    let names = Iptables::BOTH.into_iter().zip(["iptables-nft", "iptables-legacy"]);
    let iptables = names.filter(|(variant, _)| !lines(&node.ns, *variant).is_empty()).map(|(_, name)| name);
    has_chains(&node.ns).then_some("nftables").into_iter().chain(iptables).collect()
}

/// Waits until only `manager` has rules, and status names it with this reason.
fn becomes(node: &Node, manager: &str, reason: &str) {
    let alone = lab::until(FOLLOWED, || (managers(node) == [manager]).then_some(()));
    let is_said =
        || node.twill(&["status"]).lines().any(|line| line.contains(manager) && line.contains(reason));
    let said = lab::until(FOLLOWED, || is_said().then_some(()));
    let (managers, status) = (managers(node), node.twill(&["status"]));
    assert!(
        alone.is_some(),
        "{managers:?} instead of {manager} have rules, since {reason}; status:\n{status}"
    );
    assert!(said.is_some(), "{manager} and \"{reason}\" are on no line of:\n{status}");
}

#[test]
fn the_config_selects_the_tool_and_a_switch_leaves_no_old_rule() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), &Manager::Nft.config("vxlan"));
        let _daemons = lab.start_all(MASQ);
        let pods = lab.pods();
        for round in [Manager::Nft, Manager::Iptables, Manager::Nft, Manager::Iptables] {
            lab.store.config(&round.config("vxlan"));
            let (who, why) = match round {
                Manager::Nft => ("nftables", "EnableNFTables is true"),
                _ => ("iptables-nft", "EnableNFTables is false"),
            };
            lab.nodes().iter().for_each(|node| becomes(node, who, why));
            cluster::reach_each_other(&pods);
        }
    });
}

#[test]
fn a_switch_between_two_runs_leaves_no_old_rule() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), &Manager::Nft.config("host-gw"));
        let node = lab.node(1);
        for (manager, who) in
            [(Manager::Nft, "nftables"), (Manager::Iptables, "iptables-nft"), (Manager::Nft, "nftables")]
        {
            lab.store.config(&manager.config("host-gw"));
            let mut daemon = node.start(MASQ);
            daemon.wait_ready();
            lab::wait_for(&format!("{who} only: {}", rules(&node.ns)), SOON, || managers(node) == [who]);
            daemon.kill9();
        }
    });
}

#[test]
fn without_a_choice_the_tool_that_can_undo_a_refusal_is_used() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), &Manager::Auto.config("vxlan"));
        let node = lab.node(1);
        let _daemons = lab.start_all(MASQ);
        becomes(node, "nftables", "refuses no");
        for (variant, name) in Iptables::BOTH.into_iter().zip(["iptables-nft", "iptables-legacy"]) {
            for (refuse, undo, word) in [
                ("-P FORWARD DROP", "-P FORWARD ACCEPT", "policy DROP"),
                ("-A FORWARD -j REJECT", "-D FORWARD -j REJECT", "REJECT"),
            ] {
                variant.run(&node.ns, refuse);
                becomes(node, name, word);
                variant.run(&node.ns, undo);
                becomes(node, "nftables", "refuses no");
            }
        }
        Iptables::Legacy.run(&node.ns, "-t nat -A PREROUTING -m mark --mark 0x77 -j RETURN");
        becomes(node, "iptables-legacy", "in use");
        Iptables::Legacy.run(&node.ns, "-t nat -F PREROUTING");
        becomes(node, "nftables", "refuses no");
    });
}

/// Only one family refuses: the rules of both go to the program that can undo it.
#[test]
fn a_refusal_of_one_family_decides_for_both() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), &Manager::Auto.config("vxlan"));
        let node = lab.node(1);
        node.ns.run("ip6tables-nft -w -P FORWARD DROP");
        let _daemons = lab.start_all(MASQ);
        becomes(node, "iptables-nft", "policy DROP");
        let both = lines(&node.ns, Iptables::Nft);
        assert!(
            both.iter().any(|line| line.contains("10.244."))
                && both.iter().any(|line| line.contains("fd00:244:"))
        );
    });
}

#[test]
fn with_nftables_chosen_and_iptables_refusing_both_have_accept_rules() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), &Manager::Nft.config("vxlan"));
        let node = lab.node(1);
        let _daemons = lab.start_all(MASQ);
        for variant in Iptables::BOTH {
            variant.run(&node.ns, "-P FORWARD DROP");
            lab::wait_for(&format!("{variant:?}"), FOLLOWED, || {
                let lines = lines(&node.ns, variant);
                lines.iter().filter(|line| line.ends_with("-j ACCEPT")).count() == 4 && has_chains(&node.ns)
            });
            assert!(
                !lines(&node.ns, variant).iter().any(|line| line.contains("masq")),
                "{}",
                rules(&node.ns)
            );
            lab::wait_for("it is said", SOON, || {
                node.twill(&["status"]).contains("so the accept rules are there too")
            });
            variant.run(&node.ns, "-P FORWARD ACCEPT");
            lab::wait_for("no longer", FOLLOWED, || lines(&node.ns, variant).is_empty());
        }
    });
}

/// Returns nftables rules of twill as flannel has them: without the source filter, and with flannel's test of the mark.
fn as_flannel_has_it(tables: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut skipping = false;
    for line in tables.lines().filter(|line| !line.is_empty()) {
        let is_filters = ["\tchain vxlan", "\tset vteps {", "\tset strangers {", "\tset keeper {"]
            .iter()
            .any(|start| line.starts_with(start));
        skipping |= is_filters;
        if !skipping {
            let line =
                line.replace("meta mark & 0x00004000 == 0x00004000 return", "meta mark 0x00004000 return");
            kept.push(line);
        }
        skipping &= line != "\t}";
    }
    kept
}

/// Returns a recorded rule as twill has it: flannel's fourth rule means what the fifth one of iptables does.
fn stated(line: &str) -> String {
    for (word, network) in [("ip", "10.244.0.0/16"), ("ip6", "fd00:244::/48")] {
        let from = format!("{word} saddr != ");
        if let Some(rest) = line.trim().strip_prefix(&from)
            && let Some(pods) = rest.strip_suffix(&format!(" {word} daddr {network} return"))
        {
            return format!("\t\t{word} saddr != {network} {word} daddr {pods} return");
        }
    }
    line.to_owned()
}

/// Returns the chains as sorted blocks: they are listed in the order of their creation, which means nothing.
fn sorted_blocks(lines: &[String]) -> Vec<String> {
    let text = lines.join("\n").replace("\n\t}\n", "\n\t}\n\n").replace("\n\n\n", "\n\n");
    let mut blocks: Vec<String> = text
        .split("\n\n")
        .flat_map(|block| {
            // A table's first chain is in one block with the table's own lines.
            let (head, chain) =
                block.split_once("\n\tchain").map_or((block, None), |(head, chain)| (head, Some(chain)));
            [Some(head.to_owned()), chain.map(|chain| format!("\tchain{chain}"))]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        })
        .collect();
    blocks.iter_mut().for_each(|block| *block = block.trim_matches('\n').trim_end_matches("\n}").to_owned());
    blocks.sort();
    blocks
}

#[test]
fn nftables_rules_match_the_recording_except_for_one() {
    lab::test(Timing::Free, || {
        let recording = Recording::of("masq-nft-dual");
        let lab = cluster::lab(Topology::flat(3), &recording.config());
        recording.fill(&lab);
        let _daemons = lab.start_all(MASQ);
        for node in lab.nodes() {
            let recorded = recording.read(&format!("node{}/nft.txt", node.index));
            let expected: Vec<String> =
                recorded.lines().filter(|line| !line.is_empty()).map(stated).collect();
            let now = as_flannel_has_it(&tables(&node.ns));
            assert_eq!(sorted_blocks(&now), sorted_blocks(&expected), "{}", node.name);
        }
    });
}

fn recorded_lines(recording: &Recording, node: &Node) -> [String; 2] {
    ["iptables", "ip6tables"].map(|program| {
        let text = recording.read(&format!("node{}/{program}-save.txt", node.index));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" [").next().unwrap().to_owned() + "\n").collect()
    })
}

#[test]
fn iptables_rules_match_the_recording() {
    lab::test(Timing::Free, || {
        let recording = Recording::of("masq-iptables-dual");
        let config = recording.config().replacen('{', r#"{"EnableNFTables":false,"#, 1);
        let lab = cluster::lab(Topology::flat(3), &config);
        recording.fill(&lab);
        let _daemons = lab.start_all(MASQ);
        for node in lab.nodes() {
            assert_eq!(Iptables::Nft.saved(&node.ns), recorded_lines(&recording, node), "{}", node.name);
        }
    });
}

/// Takes flannel's rules over from one program into `manager`, and asserts that no old rule stays.
fn taken_over(case: &'static str, manager: Manager, who: &str) {
    let recording = Recording::of(case);
    let config = recording.config().replace(r#""EnableNFTables":true,"#, "");
    let value = manager == Manager::Nft;
    let lab =
        cluster::lab(Topology::flat(3), &config.replacen('{', &format!(r#"{{"EnableNFTables":{value},"#), 1));
    recording.fill(&lab);
    lab.nodes().iter().for_each(|node| recording.recreate(node));
    assert_ne!(managers(lab.node(1)), [who]);
    let pods = lab.pods();
    let _daemons = lab.start_all(MASQ);
    for node in lab.nodes() {
        lab::wait_for(&format!("{case}, {who}: {}", rules(&node.ns)), SOON, || managers(node) == [who]);
    }
    cluster::reach_each_other(&pods);
}

#[test]
fn flannels_nftables_rules_are_taken_over_into_iptables() {
    lab::test(Timing::Free, || taken_over("masq-nft-dual", Manager::Iptables, "iptables-nft"));
}

#[test]
fn flannels_iptables_rules_are_taken_over_into_nftables() {
    lab::test(Timing::Free, || taken_over("masq-iptables-dual", Manager::Nft, "nftables"));
}
