//! etcd's leases in memory: read as one list, then updated by events. An entry that is not a lease gives a warning and does not
//! affect any other entry.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use etcd_client::{Event, EventType, KeyValue};
use plan::backend::Backend;
use plan::belief::History;
use plan::lease::{Lease, Leases};
use plan::netconf::NetConf;
use plan::note::Note;
use plan::pool::Pool;
use plan::subnet::Subnet;
use plan::subnet_alloc::{self, Asker, Kinship};
use plan::{Family, rivals};

use super::EtcdOptions;
use super::session::{Keys, Name};
use crate::view::{LARGEST, View};

/// Maximum number of leases with another length than the config's. A change of `SubnetLen` affects no more nodes than that.
const MOST_COUSINS: usize = 8192;
/// Maximum number of invalid entries that are named; further ones are only counted.
const MOST_NAMED: usize = 50;

/// Definition of a lease.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// Config whose networks the leases must be of.
    pub(super) conf: NetConf,
    /// Node whose leases count in any network, so that it can give them back.
    pub(super) owner: Option<Asker>,
}

impl Scope {
    fn kinship(&self, subnet: &Subnet, lease: Option<&Lease>) -> Result<Kinship, &'static str> {
        let is_own = self.owner.as_ref().zip(lease).is_some_and(|(owner, lease)| owner.owns(lease));
        subnet_alloc::kinship(&self.conf, subnet).or_else(|why| is_own.then_some(Kinship::Other).ok_or(why))
    }
}

/// Content of etcd at a revision.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Id of the cluster; 0 if the listing is of none and must be read again.
    pub(super) cluster: u64,
    /// Revision of the last change in the listing.
    pub(super) revision: i64,
    /// True if that change may have parts that were not received yet. The watch then starts at that change again.
    is_partial: bool,
    /// Hashes of the keys that changed with that revision. The watch may report these changes again.
    applied: HashSet<u64>,
    hashes: RandomState,
    /// Number of times that the store's history did not continue the previous one.
    pub(super) breaks: u32,
    /// Definition of a lease; without one, every entry in the form of a lease is kept.
    scope: Option<Scope>,
    entries: BTreeMap<Box<str>, Entry>,
    /// Leases of `entries` as they were given out last; `None` if an entry has changed since.
    shared: Option<Arc<[Lease]>>,
    /// Number of entries with another length than the config's.
    cousins: usize,
    /// True if leases were left out because there were too many.
    is_crowded: bool,
    /// First entries that are not leases, with the reasons.
    junk: BTreeMap<Box<str>, Box<str>>,
    /// Number of further entries that are not leases.
    more_junk: u64,
    /// Network config with its revision; `None` without a key.
    conf: Option<(i64, Result<NetConf, String>)>,
    /// Error text for a missing config.
    no_conf: String,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) mod_revision: i64,
    /// Id of the etcd lease; 0 for none, so that the entry never ends.
    pub(super) lease_id: i64,
    /// Lease, or the reason for which it cannot be parsed.
    pub(super) parsed: Result<Lease, Box<str>>,
    /// True if the subnet has another length than the config's.
    is_cousin: bool,
}

impl Listing {
    /// Creates an empty listing, of no cluster yet.
    pub(super) fn new(keys: &Keys, scope: Option<Scope>) -> Self {
        let no_conf = net_conf(keys, None, None).err().unwrap_or_default();
        Self { scope, no_conf, ..Self::default() }
    }

    /// Returns the revision from which a watch continues.
    pub(super) fn next(&self) -> i64 {
        self.revision + i64::from(!self.is_partial)
    }

    /// Returns true if leases were left out for lack of room and there is room again.
    pub(super) fn has_room_again(&self) -> bool {
        let own = self.entries.len() - self.cousins;
        self.is_crowded && self.cousins <= MOST_COUSINS / 2 && own <= self.most_own() / 2
    }

    /// Returns the maximum number of leases with the config's own length. It is twice the number that can exist without an
    /// overlap, and at least [`MOST_COUSINS`].
    fn most_own(&self) -> usize {
        let scope = self.scope.as_ref().map(|scope| &scope.conf);
        let pools = scope.into_iter().flat_map(|conf| Family::ALL.map(|family| conf.pool(family)));
        let most = pools.flatten().map(Pool::count).min().and_then(|most| usize::try_from(most).ok());
        most.map_or(usize::MAX, |most| most.saturating_mul(2).max(MOST_COUSINS))
    }

    fn is_full(&self, kinship: Kinship) -> bool {
        match kinship {
            Kinship::Own => self.entries.len() - self.cousins >= self.most_own(),
            Kinship::Other => self.cousins >= MOST_COUSINS,
        }
    }

    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Returns the etcd lease of an entry, 0 for none.
    pub(super) fn lease_id(&self, key: &str) -> Option<i64> {
        self.entry(key).map(|entry| entry.lease_id)
    }

    /// Returns the leases, by key. It is the same list until an entry changes.
    pub(super) fn leases(&mut self) -> Arc<[Lease]> {
        let leases = self.entries.values().filter_map(|entry| entry.parsed.as_ref().ok());
        self.shared.get_or_insert_with(|| leases.cloned().collect()).clone()
    }

    /// Returns the subnets whose lease cannot be parsed; they are in use all the same.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = Subnet> {
        let unreadable = self.entries.iter().filter(|(_, entry)| entry.parsed.is_err());
        unreadable.filter_map(|(key, _)| Subnet::parse(key).ok())
    }

    /// Returns the key that was written last, and its revision.
    pub(super) fn newest(&self) -> Option<(Name<'_>, i64)> {
        let entries = self.entries.iter().map(|(key, entry)| (entry.mod_revision, Name::Subnet(key)));
        let conf = self.conf.iter().map(|(revision, _)| (*revision, Name::Config));
        entries.chain(conf).max_by_key(|(revision, _)| *revision).map(|(revision, name)| (name, revision))
    }

    /// Applies an event of the watch. Returns true if it changes anything; a renewal does not.
    pub(super) fn apply(&mut self, event: &Event, keys: &Keys, options: &EtcdOptions) -> bool {
        let Some(kv) = event.kv() else { return false };
        if kv.mod_revision() > self.revision {
            self.applied.clear();
        }
        (self.revision, self.is_partial) = (self.revision.max(kv.mod_revision()), true);
        // A second time the change would be counted again, if its key is not one that is kept by name.
        if !self.applied.insert(self.hashes.hash_one(kv.key())) {
            return false;
        }
        match (event.event_type(), keys.name(kv.key())) {
            (_, None) => false,
            (EventType::Put, Some(_)) => self.put(kv, kv.version() <= 1, keys, options),
            (EventType::Delete, Some(Name::Config)) => self.conf.take().is_some(),
            (EventType::Delete, Some(Name::Subnet(key))) => {
                let before = self.junk_counts();
                self.forget(key, false).is_some() || before != self.junk_counts()
            }
        }
    }

    /// Stores an entry as read from etcd; `is_new` if its key did not exist before. Returns true if that changes anything.
    pub(super) fn put(&mut self, kv: &KeyValue, is_new: bool, keys: &Keys, options: &EtcdOptions) -> bool {
        let mod_revision = kv.mod_revision();
        match keys.name(kv.key()) {
            None => false,
            Some(Name::Config) => {
                let conf = net_conf(keys, Some(kv.value()), options.backend.as_ref());
                let before = self.conf.replace((mod_revision, conf));
                before.map(|(_, conf)| conf) != self.conf.as_ref().map(|(_, conf)| conf.clone())
            }
            Some(Name::Subnet(key)) => self.put_subnet(key, kv, is_new, read(key, kv)),
        }
    }

    /// Stores an entry whose value was too large to be read.
    pub(super) fn put_unseen(&mut self, kv: &KeyValue, keys: &Keys, limit: usize) {
        let why = format!("its value has more than {limit} bytes, more than any lease has");
        match keys.name(kv.key()) {
            None => {}
            Some(Name::Config) => {
                let why = format!("key {}: {why}", keys.config());
                self.conf = Some((kv.mod_revision(), Err(why)));
            }
            Some(Name::Subnet(key)) => {
                self.put_subnet(key, kv, true, Err(why.into()));
            }
        }
    }

    fn put_subnet(
        &mut self,
        key: &str,
        kv: &KeyValue,
        is_new: bool,
        parsed: Result<Lease, Box<str>>,
    ) -> bool {
        let counts = self.junk_counts();
        let before = self.forget(key, is_new);
        let kinship = match (Subnet::parse(key), &self.scope) {
            (Err(why), _) => Err(why.into()),
            (Ok(_), None) => Ok(Kinship::Own),
            (Ok(subnet), Some(scope)) => scope.kinship(&subnet, parsed.as_ref().ok()).map_err(Into::into),
        };
        match kinship {
            Ok(kinship) if self.is_full(kinship) => {
                self.is_crowded = true;
                self.add_junk(key, "there are more leases than this network can have".into());
            }
            Ok(kinship) => {
                let is_cousin = kinship == Kinship::Other;
                self.cousins += usize::from(is_cousin);
                let entry =
                    Entry { mod_revision: kv.mod_revision(), lease_id: kv.lease(), parsed, is_cousin };
                let changed = before.is_none_or(|before| self.is_news(&before, &entry));
                self.entries.insert(key.into(), entry);
                self.shared = None;
                return changed || counts != self.junk_counts();
            }
            Err(why) => self.add_junk(key, parsed.err().unwrap_or(why)),
        }
        before.is_some() || counts != self.junk_counts()
    }

    /// Adds an entry that is not a lease.
    fn add_junk(&mut self, key: &str, why: Box<str>) {
        if self.junk.len() < MOST_NAMED && !self.junk.contains_key(key) {
            self.junk.insert(key.into(), why);
        } else {
            self.more_junk += 1;
        }
    }

    /// Removes an entry and returns it. An unknown one that is not new was counted among the further ones.
    fn forget(&mut self, key: &str, is_new: bool) -> Option<Entry> {
        if let Some(entry) = self.entries.remove(key) {
            self.cousins -= usize::from(entry.is_cousin);
            self.shared = None;
            return Some(entry);
        }
        if !is_new && self.junk.remove(key).is_none() {
            self.more_junk = self.more_junk.saturating_sub(1);
        }
        None
    }

    /// Returns the reported numbers of invalid entries, to detect a change of the report.
    fn junk_counts(&self) -> (usize, u64) {
        (self.junk.len(), roughly(self.more_junk))
    }

    /// Returns true if an entry differs from the one before. A renewal counts only in a conflict of two leases, where
    /// it is a sign of life.
    fn is_news(&self, before: &Entry, entry: &Entry) -> bool {
        let (Ok(was), Ok(is)) = (&before.parsed, &entry.parsed) else { return before.parsed != entry.parsed };
        let others = || self.entries.values().filter_map(|other| other.parsed.as_ref().ok());
        !was.says_the_same(is)
            || others().any(|other| other.subnet != is.subnet && rivals::conflict(other, is))
    }

    pub(super) fn view(&mut self) -> View {
        let leases = Leases::Listed(self.leases());
        let unreadable =
            self.entries.iter().filter_map(|(key, entry)| Some((key, entry.parsed.as_ref().err()?)));
        let mut unreadable = unreadable.chain(&self.junk);
        let named = unreadable.by_ref().take(MOST_NAMED);
        let mut notes: Vec<_> =
            named.map(|(key, why)| Note::Entry { key: key.clone(), why: why.clone() }).collect();
        let more = self.more_junk + unreadable.count() as u64;
        notes.extend((more > 0).then(|| Note::MoreEntries { at_least: roughly(more) }));
        let conf = self.conf.as_ref().map_or_else(|| Err(self.no_conf.clone()), |(_, conf)| conf.clone());
        View {
            leases,
            conf: Some(conf),
            notes,
            lost: None,
            history: Some(History { cluster: self.cluster, revision: self.revision, breaks: self.breaks }),
            own_until: None,
        }
    }
}

/// Rounds a count down to its first digit: 149,950 gives 100,000. So the report does not change with each entry.
fn roughly(count: u64) -> u64 {
    let unit = 10_u64.pow(count.checked_ilog10().unwrap_or_default());
    count / unit * unit
}

/// Parses a lease. Its age is that of its key, even after a rewrite.
fn read(key: &str, kv: &KeyValue) -> Result<Lease, Box<str>> {
    if kv.value().len() as u64 > LARGEST {
        return Err(format!("{} bytes are more than any lease has", kv.value().len()).into());
    }
    let mut lease = Lease::parse(key, kv.value(), kv.create_revision().cast_unsigned())?;
    lease.written = kv.mod_revision().cast_unsigned();
    if lease.subnet.to_string() != key {
        return Err(format!("its key is another spelling of {}: use that spelling", lease.subnet).into());
    }
    Ok(lease)
}

/// Parses the network config from the value of its key.
///
/// Returns an error with advice if the key is missing or its value invalid.
pub(super) fn net_conf(
    keys: &Keys,
    text: Option<&[u8]>,
    backend: Option<&Backend>,
) -> Result<NetConf, String> {
    let key = keys.config();
    let text = text.ok_or_else(|| {
        format!(
            "there is no key {key}: write the network config to it, or correct --etcd-prefix. If it was written with \
             etcd's v2 API (ETCDCTL_API=2, or etcdctl before 3.4), write it again with ETCDCTL_API=3: the two do not see \
             each other's keys"
        )
    })?;
    NetConf::parse_imposing(backend, text).map_err(|error| format!("key {key}: {error}"))
}
