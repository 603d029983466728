//! Checks that a node's kernel holds all peers, as `ip` and `bridge` list them. It counts rows while it waits, then verifies each
//! peer.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Node, patient};

use super::options::{Backend, Case, Families};
use super::peers::{Peer, Place};

/// Minimum pause between two looks; a pause is also at least as long as the look took.
const PAUSE: Duration = Duration::from_millis(5);

/// A kind of object: the command that lists it, and the row that each peer must have.
struct Listing {
    command: &'static str,
    /// Pattern of the rows that count, for grep(1).
    rows: &'static str,
    row: fn(Peer) -> (String, String),
}

/// Returns the listings in the order in which a daemon writes them, so that usually the last one is awaited.
fn listings(case: &Case) -> Vec<Listing> {
    let (vxlan, dual) = (case.backend == Backend::Vxlan, case.families == Families::Dual);
    let all = [
        (vxlan, FDB),
        (vxlan && dual, FDB6),
        (vxlan, NEIGHBOURS),
        (vxlan && dual, NEIGHBOURS6),
        (vxlan, ROUTES),
        (vxlan && dual, ROUTES6),
        (!vxlan, DIRECT),
        (!vxlan && dual, DIRECT6),
    ];
    all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, listing)| listing).collect()
}

const FDB: Listing = Listing {
    command: "bridge fdb show dev flannel.1",
    rows: " dst 172.17.",
    row: |peer| (peer.mac(), format!("dst {}", peer.address(Place::First))),
};
const FDB6: Listing = Listing {
    command: "bridge fdb show dev flannel-v6.1",
    rows: " dst fd00:ac:",
    row: |peer| (peer.mac6(), format!("dst {}", peer.address6(Place::First))),
};
const NEIGHBOURS: Listing = Listing {
    command: "ip -4 neigh show dev flannel.1 nud permanent",
    rows: "^10\\.",
    row: |peer| (peer.subnet().to_string(), format!("lladdr {}", peer.mac())),
};
const NEIGHBOURS6: Listing = Listing {
    command: "ip -6 neigh show dev flannel-v6.1 nud permanent",
    rows: "^fd00:244:",
    row: |peer| (peer.subnet6().to_string(), format!("lladdr {}", peer.mac6())),
};
const ROUTES: Listing = Listing {
    command: "ip -4 route show",
    rows: "^10\\..*/24 .*dev flannel\\.1",
    row: |peer| (format!("{}/24", peer.subnet()), format!("via {} dev flannel.1", peer.subnet())),
};
const ROUTES6: Listing = Listing {
    command: "ip -6 route show",
    rows: "^fd00:244:.*/64 .*dev flannel-v6\\.1",
    row: |peer| (format!("{}/64", peer.subnet6()), format!("via {} dev flannel-v6.1", peer.subnet6())),
};
const DIRECT: Listing = Listing {
    command: "ip -4 route show",
    rows: "^10\\..*/24 .*dev eth0",
    row: |peer| (format!("{}/24", peer.subnet()), format!("via {} dev eth0", peer.address(Place::First))),
};
const DIRECT6: Listing = Listing {
    command: "ip -6 route show",
    rows: "^fd00:244:.*/64 .*dev eth0",
    row: |peer| (format!("{}/64", peer.subnet6()), format!("via {} dev eth0", peer.address6(Place::First))),
};

/// Time when the kernel held all, and duration of the last look, by which that time may be too late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) at: Instant,
    pub(super) look: Duration,
}

/// Waits until all peers of the case are there and as they should be. The error says what is missing.
pub(super) fn wait(
    node: &Node,
    case: &Case,
    limit: Duration,
    alive: impl Fn() -> bool,
) -> Result<Held, String> {
    let end = Instant::now() + patient(limit);
    let mut held = Held { at: Instant::now(), look: Duration::ZERO };
    for listing in listings(case) {
        loop {
            let begun = Instant::now();
            let rows = count(node, &listing);
            held = Held { at: Instant::now(), look: begun.elapsed() };
            if rows >= case.peers {
                break;
            }
            if !alive() {
                return Err("the daemon has ended".into());
            }
            if held.at > end {
                let all = case.peers;
                return Err(format!(
                    "`{}` shows {rows} of {all} after {} s",
                    listing.command,
                    limit.as_secs()
                ));
            }
            sleep(held.look.max(PAUSE));
        }
    }
    verify(node, case)?;
    Ok(held)
}

fn count(node: &Node, listing: &Listing) -> u32 {
    let line = format!("{} 2>/dev/null | grep -c '{}'", listing.command, listing.rows);
    String::from_utf8_lossy(&node.ns.output(&line).stdout).trim().parse().unwrap_or(0)
}

/// Verifies the rows of each peer. The error names the first row that is missing.
pub(super) fn verify(node: &Node, case: &Case) -> Result<(), String> {
    for listing in listings(case) {
        let text = node.ns.run(listing.command);
        let rows: BTreeSet<_> = text.lines().filter_map(essence).collect();
        for peer in (0..case.peers).map(Peer) {
            let (key, value) = (listing.row)(peer);
            if !rows.contains(&(key.as_str(), value.clone())) {
                return Err(format!("`{}` has no row {key} ... {value}", listing.command));
            }
        }
    }
    Ok(())
}

/// Returns the key of a row, and its target: `via A dev D`, `lladdr M` or `dst A`.
fn essence(line: &str) -> Option<(&str, String)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let after = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
    let value = match (after("via"), after("dev"), after("lladdr"), after("dst")) {
        (Some(via), Some(dev), ..) => format!("via {via} dev {dev}"),
        (_, _, Some(lladdr), _) => format!("lladdr {lladdr}"),
        (_, _, _, Some(dst)) => format!("dst {dst}"),
        _ => return None,
    };
    Some((words.first()?, value))
}

#[cfg(test)]
mod tests {
    use super::essence;

    #[test]
    fn a_row_is_reduced_to_key_and_value() {
        let cases = [
            (
                "10.1.0.0/24 nhid 7 via 10.1.0.0 dev flannel.1 proto 84 onlink",
                "10.1.0.0/24 via 10.1.0.0 dev flannel.1",
            ),
            ("10.1.0.0 lladdr 0a:00:00:00:00:00 PERMANENT", "10.1.0.0 lladdr 0a:00:00:00:00:00"),
            ("0a:00:00:00:00:00 dst 172.17.0.0 self permanent", "0a:00:00:00:00:00 dst 172.17.0.0"),
        ];
        for (line, expected) in cases {
            let (key, value) = essence(line).expect("a row");
            assert_eq!(format!("{key} {value}"), expected);
        }
        assert_eq!(essence("172.16.0.0/12 dev eth0 scope link"), None);
    }
}
