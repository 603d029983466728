//! Foreign firewall rules, in any table, and sysctls that stop packets of pods or of nodes. Pods talk where an accept
//! rule or a sysctl of ours undoes it, and status names it where none does. Rules that refuse only other traffic are
//! not mentioned.

use lab::{Daemon, Lab, Node, Pod, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON, VXLAN, VXLAN_DUAL};
use crate::traffic::{Manager, lines, of_pod, rules};

/// Words of a warning that pods' packets are refused.
const REFUSED: &str = "this node refuses packets of pods";
/// Words of a warning that pods' packets are refused or may be.
const PERHAPS_REFUSED: &str = "packets of pods, such as from";

fn started<'a>(lab: &'a Lab, lines: &str) -> (Vec<Daemon<'a>>, Vec<Pod>) {
    lab.nodes().iter().for_each(|node| _ = node.ns.run(lines));
    let daemons = lab.start_all(FLAGS);
    (daemons, lab.pods())
}

fn talk(pods: &[Pod], why: &str, node: &Node) {
    for ip in of_pod(&pods[1]) {
        let reached = pods[0].reaches(ip, SOON);
        assert!(
            reached.is_some(),
            "{why}: {ip} is not reached: {}\n{}",
            rules(&node.ns),
            node.twill(&["status"])
        );
    }
}

/// Waits until one line of status contains all of these words.
fn says(node: &Node, words: &[&str]) {
    let mut status = String::new();
    let said = lab::until(SOON, || {
        status = node.twill(&["status"]);
        status.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    });
    assert!(
        said.is_some(),
        "{words:?} are not in one line of:\n{status}\n{}",
        node.ns.run("nft -a list ruleset")
    );
}

/// Returns the line for both families, in one of the two variants of iptables.
fn both(tool: &str, line: &str) -> String {
    let of = |program: &str| line.replace("$t", &program.replace("TOOL", tool));
    format!("{}\n{}", of("iptables-TOOL -w"), of("ip6tables-TOOL -w"))
}

#[test]
fn a_chain_that_drops_everything_is_undone_in_either_iptables() {
    lab::test(Timing::Free, || {
        for tool in ["nft", "legacy"] {
            for line in [
                "$t -N LOGGING; $t -A LOGGING -m limit --limit 2/min -j LOG; $t -A LOGGING -j DROP; $t -A FORWARD -j LOGGING",
                "$t -N A; $t -N B; $t -A B -j REJECT; $t -A A -g B; $t -A FORWARD -m conntrack --ctstate NEW -j A",
            ] {
                let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
                let (_daemons, pods) = started(&lab, &both(tool, line));
                talk(&pods, line, lab.node(1));
            }
        }
    });
}

#[test]
fn a_chain_that_begins_to_drop_while_the_daemon_runs_is_undone() {
    lab::test(Timing::Free, || {
        for tool in ["nft", "legacy"] {
            let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
            let (_daemons, pods) = started(&lab, &both(tool, "$t -N LOGGING; $t -A FORWARD -j LOGGING"));
            talk(&pods, "an empty chain", lab.node(1));
            lab.nodes().iter().for_each(|node| _ = node.ns.run(&both(tool, "$t -A LOGGING -j DROP")));
            talk(&pods, "a chain that drops", lab.node(1));
        }
    });
}

/// Native rules of nft in iptables' own table, which iptables cannot read.
const NATIVE: &str = "nft -f - <<N
table ip filter { set known { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; };
  chain FORWARD { type filter hook forward priority 0; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }; ip saddr @known accept; }; }
table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy accept;
    ct state vmap { established : accept, related : accept, invalid : drop }; counter reject; }; }
N";

#[test]
fn our_accept_stands_in_a_table_that_iptables_cannot_read() {
    lab::test(Timing::Free, || {
        for config in [VXLAN_DUAL.to_owned(), Manager::Nft.config("host-gw")] {
            let lab = cluster::lab(Topology::flat(2), &config);
            let (mut daemons, pods) = started(&lab, NATIVE);
            let node = lab.node(1);
            talk(&pods, "native rules", node);
            let list = |family: &str| node.ns.run(&format!("nft list chain {family} filter FORWARD"));
            assert_eq!(list("ip").matches("jump FLANNEL-FWD").count(), 1, "{}", list("ip"));
            let six = list("ip6");
            assert!(six.find("jump FLANNEL-FWD") < six.find("reject"), "ahead of what refuses all: {six}");
            // Removed rules of ours come back, and foreign ones stay.
            node.ns.run("nft flush chain ip filter FLANNEL-FWD");
            talk(&pods, "flushed", node);
            assert!(
                list("ip").contains("@known accept") && list("ip").contains("policy drop"),
                "{}",
                list("ip")
            );
            let idle = cluster::ops_asked(node);
            node.ns.run(&format!("kill -HUP {}", daemons[0].pid()));
            node.twill_output(&["diff"]);
            assert_eq!(cluster::ops_asked(node), idle, "nothing is written again and again");
            daemons.iter_mut().for_each(Daemon::kill9);
            let cache = format!("--cache-dir={}", node.cache_dir().display());
            node.twill(&["uninstall", &cache]);
            let left = node.ns.run("nft list ruleset");
            assert!(!left.contains("FLANNEL") && left.contains("@known accept"), "{left}");
        }
    });
}

/// Refusals that no accept rule of ours undoes, and the words that name them.
const BEYOND_US: [(&str, &[&str]); 16] = [
    ("nft 'table inet guard { chain forwards { type filter hook forward priority 10; policy drop; }; }'", &["table inet guard", "chain forwards", "policy drop"]),
    (
        "nft 'table inet guard { chain sub { ip saddr 10.0.0.0/8 counter drop; ip6 saddr fd00::/8 drop; };
           chain forwards { type filter hook forward priority -5; ct state established accept; jump sub; }; }'",
        &["table inet guard", "ip saddr 10.0.0.0/8 counter packets", "nft insert rule inet guard forwards ip saddr 10.244.0.0/16 accept"],
    ),
    (
        "nft 'table ip guard { set nets { type ipv4_addr; flags interval; elements = { 10.244.0.0/16 }; };
           chain pre { type filter hook prerouting priority -300; ip daddr @nets iifname != \"cni0\" drop; }; }'",
        &["table ip guard", "chain pre", "@nets"],
    ),
    (
        "nft 'table ip guard { map way { type ifname : verdict; elements = { \"cni0\" : drop, \"eth7\" : accept }; };
           chain forwards { type filter hook forward priority 0; iifname vmap @way; }; }'",
        &["table ip guard", "vmap @way"],
    ),
    ("iptables-nft -t raw -A PREROUTING -d 10.244.0.0/16 ! -i cni0 -j DROP", &["table raw", "PREROUTING", "-d 10.244.0.0/16 ! -i cni0 -j DROP", "iptables-nft -t raw -I PREROUTING"]),
    ("iptables-legacy -t mangle -P FORWARD DROP", &["iptables-legacy", "table mangle", "policy DROP"]),
    ("iptables-legacy -t raw -A PREROUTING -s 10.244.0.0/16 -j DROP", &["iptables-legacy", "table raw", "-s 10.244.0.0/16 -j DROP"]),
    ("iptables-nft -t mangle -N X; iptables-nft -t mangle -A X -o flannel.1 -j DROP; iptables-nft -t mangle -A POSTROUTING -j X", &["table mangle", "-A X -o flannel.1 -j DROP"]),
    ("iptables-nft -A FORWARD -i flannel.1 -j REJECT", &["table filter", "FORWARD", "-i flannel.1 -j REJECT"]),
    // kube-proxy's chain stands before the rule.
    (
        "iptables-nft -N KUBE-FORWARD; iptables-nft -A FORWARD -j KUBE-FORWARD; iptables-nft -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT;
         iptables-nft -A FORWARD -d 10.244.0.0/16 ! -i cni0 -j DROP",
        &["this node refuses", "-d 10.244.0.0/16 ! -i cni0 -j DROP"],
    ),
    (
        "nft 'table inet guard { chain forwards { type filter hook forward priority 10; policy drop; meta mark 0x1 accept; }; }'",
        &["this node refuses", "table inet guard", "policy drop"],
    ),
    (
        "nft 'table inet guard { chain forwards { type filter hook forward priority 10; policy drop; ct mark 0x1 accept; }; }'",
        &["policy drop; an earlier rule may let them pass", "ct mark 0x00000001 accept"],
    ),
    ("iptables-nft -A FORWARD -m mark ! --mark 0x2 -j DROP", &["this node refuses", "-m mark ! --mark 0x2 -j DROP"]),
    ("iptables-legacy -A FORWARD -p tcp -j DROP", &["this node refuses TCP", "-A FORWARD -p tcp -j DROP"]),
    (
        "nft 'table inet guard { chain forwards { type filter hook forward priority 10; ct mark != 0x1 drop; }; }'",
        &["this node may refuse", "ct mark != 0x00000001 drop", "whose condition this daemon cannot evaluate"],
    ),
    ("ip6tables-nft -t raw -A PREROUTING -d fd00:244::/48 -j DROP", &["IPv6", "table raw", "-d fd00:244::/48 -j DROP"]),
];

#[test]
fn a_refusal_beyond_our_accept_rules_is_named_with_the_command() {
    lab::test(Timing::Free, || {
        for (line, words) in BEYOND_US {
            let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
            let (_daemons, _pods) = started(&lab, line);
            says(lab.node(1), &[words, &[PERHAPS_REFUSED]].concat());
        }
    });
}

/// Refusals of tunnel packets by the node that should receive them, and the words that name them.
const OF_TUNNELS: [(&str, &[&str]); 4] = [
    ("iptables-nft -A INPUT -p udp --dport 8472 -j DROP", &["IPv4 INPUT chain of iptables-nft", "-A INPUT -p udp -m udp --dport 8472 -j DROP"]),
    (
        "iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables-legacy -A INPUT -i lo -j ACCEPT
         iptables-legacy -A INPUT -p icmp -j ACCEPT; iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT; iptables-legacy -P INPUT DROP",
        &["INPUT chain of iptables-legacy", "policy DROP"],
    ),
    (
        "nft 'table inet fw { chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept;
           meta l4proto { icmp, ipv6-icmp } accept; tcp dport 22 accept; }; }'",
        &["table inet fw", "policy drop", "nft insert rule inet fw in udp dport 8472 accept"],
    ),
    ("nft 'table netdev t { chain c { type filter hook ingress device eth0 priority 0; udp dport 8472 drop; }; }'", &["table netdev t", "udp dport 8472 drop"]),
];

#[test]
fn a_rule_of_this_node_that_refuses_tunnel_packets_is_named_and_its_cure_works() {
    lab::test(Timing::Free, || {
        for (line, words) in OF_TUNNELS {
            let lab = cluster::lab(Topology::flat(2), VXLAN);
            let node = lab.node(1);
            node.ns.run(line);
            let _daemons = lab.start_all(FLAGS);
            let pods = lab.pods();
            says(node, &[words, &["this node refuses the tunnel packets of its peers"]].concat());
            let status = node.twill(&["status"]);
            let (_, command) = status.split_once("Accept them ahead of it: ").unwrap();
            node.ns.run(command.lines().next().unwrap());
            assert!(pods[0].reaches(pods[1].ip(), SOON).is_some(), "{line}: {}", node.twill(&["status"]));
            lab::wait_for("the warning goes", SOON, || !node.twill(&["status"]).contains("tunnel packets"));
        }
    });
}

/// Refusals of what a node itself sends, and of echoes, and the words that name them.
const BETWEEN_NODES: [(&str, &[&str]); 6] = [
    (
        "iptables-nft -A OUTPUT -p udp --dport 8472 -j DROP",
        &["this node refuses its own tunnel packets", "IPv4 OUTPUT chain of iptables-nft", "-A OUTPUT -p udp -m udp --dport 8472 -j DROP"],
    ),
    (
        "nft 'table inet fw { chain out { type filter hook output priority 0; policy drop; ct state established,related accept; oif lo accept;
           meta l4proto { icmp, ipv6-icmp } accept; tcp dport 443 accept; }; }'",
        &["this node refuses its own tunnel packets", "table inet fw", "policy drop", "nft insert rule inet fw out udp dport 8472 accept"],
    ),
    ("iptables-legacy -A INPUT -p icmp -j DROP", &["this node refuses echoes between nodes", "iptables-legacy", "-A INPUT -p icmp -j DROP"]),
    (
        "nft 'table inet fw { chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept;
           udp dport 8472 accept; tcp dport 22 accept; }; }'",
        &["this node refuses echoes between nodes", "policy drop", "nft insert rule inet fw in icmp type echo-request accept"],
    ),
    ("iptables-nft -A OUTPUT -p icmp --icmp-type echo-reply -j DROP", &["this node refuses echoes between nodes", "-A OUTPUT -p icmp -m icmp --icmp-type 0 -j DROP"]),
    ("iptables-nft -A INPUT -i flannel.1 -j DROP", &["this node refuses echoes between nodes, such as from 10.244.", "-A INPUT -i flannel.1 -j DROP"]),
];

#[test]
fn a_filter_of_this_node_on_what_nodes_send_each_other_is_named_and_its_cure_works() {
    lab::test(Timing::Free, || {
        for (line, words) in BETWEEN_NODES {
            let lab = cluster::lab(Topology::flat(2), VXLAN);
            let node = lab.node(1);
            node.ns.run(line);
            let _daemons = lab.start_all(FLAGS);
            let pods = lab.pods();
            says(node, words);
            let refused = || {
                lab.nodes()
                    .iter()
                    .map(|node| node.twill(&["status"]).matches("this node refuses").count())
                    .sum::<usize>()
            };
            assert_eq!(refused(), 1, "one warning on one node: {}", node.twill(&["status"]));
            let status = node.twill(&["status"]);
            let (_, command) = status.split_once("Accept them ahead of it: ").unwrap();
            node.ns.run(command.lines().next().unwrap());
            lab::wait_for("the warning goes", SOON, || refused() == 0);
            cluster::reach_each_other(&pods);
            for node in lab.nodes() {
                lab::wait_for("the peer is healthy", SOON * 3, || {
                    node.twill(&["status"]).contains("healthy")
                });
            }
        }
    });
}

/// The command in the warning cures the fault.
#[test]
fn a_new_refusal_is_named_and_its_remedy_works() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        assert!(!node.twill(&["status"]).contains(REFUSED));
        node.ns.run(
            "nft 'table inet guard { chain forwards { type filter hook forward priority 0; policy drop; }; }'",
        );
        says(node, &[REFUSED, "inet guard"]);
        let status = node.twill(&["status"]);
        let (_, commands) = status.split_once("ahead of it: ").unwrap();
        node.ns.run(commands.lines().next().unwrap());
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
        lab::wait_for("the warning goes", SOON, || !node.twill(&["status"]).contains(REFUSED));
    });
}

/// Rules of typical hosts that refuse traffic other than pods'.
const OF_OTHERS: [&str; 10] = [
    "nft 'table inet fw { chain out { type filter hook output priority 0; policy drop; ct state established,related accept; oif lo accept;
       meta l4proto { icmp, ipv6-icmp } accept; udp dport 8472 accept; }; chain in { type filter hook input priority 0; tcp dport 25 drop; }; }'",
    "iptables-nft -A INPUT -p icmp -m limit --limit 50/s --limit-burst 100 -j ACCEPT; iptables-nft -A INPUT -p icmp -j DROP; iptables-nft -A OUTPUT -p icmp --icmp-type redirect -j DROP",
    "nft 'table inet fw { chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept;
       meta l4proto { icmp, ipv6-icmp } accept; udp dport 8472 accept; }; }'",
    "nft 'table inet fw { chain forwards { type filter hook forward priority 0; policy drop; ct state invalid drop; ct state established accept;
       ip saddr 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept; ip6 saddr fd00:244::/48 accept; ip6 daddr fd00:244::/48 accept; }; }'",
    "nft 'table inet fw { set bad { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; };
       chain forwards { type filter hook forward priority 0; ip saddr @bad drop; tcp dport 25 drop; meta mark 7 drop; iifname \"eth9\" drop; fib saddr type local drop; }; }'",
    "iptables-nft -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
    "iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -A DOCKER-USER -i eth0 ! -s 10.244.0.0/16 -j DROP; iptables-nft -A DOCKER-USER -j RETURN",
    "iptables-legacy -A FORWARD -m conntrack --ctstate INVALID -j DROP; iptables-legacy -A FORWARD -p tcp --dport 25 -j DROP",
    "ip6tables-nft -t mangle -A FORWARD -m mark --mark 0x5 -j DROP; ip6tables-nft -t raw -A PREROUTING -s fd00:9::/32 -j DROP",
    "nft 'table bridge fw { chain forwards { type filter hook forward priority 0; policy drop; }; }'",
];

#[test]
fn a_refusal_of_other_traffic_is_not_mentioned() {
    lab::test(Timing::Free, || {
        for line in OF_OTHERS {
            let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
            let (_daemons, pods) = started(&lab, line);
            talk(&pods, line, lab.node(1));
            // The new chain makes the daemon read the unchanged rules once more.
            lab.node(1).ns.run("nft add table inet twill-test; nft 'add chain inet twill-test c { type filter hook forward priority 0; }'");
            lab.node(1).twill_output(&["diff"]);
            let status = lab.node(1).twill(&["status"]);
            assert!(!status.contains(PERHAPS_REFUSED), "{line}: {status}");
            assert!(
                !status.contains("tunnel packets") && !status.contains("between nodes"),
                "{line}: {status}"
            );
        }
    });
}

#[test]
fn a_refusing_policy_is_named_if_accept_rules_are_disabled() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        lab.node(1).ns.run("iptables-nft -P FORWARD DROP");
        let _daemons = lab.start_all(&[FLAGS, &["--iptables-forward-rules=false"]].concat());
        says(lab.node(1), &[REFUSED, "policy DROP", "--iptables-forward-rules=false"]);
        assert!(lines(&lab.node(1).ns, lab::Iptables::Nft).is_empty());
    });
}

fn value(node: &Node, path: &str) -> String {
    node.ns.run(&format!("cat /proc/sys/net/{path}/forwarding")).trim().into()
}

/// Commands after which new devices do not forward, though the node does.
const BORN_OFF: &str = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    sysctl -qw net.ipv4.conf.default.forwarding=0 net.ipv6.conf.default.forwarding=0";

#[test]
fn devices_created_without_forwarding_get_it() {
    lab::test(Timing::Free, || {
        for config in [VXLAN_DUAL.to_owned(), Manager::Auto.config("host-gw")] {
            let lab = cluster::lab(Topology::flat(2), &config);
            let off = format!("{BORN_OFF}\nsysctl -qw net.ipv4.conf.eth0.forwarding=0");
            let (_daemons, pods) = started(&lab, &off);
            talk(&pods, "devices without forwarding", lab.node(1));
            for device in ["eth0", "cni0"] {
                assert_eq!(value(lab.node(1), &format!("ipv4/conf/{device}")), "1", "{device}");
            }
            if config == VXLAN_DUAL {
                assert_eq!(value(lab.node(1), "ipv4/conf/flannel.1"), "1");
                assert_eq!(value(lab.node(1), "ipv6/conf/flannel-v6.1"), "1");
            }
            assert_eq!(value(lab.node(1), "ipv4/conf/default"), "0", "what is none of ours stays");
        }
    });
}

#[test]
fn foreign_devices_without_forwarding_are_named_but_not_changed() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        lab.nodes().iter().for_each(|node| _ = node.ns.run(BORN_OFF));
        let _daemons = lab.start_all(&[FLAGS, &["--set-sysctls=false"]].concat());
        let pods = lab.pods();
        let node = lab.node(1);
        says(node, &["net/ipv4/conf/cni0/forwarding is 0", "sysctl -w net/ipv4/conf/cni0/forwarding=1"]);
        assert_eq!(value(node, "ipv4/conf/flannel.1"), "1", "our own device");
        lab.nodes().iter().for_each(|node| _ = node.ns.run("sysctl -qw net.ipv4.conf.cni0.forwarding=1"));
        assert!(pods[0].reaches(pods[1].ip(), SOON).is_some());
    });
}
