//! What changes seldom and is told when it does: the network config, the uplink, who enforces the traffic rules. It decides
//! nothing.

use std::sync::Arc;

use plan::firewall::{Choice, Summary};
use tracing::info;

use super::Reconciler;

impl Reconciler {
    /// Shows another network config or uplink, and why it is that one.
    pub(super) fn show(&self, reason: Option<String>) {
        let (config, node) = (&self.config, &self.node);
        let source = self.flags.backend_source(self.own_lease.conf());
        self.board.send_modify(|report| Arc::make_mut(report).show(config, node, reason, source));
    }

    /// Says who enforces the traffic rules when that is another than before.
    pub(super) fn show_firewall(&mut self, Summary { choice, strangers }: Summary) {
        self.board.send_modify(|report| Arc::make_mut(report).strangers = strangers);
        if choice == self.memory.firewall {
            return;
        }
        if let Some(Choice { manager, reason }) = &choice {
            info!("traffic rules are kept by {manager}: {reason}");
        }
        let told = choice.as_ref().map(|choice| format!("{} ({})", choice.manager, choice.reason));
        self.board.send_modify(|report| Arc::make_mut(report).firewall = told);
        self.memory.firewall = choice;
    }
}
