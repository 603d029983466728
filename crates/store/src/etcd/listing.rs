//! etcd's leases in memory: one list, then one event after the other. An entry that is no lease is a note, and costs no
//! other entry anything.

use std::collections::BTreeMap;

use etcd_client::{Event, EventType, KeyValue};
use plan::backend::Backend;
use plan::belief::History;
use plan::input::Leases;
use plan::lease::{Lease, Subnet};
use plan::netconf::NetConf;
use plan::note::Note;

use super::EtcdOptions;
use super::session::{Keys, Name};
use crate::view::{LARGEST, View};

/// What etcd held at a revision.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// 0: of none, and of no use.
    pub(super) cluster: u64,
    /// Of the last change that is in it; events of it may come again.
    pub(super) revision: i64,
    /// How often another history took the place of the one that was heard.
    pub(super) breaks: u32,
    entries: BTreeMap<Box<str>, Entry>,
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
}

impl Listing {
    /// Of a cluster, with nothing in it yet.
    pub(super) fn new(cluster: u64, revision: i64, keys: &Keys) -> Self {
        let no_conf = net_conf(keys, None, None).err().unwrap_or_default();
        Self { cluster, revision, no_conf, ..Self::default() }
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
        self.revision = self.revision.max(kv.mod_revision());
        match (event.event_type(), keys.name(kv.key())) {
            (_, None) => false,
            (EventType::Put, Some(_)) => self.put(kv, keys, options),
            (EventType::Delete, Some(Name::Config)) => self.conf.take().is_some(),
            (EventType::Delete, Some(Name::Subnet(key))) => self.entries.remove(key).is_some(),
        }
    }

    /// Takes what stands in etcd. True when it is something new.
    pub(super) fn put(&mut self, kv: &KeyValue, keys: &Keys, options: &EtcdOptions) -> bool {
        let mod_revision = kv.mod_revision();
        match keys.name(kv.key()) {
            None => false,
            Some(Name::Config) => {
                let conf = net_conf(keys, Some(kv.value()), options.backend.as_ref());
                let before = self.conf.replace((mod_revision, conf));
                before.map(|(_, conf)| conf) != self.conf.as_ref().map(|(_, conf)| conf.clone())
            }
            Some(Name::Subnet(key)) => {
                let told = read(key, kv);
                let entry = Entry { mod_revision, lease_id: kv.lease(), told };
                let changed = self.entry(key).is_none_or(|before| before.told != entry.told);
                self.entries.insert(key.into(), entry);
                changed
            }
        }
    }

    pub(super) fn view(&self) -> View {
        let notes = self.entries.iter().filter_map(|(key, entry)| {
            let why = entry.told.as_ref().err()?.clone();
            Some(Note::Entry { key: key.clone(), why })
        });
        let conf = self.conf.as_ref().map_or_else(|| Err(self.no_conf.clone()), |(_, conf)| conf.clone());
        View {
            leases: Leases::Listed(self.leases()),
            conf: Some(conf),
            notes: notes.collect(),
            lost: None,
            history: Some(History { cluster: self.cluster, revision: self.revision, breaks: self.breaks }),
            own_until: None,
        }
    }
}

/// A lease is as old as its key, whoever has written it since.
fn read(key: &str, kv: &KeyValue) -> Result<Lease, Box<str>> {
    if kv.value().len() as u64 > LARGEST {
        return Err(format!("{} bytes are more than any lease has", kv.value().len()).into());
    }
    let lease = Lease::parse(key, kv.value(), kv.create_revision().cast_unsigned())?;
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
        format!("there is no key {key}: write the network config to it, or correct --etcd-prefix")
    })?;
    NetConf::parse_imposing(backend, text).map_err(|error| format!("key {key}: {error}"))
}
