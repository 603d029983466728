//! Leases cache: the last good leases on disk. A node starts with it after a reboot although no store is in reach. It
//! also shows that a store was emptied meanwhile. The cache may be out of date, so it is no reason to delete anything.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plan::Mac;
use plan::backend::Backend;
use plan::lease::{Lease, Leases};
use plan::netconf::NetConf;
use plan::shrink_guard::StoreHistory;
use plan::subnet::Subnet;
use plan::warning::Warning;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize, Serializer};
use tracing::warn;

use crate::files::{self, Readers};

/// Format of the file; a file of another format is ignored.
const FORMAT: u32 = 1;
/// Minimum time between two writes, so that frequent changes do not wear out the disk.
const PAUSE: Duration = Duration::from_secs(10);

/// State that one run leaves for the next, with the leases as they are read ([`ReadLeases`]) or written ([`WrittenLeases`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedState<L = ReadLeases> {
    /// MAC of the uplink; on a node with a copied disk it differs.
    pub(crate) uplink_mac: Mac,
    pub(crate) conf: NetConf,
    /// This node's pod subnets.
    pub(crate) subnet: Subnet,
    leases: L,
    /// Position of the store in its own history; `None` for a directory.
    pub(crate) history: Option<StoreHistory>,
    /// End of our lease in seconds since 1970; `None` if it has no end or the end is unknown.
    until: Option<u64>,
}

/// Leases that are read entry by entry, so that ten thousand of them are never in memory in two forms. An entry that this
/// version cannot read is left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<ParsedEntry>")]
pub(crate) struct ReadLeases(Arc<[Lease]>);

#[derive(Deserialize)]
#[serde(from = "Entry")]
struct ParsedEntry(Option<Lease>);

/// Leases that are written entry by entry, without a copy of the list.
pub(crate) struct WrittenLeases<'a> {
    pub(crate) others: &'a [Lease],
    pub(crate) own: &'a Lease,
}

/// Lease as the store's key and value: `{"key":"10.244.31.0-24","value":"{\"PublicIP\":...}","born":17,"written":17}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    key: String,
    value: String,
    born: u64,
    /// Revision or time of the last write.
    written: u64,
}

/// Content of the file. `format`, `node` and `store` are checked before `remembered` is read (docs/wire.md):
///
/// ```json
/// {"format":1,"node":"n1","store":"etcd /coreos.com/network at http://10.0.0.5:2379","remembered":{...}}
/// ```
#[derive(Serialize, Deserialize)]
struct CacheFile<T> {
    format: u32,
    node: String,
    store: String,
    remembered: T,
}

impl<'a> CachedState<WrittenLeases<'a>> {
    pub(crate) fn new(
        uplink_mac: Mac,
        conf: &NetConf,
        leases: WrittenLeases<'a>,
        history: Option<StoreHistory>,
        until: Option<SystemTime>,
    ) -> Self {
        let until =
            until.and_then(|until| until.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
        Self { uplink_mac, conf: conf.clone(), subnet: leases.own.subnet, leases, history, until }
    }
}

impl CachedState {
    /// Returns the same state with the backend type of `--backend-type`, if that is given.
    pub(crate) fn with_backend(self, backend: Option<&Backend>) -> Self {
        Self { conf: self.conf.imposing(backend), ..self }
    }

    /// Returns the remembered leases that this version can read.
    pub(crate) fn leases(&self) -> Leases {
        Leases::Remembered(self.leases.0.clone())
    }

    /// Returns our own remembered lease.
    pub(crate) fn own(&self) -> Option<Lease> {
        self.leases.0.iter().find(|lease| lease.subnet == self.subnet).cloned()
    }
}

impl From<Vec<ParsedEntry>> for ReadLeases {
    fn from(kept: Vec<ParsedEntry>) -> Self {
        Self(kept.into_iter().filter_map(|ParsedEntry(lease)| lease).collect())
    }
}

impl From<Entry> for ParsedEntry {
    fn from(Entry { key, value, born, written }: Entry) -> Self {
        let lease = Lease::parse(&key, value.as_bytes(), born).ok();
        Self(lease.map(|lease| Lease { written, ..lease }))
    }
}

impl From<&Lease> for Entry {
    fn from(lease: &Lease) -> Self {
        let (key, value) = (lease.subnet.to_string(), lease.to_json());
        Self { key, value, born: lease.born, written: lease.written }
    }
}

impl Serialize for WrittenLeases<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.others.iter().chain([self.own]).map(Entry::from))
    }
}

/// Cache file of this node and this store.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Path of the file; `None` if nothing is kept.
    path: Option<PathBuf>,
    node: String,
    store: String,
    /// True if the file may be out of date.
    stale: bool,
    written: Option<Instant>,
    /// Error of the last write, if it failed.
    fault: Option<String>,
}

impl Cache {
    /// Returns the path of the cache in `dir`; `None` if `dir` is empty. `/run/flannel/subnet.env` has
    /// `run-flannel-subnet.env.leases`. Each daemon of a node has its own subnet file, and so its own cache.
    pub(crate) fn path(dir: &Path, subnet_file: &Path) -> Option<PathBuf> {
        let name = subnet_file.to_string_lossy().trim_start_matches('/').replace('/', "-");
        (!dir.as_os_str().is_empty()).then(|| dir.join(format!("{name}.leases")))
    }

    /// Takes the node's name from `NODE_NAME`, else from the host name. `store` identifies the store.
    pub(crate) fn new(path: Option<PathBuf>, store: String) -> Self {
        let node = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
        let node = node.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
        Self { path, node, store, stale: true, written: None, fault: None }
    }

    /// Returns the state that an earlier run of this node with this store wrote. An unusable file is logged and ignored.
    pub(crate) fn read(&self) -> Option<CachedState> {
        let path = self.path.as_ref()?;
        let content = match files::read_own(path) {
            Ok(text) => self.parse(&text),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        content.inspect_err(|why| warn!("ignoring {}: {why}", path.display())).ok()
    }

    fn parse(&self, text: &[u8]) -> Result<CachedState, String> {
        let content: CacheFile<IgnoredAny> =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let CacheFile { format, node, store, .. } = content;
        if format != FORMAT {
            return Err(format!("its format is {format}, and this version knows {FORMAT}"));
        }
        if node != self.node {
            return Err(format!("it belongs to node {node}, and this node is {}", self.node));
        }
        if store != self.store {
            return Err(format!("it belongs to the store {store}, and this daemon uses {}", self.store));
        }
        let content: CacheFile<CachedState> =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let remembered = content.remembered;
        match remembered.until.and_then(|until| UNIX_EPOCH.checked_add(Duration::from_secs(until))) {
            Some(until) if until < SystemTime::now() => {
                Err("our lease in it has expired, and another node may have the subnet".into())
            }
            _ => Ok(remembered),
        }
    }

    /// Marks the file as out of date: the store's view has changed.
    pub(crate) fn mark_stale(&mut self) {
        self.stale = true;
    }

    /// Writes the cache if it is out of date, at most once per [`PAUSE`]. Returns the time of the next attempt, if one is
    /// due.
    pub(crate) fn write_if_stale<'a>(
        &mut self,
        now: Instant,
        remembered: impl FnOnce() -> CachedState<WrittenLeases<'a>>,
    ) -> Option<Instant> {
        let path = self.path.as_ref().filter(|_| self.stale)?;
        if let Some(due) = self.written.map(|at| at + PAUSE).filter(|due| *due > now) {
            return Some(due);
        }
        let (node, store) = (self.node.clone(), self.store.clone());
        let content = CacheFile { format: FORMAT, node, store, remembered: remembered() };
        let written = serde_json::to_string(&content)
            .map_err(std::io::Error::from)
            .and_then(|text| files::write(path, &text, Readers::Root));
        self.fault = written.err().map(|error| error.to_string());
        self.written = Some(now);
        self.stale = self.fault.is_some();
        self.stale.then_some(now + PAUSE)
    }

    /// Returns a warning if the file could not be written.
    pub(crate) fn warning(&self) -> Option<Warning> {
        let (path, why) = (self.path.as_ref()?, self.fault.as_ref()?);
        let path = path.display().to_string().into();
        let loss = "after a reboot without the store this node would have no network. Make room, or choose another --cache-dir";
        Some(Warning::Unwritable { path, why: why.as_str().into(), loss: loss.into() })
    }
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &[u8]) {
    let (node, store) = ("a".into(), "etcd".into());
    let cache = Cache { path: None, node, store, stale: true, written: None, fault: None };
    let _ = cache.parse(text).map(|remembered| remembered.leases());
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn lease() -> Lease {
        let value = br#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#;
        Lease::parse("10.3.7.0-24", value, 5).unwrap()
    }

    fn remembered(own: &Lease) -> CachedState<WrittenLeases<'_>> {
        let conf =
            NetConf::parse(br#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#).unwrap();
        let history = StoreHistory { cluster: 7, revision: 9, breaks: 0 };
        let (mac, until) = (Mac([2, 0, 0, 0, 0, 1]), SystemTime::now() + PAUSE);
        CachedState::new(mac, &conf, WrittenLeases { others: &[], own }, Some(history), Some(until))
    }

    fn cache(dir: &Path, store: &str) -> Cache {
        Cache::new(Cache::path(dir, Path::new("/run/flannel/subnet.env")), store.into())
    }

    #[test]
    fn the_cache_is_used_by_the_same_node_and_store_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = cache(dir.path(), "here");
        assert_eq!(kept.read(), None);
        let own = lease();
        let CachedState { uplink_mac, conf, subnet, history, until, .. } = remembered(&own);
        assert_eq!(kept.write_if_stale(Instant::now(), || remembered(&own)), None);
        assert!(dir.path().join("run-flannel-subnet.env.leases").exists());
        let leases = ReadLeases([own.clone()].into());
        let back = kept.read().unwrap();
        assert_eq!(back, CachedState { uplink_mac, conf, subnet, leases, history, until: back.until });
        assert!(until <= back.until);
        assert_eq!(back.own(), Some(own));
        assert_eq!(cache(dir.path(), "elsewhere").read(), None);
        assert_eq!(Cache { node: "another".into(), ..cache(dir.path(), "here") }.read(), None);
        let path = kept.path.clone().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format\":1", "\"format\":2")).unwrap();
        assert_eq!(kept.read(), None);
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(kept.read(), None);
    }

    #[test]
    fn changes_in_quick_succession_are_written_once_and_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kept, now, own) = (cache(dir.path(), "here"), Instant::now(), lease());
        kept.write_if_stale(now, || remembered(&own));
        let later = now + Duration::from_secs(1);
        kept.mark_stale();
        assert_eq!(kept.write_if_stale(later, || unreachable!("too soon")), Some(now + PAUSE));
        let mut asked = false;
        let ask = || {
            asked = true;
            remembered(&own)
        };
        assert_eq!(kept.write_if_stale(now + PAUSE, ask), None);
        assert!(asked);
        assert_eq!(kept.write_if_stale(now + PAUSE * 9, || unreachable!("nothing is new")), None);
    }

    #[test]
    fn a_failed_write_is_reported_and_retried() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        fs::write(&blocked, "").unwrap();
        let (mut kept, now, own) = (cache(&blocked, "here"), Instant::now(), lease());
        assert_eq!(kept.write_if_stale(now, || remembered(&own)), Some(now + PAUSE));
        assert!(kept.warning().unwrap().to_string().contains("--cache-dir"));
        fs::remove_file(&blocked).unwrap();
        assert_eq!(kept.write_if_stale(now + PAUSE, || remembered(&own)), None);
        assert_eq!(kept.warning(), None);
    }
}
