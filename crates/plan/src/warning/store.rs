//! Faults of the datastore's content.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fault::{Severity, Words};

/// Fault of the store's content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreFault {
    /// More than half of the peers are missing at once, or some after a break in the store's history.
    PeersMissing,
    OwnLeaseGone {
        why: Box<str>,
    },
    OwnLeaseStale {
        why: Box<str>,
    },
    /// Our lease has expired, since the store was not there to renew it.
    OwnLeaseOver,
    /// Our lease is held by another node now.
    OwnLeaseTaken {
        subnet: Box<str>,
        holder: Box<str>,
    },
    /// Our lease is overwritten again and again; `theirs` is what the other writer puts there.
    OwnLeaseContested {
        subnet: Box<str>,
        theirs: Box<str>,
    },
    ConfigUnusable {
        why: Box<str>,
    },
    ConfigRefused {
        what: Box<str>,
    },
}

impl StoreFault {
    /// Returns the effect on readiness. Every fault decides it here.
    pub fn severity(&self) -> Severity {
        match self {
            // New pods would get addresses of another node's pods.
            Self::OwnLeaseTaken { .. } => Severity::Blocking,
            Self::PeersMissing
            | Self::OwnLeaseGone { .. }
            | Self::OwnLeaseStale { .. }
            | Self::OwnLeaseOver
            | Self::OwnLeaseContested { .. }
            | Self::ConfigUnusable { .. }
            | Self::ConfigRefused { .. } => Severity::Warning,
        }
    }

    /// Returns the problem and the remedy; the subject is the store.
    pub fn words(&self) -> Words {
        match self {
            Self::PeersMissing => Words::new(
                "it has lost more than half of the peers at once, or some together with its history; they are kept until \
                 --shrink-grace is over. Was it emptied or restored?",
            ),
            Self::OwnLeaseGone { why } => Words::new(format!(
                "our lease is gone and cannot be taken again: {why}. Pods keep their addresses meanwhile"
            )),
            Self::OwnLeaseStale { why } => Words::new(format!(
                "our lease differs from what this node announces and cannot be written: {why}. Until it is, other nodes \
                 may not reach this one's pods"
            )),
            Self::OwnLeaseOver => Words::new(
                "our lease has expired, because the store was not there to renew it; another node may get our subnet \
                 first",
            )
            .remedy("Bring the store back"),
            Self::OwnLeaseTaken { subnet, holder } => Words::new(format!(
                "{holder} holds our lease {subnet} now, so other nodes send packets for the pods of this node there. \
                 This node does not take the lease back"
            ))
            .remedy("Move the pods away, remove the subnet file and restart the daemon"),
            Self::OwnLeaseContested { subnet, theirs } => Words::new(format!(
                "our lease {subnet} is overwritten by another writer, last with {theirs}: another node announces our \
                 address too, or another daemon runs here"
            ))
            .remedy("Give each node an address of its own with --iface or --public-ip"),
            Self::ConfigUnusable { why } => {
                Words::new(format!("{why}; the last good network config stays in force"))
            }
            Self::ConfigRefused { what } => Words::new(format!(
                "the network config has another {what}, which cannot change under running pods; the old one stays in force"
            ))
            .remedy("Restart the daemon once the pods are gone"),
        }
    }
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words().fmt(f)
    }
}
