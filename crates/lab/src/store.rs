//! The shared directory that stands for etcd: writes the network's configuration, reads, plants and removes leases.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A directory that mirrors etcd's tree: `config` and `subnets/10.244.34.0-24`.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    pub(crate) fn create(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("subnets")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Sets the network's configuration, such as `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`.
    pub fn config(&self, json: &str) {
        self.put("config", json);
    }

    /// Every lease: file name -> JSON.
    pub fn leases(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.dir.join("subnets")).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
        let shown = named.filter(|(name, _)| !name.starts_with('.'));
        shown.filter_map(|(name, path)| Some((name, fs::read_to_string(path).ok()?))).collect()
    }

    pub fn put_lease(&self, name: &str, json: &str) {
        self.put(&format!("subnets/{name}"), json);
    }

    pub fn remove_lease(&self, name: &str) {
        let path = self.dir.join("subnets").join(name);
        fs::remove_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Appears at once and whole, as a key in etcd does.
    fn put(&self, key: &str, value: &str) {
        // In the directory itself, which may be a disk of its own.
        let new = self.dir.join(".put");
        let put = fs::write(&new, value).and_then(|()| fs::rename(&new, self.dir.join(key)));
        put.unwrap_or_else(|e| panic!("store key {key}: {e}"));
    }
}
