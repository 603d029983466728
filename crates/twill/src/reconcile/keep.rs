//! Keeps the traffic rules that drop packets in force. They apply only while an element of a set exists, which expires
//! after two minutes. So no rule outlives its daemon by more, however that ends.

use std::time::{Duration, Instant};

use plan::Family;
use plan::state::{Kind, NftChain};
use tracing::debug;

use super::Reconciler;
use crate::pass::Pass;

/// Minimum time between two renewals. Passes are at most 30 s apart, so none comes later than 80 s after the last one.
const RENEWAL: Duration = Duration::from_secs(50);

impl Reconciler {
    /// Renews the rules of these families, if that is due. Rules that are not as planned may lack a peer, so they are not
    /// kept in force.
    pub(super) fn keep_rules(&mut self, families: &[Family], pass: &Pass, now: Instant) {
        let is_due = self.memory.renewed.is_none_or(|last| now >= last + RENEWAL);
        if families.is_empty() || !is_due || !is_in_place(pass) {
            return;
        }
        match self.kernel.keep_rules(families) {
            Ok(()) => self.memory.renewed = Some(now),
            Err(error) => {
                debug!("{error}");
                // The next reading shows what is missing, and the pass reports what it cannot repair.
                self.kernel.forget_firewall();
            }
        }
    }
}

/// Returns true if the kernel has refused no op on the rules of nftables, and none is delayed.
fn is_in_place(pass: &Pass) -> bool {
    let failed = pass.failed.iter().map(|(op, _)| op);
    let mut open = failed.chain(pass.delayed.iter().map(|delayed| &delayed.op));
    open.all(|op| op.object.kind() != NftChain::NAME)
}
