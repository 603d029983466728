//! Reports settings that seldom change: the network config, the uplink, and the manager of the traffic rules.

use std::sync::Arc;

use plan::firewall::{Summary, ToolChoice};
use tracing::info;

use super::Reconciler;
use crate::report::NodeReport;

impl Reconciler {
    /// Puts the config and the uplink into the report.
    pub(super) fn report_settings(&self) {
        let source = self.flags.backend_source(self.own_lease.conf());
        let node = NodeReport::new(&self.config, &self.node, self.uplink_reason.clone(), source);
        self.report_sender.send_modify(|report| Arc::make_mut(report).node = Some(node));
    }

    /// Reports the manager of the traffic rules, and logs it if it has changed.
    pub(super) fn report_firewall(&mut self, Summary { choice, unknown_senders }: Summary) {
        self.report_sender.send_modify(|report| Arc::make_mut(report).unknown_senders = unknown_senders);
        if choice == self.memory.firewall {
            return;
        }
        if let Some(ToolChoice { manager, reason }) = &choice {
            info!("traffic rules are managed by {manager}: {reason}");
        }
        let text = choice.as_ref().map(|choice| format!("{} ({})", choice.manager, choice.reason));
        self.report_sender.send_modify(|report| Arc::make_mut(report).firewall = text);
        self.memory.firewall = choice;
    }
}
