//! Tests of the firewall rules and of the choice of their manager, with flannel's recorded rules and tables of cases.
#![expect(clippy::unwrap_used, reason = "helpers of tests: what cannot be read shall stop the test")]

use std::net::IpAddr;
use std::path::PathBuf;

use plan::backend::{Backend, SourceFilter, vxlan};
use plan::config::{Config, FirewallOptions};
use plan::lease::{Lease, Leases};
use plan::node::{Node, Uplink};
use plan::other_daemons::{FirewallKeeper, OtherDaemons};
use plan::owned::{Owned, Sweep};
use plan::range::Range;
use plan::state::{IptablesChain, IptablesTable, Match, NftChainName, RuleVerdict, Variant};
use plan::underlay::{FirewallFacts, IptablesFacts, LinkFacts, Manager, Underlay, UnknownSender};
use plan::warning::{FirewallFault, NodeFault, Warning};
use plan::{Family, Memory, Op, Plan, Situation};

/// Dual-stack node with subnets as in the recordings.
#[derive(Clone)]
struct Case {
    options: FirewallOptions,
    filter: SourceFilter,
    keeper: FirewallKeeper,
    facts: FirewallFacts,
    subnet: &'static str,
    uplink: Uplink,
    leases: Leases,
    leasable: Vec<Range>,
}

impl Case {
    fn new(options: FirewallOptions) -> Self {
        let uplink = Uplink {
            ipv4: Some([192, 168, 100, 11].into()),
            ipv6: Some("fd00:100::11".parse().unwrap()),
            ..Uplink::new("eth0".parse().unwrap(), 1500)
        };
        let peer = r#"{"PublicIP":"192.168.100.12","PublicIPv6":"fd00:100::12","BackendType":"vxlan","BackendData":
            {"VNI":1,"VtepMAC":"42:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"42:00:00:00:06:02"}}"#;
        let peer = Lease::parse("10.244.9.0-24&fd00:244:0:9::-64", peer.as_bytes(), 1).unwrap();
        Self {
            options,
            filter: SourceFilter::Off,
            keeper: FirewallKeeper::Us,
            facts: FirewallFacts::default(),
            subnet: "10.244.3.0-24&fd00:244:0:3::-64",
            uplink,
            leases: Leases::Listed([peer].into()),
            leasable: Vec::new(),
        }
    }

    fn plan(&self) -> Plan {
        let options = vxlan::VxlanOptions { source_filter: self.filter, ..Default::default() };
        let config = Config {
            ipv4: Some("10.244.0.0/16".parse().unwrap()),
            ipv6: Some("fd00:244::/48".parse().unwrap()),
            firewall: self.options,
            leasable: self.leasable.clone(),
            ..Config::new(Backend::Vxlan(options))
        };
        let node = Node {
            uplink: self.uplink.clone(),
            subnet: plan::subnet::Subnet::parse(self.subnet).unwrap(),
            vtep: Some("42:00:00:00:00:01".parse().unwrap()),
            vtep_v6: Some("42:00:00:00:06:01".parse().unwrap()),
        };
        let uplink = LinkFacts { name: self.uplink.link, kind: "veth".into(), ..LinkFacts::default() };
        let underlay = Underlay { links: vec![uplink], firewall: self.facts.clone(), ..Underlay::default() };
        let others = OtherDaemons { firewall: self.keeper.clone(), ..OtherDaemons::default() };
        let nobody = std::iter::empty();
        let scope = plan::scope(&config, &node, &self.leases, &others, &Memory::default(), nobody);
        let start = Situation::at_start(&config, &node, &self.leases, &scope, &underlay);
        plan::plan(&Situation { others: &others, ..start })
    }

    fn manager(&self) -> Option<Manager> {
        self.plan().firewall.choice.map(|choice| choice.manager)
    }
}

/// Firewall options of flannel in the recordings.
const ALL: FirewallOptions =
    FirewallOptions { nftables: None, masquerade: true, forward: true, fully_random: true };

fn faults(plan: &Plan) -> Vec<&FirewallFault> {
    let fault = |warning| match warning {
        &Warning::Node(NodeFault::Firewall(ref fault)) => Some(fault),
        _ => None,
    };
    plan.warnings.iter().filter_map(fault).collect()
}

fn iptables(variant: Variant) -> Vec<IptablesFacts> {
    Family::ALL.map(|family| IptablesFacts { variant, family, in_use: false, refuses: None }).into()
}

fn both() -> FirewallFacts {
    let all = [iptables(Variant::Nft), iptables(Variant::Legacy)].concat();
    FirewallFacts { iptables: all, usual: Some(Variant::Nft), ..FirewallFacts::default() }
}

fn recorded(case: &str, file: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    std::fs::read_to_string(root.join(case).join("node1").join(file)).unwrap()
}

/// Returns flannel's rules in a recording, in order.
fn saved(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("-A ")).collect()
}

fn as_saved(rows: &[IptablesChain], family: Family) -> Vec<String> {
    let line = |row: &IptablesChain, rule: &str| format!("-A {} {rule}", row.chain);
    let rows = |table, hook| {
        rows.iter().filter(move |row: &&IptablesChain| {
            (row.family, row.table, row.is_hook()) == (family, table, hook)
        })
    };
    let order = IptablesTable::ALL.into_iter().flat_map(|table| rows(table, true).chain(rows(table, false)));
    order.flat_map(|row| row.rules.iter().map(|rule| line(row, rule))).collect()
}

#[test]
fn iptables_has_flannels_rules_to_the_byte() {
    let options = FirewallOptions { nftables: Some(false), ..ALL };
    let texts = ["iptables-save.txt", "ip6tables-save.txt"].map(|file| recorded("masq-iptables-dual", file));
    // flannel chose node 1's subnet at random.
    let subnet = saved(&texts[1])
        .iter()
        .find_map(|rule| rule.split(" -d ").next()?.strip_prefix("-A FLANNEL-POSTRTG -s "));
    let subnet = subnet.unwrap().trim_end_matches("/64").to_owned();
    let subnet: &'static str = format!("10.244.3.0-24&{subnet}-64").leak();
    for variant in Variant::ALL {
        let mut case = Case { facts: both(), subnet, ..Case::new(options) };
        case.facts.usual = Some(variant);
        let plan = case.plan();
        assert_eq!(plan.firewall.choice.map(|choice| choice.manager), Some(Manager::Iptables(variant)));
        for (family, text) in Family::ALL.into_iter().zip(&texts) {
            assert_eq!(as_saved(&plan.desired.iptables, family), saved(text), "{family} {variant}");
        }
        assert!(plan.desired.nft_tables.is_empty());
    }
}

#[test]
fn nftables_has_flannels_rules_except_two_corrected_ones() {
    let case = Case { subnet: "10.244.52.0-24&fd00:244:0:17::-64", ..Case::new(ALL) };
    let plan = case.plan();
    let theirs = recorded("masq-nft-dual", "nft.txt");
    let theirs: Vec<&str> = theirs
        .lines()
        .map(str::trim)
        .filter(|line| line.ends_with("return") || line.ends_with("accept") || line.contains("masquerade "))
        .collect();
    let rules = |family, chain: &NftChainName| {
        let chains = plan.desired.nft_chains.iter();
        let mut chains = chains.filter(move |row| (row.family, &row.chain) == (family, chain));
        chains.next().unwrap().rules.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let ours: Vec<String> = Family::ALL
        .into_iter()
        .flat_map(|family| {
            [NftChainName::Postrouting, NftChainName::Forward].map(|chain| rules(family, &chain)).concat()
        })
        .collect();
    let theirs = theirs.iter().map(|rule| {
        rule.replace("meta mark 0x00004000", "meta mark & 0x00004000 == 0x00004000")
            .replace(
                "ip saddr != 10.244.52.0/24 ip daddr 10.244.0.0/16",
                "ip saddr != 10.244.0.0/16 ip daddr 10.244.52.0/24",
            )
            .replace(
                "ip6 saddr != fd00:244:0:17::/64 ip6 daddr fd00:244::/48",
                "ip6 saddr != fd00:244::/48 ip6 daddr fd00:244:0:17::/64",
            )
    });
    assert_eq!(ours, theirs.collect::<Vec<_>>());
    assert!(plan.desired.iptables.is_empty());
}

#[test]
fn the_config_decides_first_then_the_state_of_iptables() {
    let (nft, legacy) = (Manager::Iptables(Variant::Nft), Manager::Iptables(Variant::Legacy));
    let with = |change: &dyn Fn(&mut FirewallFacts)| {
        let mut facts = both();
        change(&mut facts);
        facts
    };
    let refused = with(&|facts| facts.iptables[0].refuses = Some("policy DROP".into()));
    let refused_v6 = with(&|facts| facts.iptables[1].refuses = Some("-j REJECT".into()));
    let in_use = with(&|facts| facts.iptables[2].in_use = true);
    let old = with(&|facts| facts.usual = Some(Variant::Legacy));
    let no_nft = with(&|facts| facts.no_nft = Some("there is no nft".into()));
    let bare = FirewallFacts::default();
    let nothing = FirewallFacts { no_nft: Some("there is no nft".into()), ..FirewallFacts::default() };
    let manager = Some;
    for (facts, auto, told_nft, told_iptables) in [
        (both(), manager(Manager::Nftables), manager(Manager::Nftables), manager(nft)),
        (refused, manager(nft), manager(Manager::Nftables), manager(nft)),
        (refused_v6, manager(nft), manager(Manager::Nftables), manager(nft)),
        (in_use, manager(legacy), manager(Manager::Nftables), manager(legacy)),
        (old, manager(Manager::Nftables), manager(Manager::Nftables), manager(legacy)),
        (no_nft, manager(nft), manager(nft), manager(nft)),
        (bare, manager(Manager::Nftables), manager(Manager::Nftables), manager(Manager::Nftables)),
        (nothing, None, None, None),
    ] {
        for (nftables, expected) in [(None, auto), (Some(true), told_nft), (Some(false), told_iptables)] {
            let case = Case { facts: facts.clone(), ..Case::new(FirewallOptions { nftables, ..ALL }) };
            assert_eq!(case.manager(), expected, "{nftables:?} {facts:?}");
        }
    }
}

#[test]
fn an_impossible_choice_is_reported() {
    let told = |nftables, facts| Case { facts, ..Case::new(FirewallOptions { nftables, ..ALL }) };
    let nothing = FirewallFacts { no_nft: Some("no".into()), ..FirewallFacts::default() };
    assert_eq!(faults(&told(None, nothing).plan()), [&FirewallFault::NoMasquerade]);
    let nothing = FirewallFacts { no_nft: Some("no".into()), ..FirewallFacts::default() };
    let forward = FirewallOptions { masquerade: false, ..ALL };
    assert_eq!(faults(&Case { facts: nothing, ..Case::new(forward) }.plan()), [&FirewallFault::Nothing]);
    assert_eq!(
        faults(&told(Some(false), FirewallFacts::default()).plan()),
        [&FirewallFault::IptablesMissing]
    );
    let no_nft = FirewallFacts { no_nft: Some("no".into()), ..both() };
    assert_eq!(faults(&told(None, no_nft).plan()), [&FirewallFault::NftUnusable { why: "no".into() }]);
    let none = FirewallOptions { nftables: None, ..FirewallOptions::default() };
    let nothing = FirewallFacts { no_nft: Some("no".into()), ..FirewallFacts::default() };
    let plan = Case { facts: nothing, ..Case::new(none) }.plan();
    assert!(faults(&plan).is_empty() && plan.firewall.choice.is_none(), "nothing was asked for");
}

#[test]
fn a_source_filter_without_nftables_is_a_warning_whatever_other_rules_there_are() {
    let why = || "no".into();
    let unfiltered = || FirewallFault::Unfiltered { why: why() };
    for filter in [SourceFilter::Count, SourceFilter::Drop] {
        let told = |options, facts: FirewallFacts| {
            let facts = FirewallFacts { no_nft: Some(why()), ..facts };
            faults(&Case { filter, facts, ..Case::new(options) }.plan())
                .into_iter()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(told(FirewallOptions::default(), FirewallFacts::default()), [unfiltered()]);
        assert_eq!(told(ALL, both()), [FirewallFault::NftUnusable { why: why() }, unfiltered()]);
    }
}

#[test]
fn accept_rules_are_added_where_foreign_rules_refuse() {
    let mut facts = both();
    facts.iptables[0].refuses = Some("policy DROP".into());
    let case = Case { facts, ..Case::new(FirewallOptions { nftables: Some(true), ..ALL }) };
    let plan = case.plan();
    let what = "policy DROP".into();
    let fault = FirewallFault::ForwardRefused { variant: Variant::Nft, family: Family::Ipv4, what };
    assert_eq!(faults(&plan), [&fault]);
    let chains: Vec<_> =
        plan.desired.iptables.iter().map(|row| (row.variant, row.family, &*row.chain)).collect();
    let at = (Variant::Nft, Family::Ipv4);
    assert_eq!(chains, [(at.0, at.1, "FLANNEL-FWD"), (at.0, at.1, "FORWARD")]);
}

#[test]
fn options_that_are_off_make_no_rule() {
    let rows = |options: FirewallOptions| {
        let facts = both();
        let plan = Case { facts, ..Case::new(options) }.plan();
        let nft: Vec<_> = plan.desired.nft_chains.iter().map(|row| row.chain.to_string()).collect();
        let iptables: Vec<_> = plan.desired.iptables.iter().map(|row| row.chain.to_string()).collect();
        [nft, iptables].concat()
    };
    assert_eq!(rows(FirewallOptions { masquerade: false, ..ALL }), ["forward", "forward"]);
    assert_eq!(rows(FirewallOptions { forward: false, ..ALL }), ["postrtg", "postrtg"]);
    assert!(rows(FirewallOptions::default()).is_empty());
    let told = FirewallOptions { nftables: Some(false), masquerade: false, ..ALL };
    assert_eq!(rows(told), ["FLANNEL-FWD", "FORWARD", "FLANNEL-FWD", "FORWARD"]);
    let ports = Case::new(FirewallOptions { fully_random: false, ..ALL }).plan();
    let said = ports.desired.nft_chains.iter().map(ToString::to_string).collect::<String>();
    assert!(said.contains("masquerade;") && !said.contains("fully-random"), "{said}");
}

#[test]
fn unknown_senders_are_dropped_only_with_a_reliable_peer_list() {
    let case = |filter| Case { filter, ..Case::new(FirewallOptions::default()) };
    let verdict_of = |case: &Case| {
        let plan = case.plan();
        let chain = plan.desired.nft_chains.iter().find(|row| row.chain == NftChainName::Vxlan);
        chain.map(|row| row.rules.last().map(|rule| rule.verdict.clone()))
    };
    let verdict = |case: &Case| verdict_of(case).flatten();
    assert_eq!(verdict(&case(SourceFilter::Off)), None);
    assert_eq!(verdict(&case(SourceFilter::Count)), Some(RuleVerdict::Count));
    let drop = case(SourceFilter::Drop);
    assert_eq!(verdict(&drop), Some(RuleVerdict::Drop));
    let Leases::Listed(leases) = drop.leases.clone() else { unreachable!() };
    let old = Case { leases: Leases::Remembered(leases), ..drop.clone() };
    assert_eq!(verdict(&old), Some(RuleVerdict::Count));
    let unheard = |filter| verdict_of(&Case { leases: Leases::Unknown, ..case(filter) });
    assert_eq!((unheard(SourceFilter::Count), unheard(SourceFilter::Drop)), (None, Some(None)));
    let translated = Uplink { public_ip: Some([203, 0, 113, 1].into()), ..drop.uplink.clone() };
    assert_eq!(verdict(&Case { uplink: translated, ..drop.clone() }), Some(RuleVerdict::Count));
    let no_nft = FirewallFacts { no_nft: Some("no".into()), ..FirewallFacts::default() };
    assert_eq!(verdict(&Case { facts: no_nft, ..drop.clone() }), None);
    let plan = drop.plan();
    let chain = plan.desired.nft_chains.iter().find(|row| row.chain == NftChainName::Vxlan).unwrap();
    assert_eq!(
        chain.to_string(),
        "nft chain ip flannel-ipv4 vxlan { udp dport 8472 @th,96,24 0x1 ip saddr != @vteps update @strangers \
         { ip saddr counter }; udp dport 8472 @th,96,24 0x1 ip saddr != @vteps meta l4proto @keeper counter drop; }"
    );
    let peers: Vec<_> = plan.desired.nft_elements.iter().map(|row| row.address.to_string()).collect();
    assert_eq!(peers, ["192.168.100.12", "fd00:100::12"]);
    let mut chains = plan.desired.nft_chains.iter().filter(|row| row.chain == NftChainName::Vxlan);
    let of_ipv6 = chains.find(|row| row.family == Family::Ipv6).unwrap();
    let last = of_ipv6.rules.last().map(ToString::to_string);
    let fragment = "udp dport 8472 ip6 saddr != @vteps exthdr frag exists meta l4proto @keeper counter drop";
    assert_eq!(last.as_deref(), Some(fragment), "a fragment may lack the VNI");
}

/// Rules that nobody keeps expire, so a daemon that leaves them to another one must not keep them.
#[test]
fn rules_are_kept_only_by_the_daemon_that_plans_to_drop() {
    let case = |filter| Case { filter, ..Case::new(FirewallOptions::default()) };
    let kept = |filter| case(filter).plan().kept();
    assert_eq!([SourceFilter::Off, SourceFilter::Count].map(kept), [vec![], vec![]]);
    let drop = case(SourceFilter::Drop);
    assert_eq!(drop.plan().kept(), Family::ALL);
    let every = drop.plan().desired.nft_chains.iter().all(|chain| {
        chain.is_kept()
            && chain
                .rules
                .iter()
                .all(|rule| (rule.verdict == RuleVerdict::Drop) == rule.matches.contains(&Match::Kept))
    });
    assert!(every, "{:#?}", drop.plan().desired.nft_chains);
    for keeper in [FirewallKeeper::Other("daemon 7".into()), FirewallKeeper::Unknown("no lock".into())] {
        assert_eq!(Case { keeper, ..drop.clone() }.plan().kept(), []);
    }
    let no_nft = FirewallFacts { no_nft: Some("no".into()), ..FirewallFacts::default() };
    assert_eq!(Case { facts: no_nft, ..drop }.plan().kept(), []);
}

/// Returns the IPv4 rules of the chain that checks packets from pods.
fn pod_rules(plan: &Plan) -> Vec<String> {
    let mut chains = plan.desired.nft_chains.iter();
    let chain = chains.find(|row| row.chain == NftChainName::VxlanPods && row.family == Family::Ipv4);
    chain.map(|chain| chain.rules.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

#[test]
fn packets_of_pods_are_checked_with_or_without_known_peers() {
    let case = |filter| Case { filter, ..Case::new(FirewallOptions::default()) };
    let tunnel = "udp dport 8472 @th,96,24 0x1";
    let pods = format!("ip saddr 10.244.0.0/16 {tunnel}");
    let others = format!("{tunnel} ip saddr != @vteps ip daddr @vteps");
    let rules = |of_pods, of_others| {
        let recorded = "update @strangers { ip saddr counter }";
        [
            format!("{pods} {recorded}"),
            format!("{pods} {of_pods}"),
            format!("{pods} return"),
            format!("{others} {recorded}"),
            format!("{others} {of_others}"),
        ]
    };
    let drop = "meta l4proto @keeper counter drop";
    // Others are unknown senders, so only a reliable list of peers decides about them.
    for (leases, of_others) in [
        (Leases::Unknown, "counter"),
        (Leases::Remembered(Vec::new().into()), "counter"),
        (case(SourceFilter::Drop).leases, drop),
    ] {
        let with = |filter| pod_rules(&Case { leases: leases.clone(), ..case(filter) }.plan());
        assert_eq!(with(SourceFilter::Drop), rules(drop, of_others));
        assert_eq!(with(SourceFilter::Count), rules("counter", "counter"));
        assert!(with(SourceFilter::Off).is_empty());
    }
}

#[test]
fn a_rule_that_cannot_be_judged_ends_the_claim_that_iptables_refuses_nothing() {
    let reason = |unclear| {
        let case = Case { facts: FirewallFacts { unclear, ..both() }, ..Case::new(ALL) };
        case.plan().firewall.choice.unwrap().reason
    };
    assert!(reason(false).contains("refuses no forwarded packets"), "{}", reason(false));
    assert!(!reason(true).contains("refuses no forwarded packets"), "{}", reason(true));
}

#[test]
fn a_node_inside_the_network_is_no_pod() {
    let addresses: [IpAddr; 3] =
        ["10.244.200.9", "10.244.50.9", "10.244.3.9"].map(|address| address.parse().unwrap());
    let unknown_senders = addresses.map(|address| UnknownSender { address, packets: 1 }).into();
    let facts = FirewallFacts { unknown_senders, ..FirewallFacts::default() };
    let range =
        |first: &str, last: &str| Range { first: first.parse().unwrap(), last: last.parse().unwrap() };
    let leasable = vec![range("10.244.10.0", "10.244.99.255")];
    let case = Case { filter: SourceFilter::Drop, facts, leasable, ..Case::new(FirewallOptions::default()) };
    let plan = case.plan();
    let [node, pod, own] = addresses;
    for fault in [FirewallFault::Stranger(node), FirewallFault::PodSender(pod), FirewallFault::PodSender(own)]
    {
        assert!(faults(&plan).contains(&&fault), "{fault:?}");
    }
    let sources = |plan: &Plan| {
        let source = |rule: &String| rule.split_once(" udp").map(|(source, _)| source.to_owned());
        let mut sources: Vec<String> = pod_rules(plan).iter().filter_map(source).collect();
        sources.dedup();
        sources
    };
    assert_eq!(sources(&plan), ["ip saddr 10.244.10.0-10.244.99.255", "ip saddr 10.244.3.0/24"]);
    for (first, last, pods) in [
        ("10.244.1.0", "10.244.255.255", "ip saddr 10.244.0.0/16"),
        ("10.244.0.0", "10.244.127.255", "ip saddr 10.244.0.0/17"),
    ] {
        let leasable = vec![range(first, last)];
        assert_eq!(sources(&Case { leasable, ..case.clone() }.plan()), [pods], "{first} to {last}");
    }
}

/// Ports of peers are checked only if no other service uses them, and only the most frequent ones. A lease must not cause
/// packets of other services to be dropped.
#[test]
fn peer_ports_are_filtered_unless_other_services_use_them() {
    let lease = |third: u16, port: u16| {
        let value = format!(
            r#"{{"PublicIP":"192.0.2.{third}","BackendType":"vxlan","BackendData":{{"VNI":1,"Port":{port},"VtepMAC":"42:00:00:00:01:{third:02x}"}}}}"#
        );
        Lease::parse(&format!("10.244.{third}.0-24"), value.as_bytes(), 1).unwrap()
    };
    let ports = |leases: Vec<Lease>| {
        let case = Case {
            filter: SourceFilter::Drop,
            leases: Leases::Listed(leases.into()),
            ..Case::new(FirewallOptions::default())
        };
        let rules = pod_rules(&case.plan());
        let port = |rule: &String| rule.split("dport ").nth(1)?.split(' ').next()?.parse::<u16>().ok();
        let mut ports: Vec<u16> = rules.iter().filter_map(port).collect();
        ports.dedup();
        ports
    };
    assert_eq!(ports(vec![lease(20, 53), lease(21, 1023), lease(22, 4790)]), [8472, 4790]);
    let mut flood: Vec<Lease> = (50..150).map(|third| lease(third, 2000 + third)).collect();
    flood.extend([lease(20, 4790), lease(21, 4790)]);
    let found = ports(flood);
    assert_eq!((found.len(), found[0], found[1]), (9, 8472, 4790));
    // Smaller ports of younger leases do not push out the port of a lone peer.
    let mut young: Vec<Lease> =
        (50..60).map(|third| Lease { born: 2, ..lease(third, 1024 + third) }).collect();
    young.push(lease(20, 4790));
    assert_eq!(ports(young)[..2], [8472, 4790]);
}

#[test]
fn a_pod_among_unknown_senders_is_reported_as_a_pod() {
    let pod = "10.244.3.7".parse().unwrap();
    let facts = FirewallFacts { unknown_senders: vec![UnknownSender { address: pod, packets: 3 }], ..both() };
    let plan = Case { facts, filter: SourceFilter::Count, ..Case::new(FirewallOptions::default()) }.plan();
    assert_eq!(faults(&plan), [&FirewallFault::PodSender(pod)]);
}

#[test]
fn unknown_senders_are_reported_by_address() {
    let address = [203, 0, 113, 9].into();
    let peer = [192, 168, 100, 12].into();
    let unknown_senders = |count: u8| {
        let few = (0..count).map(|at| UnknownSender { address: [198, 51, 100, at].into(), packets: 1 });
        few.chain([address, peer].map(|address| UnknownSender { address, packets: 3 })).collect::<Vec<_>>()
    };
    let facts = FirewallFacts { unknown_senders: unknown_senders(0), ..both() };
    let plan = Case { facts, filter: SourceFilter::Count, ..Case::new(FirewallOptions::default()) }.plan();
    assert_eq!(faults(&plan), [&FirewallFault::Stranger(address)]);
    assert_eq!(plan.firewall.unknown_senders, [UnknownSender { address, packets: 3 }]);
    let facts = FirewallFacts { unknown_senders: unknown_senders(200), ..both() };
    let named = Case { facts, ..Case::new(FirewallOptions::default()) }.plan().firewall.unknown_senders;
    assert_eq!((named.len(), named[0].address), (16, address), "the loudest first");
}

#[test]
fn foreign_jumps_to_our_chains_stay_foreign() {
    let ours = |rule| plan::state::iptables::is_ours(IptablesTable::Filter, rule);
    assert!(
        ours("-m comment --comment \"flanneld forward\" -j FLANNEL-FWD") && ours("-i eth0 -g FLANNEL-FWD")
    );
    assert!(ours("-s 10.1.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT"));
    assert!(!ours("-m comment --comment \"above -j FLANNEL-FWD please\" -j DROP"));
    assert!(!ours("-m comment --comment \"like flanneld forward\" -j ACCEPT") && !ours("-j FLANNEL-FWD-2"));
}

#[test]
fn a_set_is_deleted_with_its_chain_and_not_per_element() {
    let plan = Case { filter: SourceFilter::Count, ..Case::new(ALL) }.plan();
    let Plan { desired: observed, owned, .. } = plan;
    let owned = Owned { sweep: Sweep::LeftOvers, ..owned };
    let texts =
        |ops: Vec<Op>| ops.iter().map(|op| op.to_string().split(" {").next().unwrap().into()).collect();
    let filters = [
        "- nft chain ip flannel-ipv4 vxlan",
        "- nft chain ip flannel-ipv4 vxlan-pods",
        "- nft chain ip6 flannel-ipv6 vxlan",
        "- nft chain ip6 flannel-ipv6 vxlan-pods",
    ];
    let off: Vec<String> = texts(plan::diff(&Case::new(ALL).plan().desired, &observed, &owned));
    assert!(
        off.iter().all(|op| !op.contains("element")) && filters.iter().all(|op| off.contains(&(*op).into()))
    );
    let devices: Vec<_> = observed.links.iter().map(|link| link.name).collect();
    let handed: Vec<String> = texts(plan::hand_over(&observed, &owned, &devices));
    assert_eq!(handed, filters, "flannel has no such chain, and all else is its own");
}
