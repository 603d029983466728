//! Kernel events trigger probes at once: a next hop that failed or has a new MAC, a returning link. With this number
//! of peers, no regular probe would come for a long time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lab::plain::Announce;
use lab::{Capture, Daemon, Lab, Node, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON, VXLAN};
use crate::paths::settled;
use crate::verdicts::{
    AT_ONCE, AUTO, AUTO_DUAL, PROVEN, REPORTED, finding, found, goes, is_direct, plain, reported,
};

const LARGE: &str = r#"{"Network":"10.240.0.0/12","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"vxlan"}}"#;
/// Number of peers with no node behind them. Each is probed every 12 to 24 s.
const NOBODIES: usize = 2000;
const SELDOM: Duration = Duration::from_secs(30);
/// Time after which `--probe=on-change` probes nobody any more.
const SETTLED: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(8);

fn plant_nobodies(lab: &Lab) {
    let lease = |n: usize| {
        let (high, low) = (n >> 8, n & 0xff);
        let json = format!(
            r#"{{"PublicIP":"172.31.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:99:{high:02x}:{low:02x}"}}}}"#
        );
        (format!("10.{}.{low}.0-24", 248 + high), json)
    };
    lab.store.put_leases(&(0..NOBODIES).map(lease).collect::<Vec<_>>());
}

/// Probes to a peer with a /24, by tunnel.
struct Questions(Capture, String);

impl Questions {
    fn to(node: &Node, subnet: &str) -> Self {
        let wire = Capture::start(&node.ns, "flannel.1", &["icmp"]);
        Self(wire, format!("> {}: ICMP echo request", subnet.strip_suffix("/24").unwrap()))
    }

    fn count(&self) -> usize {
        self.0.packets().iter().filter(|packet| packet.contains(&self.1)).count()
    }

    fn next(&self, limit: Duration) {
        let before = self.count();
        lab::wait_for(&self.1, limit, || self.count() > before);
    }
}

/// Marks a peer as failed, with the event that the kernel sends after three unanswered requests of its own.
fn gives_up(node: &Node, peer: &Node) {
    node.ns.run(&format!("ip neigh replace {} dev eth0 nud failed", peer.ip));
}

#[test]
fn a_failed_neighbour_and_a_restored_link_trigger_probes() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), LARGE);
        let (daemon, of) = settled(&lab, Announce::Vxlan);
        let node = lab.node(1);
        of[1..].iter().for_each(|peer| {
            found(node, peer, "healthy", SOON);
        });
        plant_nobodies(&lab);
        let all = format!("{} peers", NOBODIES + 2);
        lab::wait_for("all are known", SELDOM, || node.twill(&["status"]).contains(&all));
        let [one, other] = [1, 2].map(|k| Questions::to(node, &of[k]));
        // The second probe comes after the peers have become many.
        (0..2).for_each(|_| one.next(SELDOM));
        lab.node(2).unplug();
        gives_up(node, lab.node(2));
        found(node, &of[1], "next hop silent", REPORTED);
        reported(node, &daemon, &of[1], "next hop silent");
        other.next(SELDOM);
        node.unplug();
        let carrier = || !node.ns.run("ip link show eth0").contains("NO-CARRIER");
        lab::wait_for("the carrier is gone", SOON, || !carrier());
        node.plug();
        other.next(AT_ONCE);
    });
}

#[test]
fn on_change_probes_again_after_a_change() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (node, other) = (lab.node(1), lab.node(2));
        let _daemon = node.start(&[FLAGS, &["--probe=on-change"]].concat());
        node.subnet();
        let peer = plain(&lab, 2, Announce::Vxlan);
        found(node, &peer, "healthy", SOON);
        let asked = Questions::to(node, &peer);
        asked.next(SOON);
        let (mut count, mut since) = (asked.count(), Instant::now());
        lab::wait_for("it is asked no more", SETTLED, || {
            if asked.count() > count {
                (count, since) = (asked.count(), Instant::now());
            }
            since.elapsed() > QUIET
        });
        assert_eq!(finding(node, &peer).as_deref(), Some("healthy"));
        other.unplug();
        gives_up(node, other);
        found(node, &peer, "next hop silent", REPORTED);
        other.plug();
        found(node, &peer, "healthy", SOON);
    });
}

/// A second machine takes a peer's address when all nodes know the peer's MAC. Kernels believe the machine that sent
/// last.
#[test]
fn an_address_taken_by_a_second_machine_is_reported() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), AUTO_DUAL);
        let daemons: Vec<_> = [1, 2].map(|k| lab.node(k).start(FLAGS)).into();
        daemons.iter().for_each(Daemon::wait_ready);
        let (node, owner, thief) = (lab.node(1), lab.node(2), lab.node(3));
        let peers = [owner.subnet(), owner.subnet6()];
        peers.iter().for_each(|peer| {
            goes(node, peer, "eth0", PROVEN);
        });
        for (ip, len, to) in
            [(IpAddr::from(owner.ip), 24, IpAddr::from(node.ip)), (owner.ip6.into(), 64, node.ip6.into())]
        {
            thief
                .ns
                .run(&format!("ip addr add {ip}/{len} dev eth0 {}", if ip.is_ipv6() { "nodad" } else { "" }));
            let talk =
                || drop(thief.ns.output(&format!("ip neigh flush dev eth0; ping -n -c 1 -W 1 -I {ip} {to}")));
            talk();
            let line = |log: &str| {
                log.lines().any(|line| {
                    [&owner.mac, &thief.mac].iter().all(|mac| line.contains(*mac))
                        && line.contains(&format!("answer for {ip}"))
                })
            };
            lab::wait_for("it is said", AT_ONCE, || line(&daemons[0].log()));
            let peer = &peers[usize::from(ip.is_ipv6())];
            lab::wait_for("it does harm", 3 * SOON, || {
                talk();
                finding(node, peer).as_deref() == Some("duplicate address")
            });
            thief.ns.run(&format!("ip addr del {ip}/{len} dev eth0"));
        }
    });
}

/// The old MAC is gone, so nothing is wrong.
#[test]
fn a_peer_with_a_new_nic_is_not_reported_as_duplicate() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), AUTO);
        let daemons = lab.start_all(FLAGS);
        let (node, other) = (lab.node(1), lab.node(2));
        let peer = other.subnet();
        goes(node, &peer, "eth0", PROVEN);
        let new = "02:00:00:00:77:02";
        let wire = Capture::start(&node.ns, "eth0", &["arp", "and", "ether", "dst", new]);
        other.ns.run(&format!("ip link set eth0 address {new}; ip neigh flush dev eth0"));
        other.ping(node.ip);
        let question = format!("who-has {} tell {}", other.ip, node.ip);
        let asked = || wire.packets().iter().filter(|packet| packet.contains(&question)).count();
        lab::wait_for("the new one is asked alone", SOON, || asked() >= 3);
        assert!(is_direct(node, &peer));
        found(node, &peer, "healthy", SOON);
        let log = daemons[0].log();
        assert!(!log.contains("answer for"), "{log}");
    });
}
