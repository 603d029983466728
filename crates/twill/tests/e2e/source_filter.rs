//! VXLAN packets from unknown senders: whether they reach a pod, which node reports them, and that no peer suffers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{Forgery, Lab, Node, Pod, Protocol, Timing, Topology, Witness, rules, seen_source};

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
            daemons[0].log().contains(&format!("{ip} sends us"))
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
