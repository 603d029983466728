//! Several addresses on the uplink. The node keeps its own one beside virtual ones, across a renewal, a restart and a
//! reboot. It leaves a deprecated address for a preferred one.

use std::fs;
use std::time::Duration;

use lab::{EtcdSetup, Lab, Node, Timing, Topology};

use crate::cluster::{self, HOST_GW, SOON, VXLAN, VXLAN_DUAL, lease_name};

/// Time longer than the 5 s for which a daemon waits for a lost address.
const HELD: Duration = Duration::from_secs(8);
const VIPS: &str = "ip address add 192.168.100.100/32 dev eth0; ip address add 192.168.100.101/32 dev eth0";
/// Virtual addresses as they may look after a renewal: with the prefix length of the node's own network.
const VIPS_IN_NETWORK: &str =
    "ip address add 192.168.100.100/24 dev eth0; ip address add 192.168.100.101/24 dev eth0";

fn lease(lab: &Lab, node: &Node) -> String {
    let subnet = lease_name(&node.subnet());
    lab.store.leases().into_iter().find(|(name, _)| name.starts_with(&subnet)).unwrap().1
}

/// Returns true if the node announces `address`, and its vxlan device sends from it if there is one.
fn is_at(lab: &Lab, node: &Node, address: &str) -> bool {
    let device = node.ns.run("ip -d link show flannel.1 2>/dev/null || true");
    let announced = lease(lab, node).contains(&format!(r#""PublicIP":"{address}""#));
    announced && (device.is_empty() || device.contains(&format!(" local {address} ")))
}

fn renewal(config: &str, vips: &str) {
    let lab = cluster::lab(Topology::flat(2), config);
    let node = lab.node(1);
    node.ns.run(vips);
    let (daemons, pods) = cluster::start(&lab);
    let add =
        format!("ip address add 192.168.100.11/24 dev eth0; ip route replace default via {}", node.gateway());
    node.ns.run("ip address del 192.168.100.11/24 dev eth0");
    // Secondary virtual addresses are removed together with the primary one.
    node.ns.run(&format!("{vips} 2>/dev/null || true"));
    lab::holds_for("away for a second", Duration::from_secs(1), || is_at(&lab, node, "192.168.100.11"));
    node.ns.run(&add);
    lab::holds_for("at home", HELD, || is_at(&lab, node, "192.168.100.11"));
    cluster::reach_each_other(&pods);
    assert!(!daemons[0].log().contains("uplink is now eth0 192.168.100.1"), "{}", daemons[0].log());
    // The address stays away: another one has to take its place, until it is back.
    node.ns.run("ip address del 192.168.100.11/24 dev eth0");
    node.ns.run(&format!(
        "{vips} 2>/dev/null || true; ip route replace default via {} onlink dev eth0",
        node.gateway()
    ));
    lab::wait_for("a step down", SOON * 2, || is_at(&lab, node, "192.168.100.100"));
    node.ns.run(&add);
    lab::wait_for("home again", SOON, || is_at(&lab, node, "192.168.100.11"));
    cluster::reach_each_other(&pods);
    for daemon in &daemons {
        let log = daemon.log();
        assert!(!log.contains("holds our lease") && !log.contains("move the pods away"), "{log}");
    }
}

#[test]
fn vxlan_returns_to_its_own_address_beside_virtual_ones() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || renewal(VXLAN, VIPS));
}

#[test]
fn vxlan_returns_to_its_own_address_beside_ones_of_its_network() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || renewal(VXLAN, VIPS_IN_NETWORK));
}

#[test]
fn host_gw_returns_to_its_own_address_beside_virtual_ones() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || renewal(HOST_GW, VIPS));
}

/// Boots with the virtual address first on the card; `cached` keeps the cache of the last run.
fn boot(config: &str, length: u8, cached: bool) {
    let lab = cluster::lab(Topology::flat(2), config);
    let node = lab.node(1);
    let (mut daemons, _pods) = cluster::start(&lab);
    let subnet = node.subnet();
    lab::wait_for("it is remembered", SOON * 2, || {
        let entries = fs::read_dir(node.cache_dir()).into_iter().flatten().flatten();
        entries
            .map(|entry| fs::read_to_string(entry.path()).unwrap())
            .any(|text| text.contains("192.168.100.11"))
    });
    daemons[0].kill9();
    node.reboot();
    if !cached {
        fs::remove_dir_all(node.cache_dir()).unwrap();
    }
    node.ns.run(&format!(
        "ip address flush dev eth0 scope global; ip address add 192.168.100.100/{length} dev eth0
         ip address add 192.168.100.11/24 dev eth0; ip route replace default via {}",
        node.gateway()
    ));
    daemons[0].restart();
    daemons[0].wait_ready();
    assert!(is_at(&lab, node, "192.168.100.11"), "{}", lease(&lab, node));
    assert_eq!((node.subnet(), lab.store.leases().len()), (subnet, 2));
    lab::holds_for("it stays", Duration::from_secs(2), || is_at(&lab, node, "192.168.100.11"));
}

#[test]
fn a_virtual_address_listed_first_at_boot_is_not_chosen() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        boot(VXLAN, 32, true);
        boot(HOST_GW, 24, true);
    });
}

/// The lease in the store shows which of its addresses is the node's own.
#[test]
fn a_lease_decides_our_address_at_boot_without_a_cache() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || boot(VXLAN, 24, false));
}

/// The node's own address comes while the daemon is starting, and after that.
#[test]
fn a_node_takes_its_own_address_when_it_comes_late_at_boot() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        let (mut daemons, _pods) = cluster::start(&lab);
        for late in [false, true] {
            daemons[0].kill9();
            node.ns.run(&format!(
                "ip address flush dev eth0 scope global; ip address add 192.168.100.100/32 dev eth0
                 ip route replace default via {} onlink dev eth0",
                node.gateway()
            ));
            daemons[0].restart();
            if late {
                lab::wait_for("a step down", SOON * 2, || is_at(&lab, node, "192.168.100.100"));
            } else {
                let log = || daemons[0].log();
                lab::wait_for("it waits", SOON, || log().contains("waiting up to 5 s for 192.168.100.11"));
            }
            node.ns.run("ip address add 192.168.100.11/24 dev eth0");
            daemons[0].wait_ready();
            lab::wait_for("at home", SOON, || is_at(&lab, node, "192.168.100.11"));
        }
    });
}

#[test]
fn a_deprecated_ipv6_address_is_left_for_a_preferred_one() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let node = lab.node(1);
        let (_daemons, pods) = cluster::start(&lab);
        let at = |address: &str| {
            let device = node.ns.run("ip -d link show flannel-v6.1");
            lease(&lab, node).contains(&format!(r#""PublicIPv6":"{address}""#))
                && device.contains(&format!(" local {address} "))
        };
        assert!(at("fd00:100::11"));
        node.ns.run("ip address change fd00:100::11/64 dev eth0 preferred_lft 0");
        lab::holds_for("there is no other", Duration::from_secs(1), || at("fd00:100::11"));
        node.ns.run("ip address add fd00:100::51/64 dev eth0 nodad");
        lab::wait_for("the preferred one", SOON, || at("fd00:100::51"));
        assert!(lease(&lab, node).contains(r#""PublicIP":"192.168.100.11""#), "{}", lease(&lab, node));
        cluster::reach_each_other(&pods);
        node.ns.run("ip address change fd00:100::11/64 dev eth0 preferred_lft forever");
        lab::holds_for("nothing is won by going back", Duration::from_secs(2), || at("fd00:100::51"));
    });
}

/// Our own former address is not another node's, however late the store reports our writes.
#[test]
fn our_former_address_is_not_taken_for_another_node() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2).etcd(EtcdSetup::http()), VXLAN);
        let (daemons, _pods) = cluster::start(&lab);
        let node = lab.node(2);
        for (old, new) in [("192.168.100.12", "192.168.100.52"), ("192.168.100.52", "192.168.100.53")] {
            node.ns.run(&format!(
                "ip address del {old}/24 dev eth0; ip address add {new}/24 dev eth0; ip route replace default via {}",
                node.gateway()
            ));
            lab::wait_for("the lease says so", SOON * 3, || is_at(&lab, node, new));
        }
        lab::holds_for("calm", Duration::from_secs(3), || {
            let status = node.twill(&["status"]);
            !status.contains("holds our lease")
        });
        for daemon in &daemons {
            assert!(!daemon.log().contains("holds our lease"), "{}", daemon.log());
        }
    });
}

/// The VTEP device shows which lease is the node's, though the cache is gone and the address is another one.
#[test]
fn a_node_without_a_cache_knows_its_lease_by_its_vtep_device() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        let (mut daemons, pods) = cluster::start(&lab);
        let subnet = node.subnet();
        daemons[0].kill9();
        fs::remove_dir_all(node.cache_dir()).unwrap();
        node.ns.run(&format!(
            "ip address del 192.168.100.11/24 dev eth0; ip address add 192.168.100.77/24 dev eth0
             ip route replace default via {}",
            node.gateway()
        ));
        daemons[0].restart();
        daemons[0].wait_ready();
        lab::wait_for("the lease has the new address", SOON, || is_at(&lab, node, "192.168.100.77"));
        assert_eq!((node.subnet(), lab.store.leases().len()), (subnet, 2));
        cluster::reach_each_other(&pods);
        for node in lab.nodes() {
            let status = node.twill(&["status"]);
            assert!(!status.contains("is ours too") && !status.contains("left out"), "{status}");
        }
    });
}

/// Stops the daemon and gives the node another address while it is down.
fn moves_while_down(node: &Node, daemon: &mut lab::Daemon<'_>, old: &str, new: &str) {
    daemon.kill9();
    node.ns.run(&format!(
        "ip address del {old}/24 dev eth0; ip address add {new}/24 dev eth0; ip route replace default via {}",
        node.gateway()
    ));
}

/// The lease of a node that is gone has the address that a DHCP server gives this node now. The first start comes while a machine
/// still has that address.
#[test]
fn a_dead_lease_with_our_new_address_does_not_end_the_start_and_a_living_machine_does() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (node, gone) = (lab.node(1), lab.node(2));
        let (mut daemons, pods) = cluster::start(&lab);
        let subnet = node.subnet();
        daemons[1].kill9();
        moves_while_down(node, &mut daemons[0], "192.168.100.11", "192.168.100.12");
        daemons[0].restart();
        assert_eq!(daemons[0].wait_exit().code(), Some(1), "{}", daemons[0].log());
        let words = format!("a machine with MAC {} answers for our address 192.168.100.12", gone.mac);
        assert!(daemons[0].log().contains(&words), "{}", daemons[0].log());
        gone.ns.run("ip address del 192.168.100.12/24 dev eth0");
        daemons[0].restart();
        daemons[0].wait_ready();
        assert!(is_at(&lab, node, "192.168.100.12"), "{}", lease(&lab, node));
        assert_eq!((node.subnet(), lab.store.leases().len()), (subnet, 3), "the dead lease stays");
        for (from, to) in [(0, 2), (2, 0)] {
            assert!(
                pods[from].reaches(pods[to].ip(), SOON * 3).is_some(),
                "{}",
                lab.node(3).twill(&["status"])
            );
        }
    });
}

/// A DHCP server has lost its memory, and two nodes get each other's address.
#[test]
fn two_nodes_that_swap_their_addresses_while_down_keep_their_subnets() {
    lab::test_within(Duration::from_secs(120), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let subnets = [1, 2].map(|k| lab.node(k).subnet());
        let addresses = ["192.168.100.11", "192.168.100.12"];
        for (at, daemon) in daemons.iter_mut().enumerate() {
            moves_while_down(lab.node(at + 1), daemon, addresses[at], addresses[1 - at]);
        }
        daemons.iter_mut().for_each(lab::Daemon::restart);
        daemons.iter().for_each(lab::Daemon::wait_ready);
        for (at, subnet) in subnets.iter().enumerate() {
            let node = lab.node(at + 1);
            lab::wait_for("the lease", SOON, || is_at(&lab, node, addresses[1 - at]));
            assert_eq!(node.subnet(), *subnet);
        }
        assert_eq!(lab.store.leases().len(), 2);
        cluster::reach_each_other(&pods);
    });
}

/// A second machine has the node's address before the daemon starts, and later gives it up. A second card of the node that
/// answers for the first one's address is no second machine.
#[test]
fn a_second_machine_with_our_address_is_named_until_it_is_gone() {
    lab::test_within(Duration::from_secs(150), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN_DUAL);
        let (node, other) = (lab.node(1), lab.node(3));
        node.second_card();
        let link = other.ns.run("ip -o link show eth0");
        let mac = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let warning =
            |address: &str| format!("a second machine, with MAC {mac}, has our address {address} on eth0");
        let (address, address6) = (node.ip, node.ip6);
        let addresses = [(address.to_string(), "/32"), (address6.to_string(), "/128 nodad")];
        for (address, rest) in addresses {
            other.ns.run(&format!("ip address add {address}{rest} dev eth0"));
            let daemon = node.start(cluster::FLAGS);
            daemon.wait_ready();
            lab::wait_for(&format!("{address} is taken"), SOON, || {
                node.twill(&["status"]).contains(&warning(&address))
            });
            assert_eq!(
                node.get("/readyz").unwrap().status,
                200,
                "a machine on the segment turns no readiness off"
            );
            other.ns.run(&format!("ip address del {address}{} dev eth0", rest.trim_end_matches(" nodad")));
            lab::wait_for(&format!("{address} is ours alone"), SOON * 3, || {
                !node.twill(&["status"]).contains("a second machine")
            });
            assert_eq!(
                daemon.log().matches(&format!("WARN {}", warning(&address))).count(),
                1,
                "{}",
                daemon.log()
            );
        }
    });
}
