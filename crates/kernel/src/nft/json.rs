//! Parses the output of `nft -j list table` into rows. Rules of our shapes become values; other rules keep nft's words.
//! The small differences between nft 1.0.1 and later versions are all understood.

use std::net::IpAddr;

use ipnet::IpNet;
use plan::Family;
use plan::range::Range;
use plan::state::{Match, Net, NftChain, NftChainName, RuleVerdict, TrafficRule};
use serde_json::Value;

/// Returns the chains of flannel's table with their rules. The error says what cannot be read.
pub(super) fn chains(text: &str, family: Family) -> Result<Vec<NftChain>, Box<str>> {
    let listing: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let items = listing["nftables"].as_array().ok_or("it has no list of objects")?;
    let all = items.iter().filter_map(|item| item.get("chain")).map(|chain| {
        let name = chain["name"].as_str().ok_or("a chain has no name")?;
        let rules = items.iter().filter_map(|item| item.get("rule")).filter(|rule| rule["chain"] == *name);
        let chain_name = NftChainName::parse(name);
        let unknown = unlike(chain, &chain_name).map(Into::into);
        let rules = rules.map(|rule| rule_of(&rule["expr"])).collect();
        Ok(NftChain { family, chain: chain_name, rules, unknown })
    });
    all.collect()
}

/// Describes the hook and policy of a chain of ours, if they are not the desired ones.
fn unlike(chain: &Value, name: &NftChainName) -> Option<String> {
    if matches!(name, NftChainName::Other(_)) {
        return None;
    }
    let Some(kind) = chain["type"].as_str() else {
        return Some("no hook".into());
    };
    let hook = chain["hook"].as_str().unwrap_or_default();
    let has = format!("type {kind} hook {hook} priority {}", chain["prio"]);
    let policy = chain["policy"].as_str().unwrap_or("accept");
    (has != name.hook() || policy != "accept").then(|| format!("{has} policy {policy}"))
}

fn rule_of(expressions: &Value) -> TrafficRule {
    let foreign =
        || TrafficRule { matches: [].into(), verdict: RuleVerdict::Other(expressions.to_string().into()) };
    ours(expressions).unwrap_or_else(foreign)
}

fn ours(expressions: &Value) -> Option<TrafficRule> {
    let all = expressions.as_array()?;
    let conditions = all.iter().take_while(|expression| expression.get("match").is_some()).count();
    let (conditions, rest) = all.split_at(conditions);
    let matches =
        conditions.iter().map(|expression| condition(&expression["match"])).collect::<Option<_>>()?;
    Some(TrafficRule { matches, verdict: verdict(rest)? })
}

fn verdict(statements: &[Value]) -> Option<RuleVerdict> {
    let names = statements.iter().map(|statement| statement.as_object()?.iter().next());
    let names: Vec<(&str, &Value)> =
        names.map(|name| name.map(|(name, value)| (name.as_str(), value))).collect::<Option<_>>()?;
    match names[..] {
        [("return", _)] => Some(RuleVerdict::Return),
        [("accept", _)] => Some(RuleVerdict::Accept),
        [("masquerade", how)] => {
            fully_random(how).map(|fully_random| RuleVerdict::Masquerade { fully_random })
        }
        [("set", what)] => remember(what).map(RuleVerdict::Remember),
        [("counter", own)] if !own.is_string() => Some(RuleVerdict::Count),
        [("counter", own), ("drop", _)] if !own.is_string() => Some(RuleVerdict::Drop),
        _ => None,
    }
}

/// Returns true for masquerading with fully random ports; `None` for unknown options. nft prints one flag as text or as
/// a list.
fn fully_random(how: &Value) -> Option<bool> {
    let Some(options) = how.as_object() else {
        return how.is_null().then_some(false);
    };
    let flags = match options.get("flags") {
        None => &[],
        Some(Value::Array(flags)) => &flags[..],
        Some(flag) => std::slice::from_ref(flag),
    };
    let known = options.keys().all(|key| key == "flags") && flags.iter().all(|flag| flag == "fully-random");
    known.then_some(!flags.is_empty())
}

/// Decodes the statement that remembers a stranger. Older nft does not print its counter.
fn remember(what: &Value) -> Option<Family> {
    let counts = match what.get("stmt") {
        None => true,
        Some(statements) => {
            matches!(statements.as_array().map(Vec::as_slice), Some([one]) if one.get("counter").is_some())
        }
    };
    let known = what["op"] == "update" && what["set"] == "@strangers" && counts;
    address(&what["elem"], "saddr").filter(|_| known)
}

fn condition(of: &Value) -> Option<Match> {
    let (left, right) = (&of["left"], &of["right"]);
    let not = match of["op"].as_str()? {
        "==" => false,
        "!=" => true,
        _ => return None,
    };
    if right == "@vteps" {
        let sender = address(left, "saddr").filter(|_| not).map(Match::NoPeer);
        return sender.or_else(|| address(left, "daddr").filter(|_| !not).map(Match::ToPeer));
    }
    if right == "@keeper" {
        return (!not && left["meta"]["key"] == "l4proto").then_some(Match::Kept);
    }
    if left["exthdr"]["name"] == "frag" {
        return (!not && left["exthdr"]["field"].is_null() && right == true).then_some(Match::Fragment);
    }
    if let Some(family) = address(left, "saddr") {
        let net = network(right, family).map(|net| Match::Source(Net { net, not }));
        let other = || range(right).filter(|range| !not && Family::of(range.first) == family);
        return net.or_else(|| other().map(Match::SourceRange));
    }
    if let Some(family) = address(left, "daddr") {
        return network(right, family).map(|net| Match::Destination(Net { net, not }));
    }
    if not { None } else { equal(left, number(right)?) }
}

/// Returns the condition that compares `left` with a number.
fn equal(left: &Value, value: u32) -> Option<Match> {
    let payload = &left["payload"];
    if let Some(mask) = mark_mask(left) {
        Some(Match::Mark { value, mask })
    } else if payload["protocol"] == "udp" && payload["field"] == "dport" {
        value.try_into().ok().map(Match::UdpPort)
    } else if payload["base"] == "th" && payload["offset"] == 96 && payload["len"] == 24 {
        Some(Match::Vni(value))
    } else {
        None
    }
}

/// Returns the bits of the packet's mark that are compared.
fn mark_mask(left: &Value) -> Option<u32> {
    let is_mark = |value: &Value| value["meta"]["key"] == "mark";
    match left.get("&").and_then(Value::as_array).map(Vec::as_slice) {
        Some([mark, mask]) if is_mark(mark) => number(mask),
        None if is_mark(left) => Some(u32::MAX),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u32> {
    match value {
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        number => number.as_u64()?.try_into().ok(),
    }
}

/// Returns the family, if the value is the packet's address in `field`: `saddr` or `daddr`.
fn address(of: &Value, field: &str) -> Option<Family> {
    let payload = &of["payload"];
    Family::ALL.into_iter().find(|family| payload["protocol"] == family.nft() && payload["field"] == field)
}

/// Parses an address, a prefix, or a range that is a prefix.
fn network(value: &Value, family: Family) -> Option<IpNet> {
    let ip = |value: &Value| value.as_str()?.parse().ok();
    let net = if let Some(address) = ip(value) {
        IpNet::from(address)
    } else if let Some(prefix) = value.get("prefix") {
        IpNet::new(ip(&prefix["addr"])?, prefix["len"].as_u64()?.try_into().ok()?).ok()?
    } else {
        range(value)?.network()?
    };
    (Family::of(net.addr()) == family).then_some(net)
}

fn range(value: &Value) -> Option<Range> {
    let [first, last] = value["range"].as_array()?.as_slice() else {
        return None;
    };
    let ip = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    Some(Range { first: ip(first)?, last: ip(last)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of nft 1.0.6.
    const LISTING: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "ip", "name": "flannel-ipv4", "handle": 1}},
        {"set": {"family": "ip", "name": "vteps", "table": "flannel-ipv4", "type": "ipv4_addr", "handle": 2}},
        {"chain": {"family": "ip", "table": "flannel-ipv4", "name": "postrtg", "handle": 1, "type": "nat",
                   "hook": "postrouting", "prio": 100, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "flannel-ipv4", "name": "vxlan", "handle": 4, "type": "filter",
                   "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "flannel-ipv4", "name": "forward", "handle": 5}},
        {"chain": {"family": "ip", "table": "flannel-ipv4", "name": "mine", "handle": 6}},
        {"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 5, "expr": [
            {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 16384]}, "right": 16384}},
            {"return": null}]}},
        {"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "mine", "handle": 9, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}},
            {"accept": null}]}},
        {"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 7, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                       "right": {"prefix": {"addr": "10.244.0.0", "len": 16}}}},
            {"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                       "right": {"prefix": {"addr": "224.0.0.0", "len": 4}}}},
            {"masquerade": {"flags": "fully-random"}}]}},
        {"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "vxlan", "handle": 10, "comment": "hey", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 8472}},
            {"match": {"op": "==", "left": {"payload": {"base": "th", "offset": 96, "len": 24}}, "right": 1}},
            {"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@vteps"}},
            {"set": {"op": "update", "elem": {"payload": {"protocol": "ip", "field": "saddr"}}, "set": "@strangers",
                     "stmt": [{"counter": null}]}}]}}]}"#;

    #[test]
    fn a_listing_becomes_chains() {
        let chains = chains(LISTING, Family::Ipv4).unwrap();
        let told: Vec<String> = chains.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "nft chain ip flannel-ipv4 postrtg { meta mark & 0x00004000 == 0x00004000 return; \
                 ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random; }",
                "nft chain ip flannel-ipv4 vxlan { udp dport 8472 @th,96,24 0x1 ip saddr != @vteps \
                 update @strangers { ip saddr counter }; } [type filter hook input priority 0 policy drop]",
                "nft chain ip flannel-ipv4 forward { } [no hook]",
                r#"nft chain ip flannel-ipv4 mine { [{"match":{"left":{"payload":{"field":"dport","protocol":"tcp"}},"op":"==","right":22}},{"accept":null}]; }"#,
            ]
        );
    }

    /// Returns the rule of these expressions in nft's words, if it has one of our shapes.
    fn read(expressions: &str) -> Option<String> {
        let expressions: Value = serde_json::from_str(&format!("[{expressions}]")).unwrap();
        let rule = rule_of(&expressions);
        (!matches!(rule.verdict, RuleVerdict::Other(_))).then(|| rule.to_string())
    }

    #[test]
    fn all_dialects_of_nft_are_understood() {
        let mark = |mask: &str, value: &str| {
            format!(
                r#"{{"match":{{"op":"==","left":{{"&":[{{"meta":{{"key":"mark"}}}},{mask}]}},"right":{value}}}}},{{"return":null}}"#
            )
        };
        let net = |right: &str| {
            format!(
                r#"{{"match":{{"op":"==","left":{{"payload":{{"protocol":"ip","field":"saddr"}}}},"right":{right}}}}},{{"accept":null}}"#
            )
        };
        let marked = "meta mark & 0x00004000 == 0x00004000 return";
        for (expressions, words) in [
            (mark("16384", "16384"), marked),
            (mark(r#""0x4000""#, r#""0x00004000""#), marked),
            (mark(r#""16384""#, "16384"), marked),
            (
                r#"{"match":{"op":"==","left":{"meta":{"key":"mark"}},"right":16384}},{"return":null}"#.into(),
                "meta mark & 0xffffffff == 0x00004000 return",
            ),
            (net(r#""10.1.2.3""#), "ip saddr 10.1.2.3/32 accept"),
            (net(r#"{"prefix":{"addr":"10.0.0.0","len":8}}"#), "ip saddr 10.0.0.0/8 accept"),
            (net(r#"{"range":["10.0.0.0","10.127.255.255"]}"#), "ip saddr 10.0.0.0/9 accept"),
            (net(r#"{"range":["10.10.0.0","10.99.255.255"]}"#), "ip saddr 10.10.0.0-10.99.255.255 accept"),
            (
                r#"{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":"@keeper"}},{"counter":null},{"drop":null}"#
                    .into(),
                "meta l4proto @keeper counter drop",
            ),
            (
                r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"daddr"}},"right":"@vteps"}},{"counter":null}"#
                    .into(),
                "ip daddr @vteps counter",
            ),
            (
                r#"{"match":{"op":"==","left":{"exthdr":{"name":"frag"}},"right":true}},{"counter":null}"#.into(),
                "exthdr frag exists counter",
            ),
            (r#"{"masquerade":null}"#.into(), "masquerade"),
            (r#"{"masquerade":{"flags":"fully-random"}}"#.into(), "masquerade fully-random"),
            (r#"{"masquerade":{"flags":["fully-random"]}}"#.into(), "masquerade fully-random"),
            (r#"{"counter":{"packets":7,"bytes":9}}"#.into(), "counter"),
            (r#"{"counter":null},{"drop":null}"#.into(), "counter drop"),
            (
                r#"{"set":{"op":"update","elem":{"payload":{"protocol":"ip6","field":"saddr"}},"set":"@strangers"}}"#
                    .into(),
                "update @strangers { ip6 saddr counter }",
            ),
        ] {
            assert_eq!(read(&expressions).as_deref(), Some(words), "{expressions}");
        }
    }

    #[test]
    fn a_table_that_is_almost_ours_is_foreign() {
        for expressions in [
            "",
            r#"{"drop":null}"#,
            r#"{"accept":null},{"accept":null}"#,
            r#"{"counter":"named"}"#,
            r#"{"masquerade":{"flags":["fully-random","persistent"]}}"#,
            r#"{"masquerade":{"flags":"random"}}"#,
            r#"{"masquerade":{"port":1024}}"#,
            r#"{"counter":null},{"match":{"op":"==","left":{"meta":{"key":"mark"}},"right":1}}"#,
            r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":1}},{"accept":null}"#,
            r#"{"match":{"op":"<","left":{"meta":{"key":"mark"}},"right":1}},{"accept":null}"#,
            r#"{"match":{"op":"!=","left":{"meta":{"key":"mark"}},"right":1}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":1}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":65536}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"@vteps"}},{"accept":null}"#,
            r#"{"match":{"op":"!=","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"@mine"}},{"accept":null}"#,
            r#"{"match":{"op":"!=","left":{"meta":{"key":"l4proto"}},"right":"@keeper"}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"exthdr":{"name":"frag"}},"right":false}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"exthdr":{"name":"frag","field":"id"}},"right":1}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"exthdr":{"name":"hbh"}},"right":true}},{"accept":null}"#,
            r#"{"match":{"op":"!=","left":{"payload":{"protocol":"ip","field":"daddr"}},"right":"@vteps"}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"protocol"}},"right":"@keeper"}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"fd00::1"}},{"accept":null}"#,
            r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"range":["fd00::","fd00::2"]}}},{"accept":null}"#,
            r#"{"match":{"op":"!=","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"range":["10.0.0.0","10.0.0.2"]}}},{"accept":null}"#,
            r#"{"set":{"op":"add","elem":{"payload":{"protocol":"ip","field":"saddr"}},"set":"@strangers"}}"#,
            r#"{"set":{"op":"update","elem":{"payload":{"protocol":"ip","field":"daddr"}},"set":"@strangers"}}"#,
            r#"{"set":{"op":"update","elem":{"payload":{"protocol":"ip","field":"saddr"}},"set":"@strangers","stmt":[]}}"#,
            r#"{"xt":null}"#,
        ] {
            assert_eq!(read(expressions), None, "{expressions}");
        }
    }

    #[test]
    fn output_that_is_no_listing_is_an_error() {
        for text in ["", "{", "[]", "{}", r#"{"nftables":{}}"#, r#"{"nftables":[{"chain":{}}]}"#] {
            assert!(chains(text, Family::Ipv4).is_err(), "{text}");
        }
        assert_eq!(chains(r#"{"nftables":[]}"#, Family::Ipv4), Ok(vec![]));
    }
}
