//! Each fault of a path and its finding, in both families: one node observes all others. With IPv4 the others have no daemon.
//! With IPv6 each has its own, which is killed where it would repair a harm to its node.

mod bare;
mod tunnel;

pub(crate) use bare::one_segment;

use std::time::{Duration, Instant, SystemTime};

use lab::plain::Announce;
use lab::{Daemon, Lab, Node, PingStream, Pod, until};

use crate::cluster::{FLAGS, SOON};
use crate::verdicts::{AT_ONCE, findings, found, plain, reported};

/// Maximum time until a peer is healthy again. It also applies to faults that a new peer is not blamed for at once.
const IN_TIME: Duration = Duration::from_secs(25);
const CALM: Duration = Duration::from_secs(5);

/// The family of a test, with its nft expressions for the same harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    V4,
    V6,
}

impl Net {
    fn echoes(self) -> &'static str {
        match self {
            Self::V4 => "ip protocol icmp",
            Self::V6 => "icmpv6 type { echo-request, echo-reply }",
        }
    }

    fn next_hop(self) -> &'static str {
        match self {
            Self::V4 => "ether type arp",
            Self::V6 => "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }",
        }
    }

    fn pods(self) -> &'static str {
        match self {
            Self::V4 => "ip saddr 10.244.0.0/16",
            Self::V6 => "ip6 saddr fd00:244::/48",
        }
    }

    /// The router's far segment, and its device there.
    fn far(self) -> &'static str {
        match self {
            Self::V4 => "192.168.101.0/24 dev eth1",
            Self::V6 => "fd00:101::/64 dev eth1 metric 256",
        }
    }
}

/// Starts the daemon of node 1 and configures all others without one. Returns the daemon and the subnets of all nodes.
pub(crate) fn settled<'lab>(lab: &'lab Lab, announce: Announce) -> (Daemon<'lab>, Vec<String>) {
    let daemon = lab.node(1).start(FLAGS);
    daemon.wait_ready();
    let own = lab.node(1).subnet();
    let peers = (2..=lab.nodes().len()).map(|k| plain(lab, k, announce));
    let subnets: Vec<_> = [own].into_iter().chain(peers).collect();
    (daemon, subnets)
}

/// Starts all nodes of a family. Returns the daemons, that of the first node first, and the subnets.
fn nodes(lab: &Lab, net: Net, announce: Announce) -> (Vec<Daemon<'_>>, Vec<String>) {
    if net == Net::V4 {
        let (daemon, subnets) = settled(lab, announce);
        return (vec![daemon], subnets);
    }
    lab.nodes().iter().for_each(|node| _ = node.ns.run("ip -4 addr flush dev eth0"));
    let daemons = lab.start_all(FLAGS);
    (daemons, lab.nodes().iter().map(Node::subnet6).collect())
}

/// Kills the daemons of these nodes, if they have any; their leases stay.
fn killed(daemons: &mut [Daemon], nodes: &[usize]) {
    for k in nodes {
        daemons.get_mut(k - 1).into_iter().for_each(Daemon::kill9);
    }
}

fn healthy<'a>(lab: &Lab, subnets: impl IntoIterator<Item = &'a String>) {
    for subnet in subnets {
        found(lab.node(1), subnet, "healthy", SOON);
    }
}

/// A fault that has to be found of a peer. Pods need not talk for it: so few peers are probed every second, each of five thousand
/// every minute.
struct Fault<'a> {
    subnet: &'a str,
    name: &'static str,
    /// Function that returns the time at which the last packet between pods got through.
    last: Box<dyn Fn() -> SystemTime>,
    limit: Duration,
}

impl<'a> Fault<'a> {
    /// Expects the fault within [`AT_ONCE`] while these pods talk.
    fn of(subnet: &'a str, name: &'static str, pings: PingStream) -> Self {
        Self { subnet, name, last: Box::new(move || pings.last_answer()), limit: AT_ONCE }
    }

    /// Expects the fault within `limit` from now.
    fn from_now(subnet: &'a str, name: &'static str, limit: Duration) -> Self {
        let now = SystemTime::now();
        Self { subnet, name, last: Box::new(move || now), limit }
    }
}

/// Sends fifty echoes a second from the first pod to that of node `k`, and returns once they are answered.
fn pings(pods: &[Pod], k: usize) -> PingStream {
    talking(PingStream::start(&pods[0].ns, pods[k - 1].ip()))
}

fn talking(pings: PingStream) -> PingStream {
    lab::wait_for("pods talk", SOON, || pings.received() > 0);
    pings
}

/// Asserts that each fault is found in time, and reported.
fn all_reported(lab: &Lab, daemon: &Daemon, faults: &[Fault]) {
    all_found(lab, faults);
    for fault in faults {
        reported(lab.node(1), daemon, fault.subnet, fault.name);
    }
}

fn all_found(lab: &Lab, faults: &[Fault]) {
    let mut open: Vec<_> = faults.iter().collect();
    let mut late = Vec::new();
    let all = until(IN_TIME, || {
        let findings = findings(lab.node(1));
        open.retain(|fault| {
            let is_found = findings.contains(&(fault.subnet.to_owned(), fault.name.to_owned()));
            if is_found {
                // The fault may be found before the kernel loses the first packet.
                let took = (fault.last)().elapsed().unwrap_or_default();
                println!("{} of {} after {took:?}", fault.name, fault.subnet);
                if !lab::is_in_time(&format!("{} of {}", fault.name, fault.subnet), took, fault.limit) {
                    late.push(format!("{} after {took:?}", fault.name));
                }
            }
            !is_found
        });
        open.is_empty().then_some(())
    });
    let lacks: Vec<_> = open.iter().map(|fault| format!("{} of {}", fault.name, fault.subnet)).collect();
    assert!(all.is_some(), "not found: {lacks:?}: {}", lab.node(1).twill(&["status"]));
    assert!(late.is_empty(), "late: {late:?}");
}

/// Waits until all these peers are healthy again.
fn all_healthy_again<'a>(lab: &Lab, subnets: impl IntoIterator<Item = &'a String>) {
    let start = Instant::now();
    for subnet in subnets {
        found(lab.node(1), subnet, "healthy", IN_TIME);
    }
    lab::in_time("healthy again", start.elapsed(), IN_TIME);
}
