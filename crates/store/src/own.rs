//! Our own lease: what a node asks for, and the lease that answers it. The exclusive write is each store's own.

use plan::lease::{Announced, Lease, Subnet};
use plan::netconf::NetConf;
use plan::subnet_alloc::{self, Asker, Origin};

/// What a node asks for.
pub struct Claim<'a> {
    pub conf: &'a NetConf,
    pub asker: Asker,
    /// What to announce, given the lease that we hold already (a VTEP's MAC outlives a reboot there) and all others.
    pub announce: &'a (dyn Fn(Option<&Lease>, &[&Lease]) -> Announced + Sync),
    /// Which subnets will do.
    pub choice: Choice,
}

/// Which subnets will do.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// Any; the dice decide between free ones.
    Any { dice: u64 },
    /// Only this one, because pods have addresses from it.
    Only(Subnet),
}

/// The answer.
pub(crate) struct Settled {
    pub(crate) lease: Lease,
    /// Leases of ours to be deleted.
    pub(crate) stale: Vec<Subnet>,
    pub(crate) origin: Origin,
}

impl Claim<'_> {
    /// Chooses among what the store holds now.
    pub(crate) fn settle(&self, leases: &[Lease]) -> Result<Settled, String> {
        let dice = if let Choice::Any { dice } = self.choice { dice } else { 0 };
        let choice = subnet_alloc::choose(self.conf, leases, &self.asker, dice)?;
        if let Choice::Only(subnet) = self.choice
            && choice.subnet != subnet
        {
            return Err(format!("{subnet} is another node's now"));
        }
        let (held, others): (Vec<_>, Vec<_>) = leases.iter().partition(|lease| self.asker.owns(lease));
        let held = held.into_iter().max_by_key(|lease| lease.subnet == choice.subnet);
        let (born, announced) = (held.map_or(0, |lease| lease.born), (self.announce)(held, &others));
        let Asker { public_ip, public_ipv6, .. } = self.asker;
        let lease = Lease { born, subnet: choice.subnet, public_ip, public_ipv6, announced };
        Ok(Settled { lease, stale: choice.stale, origin: choice.origin })
    }
}
