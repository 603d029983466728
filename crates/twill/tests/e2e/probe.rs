//! The prober's packets, captured on the node's devices, and the answers that it accepts.

use std::time::Duration;

use lab::{Capture, Lab, Node, Timing, Topology};

use crate::cluster::{self, DIRECT, FLAGS, HOST_GW, SOON, VXLAN, VXLAN_DUAL};

/// Time over which broadcasts are counted.
const SPAN: Duration = Duration::from_secs(6);

/// Returns the address of a node's device in its pod subnet.
fn vtep(node: &Node) -> String {
    node.subnet().split_once('/').unwrap().0.to_owned()
}

fn ip(node: &Node) -> String {
    node.ip.to_string()
}

/// Adds leases of peers on the segment that have no node behind them.
fn plant_silent_peers(lab: &Lab, backend: &str, count: usize) {
    let lease = |n: usize| {
        let data = match backend {
            "vxlan" => format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:99:{n:02x}"}}"#),
            _ => "null".to_owned(),
        };
        let json = format!(
            r#"{{"PublicIP":"192.168.100.{}","PublicIPv6":null,"BackendType":"{backend}","BackendData":{data}}}"#,
            100 + n
        );
        (format!("10.244.{n}.0-24"), json)
    };
    // No node of the lab allocates these subnets.
    lab.store.put_leases(&(1..=count.min(19)).map(lease).collect::<Vec<_>>());
    let rest = (20..=count).map(|n| {
        let (_, json) = lease(n);
        (format!("10.244.{}.0-24", 220 + n), json)
    });
    lab.store.put_leases(&rest.collect::<Vec<_>>());
}

#[test]
fn peers_are_probed_along_the_path_of_pods_packets() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let _daemons = lab.start_all(FLAGS);
        let inner = Capture::start(&lab.node(1).ns, "flannel.1", &["icmp"]);
        let (from, to) = (vtep(lab.node(1)), vtep(lab.node(2)));
        for (from, to, what) in [(&from, &to, "echo request"), (&to, &from, "echo reply")] {
            let wanted = |packet: &str| packet.contains(&format!("{from} > {to}")) && packet.contains(what);
            assert!(inner.wait_for(SOON, wanted), "{what}: {:?}", inner.packets());
        }
    });
}

#[test]
fn both_families_are_probed() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let _daemons = lab.start_all(FLAGS);
        let to = lab.node(2).subnet6().split_once('/').unwrap().0.to_owned();
        let captures = [
            ("flannel.1", "icmp", "ICMP echo", vtep(lab.node(2))),
            ("flannel-v6.1", "icmp6", "ICMP6, echo", to),
        ]
        .map(|(link, filter, protocol, to)| (Capture::start(&lab.node(1).ns, link, &[filter]), protocol, to));
        for (inner, protocol, to) in captures {
            let request = |packet: &str| packet.contains(&format!("> {to}: {protocol} request"));
            assert!(inner.wait_for(SOON, request), "{:?}", inner.packets());
            let reply = |packet: &str| packet.contains(&to) && packet.contains("echo reply");
            assert!(inner.wait_for(SOON, reply), "{:?}", inner.packets());
        }
    });
}

#[test]
fn a_known_next_hop_gets_unicast_requests() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW);
        let _daemons = lab.start_all(FLAGS);
        let wire = Capture::start(&lab.node(1).ns, "eth0", &["arp"]);
        let (own, other) = (ip(lab.node(1)), ip(lab.node(2)));
        let question = format!("who-has {other} tell {own}");
        let alone = |packet: &&String| packet.contains(&question) && !packet.contains("Broadcast");
        let asked = lab::until(SOON, || (wire.packets().iter().filter(alone).count() >= 3).then_some(()));
        assert!(asked.is_some(), "{:?}", wire.packets());
        // Without an address to ask from, a node asks only for another holder of its own (RFC 5227).
        let for_another_holder =
            [1, 2].map(|k| (format!("{} > ", lab.node(k).mac), format!("who-has {} ", ip(lab.node(k)))));
        let is_fit = |packet: &String| {
            !packet.contains("tell 0.0.0.0")
                || for_another_holder.iter().any(|(from, own)| packet.contains(from) && packet.contains(own))
        };
        assert!(wire.packets().iter().all(is_fit), "{:?}", wire.packets());
    });
}

#[test]
fn a_silent_segment_gets_ten_broadcasts_a_second_at_most() {
    lab::test(Timing::Timed, || gets_ten_at_most(HOST_GW, "host-gw"));
}

/// With tunnels the kernel has addresses to ask from, and would look for next hops of its own accord.
#[test]
fn with_tunnels_a_silent_segment_gets_ten_broadcasts_a_second_too() {
    lab::test(Timing::Timed, || gets_ten_at_most(VXLAN, "vxlan"));
}

fn gets_ten_at_most(config: &str, backend: &str) {
    let lab = cluster::lab(Topology::flat(1), config);
    let _daemon = lab.node(1).start(FLAGS);
    plant_silent_peers(&lab, backend, 30);
    let wire = Capture::start(&lab.node(1).ns, "eth0", &["arp", "and", "ether", "broadcast"]);
    let asked =
        |n: usize| wire.packets().iter().any(|packet| packet.contains(&format!("192.168.100.{}", 100 + n)));
    let all = lab::until(2 * SPAN, || (1..=30).all(asked).then_some(()));
    assert!(all.is_some(), "each in its turn: {:?}", wire.packets());
    let questions = || wire.packets().iter().filter(|packet| !packet.contains("tell 0.0.0.0")).count();
    let before = questions();
    let begun = std::time::Instant::now();
    lab::holds_for("it is asked on", SPAN, || true);
    let (more, span) = (questions() - before, begun.elapsed());
    println!("{more} broadcasts in {span:?}");
    assert!(more as f64 <= 10.0 * span.as_secs_f64() + 1.0 && more >= 10, "{more} broadcasts in {span:?}");
}

/// Otherwise the prober would put the old MAC into the caches of all peers, each second.
#[test]
fn the_old_mac_of_the_uplink_is_not_announced() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW);
        let _daemons = lab.start_all(FLAGS);
        let node = lab.node(1);
        let question = format!("who-has {} tell {}", ip(lab.node(2)), ip(node));
        let asks = |wire: &Capture| wire.packets().iter().filter(|it| it.contains(&question)).count();
        let old = Capture::start(&node.ns, "eth0", &["arp", "and", "ether", "src", &node.mac]);
        let asked = lab::until(SOON, || (asks(&old) >= 3).then_some(()));
        assert!(asked.is_some(), "{:?}", old.packets());
        let new = Capture::start(&node.ns, "eth0", &["arp", "and", "ether", "src", "02:00:00:00:77:01"]);
        node.ns.run("ip link set eth0 address 02:00:00:00:77:01");
        let before = asks(&old);
        let asked = lab::until(SOON, || (asks(&new) >= 6).then_some(()));
        // Some probes may be on their way.
        assert!(asked.is_some() && asks(&old) <= before + 2, "{:?} {:?}", old.packets(), new.packets());
    });
}

/// From the daemons' start on, the wire carries only our own echo and its answer.
#[test]
fn with_probe_off_no_probe_is_sent() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), DIRECT);
        // Without these entries the kernels would ask for each other, too.
        for (node, other) in [(lab.node(1), lab.node(2)), (lab.node(2), lab.node(1))] {
            let entry = format!("{} lladdr {} dev eth0 nud permanent", other.ip, other.mac);
            node.ns.run(&format!("ip neigh replace {entry}"));
        }
        let wire = Capture::start(&lab.node(1).ns, "eth0", &["arp or icmp or udp port 8472"]);
        let _daemons = lab.start_all(&[FLAGS, &["--probe=off"]].concat());
        assert!(lab.node(1).ping(lab.node(2).ip).is_some());
        lab::holds_for("the daemons run", Duration::from_secs(4), || lab.node(1).get("/healthz").is_some());
        let packets = wire.stop();
        let [from, to] = [1, 2].map(|k| ip(lab.node(k)));
        let ours = [format!("{from} > {to}: ICMP echo request"), format!("{to} > {from}: ICMP echo reply")];
        let as_ours = packets.iter().zip(&ours).all(|(packet, ours)| packet.contains(ours));
        assert!(packets.len() == ours.len() && as_ours, "{packets:#?}");
    });
}
