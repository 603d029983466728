//! Tests of the facts about iptables: the rules of others, and the installed programs. Reading changes nothing.

use std::time::{Duration, Instant};

use kernel::Kernel;
use lab::Timing::{Free, Timed};
use plan::Family;
use plan::state::Variant;
use plan::underlay::{FirewallFacts, IptablesFacts};

use crate::iptables_scene::*;
use crate::scene::sh;

fn all_facts() -> FirewallFacts {
    look(&mut Kernel::open().unwrap()).1
}

fn facts(variant: Variant, family: Family) -> IptablesFacts {
    let mut all = all_facts().iptables.into_iter();
    all.find(|facts| (facts.variant, facts.family) == (variant, family)).unwrap()
}

#[test]
fn foreign_refusals_are_reported_as_written() {
    lab::test(Free, || {
        for variant in Variant::ALL {
            for (tool, family) in tools(variant).into_iter().zip(Family::ALL) {
                let address = if family == Family::Ipv4 { "192.0.2.0/24" } else { "2001:db8::/64" };
                for (line, refuses, in_use) in [
                    ("", None, false),
                    ("$t -P FORWARD DROP", Some("policy DROP"), true),
                    ("$t -P INPUT DROP", None, true),
                    ("$t -A FORWARD -j DROP", Some("-j DROP"), true),
                    (
                        "$t -A FORWARD -m comment --comment 'a b' -j DROP",
                        Some(r#"-m comment --comment "a b" -j DROP"#),
                        true,
                    ),
                    (
                        "$t -A FORWARD -m conntrack --ctstate INVALID,NEW -j DROP",
                        Some("-m conntrack --ctstate INVALID,NEW -j DROP"),
                        true,
                    ),
                    ("$t -A FORWARD -m conntrack --ctstate INVALID -j DROP", None, true),
                    ("$t -A FORWARD -s $a -j DROP", None, true),
                    ("$t -A FORWARD ! -d $a -j REJECT", None, true),
                    ("$t -A FORWARD -i eth0 -j DROP", None, true),
                    ("$t -A FORWARD -p tcp -j DROP", None, true),
                    ("$t -A FORWARD -m mark --mark 5 -j DROP", None, true),
                    ("$t -A FORWARD -m limit --limit 5/s -j DROP", None, true),
                    ("$t -A INPUT -j DROP", None, true),
                    ("$t -t mangle -A FORWARD -j DROP", None, true),
                    ("$t -N THEIRS", None, false),
                    (
                        "$t -N FLANNEL-FWD; $t -A FLANNEL-FWD -j DROP; $t -A FORWARD -j FLANNEL-FWD",
                        None,
                        false,
                    ),
                ] {
                    sh(&format!(
                        "t={tool}; a={address}; $t -L >/dev/null; $t -t mangle -L >/dev/null; {line}"
                    ));
                    let refuses = refuses.map(Into::into);
                    let expected = IptablesFacts { variant, family, in_use, refuses };
                    assert_eq!(facts(variant, family), expected, "{tool}: {line}");
                    sh(&format!(
                        "t={tool}; $t -P FORWARD ACCEPT; $t -P INPUT ACCEPT; $t -F; $t -X; $t -t mangle -F"
                    ));
                }
            }
        }
    });
}

#[test]
fn reading_without_tables_creates_none_and_runs_no_tool() {
    lab::test(Free, || {
        for multi in ["xtables-nft-multi", "xtables-legacy-multi"] {
            count_calls(multi);
            assert_eq!(all_facts().iptables.len(), 4);
            assert_eq!((calls(), loaded().as_str(), sh("nft list tables").as_str()), (0, "", ""), "{multi}");
        }
        sh("iptables-legacy -t nat -L");
        let before = calls();
        assert!(before > 0, "it counts");
        all_facts();
        assert_eq!((calls() - before, loaded().as_str()), (1, "nat\n"));
    });
}

#[test]
fn the_installed_programs_are_listed_by_variant() {
    lab::test(Free, || {
        let told = || {
            let FirewallFacts { iptables, usual, .. } = all_facts();
            (iptables.into_iter().map(|facts| (facts.variant, facts.family)).collect::<Vec<_>>(), usual)
        };
        let of = |variant| Family::ALL.map(|family| (variant, family));
        assert_eq!(told().0, [of(Variant::Nft), of(Variant::Legacy)].concat());
        sh("mkdir /run/all; cp -a /usr/sbin/xtables-*-multi /usr/sbin/nft /run/all");
        for (multi, variant) in
            [("xtables-nft-multi", Variant::Nft), ("xtables-legacy-multi", Variant::Legacy)]
        {
            // The file's name does not tell the variant, so the program is run.
            sh(&format!(
                "mkdir -p /run/{variant}; cd /run/{variant}; cp /run/all/nft .; cp /run/all/{multi} xtables-multi
                 for tool in iptables ip6tables; do for what in '' -save -restore; do
                     ln -s xtables-multi $tool$what
                 done; done
                 mount --bind /run/{variant} /usr/sbin"
            ));
            assert_eq!(told(), (of(variant).to_vec(), Some(variant)), "{multi}");
            settled(variant);
            sh("rm /usr/sbin/ip6tables-restore");
            assert_eq!(told().0, [(variant, Family::Ipv4)]);
            sh("umount /usr/sbin");
        }
        sh("mkdir /run/none; mount --bind /run/none /usr/sbin");
        assert_eq!(told(), (Vec::new(), None));
    });
}

#[test]
fn fifty_thousand_foreign_rules_are_read_within_a_second() {
    lab::test(Timed, || {
        let (mut kernel, wanted) = settled(Variant::Legacy);
        sh("{ echo '*nat'; echo ':KUBE-SERVICES - [0:0]'
              seq -f '-A KUBE-SERVICES -p tcp -m comment --comment \"ns/svc-%.0f:http cluster IP\" -j RETURN' 50000
              echo COMMIT; } | iptables-legacy-restore --noflush");
        let start = Instant::now();
        assert!(to_do(&mut kernel, &wanted).is_empty());
        let looked = start.elapsed();
        sh("iptables-legacy -t nat -F POSTROUTING; iptables-legacy -t nat -F FLANNEL-POSTRTG");
        round(&mut kernel, &wanted);
        let all = start.elapsed();
        println!("a look took {looked:?}, harm, round and second look {:?}", all - looked);
        lab::in_time("a look", looked, Duration::from_secs(1));
        lab::in_time("all of it", all, Duration::from_secs(5));
    });
}
