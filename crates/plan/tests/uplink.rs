//! Every case of flannel-compat 3, one per line: section, enabled families, flags and result. If flannel crashes in a case, the
//! line has the words that our error contains instead.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::IpAddr;

use plan::Family;
use plan::backend::Backend;
use plan::config::Config;
use plan::underlay::{AddressFacts, LinkFacts, NextHop, RouteDetails, RouteFacts, Underlay};
use plan::uplink::{Ask, Exit, Reach, UplinkChoice, choose};

/// Interfaces in the kernel's order: name, MTU, addresses. `!` is deprecated, `~` has a lifetime, `?` is temporary.
const NODE: &str = "
    lo    65536  127.0.0.1/8 10.255.0.11/32 ::1/128
    eth0  1500   169.254.3.4/16 10.0.2.15/24 10.0.2.16/24 fe80::2/64 fd00:2::15/64
    eth1  9000   192.168.56.9/24! 192.168.56.11/24~ 192.168.56.10/24 fd00:56::a/64~? fd00:56::b/64~ fd00:56::9/64! fd00:56::11/64
    eth2  1500   192.168.57.11/24
    eth3  1500   fd00:58::11/64
    eth4  1500   fd00:59::a/64~? fd00:59::b/64~ 192.168.59.11/24~
    eth5  1500   169.254.9.9/16 fe80::9/64
    eth6  1500   192.168.61.9/24!
    flat  0      192.168.60.11/24
    wl٣   1500   192.168.62.11/24
    cni0  1450   10.244.34.1/24 fd00:244:0:34::1/64
";
const DEFAULTS: &str = "0.0.0.0/0 eth0, 0.0.0.0/0 eth1, 192.168.56.0/24 eth1, ::/0 eth0";

fn underlay(defaults: &str) -> Underlay {
    let mut underlay = Underlay::default();
    for line in NODE.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let (name, mtu) = (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap());
        let mac = Default::default();
        let (up, carrier) = (false, false);
        underlay.links.push(LinkFacts {
            name,
            kind: "veth".into(),
            mac,
            mtu,
            up,
            carrier,
            ..LinkFacts::default()
        });
        underlay.addresses.extend(words.map(|word| AddressFacts {
            link: name,
            address: word.trim_end_matches(['!', '~', '?']).parse().unwrap(),
            permanent: !word.contains('~'),
            temporary: word.contains('?'),
            deprecated: word.contains('!'),
            tentative: false,
            duplicate: false,
        }));
    }
    for (destination, link) in defaults.split(", ").filter_map(|route| route.split_once(' ')) {
        // In the table, `eth0+eth1` are two next hops, `@1.2.3.4` is the preferred source and `#100` the metric.
        let (link, metric) = link.split_once('#').unwrap_or((link, "0"));
        let (links, source) = link.split_once('@').map_or((link, None), |(link, ip)| (link, ip.parse().ok()));
        let mut hops = links.split('+').map(|link| Some(link.parse().unwrap()));
        let (gateway, link) = (None, hops.next().unwrap());
        let more = hops.map(|link| NextHop { gateway, link }).collect();
        underlay.routes.push(RouteFacts {
            destination: destination.parse().unwrap(),
            gateway,
            link,
            metric: metric.parse().unwrap(),
            details: Some(Box::new(RouteDetails { more, source, mtu: None })),
        });
    }
    underlay
}

fn config(families: &str, backend: Backend) -> Config {
    Config {
        ipv4: families.contains('4').then(|| "10.244.0.0/16".parse().unwrap()),
        ipv6: families.contains('6').then(|| "fd00:244::/48".parse().unwrap()),
        ..Config::new(backend)
    }
}

/// Parses `TARGET=LINK,SOURCE` for `--iface-can-reach`, or `TARGET=WHY` if the kernel has no route.
fn reach(value: &str) -> Reach {
    let (target, answer) = value.split_once('=').unwrap();
    let exit = match answer.split_once(',') {
        Some((link, source)) => Ok(Exit { link: link.parse().ok(), source: source.parse().ok() }),
        None => Err(answer.to_owned()),
    };
    Reach { target: target.parse().unwrap(), exit }
}

fn ask(flags: &str) -> Ask {
    let (mut ask, mut words) = (Ask::default(), flags.split_whitespace());
    while let Some(flag) = words.next() {
        let value = words.next().unwrap();
        match flag {
            "--iface" => ask.ifaces.push(value.into()),
            "--iface-regex" => ask.patterns.push(value.into()),
            "--iface-can-reach" => ask.can_reach = Some(reach(value)),
            "--public-ip" => ask.public_ip = Some(value.parse().unwrap()),
            "--public-ipv6" => ask.public_ipv6 = Some(value.parse().unwrap()),
            other => panic!("{other}"),
        }
    }
    ask
}

fn answer(families: &str, flags: &str, defaults: &str) -> Result<UplinkChoice, String> {
    let config = config(families, Backend::Vxlan(Default::default()));
    choose(&config, &underlay(defaults), &ask(flags)).map_err(|error| error.to_string())
}

/// Returns the interface and its addresses, and after `>` the addresses that are announced instead.
fn summary(UplinkChoice { uplink, .. }: &UplinkChoice) -> String {
    let own = Family::ALL.map(|family| uplink.address(family));
    let public = Family::ALL.map(|family| uplink.public(family)).into_iter().zip(own);
    let public: Vec<IpAddr> =
        public.filter(|(public, own)| public != own).filter_map(|(public, _)| public).collect();
    let text =
        |addresses: &[IpAddr]| addresses.iter().map(|address| format!(" {address}")).collect::<String>();
    let own: Vec<IpAddr> = own.into_iter().flatten().collect();
    let instead = if public.is_empty() { String::new() } else { format!(" >{}", text(&public)) };
    format!("{}{}{instead}", uplink.link, text(&own))
}

/// Cases with a result: section and case | enabled families | flags | interface and addresses > announced addresses.
const FOUND: &str = r"
    3.1 3 the default route | 4 |  | eth0 10.0.2.15
    3.1 3 public-ip finds it | 4 | --public-ip 192.168.56.11 | eth1 192.168.56.11
    3.1 3 public-ip before public-ipv6 | 4 | --public-ip 192.168.57.11 --public-ipv6 fd00:2::15 | eth2 192.168.57.11 > fd00:2::15
    3.1 3 public-ipv6 finds it | 6 | --public-ipv6 fd00:58::11 | eth3 fd00:58::11
    3.1 4 the first of the list | 4 | --iface eth1 --iface eth2 | eth1 192.168.56.11
    3.1 4 the next one after a failure | 4 | --iface eth9 --iface 203.0.113.1 --iface eth2 | eth2 192.168.57.11
    3.1 4 iface before regex | 4 | --iface-regex ^eth2$ --iface eth1 | eth1 192.168.56.11
    3.1 4 regex in order | 4 | --iface-regex ^ens --iface-regex ^eth2$ --iface-regex ^eth1$ | eth2 192.168.57.11
    3.1 4 regex before can-reach | 4 | --iface-can-reach 203.0.113.1=eth1,192.168.56.11 --iface-regex ^eth2$ | eth2 192.168.57.11
    3.1 4 can-reach last | 4 | --iface eth9 --iface-regex ^ens --iface-can-reach 203.0.113.1=eth1,192.168.56.10 | eth1 192.168.56.10
    3.1 4 a pattern that is none is passed over | 4 | --iface-regex ( --iface-regex ^eth2$ | eth2 192.168.57.11
    3.2 a IPv4 | 4 | --iface 192.168.56.10 | eth1 192.168.56.10
    3.2 a deprecated | 4 | --iface 192.168.56.9 | eth1 192.168.56.9
    3.2 a of loopback | 4 | --iface 10.255.0.11 | lo 10.255.0.11
    3.2 a IPv6 | 6 | --iface fd00:56::b | eth1 fd00:56::b
    3.2 a dual, IPv4 | 46 | --iface 192.168.56.10 | eth1 192.168.56.10 fd00:56::11
    3.2 a dual, IPv4 and public-ipv6 | 46 | --iface 192.168.56.10 --public-ipv6 fd00:56::b | eth1 192.168.56.10 fd00:56::b
    3.2 a dual, IPv6 and public-ipv6 | 46 | --iface fd00:2::15 --public-ipv6 fd00:56::b | eth1 192.168.56.11 fd00:56::b
    3.2 a dual, both public | 46 | --public-ip 192.168.56.10 --public-ipv6 fd00:56::b | eth1 192.168.56.10 fd00:56::b
    3.2 a dual, public-ipv6 alone | 46 | --public-ipv6 fd00:56::b | eth1 192.168.56.11 fd00:56::b
    3.2 b | 46 | --iface eth1 | eth1 192.168.56.11 fd00:56::11
    3.2 c IPv4, in the order of 3.3 | 4 | --iface-regex ^192\.168\.56\. | eth1 192.168.56.11
    3.2 c not the first of its addresses | 4 | --iface-regex \.16$ | eth0 10.0.2.16
    3.2 c not anchored | 4 | --iface-regex 168\.5 | eth1 192.168.56.11
    3.2 c interfaces in the kernel's order, loopback as well | 4 | --iface-regex \.11$ | lo 10.255.0.11
    3.2 c usable addresses only | 4 | --iface-regex ^127\.|\.57\. | eth2 192.168.57.11
    3.2 c an address before any name | 4 | --iface-regex eth0|\.57\. | eth2 192.168.57.11
    3.2 c IPv6 | 6 | --iface-regex ^fd00:58: | eth3 fd00:58::11
    3.2 c dual, both addresses of one interface | 46 | --iface-regex \.11$|::11$ | eth1 192.168.56.11 fd00:56::11
    3.2 c dual, IPv4 of a rejected one is forgotten | 46 | --iface-regex ^10\.0\.2\.16$|^eth1$ | eth1 192.168.56.11 fd00:56::11
    3.2 c a name | 4 | --iface-regex ^eth[1-3]$ | eth1 192.168.56.11
    3.2 c a class | 4 | --iface-regex th\d$ | eth0 10.0.2.15
    3.2 c either case | 4 | --iface-regex (?i)^ETH2 | eth2 192.168.57.11
    3.2 d | 4 | --iface-can-reach 203.0.113.1=eth1,192.168.56.10 | eth1 192.168.56.10
    3.2 d a host's address on loopback | 4 | --iface-can-reach 203.0.113.1=eth1,10.255.0.11 | eth1 10.255.0.11
    3.2 d without a source | 4 | --iface-can-reach 203.0.113.1=eth1,- | eth1 192.168.56.11
    3.2 d dual | 46 | --iface-can-reach 203.0.113.1=eth1,192.168.56.10 | eth1 192.168.56.10 fd00:56::11
    3.2 d IPv6 | 6 | --iface-can-reach 2001:db8::1=eth1,fd00:56::b | eth1 fd00:56::b
    3.2 d a target of the other family | 4 | --iface-can-reach 2001:db8::1=eth1,fd00:56::b | eth1 192.168.56.11
    3.2 e IPv6 | 6 |  | eth0 fd00:2::15
    3.2 e dual | 46 |  | eth0 10.0.2.15 fd00:2::15
    3.3 global before link-local | 4 | --iface eth0 | eth0 10.0.2.15
    3.3 not deprecated | 46 | --iface eth1 | eth1 192.168.56.11 fd00:56::11
    3.3 lasting before temporary | 6 | --iface eth4 | eth4 fd00:59::b
    3.3 deprecated is enough | 4 | --iface eth6 | eth6 192.168.61.9
    3.3 not permanent is enough | 4 | --iface eth4 | eth4 192.168.59.11
    3.3 link-local is enough | 4 | --iface eth5 | eth5 169.254.9.9
    3.4 public-ip not ours | 4 | --iface eth1 --public-ip 203.0.113.5 | eth1 192.168.56.11 > 203.0.113.5
    3.4 public-ip another one of ours | 4 | --iface eth1 --public-ip 192.168.56.10 | eth1 192.168.56.11 > 192.168.56.10
    3.4 both not ours | 46 | --iface eth1 --public-ip 203.0.113.5 --public-ipv6 2001:db8::5 | eth1 192.168.56.11 fd00:56::11 > 203.0.113.5 2001:db8::5
    3.4 public-ipv6 not ours, IPv6 only | 6 | --iface fd00:56::b --public-ipv6 2001:db8::5 | eth1 fd00:56::b > 2001:db8::5
";

/// Cases with an error, in the same columns; the last one holds words of the error.
const NOT_FOUND: &str = r"
    3.1 3 public-ip not ours, no iface | 4 | --public-ip 203.0.113.5 | --public-ip 203.0.113.5: no interface has it; name one with --iface; those with addresses are: lo (10.255.0.11), eth0 (10.0.2.15, 10.0.2.16, fd00:2::15), eth1 (
    3.1 3 public-ipv6 alone, IPv4 only | 4 | --public-ipv6 fd00:2::15 | --public-ipv6 fd00:2::15: IPv6 is off
    3.1 4 no default route instead | 4 | --iface eth9 | --iface eth9: there is no such interface; name one with --iface; those
    3.1 4 all are told | 4 | --iface eth9 --iface 203.0.113.1 --iface-regex ^ens --iface-can-reach 203.0.113.1=unreachable | --iface eth9: there is no such interface; --iface 203.0.113.1: no interface has it; --iface-regex ^ens: it matches no usable address and no name; --iface-can-reach 203.0.113.1: unreachable; name one with --iface; those
    3.2 a IPv6, IPv4 only | 4 | --iface fd00:2::15 | IPv6 is off
    3.2 a IPv4, IPv6 only | 6 | --iface 10.0.2.15 | IPv4 is off
    3.2 a dual, IPv6 alone crashes flannel | 46 | --iface fd00:56::11 | name the interface or its IPv4 address, or give --public-ipv6 too
    3.2 a dual, public-ipv6 elsewhere | 46 | --iface 192.168.56.10 --public-ipv6 fd00:2::15 | eth1 has it, but eth0 has --public-ipv6 fd00:2::15
    3.2 a dual, public-ipv6 not ours | 46 | --iface 192.168.56.10 --public-ipv6 2001:db8::5 | no interface has --public-ipv6 2001:db8::5
    3.2 b | 4 | --iface this-name-is-far-too-long | there is no such interface
    3.2 c no regular expression | 4 | --iface-regex eth[ | --iface-regex eth[: it is no regular expression: unclosed character class; name one
    3.2 c dual, IPv4 matches alone | 46 | --iface-regex ^10\.0\.2\.15$ | it matches no usable address and no name
    3.2 c a name without an address | 4 | --iface-regex ^eth3$ | eth3 has no usable IPv4 address; name one
    3.2 c a class is ASCII | 4 | --iface-regex ^wl\d$ | it matches no usable address and no name
    3.2 d no way | 4 | --iface-can-reach 203.0.113.1=unreachable | --iface-can-reach 203.0.113.1: unreachable
    3.2 d our own address | 4 | --iface-can-reach 10.0.2.15=lo,10.0.2.15 | this node's own address
    3.2 d a source of another interface | 4 | --iface-can-reach 203.0.113.1=eth1,10.0.2.15 | 10.0.2.15, which is no address of eth1
    3.3 none | 4 | --iface eth3 | eth3 has no usable IPv4 address
    3.3 dual needs both | 46 | --iface eth2 | eth2 has no usable IPv6 address, not even a link-local one: is the interface down, or is sysctl net/ipv6/conf/eth2/disable_ipv6 1?
    3.3 dual, link-local alone | 46 | --iface eth5 | eth5 has no usable IPv6 address: fe80::9 is link-local, by which no peer reaches this node; give it a global or unique local one (fd00::/8), by hand or by router advertisements, or set EnableIPv6 to false
    3.3 link-local alone | 6 | --iface eth5 | fe80::9 is link-local, by which no peer reaches this node; give it a global or unique local one (fd00::/8), by hand or by router advertisements; name one
    3.2 a link-local | 6 | --iface fe80::9 | --iface fe80::9: fe80::9 is link-local
    3.2 c link-local | 6 | --iface-regex ^fe80::9$ | it matches no usable address and no name
    3.2 d link-local source | 6 | --iface-can-reach 2001:db8::1=eth5,fe80::9 | fe80::9 is link-local
    3.4 link-local announced | 6 | --iface eth1 --public-ipv6 fe80::9 | --public-ipv6 fe80::9: fe80::9 is link-local
    3.3 loopback | 6 | --iface lo | lo has no usable IPv6 address: ::1 is a loopback address
    3.4 MTU | 4 | --iface flat | flat has an MTU of 0
    3.4 public-ip in IPv6 only | 6 | --iface eth1 --public-ip 192.168.56.11 | --public-ip 192.168.56.11: IPv4 is off
    pods' network, by name | 4 | --iface cni0 | cni0 has 10.244.34.1/24, which is a pod's address: pods' subnets are leased from 10.244.0.0 to 10.244.255.255. Set SubnetMin and SubnetMax
    pods' network, by address | 4 | --iface 10.244.34.1 | cni0 has 10.244.34.1/24, which is a pod's address
    pods' network, announced | 46 | --iface eth1 --public-ipv6 fd00:244::1 | --public-ipv6 fd00:244::1: it is a pod's address: pods' subnets are leased from fd00:244:: to fd00:244:0:ffff:
    of no node | 4 | --iface eth1 --public-ip 0.0.0.0 | --public-ip 0.0.0.0: no node can have that address
";

fn table(text: &str) -> impl Iterator<Item = [&str; 4]> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split(" | ").collect::<Vec<_>>().try_into().unwrap())
}

#[test]
fn choices_that_succeed() {
    for [section, families, flags, expected] in table(FOUND) {
        let found = answer(families, flags, DEFAULTS).unwrap_or_else(|error| panic!("{section}: {error}"));
        assert_eq!(summary(&found), expected, "{section}: {flags}");
    }
}

#[test]
fn choices_that_fail() {
    for [section, families, flags, words] in table(NOT_FOUND) {
        match answer(families, flags, DEFAULTS) {
            Ok(found) => panic!("{section}: {flags} gives {}", summary(&found)),
            Err(error) => assert!(error.contains(words), "{section}: {error}"),
        }
    }
}

#[test]
fn addresses_that_are_passed_over_are_named_with_the_reason() {
    let mut all = underlay(DEFAULTS);
    let eth3 = |facts: &&mut AddressFacts| facts.link.as_str() == "eth3";
    all.addresses.iter_mut().find(eth3).unwrap().duplicate = true;
    let found = choose(&config("6", Backend::Vxlan(Default::default())), &all, &ask("--iface eth3"));
    let error = found.unwrap_err().to_string();
    let words = "eth3 has no usable IPv6 address: fd00:58::11 is on another machine too (duplicate address detection)";
    assert!(error.contains(words), "{error}");
}

#[test]
fn the_default_route_chooses_the_uplink_or_explains_why_not() {
    for (families, defaults, expected) in [
        ("4", "192.168.56.0/24 eth1, 0.0.0.0/0 eth1, 0.0.0.0/0 eth0", "eth1 192.168.56.11"),
        (
            "4",
            "192.168.56.0/24 eth1",
            "there is no IPv4 default route; name one with --iface; those with addresses are",
        ),
        (
            "4",
            "0.0.0.0/0 eth0+eth1, 0.0.0.0/0 eth0",
            "the IPv4 default route has several next hops, which leave through eth0 and eth1; name one",
        ),
        ("4", "0.0.0.0/0 eth1+eth1", "eth1 192.168.56.11"),
        ("46", "0.0.0.0/0 eth1+eth1, ::/0 eth1+eth1+eth1", "eth1 192.168.56.11 fd00:56::11"),
        ("4", "0.0.0.0/0 eth0+eth1@10.255.0.11", "lo 10.255.0.11"),
        ("4", "0.0.0.0/0 eth0#200, 0.0.0.0/0 eth1#100", "eth1 192.168.56.11"),
        ("4", "0.0.0.0/0 eth1@192.168.56.10", "eth1 192.168.56.10"),
        ("4", "0.0.0.0/1 eth1, 128.0.0.0/1 eth1", "eth1 192.168.56.11"),
        ("4", "0.0.0.0/1 eth2, 128.0.0.0/1 eth2, 0.0.0.0/0 eth1", "eth1 192.168.56.11"),
        ("4", "0.0.0.0/1 eth1, 128.0.0.0/1 eth2", "there is no IPv4 default route"),
        ("4", "0.0.0.0/1 eth1", "there is no IPv4 default route"),
        ("6", "::/1 eth1, 8000::/1 eth1", "eth1 fd00:56::11"),
        ("46", "0.0.0.0/0 eth0", "there is no IPv6 default route"),
        (
            "46",
            "0.0.0.0/0 eth0, ::/0 eth1",
            "the IPv4 default route leaves through eth0, the IPv6 one through eth1; name one",
        ),
        ("6", "0.0.0.0/0 eth0, ::/0 eth1", "eth1 fd00:56::11"),
    ] {
        let found = answer(families, "", defaults).map_or_else(|error| error, |choice| summary(&choice));
        assert!(found.contains(expected), "{families}: {defaults}: {found}");
    }
}

#[test]
fn host_gw_rejects_a_public_ip_other_than_the_uplinks() {
    for (flags, error) in [
        ("--iface eth1 --public-ip 192.168.56.11", None),
        ("--iface 192.168.56.10 --public-ip 192.168.56.10", None),
        (
            "--iface eth1 --public-ip 192.168.56.10",
            Some("192.168.56.11 of eth1, but --public-ip is 192.168.56.10"),
        ),
        ("--iface eth1 --public-ip 203.0.113.5", Some("--public-ip is 203.0.113.5")),
        (
            "--iface eth1 --public-ipv6 2001:db8::5",
            Some("fd00:56::11 of eth1, but --public-ipv6 is 2001:db8::5"),
        ),
    ] {
        let found = choose(&config("46", Backend::HostGw), &underlay(DEFAULTS), &ask(flags));
        let found = found.err().map(|error| error.to_string());
        assert_eq!(found.is_some(), error.is_some(), "{flags}: {found:?}");
        assert!(
            error.is_none_or(|words| found.as_ref().is_some_and(|found| found.contains(words))),
            "{found:?}"
        );
    }
}

#[test]
fn each_choice_states_its_reason() {
    for (families, flags, reason) in [
        ("4", "", "the default route leaves through it, 10.0.2.15 is its best address"),
        ("46", "--iface eth1", "named by --iface eth1, 192.168.56.11 and fd00:56::11 are its best addresses"),
        ("46", "--iface 10.0.2.16", "it has --iface 10.0.2.16, fd00:2::15 is its best address"),
        (
            "46",
            "--public-ip 192.168.56.10 --public-ipv6 fd00:56::b",
            "it has --public-ip 192.168.56.10 and --public-ipv6 fd00:56::b",
        ),
        ("4", r"--iface-regex \.16$", r"--iface-regex \.16$ matches 10.0.2.16"),
        ("4", "--iface-regex eth", "--iface-regex eth matches its name, 10.0.2.15 is its best address"),
        (
            "4",
            "--iface-can-reach 203.0.113.1=eth1,192.168.56.11",
            "the kernel's route to --iface-can-reach 203.0.113.1 leaves through it",
        ),
        (
            "4",
            "--iface 10.0.2.15 --public-ip 203.0.113.5",
            "it has --iface 10.0.2.15; --public-ip 203.0.113.5 is announced in place of its own",
        ),
    ] {
        assert_eq!(answer(families, flags, DEFAULTS).unwrap().reason, reason, "{flags}");
    }
    let choice = answer("4", "--iface eth9 --iface-regex ( --iface eth1", DEFAULTS).unwrap();
    assert_eq!(
        choice.failures,
        ["--iface eth9: there is no such interface"],
        "what comes after is not tried"
    );
}

/// Returns a config with these values, whose network is an address space that nodes and pods share.
fn shared(network: &str, min: &str, max: &str) -> Config {
    let (family, prefix) = if network.contains(':') { ("IPv6", "IPv6") } else { ("", "") };
    let on = if family.is_empty() { "" } else { r#""EnableIPv4":false,"EnableIPv6":true,"# };
    let len = if family.is_empty() { 20 } else { 64 };
    let text = format!(
        r#"{{{on}"{prefix}Network":"{network}","{prefix}SubnetLen":{len},"{prefix}SubnetMin":"{min}","{prefix}SubnetMax":"{max}"}}"#
    );
    plan::netconf::NetConf::parse(text.as_bytes()).unwrap().config()
}

#[test]
fn an_uplink_address_may_not_lie_in_a_pod_subnet() {
    let one_card = |addresses: &[&str]| {
        let mut underlay = Underlay { links: vec![LinkFacts::default()], ..Underlay::default() };
        underlay.addresses.extend(addresses.iter().map(|address| AddressFacts {
            link: underlay.links[0].name,
            address: address.parse().unwrap(),
            permanent: true,
            temporary: false,
            deprecated: false,
            tentative: false,
            duplicate: false,
        }));
        underlay
    };
    let four = ("10.0.0.0/8", "10.10.0.0", "10.99.0.0");
    let six = ("fd00::/48", "fd00:0:0:1000::", "fd00:0:0:2000::");
    for ((network, min, max), addresses, expected) in [
        (four, &["10.132.0.11/20"][..], Ok("10.132.0.11")),
        (four, &["10.9.255.255/32"], Ok("10.9.255.255")),
        (four, &["10.99.16.1/20"], Ok("10.99.16.1")),
        (four, &["10.99.15.255/32"], Err("link0 has 10.99.15.255/32, which is a pod's address")),
        (
            four,
            &["10.10.0.0/32"],
            Err("pods' subnets are leased from 10.10.0.0 to 10.99.15.255. Set SubnetMin"),
        ),
        (four, &["10.99.200.11/16"], Err("link0 has 10.99.200.11/16, whose network is the pods' too")),
        (four, &["10.132.0.11/8"], Err("whose network is the pods' too")),
        (four, &["10.20.0.11/20", "10.132.0.11/20"], Ok("10.132.0.11")),
        (
            four,
            &["10.20.0.11/20", "169.254.7.7/16"],
            Err("link0 has 10.20.0.11/20, which is a pod's address"),
        ),
        (six, &["fd00:0:0:5::11/64"], Ok("fd00:0:0:5::11")),
        (six, &["fd00:0:0:2000::11/64"], Err("link0 has fd00:0:0:2000::11/64, which is a pod's address")),
        (six, &["fd00:0:0:5::11/48"], Err("whose network is the pods' too")),
        (six, &["fd00:0:0:1fff::11/64", "fe80::1/64"], Err("which is a pod's address")),
    ] {
        let config = shared(network, min, max);
        let named = Ask { ifaces: vec!["link0".into()], ..Ask::default() };
        let first = addresses[0].split_once('/').unwrap().0;
        let by_address = Ask { ifaces: vec![first.into()], ..Ask::default() };
        let found = |ask: &Ask| {
            let choice = choose(&config, &one_card(addresses), ask).map_err(|error| error.to_string())?;
            let own = Family::ALL.into_iter().find_map(|family| choice.uplink.address(family));
            Ok::<_, String>(own.unwrap().to_string())
        };
        match (found(&named), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(words)) => assert!(error.contains(words), "{addresses:?}: {error}"),
            (found, expected) => panic!("{addresses:?}: {found:?}, not {expected:?}"),
        }
        assert_eq!(found(&by_address).is_ok(), expected == Ok(first), "{addresses:?}");
    }
}

#[test]
fn addresses_are_preferred_by_history_then_route_then_network() {
    let underlay = |default: &str, addresses: &str| {
        let mut all = underlay(default);
        all.addresses.retain(|facts| facts.link.as_str() != "eth0");
        all.addresses.extend(addresses.split_whitespace().map(|word| AddressFacts {
            link: "eth0".parse().unwrap(),
            address: word.trim_end_matches(['!', '~', '?', '*', 'x']).parse().unwrap(),
            permanent: !word.contains('~'),
            temporary: word.contains('?'),
            deprecated: word.contains('!'),
            tentative: word.contains('*'),
            duplicate: word.contains('x'),
        }));
        all
    };
    for (remembered, default, addresses, expected) in [
        ("", "0.0.0.0/0 eth0", "10.0.2.100/32 10.0.2.15/24", "10.0.2.15"),
        ("", "0.0.0.0/0 eth0", "10.0.2.100/32 10.0.2.101/32", "10.0.2.100"),
        ("", "0.0.0.0/0 eth0", "10.0.2.100/24 10.0.2.15/24", "10.0.2.100"),
        ("10.0.2.15", "0.0.0.0/0 eth0", "10.0.2.100/24 10.0.2.15/24", "10.0.2.15"),
        ("10.0.2.15", "0.0.0.0/0 eth0@10.0.2.100", "10.0.2.100/24 10.0.2.15/24", "10.0.2.15"),
        ("10.0.2.15", "0.0.0.0/0 eth0", "10.0.2.100/24 10.0.2.15/32", "10.0.2.15"),
        ("10.0.2.7 10.0.2.15", "0.0.0.0/0 eth0", "10.0.2.100/24 10.0.2.15/24", "10.0.2.15"),
        ("10.0.2.100 10.0.2.15", "0.0.0.0/0 eth0", "10.0.2.15/24 10.0.2.100/24", "10.0.2.100"),
        ("", "0.0.0.0/0 eth0@10.0.2.15", "10.0.2.100/24 10.0.2.15/24", "10.0.2.15"),
        ("", "0.0.0.0/0 eth0@10.0.2.15", "10.0.2.100/24 10.0.2.15/32", "10.0.2.15"),
        ("", "::/0 eth0", "fd00:2::100/128 fd00:2::15/64~", "fd00:2::15"),
        ("", "::/0 eth0", "fd00:2::a/64! fd00:2::15/64~?", "fd00:2::15"),
        ("fd00:2::a", "::/0 eth0", "fd00:2::a/64! fd00:2::15/64~?", "fd00:2::15"),
        ("fd00:2::a", "::/0 eth0", "fd00:2::a/64! fe80::15/64", "fd00:2::a"),
        ("", "::/0 eth0", "fe80::15/64 fd00:2::a/64!", "fd00:2::a"),
        ("", "::/0 eth0", "fd00:2::a/64~ fd00:2::b/64", "fd00:2::b"),
        ("", "0.0.0.0/0 eth0", "10.0.2.15/24! 169.254.3.4/16", "10.0.2.15"),
        ("", "0.0.0.0/0 eth0", "10.0.2.15/24~ 10.0.2.100/24", "10.0.2.15"),
        ("", "::/0 eth0", "fd00:2::a/64x fd00:2::15/64?", "fd00:2::15"),
        ("", "::/0 eth0", "fd00:2::a/64* fd00:2::15/64?", "fd00:2::15"),
        ("fd00:2::a", "::/0 eth0", "fd00:2::15/64 fd00:2::a/64*", "fd00:2::a"),
        ("", "::/0 eth0", "fd00:2::a/64*", "fd00:2::a"),
    ] {
        let family = if default.starts_with(':') { "6" } else { "4" };
        let remembered = remembered.split_whitespace().map(|address| address.parse().unwrap()).collect();
        let ask = Ask { remembered, ..Ask::default() };
        let config = config(family, Backend::Vxlan(Default::default()));
        let choice = choose(&config, &underlay(default, addresses), &ask).unwrap();
        assert_eq!(summary(&choice), format!("eth0 {expected}"), "{addresses}");
    }
}

#[test]
fn the_kernels_route_replaces_a_missing_default_route() {
    let outward = vec![reach("192.0.0.8=eth1,192.168.56.10")];
    let config = config("4", Backend::Vxlan(Default::default()));
    let found = |defaults: &str| {
        let underlay = underlay(defaults);
        let ask = Ask { outward: outward.clone(), ..Ask::default() };
        (
            plan::uplink::without_default(&config, &underlay),
            summary(&choose(&config, &underlay, &ask).unwrap()),
        )
    };
    assert_eq!(found("192.168.57.0/24 eth2"), (vec![Family::Ipv4], "eth1 192.168.56.11".into()));
    assert_eq!(found(DEFAULTS), (vec![], "eth0 10.0.2.15".into()));
}
