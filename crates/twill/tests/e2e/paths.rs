//! Each way in which a path can be broken, and the words for it, in both families: one node looks at all others. With IPv4 they
//! have no daemon; with IPv6 each has its own, which would mend what is broken on the node itself.

use std::time::{Duration, Instant};

use lab::plain::Announce;
use lab::{Daemon, Filter, Lab, Node, Relay, Timing, Topology, patient};

use crate::cluster::{self, FLAGS, HOST_GW, HOST_GW_IPV6, SOON, VXLAN, VXLAN_IPV6};
use crate::verdicts::{TOLD, finding, found, plain, told};

/// For what takes several questions, some of which are asked only from time to time.
const IN_TIME: Duration = Duration::from_secs(25);
const CALM: Duration = Duration::from_secs(5);

/// One family's words for the same harm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Net {
    V4,
    V6,
}

impl Net {
    fn echoes(self) -> &'static str {
        match self {
            Self::V4 => "ip protocol icmp",
            Self::V6 => "icmpv6 type { echo-request, echo-reply }",
        }
    }

    fn next_hop(self) -> &'static str {
        match self {
            Self::V4 => "ether type arp",
            Self::V6 => "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }",
        }
    }

    fn pods(self) -> &'static str {
        match self {
            Self::V4 => "ip saddr 10.244.0.0/16",
            Self::V6 => "ip6 saddr fd00:244::/48",
        }
    }

    /// The far segment of the router, and its device there.
    fn far(self) -> &'static str {
        match self {
            Self::V4 => "192.168.101.0/24 dev eth1",
            Self::V6 => "fd00:101::/64 dev eth1 metric 256",
        }
    }
}

/// Node 1 with its daemon, all others without; waits until all that there is to know is known.
pub(crate) fn settled<'lab>(lab: &'lab Lab, announce: Announce) -> (Daemon<'lab>, Vec<String>) {
    let daemon = lab.node(1).start(FLAGS);
    daemon.wait_ready();
    let own = lab.node(1).subnet();
    let peers = (2..=lab.nodes().len()).map(|k| plain(lab, k, announce));
    let subnets: Vec<_> = [own].into_iter().chain(peers).collect();
    (daemon, subnets)
}

/// All nodes and their subnets; the daemon of the first one is the first.
fn nodes(lab: &Lab, net: Net, announce: Announce) -> (Vec<Daemon<'_>>, Vec<String>) {
    if net == Net::V4 {
        let (daemon, subnets) = settled(lab, announce);
        return (vec![daemon], subnets);
    }
    lab.nodes().iter().for_each(|node| _ = node.ns.run("ip -4 addr flush dev eth0"));
    let daemons = lab.start_all(FLAGS);
    (daemons, lab.nodes().iter().map(Node::subnet6).collect())
}

fn healthy<'a>(lab: &Lab, subnets: impl IntoIterator<Item = &'a String>) {
    for subnet in subnets {
        found(lab.node(1), subnet, "healthy", SOON);
    }
}

/// Each peer's finding, one after the other: the first ones have to be quick.
fn all_found(lab: &Lab, daemon: &Daemon, expected: &[(&String, &str)], limit: Duration) {
    let start = Instant::now();
    for (subnet, name) in expected {
        found(lab.node(1), subnet, name, limit);
        println!("{name} after {:?}", start.elapsed());
    }
    assert!(start.elapsed() <= patient(limit), "{:?}", start.elapsed());
    for (subnet, name) in expected {
        told(lab.node(1), daemon, subnet, name);
    }
}

#[test]
fn of_a_tunnel() {
    lab::test(Timing::Timed, || tunnels(Net::V4));
}

#[test]
fn of_a_tunnel_over_ipv6() {
    lab::test(Timing::Timed, || tunnels(Net::V6));
}

fn tunnels(net: Net) {
    // Who sends IPv6 from a tunnel makes no fragments.
    let (config, device, small_link, fits) = match net {
        Net::V4 => (VXLAN, "flannel.1", "fragmented", ["1350", "1400"]),
        Net::V6 => (VXLAN_IPV6, "flannel-v6.1", "large packets lost", ["1330"; 2]),
    };
    let lab = cluster::lab(Topology::routed(10, 3), config);
    // Has never answered an echo.
    lab.node(10).ns.run(
        "nft 'table inet mute { chain input { type filter hook input priority 0; icmpv6 type echo-request drop; icmp type echo-request drop; }; }'",
    );
    let (daemons, of) = nodes(&lab, net, Announce::Vxlan);
    // Known by its own: whoever has the port closed to all but the tunnel and echoes is healthy.
    lab.node(7).ns.run(
        "nft 'table inet own { chain input { type filter hook input priority 0; policy drop; \
         ct state established accept; icmp type echo-request accept; meta l4proto ipv6-icmp accept; udp dport 8472 accept; }; }'",
    );
    healthy(&lab, of[1..9].iter().chain(&of[10..]));
    found(lab.node(1), &of[9], "no echo", SOON);
    let cuts = [
        Filter::between("node1", "node2", "udp dport 8472"),
        Filter::between("node1", "node5", net.echoes()),
        Filter::between("node1", "node6", "meta length > 1400"),
    ];
    lab.node(4).unplug();
    lab.node(12).unplug();
    lab.node(13).ns.run(&format!(
        "nft 'table inet own {{ chain input {{ type filter hook input priority 0; \
         iifname {device} meta l4proto {{ icmp, ipv6-icmp }} reject with icmpx admin-prohibited; }}; }}'"
    ));
    let mut quick =
        vec![(&of[1], "tunnel lost"), (&of[3], "next hop silent"), (&of[11], "silent"), (&of[12], "refused")];
    if net == Net::V4 {
        lab.node(3).ns.run(
            "bridge fdb show dev flannel.1 | while read -r entry; do bridge fdb del ${entry%%self*} dev flannel.1; done",
        );
        quick.push((&of[2], "no way back"));
    }
    all_found(&lab, &daemons[0], &quick, TOLD);
    let relay = (net == Net::V4).then(|| Relay::of(lab.node(8)));
    lab.router().run(&format!("ip route replace {} mtu lock 1400", net.far()));
    let mut slow = vec![(&of[5], "large packets lost"), (&of[10], small_link)];
    if relay.is_some() {
        slow.push((&of[7], "checksum fault"));
    }
    all_found(&lab, &daemons[0], &slow, IN_TIME);
    let status = lab.node(1).twill(&["status"]);
    for (subnet, name) in quick {
        assert_eq!(finding(lab.node(1), subnet).as_deref(), Some(name), "{status}");
    }
    assert!(fits.iter().all(|mtu| status.contains(mtu)), "{status}");
    // No echo to the node itself, a firewall that lets in what it must: no fault is made of it.
    assert_eq!(finding(lab.node(1), &of[9]).as_deref(), Some("no echo"));
    lab::holds_for("no false alarm", CALM, || {
        [4, 6].iter().all(|k| finding(lab.node(1), &of[*k]).as_deref() == Some("healthy"))
    });
    drop((cuts, relay));
    mended(&lab, net, &of);
}

/// All that could be mended is healthy again.
fn mended(lab: &Lab, net: Net, of: &[String]) {
    [4, 12].into_iter().for_each(|k| lab.node(k).plug());
    lab.node(13).ns.run("nft delete table inet own");
    lab.router().run(&format!("ip route replace {}", net.far()));
    // What the kernel has learnt of the path it keeps for ten minutes.
    [1, 11].into_iter().for_each(|k| _ = lab.node(k).ns.run("ip -6 route flush cache"));
    let start = Instant::now();
    for k in [1, 3, 4, 5, 6, 7, 8, 10, 11, 12] {
        found(lab.node(1), &of[k], "healthy", IN_TIME);
    }
    assert!(start.elapsed() <= patient(IN_TIME), "{:?}", start.elapsed());
}

#[test]
fn of_bare_packets() {
    lab::test(Timing::Timed, || bare(Net::V4));
}

#[test]
fn of_bare_packets_over_ipv6() {
    lab::test(Timing::Timed, || bare(Net::V6));
}

fn bare(net: Net) {
    let lab = cluster::lab(Topology::flat(9).outside(), if net == Net::V4 { HOST_GW } else { HOST_GW_IPV6 });
    let ninth = lab.node(9);
    match net {
        Net::V4 => lab.outside().run(&format!("ip addr add {}/24 dev eth0", ninth.ip)),
        Net::V6 => lab.outside().run(&format!("ip addr add {}/64 dev eth0 nodad", ninth.ip6)),
    };
    let (daemons, of) = nodes(&lab, net, Announce::HostGw);
    let node = lab.node(1);
    // Node 6 has no bridge before its first pod; neither would ours have.
    let _pods: Vec<_> = [1, 2, 3, 4, 5, 7, 8, 9].map(|k| lab.node(k).pod()).into();
    healthy(&lab, of[1..5].iter().chain(&of[6..8]));
    assert_eq!(finding(node, &of[5]).as_deref(), Some("unverified"));
    let routes = || node.ns.run("ip -4 route show proto 84; ip -6 route show proto 84");
    let before = routes();
    let cuts = [
        Filter::between("node1", "node2", net.next_hop()),
        Filter::between("node1", "node3", net.pods()),
        Filter::between("node1", "node4", net.echoes()),
        Filter::between("node1", "node7", "meta length > 1400"),
    ];
    lab.node(5).unplug();
    let mut quick =
        vec![(&of[1], "next hop silent"), (&of[2], "pod addresses lost"), (&of[4], "next hop silent")];
    if net == Net::V4 {
        lab.node(8).ns.run(&format!("ip route del {}", of[0]));
        quick.push((&of[7], "no way back"));
    }
    all_found(&lab, &daemons[0], &quick, TOLD);
    let mut slow = vec![(&of[6], "large packets lost"), (&of[3], "echo lost")];
    if net == Net::V4 {
        // With a daemon of its own it talks so much that the kernel believes the right one.
        slow.push((&of[8], "duplicate address"));
    }
    all_found(&lab, &daemons[0], &slow, IN_TIME);
    lab::holds_for("no other reason is found", 2 * CALM, || {
        quick.iter().all(|(subnet, name)| finding(node, subnet).as_deref() == Some(*name))
    });
    assert_eq!(finding(node, &of[5]).as_deref(), Some("unverified"));
    assert_eq!(routes(), before, "the kernel heals what is lost, not we");
    drop(cuts);
    lab.node(5).plug();
    lab.outside().run("ip link set eth0 down");
    let start = Instant::now();
    for k in [1, 2, 3, 4, 6, 8] {
        found(node, &of[k], "healthy", IN_TIME);
    }
    assert!(start.elapsed() <= patient(IN_TIME), "{:?}", start.elapsed());
}

/// Two segments that look like one, since a router answers ARP for the other side: it cannot carry pods' packets.
#[test]
fn of_a_router_that_answers_for_others() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(1, 2), HOST_GW);
        one_segment(&lab);
        let (daemon, of) = settled(&lab, Announce::HostGw);
        let _pods = lab.pods();
        let expected = [(&of[1], "proxy ARP"), (&of[2], "proxy ARP")];
        all_found(&lab, &daemon, &expected, IN_TIME);
    });
}

/// To the nodes both of the router's segments look like one, since it answers ARP for the other side.
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
