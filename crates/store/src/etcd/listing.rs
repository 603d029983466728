//! etcd's leases in memory: one list, then one event after the other. An entry that is no lease is a note, and costs no
//! other entry anything.

use std::collections::BTreeMap;

use etcd_client::{Event, EventType, KeyValue};
use plan::backend::Backend;
use plan::belief::History;
use plan::input::{Family, Leases};
use plan::lease::{Lease, Subnet};
use plan::netconf::NetConf;
use plan::note::Note;
use plan::rivals;
use plan::subnet_alloc::{self, Asker, Kinship, Pool};

use super::EtcdOptions;
use super::session::{Keys, Name};
use crate::view::{LARGEST, View};

/// Leases of other lengths than the config's that are kept; whoever changes `SubnetLen` has no more nodes than that.
const MOST_COUSINS: usize = 8192;
/// Entries that are no leases and are named; the others are counted.
const MOST_NAMED: usize = 50;

/// What counts as a lease.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// Leases are of its networks.
    pub(super) conf: NetConf,
    /// Its own leases count whatever network they are of, for it to give them back.
    pub(super) owner: Option<Asker>,
}

impl Scope {
    fn kinship(&self, subnet: &Subnet, lease: Option<&Lease>) -> Result<Kinship, &'static str> {
        let is_own = self.owner.as_ref().zip(lease).is_some_and(|(owner, lease)| owner.owns(lease));
        subnet_alloc::kinship(&self.conf, subnet).or_else(|why| is_own.then_some(Kinship::Other).ok_or(why))
    }
}

/// What etcd held at a revision.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// 0: of none, and of no use.
    pub(super) cluster: u64,
    /// Of the last change that is in it.
    pub(super) revision: i64,
    /// True if that change may have more parts than were heard: it is watched again.
    is_partial: bool,
    /// How often another history took the place of the one that was heard.
    pub(super) breaks: u32,
    /// By which leases are told from junk; without one all are kept that are leases in form.
    scope: Option<Scope>,
    entries: BTreeMap<Box<str>, Entry>,
    /// How many of the entries have another length than the config's.
    cousins: usize,
    /// True if leases were left out because there were too many of them.
    is_crowded: bool,
    /// The first entries that are no leases, and why.
    junk: BTreeMap<Box<str>, Box<str>>,
    /// How many more there are.
    more_junk: u64,
    conf: Option<(i64, Result<NetConf, String>)>,
    /// Says that there is none.
    no_conf: String,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) mod_revision: i64,
    /// 0: none, so that it never ends.
    pub(super) lease_id: i64,
    pub(super) told: Result<Lease, Box<str>>,
    is_cousin: bool,
}

impl Listing {
    /// An empty listing, of no cluster yet.
    pub(super) fn new(keys: &Keys, scope: Option<Scope>) -> Self {
        let no_conf = net_conf(keys, None, None).err().unwrap_or_default();
        Self { scope, no_conf, ..Self::default() }
    }

    /// Revision from which a watch goes on.
    pub(super) fn next(&self) -> i64 {
        self.revision + i64::from(!self.is_partial)
    }

    /// True if leases that were left out for want of room may be there and now have room.
    pub(super) fn has_room_again(&self) -> bool {
        let own = self.entries.len() - self.cousins;
        self.is_crowded && self.cousins <= MOST_COUSINS / 2 && own <= self.most_own() / 2
    }

    /// Leases of the config's own length that are kept: twice as many as there can be, if only that many overlap none.
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

    /// The etcd lease that an entry is attached to, 0 for none.
    pub(super) fn lease_id(&self, key: &str) -> Option<i64> {
        self.entry(key).map(|entry| entry.lease_id)
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        self.entries.values().filter_map(|entry| entry.told.as_ref().ok()).cloned().collect()
    }

    /// Subnets whose lease cannot be read: somebody's all the same.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = Subnet> {
        let unreadable = self.entries.iter().filter(|(_, entry)| entry.told.is_err());
        unreadable.filter_map(|(key, _)| Subnet::parse(key).ok())
    }

    /// The key that was written last, and its revision.
    pub(super) fn newest(&self) -> Option<(Name<'_>, i64)> {
        let entries = self.entries.iter().map(|(key, entry)| (entry.mod_revision, Name::Subnet(key)));
        let conf = self.conf.iter().map(|(revision, _)| (*revision, Name::Config));
        entries.chain(conf).max_by_key(|(revision, _)| *revision).map(|(revision, name)| (name, revision))
    }

    /// Takes an event of the watch. True when something is new: a renewal is not.
    pub(super) fn heed(&mut self, event: &Event, keys: &Keys, options: &EtcdOptions) -> bool {
        let Some(kv) = event.kv() else { return false };
        (self.revision, self.is_partial) = (self.revision.max(kv.mod_revision()), true);
        match (event.event_type(), keys.name(kv.key())) {
            (_, None) => false,
            (EventType::Put, Some(_)) => self.put(kv, kv.version() <= 1, keys, options),
            (EventType::Delete, Some(Name::Config)) => self.conf.take().is_some(),
            (EventType::Delete, Some(Name::Subnet(key))) => {
                let before = self.said_of_junk();
                self.forget(key, false).is_some() || before != self.said_of_junk()
            }
        }
    }

    /// Takes what stands in etcd, `is_new` where its key was not there before. True when something is new.
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

    /// Takes an entry whose value was too large to be read.
    pub(super) fn put_unseen(&mut self, kv: &KeyValue, keys: &Keys, limit: usize) {
        let why = format!("its value has more than {limit} bytes, and no lease has as many");
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

    fn put_subnet(&mut self, key: &str, kv: &KeyValue, is_new: bool, told: Result<Lease, Box<str>>) -> bool {
        let said = self.said_of_junk();
        let before = self.forget(key, is_new);
        let kinship = match (Subnet::parse(key), &self.scope) {
            (Err(why), _) => Err(why.into()),
            (Ok(_), None) => Ok(Kinship::Own),
            (Ok(subnet), Some(scope)) => scope.kinship(&subnet, told.as_ref().ok()).map_err(Into::into),
        };
        match kinship {
            Ok(kinship) if self.is_full(kinship) => {
                self.is_crowded = true;
                self.add_junk(key, "there are more leases than this network can have".into());
            }
            Ok(kinship) => {
                let is_cousin = kinship == Kinship::Other;
                self.cousins += usize::from(is_cousin);
                let entry = Entry { mod_revision: kv.mod_revision(), lease_id: kv.lease(), told, is_cousin };
                let changed = before.is_none_or(|before| self.is_news(&before, &entry));
                self.entries.insert(key.into(), entry);
                return changed || said != self.said_of_junk();
            }
            Err(why) => self.add_junk(key, told.err().unwrap_or(why)),
        }
        before.is_some() || said != self.said_of_junk()
    }

    fn add_junk(&mut self, key: &str, why: Box<str>) {
        if self.junk.len() < MOST_NAMED && !self.junk.contains_key(key) {
            self.junk.insert(key.into(), why);
        } else {
            self.more_junk += 1;
        }
    }

    /// Takes an entry out. One that is not new and not known was counted only.
    fn forget(&mut self, key: &str, is_new: bool) -> Option<Entry> {
        if let Some(entry) = self.entries.remove(key) {
            self.cousins -= usize::from(entry.is_cousin);
            return Some(entry);
        }
        if !is_new && self.junk.remove(key).is_none() {
            self.more_junk = self.more_junk.saturating_sub(1);
        }
        None
    }

    /// What is told of the junk, to see whether that has changed.
    fn said_of_junk(&self) -> (usize, u64) {
        (self.junk.len(), roughly(self.more_junk))
    }

    /// Reports whether an entry says something new. The renewal of a lease does only where another lease is in conflict with
    /// it, for which it is a sign of life.
    fn is_news(&self, before: &Entry, entry: &Entry) -> bool {
        let (Ok(was), Ok(is)) = (&before.told, &entry.told) else { return before.told != entry.told };
        let others = || self.entries.values().filter_map(|other| other.told.as_ref().ok());
        !was.says_the_same(is)
            || others().any(|other| other.subnet != is.subnet && rivals::conflict(other, is))
    }

    pub(super) fn view(&self) -> View {
        let unreadable =
            self.entries.iter().filter_map(|(key, entry)| Some((key, entry.told.as_ref().err()?)));
        let mut unreadable = unreadable.chain(&self.junk);
        let named = unreadable.by_ref().take(MOST_NAMED);
        let mut notes: Vec<_> =
            named.map(|(key, why)| Note::Entry { key: key.clone(), why: why.clone() }).collect();
        let more = self.more_junk + unreadable.count() as u64;
        notes.extend((more > 0).then(|| Note::MoreEntries { at_least: roughly(more) }));
        let conf = self.conf.as_ref().map_or_else(|| Err(self.no_conf.clone()), |(_, conf)| conf.clone());
        View {
            leases: Leases::Listed(self.leases()),
            conf: Some(conf),
            notes,
            lost: None,
            history: Some(History { cluster: self.cluster, revision: self.revision, breaks: self.breaks }),
            own_until: None,
        }
    }
}

/// The number with its first digit alone, so that what is said of it does not change with each entry: 100,000 of 149,950.
fn roughly(count: u64) -> u64 {
    let unit = 10_u64.pow(count.checked_ilog10().unwrap_or_default());
    count / unit * unit
}

/// A lease is as old as its key, whoever has written it since.
fn read(key: &str, kv: &KeyValue) -> Result<Lease, Box<str>> {
    if kv.value().len() as u64 > LARGEST {
        return Err(format!("{} bytes are more than any lease has", kv.value().len()).into());
    }
    let mut lease = Lease::parse(key, kv.value(), kv.create_revision().cast_unsigned())?;
    lease.written = kv.mod_revision().cast_unsigned();
    if lease.subnet.to_string() != key {
        return Err(format!("its key is another spelling of {}: write it so", lease.subnet).into());
    }
    Ok(lease)
}

/// The network config, given what its key says.
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
