//! Our own lease: what a node asks for, and the lease that answers it. The exclusive write is each store's own.

use std::fmt;

use plan::lease::{Announced, Lease, Subnet};
use plan::netconf::NetConf;
use plan::subnet_alloc::{self, Asker, Origin};

use crate::view::StoreError;

/// What a node asks for.
pub struct Claim {
    pub conf: NetConf,
    pub asker: Asker,
    pub announce: Box<Announce>,
    /// Which subnets will do.
    pub choice: Choice,
    /// What the store told last, for a node that runs.
    pub listed: Vec<Lease>,
}

/// What to announce, given the lease that we hold already (a VTEP's MAC outlives a reboot there) and all others.
pub type Announce = dyn Fn(Option<&Lease>, &[&Lease]) -> Announced + Send + Sync;

/// Which subnets will do.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// Any; the dice decide between free ones.
    Any { dice: u64 },
    /// Only this one, because pods have addresses from it.
    Only(Subnet),
    /// The same, though somebody else has written another address into its entry.
    Back(Subnet),
}

/// The answer.
pub(crate) struct Settled {
    pub(crate) lease: Lease,
    /// Leases of ours to be deleted.
    pub(crate) stale: Vec<Subnet>,
    pub(crate) origin: Origin,
}

/// Why there is no answer.
pub(crate) enum Unsettled {
    /// It may come right by itself.
    NotNow(String),
    /// Somebody has to do something.
    Refused(String),
}

impl From<String> for Unsettled {
    fn from(why: String) -> Self {
        Self::NotNow(why)
    }
}

impl Unsettled {
    pub(crate) fn at(self, place: impl fmt::Display) -> StoreError {
        match self {
            Self::NotNow(why) => StoreError::decided(place, why),
            Self::Refused(why) => StoreError::refused(place, why),
        }
    }
}

impl Claim {
    /// Is that subnet, whose lease nobody can read, to be left to whoever has it?
    #[cfg(feature = "etcd")]
    pub(crate) fn spares(&self, subnet: &Subnet) -> bool {
        self.asker.previous != Some(*subnet) && subnet_alloc::fits(&self.conf, subnet)
    }

    /// Chooses among what the store holds now.
    pub(crate) fn settle(&self, leases: &[Lease]) -> Result<Settled, Unsettled> {
        let dice = if let Choice::Any { dice } = self.choice { dice } else { 0 };
        let ours = if let Choice::Back(subnet) = self.choice { Some(subnet) } else { None };
        let known: Vec<Lease> = leases.iter().filter(|lease| Some(lease.subnet) != ours).cloned().collect();
        let leases = if ours.is_some() { &known } else { leases };
        let choice = subnet_alloc::choose(&self.conf, leases, &self.asker, dice)?;
        if let Choice::Only(subnet) | Choice::Back(subnet) = self.choice
            && choice.subnet != subnet
        {
            return Err(format!("{subnet} is another node's now").into());
        }
        if let Choice::Any { .. } = self.choice
            && let Some(twin) = subnet_alloc::twin(&self.conf, leases, &self.asker, &choice)
        {
            return Err(Unsettled::Refused(format!(
                "lease {} announces our address, and neither its subnet nor its VTEP MAC was ever this node's: another node \
                 has that address too. Choose one of this node's own with --iface or --public-ip, or delete that lease if \
                 it is left over",
                twin.subnet
            )));
        }
        let (held, others): (Vec<_>, Vec<_>) = leases.iter().partition(|lease| self.asker.owns(lease));
        let held = held.into_iter().max_by_key(|lease| lease.subnet == choice.subnet);
        let (born, announced) = (held.map_or(0, |lease| lease.born), (self.announce)(held, &others));
        let (public_ip, public_ipv6) = (self.asker.public_ip, self.asker.public_ipv6);
        let lease = Lease { born, written: born, subnet: choice.subnet, public_ip, public_ipv6, announced };
        Ok(Settled { lease, stale: choice.stale, origin: choice.origin })
    }
}
