//! Faults of bare packets, which travel from node to node on one segment, or on what looks like one.

use lab::plain::Announce;
use lab::{Filter, Lab, Lines, PingStream, Timing, Topology};

use super::{
    CALM, Fault, IN_TIME, Net, all_found, all_healthy_again, all_reported, healthy, killed, nodes, pings,
    settled, talking,
};
use crate::cluster::{self, HOST_GW, HOST_GW_IPV6};
use crate::verdicts::{finding, findings};

#[test]
fn each_fault_is_named_and_cleared() {
    lab::test(Timing::Timed, || bare(Net::V4));
}

#[test]
fn each_fault_is_named_and_cleared_over_ipv6() {
    lab::test(Timing::Timed, || bare(Net::V6));
}

fn bare(net: Net) {
    let lab = cluster::lab(Topology::flat(9).outside(), if net == Net::V4 { HOST_GW } else { HOST_GW_IPV6 });
    let (mut daemons, of) = nodes(&lab, net, Announce::HostGw);
    let node = lab.node(1);
    // Node 6 has no bridge before its first pod, as a node of ours would have none.
    let pods = [1, 2, 3, 4, 5, 7, 8, 9].map(|k| (k, lab.node(k).pod()));
    let pod = |k: usize| pods.iter().find(|(node, _)| *node == k).map(|(_, pod)| pod).unwrap();
    let pings = |k: usize| talking(PingStream::start(&pod(1).ns, pod(k).ip()));
    healthy(&lab, of[1..5].iter().chain(&of[6..]));
    assert_eq!(finding(node, &of[5]).as_deref(), Some("unverified"));
    let routes = || node.ns.run("ip -4 route show proto 84; ip -6 route show proto 84");
    let before = routes();
    killed(&mut daemons, &[8, 9]);
    let faults = [
        Fault::of(&of[1], "next hop silent", pings(2)),
        Fault::of(&of[2], "pod addresses lost", pings(3)),
        Fault::of(&of[3], "echo lost", pings(4)),
        Fault::of(&of[4], "next hop silent", pings(5)),
        Fault::of(&of[6], "large packets lost", talking(PingStream::sized(&pod(1).ns, pod(7).ip(), 1500))),
        Fault::of(&of[7], "no way back", pings(8)),
        Fault::of(&of[8], "duplicate address", pings(9)),
    ];
    let cuts = [
        Filter::between("node1", "node2", net.next_hop()),
        Filter::between("node1", "node3", net.pods()),
        Filter::between("node1", "node4", net.echoes()),
        Filter::between("node1", "node7", "meta length > 1400"),
    ];
    lab.node(5).unplug();
    lab.node(8).ns.run(&format!("ip route del {}", of[0]));
    let claims = second_machine(&lab, net);
    all_reported(&lab, &daemons[0], &faults);
    lab::holds_for("no other reason is found", 2 * CALM, || {
        for fault in &faults {
            assert_eq!(
                finding(node, fault.subnet).as_deref(),
                Some(fault.name),
                "{}",
                node.twill(&["status"])
            );
        }
        true
    });
    assert_eq!(finding(node, &of[5]).as_deref(), Some("unverified"));
    assert_eq!(routes(), before, "the kernel heals what is lost, not we");
    drop((cuts, claims));
    lab.node(5).plug();
    lab.outside().run("ip link set eth0 down");
    let via = if net == Net::V4 { node.ip.to_string() } else { node.ip6.to_string() };
    lab.node(8).ns.run(&format!("ip route add {} via {via} dev eth0", of[0]));
    all_healthy_again(&lab, [1, 2, 3, 4, 6, 7, 8].map(|k| &of[k]));
}

/// Gives a second machine the address of node 9, which it announces to all again and again. Both machines answer requests for the
/// address, and the kernel's own entry is wrong nearly all the time.
fn second_machine(lab: &Lab, net: Net) -> Lines {
    let (ninth, outside) = (lab.node(9), lab.outside());
    let own = match net {
        Net::V4 => format!("{}/24", ninth.ip),
        Net::V6 => format!("{}/64 nodad", ninth.ip6),
    };
    outside.sysctl(&[("net.ipv4.conf.eth0.arp_notify", "1"), ("net.ipv6.conf.eth0.ndisc_notify", "1")]);
    outside.run(&format!("ip addr add {own} dev eth0"));
    // A link that is given the MAC which it has announces its addresses.
    let mut command = outside.command("sh");
    command.args([
        "-c",
        "read -r mac < /sys/class/net/eth0/address; while ip link set eth0 address $mac; do sleep 0.05; done",
    ]);
    Lines::start(command)
}

/// Two segments look like one, since a router answers ARP on each for the addresses of both. The router cannot carry
/// pods' packets.
#[test]
fn proxy_arp_is_named_while_the_router_has_no_routes() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::routed(1, 2), HOST_GW);
        one_segment(&lab);
        let (daemon, of) = settled(&lab, Announce::HostGw);
        let pods = lab.pods();
        let never = [1, 2].map(|k| Fault::from_now(&of[k], "proxy ARP", IN_TIME));
        all_reported(&lab, &daemon, &never);
        // A router with routes to the pods does no harm.
        let routes = |what: &str| {
            for (subnet, node) in of.iter().zip(lab.nodes()) {
                lab.router().run(&format!("ip route {what} {subnet} via {}", node.ip));
            }
        };
        routes("add");
        all_healthy_again(&lab, &of[1..]);
        lab::holds_for("no other reason is found", CALM, || {
            findings(lab.node(1)).iter().all(|(_, name)| name == "healthy")
        });
        let faults = [1, 2].map(|k| Fault::of(&of[k], "proxy ARP", pings(&pods, k + 1)));
        routes("del");
        all_found(&lab, &faults);
        routes("add");
        all_healthy_again(&lab, &of[1..]);
    });
}

/// Makes both segments look like one to the nodes: the router answers ARP on each for the addresses of both.
pub(crate) fn one_segment(lab: &Lab) {
    for node in lab.nodes() {
        node.ns.run(&format!("ip addr del {0}/24 dev eth0; ip addr add {0}/16 dev eth0", node.ip));
        node.ns.run(&format!("ip route replace default via {} dev eth0", node.gateway()));
    }
    for dev in ["eth0", "eth1"] {
        lab.router().sysctl(&[
            (&format!("net.ipv4.conf.{dev}.proxy_arp"), "1"),
            (&format!("net.ipv4.neigh.{dev}.proxy_delay"), "0"),
        ]);
    }
}
