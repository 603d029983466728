//! Fault that reports an obstacle, with the command that accepts the pods' packets ahead of it.

use ipnet::IpNet;

use crate::family::Family;
use crate::note::FirewallFault;
use crate::state::Variant;
use crate::underlay::{Manager, Obstacle};

/// Returns the fault, with the command that accepts the pods' `network` ahead of the obstacle.
pub(super) fn fault(obstacle: &Obstacle, network: IpNet) -> FirewallFault {
    let accept = |nft: &str, iptables: &str| match obstacle.manager {
        Manager::Nftables => {
            let protocol = Family::of(network.addr()).nft();
            let Obstacle { family, table, chain, .. } = obstacle;
            format!("nft insert rule {family} {table} {chain} {protocol} {nft} {network} accept")
        }
        Manager::Iptables(variant) => {
            let program = program(variant, Family::of(network.addr()));
            format!("{program} -t {} -I {} {iptables} {network} -j ACCEPT", obstacle.table, obstacle.chain)
        }
    };
    FirewallFault::PodsRefused {
        place: obstacle.to_string().into(),
        what: obstacle.what.clone(),
        doubt: obstacle.doubt.clone(),
        payload: obstacle.packet.payload,
        from: obstacle.packet.source,
        to: obstacle.packet.destination,
        remedy: format!("{}; {}", accept("saddr", "-s"), accept("daddr", "-d")).into(),
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
    use crate::passage::{Packet, Payload};

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
            doubt: None,
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
    }
}
