//! What `nft -j list table` says, as rows: the shapes of our own rules become values, and all else stays in nft's words. The
//! dialects of nft 1.0.1 and later differ in small things and are all understood.

use ipnet::IpNet;
use plan::firewall::{Match, Net, NftChain, NftChainName, Rule, Verdict};
use plan::input::Family;
use serde_json::Value;

/// The chains of flannel's table with their rules. The error is what cannot be read in it.
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

/// How a chain of ours hooks in, where that is not as it should be.
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

fn rule_of(expressions: &Value) -> Rule {
    let foreign = || Rule { matches: [].into(), verdict: Verdict::Other(expressions.to_string().into()) };
    ours(expressions).unwrap_or_else(foreign)
}

fn ours(expressions: &Value) -> Option<Rule> {
    let all = expressions.as_array()?;
    let conditions = all.iter().take_while(|expression| expression.get("match").is_some()).count();
    let (conditions, rest) = all.split_at(conditions);
    let matches =
        conditions.iter().map(|expression| condition(&expression["match"])).collect::<Option<_>>()?;
    Some(Rule { matches, verdict: verdict(rest)? })
}

fn verdict(statements: &[Value]) -> Option<Verdict> {
    let names = statements.iter().map(|statement| statement.as_object()?.iter().next());
    let names: Vec<(&str, &Value)> =
        names.map(|name| name.map(|(name, value)| (name.as_str(), value))).collect::<Option<_>>()?;
    match names[..] {
        [("return", _)] => Some(Verdict::Return),
        [("accept", _)] => Some(Verdict::Accept),
        [("masquerade", how)] => fully_random(how).map(|fully_random| Verdict::Masquerade { fully_random }),
        [("set", what)] => remember(what).map(Verdict::Remember),
        [("counter", own)] if !own.is_string() => Some(Verdict::Count),
        [("counter", own), ("drop", _)] if !own.is_string() => Some(Verdict::Drop),
        _ => None,
    }
}

/// One flag is told as text or as a list.
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

/// Older nft does not tell of the counter.
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
        return address(left, "saddr").filter(|_| not).map(Match::NoPeer);
    }
    if let Some(family) = address(left, "saddr") {
        return network(right, family).map(|net| Match::Source(Net { net, not }));
    }
    if let Some(family) = address(left, "daddr") {
        return network(right, family).map(|net| Match::Destination(Net { net, not }));
    }
    if not { None } else { equal(left, number(right)?) }
}

/// What is compared with a number.
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

/// Which bits of the packet's mark are looked at.
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

/// The family of the packet's source or destination address.
fn address(of: &Value, field: &str) -> Option<Family> {
    let payload = &of["payload"];
    Family::ALL.into_iter().find(|family| payload["protocol"] == family.nft() && payload["field"] == field)
}

/// An address, a prefix, or a range that is a prefix.
fn network(value: &Value, family: Family) -> Option<IpNet> {
    let ip = |value: &Value| value.as_str()?.parse().ok();
    let net = if let Some(address) = ip(value) {
        IpNet::from(address)
    } else if let Some(prefix) = value.get("prefix") {
        IpNet::new(ip(&prefix["addr"])?, prefix["len"].as_u64()?.try_into().ok()?).ok()?
    } else {
        let [first, last] = value["range"].as_array()?.as_slice() else {
            return None;
        };
        let (first, last) = (ip(first)?, ip(last)?);
        let bits = if first.is_ipv4() { 32 } else { 128 };
        let candidates = (0..=bits).filter_map(|length| IpNet::new(first, length).ok());
        candidates.into_iter().find(|net| (net.network(), net.broadcast()) == (first, last))?
    };
    (Family::of(net.addr()) == family).then_some(net)
}
