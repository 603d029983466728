//! Tests of our tables in nftables: nft(8) prints what flannel's nodes have, and rules are read as they were written.
//! Any damage is seen and repaired by one transaction.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use kernel::Outcome;
use lab::Timing::{Free, Timed};
use plan::backend::SourceFilter;
use plan::range::Range;
use plan::state::{Match, Net, NftChain, NftChainName, RuleVerdict, TrafficRule};
use plan::underlay::UnknownSender;
use plan::{Family, Object, State, Table};

use crate::nft_scene::*;
use crate::scene::*;

#[test]
fn every_chain_is_read_as_it_was_written() {
    lab::test(Free, || {
        let mut kernel = kernel::Kernel::open().unwrap();
        for (filter, fully_random) in
            [(SourceFilter::Count, true), (SourceFilter::Drop, false), (SourceFilter::Off, true)]
        {
            for network in ["10.244.0.0/16", "10.244.0.0/17", "10.240.0.0/12"] {
                let wanted = wanted(Wish { filter, fully_random, network });
                let chains = if filter == SourceFilter::Off { 4 } else { 8 };
                assert_eq!(wanted.nft_chains.len(), chains);
                let elements = if filter == SourceFilter::Off { 0 } else { 4 };
                assert_eq!(wanted.nft_elements.len(), elements, "{:?}", wanted.nft_elements);
                round(&mut kernel, &wanted);
                let (seen, facts) = look(&mut kernel);
                assert_eq!(seen, wanted);
                assert_eq!(facts.no_nft, None);
                assert_eq!(facts.tables, ["ip flannel-ipv4".into(), "ip6 flannel-ipv6".into()]);
            }
        }
        round(&mut kernel, &State::default());
        assert_eq!(ruleset(), "", "nothing wanted, nothing left");
    });
}

/// Returns every condition and verdict, also those that `plan` does not use now.
fn all_shapes(family: Family) -> Vec<TrafficRule> {
    let nets = match family {
        Family::Ipv4 => ["10.0.0.0/8", "10.1.2.3/32", "10.128.0.0/9", "10.1.2.2/31"],
        Family::Ipv6 => ["fd00::/8", "fd00::1/128", "fd00:244::/49", "fd00:244::2/127"],
    };
    let net = |net: &str, not| Net { net: net.parse().unwrap(), not };
    let sides = nets.iter().flat_map(|text| {
        [false, true].map(|not| [Match::Source(net(text, not)), Match::Destination(net(text, not))])
    });
    let mut conditions: Vec<Vec<Match>> = sides.flatten().map(|condition| vec![condition]).collect();
    for (value, mask) in [(0x4000, 0x4000), (0x4000, 0xffff_ffff), (1, 0x8000_0001), (0, 0x4000)] {
        conditions.push(vec![Match::Mark { value, mask }]);
    }
    conditions.push(vec![]);
    for (port, vni) in [(8472, 1), (4789, 0xff_ffff), (1, 256)] {
        conditions.push(vec![Match::UdpPort(port), Match::Vni(vni), Match::NoPeer(family)]);
    }
    conditions.push(vec![Match::NoPeer(family), Match::Source(net(nets[0], true))]);
    conditions.push(vec![Match::UdpPort(8472), Match::NoPeer(family), Match::ToPeer(family), Match::Kept]);
    if family == Family::Ipv6 {
        conditions.push(vec![Match::UdpPort(8472), Match::NoPeer(family), Match::Fragment, Match::Kept]);
    }
    let [first, last] = match family {
        Family::Ipv4 => ["10.10.0.0", "10.99.255.255"],
        Family::Ipv6 => ["fd00:244:0:1::", "fd00:244:0:ffff:ffff:ffff:ffff:ffff"],
    };
    let [first, last] = [first, last].map(|address| address.parse().unwrap());
    conditions.push(vec![Match::SourceRange(Range { first, last })]);
    let verdicts = [
        RuleVerdict::Return,
        RuleVerdict::Accept,
        RuleVerdict::Count,
        RuleVerdict::Drop,
        RuleVerdict::Remember(family),
    ];
    let rules = conditions.iter().flat_map(|matches| {
        verdicts
            .iter()
            .map(|verdict| TrafficRule { matches: matches.clone().into(), verdict: verdict.clone() })
    });
    rules.collect()
}

#[test]
fn every_shape_of_a_rule_is_read_as_it_was_written() {
    lab::test(Free, || {
        let mut kernel = kernel::Kernel::open().unwrap();
        let chain = |family, chain, rules: Vec<TrafficRule>| NftChain {
            family,
            chain,
            rules: rules.into(),
            unknown: None,
        };
        let mut chains = Vec::new();
        for family in Family::ALL {
            chains.push(chain(family, NftChainName::Vxlan, all_shapes(family)));
            let masquerade = [true, false].map(|fully_random| TrafficRule {
                matches: [].into(),
                verdict: RuleVerdict::Masquerade { fully_random },
            });
            chains.push(chain(family, NftChainName::Postrouting, masquerade.into()));
            chains.push(chain(family, NftChainName::Forward, vec![]));
            chains.push(chain(family, NftChainName::VxlanPods, all_shapes(family)));
        }
        let tables = Family::ALL.map(|family| plan::state::NftTable { family });
        let wanted =
            State { nft_tables: tables.into_iter().collect(), nft_chains: chains.into(), ..State::default() };
        round(&mut kernel, &wanted);
        assert_eq!(look(&mut kernel).0, wanted);
    });
}

/// Splits a listing into chains, whose order does not matter, with lines that are not indented.
fn blocks(text: &str) -> BTreeSet<String> {
    let mut table = String::new();
    let mut blocks = BTreeSet::new();
    let mut block = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.split_once(' ') {
            Some(("table", _)) => table = line.into(),
            Some(("chain", _)) => block = format!("{table} {line}\n"),
            Some(("comment", _)) if block.is_empty() => _ = blocks.insert(format!("{table} {line}")),
            _ if line == "}" => _ = blocks.insert(std::mem::take(&mut block)),
            _ => block += &format!("{line}\n"),
        }
    }
    blocks
}

/// Rewrites flannel's listing where our rules differ. We match the mark by its bit, as flannel's iptables rules do. And
/// our fourth rule leaves traffic between pods and other addresses alone.
fn as_we_say_it(flannel: &str) -> String {
    flannel
        .replace("meta mark 0x00004000 return", "meta mark & 0x00004000 == 0x00004000 return")
        .replace(
            "ip saddr != 10.244.52.0/24 ip daddr 10.244.0.0/16 return",
            "ip saddr != 10.244.0.0/16 ip daddr 10.244.52.0/24 return",
        )
        .replace(
            "ip6 saddr != fd00:244:0:17::/64 ip6 daddr fd00:244::/48 return",
            "ip6 saddr != fd00:244::/48 ip6 daddr fd00:244:0:17::/64 return",
        )
}

#[test]
fn nft_lists_the_rules_of_a_flannel_node() {
    lab::test(Free, || {
        settled(&wanted(Wish { filter: SourceFilter::Off, ..Wish::default() }));
        let flannel = include_str!("data/flannel-nft.txt");
        assert_ne!(as_we_say_it(flannel), flannel);
        assert_eq!(blocks(&ruleset()), blocks(&as_we_say_it(flannel)));
        assert_eq!(blocks(&ruleset()).len(), 7, "four chains, two comments and the ends of tables");
    });
}

#[test]
fn a_single_pass_turns_flannels_rules_into_ours() {
    lab::test(Free, || {
        let file = lab::enter::work_dir().join("tmp/flannel.nft");
        std::fs::write(&file, include_str!("data/flannel-nft.txt")).unwrap();
        sh(&format!("nft -f {}", file.display()));
        let wanted = wanted(Wish { filter: SourceFilter::Off, ..Wish::default() });
        let mut kernel = kernel::Kernel::open().unwrap();
        let ops = round(&mut kernel, &wanted);
        assert_eq!(ops.len(), 2, "the two chains that differ: {ops:#?}");
    });
}

/// Returns the handle of a rule in that chain; `place` counts from 0.
fn handle(table: &str, chain: &str, place: usize) -> String {
    let text = sh(&format!("nft -a list chain {table} {chain}"));
    let handles = text.lines().filter(|line| !line.contains('{') || line.contains("@strangers"));
    let handle = handles.filter_map(|line| line.split_once("# handle ")).nth(place).unwrap();
    handle.1.trim().to_owned()
}

/// Damages the tables of both families and asserts that one reconcile pass notices and repairs it.
#[track_caller]
fn heals(kernel: &mut kernel::Kernel, wanted: &State, harm: impl Fn(&str) -> String) {
    for table in ["ip flannel-ipv4", "ip6 flannel-ipv6"] {
        let line = harm(table);
        sh(&line);
        let ops = round(kernel, wanted);
        assert!(!ops.is_empty(), "not seen: {line}");
    }
}

#[test]
fn any_damage_to_a_rule_is_found_and_repaired() {
    lab::test(Free, || {
        let wanted = wanted(Wish::default());
        let mut kernel = settled(&wanted);
        for (chain, rules) in [("forward", 2), ("postrtg", 6), ("vxlan", 2)] {
            for rule in 0..rules {
                let of = |table: &str| format!("{table} {chain} handle {}", handle(table, chain, rule));
                heals(&mut kernel, &wanted, |table| format!("nft delete rule {}", of(table)));
                heals(&mut kernel, &wanted, |table| format!("nft replace rule {} accept", of(table)));
                heals(&mut kernel, &wanted, |table| {
                    format!("nft insert rule {} tcp dport 22 drop", of(table))
                });
                heals(&mut kernel, &wanted, |table| {
                    let text = sh(&format!("nft -a list chain {table} {chain}"));
                    let mark = format!("# handle {}", handle(table, chain, rule));
                    let words = text.lines().find_map(|line| line.trim().strip_suffix(&mark)).unwrap();
                    let words = words.replace("packets 0 bytes 0 ", "");
                    format!("nft 'add rule {table} {chain} {words}'")
                });
            }
            heals(&mut kernel, &wanted, |table| {
                let first = handle(table, chain, 0);
                let text = sh(&format!("nft -a list chain {table} {chain}"));
                let words =
                    text.lines().find_map(|line| line.trim().strip_suffix(&format!("# handle {first}")));
                let words = words.unwrap();
                format!("nft 'delete rule {table} {chain} handle {first}; add rule {table} {chain} {words}'")
            });
        }
    });
}

#[test]
fn any_damage_to_a_chain_set_or_table_is_found_and_repaired() {
    lab::test(Free, || {
        let wanted = wanted(Wish::default());
        let mut kernel = settled(&wanted);
        for chain in ["forward", "postrtg", "vxlan"] {
            heals(&mut kernel, &wanted, |table| format!("nft flush chain {table} {chain}"));
            heals(&mut kernel, &wanted, |table| format!("nft delete chain {table} {chain}"));
            heals(&mut kernel, &wanted, |table| {
                format!("nft 'add chain {table} {chain} {{ policy drop; }}'")
            });
            for hook in [
                "{ type filter hook input priority 0; policy drop; }",
                "{ type filter hook forward priority 5; }",
                "{ type nat hook postrouting priority 99; }",
                "{ type nat hook output priority 100; }",
                "",
            ] {
                heals(&mut kernel, &wanted, |table| {
                    format!("nft 'delete chain {table} {chain}; add chain {table} {chain} {hook}'")
                });
            }
        }
        for whole in ["delete", "flush"] {
            heals(&mut kernel, &wanted, |table| format!("nft {whole} table {table}"));
        }
        heals(&mut kernel, &wanted, |_| "nft flush ruleset".into());
        heals(&mut kernel, &wanted, |table| format!("nft 'add table {table} {{ flags dormant; }}'"));
        for (set, wrong) in [
            ("vteps", "type ether_addr;"),
            ("vteps", "type ADDR; flags interval;"),
            ("vteps", "type ADDR; size 9;"),
            ("vteps", "type ADDR; timeout 1m;"),
            ("strangers", "type ether_addr; size 1024; flags dynamic,timeout; timeout 10m;"),
            ("strangers", "type ADDR; size 1024; flags dynamic,timeout; timeout 9m;"),
            ("strangers", "type ADDR; size 10; flags dynamic,timeout; timeout 10m;"),
            ("strangers", "type ADDR; size 1024; flags timeout; timeout 10m;"),
            ("keeper", "type inet_proto;"),
            ("keeper", "type inet_proto; flags timeout; timeout 2m;"),
            ("strangers", ""),
            ("vteps", ""),
            ("keeper", ""),
        ] {
            heals(&mut kernel, &wanted, |table| {
                let address = if table.starts_with("ip6") { "ipv6_addr" } else { "ipv4_addr" };
                let made = format!("add set {table} {set} {{ {} }}", wrong.replace("ADDR", address));
                let made = if wrong.is_empty() { String::new() } else { made };
                format!(
                    "nft 'flush chain {table} vxlan; flush chain {table} vxlan-pods; delete set {table} {set}; {made}'"
                )
            });
        }
        let other = |table: &str| if table.starts_with("ip6") { "2001:db8::9" } else { "192.0.2.9" };
        let peer = |table: &str| if table.starts_with("ip6") { "2001:db8::2" } else { "192.0.2.2" };
        heals(&mut kernel, &wanted, |table| {
            format!("nft 'add element {table} vteps {{ {} }}'", other(table))
        });
        heals(&mut kernel, &wanted, |table| {
            format!("nft 'delete element {table} vteps {{ {} }}'", peer(table))
        });
        heals(&mut kernel, &wanted, |table| format!("nft flush set {table} vteps"));
    });
}

#[test]
fn foreign_objects_in_our_table_survive() {
    lab::test(Free, || {
        let wanted = wanted(Wish::default());
        let mut kernel = settled(&wanted);
        sh("nft 'add chain ip flannel-ipv4 mine; add rule ip flannel-ipv4 mine tcp dport 22 accept'");
        let theirs = || sh("nft list chain ip flannel-ipv4 mine");
        let before = theirs();
        let (seen, _) = look(&mut kernel);
        let words = |chain: &NftChain| chain.rules.iter().map(ToString::to_string).collect::<String>();
        let mine =
            seen.nft_chains.iter().find(|row| row.chain == NftChainName::Other("mine".into())).unwrap();
        assert!(words(mine).contains("dport"), "{mine}");
        sh("nft 'flush chain ip flannel-ipv4 forward; delete chain ip flannel-ipv4 postrtg'");
        round(&mut kernel, &wanted);
        assert_eq!(theirs(), before);
        round(&mut kernel, &State::default());
        assert_eq!(theirs(), before);
        assert_eq!(blocks(&ruleset()).len(), 3, "our chains are gone: {}", ruleset());
    });
}

#[test]
fn an_object_to_delete_may_be_missing() {
    lab::test(Free, || {
        let wanted = wanted(Wish::default());
        let mut kernel = settled(&wanted);
        let all = plan::diff(&State::default(), &wanted, &bounds());
        assert_eq!(all.len(), 10, "two tables and their chains: {all:#?}");
        let elements = wanted.nft_elements.iter().map(|row| delete(row.clone()));
        let all: Vec<_> = elements.chain(all).collect();
        // The rules vanish first without, then with a new reading.
        look(&mut kernel);
        sh("nft 'delete table ip flannel-ipv4; flush table ip6 flannel-ipv6'");
        let rules = |op: &&plan::Op| !matches!(op.object, Object::NftElement(_));
        let rules: Vec<_> = all.iter().filter(rules).cloned().collect();
        applies(&mut kernel, &rules);
        assert_eq!(ruleset(), "");
        look(&mut kernel);
        assert_eq!(kernel.apply(&all), vec![Outcome::Done; all.len()]);
        assert_eq!(kernel.apply(&all), vec![Outcome::Done; all.len()]);
        assert_eq!(ruleset(), "");
        round(&mut kernel, &wanted);
        for row in &wanted.nft_elements {
            look(&mut kernel);
            let table = if row.address.is_ipv4() { "ip flannel-ipv4" } else { "ip6 flannel-ipv6" };
            sh(&format!("nft 'delete element {table} vteps {{ {} }}'", row.address));
            applies(&mut kernel, &[delete(row.clone())]);
        }
        assert!(look(&mut kernel).0.nft_elements.is_empty());
    });
}

#[test]
fn adding_an_element_creates_its_set() {
    lab::test(Free, || {
        let mut kernel = kernel::Kernel::open().unwrap();
        let four = element(Ipv4Addr::new(192, 0, 2, 7));
        let six = element("2001:db8::7".parse::<IpAddr>().unwrap());
        applies(&mut kernel, &[add(four.clone()), add(six.clone())]);
        let (seen, _) = look(&mut kernel);
        assert_eq!(seen.nft_elements, Table::from(vec![four, six]));
    });
}

/// Sends a VXLAN packet with that VNI to this node.
pub(crate) fn forge(from: &str, vni: u8) {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    let to = if from.contains(':') { "::1" } else { "127.0.0.1" };
    // No socket listens, so the second send would return an error.
    let _ = socket.send_to(&[8, 0, 0, 0, 0, 0, vni, 0, 1, 2, 3, 4], (to, 8472));
}

#[test]
fn unknown_senders_are_listed_and_survive_other_changes() {
    lab::test(Free, || {
        sh("echo 0 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
        settle();
        let mut kernel = settled(&wanted(Wish::default()));
        assert_eq!(look(&mut kernel).1.unknown_senders, []);
        for (from, vni) in
            [("127.0.0.1", 1), ("127.0.0.1", 1), ("127.0.0.2", 1), ("127.0.0.3", 2), ("::1", 1)]
        {
            forge(from, vni);
        }
        let named = |address: &str, packets| UnknownSender { address: address.parse().unwrap(), packets };
        let all = vec![named("127.0.0.1", 2), named("127.0.0.2", 1), named("::1", 1)];
        assert_eq!(look_again(&mut kernel).1.unknown_senders, all);
        let counters = || {
            let chain = sh("nft list chain ip flannel-ipv4 vxlan");
            chain.lines().filter(|line| line.contains("packets")).map(str::trim).collect::<String>()
        };
        let counted = counters();
        assert!(counted.contains("counter packets 3 "), "{counted}");
        let changed = wanted(Wish { fully_random: false, ..Wish::default() });
        assert_eq!(round(&mut kernel, &changed).len(), 2, "two chains of masquerade rules");
        assert_eq!(counters(), counted);
        assert_eq!(look(&mut kernel).1.unknown_senders, all);
        let dropping = wanted(Wish { filter: SourceFilter::Drop, ..Wish::default() });
        round(&mut kernel, &dropping);
        assert_eq!(look(&mut kernel).1.unknown_senders, all, "sets stay when the chain's rules change");
        let off = wanted(Wish { filter: SourceFilter::Off, ..Wish::default() });
        round(&mut kernel, &off);
        assert_eq!(look(&mut kernel).1.unknown_senders, []);
        assert!(!ruleset().contains("set "), "{}", ruleset());
    });
}

/// Returns the number of packets that the last rule of the chain `vxlan` has met.
fn dropped() -> String {
    let chain = sh("nft list chain ip flannel-ipv4 vxlan");
    let words = chain.lines().find_map(|line| line.trim().strip_suffix(" drop")).unwrap();
    words.split("packets ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn rules_drop_packets_only_while_they_are_kept() {
    lab::test(Free, || {
        let wanted = wanted(Wish { filter: SourceFilter::Drop, ..Wish::default() });
        let mut kernel = settled(&wanted);
        let element = sh("nft list set ip flannel-ipv4 keeper");
        assert!(element.contains("udp timeout 2m expires 1m"), "{element}");
        forge("127.0.0.1", 1);
        assert_eq!(dropped(), "1");
        // The element is gone, as after its time.
        sh("nft 'flush set ip flannel-ipv4 keeper; flush set ip6 flannel-ipv6 keeper'");
        forge("127.0.0.1", 1);
        assert_eq!(dropped(), "1", "nobody keeps the rules");
        let named = [UnknownSender { address: [127, 0, 0, 1].into(), packets: 2 }];
        assert_eq!(look_again(&mut kernel).1.unknown_senders, named, "it is still counted");
        kernel.keep_rules(&Family::ALL).unwrap();
        assert_eq!(to_do(&mut kernel, &wanted), []);
        forge("127.0.0.1", 1);
        assert_eq!(dropped(), "2");
        heals(&mut kernel, &wanted, |table| format!("nft flush set {table} keeper"));
        forge("127.0.0.1", 1);
        assert_eq!(dropped(), "1", "the rules are written again, and kept");
        sh("nft delete table ip flannel-ipv4");
        assert!(kernel.keep_rules(&Family::ALL).is_err());
    });
}

/// Adds thousands of foreign rules, as kube-proxy writes them. Each call adds few, since the namespace has small
/// buffers.
pub(crate) fn storm(chains: usize, rules: usize) {
    let file = lab::enter::work_dir().join("tmp/storm.nft");
    for part in 0..rules / 250 {
        let mut text = String::from("add table ip kube-proxy\n");
        for chain in (0..chains).filter(|_| part == 0) {
            text += &format!("add chain ip kube-proxy service-{chain}\n");
        }
        for rule in part * 250..(part + 1) * 250 {
            let (high, low) = (rule / 250, rule % 250);
            let chain = rule % chains;
            text += &format!(
                "add rule ip kube-proxy service-{chain} ip daddr 10.96.{high}.{low} counter accept\n"
            );
        }
        std::fs::write(&file, text).unwrap();
        sh(&format!("nft -f {}", file.display()));
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_peer_among_thousands_is_added_and_removed_quickly() {
    lab::test(Timed, || {
        let mut wanted = wanted(Wish::default());
        let peers = (0..5000_u32).map(|peer| element(Ipv4Addr::from(0xc633_0000 + peer)));
        wanted.nft_elements = wanted.nft_elements.iter().cloned().chain(peers).collect();
        let start = Instant::now();
        let mut kernel = settled(&wanted);
        println!("5,000 elements written and read again: {:?}", start.elapsed());
        storm(500, 5000);
        let new = element(Ipv4Addr::new(203, 0, 113, 9));
        let (mut added, mut deleted, mut read) = (Vec::new(), Vec::new(), Vec::new());
        let timed = |times: &mut Vec<Duration>, run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            times.push(start.elapsed());
        };
        for _ in 0..15 {
            timed(&mut read, &mut || _ = kernel.dump(&bounds()).unwrap());
            timed(&mut added, &mut || applies(&mut kernel, &[add(new.clone())]));
            let (seen, _) = look(&mut kernel);
            assert!(seen.nft_elements.contains(&new), "{}", seen.nft_elements.len());
            assert_eq!(seen.nft_elements.len(), 5005);
            timed(&mut deleted, &mut || applies(&mut kernel, &[delete(new.clone())]));
            assert_eq!(look(&mut kernel).0.nft_elements.len(), 5004);
            kernel.forget_firewall();
        }
        let (added, deleted, read) = (median(added), median(deleted), median(read));
        println!("one among 5,000: added in {added:?}, deleted in {deleted:?}; all read anew in {read:?}");
        lab::in_time("one among 5,000", added.max(deleted), Duration::from_millis(5));
    });
}
