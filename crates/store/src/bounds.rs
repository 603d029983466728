//! Bounds of a listing: which entries are leases of the network, how many of them are kept, and which other entries are
//! named. With them, foreign data in any store costs a limited amount of memory.

use std::collections::BTreeMap;

use plan::Family;
use plan::lease::{Lease, MAX_LEASES};
use plan::netconf::NetConf;
use plan::pool::Pool;
use plan::subnet::Subnet;
use plan::subnet_alloc::{self, LengthMatch, Requester};
use plan::warning::Warning;

use crate::view::MAX_BYTES;

/// Maximum number of leases with another length than the config's. A change of `SubnetLen` affects no more nodes than
/// that.
const MAX_OTHER_LENGTHS: usize = 8192;
/// Maximum number of invalid entries that are named; further ones are only counted.
pub(crate) const MAX_NAMED: usize = 50;

/// Definition of a lease.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Config whose networks the leases must be of.
    pub(crate) conf: NetConf,
    /// Node whose leases count in any network, so that it can give them back.
    pub(crate) owner: Option<Requester>,
    /// Subnet of our lease, which is kept beside any number of others.
    pub(crate) own: Option<Subnet>,
}

impl Scope {
    pub(crate) fn of(conf: &NetConf) -> Self {
        Self { conf: conf.clone(), owner: None, own: None }
    }

    fn length_match(&self, subnet: &Subnet, lease: Option<&Lease>) -> Result<LengthMatch, &'static str> {
        subnet_alloc::length_match(&self.conf, subnet)
            .or_else(|why| self.is_own(subnet, lease).then_some(LengthMatch::Other).ok_or(why))
    }

    fn is_own(&self, subnet: &Subnet, lease: Option<&Lease>) -> bool {
        self.own == Some(*subnet)
            || self.owner.as_ref().zip(lease).is_some_and(|(owner, lease)| owner.owns(lease))
    }
}

/// Counts of the entries that a listing keeps, and the entries that it does not keep.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    /// Definition of a lease; without one, every entry in the form of a lease is kept.
    scope: Option<Scope>,
    kept: Kept,
    /// True if leases were left out because there were too many.
    is_crowded: bool,
    /// First entries that are not leases, with the reasons.
    junk: BTreeMap<Box<str>, Box<str>>,
    /// Number of further entries that are not leases.
    more_junk: u64,
}

/// Numbers of kept entries.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    /// Number of entries with the config's own length.
    own: usize,
    /// Number of entries with another length.
    other_lengths: usize,
}

/// Numbers of entries to be read, of which only the keys are known yet.
pub(crate) struct Expected {
    kept: Kept,
    /// Number of entries of other networks; our lease may be among them.
    foreign: usize,
}

impl Kept {
    fn of(&mut self, length_match: LengthMatch) -> &mut usize {
        match length_match {
            LengthMatch::Own => &mut self.own,
            LengthMatch::Other => &mut self.other_lengths,
        }
    }
}

impl Bounds {
    pub(crate) fn new(scope: Option<Scope>) -> Self {
        Self { scope, ..Self::default() }
    }

    /// Sets the definition of a lease for entries to come.
    pub(crate) fn set_scope(&mut self, scope: Option<Scope>) {
        self.scope = scope;
    }

    /// Returns the relation of an entry to the network. Its lease is `None` if it is unreadable or not read. The error
    /// says why it is no lease.
    fn length_match(&self, key: &str, lease: Option<&Lease>) -> Result<(Subnet, LengthMatch), Box<str>> {
        let subnet = Subnet::parse(key)?;
        let length_match = match &self.scope {
            None => LengthMatch::Own,
            Some(scope) => scope.length_match(&subnet, lease)?,
        };
        Ok((subnet, length_match))
    }

    /// Begins to look at all entries again.
    pub(crate) fn begin(&mut self) -> Expected {
        self.is_crowded = false;
        self.expected()
    }

    /// Returns the numbers that are kept now.
    pub(crate) fn expected(&self) -> Expected {
        Expected { kept: self.kept, foreign: 0 }
    }

    /// Counts an entry by its key alone. The error says why its value need not be read: the entry is no lease, or there
    /// is no room for it.
    pub(crate) fn expect(&mut self, key: &str, expected: &mut Expected) -> Result<(), Box<str>> {
        let has_owner = self.scope.as_ref().is_some_and(|scope| scope.owner.is_some());
        let (subnet, length_match) = match self.length_match(key, None) {
            Err(_) if has_owner && expected.foreign < MAX_OTHER_LENGTHS && Subnet::parse(key).is_ok() => {
                expected.foreign += 1;
                return Ok(());
            }
            known => known?,
        };
        let is_own = self.scope.as_ref().is_some_and(|scope| scope.is_own(&subnet, None));
        if !is_own && self.is_full(expected.kept, length_match) {
            self.is_crowded = true;
            return Err(CROWDED.into());
        }
        *expected.kept.of(length_match) += 1;
        Ok(())
    }

    /// Counts an entry to keep. The error says why it is not kept.
    pub(crate) fn admit(&mut self, key: &str, lease: Option<&Lease>) -> Result<LengthMatch, Box<str>> {
        let (subnet, length_match) = self.length_match(key, lease)?;
        let is_own = self.scope.as_ref().is_some_and(|scope| scope.is_own(&subnet, lease));
        if !is_own && self.is_full(self.kept, length_match) {
            self.is_crowded = true;
            return Err(CROWDED.into());
        }
        *self.kept.of(length_match) += 1;
        Ok(length_match)
    }

    /// Counts an entry that is no longer kept.
    pub(crate) fn release(&mut self, length_match: LengthMatch) {
        *self.kept.of(length_match) -= 1;
    }

    /// Returns the maximum number of leases with the config's own length. It is twice the number that the network holds
    /// without an overlap, and at least [`MAX_OTHER_LENGTHS`].
    fn max_own(&self) -> usize {
        let scope = self.scope.as_ref().map(|scope| &scope.conf);
        let pools = scope.into_iter().flat_map(|conf| Family::ALL.map(|family| conf.pool(family)));
        let most =
            pools.flatten().map(Pool::count_in_network).min().and_then(|most| usize::try_from(most).ok());
        most.map_or(MAX_LEASES, |most| most.saturating_mul(2).clamp(MAX_OTHER_LENGTHS, MAX_LEASES))
    }

    fn is_full(&self, kept: Kept, length_match: LengthMatch) -> bool {
        let is_full = match length_match {
            LengthMatch::Own => kept.own >= self.max_own(),
            LengthMatch::Other => kept.other_lengths >= MAX_OTHER_LENGTHS,
        };
        is_full || kept.own + kept.other_lengths >= MAX_LEASES
    }

    /// Returns true if leases were left out for lack of room and there is room again.
    pub(crate) fn has_room_again(&self) -> bool {
        let has_room = |count: usize, most: usize| count <= most - most / 8;
        let Kept { own, other_lengths } = self.kept;
        self.is_crowded
            && has_room(other_lengths, MAX_OTHER_LENGTHS)
            && has_room(own, self.max_own())
            && has_room(own + other_lengths, MAX_LEASES)
    }

    /// Adds an entry that is not a lease.
    pub(crate) fn add_junk(&mut self, key: &str, why: Box<str>) {
        if self.junk.len() < MAX_NAMED && !self.junk.contains_key(key) {
            self.junk.insert(key.into(), why);
        } else {
            self.more_junk += 1;
        }
    }

    /// Removes an entry that is not a lease; one that is not named was counted.
    #[cfg(feature = "etcd")]
    pub(crate) fn forget_junk(&mut self, key: &str) {
        if !self.unname(key) {
            self.more_junk = self.more_junk.saturating_sub(1);
        }
    }

    /// Removes an entry that is not a lease from the named ones. Returns false if it was not named.
    pub(crate) fn unname(&mut self, key: &str) -> bool {
        self.junk.remove(key).is_some()
    }

    /// Returns true if this entry is named as one that is not a lease.
    pub(crate) fn names(&self, key: &str) -> bool {
        self.junk.contains_key(key)
    }

    /// Replaces all entries that are not leases. Returns true if the report changes.
    pub(crate) fn set_junk(&mut self, named: BTreeMap<Box<str>, Box<str>>, more: u64) -> bool {
        let is_news = named != self.junk || first_digit(more) != first_digit(self.more_junk);
        (self.junk, self.more_junk) = (named, more);
        is_news
    }

    /// Returns the reported numbers of invalid entries, to detect a change of the report.
    pub(crate) fn junk_counts(&self) -> (usize, u64) {
        (self.junk.len(), first_digit(self.more_junk))
    }

    /// Returns the warnings about entries that are not leases: first those about kept `entries`, each made by `note`,
    /// then those about others. At most [`MAX_NAMED`] entries are named.
    pub(crate) fn warnings<T>(
        &self,
        mut entries: impl Iterator<Item = T>,
        warning: impl Fn(T) -> Warning,
    ) -> Vec<Warning> {
        let mut warnings: Vec<_> = entries.by_ref().take(MAX_NAMED).map(warning).collect();
        let named = self.junk.len().min(MAX_NAMED - warnings.len());
        let junk = self.junk.iter().take(named);
        warnings.extend(junk.map(|(key, why)| Warning::Entry { key: key.clone(), why: why.clone() }));
        let more = self.more_junk + (entries.count() + self.junk.len() - named) as u64;
        warnings.extend((more > 0).then(|| Warning::MoreEntries { at_least: first_digit(more) }));
        warnings
    }
}

/// Reason for which a lease is not kept.
const CROWDED: &str = "there are more leases than this network can have, or than are kept";

/// Rounds a count down to its first digit: 149,950 gives 100,000. So the report does not change with each entry.
fn first_digit(count: u64) -> u64 {
    let unit = 10_u64.pow(count.checked_ilog10().unwrap_or_default());
    count / unit * unit
}

/// Parses a lease. The error says what is wrong with it.
pub(crate) fn read(key: &str, value: &[u8], born: u64) -> Result<Lease, Box<str>> {
    if value.len() as u64 > MAX_BYTES {
        return Err(format!("{} bytes are more than any lease has", value.len()).into());
    }
    let lease = Lease::parse(key, value, born)?;
    if lease.subnet.to_string() != key {
        return Err(format!("its key is another spelling of {}: use that spelling", lease.subnet).into());
    }
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_outside_the_pool_are_kept_as_the_network_has_room() {
        let conf =
            br#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.250.0.0","SubnetMax":"10.250.9.0"}"#;
        let mut bounds = Bounds::new(Some(Scope::of(&NetConf::parse(conf).unwrap())));
        let keys = (0..10_000).map(|n| format!("10.{}.{}.0-24", n / 256, n % 256));
        assert_eq!(keys.filter(|key| bounds.admit(key, None).is_ok()).count(), 10_000);
    }

    #[test]
    fn at_most_60_000_leases_are_kept_and_ours_always() {
        let conf = br#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
        let conf = NetConf::parse(conf).unwrap();
        let key = |n: usize| format!("0.0.0.0-0&fd00:0:0:{n:x}::-64");
        let own = key(65_000);
        let scope = Scope { own: Some(Subnet::parse(&own).unwrap()), ..Scope::of(&conf) };
        for scope in [None, Some(scope)] {
            let has_scope = scope.is_some();
            let mut bounds = Bounds::new(scope);
            let kept = (1..64_000).filter(|n| bounds.admit(&key(*n), None).is_ok()).count();
            assert_eq!((kept, bounds.admit(&own, None).is_ok()), (MAX_LEASES, has_scope));
            assert!(!bounds.has_room_again());
            (0..=MAX_LEASES / 8).for_each(|_| bounds.release(LengthMatch::Own));
            assert!(bounds.has_room_again());
        }
    }
}
