//! Another backend, VNI, port or MTU while pods talk: on all nodes at once, and node by node in a mixed cluster. Nothing
//! of the old stays.

use std::fs;
use std::time::Duration;

use lab::{Lab, PingReport, PingStream, Pod, Timing, Topology};

use crate::cluster::{self, DIRECT, HOST_GW, SOON, VXLAN};

const VNI_42: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":42}}"#;
const PORT_4789: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":42,"Port":4789}}"#;
const MTU_1400: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#;

/// What every node has once it follows a config.
struct Expected {
    config: &'static str,
    /// The vxlan devices, none or one, with its port.
    device: Option<(&'static str, &'static str)>,
    mtu: u32,
    /// What the route to the neighbour on the segment leads through.
    through: &'static str,
    /// How long the pods may be cut off from each other.
    outage: Duration,
}

const NONE: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

const STEPS: [Expected; 7] = [
    Expected {
        config: MTU_1400,
        device: Some(("flannel.1", "8472")),
        mtu: 1350,
        through: "flannel.1",
        outage: NONE,
    },
    Expected {
        config: DIRECT,
        device: Some(("flannel.1", "8472")),
        mtu: 1450,
        through: "eth0",
        outage: NONE,
    },
    Expected {
        config: VXLAN,
        device: Some(("flannel.1", "8472")),
        mtu: 1450,
        through: "flannel.1",
        outage: NONE,
    },
    Expected { config: HOST_GW, device: None, mtu: 1500, through: "eth0", outage: SECOND },
    Expected {
        config: VNI_42,
        device: Some(("flannel.42", "8472")),
        mtu: 1450,
        through: "flannel.42",
        outage: SECOND,
    },
    Expected {
        config: PORT_4789,
        device: Some(("flannel.42", "4789")),
        mtu: 1450,
        through: "flannel.42",
        outage: SECOND,
    },
    Expected {
        config: VXLAN,
        device: Some(("flannel.1", "8472")),
        mtu: 1450,
        through: "flannel.1",
        outage: SECOND,
    },
];

impl Expected {
    fn is_reached(&self, lab: &Lab) -> bool {
        lab.nodes().iter().all(|node| {
            let devices = node.ns.run("ip -d -o link show type vxlan");
            let is_device = match self.device {
                None => devices.is_empty(),
                Some((name, port)) => {
                    let ours = format!(": {name}: ");
                    devices.lines().count() == 1
                        && devices.contains(&ours)
                        && devices.contains(&format!("dstport {port} "))
                }
            };
            let peer = if node.index == 1 { lab.node(2) } else { lab.node(1) };
            let route = node.ns.run(&format!("ip route show {}", peer.subnet()));
            let file = fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
            is_device
                && route.contains(&format!("dev {} ", self.through))
                && file.contains(&format!("FLANNEL_MTU={}\n", self.mtu))
        })
    }
}

/// What pings from the first pod to all others met while something changed, until each is answered `more` times again.
fn pinged(pods: &[Pod], more: u64, change: impl FnOnce()) -> Vec<PingReport> {
    let pings: Vec<PingStream> =
        pods[1..].iter().map(|pod| PingStream::start(&pods[0].ns, pod.ip())).collect();
    lab::wait_for("the pings run", SOON, || pings.iter().all(|ping| ping.received() > 5));
    change();
    let seen: Vec<u64> = pings.iter().map(PingStream::received).collect();
    lab::wait_for("the pods talk", SOON, || {
        pings.iter().zip(&seen).all(|(ping, seen)| ping.received() > seen + more)
    });
    let reports: Vec<PingReport> = pings.into_iter().map(PingStream::stop).collect();
    println!("lost {:?}", reports.iter().map(|report| report.lost).collect::<Vec<_>>());
    reports
}

#[test]
fn all_nodes_follow_the_config_at_once() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(4), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let subnets: Vec<String> = lab.nodes().iter().map(lab::Node::subnet).collect();
        for step in STEPS {
            println!("{}", step.config);
            let reports = pinged(&pods, 5, || {
                lab.store.config(step.config);
                lab::wait_for(step.config, SOON, || step.is_reached(&lab));
            });
            assert!(
                reports.iter().all(|report| report.longest_gap < step.outage),
                "{}: {reports:?}",
                step.config
            );
            assert!(
                step.outage > NONE || reports.iter().all(|report| report.lost == 0),
                "{}: {reports:?}",
                step.config
            );
        }
        let now: Vec<String> = lab.nodes().iter().map(lab::Node::subnet).collect();
        assert_eq!(subnets, now, "every node keeps its subnet");
    });
}

/// The daemons read the config once; they are restarted node by node, so that old and new stand side by side meanwhile.
#[test]
fn node_by_node_old_and_new_reach_each_other() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let mut daemons = lab.start_all(&["--iface=eth0", "--config-reload=false"]);
        let pods = lab.pods();
        assert!(
            pods[0].reaches(pods[1].ip(), SOON).is_some() && pods[0].reaches(pods[2].ip(), SOON).is_some()
        );
        for step in STEPS.iter().filter(|step| [HOST_GW, VNI_42].contains(&step.config)) {
            lab.store.config(step.config);
            for daemon in &mut daemons {
                println!("{}", step.config);
                let reports = pinged(&pods, 20, || {
                    daemon.kill9();
                    daemon.restart();
                    daemon.wait_ready();
                });
                assert!(
                    reports.iter().all(|report| report.longest_gap < SECOND),
                    "{}: {reports:?}",
                    step.config
                );
            }
            lab::wait_for(step.config, SOON, || step.is_reached(&lab));
        }
    });
}

#[test]
fn another_network_under_running_pods_is_refused_and_said() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let before = lab::View::of(&node.ns);
        lab.store.config(&VXLAN.replace("10.244", "10.99"));
        lab::wait_for("it is said", SOON, || {
            node.twill(&["status"]).contains("another Network or SubnetLen")
        });
        assert_eq!(before.diff(&lab::View::of(&node.ns)), "");
        assert!(pods[0].ping(pods[1].ip()).is_some());
        assert_eq!(node.get("/readyz").unwrap().status, 200);
    });
}
