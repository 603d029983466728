//! Measures a hundred single changes: fifty nodes join, then each of them moves to another address.

use std::time::{Duration, Instant};

use lab::{Daemon, Lab, Node};

use super::monitor::ChangeMonitor;
use super::options::{Backend, Case, Families};
use super::peers::{Peer, Place};
use super::process::{Usage, rest};

const JOINS: u32 = 50;
const LIMIT: Duration = Duration::from_secs(30);
/// Idle time of the daemon before each change, so that changes do not overlap.
const IDLE: Duration = Duration::from_millis(30);

pub(super) struct Changes {
    /// Time of each change, from the moment before the lease is written.
    pub(super) lags: Vec<Duration>,
    /// Processor time of one change, on average.
    pub(super) cpu: Duration,
}

pub(super) fn run(lab: &Lab, node: &Node, daemon: &Daemon<'_>, case: &Case) -> Result<Changes, String> {
    let monitor = ChangeMonitor::start(node)?;
    let joining: Vec<_> = (case.peers..case.peers + JOINS).map(Peer).collect();
    let (before, mut lags) = (Usage::of(daemon.pid()), Vec::new());
    for (place, &peer) in
        [Place::First, Place::Moved].iter().flat_map(|place| joining.iter().map(move |peer| (place, peer)))
    {
        rest(daemon.pid(), IDLE, LIMIT);
        let (name, json) = peer.lease(case, *place);
        let begun = Instant::now();
        lab.store.put_lease(&name, &json);
        for sign in signs(case, peer, *place) {
            let reported = monitor.wait_for(&sign, LIMIT);
            let reported =
                reported.ok_or_else(|| format!("no monitor reports {sign}after a change of {name}"))?;
            lags.push(reported.saturating_duration_since(begun));
        }
        merge(&mut lags, case);
    }
    rest(daemon.pid(), IDLE, LIMIT);
    let spent = Usage::of(daemon.pid()).since(before).total();
    Ok(Changes { lags, cpu: spent / (2 * JOINS) })
}

/// Returns the last line that a monitor reports, for each family. It is the route of a new peer, or the new address
/// of a moved one.
fn signs(case: &Case, peer: Peer, place: Place) -> Vec<String> {
    let (one, other) = match (place, case.backend) {
        (Place::First, _) => (format!("{}/24 ", peer.subnet()), format!("{}/64 ", peer.subnet6())),
        (Place::Moved, Backend::Vxlan) => {
            (format!("dst {} ", peer.address(place)), format!("dst {} ", peer.address6(place)))
        }
        (Place::Moved, Backend::HostGw) => {
            (format!("via {} ", peer.address(place)), format!("via {} ", peer.address6(place)))
        }
    };
    if case.families == Families::Dual { vec![one, other] } else { vec![one] }
}

/// Merges the times of both families: a change has taken as long as the slower one.
fn merge(lags: &mut Vec<Duration>, case: &Case) {
    if case.families == Families::Dual
        && let (Some(one), Some(other)) = (lags.pop(), lags.pop())
    {
        lags.push(one.max(other));
    }
}
