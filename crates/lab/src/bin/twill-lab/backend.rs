//! Facts about each backend for the demo: its config, the peers that it should reach, and harms worth showing.

use lab::{Harm, Lab, Node};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Vxlan,
    HostGw,
    /// VXLAN with direct routing decided by addresses alone, as flannel does.
    Direct,
    Auto,
}

impl Backend {
    /// Backends that the demo shows.
    pub(crate) const ALL: [Self; 3] = [Self::Vxlan, Self::HostGw, Self::Auto];

    pub(crate) fn named(name: &str) -> Result<Self, String> {
        match name {
            "vxlan" => Ok(Self::Vxlan),
            "host-gw" => Ok(Self::HostGw),
            "vxlan-direct" => Ok(Self::Direct),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("no backend `{name}`: vxlan, host-gw, vxlan-direct or auto")),
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Direct => "vxlan + DirectRouting",
            Self::Auto => "auto",
        }
    }

    pub(crate) fn idea(self) -> &'static str {
        match self {
            Self::Vxlan => {
                "each packet to another node travels in UDP: route, neighbour (VTEP's MAC), FDB (node's address)"
            }
            Self::HostGw => {
                "each packet goes plain to the peer's node as its next hop: only a route is needed"
            }
            Self::Direct => "plain to nodes on the same segment, in UDP to all others",
            Self::Auto => "plain to nodes where that is proven to work, in UDP to all others",
        }
    }

    pub(crate) fn config(self) -> &'static str {
        match self {
            Self::Vxlan => r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#,
            Self::HostGw => r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#,
            Self::Direct => {
                r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true,"VerifyDirect":false}}"#
            }
            Self::Auto => r#"{"Network":"10.244.0.0/16","Backend":{"Type":"auto"}}"#,
        }
    }

    pub(crate) fn reaches(self, from: &Node, to: &Node) -> bool {
        self != Self::HostGw || from.segment == to.segment
    }

    /// Returns the commands that show the backend's objects on node1.
    pub(crate) fn looks(self) -> &'static [&'static str] {
        match self {
            Self::HostGw => &["ip route", "ip -br link show type vxlan"],
            _ => &["ip route", "bridge fdb show dev flannel.1", "ip neigh show dev flannel.1"],
        }
    }

    /// Returns three harms to node1; node2 is on its segment, node4 is behind the router.
    pub(crate) fn harms(self, lab: &Lab) -> [Harm; 3] {
        let dev = || "flannel.1".to_owned();
        let subnet = lab.node(2).subnet();
        let wrong = Harm::RouteReplaced {
            subnet: subnet.clone(),
            via: lab.node(3).ip.to_string(),
            dev: "eth0".into(),
        };
        match self {
            Self::Vxlan => [
                Harm::RouteDeleted { subnet },
                Harm::FdbFlushed { dev: dev() },
                Harm::DeviceDeleted { dev: dev() },
            ],
            Self::HostGw => [Harm::RouteDeleted { subnet }, wrong, Harm::UplinkUp],
            Self::Direct | Self::Auto => [
                wrong,
                Harm::NeighboursFlushed { dev: dev() },
                Harm::MacChanged { dev: dev(), mac: "02:00:00:00:ba:ad".into() },
            ],
        }
    }
}
