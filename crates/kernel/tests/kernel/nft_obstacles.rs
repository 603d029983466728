//! Tests of foreign rules that refuse packets of pods. They are found in the kernel's order; other refusals are not
//! reported.

use kernel::Kernel;
use lab::Timing::Free;
use plan::owned::Owned;
use plan::passage::{Echo, Packet, Passage, Payload};
use plan::underlay::{Manager, Obstacle, Uncertainty};

use crate::scene::*;

fn passages() -> Vec<Passage> {
    let passage = |own: &str, peer: &str, link: &str| Passage {
        own: own.parse().unwrap(),
        peer: peer.parse().unwrap(),
        link: name(link),
    };
    vec![
        passage("10.244.1.0/24", "10.244.2.0/24", "flannel.1"),
        passage("fd00:10:244:1::/64", "fd00:10:244:2::/64", "flannel-v6.1"),
    ]
}

fn obstacles() -> Vec<Obstacle> {
    let owned = Owned { firewall: true, passages: passages(), ..owned() };
    Kernel::open().unwrap().dump(&owned).unwrap().underlay.firewall.obstacles
}

#[track_caller]
fn found(ruleset: &str) -> Vec<String> {
    sh("nft flush ruleset");
    sh(&format!("nft -f - <<'N'\n{ruleset}\nN"));
    let all = obstacles();
    assert!(all.iter().all(|obstacle| obstacle.manager == Manager::Nftables), "{all:?}");
    all.iter()
        .map(|obstacle| {
            let Obstacle { family, table, chain, what, uncertainty, .. } = obstacle;
            let uncertainty = match uncertainty {
                None => String::new(),
                Some(Uncertainty::Unless(rule)) => format!(", unless {rule}"),
                Some(Uncertainty::Condition) => ", perhaps".into(),
            };
            format!("{family} {table} {chain}: {what}{uncertainty}")
        })
        .collect()
}

fn forward(rules: &str) -> String {
    format!("table inet t {{\n{rules}\n}}")
}

#[test]
fn a_refusal_of_pods_packets_is_found() {
    lab::test(Free, || {
        sh("ip link add cni0 type bridge; ip link set cni0 up");
        for (rules, words) in [
            ("chain c { type filter hook forward priority 0; policy drop; }", "policy drop"),
            ("chain c { type filter hook prerouting priority -300; policy drop; }", "policy drop"),
            ("chain c { type filter hook postrouting priority 0; oifname cni0 drop; }", "oifname \"cni0\" drop"),
            ("chain u { drop; }; chain c { type filter hook forward priority 0; goto u; }", "(chain u,"),
            ("chain c { type filter hook forward priority 0; ct state vmap { new : drop }; }", "ct state vmap"),
            ("chain c { type filter hook forward priority 0; ct state != established drop; }", "ct state"),
            ("chain c { type filter hook forward priority 0; iif cni0 drop; }", "iif \"cni0\" drop"),
            ("chain c { type filter hook forward priority 0; iifname \"cni*\" drop; }", "cni"),
            ("chain c { type filter hook forward priority 0; ip daddr 10.244.0.0-10.244.255.255 drop; }", "10.244.0.0-10.244.255.255"),
            ("chain c { type filter hook forward priority 0; ip saddr != 192.0.2.0/24 drop; }", "!= 192.0.2.0/24"),
            ("chain c { type filter hook forward priority 0; ip6 daddr & ffff:: == fd00:: drop; }", "drop"),
            (
                "map m { type ipv4_addr : verdict; flags interval; elements = { 192.0.2.0/24 : accept, 10.0.0.0/8 : drop }; };
                 chain c { type filter hook forward priority 0; ip saddr vmap @m; }",
                "vmap @m",
            ),
            (
                "set s { type ifname . ipv4_addr; flags interval; elements = { \"flannel.1\" . 10.244.0.0/16 }; };
                 chain c { type filter hook forward priority 0; iifname . ip saddr @s counter reject; }",
                "@s",
            ),
            ("chain c { type filter hook forward priority 0; policy drop; tcp dport 80 accept; meta mark 7 drop; }", "policy drop"),
            ("chain c { type filter hook forward priority 0; policy drop; meta mark 0x1 accept; }", "policy drop"),
            ("chain c { type filter hook forward priority 0; meta l4proto tcp drop; }", "meta l4proto tcp drop"),
            ("chain c { type filter hook forward priority 0; ip protocol udp drop; }", "ip protocol udp drop"),
            ("chain c { type filter hook forward priority 0; ct mark != 0x1 drop; }", "), perhaps"),
            ("chain c { type filter hook forward priority 0; policy drop; ct mark 0x1 accept; }", "policy drop, unless"),
            ("chain c { type filter hook forward priority 0; policy drop; ct mark 0x1 accept; }", "ct mark 0x00000001 accept"),
        ] {
            let found = found(&forward(rules));
            assert!(found.iter().any(|found| found.starts_with("inet t c: ") && found.contains(words)), "{rules}: {found:?}");
        }
        let netdev = "table netdev t { chain c { type filter hook ingress device flannel.1 priority 0; policy drop; }; }";
        sh("ip link add flannel.1 type veth peer name far");
        assert!(found(netdev).iter().any(|found| found == "netdev t c: policy drop"));
        let bridge =
            "table bridge t { chain c { type filter hook prerouting priority 0; ether type ip drop; }; }";
        assert!(found(bridge).iter().any(|found| found.contains("ether type ip drop")));
    });
}

/// Returns the refusals of packets between nodes by these rules.
fn found_between_nodes(rules: &str) -> Vec<String> {
    sh("nft flush ruleset");
    sh(&format!("nft -f - <<'N'\n{}\nN", forward(rules)));
    let packet = |[source, destination]: [[u8; 4]; 2], [inbound, outbound]: [&str; 2], payload| Packet {
        source: source.into(),
        destination: destination.into(),
        inbound: name(inbound),
        outbound: name(outbound),
        payload,
    };
    let (own, peer) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let payloads = [Payload::Tunnel(8472), Payload::Echo(Echo::Request), Payload::Echo(Echo::Reply)];
    let each = |payload| {
        [packet([peer, own], ["eth0", "lo"], payload), packet([own, peer], ["lo", "eth0"], payload)]
    };
    let between_nodes = payloads.into_iter().flat_map(each).collect();
    let owned = Owned { firewall: true, between_nodes, ..owned() };
    let all = Kernel::open().unwrap().dump(&owned).unwrap().underlay.firewall.obstacles;
    let said =
        |found: &Obstacle| format!("{:?} {:?} {}", found.packet.leg(), found.packet.payload, found.what);
    all.iter().map(said).collect()
}

#[test]
fn a_refusal_of_packets_between_nodes_is_found_on_their_legs() {
    lab::test(Free, || {
        sh(
            "ip link add eth0 type veth peer name wire0; ip link set eth0 up; ip addr add 192.0.2.1/24 dev eth0",
        );
        let input = |rules: &str| format!("chain c {{ type filter hook input priority 0; {rules}; }}");
        let output = |rules: &str| format!("chain c {{ type filter hook output priority 0; {rules}; }}");
        let (tunnel_in, tunnel_out) = ("Received Tunnel(8472) policy drop", "Sent Tunnel(8472) policy drop");
        let (request_in, request_out) =
            ("Received Echo(Request) policy drop", "Sent Echo(Request) policy drop");
        for (rules, expected) in [
            (input("policy drop"), &[tunnel_in, request_in][..]),
            (output("policy drop"), &[tunnel_out, request_out]),
            (input("policy drop; meta l4proto icmp accept"), &[tunnel_in]),
            (
                output("policy drop; oifname \"eth0\" udp dport 8472 accept; ct state established accept"),
                &[request_out],
            ),
            (output("policy drop; iifname \"lo\" accept; meta l4proto { icmp, udp } accept"), &[]),
            (output("policy drop; fib saddr type local accept"), &[]),
            (
                input(
                    "policy drop; icmp type { echo-request, echo-reply } accept; udp dport 8000-9000 accept",
                ),
                &[],
            ),
            (
                input("policy drop; icmp type echo-request accept; udp dport 8472 accept"),
                &["Received Echo(Reply) policy drop"],
            ),
            (input("policy drop; ct state established accept; udp dport 8472 accept"), &[request_in]),
            (
                input(
                    "policy drop; icmp type echo-request limit rate 1/second accept; ct state established accept; udp dport 8472 accept",
                ),
                &[],
            ),
            (output("policy drop; meta skuid 0 accept"), &[]),
        ] {
            assert_eq!(found_between_nodes(&rules), expected, "{rules}");
        }
        let leaves =
            "chain c { type filter hook postrouting priority 0; oifname eth0 icmp type echo-request drop; }";
        let found = found_between_nodes(leaves);
        assert!(matches!(&found[..], [one] if one.starts_with("Sent Echo(Request) the rule")), "{found:?}");
    });
}

#[test]
fn a_refusal_of_other_packets_is_not_found() {
    lab::test(Free, || {
        sh("ip link add cni0 type bridge; ip link set cni0 up");
        for rules in [
            "chain c { type filter hook input priority 0; policy drop; }",
            "chain c { type filter hook output priority 0; policy drop; }",
            "chain c { type filter hook forward priority 0; policy drop; ct state new accept; }",
            "chain c { type filter hook forward priority 0; ct state invalid drop; }",
            "chain c { type filter hook forward priority 0; ct state vmap { invalid : drop, established : accept }; }",
            "chain c { type filter hook forward priority 0; tcp dport { 25, 445 } drop; meta l4proto icmp drop; }",
            "chain c { type filter hook forward priority 0; ip daddr 10.244.1.7 drop; ip saddr 192.0.2.0/24 drop; }",
            "chain c { type filter hook forward priority 0; iifname eth0 oifname eth0 drop; }",
            "chain c { type filter hook forward priority 0; meta mark & 0x1 == 0x1 drop; fib saddr . iif oif missing drop; }",
            "chain c { type filter hook forward priority 0; limit rate over 10/second drop; }",
            "chain u { ip saddr 10.0.0.0/8 accept; ip6 saddr fd00::/8 accept; drop; }; chain c { type filter hook forward priority 0; jump u; }",
            "chain c { type filter hook forward priority 0; policy drop; iifname { cni0, flannel.1, flannel-v6.1 } accept; }",
            "chain lonely { drop; }",
            "chain p { type filter hook prerouting priority -300; meta mark set 0x7; };
             chain c { type filter hook forward priority 0; policy drop; meta mark 0x7 accept; }",
            "chain c { type filter hook forward priority 0; policy drop; meta mark set meta mark | 0x8; meta mark & 0x8 == 0x8 accept; }",
            "chain c { type filter hook prerouting priority -140; policy drop; fib saddr . mark . iif oif exists accept; }",
            "chain c { type filter hook forward priority 0; policy drop; fib daddr oifname \"cni0\" accept; fib saddr oif cni0 accept; }",
        ] {
            assert_eq!(found(&forward(rules)), [""; 0], "{rules}");
        }
        assert_eq!(
            found(
                "table inet t { flags dormant; chain c { type filter hook forward priority 0; policy drop; }; }"
            ),
            [""; 0]
        );
        assert_eq!(
            found(
                "table ip6 t { chain c { type filter hook forward priority 0; policy drop; ip6 saddr fd00:10::/32 accept; ip6 daddr fd00:10::/32 accept; }; }"
            ),
            [""; 0]
        );
    });
}
