//! Leases as older flannels and other writers make them: missing fields mean what they mean to flannel.

use lab::plain::{self, Announce};
use lab::{Lab, Node, Pod, Timing, Topology, View};

use crate::cluster::{self, FLAGS, HOST_GW, SOON, VXLAN};

/// Runs twill on all nodes except node 3, a flannel before 0.14 whose lease names no VNI.
fn with_an_old_flannel(config: &str, data: impl Fn(&str) -> String) -> Lab {
    let lab = cluster::lab(Topology::flat(3), config);
    let old = lab.node(3);
    // The plain node takes its peers from the leases of these daemons.
    let [daemon, other] = [1, 2].map(|k| lab.node(k).start(FLAGS));
    daemon.wait_ready();
    other.wait_ready();
    let pods = [lab.node(1).pod(), lab.node(2).pod()];
    plain::settle(old, &lab.store, "10.244.9.0/24", Announce::Vxlan);
    let lease = format!(
        r#"{{"PublicIP":"{}","BackendType":"vxlan",{}}}"#,
        old.ip,
        data(&format!("02:00:00:00:0e:{:02x}", old.index))
    );
    lab.store.put_lease("10.244.9.0-24", &lease);
    let far = old.pod();
    for pod in &pods {
        reaches(pod, &far);
    }
    for (node, daemon) in [(lab.node(1), &daemon), (lab.node(2), &other)] {
        assert_eq!(devices(node), ["flannel.1"], "{}", node.name);
        assert!(!daemon.log().contains("VNI"), "{}", daemon.log());
    }
    drop((daemon, other, pods, far));
    lab
}

fn reaches(from: &Pod, to: &Pod) {
    assert!(from.reaches(to.ip(), SOON).is_some(), "{} does not reach {}", from.name, to.name);
}

fn devices(node: &Node) -> Vec<String> {
    let view = View::of(&node.ns);
    let links = view.of_kind("link").map(|row| row.text("ifname").to_owned());
    links.filter(|name| name.starts_with("flannel")).collect()
}

#[test]
fn a_lease_without_a_vni_means_ours() {
    lab::test(Timing::Free, || {
        with_an_old_flannel(VXLAN, |mac| format!(r#""BackendData":{{"VtepMAC":"{mac}"}}"#));
    });
}

#[test]
fn a_vni_of_null_or_zero_means_ours_too() {
    lab::test(Timing::Free, || {
        for vni in ["null", "0"] {
            with_an_old_flannel(VXLAN, |mac| format!(r#""BackendData":{{"VNI":{vni},"VtepMAC":"{mac}"}}"#));
        }
    });
}

/// Broken fields of a family that is off, and unknown fields, do no harm.
#[test]
fn unused_fields_do_no_harm() {
    lab::test(Timing::Free, || {
        with_an_old_flannel(VXLAN, |mac| {
            format!(
                r#""PublicIPv6":"nonsense","BackendV6Data":[1],"backenddata":{{"vni":1,"VNI":null,"vtepmac":"{mac}","New":{{}}}}"#
            )
        });
    });
}

/// A node that runs host-gw has no VNI of its own, so flannel's default is used.
#[test]
fn a_host_gw_node_takes_flannels_default_vni() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), HOST_GW);
        let (node, old) = (lab.node(1), lab.node(2));
        let daemon = node.start(FLAGS);
        daemon.wait_ready();
        let near = node.pod();
        plain::settle(old, &lab.store, "10.244.9.0/24", Announce::Vxlan);
        let lease = format!(
            r#"{{"PublicIP":"{}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:0e:{:02x}"}}}}"#,
            old.ip, old.index
        );
        lab.store.put_lease("10.244.9.0-24", &lease);
        let far = old.pod();
        lab::wait_for("the peer's device", SOON, || devices(node) == ["flannel.1"]);
        // The way back is direct, as this node's lease announces.
        old.ns.run(&format!("ip route replace {} via {}", node.subnet(), node.ip));
        reaches(&near, &far);
    });
}
