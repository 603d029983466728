//! The switch that drops, the cable that spoils checksums, and the node without a daemon work as tests expect.

use std::time::Duration;

use lab::plain::{Announce, lease, settle};
use lab::{Filter, Lab, Node, Protocol, Relay, Timing, Topology, Witness, seen_source};

const SOON: Duration = Duration::from_secs(5);

fn echo(from: &Node, to: &Node, options: &str) -> bool {
    from.ns.output(&format!("ping -n -c 1 -W 0.3 {options} {}", to.ip)).status.success()
}

#[test]
fn the_switch_drops_the_given_frames_alone() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(3).build();
        let [one, two, three] = [1, 2, 3].map(|k| lab.node(k));
        assert!(echo(one, two, "") && echo(one, three, ""));
        let filter = Filter::between("node1", "node2", "ip protocol icmp");
        assert!(!echo(one, two, "") && !echo(two, one, "") && echo(one, three, ""));
        filter.now_drops(&["meta length > 1400"]);
        assert!(echo(one, two, "-s 1372") && !echo(one, two, "-s 1373"));
        filter.now_drops(&["ether type arp"]);
        assert!(echo(one, two, ""), "who is known stays known");
        one.ns.run("ip neigh flush dev eth0");
        assert!(!echo(one, two, ""));
        drop(filter);
        lab::wait_for("no filter, no loss", SOON, || echo(one, two, ""));
    });
}

#[test]
fn a_relay_breaks_offloaded_checksums() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(2).build();
        let [one, two] = [1, 2].map(|k| lab.node(k));
        let witness = Witness::start(&two.ns);
        assert!(seen_source(&one.ns, Protocol::Udp, two.ip.into()).is_some());
        let relay = Relay::of(one);
        lab::wait_for("an echo comes through", SOON, || echo(one, two, ""));
        assert_eq!(seen_source(&one.ns, Protocol::Udp, two.ip.into()), None, "UDP does not");
        assert_eq!(witness.received().len(), 1);
        drop(relay);
        assert!(seen_source(&one.ns, Protocol::Udp, two.ip.into()).is_some());
    });
}

fn plain_nodes(announce: Announce) -> Lab {
    let lab = Topology::flat(2).build();
    let subnets = ["10.244.8.0/24", "10.244.9.0/24"];
    for (node, subnet) in lab.nodes().iter().zip(subnets) {
        lab.store.put_lease(&subnet.replace('/', "-"), &lease(node, announce));
    }
    for (node, subnet) in lab.nodes().iter().zip(subnets) {
        settle(node, &lab.store, subnet, announce);
    }
    lab
}

#[test]
fn plain_nodes_carry_pods_by_either_path_and_lose_spoilt_checksums() {
    lab::test(Timing::Free, || {
        for announce in [Announce::Vxlan, Announce::HostGw] {
            let lab = plain_nodes(announce);
            let pods = lab.pods();
            assert!(pods[0].reaches(pods[1].ip(), SOON).is_some(), "{announce:?}");
            // In a tunnel, too, only packets whose checksum was left to the device are lost.
            let witness = Witness::start(&pods[1].ns);
            assert!(seen_source(&pods[0].ns, Protocol::Udp, pods[1].ip()).is_some());
            let _relay = Relay::of(lab.node(1));
            assert!(pods[0].reaches(pods[1].ip(), SOON).is_some(), "{announce:?}");
            assert!(seen_source(&pods[0].ns, Protocol::Udp, pods[1].ip()).is_none());
            assert_eq!(witness.received().len(), 1);
        }
    });
}
