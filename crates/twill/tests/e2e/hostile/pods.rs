//! An unprivileged pod sends VXLAN packets: masquerading gives them the node's address, which the peers accept.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{Forgery, Lab, Node, Pod, Timing, Topology, Witness};

use crate::cluster::{self, SOON};
use crate::traffic::{Manager, OUTSIDES, of_node, of_pod};

const MASQ: &[&str] = &["--ip-masq"];

fn mac_of(node: &Node, device: &str) -> String {
    let link = node.ns.run(&format!("ip -o link show {device}"));
    link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

struct Attack<'a> {
    lab: &'a Lab,
    pods: &'a [Pod],
    witness: &'a Witness,
    /// Addresses that the packets are sent from.
    own: [IpAddr; 2],
    port: u16,
}

impl Attack<'_> {
    /// Sends forged packets from the first node's pod to the second node, with an unknown pod as the inner source. Returns how
    /// many, of both families, arrive at the second node's pod.
    fn arrive(&self, vni: u32, said: &str) -> usize {
        let node = self.lab.node(2);
        let claims: [SocketAddr; 2] =
            ["10.244.10.10:999", "[fd00:244:0:ffff::10]:999"].map(|it| it.parse().unwrap());
        for (family, device) in ["flannel.1", "flannel-v6.1"].into_iter().enumerate() {
            let inner = (claims[family], (of_pod(&self.pods[1])[family], Witness::port()).into());
            let forgery = Forgery { vni, mac: mac_of(node, device), inner, said: said.into() };
            forgery.send(&self.pods[0].ns, self.own[family], (of_node(node)[family], self.port).into());
        }
        // The echoes take the same way later: when they are answered, everything that will arrive has arrived.
        for ip in of_node(node) {
            assert!(self.pods[0].ping(ip).is_some(), "{ip} is there");
        }
        lab::until(Duration::from_millis(300), || (self.witness.count(said) == 2).then_some(()));
        self.witness.count(said)
    }
}

/// Returns the number of packets from `address` that the node has counted.
fn counted(node: &Node, address: IpAddr) -> u64 {
    let (family, table) = if address.is_ipv4() { ("ip", "flannel-ipv4") } else { ("ip6", "flannel-ipv6") };
    let set = node.ns.run(&format!("nft list set {family} {table} strangers 2>/dev/null || true"));
    let text = set.split(&format!("{address} ")).nth(1).unwrap_or_default();
    let text = text.split("packets ").nth(1).unwrap_or_default();
    text.split(' ').next().unwrap_or_default().parse().unwrap_or(0)
}

fn attacked(manager: Manager, backend: &str, filter: &str, arrive: usize) {
    let fields = format!(r#""Type":"{backend}","VxlanSourceFilter":"{filter}""#);
    let lab = cluster::lab(Topology::flat(2), &manager.config_with(&fields));
    let (_daemons, pods) = cluster::start_with(&lab, MASQ);
    cluster::reach_each_other(&pods);
    let witness = Witness::start(&pods[1].ns);
    let attack = Attack { lab: &lab, pods: &pods, witness: &witness, own: of_pod(&pods[0]), port: 8472 };
    for said in ["one", "two"] {
        assert_eq!(attack.arrive(1, said), arrive, "{manager:?} {backend} {filter}: {said}");
    }
    let (node, own) = (lab.node(1), of_pod(&pods[0]));
    if filter == "off" {
        assert!(!node.ns.run("nft list ruleset").contains("vxlan-pods"));
        return;
    }
    assert_eq!(own.map(|ip| counted(node, ip)), [2, 2], "{}", node.ns.run("nft list ruleset"));
    node.ns.run(&format!("ip route del {}", lab.node(2).subnet()));
    for ip in own {
        lab::wait_for(&format!("status names {ip}"), SOON, || {
            node.twill(&["status"]).contains(&format!("pod {ip} sends VXLAN packets"))
        });
    }
    assert_eq!(node.get("/readyz").unwrap().status, 200, "a pod does not turn readiness off");
    cluster::reach_each_other(&pods);
}

#[test]
fn forged_packets_of_a_masqueraded_pod_are_dropped() {
    lab::test(Timing::Free, || attacked(Manager::Nft, "vxlan", "drop", 0));
}

#[test]
fn forged_packets_of_a_pod_are_dropped_beside_rules_of_iptables() {
    lab::test(Timing::Free, || attacked(Manager::Iptables, "vxlan", "drop", 0));
}

#[test]
fn forged_packets_of_a_pod_are_dropped_where_paths_may_be_direct() {
    lab::test(Timing::Free, || attacked(Manager::Auto, "auto", "drop", 0));
}

#[test]
fn forged_packets_of_a_pod_are_counted_with_its_address() {
    lab::test(Timing::Free, || attacked(Manager::Nft, "vxlan", "count", 2));
}

#[test]
fn forged_packets_of_a_pod_pass_when_the_filter_is_off() {
    lab::test(Timing::Free, || attacked(Manager::Nft, "vxlan", "off", 2));
}

/// A container of another runtime, outside the pod network. Its node masquerades what it sends.
fn sent_by_a_container(filter: &str, arrive: usize) {
    let config = Manager::Nft.config_with(&format!(r#""Type":"vxlan","VxlanSourceFilter":"{filter}""#));
    let lab = cluster::lab(Topology::flat(2), &config);
    let (_daemons, pods) = cluster::start_with(&lab, MASQ);
    cluster::reach_each_other(&pods);
    let node = lab.node(1);
    let own: [IpAddr; 2] = ["172.17.0.2", "fd00:172::2"].map(|ip| ip.parse().unwrap());
    for (ip, family, place) in [(own[0], "ip", "32 dev eth0"), (own[1], "ip6", "128 dev eth0 nodad")] {
        pods[0].ns.run(&format!("ip addr add {ip}/{place}"));
        node.ns.run(&format!(
            "ip route add {ip} dev cni0
             nft 'table {family} docker {{ chain post {{ type nat hook postrouting priority 100;
                  {family} saddr {ip} oifname eth0 masquerade; }}; }}'"
        ));
    }
    let witness = Witness::start(&pods[1].ns);
    let attack = Attack { lab: &lab, pods: &pods, witness: &witness, own, port: 8472 };
    assert_eq!(attack.arrive(1, "container"), arrive, "{}", node.ns.run("nft list ruleset"));
    assert_eq!(attack.arrive(9, "another VNI"), 0);
    assert_eq!(own.map(|ip| counted(node, ip)), [1, 1], "{}", node.ns.run("nft list ruleset"));
    cluster::reach_each_other(&pods);
}

#[test]
fn forged_packets_of_a_container_outside_the_network_are_dropped() {
    lab::test(Timing::Free, || sent_by_a_container("drop", 0));
}

#[test]
fn forged_packets_of_a_container_outside_the_network_are_counted() {
    lab::test(Timing::Free, || sent_by_a_container("count", 2));
}

/// A service of the node leads to the tunnel port of a peer, as a NodePort may.
#[test]
fn forged_packets_that_a_service_forwards_to_a_peer_are_dropped() {
    lab::test(Timing::Free, || {
        let config = Manager::Nft.config_with(r#""Type":"vxlan","VxlanSourceFilter":"drop""#);
        let lab = cluster::lab(Topology::flat(2).outside(), &config);
        let (_daemons, pods) = cluster::start_with(&lab, MASQ);
        cluster::reach_each_other(&pods);
        let (node, witness) = (lab.node(1), Witness::start(&pods[1].ns));
        let (service, outside) = ((node.ip, 30000), OUTSIDES[0]);
        node.ns.run(&format!(
            "nft 'table ip service {{ chain pre {{ type nat hook prerouting priority -100;
                  udp dport 30000 dnat to {to}:8472; }}
                  chain post {{ type nat hook postrouting priority 100; ip daddr {to} masquerade; }}; }}'",
            to = lab.node(2).ip
        ));
        let inner = ("10.244.10.10:999".parse().unwrap(), (of_pod(&pods[1])[0], Witness::port()).into());
        let mac = mac_of(lab.node(2), "flannel.1");
        let forgery = Forgery { vni: 1, mac, inner, said: "service".into() };
        forgery.send(lab.outside(), outside, service.into());
        lab::wait_for("it is counted", SOON, || counted(node, outside) == 1);
        assert!(lab.outside().output(&format!("ping -n -c 1 -W 1 {}", lab.node(2).ip)).status.success());
        assert_eq!(witness.count("service"), 0);
        cluster::reach_each_other(&pods);
    });
}

/// A peer listens at another port than this node.
#[test]
fn forged_packets_to_a_peers_port_are_dropped() {
    lab::test(Timing::Free, || {
        let config = Manager::Nft.config_with(r#""Type":"vxlan","VxlanSourceFilter":"drop""#);
        let lab = cluster::lab(Topology::flat(2), &config);
        let flags = [cluster::FLAGS, MASQ, &["--config-reload=false"]].concat();
        let first = lab.node(1).start(&flags);
        first.wait_ready();
        lab.store.config(&config.replace(r#""Type":"vxlan""#, r#""Type":"vxlan","Port":4790"#));
        let second = lab.node(2).start(&flags);
        second.wait_ready();
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let witness = Witness::start(&pods[1].ns);
        let attack = Attack { lab: &lab, pods: &pods, witness: &witness, own: of_pod(&pods[0]), port: 4790 };
        assert_eq!(attack.arrive(1, "other port"), 0, "{}", lab.node(1).ns.run("nft list ruleset"));
        assert_eq!(of_pod(&pods[0]).map(|ip| counted(lab.node(1), ip)), [1, 1]);
        cluster::reach_each_other(&pods);
    });
}

/// A network of the pods' own, inside the pod network, is not filtered.
#[test]
fn a_vxlan_network_of_pods_with_another_vni_passes() {
    lab::test(Timing::Free, || {
        let config = Manager::Nft.config_with(r#""Type":"vxlan","VxlanSourceFilter":"drop""#);
        let lab = cluster::lab(Topology::flat(2), &config);
        let (_daemons, pods) = cluster::start_with(&lab, MASQ);
        cluster::reach_each_other(&pods);
        let ends = [of_pod(&pods[0])[0], of_pod(&pods[1])[0]];
        for (at, pod) in pods.iter().enumerate() {
            let (own, other) = (ends[at], ends[1 - at]);
            pod.ns.batch(&format!(
                "link add own type vxlan id 42 local {own} remote {other} dstport 8472\nlink set own up\n\
                 address add 172.31.0.{}/24 dev own\n",
                at + 1
            ));
        }
        lab::wait_for("the pods' own tunnel works", SOON, || {
            pods[0].ns.output("ping -n -c 1 -W 1 172.31.0.2").status.success()
        });
    });
}

/// Removed rules, and sets below them, come back.
#[test]
fn the_filter_is_repaired() {
    lab::test(Timing::Free, || {
        let config = Manager::Nft.config_with(r#""Type":"vxlan","VxlanSourceFilter":"drop""#);
        let lab = cluster::lab(Topology::flat(2), &config);
        let (_daemons, pods) = cluster::start_with(&lab, MASQ);
        cluster::reach_each_other(&pods);
        let witness = Witness::start(&pods[1].ns);
        let attack = Attack { lab: &lab, pods: &pods, witness: &witness, own: of_pod(&pods[0]), port: 8472 };
        let node = lab.node(1);
        let whole = crate::traffic::tables(&node.ns);
        assert!(whole.contains("chain vxlan-pods"), "{whole}");
        for (nth, harm) in [
            "nft flush chain ip flannel-ipv4 vxlan-pods",
            "nft delete chain ip6 flannel-ipv6 vxlan-pods",
            "nft flush chain ip flannel-ipv4 vxlan-pods; nft flush chain ip flannel-ipv4 vxlan; \
             nft delete set ip flannel-ipv4 strangers",
            "nft flush chain ip flannel-ipv4 vxlan-pods; nft flush chain ip flannel-ipv4 vxlan; \
             nft delete set ip flannel-ipv4 strangers; nft add set ip flannel-ipv4 strangers '{ type ipv4_addr; }'",
            "nft flush ruleset",
        ]
        .into_iter()
        .enumerate()
        {
            node.ns.run(harm);
            lab::wait_for(&format!("{harm}: all is back"), SOON, || {
                let lines = |text: &str| {
                    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                    lines.retain(|line| !line.contains("elements") && !line.contains("expires"));
                    lines.sort_unstable();
                    lines
                };
                lines(&crate::traffic::tables(&node.ns)) == lines(&whole)
            });
            assert_eq!(attack.arrive(1, &format!("after harm {nth}")), 0, "{harm}");
        }
        // Without the filter neither chain nor set stays.
        lab.store.config(&config.replace(r#""drop""#, r#""off""#));
        lab::wait_for("nothing of it is left", SOON, || {
            let tables = crate::traffic::tables(&node.ns);
            !tables.contains("vxlan") && !tables.contains("strangers")
        });
    });
}
