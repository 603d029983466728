//! Judges rules in the format of iptables-save(8). The packets in question are those between two pods, or new packets
//! of any sender. A rule that only some of these packets meet counts as a deliberate policy, not as a refusal.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use plan::passage::{Leg, Packet, Payload};
use plan::state::IptablesTable;
use plan::state::iptables::is_ours;
use plan::{Family, LinkName};

use crate::walk::{Chains, Fate, Mark, Outcome, Truth, Verdict, Walk, walk};

/// Modules whose conditions hold for a part of all packets.
const PARTIAL_MODULES: [&str; 31] = [
    "tcp",
    "udp",
    "udplite",
    "icmp",
    "icmp6",
    "sctp",
    "dccp",
    "esp",
    "ah",
    "multiport",
    "limit",
    "hashlimit",
    "statistic",
    "time",
    "length",
    "ttl",
    "hl",
    "ecn",
    "dscp",
    "tos",
    "connlimit",
    "string",
    "physdev",
    "recent",
    "connbytes",
    "quota",
    "cpu",
    "mac",
    "helper",
    "tcpmss",
    "osf",
];
/// Modules that have no condition without an option.
const SILENT: [&str; 15] = [
    "comment",
    "conntrack",
    "state",
    "addrtype",
    "mark",
    "set",
    "iprange",
    "rpfilter",
    "physdev",
    "pkttype",
    "tcp",
    "udp",
    "multiport",
    "icmp",
    "icmp6",
];
/// Options whose value is any text.
const FREE_TEXT: [&str; 2] = ["--comment", "--string"];
/// Targets that hand the packet to a program, or change its path.
const DIVERTING_TARGETS: [&str; 9] =
    ["QUEUE", "NFQUEUE", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "TPROXY", "NETMAP", "SYNPROXY"];

/// Rules of the user-defined and built-in chains, by chain.
pub(super) type Rules = BTreeMap<Box<str>, Arc<[Box<str>]>>;

/// A table, as packets meet it.
struct ChainsForPacket<'a> {
    chains: &'a Rules,
    /// Packet to follow. `None` is a new packet of any sender, of which nothing is known. A condition that is unclear
    /// for it does not count as met.
    packet: Option<&'a Packet>,
    /// Table whose rules of ours are skipped; `None` if they count.
    table: Option<IptablesTable>,
}

impl Chains for ChainsForPacket<'_> {
    type Rule = Box<str>;
    type Error = Infallible;

    fn rules(&mut self, chain: &str) -> Result<Arc<[Box<str>]>, Infallible> {
        Ok(self.chains.get(chain).cloned().unwrap_or_else(|| Arc::from([])))
    }

    fn evaluate(&mut self, rule: &Box<str>, mark: Mark) -> Result<(Truth, Verdict, Mark), Infallible> {
        if self.table.is_some_and(|table| is_ours(table, rule)) {
            return Ok((Truth::Never, Verdict::Continue, mark));
        }
        let (truth, verdict, mark) = evaluate(rule, self.packet, mark, self.chains);
        Ok((truth.for_packet(self.packet), verdict, mark))
    }

    fn name(&self, chain: &str, rule: &Box<str>) -> Box<str> {
        format!("-A {chain} {rule}").into()
    }
}

/// Returns the position in `chain` of the first foreign rule that refuses every packet, with its text. A jump counts if
/// all packets are refused behind it.
pub(super) fn refusal(chains: &Rules, table: IptablesTable, chain: &str) -> Option<(usize, Box<str>)> {
    let mut meeting = ChainsForPacket { chains, packet: None, table: Some(table) };
    let mut walk = Walk::new(&mut meeting, None);
    let rules = chains.get(chain)?.clone();
    for (place, rule) in rules.iter().enumerate() {
        let Ok(fate) = walk.rule(chain, rule);
        match fate {
            Fate::Refused(deciding) if *deciding == *walk.chains.name(chain, rule) => {
                return Some((place, rule.clone()));
            }
            Fate::Refused(deciding) => return Some((place, format!("{rule} ({deciding})").into())),
            Fate::Passes => return None,
            Fate::Falls | Fate::Unclear => {}
        }
    }
    None
}

/// Returns what becomes of that packet in the built-in `chain` with that policy, unless the policy is to accept. Our own
/// rules count, too. `mark` is the packet's mark before and after.
pub(super) fn refuses(
    chains: &Rules,
    (chain, policy): (&str, Option<&str>),
    packet: &Packet,
    mark: &mut Mark,
    undone: impl Fn(&str) -> bool,
) -> Outcome {
    let mut meeting = ChainsForPacket { chains, packet: Some(packet), table: None };
    let Ok(outcome) = walk(&mut meeting, chain, policy, mark, undone);
    outcome
}

/// Returns the target of a rule, for a jump or a goto.
pub(super) fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ').rev();
    let mut next = words.next()?;
    for word in words {
        if ["-j", "-g"].contains(&word) {
            return Some(next);
        }
        next = word;
    }
    None
}

fn evaluate(rule: &str, packet: Option<&Packet>, mark: Mark, chains: &Rules) -> (Truth, Verdict, Mark) {
    let words = words(rule);
    let (mut truth, mut not, mut module, mut listed) = (Truth::Always, false, "", false);
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        if word == "!" {
            not = true;
            continue;
        }
        if word == "-j" || word == "-g" {
            let name = words.next().unwrap_or_default();
            let verdict = verdict(name, word == "-g", chains);
            // A list of addresses to refuse is a policy.
            let part = listed && verdict == Verdict::Refuse;
            return (if part { truth.and(Truth::Partly) } else { truth }, verdict, marked(name, words, mark));
        }
        // An option has all words up to the next option as values.
        let mut value = "";
        // Free text may look like an option.
        if FREE_TEXT.contains(&word) {
            value = words.next().unwrap_or_default();
        }
        while let Some(more) = words.next_if(|next| !next.starts_with('-') && *next != "!") {
            value = more;
        }
        if word == "-m" {
            module = value;
            truth = truth.and(if SILENT.contains(&module) { Truth::Always } else { of_module(module) });
        } else {
            listed |= word == "--match-set" && !not;
            let holds = match (module, word, mark) {
                ("mark", "--mark", Some(mark)) => {
                    masked(value).map_or(Truth::Unclear, |(value, mask)| Truth::of(mark & mask == value))
                }
                _ => condition(word, value, module, packet),
            };
            truth = truth.and(if not { holds.not() } else { holds });
        }
        not = false;
    }
    (truth, Verdict::Continue, mark)
}

/// Returns the mark of a packet after a target with these options. A connection that is new has no mark of its own.
fn marked<'a>(target: &str, mut options: impl Iterator<Item = &'a str>, mark: Mark) -> Mark {
    match (target, options.next()) {
        ("MARK", Some("--set-xmark")) => {
            let (value, mask) = masked(options.next()?)?;
            if mask == u32::MAX { Some(value) } else { Some(mark? & !mask ^ value) }
        }
        ("CONNMARK", Some("--save-mark")) => mark,
        ("CONNMARK", Some("--restore-mark")) => mark.filter(|mark| *mark == 0),
        ("MARK" | "CONNMARK", _) => None,
        _ => mark,
    }
}

/// Decodes a mark with its mask, such as `0x4000/0x4000`.
fn masked(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    Some((number(value)?, number(mask)?))
}

fn of_module(module: &str) -> Truth {
    if PARTIAL_MODULES.contains(&module) { Truth::Partly } else { Truth::Unclear }
}

fn condition(option: &str, value: &str, module: &str, packet: Option<&Packet>) -> Truth {
    let known = |holds: fn(&Packet, &str) -> Option<bool>| match packet.map(|packet| holds(packet, value)) {
        None => Truth::Partly,
        Some(holds) => holds.map_or(Truth::Unclear, Truth::of),
    };
    match option {
        "--comment" => Truth::Always,
        "--ctstate" | "--state" => {
            let is = if packet.is_some_and(Packet::is_reply) { "ESTABLISHED" } else { "NEW" };
            Truth::of(value.split(',').any(|state| state == is))
        }
        "-s" => known(|packet, net| within(packet.source, net)),
        "-d" => known(|packet, net| within(packet.destination, net)),
        // A packet that the node itself sends or receives has one device.
        "-i" => known(|packet, name| Some(packet.leg() != Leg::Sent && is_device(packet.inbound, name))),
        "-o" => known(|packet, name| Some(packet.leg() != Leg::Received && is_device(packet.outbound, name))),
        "-p" => match packet.and_then(Packet::protocol) {
            None => Truth::Partly,
            Some((name, number)) => Truth::of(value == name || value == number.to_string()),
        },
        "-f" | "--ctstatus" => Truth::Partly,
        "--ctdir" => known(|packet, direction| Some((direction == "REPLY") == packet.is_reply())),
        "--src-range" => known(|packet, range| between(packet.source, range)),
        "--dst-range" => known(|packet, range| between(packet.destination, range)),
        "--dport" | "--dports" => match packet.map(|packet| packet.payload) {
            Some(Payload::Tunnel(port)) => Truth::of(value.split(',').any(|ports| includes(ports, port))),
            _ => Truth::Partly,
        },
        "--icmp-type" | "--icmpv6-type" => {
            match packet.map(|packet| (packet.payload, Family::of(packet.source))) {
                Some((Payload::Echo(half), family)) => Truth::of(is_type(value, half.number(family))),
                _ => Truth::Partly,
            }
        }
        "--dst-type" | "--src-type" => {
            let leg = if option == "--dst-type" { Leg::Received } else { Leg::Sent };
            let local = packet.is_some_and(|packet| packet.leg() == leg);
            Truth::of(value.split(',').any(|kind| kind == if local { "LOCAL" } else { "UNICAST" }))
        }
        "--pkt-type" => Truth::of(value == "unicast"),
        // Packets between nodes are routed, and another warning says where the route back is missing.
        "--physdev-is-bridged" => Truth::Never,
        _ if module == "rpfilter" => Truth::of(option != "--invert"),
        _ => of_module(module),
    }
}

fn within(address: IpAddr, net: &str) -> Option<bool> {
    let net = net.parse::<IpNet>().ok().or_else(|| net.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(net.contains(&address))
}

/// Returns true if the address lies in a range such as `10.244.0.0-10.244.255.255`.
fn between(address: IpAddr, range: &str) -> Option<bool> {
    let (first, last) = range.split_once('-')?;
    let [first, last]: [IpAddr; 2] = [first.parse().ok()?, last.parse().ok()?];
    Some(first <= address && address <= last)
}

/// Returns true if the port is one of these, such as `53` or `8000:9000`.
fn includes(ports: &str, port: u16) -> bool {
    let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
    let [first, last] = [first, last].map(|port| port.parse::<u16>().ok());
    first.is_some_and(|first| first <= port) && last.is_some_and(|last| port <= last)
}

/// Returns true if the ICMP type is that one, such as `8` or `8/0`. An echo has code 0.
fn is_type(value: &str, number: u8) -> bool {
    let (kind, code) = value.split_once('/').unwrap_or((value, "0"));
    value == "any" || (kind.parse() == Ok(number) && code == "0")
}

/// Returns true if `name` matches the device. A name that ends in `+` matches every device with that prefix.
fn is_device(link: LinkName, name: &str) -> bool {
    name.strip_suffix('+').map_or(link.as_str() == name, |prefix| link.as_str().starts_with(prefix))
}

fn verdict(target: &str, goes: bool, chains: &Rules) -> Verdict {
    match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Refuse,
        "RETURN" => Verdict::Return,
        _ if DIVERTING_TARGETS.contains(&target) => Verdict::Stop,
        chain if chains.contains_key(chain) && goes => Verdict::Goto(chain.into()),
        chain if chains.contains_key(chain) => Verdict::Jump(chain.into()),
        _ => Verdict::Continue,
    }
}

/// Splits a rule into its words. iptables-save(8) puts them in double quotes where needed, with a backslash before
/// special characters.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
    let (mut quoted, mut letters) = (false, rule.chars());
    while let Some(letter) = letters.next() {
        match letter {
            ' ' if !quoted => words.extend(word.take()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(letters.next()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use plan::underlay::Uncertainty;

    use super::*;

    #[test]
    fn words_are_split_as_they_were_written() {
        let rule = r#"-m comment --comment "a \"b\" c\\d \'e\'" --x "" -j DROP"#;
        assert_eq!(words(rule), ["-m", "comment", "--comment", r#"a "b" c\d 'e'"#, "--x", "", "-j", "DROP"]);
        assert!(words("").is_empty());
    }

    fn rules(lines: &[&str]) -> Rules {
        let mut chains: BTreeMap<Box<str>, Vec<Box<str>>> = BTreeMap::new();
        for line in lines {
            let (chain, rule) = line.split_once(' ').unwrap_or((line, ""));
            let rules = chains.entry(chain.into()).or_default();
            rules.extend((!rule.is_empty()).then(|| rule.into()));
        }
        chains.into_iter().map(|(chain, rules)| (chain, rules.into())).collect()
    }

    fn refuses_all(rule: &str) -> bool {
        let chains = rules(&[&format!("FORWARD {rule}"), "REFUSED", "KUBE-FORWARD"]);
        refusal(&chains, IptablesTable::Filter, "FORWARD").is_some()
    }

    #[test]
    fn a_jump_refuses_if_its_chain_refuses_all_packets() {
        let first = |lines: &[&str]| {
            refusal(&rules(lines), IptablesTable::Filter, "FORWARD")
                .map(|(place, words)| (place, words.to_string()))
        };
        let logging = ["LOGGING -m limit --limit 2/min -j LOG --log-prefix \"no: \"", "LOGGING -j DROP"];
        assert_eq!(
            first(&[&logging[..], &["FORWARD -i lo -j ACCEPT", "FORWARD -j LOGGING"]].concat()),
            Some((1, "-j LOGGING (-A LOGGING -j DROP)".into()))
        );
        assert_eq!(first(&[&logging[..], &["FORWARD -i eth0 -j LOGGING"]].concat()), None);
        assert_eq!(
            first(&[
                "A -m conntrack --ctstate NEW -g B",
                "B -s 192.0.2.0/24 -j RETURN",
                "B -j REJECT",
                "FORWARD -j A"
            ]),
            Some((0, "-j A (-A B -j REJECT)".into()))
        );
        assert_eq!(first(&["A -j RETURN", "A -j DROP", "FORWARD -j A"]), None);
        assert_eq!(first(&["A -j ACCEPT", "FORWARD -g A", "FORWARD -j DROP"]), None);
        assert_eq!(first(&["A -j A", "FORWARD -j A"]), None, "a circle ends");
        assert_eq!(
            first(&["FORWARD -m set --match-set a src -j ACCEPT", "FORWARD -j DROP"]).map(|first| first.0),
            Some(1)
        );
        let ours = "FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD";
        assert_eq!(first(&["FLANNEL-FWD -j ACCEPT", ours, "FORWARD -j DROP"]).map(|first| first.0), Some(1));
    }

    #[test]
    fn a_chain_with_many_callers_is_followed_once() {
        let jump = |at: usize| std::iter::repeat_n(format!("C{at} -j C{}", at + 1), 9);
        let mut lines: Vec<String> = (0..14).flat_map(jump).collect();
        lines.push("FORWARD -j C0".into());
        let first = |lines: &[String]| {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            refusal(&rules(&lines), IptablesTable::Filter, "FORWARD").map(|(place, _)| place)
        };
        assert_eq!(first(&lines), None);
        lines.push("C14 -j DROP".into());
        assert_eq!(first(&lines), Some(0));
    }

    #[test]
    fn a_refusal_of_pods_packets_is_found_and_other_refusals_are_not() {
        let refusal = |lines: &[&str]| outcome(lines).refusal;
        let refused = |rule: &str| -> Option<(Box<str>, Option<Uncertainty>)> {
            Some((format!("-A {rule}").into(), None))
        };
        for rule in [
            "FORWARD -d 10.244.0.0/16 ! -i cni0 -j DROP",
            "FORWARD -i flannel+ -j REJECT --reject-with icmp-port-unreachable",
            "FORWARD ! -s 192.0.2.0/24 -o cni0 -m conntrack --ctstate NEW -j DROP",
            "FORWARD -m comment --comment \"a -j b\" -j DROP",
            "FORWARD ! -o eth0 -m addrtype ! --dst-type LOCAL -j DROP",
            "FORWARD -m addrtype --dst-type UNICAST -j DROP",
            "FORWARD -m mark ! --mark 0x2 -j DROP",
            "FORWARD -m iprange --src-range 10.244.0.0-10.244.255.255 -j DROP",
            "FORWARD -m iprange ! --dst-range 192.0.2.1-192.0.2.9 -j DROP",
            "FORWARD -m conntrack --ctstate NEW --ctdir ORIGINAL -j DROP",
        ] {
            assert_eq!(refusal(&[rule]), refused(rule), "{rule}");
        }
        for rule in [
            "FORWARD -d 172.17.0.2/32 ! -i docker0 -j DROP",
            "FORWARD -m conntrack --ctstate INVALID -j DROP",
            "FORWARD -i eth0 -o eth0 -j DROP",
            "FORWARD -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset",
            "FORWARD -m set --match-set bad src -j DROP",
            "FORWARD -m physdev --physdev-is-bridged -j DROP",
            "FORWARD -m addrtype --dst-type LOCAL -j DROP",
            "FORWARD -d 10.244.1.7/32 -j DROP",
            "FORWARD -m mark --mark 0x1/0x1 -j DROP",
            "FORWARD -m iprange --src-range 10.244.3.0-10.244.3.255 -j DROP",
            "FORWARD -m rpfilter --validmark --invert -j DROP",
            "FORWARD -m recent --rcheck --seconds 60 --name bad --mask 255.255.255.255 --rsource -j DROP",
            "FORWARD -p tcp -m set ! --match-set good src -j DROP",
        ] {
            assert_eq!(refusal(&[rule]), None, "{rule}");
        }
        assert_eq!(refusal(&["FORWARD -s 10.244.0.0/16 -j ACCEPT", "FORWARD -j DROP"]), None);
        assert_eq!(refusal(&["A -i flannel.1 -j DROP", "FORWARD -j A"]), refused("A -i flannel.1 -j DROP"));
    }

    fn packet() -> Packet {
        Packet {
            source: [10, 244, 2, 254].into(),
            destination: [10, 244, 1, 254].into(),
            inbound: "flannel.1".parse().unwrap(),
            outbound: "cni0".parse().unwrap(),
            payload: Payload::Any,
        }
    }

    fn outcome(lines: &[&str]) -> Outcome {
        refuses(&rules(lines), ("FORWARD", None), &packet(), &mut Some(0), |_| false)
    }

    const DROPS: &str = "FORWARD -d 10.244.0.0/16 ! -i cni0 -j DROP";

    #[test]
    fn a_rule_that_cannot_be_judged_does_not_hide_a_refusal_behind_it() {
        for (earlier, hides) in [
            ("FORWARD $ -j ACCEPT", "FORWARD $ -j ACCEPT"),
            ("FORWARD $ -j A; A -j ACCEPT", "FORWARD $ -j A"),
            ("FORWARD -j A; A $ -j RETURN; A -j LOG", "A $ -j RETURN"),
            ("FORWARD $ -g A; A -j LOG", "FORWARD $ -g A"),
        ] {
            let [earlier, hides] = [earlier, hides].map(|text| text.replace('$', "-m set --match-set a src"));
            let lines: Vec<&str> = earlier.split("; ").chain([DROPS]).collect();
            let uncertainty = Uncertainty::Unless(format!("-A {hides}").into());
            let outcome = outcome(&lines);
            assert_eq!(outcome.refusal, Some((format!("-A {DROPS}").into(), Some(uncertainty))), "{earlier}");
            assert!(outcome.unclear);
        }
        for earlier in [
            "FORWARD -p tcp -m set --match-set a src -j ACCEPT",
            "FORWARD -i eth9 -m set --match-set a src -j ACCEPT",
            "FORWARD -m set --match-set a src -j LOG",
            "FORWARD -m set --match-set a src -j EMPTY",
        ] {
            let outcome = outcome(&["EMPTY", earlier, DROPS]);
            assert_eq!(outcome.refusal, Some((format!("-A {DROPS}").into(), None)), "{earlier}");
        }
    }

    #[test]
    fn a_refusal_that_cannot_be_judged_is_reported_as_such() {
        for (rule, others) in [
            ("FORWARD -m set ! --match-set good src -j DROP", "A"),
            ("FORWARD -m connmark --mark 0x1 -j REJECT --reject-with icmp-port-unreachable", "A"),
            ("FORWARD -m set --match-set good src -g A", "A -j DROP"),
            ("FORWARD -m connmark --mark 0x1 -j DROP", "FORWARD -j ACCEPT"),
        ] {
            let reported: Option<(Box<str>, _)> =
                Some((format!("-A {rule}").into(), Some(Uncertainty::Condition)));
            assert_eq!(outcome(&[rule, others]).refusal, reported);
        }
    }

    #[test]
    fn a_whole_protocol_is_refused_and_a_port_is_not() {
        let refused = |lines: &[&str]| {
            let packet = Packet { payload: Payload::Tcp, ..packet() };
            refuses(&rules(lines), ("FORWARD", None), &packet, &mut Some(0), |_| false).refusal.is_some()
        };
        assert!(refused(&["FORWARD -p tcp -j DROP"]));
        assert!(refused(&["A -j REJECT", "FORWARD ! -p udp -j A"]));
        assert!(!refused(&["FORWARD -p udp -j DROP"]));
        assert!(!refused(&["FORWARD -p tcp -m tcp --dport 80 -j DROP"]));
        assert!(!refused(&["FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"]));
        assert!(!refused(&["FORWARD -p tcp -m multiport --dports 25,445 -j DROP"]));
        assert!(!refused(&["FORWARD -s 10.244.0.0/16 -p tcp -j ACCEPT", "FORWARD -p tcp -j DROP"]));
    }

    #[test]
    fn a_tunnel_packet_is_judged_by_its_port_and_its_sender() {
        let refused = |lines: &[&str]| {
            let (source, destination) = ([192, 0, 2, 2].into(), [192, 0, 2, 1].into());
            let [inbound, outbound] = ["eth0", "lo"].map(|name| name.parse().unwrap());
            let payload = Payload::Tunnel(8472);
            let packet = Packet { source, destination, inbound, outbound, payload };
            let chain = ("INPUT", Some("policy DROP"));
            refuses(&rules(lines), chain, &packet, &mut Some(0), |_| false).reported(&packet).is_some()
        };
        assert!(refused(&["INPUT"]), "by the policy");
        let others = [
            "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "INPUT -p udp -m udp --dport 8473:9000 -j ACCEPT",
            "INPUT -p udp -m udp --sport 8472 -j ACCEPT",
            "INPUT -p tcp -m tcp --dport 8472 -j ACCEPT",
            "INPUT -p udp -m multiport --dports 53,123 -j ACCEPT",
            "INPUT -i cni0 -j ACCEPT",
            "INPUT -m addrtype --dst-type MULTICAST,UNICAST -j ACCEPT",
        ];
        assert!(refused(&others));
        for accept in [
            "INPUT -p udp -m udp --dport 8472 -j ACCEPT",
            "INPUT -p udp -m multiport --dports 53,8000:8500 -j ACCEPT",
            "INPUT -s 192.0.2.0/24 -j ACCEPT",
            "INPUT -i eth0 -m addrtype --dst-type LOCAL -j ACCEPT",
            "INPUT -m set --match-set nodes src -j ACCEPT",
        ] {
            assert!(!refused(&[&others[..], &[accept]].concat()), "{accept}");
        }
    }

    /// Returns true if a warning names what refuses that packet between nodes: the rules, or the policy DROP.
    fn refuses_of_nodes(ends: [&str; 2], payload: Payload, lines: &[&str]) -> bool {
        let [inbound, outbound] = ends.map(|name| name.parse().unwrap());
        let (source, destination) = ([192, 0, 2, 2].into(), [192, 0, 2, 1].into());
        let packet = Packet { source, destination, inbound, outbound, payload };
        let chain = (lines[0].split(' ').next().unwrap(), Some("policy DROP"));
        refuses(&rules(lines), chain, &packet, &mut Some(0), |_| false).reported(&packet).is_some()
    }

    #[test]
    fn an_echo_is_judged_by_its_type_and_its_state() {
        use plan::passage::Echo::{self, Reply, Request};
        let refused =
            |half: Echo, line: &str| refuses_of_nodes(["eth0", "lo"], Payload::Echo(half), &["INPUT", line]);
        for (line, expected) in [
            ("INPUT -p icmp -j ACCEPT", [false, false]),
            ("INPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT", [false, true]),
            ("INPUT -p icmp -m icmp --icmp-type 0/0 -j ACCEPT", [true, false]),
            ("INPUT -p icmp -m icmp --icmp-type 3/4 -j ACCEPT", [true, true]),
            ("INPUT -p icmp -m icmp --icmp-type any -j ACCEPT", [false, false]),
            ("INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", [true, false]),
            ("INPUT -m state --state NEW -j ACCEPT", [false, true]),
            ("INPUT -m conntrack --ctdir REPLY -j ACCEPT", [true, false]),
            ("INPUT -p udp -m udp --dport 8472 -j ACCEPT", [true, true]),
            ("INPUT -o lo -j ACCEPT", [true, true]),
            ("INPUT -p icmp -m limit --limit 1/sec -j ACCEPT", [false, false]),
        ] {
            assert_eq!([Request, Reply].map(|half| refused(half, line)), expected, "{line}");
        }
        let limited = ["INPUT -p icmp -m length --length 1000:65535 -j DROP", "INPUT -j ACCEPT"];
        assert!(!refuses_of_nodes(["eth0", "lo"], Payload::Echo(Request), &limited));
    }

    #[test]
    fn a_packet_of_this_node_is_judged_by_the_device_that_it_leaves_by() {
        let refused = |line: &str| refuses_of_nodes(["lo", "eth0"], Payload::Tunnel(8472), &["OUTPUT", line]);
        for line in [
            "OUTPUT -o lo -j ACCEPT",
            "OUTPUT -i lo -j ACCEPT",
            "OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            "OUTPUT -p udp -m udp --dport 53 -j ACCEPT",
            "OUTPUT -m addrtype --dst-type LOCAL -j ACCEPT",
        ] {
            assert!(refused(line), "{line}");
        }
        for line in [
            "OUTPUT -o eth+ -j ACCEPT",
            "OUTPUT -p udp -m udp --dport 8472 -j ACCEPT",
            "OUTPUT -m addrtype --src-type LOCAL -j ACCEPT",
            "OUTPUT -m owner --uid-owner 0 -j ACCEPT",
        ] {
            assert!(!refused(line), "{line}");
        }
    }

    #[test]
    fn a_packet_has_the_mark_that_rules_gave_it() {
        let kube = "FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT";
        let refused = |lines: &[&str]| {
            let lines = [lines, &[kube, DROPS]].concat();
            outcome(&lines).refusal.map(|(_, uncertainty)| uncertainty.is_none())
        };
        assert_eq!(refused(&[]), Some(true), "without a mark");
        assert_eq!(refused(&["FORWARD -j MARK --set-xmark 0x0/0xf0000"]), Some(true), "cleared");
        assert_eq!(refused(&["FORWARD -i eth9 -j MARK --set-xmark 0x4000/0x4000"]), Some(true), "others'");
        assert_eq!(refused(&["FORWARD -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff"]), Some(true));
        assert_eq!(refused(&["FORWARD -j MARK --set-xmark 0x4000/0x4000"]), None);
        assert_eq!(refused(&["FORWARD -j A", "A -j MARK --set-xmark 0x4000/0xffffffff"]), None);
        assert_eq!(refused(&["FORWARD -p tcp -j MARK --set-xmark 0x4000/0x4000"]), Some(false), "for a part");
        assert_eq!(refused(&["FORWARD -j CONNMARK --set-xmark 0x1/0x1"]), Some(false));
    }

    #[test]
    fn a_chain_is_followed_again_with_another_mark() {
        let marked = ["A -m mark --mark 0x1 -j DROP", "FORWARD -j A", "FORWARD -j MARK --set-xmark 0x1/0x1"];
        assert_eq!(outcome(&marked).refusal, None);
        let outcome = outcome(&[&marked[..], &["FORWARD -j A"]].concat());
        assert_eq!(outcome.refusal, Some(("-A A -m mark --mark 0x1 -j DROP".into(), None)));
    }

    #[test]
    fn a_rule_refuses_all_only_if_every_new_packet_matches() {
        for rule in [
            "-j DROP",
            "-j REJECT --reject-with icmp-host-prohibited",
            r#"-m comment --comment "-s \"10.0.0.0/8\" -j ACCEPT" -j REJECT --reject-with icmp-port-unreachable"#,
            "-m comment --comment plain -j DROP",
            r#"-m comment --comment "" -m conntrack ! --ctstate RELATED,ESTABLISHED -j REJECT"#,
            "-m state --state INVALID,NEW -j DROP",
            "-m conntrack --ctstate NEW -j DROP",
        ] {
            assert!(refuses_all(rule), "{rule}");
        }
        for rule in [
            "",
            "-j ACCEPT",
            "-j KUBE-FORWARD",
            r#"-m comment --comment "-j DROP""#,
            r#"-m comment --comment "DROP" -j RETURN"#,
            "-m conntrack --ctstate INVALID -j DROP",
            "-m conntrack ! --ctstate NEW -j DROP",
            "-m conntrack --ctstate NEW --ctdir ORIGINAL -j DROP",
            "-s 192.0.2.0/24 -j DROP",
            "! -s 192.0.2.0/24 -j DROP",
            "-d 10.244.0.0/16 -j REJECT --reject-with icmp-port-unreachable",
            "! -i lo -j DROP",
            "-o eth0 -j DROP",
            "-p tcp -j REJECT --reject-with tcp-reset",
            "-m mark --mark 0x8000/0x8000 -j DROP",
            "-m limit --limit 5/sec -j DROP",
            "-m addrtype --dst-type BROADCAST -j DROP",
            "-g REFUSED",
        ] {
            assert!(!refuses_all(rule), "{rule}");
        }
    }
}
