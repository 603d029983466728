//! The store that a lab's daemons share: writes the network config, and reads, adds and removes leases. A directory and a real
//! etcd have the same methods, so that a test is written once for both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::etcd::{Etcd, PREFIX};

/// The store of one lab.
#[derive(Clone, Debug)]
pub struct Store {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// A directory that mirrors etcd's tree: `config` and `subnets/10.244.34.0-24`.
    Dir(PathBuf),
    Etcd(Arc<Etcd>),
}

impl Store {
    pub(crate) fn directory(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("subnets")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Self { place: Place::Dir(dir) }
    }

    pub(crate) fn etcd(etcd: Arc<Etcd>) -> Self {
        Self { place: Place::Etcd(etcd) }
    }

    /// Returns the directory. Panics if the store is etcd.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Dir(dir) => dir,
            Place::Etcd(_) => panic!("this lab's store is etcd: it has no directory"),
        }
    }

    /// Returns the daemon's flags for this store.
    pub(crate) fn flags(&self) -> Vec<String> {
        match &self.place {
            Place::Dir(dir) => vec![format!("--store={}", dir.display())],
            Place::Etcd(etcd) => etcd.flags(),
        }
    }

    /// Returns the location of the store for people: the directory, or etcd's URL.
    pub fn place(&self) -> String {
        match &self.place {
            Place::Dir(dir) => dir.display().to_string(),
            Place::Etcd(etcd) => etcd.endpoint(),
        }
    }

    /// Sets the network config, such as `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`.
    pub fn config(&self, json: &str) {
        self.put("config", json);
    }

    /// Returns every lease, as JSON, by its key, such as `10.244.34.0-24`.
    pub fn leases(&self) -> BTreeMap<String, String> {
        match &self.place {
            Place::Dir(dir) => files(&dir.join("subnets")),
            Place::Etcd(etcd) => etcd.leases().into_iter().map(|(key, entry)| (key, entry.value)).collect(),
        }
    }

    /// Writes a lease as JSON, by its key such as `10.244.34.0-24`.
    pub fn put_lease(&self, name: &str, json: &str) {
        self.put(&format!("subnets/{name}"), json);
    }

    /// Writes many leases; thousands take about a second.
    pub fn put_leases(&self, leases: &[(String, String)]) {
        match &self.place {
            Place::Dir(_) => leases.iter().for_each(|(name, json)| self.put_lease(name, json)),
            Place::Etcd(etcd) => {
                let key = |name: &str| format!("{PREFIX}/subnets/{name}");
                etcd.put_all(
                    &leases.iter().map(|(name, json)| (key(name), json.clone())).collect::<Vec<_>>(),
                );
            }
        }
    }

    /// Removes a lease. Panics if it does not exist.
    pub fn remove_lease(&self, name: &str) {
        match &self.place {
            Place::Dir(dir) => {
                let path = dir.join("subnets").join(name);
                fs::remove_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            }
            Place::Etcd(etcd) => etcd.delete(&format!("{PREFIX}/subnets/{name}")),
        }
    }

    fn put(&self, key: &str, value: &str) {
        match &self.place {
            Place::Dir(dir) => put_file(dir, key, value),
            Place::Etcd(etcd) => etcd.put(&format!("{PREFIX}/{key}"), value),
        }
    }
}

fn files(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    let shown = named.filter(|(name, _)| !name.starts_with('.'));
    shown.filter_map(|(name, path)| Some((name, fs::read_to_string(path).ok()?))).collect()
}

/// Writes a key so that it appears at once and complete, as a key in etcd does.
fn put_file(dir: &Path, key: &str, value: &str) {
    // The new file is in the directory itself, which may be a disk of its own.
    let new = dir.join(".put");
    let put = fs::write(&new, value).and_then(|()| fs::rename(&new, dir.join(key)));
    put.unwrap_or_else(|e| panic!("store key {key}: {e}"));
}
