//! Faults of packets that travel in a tunnel.

use std::time::Duration;

use lab::plain::Announce;
use lab::{Filter, Lab, PingStream, Pod, Relay, Talk, Timing, Topology, Witness};

use super::{CALM, Fault, Net, all_healthy_again, all_reported, healthy, killed, nodes, pings, talking};
use crate::cluster::{self, SOON, VXLAN, VXLAN_IPV6};
use crate::verdicts::{AT_ONCE, finding, found};

/// Maximum time until a checksum fault is found. A pair of datagrams is sent within three seconds. Three more follow, at least
/// two seconds apart, because a peer need not send errors more often. If an echo was lost lately, as while a cable is changed,
/// seven more follow.
const PAIRS: Duration = Duration::from_secs(19);

/// Command for a node that has never answered an echo.
const MUTE: &str = "nft 'table inet mute { chain input { type filter hook input priority 0; \
                    icmpv6 type echo-request drop; icmp type echo-request drop; }; }'";
/// Command for a node whose firewall admits only the tunnel and echoes. It is healthy, known by its own echoes.
const CLOSED: &str = "nft 'table inet own { chain input { type filter hook input priority 0; policy drop; \
                      ct state established accept; icmp type echo-request accept; meta l4proto ipv6-icmp accept; \
                      udp dport 8472 accept; }; }'";

#[test]
fn each_fault_is_named_and_cleared() {
    lab::test(Timing::Timed, || tunnels(Net::V4));
}

#[test]
fn each_fault_is_named_and_cleared_over_ipv6() {
    lab::test(Timing::Timed, || tunnels(Net::V6));
}

fn tunnels(net: Net) {
    // A node that sends IPv6 from a tunnel makes no fragments.
    let (config, device, small_link, fits) = match net {
        Net::V4 => (VXLAN, "flannel.1", "fragmented", ["1350", "1400"]),
        Net::V6 => (VXLAN_IPV6, "flannel-v6.1", "large packets lost", ["1330"; 2]),
    };
    let lab = cluster::lab(Topology::routed(10, 3), config);
    lab.node(10).ns.run(MUTE);
    let (mut daemons, of) = nodes(&lab, net, Announce::Vxlan);
    let pods = lab.pods();
    lab.node(7).ns.run(CLOSED);
    healthy(&lab, of[1..9].iter().chain(&of[10..]));
    found(lab.node(1), &of[9], "no echo", SOON);
    killed(&mut daemons, &[3]);
    let quick = quick(&of, &pods);
    let cuts = cut(&lab, net, device);
    let entries = lab.node(3).ns.run(&format!("bridge fdb show dev {device}"));
    let entries = |what| {
        let lines = entries.lines().filter_map(|entry| entry.split(" self").next());
        lines.for_each(|entry| _ = lab.node(3).ns.run(&format!("bridge fdb {what} {entry} dev {device}")));
    };
    entries("del");
    all_reported(&lab, &daemons[0], &quick);
    let _witness = Witness::start(&pods[7].ns);
    let talk = Talk::start(&pods[0].ns, pods[7].ip());
    lab::wait_for("pods talk", SOON, || talk.bytes() > 0);
    let checksum = Fault::from_now(&of[7], "checksum fault", PAIRS);
    let relay = Relay::of(lab.node(8));
    let small = match net {
        // Nothing is lost: the first larger packet shows the fault.
        Net::V4 => Fault::from_now(&of[10], small_link, AT_ONCE),
        Net::V6 => Fault::of(&of[10], small_link, large(&pods, 11)),
    };
    lab.router().run(&format!("ip route replace {} mtu lock 1400", net.far()));
    let came = talk.bytes();
    all_reported(&lab, &daemons[0], &[checksum, small]);
    assert_eq!(talk.bytes(), came, "the link leaves the packets of pods alone");
    let status = lab.node(1).twill(&["status"]);
    for fault in quick {
        assert_eq!(finding(lab.node(1), fault.subnet).as_deref(), Some(fault.name), "{status}");
    }
    assert!(fits.iter().all(|mtu| status.contains(mtu)), "{status}");
    // A node without echoes, and a firewall that admits what it must, are not faults.
    assert_eq!(finding(lab.node(1), &of[9]).as_deref(), Some("no echo"));
    lab::holds_for("no false alarm", CALM, || {
        [4, 6].iter().all(|k| finding(lab.node(1), &of[*k]).as_deref() == Some("healthy"))
    });
    drop((cuts, relay));
    entries("append");
    [4, 12].into_iter().for_each(|k| lab.node(k).plug());
    lab.node(13).ns.run("nft delete table inet own");
    lab.router().run(&format!("ip route replace {}", net.far()));
    // The kernel keeps what it has learnt of the path for ten minutes.
    [1, 11].into_iter().for_each(|k| _ = lab.node(k).ns.run("ip -6 route flush cache"));
    all_healthy_again(&lab, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12].map(|k| &of[k]));
}

/// Returns the faults that pods notice at once.
fn quick<'a>(of: &'a [String], pods: &[Pod]) -> [Fault<'a>; 6] {
    [
        Fault::of(&of[1], "tunnel lost", pings(pods, 2)),
        Fault::of(&of[2], "no way back", pings(pods, 3)),
        Fault::of(&of[3], "next hop silent", pings(pods, 4)),
        Fault::of(&of[5], "large packets lost", large(pods, 6)),
        Fault::of(&of[11], "silent", pings(pods, 12)),
        Fault::of(&of[12], "refused", pings(pods, 13)),
    ]
}

fn large(pods: &[Pod], k: usize) -> PingStream {
    talking(PingStream::sized(&pods[0].ns, pods[k - 1].ip(), pods[0].mtu))
}

fn cut(lab: &Lab, net: Net, device: &str) -> [Filter; 3] {
    let cuts = [
        Filter::between("node1", "node2", "udp dport 8472"),
        Filter::between("node1", "node5", net.echoes()),
        Filter::between("node1", "node6", "meta length > 1400"),
    ];
    lab.node(4).unplug();
    lab.node(12).unplug();
    let refuses =
        format!("iifname {device} meta l4proto {{ icmp, ipv6-icmp }} reject with icmpx admin-prohibited;");
    lab.node(13).ns.run(&format!(
        "nft 'table inet own {{ chain input {{ type filter hook input priority 0; {refuses} }}; \
         chain forward {{ type filter hook forward priority 0; {refuses} }}; }}'"
    ));
    cuts
}
