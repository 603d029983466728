//! Harms to a node's pod network, each as the command line that one would type on the node. Measuring the repair is `repair`'s
//! part.

use crate::node::Node;

/// A harm to a node, with the objects that it hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    RouteDeleted {
        subnet: String,
    },
    /// Replaces a peer's route by one through a wrong gateway.
    RouteReplaced {
        subnet: String,
        via: String,
        dev: String,
    },
    FdbFlushed {
        dev: String,
    },
    NeighboursFlushed {
        dev: String,
    },
    DeviceDeleted {
        dev: String,
    },
    DeviceDown {
        dev: String,
    },
    MacChanged {
        dev: String,
        mac: String,
    },
    AddressFlushed {
        dev: String,
    },
    UplinkDown,
    /// Sets the uplink up and restores the default routes, as a network manager does.
    UplinkUp,
    DaemonKilled {
        pid: u32,
    },
}

impl Harm {
    /// Returns every harm to the objects of a vxlan node; `peer` is the node whose route is hit.
    pub fn to_vxlan(peer: &Node) -> Vec<Self> {
        let dev = || "flannel.1".to_owned();
        let subnet = || peer.subnet();
        vec![
            Self::RouteDeleted { subnet: subnet() },
            Self::RouteReplaced { subnet: subnet(), via: peer.gateway().to_string(), dev: "eth0".into() },
            Self::FdbFlushed { dev: dev() },
            Self::NeighboursFlushed { dev: dev() },
            Self::DeviceDeleted { dev: dev() },
            Self::DeviceDown { dev: dev() },
            Self::MacChanged { dev: dev(), mac: "02:00:00:00:ba:ad".into() },
            Self::AddressFlushed { dev: dev() },
        ]
    }

    /// Returns every harm to the objects of a host-gw node; `peer` is the node whose route is hit.
    pub fn to_host_gw(peer: &Node) -> Vec<Self> {
        vec![
            Self::RouteDeleted { subnet: peer.subnet() },
            Self::RouteReplaced {
                subnet: peer.subnet(),
                via: peer.gateway().to_string(),
                dev: "eth0".into(),
            },
        ]
    }

    /// Returns the command line that does the harm on `node`.
    pub fn command(&self, node: &Node) -> String {
        match self {
            Self::RouteDeleted { subnet } => format!("ip route delete {subnet}"),
            Self::RouteReplaced { subnet, via, dev } => {
                format!("ip route replace {subnet} via {via} dev {dev}")
            }
            // `bridge fdb flush` supports vxlan only since kernel 6.7 and iproute2 6.1.
            Self::FdbFlushed { dev } => {
                format!("bridge fdb show dev {dev} | xargs -L1 bridge fdb del dev {dev}")
            }
            Self::NeighboursFlushed { dev } => format!("ip neigh flush dev {dev} nud permanent"),
            Self::DeviceDeleted { dev } => format!("ip link delete {dev}"),
            Self::DeviceDown { dev } => format!("ip link set {dev} down"),
            Self::MacChanged { dev, mac } => format!("ip link set {dev} address {mac}"),
            // The link-local address stays, because only the kernel can make it again.
            Self::AddressFlushed { dev } => {
                format!("ip -4 addr flush dev {dev}; ip -6 addr flush dev {dev} scope global")
            }
            Self::UplinkDown => "ip link set eth0 down".into(),
            Self::UplinkUp => format!(
                "ip link set eth0 up; ip route replace default via {} dev eth0; ip route replace default via {} dev eth0",
                node.gateway(),
                node.gateway6()
            ),
            Self::DaemonKilled { pid } => format!("kill -9 {pid}"),
        }
    }

    /// Runs the command on `node`. Panics if it fails.
    pub fn apply(&self, node: &Node) {
        node.ns.run(&self.command(node));
    }

    /// Returns true if the kernel's monitors report the harm.
    pub(crate) fn is_reported(&self) -> bool {
        !matches!(self, Self::DaemonKilled { .. })
    }
}
