//! The directory's leases in memory, re-read file by file: a change among ten thousand leases costs one file.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use plan::input::Leases;
use plan::lease::Lease;
use plan::note::Note;

use super::{HIDDEN, read};
use crate::view::View;

pub(super) struct Listing {
    subnets: PathBuf,
    entries: BTreeMap<Box<str>, Entry>,
    changed: bool,
}

struct Entry {
    stamp: Stamp,
    /// Or why it is none.
    lease: Result<Lease, Box<str>>,
}

/// Tells an unchanged file: a rename brings a new inode, a rewrite a new time.
type Stamp = (u64, i64, i64, u64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size())
}

impl Listing {
    pub(super) fn new(subnets: PathBuf) -> Self {
        Self { subnets, entries: BTreeMap::new(), changed: true }
    }

    /// Looks at every file, and reads those that are new or changed.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.subnets)? {
            if let Some(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        let known = self.entries.len();
        self.entries.retain(|name, _| names.binary_search_by(|other| other.as_str().cmp(name)).is_ok());
        self.changed |= self.entries.len() != known;
        names.iter().for_each(|name| self.look_at(name));
        Ok(())
    }

    /// Looks at one file.
    pub(super) fn look_at(&mut self, name: &str) {
        if name.starts_with(HIDDEN) {
            return;
        }
        let path = self.subnets.join(name);
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            self.changed |= self.entries.remove(name).is_some();
            return;
        };
        let stamp = stamp(&metadata);
        if self.entries.get(name).is_some_and(|entry| entry.stamp == stamp) {
            return;
        }
        let born = (metadata.mtime() as u64).wrapping_mul(1_000_000_000) + metadata.mtime_nsec() as u64;
        let content = read(&path).map_err(|error| error.to_string());
        let lease = content.and_then(|content| Lease::parse(name, &content, born)).map_err(Into::into);
        self.entries.insert(name.into(), Entry { stamp, lease });
        self.changed = true;
    }

    /// Has anything changed since this was asked last?
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        self.entries.values().filter_map(|entry| entry.lease.clone().ok()).collect()
    }

    pub(super) fn view(&self) -> View {
        let notes = self.entries.iter().filter_map(|(key, entry)| {
            let why = entry.lease.as_ref().err()?.clone();
            Some(Note::Entry { key: key.clone(), why })
        });
        View { leases: Leases::Listed(self.leases()), conf: None, notes: notes.collect(), lost: None }
    }
}
