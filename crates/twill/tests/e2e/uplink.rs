//! Choice of interface and addresses by flags, on a node with several. Choices that cannot be right are refused or
//! reported.

use std::time::Duration;

use lab::{Lab, Node, Timing, Topology, View};

use crate::cluster::{self, HOST_GW, HOST_GW_DUAL, SOON, VXLAN, VXLAN_DUAL, VXLAN_IPV6, lease_name};

/// Address that no node has: other nodes reach the node by an address translation.
const OUTSIDE: &str = "203.0.113.7";
const OUTSIDE6: &str = "2001:db8:7::7";
/// Time within which a fault of the node itself turns its readiness off.
const TROUBLE: Duration = Duration::from_secs(6);

/// Builds a node with two more cards, a second default route with precedence, and an address on lo.
fn many_cards(config: &str) -> Lab {
    let lab = cluster::lab(Topology::flat(1), config);
    let gateway = lab.node(1).gateway();
    lab.node(1).ns.batch(&format!(
        "link add eth1 type veth peer name far1\nlink add eth2 type veth peer name far2\n\
         link set far1 up\nlink set far2 up\nlink set eth1 up\nlink set eth2 up\n\
         address add 192.168.56.10/24 dev eth1\naddress add 192.168.56.11/24 dev eth1\n\
         address add 192.168.57.11/24 dev eth2\naddress add fd00:57::11/64 dev eth2 nodad\n\
         address add 10.255.0.11/32 dev lo\n\
         route add 198.51.100.0/24 via 192.168.57.1 dev eth2\n\
         route add 198.51.101.0/24 via 192.168.57.1 dev eth2 src 10.255.0.11\n\
         route replace default via {gateway} dev eth0 metric 200\nroute delete default metric 0\n\
         route add default via 192.168.56.1 dev eth1 metric 100\n"
    ));
    lab
}

fn leases(lab: &Lab) -> String {
    lab.store.leases().into_values().collect()
}

fn device(node: &Node, name: &str) -> String {
    node.ns.run(&format!("ip -d link show {name}"))
}

/// Flags, of which the last one finds the interface; then its address, the interface, and the reason.
const FOUND: [(&str, &str, &str, &str); 9] = [
    ("", "192.168.56.10", "eth1", "the default route leaves through it, 192.168.56.10 is its best address"),
    ("--iface=eth2", "192.168.57.11", "eth2", "named by --iface eth2, 192.168.57.11 is its best address"),
    ("--iface=192.168.56.11", "192.168.56.11", "eth1", "it has --iface 192.168.56.11"),
    ("--public-ip=192.168.57.11", "192.168.57.11", "eth2", "it has --public-ip 192.168.57.11"),
    (
        "--iface=eth9 --iface=203.0.113.1 --iface=eth2",
        "192.168.57.11",
        "eth2",
        "named by --iface eth2, 192.168.57.11 is its best address",
    ),
    (
        r"--iface-regex=( --iface-regex=^192\.168\.5.\.11$",
        "192.168.56.11",
        "eth1",
        r"--iface-regex ^192\.168\.5.\.11$ matches 192.168.56.11",
    ),
    (
        "--iface-regex=th2$",
        "192.168.57.11",
        "eth2",
        "--iface-regex th2$ matches its name, 192.168.57.11 is its best address",
    ),
    (
        "--iface-can-reach=198.51.100.7",
        "192.168.57.11",
        "eth2",
        "the kernel's route to --iface-can-reach 198.51.100.7 leaves through it",
    ),
    (
        "--iface-can-reach=198.51.101.7",
        "10.255.0.11",
        "eth2",
        "the kernel's route to --iface-can-reach 198.51.101.7 leaves through it",
    ),
];

#[test]
fn each_flag_finds_its_interface_and_the_reason_is_shown() {
    lab::test(Timing::Free, || {
        for (line, address, link, reason) in FOUND {
            let flags: Vec<&str> = line.split_whitespace().collect();
            let lab = many_cards(VXLAN);
            let node = lab.node(1);
            let daemon = node.start(&flags);
            daemon.wait_ready();
            assert!(
                leases(&lab).contains(&format!("\"PublicIP\":\"{address}\"")),
                "{line}: {}",
                leases(&lab)
            );
            let made = device(node, "flannel.1");
            assert!(made.contains(&format!(" local {address} dev {link} ")), "{line}: {made}");
            let (log, status) = (daemon.log(), node.twill(&["status"]));
            assert!(log.contains(&format!("uplink is {link}: {reason}\n")), "{line}: {log}");
            assert!(status.contains(&format!("{link} {address} ({reason})\n")), "{line}: {status}");
            for failed in flags.split_last().map_or(&[][..], |(_, failed)| failed) {
                let flag = failed.replacen('=', " ", 1);
                assert!(log.contains(&format!("uplink flag skipped: {flag}: ")), "{line}: {log}");
            }
        }
    });
}

/// Asserts that the daemon ends with these words, and has touched nothing.
fn is_refused(lab: &Lab, flags: &[&str], code: i32, why: &str) {
    let node = lab.node(1);
    let before = View::of(&node.ns);
    let mut daemon = node.start(flags);
    assert_eq!(daemon.wait_exit().code(), Some(code), "{}", daemon.log());
    let log = daemon.log();
    let reported = log.lines().rfind(|line| line.starts_with("twill: ")).unwrap_or_default();
    assert!(reported.contains(why), "{flags:?}: {log}");
    assert_eq!(before.diff(&View::of(&node.ns)), "");
    assert!(lab.store.leases().is_empty() && node.subnet_env().is_none());
}

#[test]
fn a_failed_choice_is_reported_with_every_attempt() {
    lab::test(Timing::Free, || {
        let flags = [
            "--iface=eth9",
            "--iface=203.0.113.1",
            "--iface-regex=^ens",
            "--iface-regex=(",
            "--iface-can-reach=10.255.0.11",
        ];
        let why = "choosing the interface: --iface eth9: there is no such interface; --iface 203.0.113.1: no interface has \
                   it; --iface-regex ^ens: it matches no usable address and no name; --iface-regex (: it is no regular \
                   expression: unclosed group; --iface-can-reach 10.255.0.11: it is this node's own address";
        let lab = many_cards(VXLAN);
        is_refused(&lab, &flags, 1, why);
        lab.node(1).ns.run("ip route delete default metric 100; ip route delete default metric 200");
        is_refused(
            &lab,
            &["--iface-can-reach=203.0.113.1"],
            1,
            "--iface-can-reach 203.0.113.1: look up the route to 203.0.113.1: Network is unreachable",
        );
    });
}

/// Choices that crash flannel are errors: flannel-faults 83 and 85.
#[test]
fn choices_that_crash_flannel_are_errors() {
    lab::test(Timing::Free, || {
        for (config, flags, code, why) in [
            (
                VXLAN_DUAL,
                &["--iface=fd00:100::11"][..],
                1,
                "name the interface or its IPv4 address, or give --public-ipv6 too",
            ),
            (
                VXLAN_DUAL,
                &["--iface=192.168.100.11", "--public-ipv6=fd00:57::11"],
                1,
                "eth0 has it, but eth2 has --public-ipv6 fd00:57::11",
            ),
            (
                VXLAN_IPV6,
                &["--iface=eth0", "--public-ip=192.168.100.11"],
                1,
                "--public-ip 192.168.100.11: IPv4 is off in the network config",
            ),
            (VXLAN, &["--public-ip=fd00:100::11"], 2, "--public-ip: \"fd00:100::11\": invalid IPv4 address"),
            (
                VXLAN,
                &["--public-ip=10.244.30.3", "--iface=eth0"],
                1,
                "--public-ip 10.244.30.3: it is a pod's address: pods' subnets are leased from 10.244.20.0",
            ),
            (
                HOST_GW,
                &["--iface=eth0", "--public-ip=203.0.113.7"],
                1,
                "host-gw needs the uplink's own address as next hop, 192.168.100.11 of eth0, but --public-ip is 203.0.113.7",
            ),
            (
                HOST_GW_DUAL,
                &["--iface=eth0", "--public-ipv6=2001:db8::7"],
                1,
                "fd00:100::11 of eth0, but --public-ipv6 is 2001:db8::7",
            ),
        ] {
            is_refused(&many_cards(config), flags, code, why);
        }
    });
}

/// Translates addresses on `node`: packets that it sends to `outside` go to `inside`.
fn translate(node: &Node, outside: &str, inside: &str) {
    let family = if outside.contains(':') { "ip6" } else { "ip" };
    node.ns.run(&format!(
        "nft 'add table {family} t; add chain {family} t out {{ type nat hook output priority -100; }}; \
         add rule {family} t out {family} daddr {outside} dnat to {inside}'"
    ));
}

#[test]
fn a_foreign_public_ip_is_announced_but_not_used_as_source() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let (node, peer) = (lab.node(1), lab.node(2));
        translate(peer, OUTSIDE, &node.ip.to_string());
        translate(peer, OUTSIDE6, &node.ip6.to_string());
        let (public, public6) = (format!("--public-ip={OUTSIDE}"), format!("--public-ipv6={OUTSIDE6}"));
        let daemons = [node.start(&["--iface=eth0", &public, &public6]), peer.start(cluster::FLAGS)];
        daemons.iter().for_each(lab::Daemon::wait_ready);
        assert!(leases(&lab).contains(&format!(r#""PublicIP":"{OUTSIDE}","PublicIPv6":"{OUTSIDE6}""#)));
        let made = device(node, "flannel.1") + &device(node, "flannel-v6.1");
        for own in [node.ip.to_string(), node.ip6.to_string()] {
            assert!(made.contains(&format!(" local {own} dev eth0 ")), "{made}");
        }
        let fdb = || peer.ns.run("bridge fdb");
        for outside in [OUTSIDE, OUTSIDE6] {
            lab::wait_for(outside, SOON, || fdb().contains(&format!(" dst {outside} ")));
        }
        cluster::reach_each_other(&lab.pods());
        let status = node.twill(&["status"]);
        let reason =
            format!("; --public-ip {OUTSIDE} is announced in place of its own; --public-ipv6 {OUTSIDE6} is");
        assert!(status.contains(&reason), "{status}");
        let other = format!(r#"{{"PublicIP":"{OUTSIDE}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
        lab.store.put_lease("10.244.250.0-24", &other);
        let ours = format!("peer 10.244.250.0/24: it announces our own address {OUTSIDE}");
        lab::wait_for("it is ours", SOON, || node.twill(&["status"]).contains(&ours));
        // host-gw cannot work with that, and is not taken up.
        lab.store.config(HOST_GW_DUAL);
        let refused = format!(
            "but --public-ip is {OUTSIDE}: leave it out or use vxlan; the last good network config stays"
        );
        lab::wait_for("host-gw is refused", SOON, || node.twill(&["status"]).contains(&refused));
        assert!(leases(&lab).contains("vxlan"));
    });
}

#[test]
fn host_gw_without_a_peer_on_its_uplink_is_reported() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW);
        let (node, peer) = (lab.node(1), lab.node(2));
        node.ns.run("ip link add eth1 type veth peer name eth1 netns node2");
        for (node, address) in [(node, "192.168.56.11"), (peer, "192.168.56.12")] {
            node.ns.run(&format!("ip address add {address}/24 dev eth1; ip link set eth1 up"));
        }
        // The first daemon goes by the default route, the second one by a flag.
        let (daemon, mut other) = (node.start(&[]), peer.start(&["--iface=eth1"]));
        daemon.wait_ready();
        other.wait_ready();
        let reported = |node: &Node, uplink: &str, on: &str| {
            let note = format!(
                "no peer is on the layer-2 segment of {uplink}, so host-gw reaches none by IPv4: is it the wrong interface? \
                 Name another with --iface ({on}), or use auto or vxlan"
            );
            lab::wait_for(&note, SOON, || node.twill(&["status"]).contains(&note));
        };
        reported(node, "eth0", "192.168.56.12 is on the segment of eth1");
        reported(peer, "eth1", "192.168.100.11 is on the segment of eth0");
        lab::holds_for("it is ready", TROUBLE, || node.get("/readyz").unwrap().status == 200);
        other.terminate();
        drop(other);
        let other = peer.start(cluster::FLAGS);
        other.wait_ready();
        lab::wait_for("all is well", SOON, || !node.twill(&["status"]).contains("no peer is on"));
        cluster::reach_each_other(&lab.pods());
    });
}

#[test]
fn an_address_that_is_not_the_nodes_internal_ip_is_reported_once() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN_DUAL);
        let node = lab.node(1);
        node.ns.run("ip link add eth1 type veth peer name eth2; ip link set eth1 up; ip link set eth2 up");
        node.ns.run("ip address add 192.168.56.11/24 dev eth1; ip address add fd00:56::11/64 dev eth1 nodad");
        let reported = |flags: &[&str], notes: &[&str]| {
            let daemon = node.start(flags);
            daemon.wait_ready();
            let known = "Kubernetes knows this node by";
            for note in notes {
                lab::wait_for(note, SOON, || node.twill(&["status"]).contains(note));
                let of_this_start =
                    || daemon.log().rsplit(" starts: ").next().unwrap_or_default().to_string();
                lab::wait_for("it is logged", SOON, || of_this_start().contains(note));
                assert_eq!(of_this_start().matches(note).count(), 1, "{}", daemon.log());
            }
            assert_eq!(node.twill(&["status"]).matches(known).count(), notes.len());
            assert_eq!(node.get("/readyz").unwrap().status, 200);
        };
        let remedy = "is it the wrong interface? Name another with --iface";
        let own = [node.ip.to_string(), node.ip6.to_string()];
        let [v4, v6] =
            ["192.168.56.11", "fd00:56::11"].map(|ip| format!("Kubernetes knows this node by {ip}, but "));
        let v4 = format!("{v4}{} of eth0 is chosen: {remedy} (192.168.56.11 is on eth1)", own[0]);
        let v6 = format!("{v6}{} of eth0 is chosen: {remedy} (fd00:56::11 is on eth1)", own[1]);
        reported(&["--node-ip=192.168.56.11"], &[&v4]);
        reported(&["--iface=eth0", "--node-ip=192.168.56.11,fd00:56::11"], &[&v4, &v6]);
        reported(&[&format!("--node-ip={}", own.join(","))], &[]);
        reported(&["--iface=eth1", "--node-ip=192.168.56.11,fd00:56::11"], &[]);
        // Behind a translation, Kubernetes may know the outer address.
        reported(&["--iface=eth0", &format!("--public-ip={OUTSIDE}"), &format!("--node-ip={OUTSIDE}")], &[]);
        reported(&["--iface=eth0"], &[]);
    });
}

/// All machines are behind one address, and the flag that names another one is forgotten. The segment cannot be asked for that
/// address.
#[test]
fn a_start_waits_while_another_nodes_lease_announces_the_address() {
    lab::test(Timing::Free, || {
        for rebooted in [false, true] {
            let lab = cluster::lab(Topology::flat(2), VXLAN);
            let (node, peer) = (lab.node(1), lab.node(2));
            let shared = format!("--public-ip={OUTSIDE}");
            let first = node.start(&["--iface=eth0", &shared]);
            first.wait_ready();
            let mut right = peer.start(cluster::FLAGS);
            right.wait_ready();
            let (subnet, own) = (node.subnet(), peer.subnet());
            let remembers = || {
                let entries = std::fs::read_dir(peer.cache_dir()).into_iter().flatten().flatten();
                entries
                    .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
                    .any(|text| text.contains(&lease_name(&own)))
            };
            lab::wait_for("it is remembered", SOON, remembers);
            right.terminate();
            drop(right);
            if rebooted {
                peer.reboot();
            }
            let (before, leases) = (View::of(&peer.ns), lab.store.leases());
            let mut wrong = peer.start(&["--iface=eth0", &shared]);
            let why = format!("lease {} announces our address", lease_name(&subnet));
            lab::wait_for("it waits", SOON, || {
                let log = wrong.log();
                log.lines().any(|line| line.contains("waiting for a lease: ") && line.contains(&why))
            });
            // After 5 s without the store a daemon goes on with its cache.
            lab::holds_for("it takes nothing", Duration::from_secs(7), || {
                wrong.is_alive() && lab.store.leases() == leases
            });
            assert_eq!(before.diff(&View::of(&peer.ns)), "");
            // The node that has the address may restart, rebooted or not.
            drop((wrong, first));
            node.reboot();
            let again = node.start(&["--iface=eth0", &shared]);
            again.wait_ready();
            assert_eq!(node.subnet(), subnet);
        }
    });
}

/// A machine that has never run here takes the lease for its own, and both write it in turn.
#[test]
fn a_lease_with_a_second_writer_is_reported() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (node, twin) = (lab.node(1), lab.node(2));
        let shared = format!("--public-ip={OUTSIDE}");
        let first = node.start(&["--iface=eth0", &shared]);
        first.wait_ready();
        let theirs = "0a:00:00:00:00:42";
        twin.ns.run(&format!(
            "ip link add flannel.1 address {theirs} type vxlan id 1 dev eth0 dstport 8472 nolearning"
        ));
        let second = twin.start(&["--iface=eth0", &shared]);
        second.wait_ready();
        assert_eq!(node.subnet(), twin.subnet());
        let note = format!(
            "our lease {} is overwritten by another writer, last with VTEP MAC {theirs}",
            lease_name(&node.subnet())
        );
        lab::wait_for("it is reported", SOON * 2, || node.twill(&["status"]).contains(&note));
        assert_eq!(node.get("/readyz").unwrap().status, 200, "its own part stands");
    });
}
