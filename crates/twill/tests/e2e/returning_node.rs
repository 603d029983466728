//! A flannel node comes back with another address and subnet while its old lease still exists. Other leases only look like that.
//! If two leases exclude each other, the one whose node answers is used.

use std::net::Ipv4Addr;
use std::time::Duration;

use lab::{Daemon, EtcdSetup, Lab, Node, PingStream, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON, VXLAN};

const MAC: &str = "02:00:00:00:49:01";
const OLD: &str = "10.244.9.0/24";
const NEW: &str = "10.244.10.0/24";

fn first(subnet: &str) -> &str {
    subnet.split('/').next().unwrap()
}

fn lease(ip: Ipv4Addr) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#
    )
}

fn announce(lab: &Lab, subnet: &str, ip: Ipv4Addr) {
    lab.store.put_lease(&cluster::lease_name(subnet), &lease(ip));
}

/// Returns an address of the segment that no node has.
fn other_address(node: &Node) -> Ipv4Addr {
    let [a, b, c, _] = node.ip.octets();
    Ipv4Addr::new(a, b, c, 77)
}

/// Configures `node` as flannel does with that address and subnet, for one peer.
fn settle(node: &Node, ip: Ipv4Addr, subnet: &str, peer: &Node) {
    let vtep = first(subnet);
    let shown = "ip -o link show flannel.1 | sed 's/.*link.ether //; s/ .*//'";
    let theirs = peer.ns.run(shown);
    let (theirs, there) = (theirs.trim(), peer.subnet());
    let gateway = first(&there);
    let there = format!("{gateway}/24");
    node.ns.run(&format!(
        "ip link del flannel.1 2>/dev/null
         ip address flush dev eth0 scope global; ip address add {ip}/24 dev eth0
         ip link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 local {ip} dev eth0 dstport 8472 nolearning
         ip address add {vtep}/32 dev flannel.1; ip link set flannel.1 up
         ip neigh replace {gateway} lladdr {theirs} dev flannel.1 nud permanent
         bridge fdb replace {theirs} dev flannel.1 dst {}
         ip route replace {there} via {gateway} dev flannel.1 onlink",
        peer.ip
    ));
}

fn pings(node: &Node, subnet: &str) -> bool {
    node.ping(first(subnet).parse::<Ipv4Addr>().unwrap()).is_some()
}

fn reached(node: &Node, subnet: &str) {
    lab::wait_for(&format!("{subnet} is reached"), SOON, || pings(node, subnet));
}

/// Starts twill on node 1, with a flannel on node 2 that it has reached for a while.
fn acquainted(lab: &Lab) -> Daemon<'_> {
    let (node, flannel) = (lab.node(1), lab.node(2));
    let daemon = node.start(FLAGS);
    daemon.wait_ready();
    settle(flannel, flannel.ip, OLD, node);
    announce(lab, OLD, flannel.ip);
    reached(node, OLD);
    lab::wait_for("it is found healthy", SOON, || peer_line(node, OLD).contains("healthy"));
    daemon
}

/// Returns the peer's line in `twill status`.
fn peer_line(node: &Node, subnet: &str) -> String {
    let status = node.twill(&["status"]);
    status.lines().find(|line| line.contains(subnet) && !line.contains("left out")).unwrap_or_default().into()
}

fn left_out(node: &Node, subnet: &str) -> bool {
    node.twill(&["status"])
        .lines()
        .any(|line| line.contains(&format!("peer {subnet}: ")) && line.contains("left out"))
}

fn comes_back(topology: Topology) {
    let lab = cluster::lab(topology, VXLAN);
    let (node, flannel) = (lab.node(1), lab.node(2));
    let _daemon = acquainted(&lab);
    let ip = other_address(flannel);
    settle(flannel, ip, NEW, node);
    announce(&lab, NEW, ip);
    reached(node, NEW);
    lab::wait_for("the old lease is left out", SOON, || left_out(node, OLD) && !left_out(node, NEW));
    let fdb = node.ns.run("bridge fdb show dev flannel.1");
    assert!(fdb.contains(&format!("{MAC} dst {ip} ")), "{fdb}");
    lab::holds_for("it stays so", Duration::from_secs(5), || pings(node, NEW) && left_out(node, OLD));
}

#[test]
fn a_new_lease_displaces_the_old_one_of_the_same_node() {
    lab::test(Timing::Free, || comes_back(Topology::flat(2)));
}

#[test]
fn a_returning_node_takes_its_place_in_etcd_too() {
    lab::test(Timing::Free, || comes_back(Topology::flat(2).etcd(EtcdSetup::http())));
}

/// The lease that was written last is used, as after a reboot of this node, or without probes.
#[test]
fn without_evidence_the_newest_lease_counts() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (node, flannel) = (lab.node(1), lab.node(2));
        let ip = other_address(flannel);
        announce(&lab, OLD, flannel.ip);
        let daemon = node.start(&[FLAGS, &["--probe=off"]].concat());
        daemon.wait_ready();
        settle(flannel, ip, NEW, node);
        announce(&lab, NEW, ip);
        reached(node, NEW);
        assert!(left_out(node, OLD));
    });
}

#[test]
fn two_subnets_of_one_node_are_both_reached() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (node, flannel) = (lab.node(1), lab.node(2));
        let daemon = acquainted(&lab);
        flannel.ns.run(&format!("ip address add {}/32 dev flannel.1", first(NEW)));
        announce(&lab, NEW, flannel.ip);
        reached(node, NEW);
        assert!(pings(node, OLD));
        assert!(!left_out(node, OLD) && !left_out(node, NEW), "{}", daemon.log());
    });
}

/// A writer of leases does not receive packets for the pods of a node that lives. Neither the node's MAC nor a subnet around its
/// own helps, nor does a restart of the daemon.
#[test]
fn a_node_that_answers_keeps_its_lease_against_conflicting_ones() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (node, thief) = (lab.node(1), lab.node(3));
        let mut daemon = acquainted(&lab);
        let stream = PingStream::start(&node.ns, first(OLD).parse::<Ipv4Addr>().unwrap());
        announce(&lab, NEW, thief.ip);
        let around = r#"{"PublicIP":"PUBLIC","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:49:66"}}"#;
        let around = around.replace("PUBLIC", &thief.ip.to_string());
        lab.store.put_lease("10.244.8.0-23", &around);
        let outside =
            |node: &Node| left_out(node, NEW) && left_out(node, "10.244.8.0/23") && !left_out(node, OLD);
        lab::wait_for("both are left out", SOON, || outside(node));
        daemon.restart();
        daemon.wait_ready();
        for _ in 0..3 {
            // The leases are written again and again.
            announce(&lab, NEW, thief.ip);
            lab.store.put_lease("10.244.8.0-23", &around);
            lab::holds_for("the living one stays", Duration::from_secs(4), || outside(node));
        }
        let report = stream.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    });
}

/// The node that was believed is dead. The second lease gets its turn, and its node is found to answer.
#[test]
fn a_subnet_around_another_one_counts_once_that_node_is_dead() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (node, flannel) = (lab.node(1), lab.node(2));
        let _daemon = acquainted(&lab);
        let (ip, wide) = (other_address(flannel), "10.244.8.0/23");
        settle(flannel, ip, wide, node);
        announce(&lab, wide, ip);
        reached(node, wide);
        assert!(left_out(node, OLD));
    });
}
