//! A cluster of thousands: its IPv4 routes go by next hop objects, and no packet is lost on the way there and back.

use std::time::Duration;

use lab::{Node, PingStream, Timing, Topology};

use crate::cluster::{self, SOON};

const VXLAN: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"host-gw"}}"#;

/// Peers that are there by their leases only.
fn lease(number: usize, backend: &str) -> (String, String) {
    let data = match backend {
        "vxlan" => {
            format!(
                r#","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:{:02x}:{:02x}"}}"#,
                number / 200,
                number % 200
            )
        }
        _ => String::new(),
    };
    let value = format!(
        r#"{{"PublicIP":"192.168.100.{}","PublicIPv6":null,"BackendType":"{backend}"{data}}}"#,
        50 + number % 200
    );
    (format!("10.{}.{}.0-24", 1 + number / 200, number % 200), value)
}

fn objects(node: &Node) -> usize {
    node.ns.run("ip nexthop").lines().filter(|line| line.contains("proto 84")).count()
}

fn routes(node: &Node, word: &str) -> usize {
    node.ns.run("ip route show proto 84").lines().filter(|line| line.contains(word)).count()
}

fn there_and_back(config: &str, backend: &str) {
    let flags = &["--iface=eth0", "--shrink-grace=1s"];
    let lab = cluster::lab(Topology::flat(2), config);
    let (mut daemons, pods) = (lab.start_all(flags), lab.pods());
    cluster::reach_each_other(&pods);
    let node = lab.node(1);
    let ping = PingStream::start(&pods[0].ns, pods[1].ip());
    lab::wait_for("the ping runs", SOON, || ping.received() > 10);
    assert_eq!(objects(node), 0, "a small cluster is in flannel's shape");
    let leases: Vec<_> = (0..2100).map(|number| lease(number, backend)).collect();
    leases.iter().for_each(|(name, value)| lab.store.put_lease(name, value));
    lab::wait_for("all go by objects", SOON, || routes(node, "nhid") == 2101 && objects(node) == 2101);
    let gone = node.ns.run("ip nexthop").lines().find(|line| line.contains("proto 84")).unwrap().to_owned();
    let id = gone.split(' ').nth(1).unwrap();
    node.ns.run(&format!("ip nexthop del id {id}"));
    lab::wait_for("one of thousands is repaired", Duration::from_secs(1), || {
        node.ns.run("ip nexthop").contains(&gone) && routes(node, "nhid") == 2101
    });
    daemons[0].kill9();
    daemons[0].restart();
    daemons[0].wait_ready();
    assert_eq!(cluster::ops_asked(node), 0.0, "the next start finds all as it should be");
    daemons[0].terminate();
    node.twill(&["uninstall", "--hand-over"]);
    assert_eq!(
        (objects(node), routes(node, "nhid"), routes(node, "via")),
        (0, 0, 2101),
        "flannel knows no objects"
    );
    daemons[0] = node.start(flags);
    daemons[0].wait_ready();
    lab::wait_for("objects again", SOON, || routes(node, "nhid") == 2101);
    for (name, _) in &leases[800..] {
        lab.store.remove_lease(name);
    }
    lab::wait_for("plain again", SOON, || objects(node) == 0 && routes(node, "via") == 801);
    let report = ping.stop();
    assert_eq!(report.lost, 0, "{report:?}");
}

#[test]
fn vxlan() {
    lab::test(Timing::Timed, || there_and_back(VXLAN, "vxlan"));
}

#[test]
fn host_gw() {
    lab::test(Timing::Timed, || there_and_back(HOST_GW, "host-gw"));
}
