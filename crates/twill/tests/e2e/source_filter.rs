//! VXLAN packets from unknown senders: whether they reach a pod, which node reports them, and that no peer suffers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{Forgery, Lab, Node, OUTSIDE6, Pod, Protocol, Timing, Topology, Witness, rules, seen_source};

use crate::cluster::{self, FLAGS, SOON};
use crate::traffic::{Manager, OUTSIDES, of_node, of_pod, tables};

const PORT: u16 = 8472;
/// Maximum time until an unknown sender is named if nothing else happens on the node.
const NAMED: Duration = Duration::from_secs(35);

fn config(manager: Manager, filter: &str) -> String {
    let filter =
        if filter.is_empty() { String::new() } else { format!(r#","VxlanSourceFilter":"{filter}""#) };
    manager.config_with(&format!(r#""Type":"vxlan"{filter}"#))
}

fn mac_of(node: &Node, device: &str) -> String {
    let link = node.ns.run(&format!("ip -o link show {device}"));
    link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

/// Sends a datagram to the pod's witness through the tunnel of each family, with an unknown pod as its source.
fn forge(lab: &Lab, node: &Node, pod: &Pod, (vni, said): (u32, &str)) {
    let claims: [SocketAddr; 2] =
        ["10.244.10.10:999", "[fd00:244:0:ffff::10]:999"].map(|it| it.parse().unwrap());
    for (family, device) in ["flannel.1", "flannel-v6.1"].into_iter().enumerate() {
        let inner = (claims[family], (of_pod(pod)[family], Witness::port()).into());
        let forgery = Forgery { vni, mac: mac_of(node, device), inner, said: said.into() };
        forgery.send(lab.outside(), OUTSIDES[family], (of_node(node)[family], PORT).into());
    }
}

/// Returns how many forged datagrams of both families reach the pod. The echoes take the same way later: when they are answered,
/// everything that will arrive has arrived.
fn reach(lab: &Lab, node: &Node, (pod, witness): (&Pod, &Witness), said: &str) -> usize {
    forge(lab, node, pod, (1, said));
    for ip in of_node(node) {
        assert!(ping(lab, ip), "{ip} is there");
    }
    lab::until(Duration::from_millis(300), || (witness.count(said) == 2).then_some(()));
    witness.count(said)
}

fn ping(lab: &Lab, ip: IpAddr) -> bool {
    lab.outside().output(&format!("ping -n -c 1 -W 1 {ip}")).status.success()
}

/// Returns the number of packets from `address` that nft counts in the set `strangers`.
fn counted(node: &Node, address: IpAddr) -> u64 {
    let (family, table) = if address.is_ipv4() { ("ip", "flannel-ipv4") } else { ("ip6", "flannel-ipv6") };
    let set = node.ns.run(&format!("nft list set {family} {table} strangers 2>/dev/null || true"));
    let text = set.split(&format!("{address} ")).nth(1).unwrap_or_default();
    let text = text.split("packets ").nth(1).unwrap_or_default();
    text.split(' ').next().unwrap_or_default().parse().unwrap_or(0)
}

fn names(node: &Node, address: IpAddr) -> bool {
    let status = node.twill(&["status"]);
    status
        .lines()
        .any(|line| line.contains(&address.to_string()) && line.contains("no peer has that address"))
}

/// Changes something on the node, so that the daemon reads everything.
fn draw_a_look(node: &Node, peer: &Node) {
    node.ns.run(&format!("ip route del {}", peer.subnet()));
}

fn forged(manager: Manager, filter: &str, arrive: usize) {
    let lab = cluster::lab(Topology::flat(2).outside(), &config(manager, filter));
    let (daemons, pods) = cluster::start(&lab);
    cluster::reach_each_other(&pods);
    let (node, witness) = (lab.node(1), Witness::start(&pods[0].ns));
    for (nth, said) in ["one", "two", "three"].into_iter().enumerate() {
        assert_eq!(
            reach(&lab, node, (&pods[0], &witness), said),
            arrive,
            "{manager:?} {filter}: packet {nth}"
        );
    }
    if filter == "off" {
        assert!(!tables(&node.ns).contains("chain vxlan"), "{}", tables(&node.ns));
        return;
    }
    assert_eq!(OUTSIDES.map(|ip| counted(node, ip)), [3, 3], "{}", node.ns.run("nft list ruleset"));
    if !filter.is_empty() {
        draw_a_look(node, lab.node(2));
    }
    for ip in OUTSIDES {
        lab::wait_for(&format!("status names {ip}"), NAMED, || names(node, ip));
        lab::wait_for(&format!("the log names {ip}"), SOON, || {
            daemons[0].log().contains(&format!("{ip} sends VXLAN packets to this node"))
        });
        assert!(!names(lab.node(2), ip), "who was not sent any knows nothing");
    }
    // The peers' own packets do not count.
    assert_eq!(of_node(lab.node(2)).map(|ip| counted(node, ip)), [0, 0]);
    cluster::reach_each_other(&pods);
    assert!(seen_source(&pods[1].ns, Protocol::Tcp, of_pod(&pods[0])[0]).is_some());
}

#[test]
fn forged_packets_pass_uncounted_when_the_filter_is_off() {
    lab::test(Timing::Free, || forged(Manager::Nft, "off", 2));
}

#[test]
fn forged_packets_are_counted_and_named() {
    lab::test(Timing::Free, || forged(Manager::Nft, "count", 2));
}

#[test]
fn forged_packets_are_counted_and_named_by_default() {
    lab::test(Timing::Free, || forged(Manager::Auto, "", 2));
}

#[test]
fn forged_packets_are_dropped() {
    lab::test(Timing::Free, || forged(Manager::Nft, "drop", 0));
}

#[test]
fn forged_packets_are_dropped_beside_rules_of_iptables() {
    lab::test(Timing::Free, || forged(Manager::Iptables, "drop", 0));
}

/// The first fragment has no VNI. No connection tracking joins the fragments before the filter.
fn forged_in_fragments(filter: &str, arrive: usize) {
    let lab = cluster::lab(Topology::flat(2).outside(), &config(Manager::Nft, filter));
    let (_daemons, pods) = cluster::start(&lab);
    cluster::reach_each_other(&pods);
    let (node, witness) = (lab.node(1), Witness::start(&pods[0].ns));
    let inner = ("[fd00:244:0:ffff::10]:999".parse().unwrap(), (of_pod(&pods[0])[1], Witness::port()).into());
    let mac = mac_of(node, "flannel-v6.1");
    let forgery = Forgery { vni: 1, mac, inner, said: "fragments".into() };
    let (own, to) = (OUTSIDE6, std::net::SocketAddrV6::new(node.ip6, PORT, 0, 0));
    forgery.send_in_fragments(lab.outside(), own, to);
    assert!(ping(&lab, node.ip6.into()));
    lab::until(Duration::from_millis(300), || (witness.count("fragments") == 1).then_some(()));
    let rules = node.ns.run("nft list ruleset");
    assert_eq!(witness.count("fragments"), arrive, "{rules}");
    assert_eq!(counted(node, own.into()), u64::from(filter != "off"), "{rules}");
    cluster::reach_each_other(&pods);
}

#[test]
fn forged_fragments_are_dropped() {
    lab::test(Timing::Free, || forged_in_fragments("drop", 0));
}

#[test]
fn forged_fragments_are_counted() {
    lab::test(Timing::Free, || forged_in_fragments("count", 1));
}

#[test]
fn forged_fragments_pass_uncounted_when_the_filter_is_off() {
    lab::test(Timing::Free, || forged_in_fragments("off", 1));
}

#[test]
fn a_filter_change_takes_effect_while_running() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2).outside(), &config(Manager::Nft, "off"));
        let (_daemons, pods) = cluster::start(&lab);
        let (node, witness) = (lab.node(1), Witness::start(&pods[0].ns));
        for (nth, (filter, arrive)) in
            [("drop", 0), ("count", 2), ("drop", 0), ("off", 2)].into_iter().enumerate()
        {
            lab.store.config(&config(Manager::Nft, filter));
            let mut at = 0;
            lab::wait_for(&format!("change {nth} to {filter}"), SOON, || {
                at += 1;
                reach(&lab, node, (&pods[0], &witness), &format!("{nth} {at}")) == arrive
            });
            cluster::reach_each_other(&pods);
        }
    });
}

/// The node has another tunnel at the same port.
#[test]
fn packets_of_another_vni_on_our_port_are_not_touched() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2).outside(), &config(Manager::Nft, "drop"));
        let (_daemons, pods) = cluster::start(&lab);
        let (node, witness) = (lab.node(1), Witness::start(&pods[0].ns));
        node.ns.batch(&format!(
            "link add other4 address {} type vxlan id 99 local {} dev eth0 dstport {PORT} nolearning\nlink set other4 up\n\
             link add other6 address {} type vxlan id 99 local {} dev eth0 dstport {PORT} nolearning\nlink set other6 up\n",
            mac_of(node, "flannel.1"), node.ip, mac_of(node, "flannel-v6.1"), node.ip6
        ));
        lab::wait_for("both come through", SOON, || {
            forge(&lab, node, &pods[0], (99, "another"));
            lab::until(Duration::from_millis(200), || (witness.count("another") >= 2).then_some(())).is_some()
        });
        assert_eq!(reach(&lab, node, (&pods[0], &witness), "ours"), 0);
        assert_eq!(OUTSIDES.map(|ip| counted(node, ip)), [1, 1], "only ours is counted");
    });
}

/// The third node's packets reach the others from an address of the router, but its lease has its own address.
#[test]
fn a_peer_behind_nat_works_and_is_named() {
    lab::test(Timing::Free, || {
        let public: [IpAddr; 2] = ["192.168.100.150", "fd00:100::150"].map(|ip| ip.parse().unwrap());
        let lab = cluster::lab(Topology::routed(2, 1), &config(Manager::Nft, "count"));
        for (inside, outside) in of_node(lab.node(3)).into_iter().zip(public) {
            rules::nat_one_to_one(lab.router(), "eth0", inside, outside);
        }
        let (_daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let node = lab.node(1);
        assert!(public.iter().all(|ip| counted(node, *ip) > 0), "{}", node.ns.run("nft list ruleset"));
        draw_a_look(node, lab.node(2));
        for ip in public {
            lab::wait_for(&format!("status names {ip}"), SOON, || names(node, ip));
        }
    });
}

/// A node that announces an address other than its own is behind a translation. Its peers' packets may then come from other
/// addresses, too.
#[test]
fn no_packet_is_dropped_if_our_own_address_is_translated() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(2, 1).outside(), &config(Manager::Nft, "drop"));
        let public: [IpAddr; 2] = ["192.168.100.150", "fd00:100::150"].map(|ip| ip.parse().unwrap());
        let far = lab.node(3);
        for (inside, outside) in of_node(far).into_iter().zip(public) {
            rules::nat_one_to_one(lab.router(), "eth0", inside, outside);
        }
        let announced = public.map(|ip| ip.to_string());
        let _near = [lab.node(1).start(FLAGS), lab.node(2).start(FLAGS)];
        let flags = [format!("--public-ip={}", announced[0]), format!("--public-ipv6={}", announced[1])];
        let _far = far.start(&[FLAGS, &[&flags[0], &flags[1]]].concat());
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let (here, there) = (Witness::start(&pods[0].ns), Witness::start(&pods[2].ns));
        assert_eq!(reach(&lab, lab.node(1), (&pods[0], &here), "dropped"), 0);
        assert_eq!(reach(&lab, far, (&pods[2], &there), "counted"), 2);
        let all = tables(&far.ns);
        let mut chains = all.split("chain vxlan {").skip(1).map(|chain| chain.split("\t}").next().unwrap());
        assert!(chains.clone().count() == 2 && chains.all(|chain| !chain.contains("drop\n")), "{all}");
    });
}

/// Cached leases may lack a peer.
#[test]
fn no_packet_is_dropped_before_the_leases_are_listed() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2).outside(), &config(Manager::Nft, "drop"));
        let (mut daemons, pods) = cluster::start(&lab);
        let (node, witness) = (lab.node(1), Witness::start(&pods[0].ns));
        assert_eq!(reach(&lab, node, (&pods[0], &witness), "listed"), 0);
        let away = lab.store.path().with_extension("away");
        std::fs::rename(lab.store.path(), &away).unwrap();
        daemons[0].kill9();
        daemons[0].restart();
        let mut at = 0;
        lab::wait_for("nothing is dropped", SOON, || {
            at += 1;
            reach(&lab, node, (&pods[0], &witness), &format!("remembered {at}")) == 2
        });
        std::fs::rename(&away, lab.store.path()).unwrap();
        lab::wait_for("it is dropped again", SOON, || {
            at += 1;
            reach(&lab, node, (&pods[0], &witness), &format!("listed {at}")) == 0
        });
    });
}

/// Sets by whose elements rules that drop packets stay in force.
const KEEPERS: [&str; 2] = ["ip flannel-ipv4 keeper", "ip6 flannel-ipv6 keeper"];

/// Sets the time for which the node's rules stay in force unless the daemon renews them.
fn leave_in_force(node: &Node, seconds: u32) {
    for set in KEEPERS {
        node.ns.run(&format!("nft 'flush set {set}; add element {set} {{ udp timeout {seconds}s }}'"));
    }
}

/// Returns the seconds for which the rules of either family stay in force without a renewal, rounded up.
fn in_force(node: &Node) -> [u64; 2] {
    KEEPERS.map(|set| {
        let json = node.ns.run(&format!("nft -j list set {set}"));
        let seconds = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        json.split(r#""expires": "#).nth(1).map_or(0, |text| seconds(text).unwrap_or(0) + 1)
    })
}

/// The dead daemon admits no new peer, so its rules must not cut one off for good.
#[test]
fn rules_of_a_killed_daemon_drop_for_two_minutes_at_most() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2).outside(), &config(Manager::Nft, "drop"));
        let (mut daemons, pods) = cluster::start(&lab);
        let (node, witness) = (lab.node(1), Witness::start(&pods[0].ns));
        assert_eq!(reach(&lab, node, (&pods[0], &witness), "kept"), 0);
        daemons[0].kill9();
        let left = in_force(node);
        assert!(left.iter().all(|left| (1..=121).contains(left)), "{left:?}");
        assert_eq!(reach(&lab, node, (&pods[0], &witness), "killed"), 0, "a restart opens nothing");
        // The test does not wait for the two minutes.
        leave_in_force(node, 1);
        lab::wait_for("the rules expire", SOON, || in_force(node) == [0, 0]);
        let before = OUTSIDES.map(|ip| counted(node, ip));
        assert_eq!(reach(&lab, node, (&pods[0], &witness), "expired"), 2);
        assert_eq!(OUTSIDES.map(|ip| counted(node, ip)), before.map(|packets| packets + 1), "still counted");
        daemons[0].restart();
        let mut at = 0;
        lab::wait_for("the next daemon drops again", SOON, || {
            at += 1;
            reach(&lab, node, (&pods[0], &witness), &format!("restarted {at}")) == 0
        });
        let renewed = in_force(node);
        assert!(renewed.iter().all(|left| *left > 60), "{renewed:?}");
    });
}

/// A calm daemon writes to the kernel once a minute for this, and reports no change.
#[test]
fn a_running_daemon_keeps_its_rules_in_force() {
    /// Maximum time from one renewal to the next.
    const RENEWED: Duration = Duration::from_secs(90);
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), &config(Manager::Nft, "drop"));
        let (daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let node = lab.node(1);
        let ops = || cluster::ops_asked(node);
        lab::wait_for("nothing changes", SOON, || {
            let before = ops();
            lab::until(Duration::from_secs(1), || None::<()>);
            before == ops()
        });
        let (before, log) = (ops(), daemons[0].log().len());
        // A longer time than this shows a renewal.
        leave_in_force(node, 100);
        let monitor = lab::Lines::start({
            let mut monitor = node.ns.command("nft");
            monitor.arg("monitor");
            monitor
        });
        let marks = |name: &str| {
            node.ns.run(&format!("nft 'add table ip {name}; delete table ip {name}'"));
            monitor.wait_for(Duration::from_millis(100), |line| line.contains(name))
        };
        lab::wait_for("the monitor listens", SOON, || marks("first-mark"));
        let renewed = |line: &str| line.contains("add element ip6 flannel-ipv6 keeper");
        assert!(monitor.wait_for(RENEWED, renewed), "{:#?}", monitor.all());
        let left = in_force(node);
        assert!(left.iter().all(|left| *left > 100), "{left:?}");
        assert_eq!(before, ops(), "a renewal is no change");
        let said = daemons[0].log().split_off(log);
        assert!(!said.contains("applied"), "{said}");
        lab::wait_for("all is reported", SOON, || marks("last-mark"));
        let lines: Vec<_> = monitor.all().into_iter().map(|line| line.text).collect();
        let lines = lines.iter().filter(|line| !line.starts_with('#') && !line.contains("-mark"));
        let (renewals, other): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("keeper"));
        assert_eq!(renewals.len(), 4, "each element is replaced once: {renewals:#?}");
        assert_eq!(other, Vec::<&String>::new());
    });
}

/// A new peer is admitted no later than its packets can come; a peer that goes becomes unknown.
#[test]
fn the_filter_admits_exactly_the_nodes_with_a_lease() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), &config(Manager::Nft, "drop"));
        let near = [lab.node(1).start(FLAGS), lab.node(2).start(FLAGS)];
        near.iter().for_each(lab::Daemon::wait_ready);
        let peers = |node: &Node| {
            let text = tables(&node.ns);
            lab.nodes()
                .iter()
                .map(|peer| of_node(peer).iter().all(|ip| text.contains(&ip.to_string())))
                .collect::<Vec<_>>()
        };
        lab::wait_for("node 2 is known", SOON, || peers(lab.node(1)) == [false, true, false]);
        let mut far = lab.node(3).start(FLAGS);
        far.wait_ready();
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        assert_eq!(peers(lab.node(1)), [false, true, true], "{}", tables(&lab.node(1).ns));
        far.kill9();
        let leases = lab.store.leases();
        let name = leases.iter().find(|(_, lease)| lease.contains(&lab.node(3).ip.to_string())).unwrap().0;
        lab.store.remove_lease(name);
        lab::wait_for("node 3 is forgotten", SOON, || peers(lab.node(1)) == [false, true, false]);
    });
}
