//! Objects on a node that belong to other software and must survive everything that twill does.

use crate::node::Node;

/// Adds links, routes outside the Network, a rule, neighbours and FDB entries. It also adds routes inside the Network, in another
/// table and with another metric. `subnet` is a peer's: some of the routes lead to it.
pub fn plant(node: &Node, subnet: &str) {
    let routes = format!(
        "route add 203.0.114.0/24 via 203.0.113.2 dev foreign0 proto static\n\
         route add 203.0.115.0/24 via {gateway} dev eth0 proto static\n\
         route add {subnet} via 203.0.113.2 dev foreign0 proto static table 100\n\
         route add {subnet} via {gateway} dev eth0 proto static metric 500\n\
         route add unreachable 203.0.116.0/24 proto static\n\
         rule add from 203.0.113.0/24 lookup 100 priority 30000\n",
        gateway = node.gateway()
    );
    let links = format!(
        "link add foreign0 type veth peer name foreign1\nlink set foreign1 up\nlink set foreign0 up\n\
         address add 203.0.113.1/24 dev foreign0\n\
         link add foreign2 type vxlan id 99 dstport 4790 local {ip} dev eth0 nolearning\nlink set foreign2 up\n",
        ip = node.ip
    );
    let neighbours = "neighbour add 203.0.113.9 lladdr 02:00:00:00:0f:09 dev foreign0 nud permanent\n\
         neighbour add 203.0.113.10 lladdr 02:00:00:00:0f:0a dev foreign2 nud permanent\n";
    node.ns.batch(&(links + &routes + neighbours));
    node.ns.wait_up(&["foreign0", "foreign1"]);
    node.ns.run("bridge fdb add 02:00:00:00:0f:09 dev foreign0");
    node.ns.run("bridge fdb add 02:00:00:00:0f:0a dev foreign2 dst 198.51.100.1");
}

/// Adds IPv6 routes, a rule and neighbours of the same kinds, on the devices of [`plant`].
pub fn plant6(node: &Node, subnet: &str) {
    // The smaller metric wins, and an IPv6 route without one has 1024.
    node.ns.batch(&format!(
        "address add 2001:db8:113::1/64 dev foreign0\n\
         route add 2001:db8:114::/64 via 2001:db8:113::2 dev foreign0 proto static\n\
         route add 2001:db8:115::/64 via {gateway} dev eth0 proto static\n\
         route add {subnet} via 2001:db8:113::2 dev foreign0 proto static table 100\n\
         route add {subnet} via {gateway} dev eth0 proto static metric 2000\n\
         route add unreachable 2001:db8:116::/64 proto static\n\
         neighbour add 2001:db8:113::9 lladdr 02:00:00:00:0f:09 dev foreign0 nud permanent\n\
         neighbour add 2001:db8:113::10 lladdr 02:00:00:00:0f:0a dev foreign2 nud permanent\n",
        gateway = node.gateway6()
    ));
    node.ns.run("ip -6 rule add from 2001:db8:113::/64 lookup 100 priority 30000");
}
