//! What can befall a node's pod network, each as the very command line one would type in the node. It only harms:
//! measuring the repair is `heal`'s part.

use crate::node::Node;

/// One harm to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    RouteDeleted {
        subnet: String,
    },
    /// The gateway is a wrong one.
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
    /// And the default routes, as the network manager puts them back.
    UplinkUp,
    DaemonKilled {
        pid: u32,
    },
}

impl Harm {
    /// All harms to the objects of a vxlan node; `peer` is the one whose route suffers.
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

    /// All harms to the objects of a host-gw node.
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

    /// The command line that does it in `node`.
    pub fn command(&self, node: &Node) -> String {
        match self {
            Self::RouteDeleted { subnet } => format!("ip route delete {subnet}"),
            Self::RouteReplaced { subnet, via, dev } => {
                format!("ip route replace {subnet} via {via} dev {dev}")
            }
            // Not `bridge fdb flush`: vxlan knows it from kernel 6.7 and iproute2 6.1 on only.
            Self::FdbFlushed { dev } => {
                format!("bridge fdb show dev {dev} | xargs -L1 bridge fdb del dev {dev}")
            }
            Self::NeighboursFlushed { dev } => format!("ip neigh flush dev {dev} nud permanent"),
            Self::DeviceDeleted { dev } => format!("ip link delete {dev}"),
            Self::DeviceDown { dev } => format!("ip link set {dev} down"),
            Self::MacChanged { dev, mac } => format!("ip link set {dev} address {mac}"),
            // Not the link-local address, which only the kernel can make again.
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

    pub fn apply(&self, node: &Node) {
        node.ns.run(&self.command(node));
    }

    /// Whether the kernel's monitors tell of it.
    pub(crate) fn is_heard(&self) -> bool {
        !matches!(self, Self::DaemonKilled { .. })
    }
}
