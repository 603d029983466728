//! Our own lease: the request of a node, and the choice of the lease to write. Each store does the exclusive write itself.

use std::fmt;
use std::sync::Arc;

use plan::backend::Announced;
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::subnet::Subnet;
use plan::subnet_alloc::{self, Origin, Requester};

use crate::bounds::Scope;
use crate::view::StoreError;

/// Request of a node for a lease.
pub struct Claim {
    pub conf: NetConf,
    pub requester: Requester,
    pub announce: Box<Announce>,
    /// Subnets that are acceptable.
    pub choice: AcceptableSubnet,
    /// Leases that the store last listed, for a running node.
    pub listed: Arc<[Lease]>,
}

/// Function that returns the backend data to announce. Its arguments are the lease that we hold already, and all
/// other leases. A VTEP's MAC address in our lease outlives a reboot.
pub type Announce = dyn Fn(Option<&Lease>, &[&Lease]) -> Announced + Send + Sync;

/// Subnets that are acceptable for our lease.
#[derive(Clone, Copy, Debug)]
pub enum AcceptableSubnet {
    /// Any subnet; `dice` is the random number that selects one of the free ones.
    Any { dice: u64 },
    /// Only this subnet, because pods have addresses from it. Only a lease of the same subnet can keep us from it.
    Only(Subnet),
}

/// Lease to write for a [`Claim`].
pub(crate) struct LeaseToWrite {
    pub(crate) lease: Lease,
    /// Subnets of older leases of ours, to be deleted.
    pub(crate) stale: Vec<Subnet>,
    pub(crate) origin: Origin,
}

/// Reason for which no lease can be chosen.
pub(crate) enum ClaimError {
    /// The obstacle may go away by itself.
    NotNow(String),
    /// An administrator has to change something.
    Refused(String),
}

impl From<String> for ClaimError {
    fn from(why: String) -> Self {
        Self::NotNow(why)
    }
}

impl ClaimError {
    /// Returns the error for this reason at `place`, the store's path or endpoint.
    pub(crate) fn at(self, place: impl fmt::Display) -> StoreError {
        match self {
            Self::NotNow(why) => StoreError::not_now(place, why),
            Self::Refused(why) => StoreError::refused(place, why),
        }
    }
}

impl Claim {
    /// Returns true if this subnet, whose lease cannot be parsed, must be left to its owner.
    #[cfg(feature = "etcd")]
    pub(crate) fn must_spare(&self, subnet: &Subnet) -> bool {
        self.requester.previous != Some(*subnet) && subnet_alloc::fits(&self.conf, subnet)
    }

    /// Returns the definition of a lease for this request.
    pub(crate) fn scope(&self) -> Scope {
        let held = self.requester.held.as_ref().map(|held| held.subnet);
        let own = held.or(self.requester.previous);
        Scope { owner: Some(self.requester.clone()), own, ..Scope::of(&self.conf) }
    }

    /// Chooses our lease, given the leases that the store holds now.
    pub(crate) fn choose_lease(&self, leases: &[Lease]) -> Result<LeaseToWrite, ClaimError> {
        let dice = if let AcceptableSubnet::Any { dice } = self.choice { dice } else { 0 };
        let same: Vec<Lease>;
        let counted = match self.choice {
            // A lease that only overlaps ours does not keep a running node from its subnet.
            AcceptableSubnet::Only(subnet) => {
                same = leases.iter().filter(|lease| lease.subnet == subnet).cloned().collect();
                &same
            }
            AcceptableSubnet::Any { .. } => leases,
        };
        let choice = subnet_alloc::choose(&self.conf, counted, &self.requester, dice)?;
        if let AcceptableSubnet::Only(subnet) = self.choice
            && choice.subnet != subnet
        {
            return Err(format!("{subnet} is another node's now").into());
        }
        if let AcceptableSubnet::Any { .. } = self.choice
            && let Some(other) =
                subnet_alloc::same_address_lease(&self.conf, leases, &self.requester, &choice)
        {
            return Err(ClaimError::Refused(format!(
                "lease {} announces our address, and neither its subnet nor its VTEP MAC was ever this node's: another node \
                 may have that address. Choose one of this node's own with --iface or --public-ip, or delete that lease if \
                 it is left over",
                other.subnet
            )));
        }
        let (held, others): (Vec<_>, Vec<_>) =
            leases.iter().partition(|lease| self.requester.wrote(&self.conf, lease));
        let held = held.into_iter().max_by_key(|lease| lease.subnet == choice.subnet);
        let (born, written) = held.map_or((0, 0), |lease| (lease.born, lease.written));
        // The data of another writer is not this node's.
        let known = if held.is_some_and(|lease| self.requester.is_overwritten(lease)) {
            self.requester.held.as_ref()
        } else {
            held
        };
        let announced = (self.announce)(known, &others);
        let (public_ip, public_ipv6) = (self.requester.public_ip, self.requester.public_ipv6);
        let lease = Lease { born, written, subnet: choice.subnet, public_ip, public_ipv6, announced };
        Ok(LeaseToWrite { lease, stale: choice.stale, origin: choice.origin })
    }
}
