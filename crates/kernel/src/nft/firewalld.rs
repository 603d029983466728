//! Reads from firewalld's own table which traffic it accepts: enough to tell if it was configured for us.

use ipnet::IpNet;
use plan::underlay::Firewalld;

use crate::command;

/// Name of firewalld's table in nft(8).
pub(super) const TABLE: &str = "inet firewalld";

/// Reads what firewalld accepts; `None` if its table cannot be read.
pub(super) fn read() -> Option<Firewalld> {
    let text = command::run(super::NFT, &["-n", "list", "table", "inet", "firewalld"], "").ok()?;
    Some(parse(&text))
}

fn parse(text: &str) -> Firewalld {
    let mut let_through = Firewalld::default();
    for line in text.lines() {
        let words: Vec<&str> =
            line.split([' ', '\t', ',', '{', '}']).filter(|word| !word.is_empty()).collect();
        let behind = |first: &str, second: &str| {
            let at = words.windows(2).position(|pair| pair == [first, second]);
            at.into_iter().flat_map(|at| words[at + 2..].iter())
        };
        if words.contains(&"accept") {
            let_through.ports.extend(behind("udp", "dport").map_while(|word| range(word)).flatten());
        }
        if words.last().is_some_and(|word| word.ends_with("_trusted")) {
            let sources = ["ip", "ip6"].into_iter().flat_map(|family| behind(family, "saddr"));
            let_through.sources.extend(sources.filter_map(|word| word.parse::<IpNet>().ok()));
        }
    }
    let_through
}

/// Parses a port or a range of ports, such as `8472` or `8000-9000`.
fn range(word: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table that firewalld 1.3 writes.
    const TEXT: &str = "table inet firewalld { # progname firewalld
\tchain filter_FORWARD_POLICIES_pre {
\t}
\tchain filter_INPUT_ZONES {
\t\tip saddr 10.244.0.0/16 goto filter_IN_trusted
\t\tip6 saddr fd00:244::/48 goto filter_IN_trusted
\t\tip saddr 10.9.0.0/16 goto filter_IN_public
\t\tgoto filter_IN_public
\t}
\tchain filter_IN_public_allow {
\t\ttcp dport 22 accept
\t\tudp dport 8472 accept
\t\tudp dport { 67, 51820-51821 } ct state { 0x1, 0x40 } accept
\t}
\tchain filter_IN_public_deny {
\t\tudp dport 4789 drop
\t}
}
";

    #[test]
    fn ports_and_sources_are_found() {
        let told = parse(TEXT);
        assert_eq!(told.ports, [8472, 67, 51820, 51821]);
        let sources: Vec<String> = told.sources.iter().map(ToString::to_string).collect();
        assert_eq!(sources, ["10.244.0.0/16", "fd00:244::/48"]);
        assert_eq!(parse(""), Firewalld::default());
    }
}
