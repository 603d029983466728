//! A pod: a namespace with a cable to the node's bridge `cni0`. It is made from subnet.env, as by flannel's CNI
//! plugin.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::node::Node;
use crate::ns::{Ns, ip_batch};
use crate::ping::ping;
use crate::topology::PLAIN;
use crate::wait::until;

/// A pod, made by [`Node::pod`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub ns: Ns,
    /// Name of its node.
    pub node: String,
    pub ip4: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    /// MTU of its eth0 in bytes.
    pub mtu: u32,
}

/// Returns the name of a node's pod number `nth`, counted from 0: pod1, pod1b, pod1c, ...
pub(crate) fn pod_name(node: usize, nth: usize) -> String {
    match u8::try_from(nth).expect("few pods") {
        0 => format!("pod{node}"),
        more => format!("pod{node}{}", char::from(b'a' + more)),
    }
}

impl Pod {
    pub(crate) fn create(node: &Node, nth: usize) -> Self {
        let env = node.wait_subnet_env();
        let name = pod_name(node.index, nth);
        let (gateway4, gateway6) = (env.gateway4(), env.gateway6());
        let offset = u32::try_from(nth).expect("few pods") + 1;
        let pod = Self {
            ns: Ns::named(&name),
            node: node.name.clone(),
            ip4: gateway4.map(|(ip, _)| Ipv4Addr::from_bits(ip.to_bits() + offset)),
            ip6: gateway6.map(|(ip, _)| Ipv6Addr::from_bits(ip.to_bits() + u128::from(offset))),
            mtu: env.mtu().expect("checked when it was read"),
            name,
        };
        ip_batch(&[], &format!("netns add {}\n", pod.name));
        pod.ns.sysctl(&PLAIN);
        let gateways: Vec<_> = gateway4
            .map(|(ip, len)| (IpAddr::from(ip), len))
            .into_iter()
            .chain(gateway6.map(|(ip, len)| (IpAddr::from(ip), len)))
            .collect();
        node.ns.batch(&pod.node_lines(node.index, nth, &gateways));
        pod.ns.batch(&pod.own_lines(&gateways));
        pod.ns.wait_up(&["eth0"]);
        node.ns.wait_up(&["cni0", &format!("veth{}", pod.name)]);
        pod
    }

    fn node_lines(&self, node: usize, nth: usize, gateways: &[(IpAddr, u8)]) -> String {
        let (mtu, name) = (self.mtu, &self.name);
        let mut lines = String::new();
        if nth == 0 {
            // The MAC is fixed: otherwise a bridge takes a port's MAC, and changes it when ports come and go.
            let _ = writeln!(lines, "link add cni0 mtu {mtu} address 02:00:00:01:00:{node:02x} type bridge");
            let _ = writeln!(lines, "link set cni0 up");
            for (gateway, len) in gateways {
                let _ = writeln!(lines, "address add {gateway}/{len} dev cni0");
            }
        }
        let _ =
            writeln!(lines, "link add veth{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}");
        let _ = writeln!(lines, "link set veth{name} master cni0 up");
        lines
    }

    fn own_lines(&self, gateways: &[(IpAddr, u8)]) -> String {
        let mut lines = "link set lo up\nlink set eth0 up\n".to_owned();
        for (gateway, len) in gateways {
            let own = self.ips().find(|ip| ip.is_ipv4() == gateway.is_ipv4()).expect("made from the gateway");
            let _ =
                writeln!(lines, "address add {own}/{len} dev eth0\nroute add default via {gateway} dev eth0");
        }
        lines
    }

    /// Returns the pod's addresses, IPv4 first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ip4.map(IpAddr::from).into_iter().chain(self.ip6.map(IpAddr::from))
    }

    /// Returns the pod's first address.
    pub fn ip(&self) -> IpAddr {
        self.ips().next().expect("a pod has an address")
    }

    /// Sends one echo and waits one second. Returns the round-trip time, or `None` without an answer.
    pub fn ping(&self, to: impl Into<IpAddr>) -> Option<Duration> {
        ping(&self.ns, to.into(), &[])
    }

    /// Sends echoes until one is answered within `limit`. Returns the time until the answer.
    pub fn reaches(&self, to: impl Into<IpAddr>, limit: Duration) -> Option<Duration> {
        let (to, start) = (to.into(), Instant::now());
        until(limit, || ping(&self.ns, to, &["-W", "0.2"])).map(|_| start.elapsed())
    }
}
