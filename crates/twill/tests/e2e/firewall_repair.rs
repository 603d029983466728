//! Harms to the traffic rules are repaired within a second, in nftables and both iptables, in the same order.
//! Existing connections survive.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lab::{Daemon, Iptables, Monitors, Node, Talk, Timing, Topology, Witness};

use crate::cluster::{self, SOON};
use crate::traffic::{MASQ, Manager, OUTSIDES, lines, of_node, of_pod, tables};

const SECOND: Duration = Duration::from_secs(1);
const TABLES: [&str; 2] = ["ip flannel-ipv4", "ip6 flannel-ipv6"];

/// Returns the contents of each chain and set of our tables. The order in which they were made does not count, nor do the
/// elements of `strangers`.
fn blocks(node: &Node) -> BTreeMap<String, Vec<String>> {
    let (mut table, mut name) = (String::new(), String::new());
    let mut blocks = BTreeMap::<String, Vec<String>>::new();
    for line in tables(&node.ns).lines() {
        match line.trim_start_matches('\t') {
            header if line.starts_with("table ") => (table, name) = (header.to_owned(), String::new()),
            header if line.starts_with('\t') && !line.starts_with("\t\t") && line.ends_with('{') => {
                name = header.to_owned();
            }
            "" | "}" => {}
            _ if name.starts_with("set strangers") && line.contains(" = ") => {}
            text => {
                let mut words: Vec<&str> = vec![text];
                if text.starts_with("elements = ") {
                    words = text.split([' ', ',', '{', '}']).filter(|word| !word.is_empty()).collect();
                    words.sort_unstable();
                }
                blocks
                    .entry(format!("{table} {name}"))
                    .or_default()
                    .extend(words.into_iter().map(str::to_owned));
            }
        }
    }
    blocks
}

/// Returns the rules of one of our chains: text and handle.
fn rules_of(node: &Node, chain: &str) -> Vec<(String, String)> {
    let text = node.ns.run(&format!("nft -a -s list chain {chain}"));
    let rules = text.lines().filter_map(|line| line.trim().rsplit_once(" # handle "));
    let rules = rules.filter(|(text, _)| !text.ends_with('{'));
    rules.map(|(text, handle)| (text.to_owned(), handle.to_owned())).collect()
}

/// Number of harms before a restart of the daemon. More repairs within a minute would be delayed as a conflict.
const HARMS_AT_ONCE: usize = 6;

/// Harms a node and measures the time of each repair.
struct Healer<'a, T> {
    node: &'a Node,
    daemon: Daemon<'a>,
    look: &'a dyn Fn() -> T,
    before: T,
    times: Vec<(Duration, String)>,
}

impl<'a, T: PartialEq + std::fmt::Debug> Healer<'a, T> {
    fn new(node: &'a Node, daemon: Daemon<'a>, look: &'a dyn Fn() -> T) -> Self {
        Self { node, daemon, look, before: look(), times: Vec::new() }
    }

    /// Runs the command `harm` and waits for the repair.
    fn heal(&mut self, harm: &str) {
        self.node.ns.run(harm);
        let harmed = Instant::now();
        let healed = lab::until(SOON, || ((self.look)() == self.before).then(|| harmed.elapsed()));
        let healed = healed
            .unwrap_or_else(|| panic!("`{harm}` is not repaired: {:#?}\n{:#?}", self.before, (self.look)()));
        lab::in_time(&format!("the repair after `{harm}`"), healed, SECOND);
        self.times.push((healed, harm.to_owned()));
        if self.times.len().is_multiple_of(HARMS_AT_ONCE) {
            self.daemon.kill9();
            self.daemon.restart();
            self.daemon.wait_ready();
        }
    }

    fn report(&self, what: &str) {
        let (longest, harm) = self.times.iter().max().unwrap();
        println!("{what}: {} harms, the longest repair took {longest:?} after `{harm}`", self.times.len());
    }
}

#[test]
fn every_rule_chain_and_table_of_nftables_comes_back() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), &Manager::Nft.config("vxlan"));
        let mut daemons = lab.start_all(MASQ);
        let node = lab.node(1);
        let look = || blocks(node);
        let peer = of_node(lab.node(2));
        let known = |(table, peer): (&&str, &IpAddr)| {
            let vteps = look().remove(&format!("table {table} {{ set vteps {{"));
            vteps.is_some_and(|vteps| vteps.contains(&peer.to_string()))
        };
        lab::wait_for("the peer in the sets of both tables", SOON, || TABLES.iter().zip(&peer).all(known));
        let mut healer = Healer::new(node, daemons.remove(0), &look);
        let mut heal = |harm: &str| healer.heal(harm);
        for table in TABLES {
            for chain in ["postrtg", "forward", "vxlan"].map(|chain| format!("{table} {chain}")) {
                for nth in 0..rules_of(node, &chain).len() {
                    let (text, handle) = rules_of(node, &chain).swap_remove(nth);
                    heal(&format!("nft delete rule {chain} handle {handle}"));
                    heal(&format!("nft 'add rule {chain} {text}'"));
                }
                let (text, handle) = rules_of(node, &chain).swap_remove(0);
                heal(&format!("nft 'delete rule {chain} handle {handle}; add rule {chain} {text}'"));
                heal(&format!("nft 'insert rule {chain} counter accept'"));
                heal(&format!("nft flush chain {chain}"));
                heal(&format!("nft 'flush chain {chain}; delete chain {chain}'"));
            }
            let peer = peer[usize::from(table.contains('6'))];
            heal(&format!("nft 'delete element {table} vteps {{ {peer} }}'"));
            heal(&format!("nft flush set {table} vteps"));
            heal(&format!("nft flush table {table}"));
            heal(&format!("nft delete table {table}"));
        }
        heal("nft flush ruleset");
        healer.report("nftables");
    });
}

/// Returns each of our lines in `iptables-save`, with program and table: "iptables-nft -w -t nat", "FLANNEL-FWD -s ...".
fn rules_in(node: &Node, variant: Iptables) -> Vec<(String, String)> {
    let mut rules = Vec::new();
    for (program, text) in variant.programs().iter().zip(variant.saved(&node.ns)) {
        let mut table = "";
        for line in text.lines() {
            table = line.strip_prefix('*').unwrap_or(table);
            let ours = line.contains("FLANNEL") || line.contains("flanneld");
            if let Some(rule) = line.strip_prefix("-A ").filter(|_| ours) {
                rules.push((format!("{program} -w -t {table}"), rule.to_owned()));
            }
        }
    }
    rules
}

/// Returns all harms to our rules in one table of one family, to be done in order.
fn harms_in(node: &Node, variant: Iptables, (program, table): (&str, &str)) -> Vec<String> {
    let table_of = format!("{program} -w -t {table}");
    let rules = rules_in(node, variant).into_iter().filter(|(place, _)| *place == table_of);
    let rules: Vec<String> = rules.map(|(_, rule)| rule).collect();
    let (chain, hook) =
        if table == "nat" { ("FLANNEL-POSTRTG", "POSTROUTING") } else { ("FLANNEL-FWD", "FORWARD") };
    let first = |chain: &str| rules.iter().find(|rule| rule.starts_with(chain)).unwrap();
    let mut harms: Vec<String> =
        rules.iter().flat_map(|rule| ["-D", "-A"].map(|harm| format!("{table_of} {harm} {rule}"))).collect();
    harms.extend([
        format!("{table_of} -D {0} && {table_of} -A {0}", first(chain)),
        format!("{table_of} -I {chain} -m mark --mark 0x99 -j RETURN"),
        format!("{table_of} -F {chain}"),
        format!("{table_of} -F {hook}"),
        format!("{table_of} -F"),
        // The daemon may repair it in between, so that not all of it goes.
        format!("{table_of} -D {}; {table_of} -F {chain}; {table_of} -X {chain} || true", first(hook)),
    ]);
    harms
}

/// Applies one harm to each table of each family at a time.
fn heals_in_iptables(variant: Iptables) {
    let lab = cluster::lab(Topology::flat(2), &Manager::Iptables.config("host-gw"));
    let node = lab.node(1);
    if variant == Iptables::Legacy {
        // This policy makes the daemon choose iptables-legacy; no harm removes it.
        variant.run(&node.ns, "-P FORWARD DROP");
    }
    let mut daemons = lab.start_all(MASQ);
    lab::wait_for("the rules of both families", SOON, || rules_in(node, variant).len() == 20);
    let look = || lines(&node.ns, variant);
    let mut healer = Healer::new(node, daemons.remove(0), &look);
    let programs = variant.programs();
    let places = programs.iter().flat_map(|program| ["nat", "filter"].map(|table| (program.as_str(), table)));
    let harms: Vec<Vec<String>> = places.map(|place| harms_in(node, variant, place)).collect();
    for nth in 0..harms.iter().map(Vec::len).max().unwrap() {
        let at_once: Vec<&str> = harms.iter().filter_map(|harms| Some(harms.get(nth)?.as_str())).collect();
        healer.heal(&at_once.join("; "));
    }
    if variant == Iptables::Nft {
        for harm in ["nft delete table ip nat", "nft delete table ip6 filter", "nft flush ruleset"] {
            healer.heal(harm);
        }
    }
    healer.report(&format!("{variant:?}"));
}

#[test]
fn every_rule_and_chain_of_iptables_nft_comes_back() {
    lab::test(Timing::Timed, || heals_in_iptables(Iptables::Nft));
}

#[test]
fn every_rule_and_chain_of_iptables_legacy_comes_back() {
    lab::test(Timing::Timed, || heals_in_iptables(Iptables::Legacy));
}

/// Rules of other software such as kube-proxy. With them the kernel keeps tracking connections and translating addresses,
/// whatever happens to our rules.
const OTHERS: &str = "nft 'table inet others {
    chain follow { type filter hook input priority 0; ct state established accept; }
    chain translate { type nat hook postrouting priority 0; meta mark 0x77 masquerade; }
}'";
/// Command that removes everybody's rules. Until ours are back, the kernel may answer a packet of a masqueraded connection with a
/// reset. Connections between pods are not masqueraded.
const EVERYTHING: &str = "nft flush ruleset";

/// Asserts that connections survive a flush. Prints how many new ones in the gap showed the pod's own address.
fn connections_survive(manager: Manager, backend: &str, flush: &str) {
    let lab = cluster::lab(Topology::flat(2).outside(), &manager.config(backend));
    let _daemons = lab.start_all(MASQ);
    let pods = lab.pods();
    cluster::reach_each_other(&pods);
    let node = lab.node(1);
    node.ns.run(OTHERS);
    let (world, _remote) = (Witness::start(lab.outside()), Witness::start(&pods[1].ns));
    let mut targets = of_pod(&pods[1]).to_vec();
    if flush != EVERYTHING {
        targets.extend(OUTSIDES);
    }
    let talks: Vec<Talk> = targets.iter().map(|to| Talk::start(&pods[0].ns, *to)).collect();
    for nth in 0..3 {
        node.ns.run(flush);
        let flushed = Instant::now();
        for (to, own) in OUTSIDES.into_iter().zip(of_node(node)) {
            lab::wait_for(&format!("flush {nth}: new ones to {to} are masqueraded again"), SOON, || {
                let before = world.received().len();
                lab::knock(&pods[0].ns, to);
                lab::until(SECOND, || {
                    world.received().get(before).map(|received| received.source.ip() == own)
                }) == Some(true)
            });
        }
        let took = flushed.elapsed();
        println!("{manager:?} {backend}: masqueraded again {took:?} after the flush");
        lab::in_time("the repair after the flush", took, SECOND);
        let before: Vec<u64> = talks.iter().map(Talk::bytes).collect();
        lab::wait_for("all talk on", SOON, || {
            talks.iter().zip(&before).all(|(talk, before)| talk.bytes() > before + 5)
        });
    }
    for (to, report) in targets.iter().zip(talks.into_iter().map(Talk::stop)) {
        println!("{manager:?} {backend} {to}: {report:?}");
        assert!(report.cut.is_none(), "{to}: {report:?}");
        lab::in_time(&format!("{to}: the longest gap"), report.longest_gap, SECOND);
    }
    let naked =
        world.received().iter().filter(|received| of_pod(&pods[0]).contains(&received.source.ip())).count();
    println!("{manager:?} {backend}: {naked} of {} were seen as the pod itself", world.received().len());
}

#[test]
fn connections_survive_a_flush_of_nftables() {
    lab::test(Timing::Timed, || {
        connections_survive(Manager::Nft, "vxlan", EVERYTHING);
        connections_survive(
            Manager::Nft,
            "host-gw",
            "nft delete table ip flannel-ipv4; nft delete table ip6 flannel-ipv6",
        );
    });
}

#[test]
fn connections_survive_a_flush_of_iptables() {
    lab::test(Timing::Timed, || {
        let flush = "for i in iptables ip6tables; do $i -w -t nat -F; $i -w -F; done";
        connections_survive(Manager::Iptables, "vxlan", flush);
        connections_survive(Manager::Iptables, "host-gw", EVERYTHING);
    });
}

/// Returns the id of the process or thread that was started last in the lab.
fn last_started() -> u64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.trim().rsplit(' ').next().unwrap().parse().unwrap()
}

/// iptables-legacy is left out: it reports no changes, so programs have to read its rules again and again.
#[test]
fn an_idle_daemon_writes_nothing_and_starts_no_program() {
    lab::test(Timing::Timed, || {
        for manager in Manager::BOTH {
            let lab = cluster::lab(Topology::flat(2), &manager.config("vxlan"));
            let (_daemons, pods) = (lab.start_all(MASQ), lab.pods());
            cluster::reach_each_other(&pods);
            let monitors = Monitors::start(&lab.node(1).ns);
            let asked = cluster::ops_asked(lab.node(1));
            let (mut started, mut since) = (last_started(), Instant::now());
            lab::wait_for("what the lab has done is looked at", SOON, || {
                if started != last_started() {
                    (started, since) = (last_started(), Instant::now());
                }
                since.elapsed() > SECOND
            });
            // The test does not look meanwhile, since a look is a process.
            std::thread::sleep(Duration::from_secs(5));
            let started = last_started() - started;
            assert_eq!(
                (started, monitors.lines_about(&["flannel", "FLANNEL"])),
                (0, Vec::new()),
                "{manager:?}"
            );
            assert_eq!(cluster::ops_asked(lab.node(1)), asked);
        }
    });
}
