//! Each reason for leaving a direct path. Finding and tunnel come within the limit, and the path returns after some
//! time without a loss. Peers whose own kernel is harmed have no daemon any more, which would repair it.

use std::time::{Duration, Instant};

use lab::plain::Announce;
use lab::{Daemon, Filter, Lab, Node, Ns, PingReport, PingStream, Timing, Topology};

use super::{POD_ADDRESSES, POD_ADDRESSES6, QUIET, all_direct};
use crate::cluster::{self, FLAGS, SOON};
use crate::paths::one_segment;
use crate::verdicts::{
    AT_ONCE, AUTO, AUTO_DUAL, HEALTH, PROVEN, findings, found, goes, is_direct, plain, reported,
};

const TUNNELS: [&str; 2] = ["flannel.1", "flannel-v6.1"];
/// Time that a ping adds to the limit where the switch does no harm: its interval, and its way there.
const SLACK: Duration = Duration::from_millis(200);

/// Maximum time until a peer counts as healthy again: the kernel keeps a neighbour that is gone for some seconds.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// Returns a peer's subnets, IPv4 first.
fn subnets(node: &Node) -> [String; 2] {
    [node.subnet(), node.subnet6()]
}

fn ended(pings: Vec<PingStream>) -> Vec<PingReport> {
    pings.into_iter().map(PingStream::stop).collect()
}

/// Returns the tunnels of a node, IPv4 first: device, subnet, address and MAC of the VTEP, node's address.
fn vteps(node: &Node) -> impl Iterator<Item = (&'static str, String, String, String, String)> {
    let underlay = [node.ip.to_string(), node.ip6.to_string()];
    TUNNELS.into_iter().zip(subnets(node)).zip(underlay).map(|((device, subnet), ip)| {
        let link = node.ns.run(&format!("ip -br link show {device}"));
        let mac = link.split_whitespace().nth(2).unwrap().to_owned();
        let vtep = subnet.split('/').next().unwrap().to_owned();
        (device, subnet, vtep, mac, ip)
    })
}

/// Returns shell lines that delete or append FDB entries for `peer`, to be run on another node.
fn fdb(how: &str, peer: &Node) -> String {
    vteps(peer)
        .map(|(device, _, _, mac, ip)| format!("bridge fdb {how} {mac} dev {device} dst {ip}\n"))
        .collect()
}

/// Makes `node` reach `peer` by tunnel, as a node without direct paths does.
fn by_tunnel(node: &Node, peer: &Node) {
    let route = |(device, subnet, vtep, mac, _)| {
        format!(
            "ip neigh replace {vtep} lladdr {mac} dev {device} nud permanent\n\
             ip route del {subnet}\nip route add {subnet} via {vtep} dev {device} onlink\n"
        )
    };
    node.ns.run(&(vteps(peer).map(route).collect::<String>() + &fdb("append", peer)));
}

fn by_direct(node: &Node, own: &Node) {
    let [subnet, subnet6] = subnets(own);
    node.ns.run(&format!(
        "ip route replace {subnet} via {} dev eth0\nip route replace {subnet6} via {} dev eth0\n",
        own.ip, own.ip6
    ));
}

/// Gives the node's address to the outside host, too, which announces it to everybody.
fn stand_in(outside: &Ns, node: &Node) {
    outside.sysctl(&[("net.ipv4.conf.eth0.arp_notify", "1")]);
    outside.run(&format!("ip addr add {}/24 dev eth0; ip link set eth0 address 02:00:00:00:77:04", node.ip));
}

/// Harms to some peers of node 1, all at the same time.
struct Harmed<'a> {
    node: &'a Node,
    daemon: &'a Daemon<'a>,
    /// Subnet, expected finding, and whether the direct path is left.
    peers: Vec<(String, &'static str, Left)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    ByTunnel,
    /// Same as `ByTunnel`, but our own probes may have repaired it before the harm is undone.
    Heals,
    /// The direct path stays, because the tunnel is no better.
    Not,
}

impl Harmed<'_> {
    /// Asserts that everything is found and done in time, counted from the harm.
    fn is_reported(&self, start: Instant) {
        let Self { node, daemon, peers } = self;
        let mut waiting: Vec<_> = peers.iter().collect();
        let all = lab::until(AT_ONCE, || {
            let findings = findings(node);
            waiting.retain(|(subnet, name, left)| {
                let known = findings.iter().any(|(of, finding)| of == subnet && finding == name);
                let is_done = known && is_direct(node, subnet) == (*left == Left::Not);
                if is_done {
                    println!("{subnet}: {name} after {:?}", start.elapsed());
                }
                !is_done
            });
            waiting.is_empty().then_some(())
        });
        assert!(all.is_some(), "{waiting:?}: {}", node.twill(&["status"]));
        lab::in_time("all of it", start.elapsed(), AT_ONCE + SLACK);
        for (subnet, name, _) in peers {
            reported(node, daemon, subnet, name);
        }
    }

    /// Asserts that each path returns after it was healthy for long enough, and not before.
    fn is_healthy_again(&self) {
        lab::holds_for("it has to be healthy first", HEALTH - Duration::from_secs(3), || {
            let mut left = self.peers.iter().filter(|(.., left)| *left == Left::ByTunnel);
            let early = left.find(|(subnet, ..)| is_direct(self.node, subnet));
            assert_eq!(early, None, "{}", self.node.twill(&["status"]));
            true
        });
        let healthy = Instant::now();
        for (subnet, ..) in &self.peers {
            goes(self.node, subnet, "eth0", FORGOTTEN);
            found(self.node, subnet, "healthy", SOON);
        }
        lab::in_time("healthy again", healthy.elapsed(), FORGOTTEN);
    }
}

/// Node, expected finding, whether the direct path is left, and what pods notice.
const REASONS: [(usize, &str, Left, Pods); 12] = [
    (2, "no way back", Left::ByTunnel, Pods::Cut),
    (3, "no way back", Left::ByTunnel, Pods::Cut),
    (4, "duplicate address", Left::Heals, Pods::Cut),
    (5, "refused", Left::ByTunnel, Pods::Switched),
    // Our packets arrive, those of our pods do not; the tunnel shows that the way back exists.
    (6, "no way back", Left::ByTunnel, Pods::Switched),
    (7, "large packets lost", Left::Not, Pods::Unharmed),
    (8, "pod addresses lost", Left::ByTunnel, Pods::Switched),
    // The kernel's own neighbour entry stays valid.
    (9, "next hop silent", Left::ByTunnel, Pods::Unharmed),
    (10, "next hop silent", Left::ByTunnel, Pods::Cut),
    (11, "echo lost", Left::ByTunnel, Pods::Switched),
    (12, "proxy ARP", Left::ByTunnel, Pods::Switched),
    (13, "proxy ARP", Left::ByTunnel, Pods::Switched),
];
/// Nodes behind a router that answers ARP for them.
const FAR: [usize; 2] = [12, 13];

/// Nodes whose fault exists in IPv4 only. IPv6 has no such source filter, and no router that answers for all. It believes no
/// second machine while the first one answers.
const ONLY_IPV4: [usize; 4] = [4, 6, 12, 13];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pods {
    Cut,
    Switched,
    Unharmed,
}

fn strict(node: &Node, how: &str) {
    node.ns.sysctl(&[("net.ipv4.conf.eth0.rp_filter", how)]);
}

/// Adds or deletes the router's routes to the pods of segment B.
fn far_pods(lab: &Lab, far: &[usize], how: &str) {
    let to = |&k: &usize| format!("ip route {how} {} via {}\n", lab.node(k).subnet(), lab.node(k).ip);
    lab.router().run(&far.iter().map(to).collect::<String>());
}

/// Applies all of [`REASONS`]; the harms on the wire end when the result is dropped.
fn harm(lab: &Lab) -> Vec<Filter> {
    let own = lab.node(1);
    lab.node(2).ns.run(&subnets(own).map(|subnet| format!("ip route del {subnet}\n")).concat());
    lab.node(3).ns.run(&fdb("del", own));
    stand_in(lab.outside(), lab.node(4));
    lab.node(5).ns.run(
        "nft 'table inet own { chain input { type filter hook prerouting priority 0; \
         iifname eth0 ip saddr 10.244.0.0/16 reject with icmpx admin-prohibited; \
         iifname eth0 ip6 saddr fd00:244::/48 reject with icmpx admin-prohibited; }; }'",
    );
    strict(lab.node(6), "1");
    lab.node(10).unplug();
    far_pods(lab, &FAR, "del");
    let cuts = [
        (7, "meta length > 1400"),
        (8, POD_ADDRESSES),
        (8, POD_ADDRESSES6),
        (9, "ether type arp"),
        (9, "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"),
        (11, "ip protocol icmp"),
        (11, "icmpv6 type { echo-request, echo-reply }"),
    ];
    cuts.into_iter().map(|(k, what)| Filter::between("node1", &lab.node(k).name, what)).collect()
}

fn mend(lab: &Lab) {
    by_direct(lab.node(2), lab.node(1));
    lab.node(3).ns.run(&fdb("append", lab.node(1)));
    lab.outside().run("ip link set eth0 down");
    lab.node(5).ns.run("nft delete table inet own");
    strict(lab.node(6), "2");
    lab.node(10).plug();
    far_pods(lab, &FAR, "add");
}

/// All faults happen at the same time, in both families. On peers: a lost route or FDB entry for us, a second
/// machine, rejected pod packets, a strict `rp_filter`. On the wire: lost large packets, pod addresses, ARP and
/// neighbour discovery, or echoes. One peer is down, and a hidden router between the nodes loses its routes to the
/// pods.
#[test]
fn each_fault_is_found_and_its_path_left_and_taken_again_in_time() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::routed(11, 2).outside(), AUTO_DUAL);
        one_segment(&lab);
        let _far = FAR.map(|k| lab.node(k).start(FLAGS));
        far_pods(&lab, &FAR, "add");
        let mut daemons: Vec<_> = (1..=11).map(|k| lab.node(k).start(FLAGS)).collect();
        let pods = lab.pods();
        let own = lab.node(1);
        let of = |k: usize| subnets(lab.node(k)).into_iter().take(2 - usize::from(ONLY_IPV4.contains(&k)));
        let all_go_direct = || {
            (2..=13).flat_map(of).for_each(|peer| _ = goes(own, &peer, "eth0", PROVEN));
        };
        all_go_direct();
        daemons[1..6].iter_mut().for_each(Daemon::kill9);
        [3, 6].into_iter().for_each(|k| by_tunnel(lab.node(k), own));
        let pings = REASONS.map(|(k, ..)| {
            pods[k - 1].ips().zip(of(k)).map(|(ip, _)| PingStream::start(&pods[0].ns, ip)).collect::<Vec<_>>()
        });
        let all_run = || pings.iter().flatten().all(|ping| ping.received() > 10);
        lab::wait_for("the pings run", SOON, all_run);
        all_go_direct();

        let start = Instant::now();
        let cuts = harm(&lab);
        let peers = REASONS.iter().flat_map(|&(k, name, left, _)| of(k).map(move |of| (of, name, left)));
        let harmed = Harmed { node: own, daemon: &daemons[0], peers: peers.collect() };
        harmed.is_reported(start);
        [4, 6].into_iter().for_each(|k| assert!(is_direct(own, &lab.node(k).subnet6())));
        found(own, &lab.node(6).subnet(), "pod addresses lost", SOON);
        drop(cuts);
        mend(&lab);
        harmed.is_healthy_again();
        for ((k, name, _, pods), report) in REASONS
            .iter()
            .zip(pings)
            .flat_map(|(reason, pings)| ended(pings).into_iter().map(move |it| (reason, it)))
        {
            let is_right = match pods {
                Pods::Cut => report.lost > 0,
                Pods::Switched => lab::is_in_time("the longest gap", report.longest_gap, AT_ONCE + SLACK),
                Pods::Unharmed => report.lost == 0,
            };
            assert!(is_right, "node {k}, {name}: {report:?}");
        }
    });
}

/// Two segments look like one: peers are direct only if the router in between knows the way to the pods.
#[test]
fn proxy_arp_without_routes_keeps_a_peer_on_the_tunnel() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(1, 2), AUTO);
        one_segment(&lab);
        let (daemons, pods) = cluster::start(&lab);
        let (own, peer) = (lab.node(1), lab.node(2).subnet());
        found(own, &peer, "proxy ARP", SOON);
        reported(own, &daemons[0], &peer, "proxy ARP");
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        lab::holds_for("it goes by tunnel", QUIET, || !is_direct(own, &peer));
        far_pods(&lab, &[1, 2, 3], "add");
        goes(own, &peer, "eth0", PROVEN);
        found(own, &peer, "healthy", SOON);
        let report = ping.stop();
        assert!(report.sent > 400 && report.lost == 0, "{report:?}");
    });
}

/// Three nodes of ours and three plain kernels have each of the settings. The direct path fails only where the peer's own filter
/// is strict, and then no packet is lost for it.
#[test]
fn only_a_peers_strict_rp_filter_prevents_a_direct_path() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(6), AUTO);
        for k in 1..=6 {
            let filter = ["0", "1", "2"][(k - 1) % 3];
            lab.node(k).ns.sysctl(&[
                ("net.ipv4.conf.default.rp_filter", filter),
                ("net.ipv4.conf.eth0.rp_filter", filter),
            ]);
        }
        let daemons: Vec<_> = (1..=3).map(|k| lab.node(k).start(FLAGS)).collect();
        daemons.iter().for_each(lab::Daemon::wait_ready);
        (1..=3).for_each(|k| drop(lab.node(k).subnet()));
        let plains: Vec<_> = (4..=6).map(|k| plain(&lab, k, Announce::Vxlan)).collect();
        let pods = lab.pods();
        for from in &pods[..3] {
            assert!(pods.iter().all(|to| from.reaches(to.ip(), SOON).is_some()));
        }
        let pings: Vec<_> = pods[..3]
            .iter()
            .flat_map(|from| {
                pods[3..].iter().map(|to| PingStream::every(&from.ns, to.ip(), Duration::from_millis(100)))
            })
            .collect();
        all_direct(&lab, &[1, 2, 3]);
        let direct = |node: &Node| [0, 1, 2].map(|k| is_direct(node, &plains[k]));
        for k in 1..=3 {
            lab::wait_for(&format!("node {k}"), PROVEN, || direct(lab.node(k)) == [true, false, true]);
        }
        found(lab.node(1), &plains[1], "pod addresses lost", SOON);
        reported(lab.node(1), &daemons[0], &plains[1], "pod addresses lost");
        assert!(lab.node(1).twill(&["status"]).contains("rp_filter 1"));
        lab::holds_for("a strict filter keeps it on the tunnel", QUIET, || {
            !is_direct(lab.node(1), &plains[1])
        });
        for report in pings.into_iter().map(PingStream::stop) {
            assert!(report.sent > 50 && report.lost == 0, "{report:?}");
        }
        // A loosened filter makes the path direct; a strict one moves it back to the tunnel.
        let strict = |how| lab.node(5).ns.sysctl(&[("net.ipv4.conf.eth0.rp_filter", how)]);
        strict("2");
        goes(lab.node(1), &plains[1], "eth0", PROVEN);
        let ping = PingStream::start(&pods[0].ns, pods[4].ip());
        lab::wait_for("the ping runs", SOON, || ping.received() > 10);
        strict("1");
        goes(lab.node(1), &plains[1], "flannel.1", 2 * AT_ONCE);
        lab::wait_for("it arrives by tunnel", SOON, || pods[0].ping(pods[4].ip()).is_some());
        let report = ping.stop();
        lab::in_time("the longest gap", report.longest_gap, AT_ONCE + Duration::from_millis(200));
    });
}
