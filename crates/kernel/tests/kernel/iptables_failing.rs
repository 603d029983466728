//! Tests of iptables while its lock is held, and without its programs. No rule is lost, and the messages say what to
//! do. The last test writes into a table that nft has filled.

use std::time::{Duration, Instant};

use kernel::{Kernel, Outcome};
use lab::Timing::Free;
use plan::State;
use plan::state::Variant;

use crate::iptables_scene::*;
use crate::scene::{complaint, sh};

fn complaints(kernel: &mut Kernel, wanted: &State) -> Vec<String> {
    let ops = to_do(kernel, wanted);
    assert!(!ops.is_empty());
    let outcomes = kernel.apply(&ops);
    outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).map(complaint).collect()
}

#[test]
fn a_held_iptables_lock_is_reported_without_waiting() {
    lab::test(Free, || {
        let (mut kernel, wanted) = settled(Variant::Legacy);
        sh("iptables-legacy -F FLANNEL-FWD; iptables-legacy -D FORWARD 1");
        let lock = std::fs::File::options().create(true).append(true).open("/run/xtables.lock").unwrap();
        lock.lock().unwrap();
        let start = Instant::now();
        let said = complaints(&mut kernel, &wanted);
        lab::in_time("giving up", start.elapsed(), Duration::from_secs(1));
        let words = "another program holds iptables' lock /run/xtables.lock; retrying until it is free. If it stays \
                     locked, end the program that `fuser /run/xtables.lock` names";
        assert!(said.len() == 2 && said.iter().all(|text| text.contains(words)), "{said:#?}");
        drop(lock);
        assert_eq!(round(&mut kernel, &wanted).len(), 2);
    });
}

/// Shell line that puts rules of nft into tables of iptables; iptables-nft-save cannot read them.
const NATIVE: &str = "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; };
    add rule ip filter FORWARD ct state vmap { established : accept, related : accept };
    add table ip6 filter; add chain ip6 filter FORWARD { type filter hook forward priority 0; };
    add rule ip6 filter FORWARD ct state vmap { established : accept, related : accept };
    add rule ip6 filter FORWARD counter reject'";

#[test]
fn rules_are_added_to_and_removed_from_a_table_filled_by_nft() {
    lab::test(Free, || {
        sh(NATIVE);
        let listing = |family: &str| sh(&format!("nft list chain {family} filter FORWARD"));
        let before = (listing("ip"), listing("ip6"));
        let (mut kernel, wanted) = settled(Variant::Nft);
        for family in ["ip", "ip6"] {
            let list = listing(family);
            assert_eq!(list.matches("jump FLANNEL-FWD").count(), 1, "{list}");
        }
        let six = listing("ip6");
        assert!(six.find("jump FLANNEL-FWD") < six.find("reject"), "ahead of what refuses everything: {six}");
        for harm in [
            "flush chain ip filter FLANNEL-FWD",
            "flush chain ip6 filter FLANNEL-FWD",
            "add rule ip filter FLANNEL-FWD counter drop",
            "insert rule ip filter FORWARD meta mark 0x7 accept; flush chain ip filter FLANNEL-FWD",
        ] {
            sh(&format!("nft \"{harm}\""));
            assert!(!round(&mut kernel, &wanted).is_empty(), "{harm}");
        }
        sh(
            "nft 'delete rule ip filter FORWARD handle '$(nft -a list chain ip filter FORWARD | sed -n 's/.*mark 0x00000007.*handle //p')",
        );
        round(&mut kernel, &State::default());
        assert_eq!((listing("ip"), listing("ip6")), before, "rules of others stay as they were");
    });
}

#[test]
fn a_chain_in_use_by_foreign_rules_is_reported_and_kept() {
    lab::test(Free, || {
        for variant in Variant::ALL {
            let (mut kernel, _) = settled(variant);
            let [tool, _] = tools(variant);
            sh(&format!("{tool} -A INPUT -j FLANNEL-FWD"));
            let before = saved(tool);
            let ops = to_do(&mut kernel, &State::default());
            let outcomes = kernel.apply(&ops);
            let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_)));
            let said: Vec<_> = failed.map(complaint).collect();
            let words = "(`-X FLANNEL-FWD`): rules of other programs jump to that chain; delete those rules";
            assert!(said.len() == 4 && said.iter().all(|text| text.contains(words)), "{said:#?}");
            let kept = |text: &str| text.split("*nat").next().map(str::to_owned);
            assert_eq!(kept(&saved(tool)), kept(&before), "all of the table or nothing");
            sh(&format!("{tool} -D INPUT -j FLANNEL-FWD"));
            round(&mut kernel, &State::default());
        }
    });
}

#[test]
fn a_variant_without_its_programs_is_reported() {
    lab::test(Free, || {
        let mut kernel = Kernel::open().unwrap();
        sh("mkdir /run/none; mount --bind /run/none /usr/sbin");
        let said = complaints(&mut kernel, &wanted(Variant::Legacy));
        assert!(
            said.len() == 8 && said.iter().all(|text| text.contains("iptables-legacy: it is not installed")),
            "{said:#?}"
        );
    });
}
