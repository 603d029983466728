//! A node without a daemon, configured by hand as flannel leaves one: its kernel answers, and nothing is repaired. Its peers are
//! the nodes that have a lease at that moment.

use serde_json::{Value, json};

use crate::node::Node;
use crate::store::Store;

/// Backend that the node's lease announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    Vxlan,
    HostGw,
}

/// Returns the lease of such a node, as JSON.
pub fn lease(node: &Node, announce: Announce) -> String {
    let mut lease = json!({ "PublicIP": node.ip, "PublicIPv6": null, "BackendType": "host-gw" });
    if announce == Announce::Vxlan {
        lease["BackendType"] = "vxlan".into();
        lease["BackendData"] = json!({ "VNI": 1, "VtepMAC": mac(node) });
    }
    lease.to_string()
}

/// Configures `node` with this IPv4 subnet, such as `10.244.9.0/24`: device, routes, subnet file, lease.
pub fn settle(node: &Node, store: &Store, subnet: &str, announce: Announce) {
    let (first, len) = subnet.split_once('/').expect("a subnet has a length");
    let gateway = first.strip_suffix(".0").map(|net| format!("{net}.1/{len}")).expect("a /24");
    if announce == Announce::Vxlan {
        node.ns.batch(&format!(
            "link add flannel.1 address {} mtu 1450 type vxlan id 1 local {} dev eth0 dstport 8472 nolearning\n\
             address add {first}/32 dev flannel.1\nlink set flannel.1 up\n",
            mac(node),
            node.ip
        ));
    }
    let leases = store.leases();
    let peers = leases.iter().map(|(key, lease)| (key.replace('-', "/"), lease));
    let lines: String =
        peers.filter(|(peer, _)| peer != subnet).map(|(peer, lease)| reach(&peer, lease, announce)).collect();
    node.ns.run(&lines);
    let mtu = if announce == Announce::Vxlan { 1450 } else { 1500 };
    let env = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
    );
    std::fs::write(node.run_dir().join("subnet.env"), env).expect("the node's directory is there");
    store.put_lease(&subnet.replace('/', "-"), &self::lease(node, announce));
}

fn mac(node: &Node) -> String {
    format!("02:00:00:00:0e:{:02x}", node.index)
}

/// Returns the commands that add what flannel has in the kernel for a peer.
fn reach(peer: &str, lease: &str, announce: Announce) -> String {
    let lease: Value = serde_json::from_str(lease).expect("a lease is JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (ip, mac) = (text(&lease["PublicIP"]), text(&lease["BackendData"]["VtepMAC"]));
    let vtep = peer.split('/').next().unwrap_or_default();
    match announce {
        Announce::Vxlan => format!(
            "ip neigh add {vtep} lladdr {mac} dev flannel.1 nud permanent\n\
             bridge fdb append {mac} dev flannel.1 dst {ip}\n\
             ip route add {peer} via {vtep} dev flannel.1 onlink\n"
        ),
        Announce::HostGw => format!("ip route add {peer} via {ip} dev eth0\n"),
    }
}
