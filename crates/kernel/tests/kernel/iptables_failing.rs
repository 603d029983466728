//! What iptables cannot do: while somebody holds its lock, in a table of nft's, without its programs. Nothing is lost, and
//! the words say what to do.

use std::time::{Duration, Instant};

use kernel::{Kernel, Outcome};
use lab::Timing::Free;
use plan::State;
use plan::firewall::Variant;

use crate::iptables_scene::*;
use crate::scene::{complaint, sh};

fn complaints(kernel: &mut Kernel, wanted: &State) -> Vec<String> {
    let ops = to_do(kernel, wanted);
    assert!(!ops.is_empty());
    let outcomes = kernel.apply(&ops);
    outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).map(complaint).collect()
}

#[test]
fn a_lock_that_is_held_is_not_waited_for() {
    lab::test(Free, || {
        let (mut kernel, wanted) = settled(Variant::Legacy);
        sh("iptables-legacy -F FLANNEL-FWD; iptables-legacy -D FORWARD 1");
        let lock = std::fs::File::options().create(true).append(true).open("/run/xtables.lock").unwrap();
        lock.lock().unwrap();
        let start = Instant::now();
        let said = complaints(&mut kernel, &wanted);
        lab::in_time("giving up", start.elapsed(), Duration::from_secs(1));
        let words = "another program holds iptables' lock /run/xtables.lock; tried again until \
                     it is free: if it stays, end the program that `fuser /run/xtables.lock` names";
        assert!(said.len() == 2 && said.iter().all(|text| text.contains(words)), "{said:#?}");
        drop(lock);
        assert_eq!(round(&mut kernel, &wanted).len(), 2);
    });
}

#[test]
fn a_table_that_nft_has_filled_is_left_alone() {
    lab::test(Free, || {
        sh("nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; };
            add rule ip filter FORWARD ct state new limit rate 5/second accept'");
        let before = sh("nft list ruleset");
        let wanted = wanted(Variant::Nft);
        let said = complaints(&mut Kernel::open().unwrap(), &wanted);
        let hidden = "iptables-nft-save: the table filter holds rules that it cannot read, made by nft, so nothing is changed there";
        let told = said.iter().filter(|text| text.contains(hidden)).count();
        assert_eq!((told, said.len()), (4, 4), "{said:#?}");
        assert_eq!(sh("nft list table ip filter"), before);
    });
}

#[test]
fn a_chain_of_ours_that_others_use_says_that_it_cannot_go() {
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
            let words = "(`-X FLANNEL-FWD`): rules of others lead to that chain; delete these";
            assert!(said.len() == 4 && said.iter().all(|text| text.contains(words)), "{said:#?}");
            let kept = |text: &str| text.split("*nat").next().map(str::to_owned);
            assert_eq!(kept(&saved(tool)), kept(&before), "all of the table or nothing");
            sh(&format!("{tool} -D INPUT -j FLANNEL-FWD"));
            round(&mut kernel, &State::default());
        }
    });
}

#[test]
fn without_its_programs_a_variant_says_so() {
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
