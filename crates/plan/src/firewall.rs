//! Masquerading, forwarding and the VXLAN source filter: which rules this node should have, and which tool enforces them.
//! Only twill's and flannel's own tables and chains are ever named (flannel-compat 7).

mod choice;
mod desired;
mod obstacle;

use serde::{Deserialize, Serialize};

use crate::underlay::{Manager, UnknownSender};
pub(crate) use desired::{Rules, rules};

/// Report on the traffic rules, besides faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tool in use; `None` if no rules are configured, or if no tool can enforce them.
    pub choice: Option<ToolChoice>,
    /// Senders of VXLAN packets that are no peers.
    pub unknown_senders: Vec<UnknownSender>,
}

/// Tool that enforces the rules, and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolChoice {
    pub manager: Manager,
    pub reason: Box<str>,
}
