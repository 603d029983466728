//! The directory's leases in memory, re-read file by file: a change among ten thousand leases costs one file.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use plan::input::Leases;
use plan::lease::Lease;
use plan::note::Note;

use super::{HIDDEN, is_no_file, read};
use crate::view::View;

#[derive(Debug)]
pub(super) struct Listing {
    subnets: PathBuf,
    entries: BTreeMap<Box<str>, Entry>,
    changed: bool,
}

#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    /// As old as its file was when it was first seen here.
    born: u64,
    /// The last one that was read under this key.
    lease: Option<Lease>,
    /// What is wrong with what stands there now.
    note: Option<Note>,
}

/// Tells an unchanged file: a rename brings a new inode, and nobody can set the time of a change.
type Stamp = (u64, i64, i64, u64);

/// Of no file.
const NO_STAMP: Stamp = (0, 0, 0, 0);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.size())
}

/// Nanoseconds, in the order of the file's times whatever they say: before 1970 is older than after.
fn age(metadata: &Metadata) -> u64 {
    let since_1970 = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    since_1970.cast_unsigned() ^ (1 << 63)
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
        names.iter().try_for_each(|name| self.look_at(name))
    }

    /// Looks at one file. What cannot be looked at is not gone.
    pub(super) fn look_at(&mut self, name: &str) -> io::Result<()> {
        if name.starts_with(HIDDEN) {
            return Ok(());
        }
        let path = self.subnets.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Of a directory that is moved away while it is read, no file is gone.
                fs::metadata(&self.subnets)?;
                self.changed |= self.entries.remove(name).is_some();
                return Ok(());
            }
            metadata => metadata?,
        };
        let stamp = stamp(&metadata);
        let before = self.entries.get(name);
        if before.is_some_and(|entry| entry.stamp == stamp) {
            return Ok(());
        }
        let known = before.and_then(|entry| entry.lease.clone());
        // As old as when it was first seen here: a lease does not become another one when a clock jumps or it is rewritten.
        let born = before.map_or_else(|| age(&metadata), |entry| entry.born);
        let key = name.into();
        let entry = match read(&path).map(|content| Lease::parse(name, &content, born)) {
            Ok(Ok(lease)) => Entry { stamp, born, lease: Some(lease), note: None },
            Ok(Err(why)) => {
                Entry { stamp, born, lease: None, note: Some(Note::Entry { key, why: why.into() }) }
            }
            Err(error) => {
                let why = error.to_string().into();
                match known.filter(|_| !is_no_file(&error)) {
                    Some(lease) => Entry {
                        stamp: NO_STAMP,
                        born,
                        lease: Some(lease),
                        note: Some(Note::Stale { key, why }),
                    },
                    None => Entry { stamp, born, lease: None, note: Some(Note::Entry { key, why }) },
                }
            }
        };
        self.changed |=
            before.is_none_or(|before| (&before.lease, &before.note) != (&entry.lease, &entry.note));
        self.entries.insert(name.into(), entry);
        Ok(())
    }

    /// Has anything changed since this was asked last?
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        self.entries.values().filter_map(|entry| entry.lease.clone()).collect()
    }

    pub(super) fn view(&self) -> View {
        let notes = self.entries.values().filter_map(|entry| entry.note.clone());
        View { leases: Leases::Listed(self.leases()), notes: notes.collect(), ..View::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_gone_only_while_its_directory_is_there() {
        let root = tempfile::tempdir().unwrap();
        let (subnets, away) = (root.path().join("subnets"), root.path().join("away"));
        fs::create_dir(&subnets).unwrap();
        let (name, lease) = ("10.3.7.0-24", r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw"}"#);
        fs::write(subnets.join(name), lease).unwrap();
        let mut listing = Listing::new(subnets.clone());
        listing.refresh().unwrap();
        assert!(listing.take_changed());
        fs::rename(&subnets, &away).unwrap();
        assert_eq!(listing.look_at(name).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!((listing.leases().len(), listing.take_changed()), (1, false));
        fs::rename(&away, &subnets).unwrap();
        fs::remove_file(subnets.join(name)).unwrap();
        listing.look_at(name).unwrap();
        assert_eq!((listing.leases().len(), listing.take_changed()), (0, true));
    }
}
