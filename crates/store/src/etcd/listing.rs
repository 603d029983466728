//! etcd's leases in memory: read as one list, then updated by events. An entry that is not a lease gives a warning and does not
//! affect any other entry.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use etcd_client::{Event, EventType, KeyValue};
use plan::backend::Backend;
use plan::lease::{Lease, Leases};
use plan::lease_conflicts;
use plan::netconf::NetConf;
use plan::shrink_guard::StoreHistory;
use plan::subnet::Subnet;
use plan::subnet_alloc::LengthMatch;
use plan::warning::Warning;

use super::EtcdOptions;
use super::session::{Keys, Name};
use crate::bounds::{self, Bounds, Scope};
use crate::view::View;

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
    entries: BTreeMap<Box<str>, Entry>,
    /// Leases of `entries` as they were given out last; `None` if an entry has changed since.
    shared: Option<Arc<[Lease]>>,
    bounds: Bounds,
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
    length_match: LengthMatch,
}

impl Listing {
    /// Creates an empty listing, of no cluster yet.
    pub(super) fn new(keys: &Keys, scope: Option<Scope>) -> Self {
        let no_conf = net_conf(keys, None, None).err().unwrap_or_default();
        Self { bounds: Bounds::new(scope), no_conf, ..Self::default() }
    }

    /// Returns the revision from which a watch continues.
    pub(super) fn next(&self) -> i64 {
        self.revision + i64::from(!self.is_partial)
    }

    /// Returns true if leases were left out for lack of room and there is room again.
    pub(super) fn has_room_again(&self) -> bool {
        self.bounds.has_room_again()
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
                let before = self.bounds.junk_counts();
                self.forget(key, false).is_some() || before != self.bounds.junk_counts()
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
    pub(super) fn put_oversized(&mut self, kv: &KeyValue, keys: &Keys, limit: usize) {
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
        let counts = self.bounds.junk_counts();
        let before = self.forget(key, is_new);
        match self.bounds.admit(key, parsed.as_ref().ok()) {
            Ok(length_match) => {
                let entry =
                    Entry { mod_revision: kv.mod_revision(), lease_id: kv.lease(), parsed, length_match };
                let changed = before.is_none_or(|before| self.is_change(&before, &entry));
                self.entries.insert(key.into(), entry);
                self.shared = None;
                return changed || counts != self.bounds.junk_counts();
            }
            Err(why) => self.bounds.add_junk(key, parsed.err().unwrap_or(why)),
        }
        before.is_some() || counts != self.bounds.junk_counts()
    }

    /// Removes an entry and returns it. An unknown one that is not new was counted among the further ones.
    fn forget(&mut self, key: &str, is_new: bool) -> Option<Entry> {
        if let Some(entry) = self.entries.remove(key) {
            self.bounds.release(entry.length_match);
            self.shared = None;
            return Some(entry);
        }
        if !is_new {
            self.bounds.forget_junk(key);
        }
        None
    }

    /// Returns true if an entry differs from the one before. A renewal counts only in a conflict of two leases, where
    /// it is a sign of life.
    fn is_change(&self, before: &Entry, entry: &Entry) -> bool {
        let (Ok(was), Ok(is)) = (&before.parsed, &entry.parsed) else { return before.parsed != entry.parsed };
        let others = || self.entries.values().filter_map(|other| other.parsed.as_ref().ok());
        !was.has_same_data(is)
            || others().any(|other| other.subnet != is.subnet && lease_conflicts::conflict(other, is))
    }

    pub(super) fn view(&mut self) -> View {
        let leases = Leases::Listed(self.leases());
        let unreadable = self.entries.iter().filter(|(_, entry)| entry.parsed.is_err());
        let warning = |(key, entry): (&_, &Entry)| Warning::Entry {
            key: Box::clone(key),
            why: entry.parsed.as_ref().err().cloned().unwrap_or_default(),
        };
        let warnings = self.bounds.warnings(unreadable, warning);
        let conf = self.conf.as_ref().map_or_else(|| Err(self.no_conf.clone()), |(_, conf)| conf.clone());
        View {
            leases,
            conf: Some(conf),
            warnings,
            lost: None,
            history: Some(StoreHistory {
                cluster: self.cluster,
                revision: self.revision,
                breaks: self.breaks,
            }),
            own_until: None,
        }
    }
}

/// Parses a lease. Its age is that of its key, even after a rewrite.
fn read(key: &str, kv: &KeyValue) -> Result<Lease, Box<str>> {
    let lease = bounds::read(key, kv.value(), kv.create_revision().cast_unsigned())?;
    Ok(Lease { written: kv.mod_revision().cast_unsigned(), ..lease })
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
