//! Each way in which a path can be broken, and the words for it: many peers without a daemon, one of ours that looks at them.

use std::time::{Duration, Instant};

use lab::plain::Announce;
use lab::{Daemon, Filter, Lab, Relay, Timing, Topology, patient};

use crate::cluster::{self, FLAGS, HOST_GW, SOON, VXLAN};
use crate::verdicts::{TOLD, finding, found, plain, told};

/// For what takes several questions, some of which are asked only from time to time.
const IN_TIME: Duration = Duration::from_secs(25);
const CALM: Duration = Duration::from_secs(5);

/// Node 1 with its daemon, all others without; waits until all that there is to know is known.
pub(crate) fn settled<'lab>(lab: &'lab Lab, announce: Announce) -> (Daemon<'lab>, Vec<String>) {
    let daemon = lab.node(1).start(FLAGS);
    daemon.wait_ready();
    let own = lab.node(1).subnet();
    let peers = (2..=lab.nodes().len()).map(|k| plain(lab, k, announce));
    let subnets: Vec<_> = [own].into_iter().chain(peers).collect();
    (daemon, subnets)
}

fn healthy(lab: &Lab, subnets: &[String]) {
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
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::routed(9, 1), VXLAN);
        let (daemon, of) = settled(&lab, Announce::Vxlan);
        // Known by its own: whoever has the port closed to all but the tunnel and echoes is healthy.
        lab.node(7).ns.run(
            "nft 'table inet own { chain input { type filter hook input priority 0; policy drop; \
             ct state established accept; icmp type echo-request accept; meta l4proto ipv6-icmp accept; udp dport 8472 accept; }; }'",
        );
        healthy(&lab, &of[1..]);
        let _cuts = [
            Filter::between("node1", "node2", "udp dport 8472"),
            Filter::between("node1", "node5", "ip protocol icmp"),
            Filter::between("node1", "node6", "meta length > 1400"),
        ];
        lab.node(3).ns.run(
            "bridge fdb show dev flannel.1 | while read -r entry; do bridge fdb del ${entry%%self*} dev flannel.1; done",
        );
        lab.node(4).unplug();
        let quick = [(&of[1], "tunnel lost"), (&of[2], "no way back"), (&of[3], "next hop silent")];
        all_found(&lab, &daemon, &quick, TOLD);
        let _relay = Relay::of(lab.node(8));
        lab.router().run("ip route replace 192.168.101.0/24 dev eth1 mtu 1400");
        let slow = [(&of[5], "large packets lost"), (&of[9], "fragmented"), (&of[7], "checksum fault")];
        all_found(&lab, &daemon, &slow, IN_TIME);
        let status = lab.node(1).twill(&["status"]);
        assert!(status.contains("1350") && status.contains("1400"), "{status}");
        // No echo to the node itself, a firewall that lets in what it must: no fault is made of it.
        lab::holds_for("no false alarm", CALM, || {
            [4, 6, 8].iter().all(|k| finding(lab.node(1), &of[*k]).as_deref() == Some("healthy"))
        });
    });
}

#[test]
fn of_bare_packets() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(9).outside(), HOST_GW);
        lab.outside().run(&format!("ip addr add {}/24 dev eth0", lab.node(9).ip));
        let (daemon, of) = settled(&lab, Announce::HostGw);
        let node = lab.node(1);
        // Node 6 has no bridge before its first pod; neither would ours have.
        let _pods: Vec<_> = [1, 2, 3, 4, 5, 7, 8, 9].map(|k| lab.node(k).pod()).into();
        healthy(&lab, &[of[1..5].to_vec(), of[6..8].to_vec()].concat());
        assert_eq!(finding(node, &of[5]).as_deref(), Some("unverified"));
        let routes = node.ns.run("ip route show proto 84");
        let _cuts = [
            Filter::between("node1", "node2", "ether type arp"),
            Filter::between("node1", "node3", "ip saddr 10.244.0.0/16"),
            Filter::between("node1", "node4", "ip protocol icmp"),
            Filter::between("node1", "node7", "meta length > 1400"),
        ];
        lab.node(5).unplug();
        lab.node(8).ns.run(&format!("ip route del {}", of[0]));
        let quick = [
            (&of[1], "next hop silent"),
            (&of[2], "pod addresses lost"),
            (&of[4], "next hop silent"),
            (&of[7], "no way back"),
        ];
        all_found(&lab, &daemon, &quick, TOLD);
        all_found(&lab, &daemon, &[(&of[6], "large packets lost"), (&of[8], "duplicate address")], IN_TIME);
        all_found(&lab, &daemon, &[(&of[3], "echo lost")], TOLD);
        assert_eq!(finding(node, &of[5]).as_deref(), Some("unverified"));
        assert_eq!(node.ns.run("ip route show proto 84"), routes, "the kernel heals what is lost, not we");
    });
}

/// Two segments that look like one, since a router answers ARP for the other side: it cannot carry pods' packets.
#[test]
fn of_a_router_that_answers_for_others() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(1, 2), HOST_GW);
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
        let (daemon, of) = settled(&lab, Announce::HostGw);
        let _pods = lab.pods();
        let expected = [(&of[1], "proxy ARP"), (&of[2], "proxy ARP")];
        all_found(&lab, &daemon, &expected, IN_TIME);
    });
}
