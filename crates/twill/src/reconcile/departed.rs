//! Packets from peers that are gone. The kernel counts every VXLAN packet whose sender is not a peer at that moment.
//! A node that joins sends some before its lease reaches us. A peer that moves to another address has some on the
//! wire. When the peer leaves, its old address would be reported for them. Only packets that come later are reported.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use plan::underlay::UnknownSender;
use plan::warning::{FirewallFault, NodeFault, Warning};
use plan::{Object, Plan, Verb};

/// Time for packets that a peer sent before it left: a busy machine forwards them late.
const ON_THE_WIRE: Duration = Duration::from_secs(5);
/// Time after which an address is forgotten. The kernel's own count expires 10 minutes after the last packet.
const FORGET_AFTER: Duration = Duration::from_secs(20 * 60);

/// Underlay addresses of peers that left lately.
#[derive(Debug, Default)]
pub(super) struct Departed(BTreeMap<IpAddr, Departure>);

#[derive(Debug)]
struct Departure {
    at: Instant,
    /// Packets that the kernel had counted from this address when [`ON_THE_WIRE`] ended.
    packets: u64,
}

impl Departed {
    /// Notes the addresses that leave with this plan, and removes the reports of packets that are excused.
    pub(super) fn drop_reports(&mut self, plan: &mut Plan, now: Instant) {
        self.0.retain(|_, departure| now.saturating_duration_since(departure.at) < FORGET_AFTER);
        for op in plan.ops.iter().filter(|op| op.verb == Verb::Delete) {
            if let Object::NftElement(element) = &op.object {
                self.0.insert(element.address, Departure { at: now, packets: 0 });
            }
        }
        plan.firewall.unknown_senders.retain(|sender| !self.is_excused(sender, now));
        let unknown_senders = &plan.firewall.unknown_senders;
        plan.warnings.retain(|warning| match warning {
            Warning::Node(NodeFault::Firewall(FirewallFault::Stranger(address))) => {
                unknown_senders.iter().any(|sender| sender.address == *address)
            }
            _ => true,
        });
    }

    fn is_excused(&mut self, sender: &UnknownSender, now: Instant) -> bool {
        let Some(departure) = self.0.get_mut(&sender.address) else {
            return false;
        };
        if now.saturating_duration_since(departure.at) < ON_THE_WIRE {
            departure.packets = sender.packets;
        }
        sender.packets <= departure.packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packets_after_the_departure_count() {
        let address = IpAddr::from([192, 0, 2, 11]);
        let seen = |packets| UnknownSender { address, packets };
        let (mut departed, at) = (Departed::default(), Instant::now());
        assert!(!departed.is_excused(&seen(1), at), "an address that was never a peer's");
        departed.0.insert(address, Departure { at, packets: 0 });
        assert!(departed.is_excused(&seen(3), at));
        assert!(departed.is_excused(&seen(4), at + ON_THE_WIRE / 2));
        assert!(departed.is_excused(&seen(4), at + ON_THE_WIRE * 2));
        assert!(!departed.is_excused(&seen(5), at + ON_THE_WIRE * 3), "it still sends");
        assert!(!departed.is_excused(&UnknownSender { address: [192, 0, 2, 12].into(), packets: 1 }, at));
    }
}
