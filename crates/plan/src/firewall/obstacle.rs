//! Fault that reports an obstacle, with the command that accepts the pods' packets ahead of it.

use ipnet::IpNet;

use crate::family::Family;
use crate::passage::{Leg, Packet, Payload};
use crate::state::Variant;
use crate::underlay::{Manager, Obstacle};
use crate::warning::FirewallFault;

/// Returns the fault, with the command that accepts the pods' `network`, or packets between nodes, ahead of the obstacle.
pub(super) fn fault(obstacle: &Obstacle, network: IpNet) -> FirewallFault {
    let Packet { source: from, destination: to, payload, .. } = obstacle.packet;
    let (place, what) = (obstacle.to_string().into(), obstacle.what.clone());
    match payload {
        Payload::Tunnel(port) => {
            let remedy =
                accept(obstacle, &format!("udp dport {port}"), &format!("-p udp --dport {port}")).into();
            match obstacle.packet.leg() {
                Leg::Sent => FirewallFault::OwnTunnelRefused { place, what, to, port, remedy },
                Leg::Received | Leg::Forwarded => {
                    FirewallFault::TunnelRefused { place, what, from, port, remedy }
                }
            }
        }
        Payload::Echo(_) => {
            let remedy = ["echo-request", "echo-reply"].map(|kind| accept_icmp(obstacle, kind)).join("; ");
            FirewallFault::EchoRefused { place, what, from, to, remedy: remedy.into() }
        }
        Payload::Any | Payload::Tcp | Payload::Udp => pods_refused(obstacle, network),
    }
}

/// Returns the command that accepts ICMP packets of that type.
fn accept_icmp(obstacle: &Obstacle, kind: &str) -> String {
    match Family::of(obstacle.packet.source) {
        Family::Ipv4 => {
            accept(obstacle, &format!("icmp type {kind}"), &format!("-p icmp --icmp-type {kind}"))
        }
        Family::Ipv6 => {
            accept(obstacle, &format!("icmpv6 type {kind}"), &format!("-p ipv6-icmp --icmpv6-type {kind}"))
        }
    }
}

fn pods_refused(obstacle: &Obstacle, network: IpNet) -> FirewallFault {
    let protocol = Family::of(network.addr()).nft();
    let accept = |nft: &str, iptables: &str| {
        accept(obstacle, &format!("{protocol} {nft} {network}"), &format!("{iptables} {network}"))
    };
    FirewallFault::PodsRefused {
        place: obstacle.to_string().into(),
        what: obstacle.what.clone(),
        uncertainty: obstacle.uncertainty.clone(),
        payload: obstacle.packet.payload,
        from: obstacle.packet.source,
        to: obstacle.packet.destination,
        remedy: format!("{}; {}", accept("saddr", "-s"), accept("daddr", "-d")).into(),
    }
}

/// Returns the command that accepts packets with this condition, in the words of nft or iptables.
fn accept(obstacle: &Obstacle, nft: &str, iptables: &str) -> String {
    let Obstacle { family, table, chain, .. } = obstacle;
    match obstacle.manager {
        Manager::Nftables => format!("nft insert rule {family} {table} {chain} {nft} accept"),
        Manager::Iptables(variant) => {
            let program = program(variant, Family::of(obstacle.packet.source));
            format!("{program} -t {table} -I {chain} {iptables} -j ACCEPT")
        }
    }
}

/// Returns the program of one variant and family, such as `ip6tables-nft`.
fn program(variant: Variant, family: Family) -> String {
    let base = if family == Family::Ipv4 { "iptables" } else { "ip6tables" };
    let tag = if variant == Variant::Nft { "nft" } else { "legacy" };
    format!("{base}-{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passage::Echo;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_fault_names_the_place_and_the_command() {
        let packet = Packet {
            source: [10, 244, 2, 254].into(),
            destination: [10, 244, 1, 254].into(),
            inbound: "flannel.1".parse().unwrap(),
            outbound: "cni0".parse().unwrap(),
            payload: Payload::Any,
        };
        let mut obstacle = Obstacle {
            manager: Manager::Nftables,
            family: "inet".into(),
            table: "guard".into(),
            chain: "fwd".into(),
            what: "policy drop".into(),
            uncertainty: None,
            packet,
        };
        let text = fault(&obstacle, net("10.244.0.0/16")).words().to_string();
        assert!(
            text.contains("chain fwd of nftables' table inet guard") && text.contains("policy drop"),
            "{text}"
        );
        assert!(text.contains("nft insert rule inet guard fwd ip saddr 10.244.0.0/16 accept"), "{text}");
        obstacle.manager = Manager::Iptables(Variant::Legacy);
        (obstacle.table, obstacle.chain) = ("raw".into(), "PREROUTING".into());
        let text = fault(&obstacle, net("10.244.0.0/16")).words().to_string();
        assert!(text.contains("iptables-legacy -t raw -I PREROUTING -d 10.244.0.0/16 -j ACCEPT"), "{text}");
        obstacle.packet.payload = Payload::Tunnel(8472);
        let text = fault(&obstacle, net("10.244.0.0/16")).words().to_string();
        let command = "iptables-legacy -t raw -I PREROUTING -p udp --dport 8472 -j ACCEPT";
        assert!(text.contains("tunnel packets of its peers") && text.ends_with(command), "{text}");
        obstacle.packet.inbound = "lo".parse().unwrap();
        let text = fault(&obstacle, net("10.244.0.0/16")).words().to_string();
        assert!(
            text.contains("its own tunnel packets to peers, such as to 10.244.1.254, UDP port 8472"),
            "{text}"
        );
        obstacle.packet.payload = Payload::Echo(Echo::Reply);
        let text = fault(&obstacle, net("10.244.0.0/16")).words().to_string();
        let commands = "iptables-legacy -t raw -I PREROUTING -p icmp --icmp-type echo-request -j ACCEPT; iptables-legacy -t raw \
                        -I PREROUTING -p icmp --icmp-type echo-reply -j ACCEPT";
        assert!(text.contains("refuses echoes between nodes") && text.ends_with(commands), "{text}");
    }
}
