//! A node that flannel ran on. Its objects are adopted in place and not made again, and stale ones go. Objects that only look
//! like flannel's are reported and stay. Pods that talk meanwhile lose nothing.

use std::fs;

use lab::{Lab, Node, PingStream, Pod, Timing, Topology, View};

use crate::cluster::{self, SOON};
use crate::recording::{self, Recording};

/// Subnet of a peer that went while flannel was down.
const GONE: &str = "10.244.250.0/24";
/// Destination of a route whose owner cannot be determined.
const ANYBODYS: &str = "10.244.251.0/24";

/// Objects of the pod network, indexes of the devices, and foreign rules.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Before {
    objects: Vec<String>,
    indexes: String,
    rules: String,
}

/// Returns the nftables tables and iptables' rules, without flannel's.
fn rules_of_others(node: &Node) -> String {
    let tools = ["nft list tables", "iptables-save", "ip6tables-save"];
    let texts = tools.map(|tool| node.ns.run(tool)).concat().to_lowercase();
    let lines = texts.lines().filter(|line| !line.contains("flannel") && !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// Returns the state that a takeover must preserve, except stale objects. Equal indexes prove that a device was not
/// recreated.
pub(crate) fn look(node: &Node) -> Before {
    let devices = node.ns.run("ip -o link show type vxlan");
    let indexes = devices
        .lines()
        .filter_map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ").into())
        .collect::<Vec<String>>();
    let rules = rules_of_others(node);
    Before { objects: recording::objects(&View::of(&node.ns)), indexes: indexes.join("\n"), rules }
}

/// Adds stale objects as flannel would have written them, beside the recorded ones.
fn leave_stale(node: &Node) {
    let devices = node.ns.run("ip -o link show type vxlan");
    if let Some(device) =
        devices.lines().find_map(|line| line.split(": ").nth(1)).filter(|name| !name.contains("v6"))
    {
        let address = GONE.trim_end_matches("/24");
        node.ns.batch(&format!(
            "neighbour add {address} lladdr 02:00:00:00:0f:01 dev {device} nud permanent\n\
             route add {GONE} via {address} dev {device} onlink\n"
        ));
        node.ns.run(&format!("bridge fdb add 02:00:00:00:0f:01 dev {device} dst 192.168.100.99"));
    }
    node.ns.run(&format!("ip route add {ANYBODYS} via {} dev eth0", node.gateway()));
}

/// Sends echoes between the first two pods, if flannel let them reach each other at all.
fn pings(lab: &Lab, pods: &[Pod], case: &str) -> Vec<PingStream> {
    if case == "alloc" {
        return Vec::new();
    }
    let pings: Vec<PingStream> = pods[1].ips().map(|ip| PingStream::start(&pods[0].ns, ip)).collect();
    lab::wait_for(
        &format!("{case}: the pods of {} nodes talk by flannel's own objects", lab.nodes().len()),
        SOON,
        || pings.iter().all(|ping| ping.received() > 5),
    );
    pings
}

fn take_over(case: &'static str, topology: Topology, flags: &[&str]) {
    let recording = Recording::of(case);
    let lab = cluster::lab(topology, &recording.config());
    recording.fill(&lab);
    lab.nodes().iter().for_each(|node| recording.recreate(node));
    let pods = lab.pods();
    let pings = pings(&lab, &pods, case);
    let before: Vec<Before> = lab.nodes().iter().map(look).collect();
    for (node, before) in lab.nodes().iter().zip(&before) {
        assert_eq!(before.objects, recording::objects(&recording.view(node)), "{case}: as recorded");
        leave_stale(node);
    }
    let _daemons = lab.start_all(&[cluster::FLAGS, flags].concat());
    for (node, before) in lab.nodes().iter().zip(before) {
        lab::wait_for("the stale are gone", SOON, || {
            !node.ns.run("ip route; ip neigh; bridge fdb").contains("02:00:00:00:0f:01")
        });
        let mut now = look(node);
        assert!(now.objects.iter().any(|row| row.contains(ANYBODYS)), "{case}: it may be anybody's");
        now.objects.retain(|row| !row.contains(ANYBODYS) && !row.contains("type=unreachable"));
        // flannel uses too large an MTU for a device over IPv6, and keeps what it had for direct peers.
        assert_eq!(now.objects, before.objects, "{case}: {}", node.name);
        assert_eq!((now.indexes, now.rules), (before.indexes, before.rules), "{case}: {}", node.name);
        let routes = node.ns.run("ip route; ip -6 route");
        let own = |line: &&str| line.contains("via 10.244.") || line.contains("via fd00:244:");
        assert!(routes.lines().filter(own).all(|line| line.contains("proto 84")), "{case}: {routes}");
        let status = node.twill(&["status"]);
        assert!(status.contains(&format!("ip route del {ANYBODYS}")), "{case}: {status}");
    }
    if flags.contains(&"--ip-masq") {
        lab.nodes().iter().for_each(masqueraded_by_nftables_alone);
    }
    for report in pings.into_iter().map(PingStream::stop) {
        assert_eq!(report.lost, 0, "{case}: {report:?}");
    }
    let subnets: Vec<_> = lab
        .nodes()
        .iter()
        .map(|node| fs::read_to_string(node.run_dir().join("subnet.env")).unwrap())
        .collect();
    for (node, now) in lab.nodes().iter().zip(subnets) {
        let line = |text: &str| {
            text.lines().filter(|line| line.contains("SUBNET=")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line(&now), line(&recording.subnet_env(node)));
    }
}

#[test]
fn vxlan() {
    lab::test(Timing::Free, || take_over("vxlan", Topology::flat(3), &[]));
}

#[test]
fn vxlan_with_every_option() {
    lab::test(Timing::Free, || take_over("vxlan-options", Topology::flat(3), &[]));
}

#[test]
fn vxlan_with_direct_routing() {
    lab::test(Timing::Free, || take_over("vxlan-directrouting", Topology::routed(2, 1), &[]));
}

#[test]
fn host_gw() {
    lab::test(Timing::Free, || take_over("host-gw", Topology::flat(3), &[]));
}

#[test]
fn host_gw_behind_a_router() {
    lab::test(Timing::Free, || take_over("host-gw-l3", Topology::routed(2, 1), &[]));
}

#[test]
fn vxlan_in_dual_stack() {
    lab::test(Timing::Free, || take_over("vxlan-dual", Topology::flat(3), &[]));
}

#[test]
fn host_gw_in_dual_stack() {
    lab::test(Timing::Free, || take_over("host-gw-dual", Topology::flat(3), &[]));
}

#[test]
fn alloc() {
    lab::test(Timing::Free, || take_over("alloc", Topology::flat(3), &[]));
}

#[test]
fn with_masquerade_by_nft() {
    lab::test(Timing::Free, || take_over("masq-nft-dual", Topology::flat(3), &["--ip-masq"]));
}

#[test]
fn with_masquerade_by_iptables() {
    lab::test(Timing::Free, || take_over("masq-iptables-dual", Topology::flat(3), &["--ip-masq"]));
}

/// Asserts that only nftables masquerades, whichever program had flannel's rules: the config says nftables, or nothing.
fn masqueraded_by_nftables_alone(node: &Node) {
    let rules = node.ns.run("nft -s list ruleset");
    assert!(rules.matches("masquerade fully-random").count() == 4 && !rules.contains("FLANNEL"), "{rules}");
}

/// Takes over into another backend, VNI or network than flannel's, with its old subnet file. No manual step is
/// needed.
fn take_over_into(config: &str, subnet_env: impl Fn(&str) -> String) -> Lab {
    let recording = Recording::of("vxlan");
    let lab = cluster::lab(Topology::flat(3), config);
    for node in lab.nodes() {
        recording.recreate(node);
        let file = node.run_dir().join("subnet.env");
        fs::write(&file, subnet_env(&recording.subnet_env(node))).unwrap();
    }
    let daemons = lab.start_all(cluster::FLAGS);
    let pods = lab.pods();
    cluster::reach_each_other(&pods);
    drop(daemons);
    lab
}

#[test]
fn a_new_backend_removes_the_old_device_and_keeps_the_subnet() {
    lab::test(Timing::Free, || {
        let recording = Recording::of("vxlan");
        let lab = take_over_into(cluster::HOST_GW, str::to_owned);
        for node in lab.nodes() {
            assert_eq!(node.ns.run("ip link show type vxlan"), "");
            let env = fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
            assert_eq!(env, recording.subnet_env(node).replace("MTU=1450", "MTU=1500"));
        }
    });
}

#[test]
fn a_new_network_gets_a_new_subnet_and_the_old_one_is_removed() {
    lab::test(Timing::Free, || {
        let lab = take_over_into(&cluster::VXLAN.replace("10.244", "10.99"), str::to_owned);
        for node in lab.nodes() {
            let all = node.ns.run("ip route; ip address show dev flannel.1; ip neigh show dev flannel.1");
            assert!(!all.contains("10.244.") && all.contains("10.99."), "{all}");
            let env = fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
            assert!(env.starts_with("FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99."), "{env}");
        }
    });
}

#[test]
fn half_a_subnet_file_is_rewritten() {
    lab::test(Timing::Free, || {
        let half = |text: &str| text[..text.find("FLANNEL_SUBNET=10.244.").unwrap() + 20].to_owned();
        let lab = take_over_into(cluster::VXLAN, half);
        for node in lab.nodes() {
            let env = fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
            assert!(env.ends_with("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"), "{env}");
        }
    });
}
