//! What most tests begin with: nodes, daemons that are ready, a pod on each node.

use std::time::Duration;

use lab::{Daemon, Lab, Pod, Topology};

/// Long enough for a busy machine; what has to be quick is measured where it is claimed.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
pub(crate) const DIRECT: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// Flags of every daemon here.
pub(crate) const FLAGS: &[&str] = &["--iface=eth0"];

/// A topology with a network config, nothing started yet.
pub(crate) fn lab(topology: Topology, config: &str) -> Lab {
    let lab = topology.twill(env!("CARGO_BIN_EXE_twill")).build();
    lab.store.config(config);
    lab
}

/// Starts every daemon, gives each node a pod, and waits until the first two pods reach each other.
pub(crate) fn start(lab: &Lab) -> (Vec<Daemon<'_>>, Vec<Pod>) {
    let daemons = lab.start_all(FLAGS);
    let pods = lab.pods();
    assert!(
        pods[0].reaches(pods[1].ip(), SOON).is_some(),
        "the pods of node 1 and 2 do not reach each other"
    );
    (daemons, pods)
}

/// The pod subnet of a node as its lease is named: `10.244.34.0-24`.
pub(crate) fn lease_name(subnet: &str) -> String {
    subnet.replace('/', "-")
}
