//! Peers of the source filter among 5,000: a peer that comes or goes changes one element, at once.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use lab::{Lines, Node, Timing, Topology};

use crate::cluster::{self, FLAGS, SOON};

const PEERS: u32 = 5000;
const LIMIT: Duration = Duration::from_millis(20);
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0","SubnetMax":"10.201.0.0","EnableNFTables":true,"Backend":{"Type":"vxlan","VxlanSourceFilter":"drop"}}"#;

fn lease(nth: u32) -> (String, String) {
    let (high, low) = (nth / 250, nth % 250 + 1);
    let json = format!(
        r#"{{"PublicIP":"100.64.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:01:{high:02x}:{low:02x}"}}}}"#
    );
    (format!("10.{}.{low}.0-24", 100 + high), json)
}

fn peers(node: &Node) -> usize {
    let set = node.ns.run("nft list set ip flannel-ipv4 vteps 2>/dev/null || true");
    set.matches("100.64.").count()
}

fn monitor(node: &Node, program: &str, args: &[&str]) -> Lines {
    let mut command = node.ns.command(program);
    command.args(args);
    Lines::start(command)
}

/// Returns the time at which a monitor reported a line with all these words.
fn reported(lines: &Lines, words: &[&str]) -> Instant {
    let is = |line: &str| words.iter().all(|word| line.contains(word));
    assert!(lines.wait_for(SOON, is), "{words:?} in {:?}", lines.all());
    lines.all().iter().find(|line| is(&line.text)).unwrap().at
}

/// A peer's route comes and goes in the same reconcile pass, so the time between both is the set's own. Two monitors
/// are too close to show which event was first.
#[test]
fn a_peer_among_5000_changes_one_element_within_20_ms() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(1), CONFIG);
        let node = lab.node(1);
        fs::create_dir_all(lab.store.path().join("subnets")).unwrap();
        (0..PEERS).map(lease).for_each(|(name, json)| lab.store.put_lease(&name, &json));
        let _daemons = lab.start_all(FLAGS);
        lab::wait_for("all are in the set", SOON, || peers(node) == PEERS as usize);
        let (nft, routes) = (monitor(node, "nft", &["monitor"]), monitor(node, "ip", &["monitor", "route"]));
        let both_report = || {
            node.ns.run("nft 'add table ip test; delete table ip test'; ip route add 192.0.2.0/24 dev lo; ip route del 192.0.2.0/24 dev lo");
            nft.wait_for(Duration::from_millis(100), |line| line.contains("ip test"))
                && routes.wait_for(Duration::from_millis(100), |line| line.contains("192.0.2.0/24"))
        };
        lab::wait_for("both monitors report events", SOON, both_report);
        let (name, json) = lease(PEERS);
        let subnet = name.replace("-24", "/24");
        let mut figures = String::new();
        for (event, route) in [("add element", "via"), ("delete element", "Deleted")] {
            match event {
                "add element" => lab.store.put_lease(&name, &json),
                _ => lab.store.remove_lease(&name),
            }
            let set = reported(&nft, &[event, "vteps", "100.64.20.1"]);
            let way = reported(&routes, &[&subnet, route]);
            let apart = set.max(way) - set.min(way);
            let _ = writeln!(figures, "{event}: {apart:?} from the route");
            lab::in_time(&figures, apart, LIMIT);
        }
        println!("{figures}");
        let written = nft.all().iter().filter(|line| line.text.contains("vteps")).count();
        assert_eq!(written, 2, "one element each: {:?}", nft.all());
    });
}
