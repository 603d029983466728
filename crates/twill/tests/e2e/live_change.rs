//! Changes of backend, VNI, port or MTU while pods talk, on all nodes at once and node by node. Nothing of the old
//! settings stays.

use std::fs;
use std::time::{Duration, Instant};

use lab::{Lab, Node, PingReport, PingStream, Pod, Timing, Topology};

use crate::cluster::{self, HOST_GW, SOON, VXLAN};

const PORT_4789: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789}}"#;
const VNI_42: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789,"VNI":42}}"#;
const MTU_1400: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789,"VNI":42,"MTU":1400}}"#;
const DIRECT: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789,"VNI":42,"MTU":1400,"DirectRouting":true,"VerifyDirect":false}}"#;

/// State of every node once it follows a config.
struct Expected {
    config: &'static str,
    /// The only vxlan device, with its port; `None` without one.
    device: Option<(&'static str, u16)>,
    mtu: u32,
    /// Device of the routes to the peers, which are all on one segment.
    through: &'static str,
    /// Maximum time for which the pods may be cut off from each other; `None` allows no lost packet.
    outage: Option<Duration>,
}

const SECOND: Duration = Duration::from_secs(1);

/// Each step differs in one thing from the one before; the last two take back two things at once.
const STEPS: [Expected; 8] = [
    Expected { config: HOST_GW, device: None, mtu: 1500, through: "eth0", outage: Some(SECOND) },
    Expected {
        config: VXLAN,
        device: Some(("flannel.1", 8472)),
        mtu: 1450,
        through: "flannel.1",
        outage: Some(SECOND),
    },
    Expected {
        config: PORT_4789,
        device: Some(("flannel.1", 4789)),
        mtu: 1450,
        through: "flannel.1",
        outage: Some(SECOND),
    },
    Expected {
        config: VNI_42,
        device: Some(("flannel.42", 4789)),
        mtu: 1450,
        through: "flannel.42",
        outage: Some(SECOND),
    },
    Expected {
        config: MTU_1400,
        device: Some(("flannel.42", 4789)),
        mtu: 1350,
        through: "flannel.42",
        outage: None,
    },
    Expected { config: DIRECT, device: Some(("flannel.42", 4789)), mtu: 1350, through: "eth0", outage: None },
    Expected {
        config: VNI_42,
        device: Some(("flannel.42", 4789)),
        mtu: 1450,
        through: "flannel.42",
        outage: None,
    },
    Expected {
        config: VXLAN,
        device: Some(("flannel.1", 8472)),
        mtu: 1450,
        through: "flannel.1",
        outage: Some(SECOND),
    },
];

impl Expected {
    /// Returns true if all nodes have this state, and nothing else.
    fn is_reached(&self, lab: &Lab) -> bool {
        let says_port = self.device.is_some_and(|(_, port)| port != 8472);
        lab.store.leases().values().all(|lease| lease.contains(r#""Port":"#) == says_port)
            && lab.nodes().iter().all(|node| self.is_reached_by(node, lab.nodes().len() - 1))
    }

    fn is_reached_by(&self, node: &Node, peers: usize) -> bool {
        let devices = node.ns.run("ip -d -o link show type vxlan");
        let is_device = self.device.map_or(devices.is_empty(), |(name, port)| {
            devices.lines().count() == 1
                && devices.contains(&format!(": {name}: "))
                && devices.contains(&format!("dstport {port} "))
        });
        let fdb = node.ns.run("bridge fdb show");
        let entries: Vec<&str> = fdb.lines().filter(|line| line.contains(" dst ")).collect();
        let tunnelled = if self.through == "eth0" { 0 } else { peers };
        let routes = node.ns.run("ip route show proto 84");
        let through = format!("dev {} ", self.through);
        let file = fs::read_to_string(node.run_dir().join("subnet.env")).unwrap();
        is_device
            && entries.len() == tunnelled
            && !fdb.contains(" port ")
            && routes.lines().count() == peers
            && routes.lines().all(|route| route.contains(&through))
            && file.contains(&format!("FLANNEL_MTU={}\n", self.mtu))
    }

    /// Makes the change while the pods of all pairs ping each other, and asserts the allowed outage.
    fn is_borne(&self, pods: &[Pod], change: impl FnOnce(&Pings)) {
        println!("{}", self.config);
        let pings = Pings::start(pods);
        change(&pings);
        for (pair, report) in pings.stop() {
            let PingReport { sent, lost, longest_gap, .. } = report;
            println!("  {pair}: lost {lost} of {sent}, longest gap {:.3} s", longest_gap.as_secs_f64());
            let borne = self.outage.map_or(lost == 0, |outage| lab::is_in_time(&pair, longest_gap, outage));
            assert!(borne, "{}: {pair}: {report:?}", self.config);
        }
    }
}

/// A stream of pings for each pair of pods.
struct Pings(Vec<(String, PingStream)>);

impl Pings {
    fn start(pods: &[Pod]) -> Self {
        let pairs =
            pods.iter().enumerate().flat_map(|(at, from)| pods[at + 1..].iter().map(move |to| (from, to)));
        let stream = |(from, to): (&Pod, &Pod)| {
            (format!("{}-{}", from.name, to.name), PingStream::start(&from.ns, to.ip()))
        };
        let pings = Self(pairs.map(stream).collect());
        pings.go_on(5);
        pings
    }

    fn received(&self) -> Vec<u64> {
        self.0.iter().map(|(_, ping)| ping.received()).collect()
    }

    /// Waits until each stream has `more` further answers.
    fn go_on(&self, more: u64) {
        let before = self.received();
        lab::wait_for("the pods talk", SOON, || {
            self.received().iter().zip(&before).all(|(now, before)| *now >= before + more)
        });
    }

    /// Waits until `then`, and asserts that no stream is silent for a second.
    fn go_on_until(&self, then: Instant) {
        let (mut at, mut before) = (Instant::now(), self.received());
        lab::holds_for("the pods talk", then.saturating_duration_since(at), || {
            if at.elapsed() < SECOND {
                return true;
            }
            let now = self.received();
            let go_on = now.iter().zip(&before).all(|(now, before)| now > before)
                || lab::is_in_time("the silence of one pair", at.elapsed(), SECOND);
            (at, before) = (Instant::now(), now);
            go_on
        });
    }

    fn stop(self) -> Vec<(String, PingReport)> {
        self.go_on(5);
        self.0.into_iter().map(|(pair, ping)| (pair, ping.stop())).collect()
    }
}

#[test]
fn all_nodes_follow_the_config_at_once() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(4), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let subnets: Vec<String> = lab.nodes().iter().map(Node::subnet).collect();
        for step in STEPS {
            step.is_borne(&pods, |_| {
                lab.store.config(step.config);
                lab::wait_for(step.config, SOON, || step.is_reached(&lab));
            });
        }
        let now: Vec<String> = lab.nodes().iter().map(Node::subnet).collect();
        assert_eq!(subnets, now, "every node keeps its subnet");
    });
}

/// Time from one node's change to the next one's.
const PACE: Duration = Duration::from_secs(5);

/// The daemons read the config once. They are killed and restarted node by node, so that old and new stand side by side
/// meanwhile.
#[test]
fn nodes_with_old_and_new_settings_reach_each_other() {
    lab::test_within(Duration::from_secs(240), Timing::Free, || {
        let lab = cluster::lab(Topology::flat(4), VXLAN);
        let mut daemons = lab.start_all(&["--iface=eth0", "--config-reload=false"]);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        for step in &STEPS[..6] {
            step.is_borne(&pods, |pings| {
                lab.store.config(step.config);
                let mut due = Instant::now();
                for daemon in &mut daemons {
                    pings.go_on_until(due);
                    due = Instant::now() + PACE;
                    daemon.kill9();
                    daemon.restart();
                    daemon.wait_ready();
                }
                lab::wait_for(step.config, SOON, || step.is_reached(&lab));
            });
        }
    });
}

/// Running pods keep their MTU and learn the new limit from the node; new pods get the new MTU.
#[test]
fn running_pods_learn_a_smaller_mtu() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (_daemons, pods) = cluster::start(&lab);
        lab.store.config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#);
        let is_new = |node: &lab::Node| node.subnet_env().is_some_and(|env| env.mtu() == Some(1350));
        lab::wait_for("the new MTU", SOON, || lab.nodes().iter().all(is_new));
        assert_eq!((pods[0].mtu, lab.node(1).pod().mtu), (1450, 1350));
        let ping = |size: u32| {
            let output =
                pods[0].ns.output(&format!("ping -n -c 1 -W 2 -M do -s {} {}", size - 28, pods[1].ip()));
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        };
        let reported = ping(1450);
        assert!(reported.contains("mtu = 1350") || reported.contains("mtu=1350"), "{reported}");
        assert!(ping(1350).contains(" 0% packet loss"));
    });
}

#[test]
fn another_network_under_running_pods_is_refused_and_reported() {
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
