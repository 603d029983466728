//! Foreign policy rules, tables and routes that divert pods' packets. Their node names them, and no peer is blamed.

use lab::{Lab, Node, Pod, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON, VXLAN_DUAL};
use crate::traffic::of_pod;

/// Commands for a device like a VPN client's, with a table that takes more than it should, in both families.
const VPN: &str = "ip link add vpn0 type veth peer name vpn1; ip link set vpn0 up; ip link set vpn1 up; ip addr add 100.64.0.1/32 dev vpn0; ip addr add fd7a::1/128 dev vpn0
    ip route add 10.0.0.0/8 dev vpn0 table 52; ip -6 route add fd00:244::/40 dev vpn0 table 52";

/// Commands that divert packets, and the words that name them.
const DIVERSIONS: [(&str, &str); 7] = [
    ("ip rule add pref 5270 lookup 52; ip -6 rule add pref 5270 lookup 52", "5270: from all lookup 52"),
    ("ip rule add from 10.244.0.0/16 pref 900 lookup 52", "900: from 10.244.0.0/16 lookup 52"),
    ("ip rule add iif cni0 pref 901 lookup 52", "901: from all iif cni0 lookup 52"),
    ("ip rule add to 10.244.0.0/16 pref 902 blackhole", "902: from all to 10.244.0.0/16 blackhole"),
    ("ip rule add from 10.244.0.0/16 pref 903 prohibit", "903: from 10.244.0.0/16 prohibit"),
    ("ip -6 rule add from fd00:244::/48 pref 904 unreachable", "904: from fd00:244::/48 unreachable"),
    ("ip rule add not fwmark 0x77 pref 905 lookup 52", "905: not from all fwmark 0x77 lookup 52"),
];

fn lab_with_vpn() -> Lab {
    let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
    lab.node(1).ns.run(VPN);
    lab
}

fn says(node: &Node, words: &[&str]) {
    let mut status = String::new();
    let said = lab::until(SOON, || {
        status = node.twill(&["status"]);
        status.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    });
    assert!(
        said.is_some(),
        "{words:?} are not in one line of:\n{status}\n{}",
        node.ns.run("ip rule; ip -6 rule")
    );
}

fn talk(pods: &[Pod]) -> bool {
    of_pod(&pods[1]).iter().all(|ip| pods[0].reaches(*ip, SOON).is_some())
}

#[test]
fn a_rule_that_diverts_pod_packets_is_named_by_its_node() {
    lab::test(Timing::Free, || {
        for (line, words) in DIVERSIONS {
            let lab = lab_with_vpn();
            let _daemons = lab.start_all(FLAGS);
            let pods = lab.pods();
            assert!(talk(&pods), "{line}");
            assert!(!lab.node(1).twill(&["status"]).contains("do not leave through"), "a calm start");
            lab.node(1).ns.run(line);
            let cure =
                if words.starts_with("5270") { "comes first, or" } else { "give it a priority above 5000" };
            says(lab.node(1), &["do not leave through", words, cure, "--route-table=flannel"]);
            assert!(!lab.node(2).twill(&["status"]).contains("has lost its"), "{line}: a peer is blamed");
        }
    });
}

#[test]
fn peers_are_not_blamed_for_a_rule_of_this_node() {
    lab::test(Timing::Free, || {
        let lab = lab_with_vpn();
        let _daemons = lab.start_all(FLAGS);
        assert!(talk(&lab.pods()));
        let peer = lab.node(2).subnet();
        // A peer that has never answered is not reported before several rounds of probes are lost.
        says(lab.node(1), &[&peer, "healthy"]);
        lab.node(1).ns.run(DIVERSIONS[0].0);
        says(lab.node(1), &[&peer, "diverted"]);
        lab.node(1).ns.run("ip rule del pref 5270; ip -6 rule del pref 5270");
        lab::wait_for("the warning goes", SOON * 2, || {
            let status = lab.node(1).twill(&["status"]);
            !status.contains("do not leave through") && !status.contains("diverted")
        });
    });
}

/// The node has no bridge then, and the packets of its probes are diverted all the same.
#[test]
fn before_the_first_pod_the_rule_is_named_too() {
    lab::test(Timing::Free, || {
        let lab = lab_with_vpn();
        lab.node(1).ns.run(DIVERSIONS[0].0);
        let _daemons = [1, 2].map(|k| lab.node(k).start(FLAGS));
        let socket = lab.node(1).run_dir().join("twill.sock");
        lab::wait_for("the daemon answers", SOON, || socket.exists());
        // The kernel is asked again after a change, or after 30 s.
        lab::wait_for("the rule is named", SOON * 4, || {
            let status = lab.node(1).twill(&["status"]);
            status.lines().any(|line| line.contains("do not leave through") && line.contains(DIVERSIONS[0].1))
        });
        assert!(!lab.node(1).twill(&["status"]).contains("has lost its"), "a peer is blamed");
    });
}

/// The remedy that the warning names also works for packets that come in for our own pods.
#[test]
fn our_own_table_is_looked_up_before_a_diverting_rule() {
    lab::test(Timing::Free, || {
        let lab = lab_with_vpn();
        lab.node(1).ns.run(DIVERSIONS[0].0);
        let _daemons = lab.start_all(&[FLAGS, &["--route-table=flannel"]].concat());
        assert!(talk(&lab.pods()), "{}", lab.node(1).ns.run("ip rule; ip route show table all"));
        assert!(!lab.node(1).twill(&["status"]).contains("do not leave through"));
    });
}

#[test]
fn a_narrower_route_is_named() {
    lab::test(Timing::Free, || {
        let lab = lab_with_vpn();
        let _daemons = lab.start_all(FLAGS);
        let pods = lab.pods();
        assert!(talk(&pods));
        let (node, peer) = (lab.node(1), lab.node(2).subnet());
        let half = peer.replace(".0/24", ".128/25");
        node.ns.run(&format!("ip route add {half} dev vpn0"));
        says(node, &["do not leave through", &half, "main table", "vpn0"]);
    });
}

#[test]
fn rules_that_divert_no_pod_packets_are_not_mentioned() {
    lab::test(Timing::Free, || {
        let lab = lab_with_vpn();
        lab.node(1).ns.run(
            "ip rule add from 192.0.2.0/24 pref 900 blackhole; ip rule add fwmark 0x77 pref 901 lookup 52
             ip rule add iif eth9 pref 902 lookup 52; ip rule add to 172.16.0.0/12 pref 903 prohibit
             ip -6 rule add from 2001:db8::/32 pref 900 unreachable; ip rule add pref 904 lookup 53",
        );
        let _daemons = lab.start_all(FLAGS);
        assert!(talk(&lab.pods()));
        lab.node(1).twill_output(&["diff"]);
        let status = lab.node(1).twill(&["status"]);
        assert!(!status.contains("do not leave through"), "{status}");
    });
}
