//! An etcd that dies, hangs, loses its data or is rolled back costs a running network nothing. The daemons live on, no packet is
//! lost, and no good peer is withdrawn. `twill status` reports the fault for as long as it lasts.

mod access;
mod clock;
mod crowd;
mod entries;
mod junk;
mod uplink;

use std::time::Duration;

use lab::{Daemon, EtcdSetup, Lab, Monitors, Node, PingStream, Pod, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON, VXLAN, lease_name};

const SUBNETS: &str = "/coreos.com/network/subnets/";
/// Maximum time until status names the cause.
const NAMED: Duration = Duration::from_secs(5);
/// Time longer than a peer without a lease is kept if nothing is suspect.
const WHILE: Duration = Duration::from_secs(3);

fn lab(nodes: usize, setup: EtcdSetup) -> Lab {
    cluster::lab(Topology::flat(nodes).etcd(setup), VXLAN)
}

/// Starts daemons that have each other's leases, and a pod on each node.
fn start(lab: &Lab) -> (Vec<Daemon<'_>>, Vec<Pod>) {
    let (daemons, pods) = cluster::start(lab);
    cluster::reach_each_other(&pods);
    (daemons, pods)
}

fn says(nodes: &[Node], words: &str) -> bool {
    nodes.iter().all(|node| node.twill(&["status"]).contains(words))
}

/// Waits until status contains `words` on each of these nodes.
fn named(nodes: &[Node], words: &str) {
    for node in nodes {
        lab::wait_for(&format!("{} says {words:?}", node.name), NAMED, || {
            node.twill(&["status"]).contains(words)
        });
    }
}

/// Waits until status has no warning on any of these nodes.
fn calm(nodes: &[Node]) {
    for node in nodes {
        let mut status = String::new();
        let calm = lab::until(SOON, || {
            status = node.twill(&["status"]);
            (status.contains("store     in sync") && !status.contains("\nwarnings:")).then_some(())
        });
        assert!(calm.is_some(), "{} still says:\n{status}", node.name);
    }
}

/// Watches everything that a fault must not affect; begun before the fault, ended after it.
struct Vigil<'lab> {
    nodes: &'lab [Node],
    monitors: Vec<Monitors>,
    ping: PingStream,
}

impl<'lab> Vigil<'lab> {
    /// Watches all nodes, and the path from the first pod to the second.
    fn begin(lab: &'lab Lab, pods: &[Pod]) -> Self {
        let ping = PingStream::start(&pods[0].ns, pods[1].ip());
        let monitors = lab.nodes().iter().map(|node| Monitors::start(&node.ns)).collect();
        lab::wait_for("the ping runs", SOON, || ping.received() > 10);
        Self { nodes: lab.nodes(), monitors, ping }
    }

    /// Asserts that every daemon lives, no packet is lost, and monitors report only writes that `may` accepts.
    fn end(self, daemons: &mut [Daemon], may: impl Fn(&str) -> bool) {
        for daemon in daemons {
            assert!(daemon.is_alive(), "a daemon has ended:\n{}", daemon.log());
        }
        for (node, monitors) in self.nodes.iter().zip(&self.monitors) {
            let written = monitors.lines_about(&["flannel", "proto 84"]);
            let wrong: Vec<_> = written.iter().filter(|line| !may(line)).collect();
            assert!(wrong.is_empty(), "{}: {wrong:#?}", node.name);
        }
        let report = self.ping.stop();
        assert_eq!(report.lost, 0, "{report:?}");
    }
}

/// Accepts no write at all: the good case.
fn nothing(_: &str) -> bool {
    false
}

/// Accepts writes that add something.
fn additions(line: &str) -> bool {
    !line.contains("Deleted")
}

#[test]
fn a_killed_and_restarted_etcd_costs_nothing() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let (etcd, leases) = (lab.etcd(), lab.etcd().leases());
        let vigil = Vigil::begin(&lab, &pods);
        etcd.kill9();
        named(lab.nodes(), "lost; the last known leases stay in force: etcd: http://192.168.100.5:2379: ");
        lab::holds_for("it is said all the while", WHILE, || says(lab.nodes(), "store     lost"));
        etcd.start();
        calm(lab.nodes());
        assert_eq!(etcd.leases(), leases, "nobody had to write anything");
        vigil.end(&mut daemons, nothing);
    });
}

/// Brings etcd back with another history, further ahead than the old one when the first daemons read it. Node 3 has no lease in
/// it until its daemon reads it, long after. Three nodes are too few to infer the loss from the number of lost peers.
fn back_without_node_3(lab: &Lab, daemons: &[Daemon], back: impl FnOnce()) {
    daemons.iter().for_each(Daemon::pause);
    back();
    (0..9).for_each(|_| lab.etcd().put("/elsewhere", "x"));
    daemons[..2].iter().for_each(Daemon::resume);
    let first = &lab.nodes()[..2];
    named(first, "more than half of the peers");
    lab::holds_for("it is said all the while", WHILE, || says(first, "more than half of the peers"));
    daemons[2].resume();
}

#[test]
fn an_etcd_restarted_empty_gets_every_lease_again() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let (etcd, leases) = (lab.etcd(), lab.store.leases());
        let vigil = Vigil::begin(&lab, &pods[1..]);
        back_without_node_3(&lab, &daemons, || {
            etcd.kill9();
            etcd.start_empty();
        });
        named(lab.nodes(), "there is no key /coreos.com/network/config");
        lab::wait_for("every node has taken its lease again", SOON, || lab.store.leases() == leases);
        assert!(etcd.leases().values().all(|entry| etcd.ttl(entry.lease).is_some()));
        lab.store.config(VXLAN);
        calm(lab.nodes());
        vigil.end(&mut daemons, nothing);
    });
}

#[test]
fn a_restore_from_before_a_node_joined_drops_no_peer() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let etcd = lab.etcd();
        let mut daemons: Vec<_> = lab.nodes()[..2].iter().map(|node| node.start(FLAGS)).collect();
        daemons.iter().for_each(Daemon::wait_ready);
        let snapshot = etcd.snapshot();
        daemons.push(lab.node(3).start(FLAGS));
        daemons[2].wait_ready();
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let leases = lab.store.leases();
        let vigil = Vigil::begin(&lab, &pods[1..]);
        back_without_node_3(&lab, &daemons, || etcd.restore(&snapshot));
        calm(lab.nodes());
        assert_eq!(lab.store.leases(), leases);
        vigil.end(&mut daemons, nothing);
    });
}

/// The history that would show node 1 the deletion is gone by then.
#[test]
fn compacted_while_a_node_is_not_watching() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let (etcd, node, leaver) = (lab.etcd(), lab.node(1), lab.node(3));
        let marks = [leaver.subnet().replace(".0/24", "."), leaver.ip.to_string()];
        // The config is written last, so that the newest key still exists afterwards.
        lab.store.config(VXLAN);
        let vigil = Vigil::begin(&lab, &pods);
        node.ns.run("ip route add unreachable 192.168.100.5");
        named(&lab.nodes()[..1], "lost");
        assert!(daemons.pop().is_some_and(|mut daemon| daemon.terminate().success()));
        lab.store.remove_lease(&lease_name(&leaver.subnet()));
        etcd.put("/elsewhere", "");
        etcd.compact();
        node.ns.run("ip route del unreachable 192.168.100.5");
        calm(&lab.nodes()[..2]);
        for node in &lab.nodes()[..2] {
            lab::wait_for("the leaver is gone", SOON, || {
                let ours =
                    node.ns.run("ip route; ip neigh show dev flannel.1; bridge fdb show dev flannel.1");
                !marks.iter().any(|mark| ours.contains(mark))
            });
        }
        vigil.end(&mut daemons, |line| marks.iter().any(|mark| line.contains(mark)));
    });
}

#[test]
fn an_etcd_silent_for_half_a_minute_costs_nothing() {
    lab::test(Timing::Free, || {
        let lab = lab(3, EtcdSetup::http());
        let (mut daemons, pods) = start(&lab);
        let (etcd, leases) = (lab.etcd(), lab.etcd().leases());
        let vigil = Vigil::begin(&lab, &pods);
        etcd.pause();
        named(lab.nodes(), "no answer within");
        lab::holds_for("it is said all the while", Duration::from_secs(25), || {
            says(lab.nodes(), "store     lost")
        });
        etcd.resume();
        calm(lab.nodes());
        assert_eq!(etcd.leases(), leases);
        vigil.end(&mut daemons, nothing);
    });
}
