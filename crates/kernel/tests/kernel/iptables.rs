//! Tests of flannel's rules in iptables, in both variants and families: they are written, read, damaged and repaired,
//! and removed.

use kernel::Kernel;
use lab::Timing::Free;
use plan::State;
use plan::state::Variant;

use crate::iptables_scene::*;
use crate::scene::sh;

const RECORDED: [&str; 2] =
    [include_str!("data/flannel-iptables.txt"), include_str!("data/flannel-ip6tables.txt")];

fn both(test: fn(Variant)) {
    for variant in Variant::ALL {
        test(variant);
    }
}

#[test]
fn our_rules_equal_flannels_and_are_removed_completely() {
    lab::test(Free, || {
        both(|variant| {
            let (mut kernel, _) = settled(variant);
            for (tool, recorded) in tools(variant).into_iter().zip(RECORDED) {
                assert_eq!(saved(tool), recorded, "{tool}");
            }
            let ops = round(&mut kernel, &State::default());
            assert_eq!(ops.len(), 8, "{ops:#?}");
            for tool in tools(variant) {
                let left = saved(tool);
                assert!(!left.contains("-A") && !left.contains("FLANNEL"), "{tool}: {left}");
            }
        });
    });
}

#[test]
fn flannels_own_rules_need_no_op() {
    lab::test(Free, || {
        both(|variant| {
            for (tool, recorded) in tools(variant).into_iter().zip(RECORDED) {
                sh(&format!("{tool}-restore <<'END'\n{recorded}END"));
            }
            let mut kernel = Kernel::open().unwrap();
            let ops = to_do(&mut kernel, &wanted(variant));
            assert!(ops.is_empty(), "{ops:#?}");
            round(&mut kernel, &State::default());
        });
    });
}

/// Returns lines of shell that each damage our rules; `$t` is the iptables command.
fn harms() -> Vec<String> {
    let mut harms: Vec<String> = Vec::new();
    for (table, chain, rules) in [("filter", "FLANNEL-FWD", 2), ("nat", "FLANNEL-POSTRTG", 6)] {
        let at = format!("$t -t {table}");
        let nth = |n: usize| format!("rule=$({at} -S {chain} | sed -n {}p)", n + 1);
        for n in 1..=rules {
            harms.push(format!("{at} -D {chain} {n}"));
            harms.push(format!("{}; eval \"{at} $rule\"", nth(n)));
        }
        for n in 1..rules {
            harms.push(format!("{}; {at} -D {chain} {n}; eval \"{at} $rule\"", nth(n)));
        }
        for n in 1..=rules + 1 {
            harms.push(format!("{at} -I {chain} {n} -p tcp -j ACCEPT"));
        }
        harms.push(format!("{at} -R {chain} {rules} -p tcp -j ACCEPT"));
        harms.push(format!("{at} -F {chain}"));
        let (hook, comment) = match table {
            "filter" => ("FORWARD", "flanneld forward"),
            _ => ("POSTROUTING", "flanneld masq"),
        };
        let jump = format!("-m comment --comment '{comment}' -j {chain}");
        harms.push(format!("{at} -D {hook} {jump}"));
        harms.push(format!("{at} -A {hook} {jump}"));
        harms.push(format!("{at} -I {hook} {jump}"));
        harms.push(format!("{at} -I {hook} -p udp -j {chain}"));
        harms.push(format!("{at} -D {hook} {jump}; {at} -F {chain}; {at} -X {chain}"));
    }
    harms
}

/// Rules of others, around ours, with packets counted.
const OTHERS: &str = r#"$t-restore --counters --noflush <<'END'
*filter
:THEIRS - [0:0]
[7:700] -A THEIRS -p tcp --dport 80 -j DROP
[3:300] -I FORWARD -p tcp -j THEIRS
[5:500] -A FORWARD -m comment --comment "a \"b\"  c" -j ACCEPT
-A INPUT -j ACCEPT
COMMIT
*nat
[1:100] -A POSTROUTING -p icmp -j ACCEPT
[9:900] -I POSTROUTING -p udp -j MASQUERADE
COMMIT
END
echo 0 > /proc/sys/net/ipv6/conf/lo/disable_ipv6
ping -q -c 3 -i 0.1 127.0.0.1; ping -q -c 3 -i 0.1 ::1"#;

/// Returns the rules of others with their counters. Counters of policies are left out: iptables-legacy itself loses
/// them.
fn others(tool: &str) -> String {
    let line = "grep -v -e '^#' -e FLANNEL | sed '/^:/ s/ [[].*//'";
    let saved = sh(&format!("{{ {tool}-save -c -t filter; {tool}-save -c -t nat; }} | {line}"));
    assert!(saved.contains("] -A INPUT -j ACCEPT") && !saved.contains("[0:0] -A INPUT"), "{saved}");
    saved
}

#[test]
fn a_pass_repairs_any_damage_and_keeps_foreign_rules() {
    lab::test(Free, || {
        both(|variant| {
            let (mut kernel, wanted) = settled(variant);
            for tool in tools(variant) {
                sh(&format!("t={tool}\n{OTHERS}"));
                assert!(to_do(&mut kernel, &wanted).is_empty(), "of others");
                let (before, ours) = (others(tool), saved(tool));
                for harm in harms() {
                    sh(&format!("t={tool}; {harm}"));
                    assert_ne!(saved(tool), ours, "no harm: {harm}");
                    assert!(!round(&mut kernel, &wanted).is_empty(), "{tool}: not seen: {harm}");
                    assert_eq!(others(tool), before, "{tool}: {harm}");
                }
            }
        });
    });
}

#[test]
fn a_pass_restores_all_rules_after_a_flush() {
    lab::test(Free, || {
        both(|variant| {
            let (mut kernel, wanted) = settled(variant);
            for (tool, recorded) in tools(variant).into_iter().zip(RECORDED) {
                sh(&format!("t={tool}; $t -F; $t -X; $t -t nat -F; $t -t nat -X"));
                assert_eq!(round(&mut kernel, &wanted).len(), 4);
                assert_eq!(saved(tool), recorded, "{tool}");
            }
        });
    });
}

/// Returns the FORWARD chain in short: `us` for our jump, the target for any other rule.
fn forward(tool: &str) -> String {
    let rules = sh(&format!("{tool} -S FORWARD | grep '^-A'"));
    let target = |line: &str| {
        let target = line.split(" -j ").nth(1).unwrap_or_default();
        target.split(' ').next().unwrap_or_default().replace("FLANNEL-FWD", "us")
    };
    rules.lines().map(target).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_jump_goes_ahead_of_a_rule_that_refuses_everything_or_last() {
    lab::test(Free, || {
        both(|variant| {
            let (mut kernel, wanted) = settled(variant);
            for tool in tools(variant) {
                for (harm, expected) in [
                    (
                        "$t -F FORWARD; $t -A FORWARD -p tcp -j DROP; $t -A FORWARD -p udp -j ACCEPT",
                        "DROP ACCEPT us",
                    ),
                    ("$t -I FORWARD 2 -j REJECT", "DROP us REJECT ACCEPT"),
                    (
                        "$t -I FORWARD 1 -m conntrack ! --ctstate RELATED -j DROP",
                        "us DROP DROP REJECT ACCEPT",
                    ),
                    ("$t -A FORWARD $jump", "us DROP DROP REJECT ACCEPT"),
                    ("$t -D FORWARD $jump; $t -A FORWARD $jump", "us DROP DROP REJECT ACCEPT"),
                    (
                        "$t -D FORWARD $jump; $t -I FORWARD 1 -p tcp -j ACCEPT",
                        "ACCEPT us DROP DROP REJECT ACCEPT",
                    ),
                ] {
                    let harm = harm.replace("$jump", JUMP);
                    sh(&format!("t={tool}; {harm}"));
                    assert!(!round(&mut kernel, &wanted).is_empty(), "{tool}: not seen: {harm}");
                    assert_eq!(forward(tool), expected, "{tool}: {harm}");
                }
            }
        });
    });
}

#[test]
fn vanished_rules_are_skipped_and_doubled_ones_deleted() {
    lab::test(Free, || {
        both(|variant| {
            let (mut kernel, _) = settled(variant);
            let ops = to_do(&mut kernel, &State::default());
            let [four, six] = tools(variant);
            sh(&format!(
                "t={four}; $t -D FORWARD {JUMP}; $t -t nat -F POSTROUTING; $t -t nat -F; $t -t nat -X"
            ));
            sh(&format!("{six} -A FORWARD {JUMP}"));
            crate::scene::applies(&mut kernel, &ops);
            assert!(look(&mut kernel).0.iptables.is_empty());
        });
    });
}
