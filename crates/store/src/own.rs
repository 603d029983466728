//! Our own lease: the request of a node, and the choice of the lease to write. Each store does the exclusive write itself.

use std::fmt;
use std::sync::Arc;

use plan::backend::Announced;
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::subnet::Subnet;
use plan::subnet_alloc::{self, Asker, Origin};

use crate::bounds::Scope;
use crate::view::StoreError;

/// Request of a node for a lease.
pub struct Claim {
    pub conf: NetConf,
    pub asker: Asker,
    pub announce: Box<Announce>,
    /// Subnets that are acceptable.
    pub choice: Choice,
    /// Leases that the store last listed, for a running node.
    pub listed: Arc<[Lease]>,
}

/// Function that returns the backend data to announce. Its arguments are the lease that we hold already, and all
/// other leases. A VTEP's MAC address in our lease outlives a reboot.
pub type Announce = dyn Fn(Option<&Lease>, &[&Lease]) -> Announced + Send + Sync;

/// Subnets that are acceptable for our lease.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// Any subnet; `dice` is the random number that selects one of the free ones.
    Any { dice: u64 },
    /// Only this subnet, because pods have addresses from it. Only a lease of the same subnet can keep us from it.
    Only(Subnet),
}

/// Lease to write for a [`Claim`].
pub(crate) struct Settled {
    pub(crate) lease: Lease,
    /// Subnets of older leases of ours, to be deleted.
    pub(crate) stale: Vec<Subnet>,
    pub(crate) origin: Origin,
}

/// Reason for which no lease can be chosen.
pub(crate) enum Unsettled {
    /// The obstacle may go away by itself.
    NotNow(String),
    /// An administrator has to change something.
    Refused(String),
}

impl From<String> for Unsettled {
    fn from(why: String) -> Self {
        Self::NotNow(why)
    }
}

impl Unsettled {
    /// Returns the error for this reason at `place`, the store's path or endpoint.
    pub(crate) fn at(self, place: impl fmt::Display) -> StoreError {
        match self {
            Self::NotNow(why) => StoreError::decided(place, why),
            Self::Refused(why) => StoreError::refused(place, why),
        }
    }
}

impl Claim {
    /// Returns true if this subnet, whose lease cannot be parsed, must be left to its owner.
    #[cfg(feature = "etcd")]
    pub(crate) fn spares(&self, subnet: &Subnet) -> bool {
        self.asker.previous != Some(*subnet) && subnet_alloc::fits(&self.conf, subnet)
    }

    /// Returns the definition of a lease for this request.
    pub(crate) fn scope(&self) -> Scope {
        let held = self.asker.held.as_ref().map(|held| held.subnet);
        let own = held.or(self.asker.previous);
        Scope { owner: Some(self.asker.clone()), own, ..Scope::of(&self.conf) }
    }

    /// Chooses our lease, given the leases that the store holds now.
    pub(crate) fn settle(&self, leases: &[Lease]) -> Result<Settled, Unsettled> {
        let dice = if let Choice::Any { dice } = self.choice { dice } else { 0 };
        let same: Vec<Lease>;
        let counted = match self.choice {
            // A lease that only overlaps ours does not keep a running node from its subnet.
            Choice::Only(subnet) => {
                same = leases.iter().filter(|lease| lease.subnet == subnet).cloned().collect();
                &same
            }
            Choice::Any { .. } => leases,
        };
        let choice = subnet_alloc::choose(&self.conf, counted, &self.asker, dice)?;
        if let Choice::Only(subnet) = self.choice
            && choice.subnet != subnet
        {
            return Err(format!("{subnet} is another node's now").into());
        }
        if let Choice::Any { .. } = self.choice
            && let Some(twin) = subnet_alloc::twin(&self.conf, leases, &self.asker, &choice)
        {
            return Err(Unsettled::Refused(format!(
                "lease {} announces our address, and neither its subnet nor its VTEP MAC was ever this node's: another node \
                 may have that address. Choose one of this node's own with --iface or --public-ip, or delete that lease if \
                 it is left over",
                twin.subnet
            )));
        }
        let (held, others): (Vec<_>, Vec<_>) =
            leases.iter().partition(|lease| self.asker.wrote(&self.conf, lease));
        let held = held.into_iter().max_by_key(|lease| lease.subnet == choice.subnet);
        let (born, written) = held.map_or((0, 0), |lease| (lease.born, lease.written));
        // The data of another writer is not this node's.
        let known = if held.is_some_and(|lease| self.asker.is_overwritten(lease)) {
            self.asker.held.as_ref()
        } else {
            held
        };
        let announced = (self.announce)(known, &others);
        let (public_ip, public_ipv6) = (self.asker.public_ip, self.asker.public_ipv6);
        let lease = Lease { born, written, subnet: choice.subnet, public_ip, public_ipv6, announced };
        Ok(Settled { lease, stale: choice.stale, origin: choice.origin })
    }
}
