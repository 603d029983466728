//! Common start of most tests: nodes, daemons that are ready, a pod on each node.

use std::time::Duration;

use lab::{Capture, Daemon, Lab, Node, Pod, Topology};

/// Time limit long enough for a busy machine; speed is measured where it is claimed.
pub(crate) const SOON: Duration = Duration::from_secs(10);

// Subnets below 10.244.20.0 and above 10.244.239.0 are never allocated: tests plant leases and routes of their own there.
pub(crate) const VXLAN: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"vxlan"}}"#;
pub(crate) const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"host-gw"}}"#;
pub(crate) const DIRECT: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
/// Direct routing from the first moment on, without proof.
pub(crate) const DIRECT_BY_ADDRESS: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"vxlan","DirectRouting":true,"VerifyDirect":false}}"#;
pub(crate) const VXLAN_DUAL: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
pub(crate) const DIRECT_DUAL: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
pub(crate) const HOST_GW_DUAL: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}"#;
pub(crate) const VXLAN_IPV6: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
pub(crate) const HOST_GW_IPV6: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}"#;

/// Flags of every daemon in these tests.
pub(crate) const FLAGS: &[&str] = &["--iface=eth0"];

/// Builds a topology with a network config, and starts nothing yet.
pub(crate) fn lab(topology: Topology, config: &str) -> Lab {
    let lab = topology.twill(env!("CARGO_BIN_EXE_twill")).build();
    lab.store.config(config);
    lab
}

/// Starts every daemon, gives each node a pod, and waits until the first two pods reach each other.
pub(crate) fn start(lab: &Lab) -> (Vec<Daemon<'_>>, Vec<Pod>) {
    start_with(lab, &[])
}

/// Same as [`start`], with further flags.
pub(crate) fn start_with<'a>(lab: &'a Lab, flags: &[&str]) -> (Vec<Daemon<'a>>, Vec<Pod>) {
    let daemons = lab.start_all(&[FLAGS, flags].concat());
    let pods = lab.pods();
    assert!(
        pods[0].reaches(pods[1].ip(), SOON).is_some(),
        "the pods of node 1 and 2 do not reach each other"
    );
    (daemons, pods)
}

/// Returns true if one echo to each address of `to` is answered.
pub(crate) fn answers(from: &Pod, to: &Pod) -> bool {
    to.ips().all(|ip| from.ping(ip).is_some())
}

/// Waits until each of these pods reaches every other one at each address.
pub(crate) fn reach_each_other(pods: &[Pod]) {
    for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to))) {
        for ip in to.ips() {
            assert!(from.reaches(ip, SOON).is_some(), "{} does not reach {} at {ip}", from.name, to.name);
        }
    }
}

/// Asserts that a packet of the pods' full size to each of a pod's addresses is answered without fragments. The largest of the
/// frames that carry them has `frame` bytes.
pub(crate) fn full_size_passes(node: &Node, (from, to): (&Pod, &Pod), frame: u32) {
    let fragments = Capture::start(&node.ns, "eth0", &["ip[6:2] & 0x3fff != 0 or ip6[6] == 44"]);
    let wire = Capture::start(&node.ns, "eth0", &["-T", "vxlan", "udp port 8472 or icmp or icmp6"]);
    for ip in to.ips() {
        let headers = if ip.is_ipv4() { 28 } else { 48 };
        from.ns.run(&format!("ping -n -c 1 -W 2 -M do -s {} {ip}", from.mtu - headers));
        let request = format!("> {ip}: ICMP");
        assert!(wire.wait_for(SOON, |packet| packet.contains(&request)), "{ip} is not on the wire");
    }
    let packets = wire.stop();
    let longest = packets
        .iter()
        .filter_map(|packet| packet.split("), length ").nth(1)?.split(':').next()?.parse().ok());
    assert_eq!(longest.max(), Some(frame), "{packets:#?}");
    assert_eq!(fragments.stop(), Vec::<String>::new());
}

/// Returns the name of the lease for a pod subnet, such as `10.244.34.0-24`.
pub(crate) fn lease_name(subnet: &str) -> String {
    subnet.replace('/', "-")
}

/// Returns the number of changes that the node's daemon has requested from the kernel since it started. It is no
/// proof by itself, but the kernel's monitors do not report a write that changes nothing. A pass counts its changes
/// after it has made them. So this waits for the answer of another pass first.
pub(crate) fn ops_asked(node: &Node) -> f64 {
    node.twill_output(&["diff"]);
    let metrics = node.get("/metrics").unwrap().body;
    let counts = metrics.lines().filter(|line| line.starts_with("twill_ops_total"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
