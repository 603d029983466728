//! The directory's leases in memory, re-read file by file: a change among ten thousand leases costs one file.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plan::input::Leases;
use plan::lease::Lease;
use plan::note::Note;

use super::{HIDDEN, is_no_file, read};
use crate::view::View;

#[derive(Debug)]
pub(super) struct Listing {
    subnets: PathBuf,
    /// By name; a tree of so many would take twice the memory.
    entries: Vec<Entry>,
    changed: bool,
}

#[derive(Debug)]
struct Entry {
    name: Box<str>,
    stamp: Stamp,
    /// As old as its file was when it was first seen here.
    born: u64,
    /// The last one that was read under this key.
    lease: Option<Lease>,
    /// What is wrong with what stands there now.
    note: Option<Box<Note>>,
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

impl Entry {
    /// What stands in that file now; of one that cannot be read for the moment, what stood there `before`.
    fn read(name: &str, path: &Path, metadata: &Metadata, before: Option<&Self>) -> Self {
        let stamp = stamp(metadata);
        // As old as when it was first seen here: a lease does not become another one when a clock jumps or it is rewritten.
        let born = before.map_or_else(|| age(metadata), |entry| entry.born);
        let key: Box<str> = name.into();
        let entry = |stamp, lease, note: Option<Note>| Self {
            name: name.into(),
            stamp,
            born,
            lease,
            note: note.map(Box::new),
        };
        match read(path).map(|content| Lease::parse(name, &content, born)) {
            Ok(Ok(lease)) => entry(stamp, Some(Lease { written: age(metadata), ..lease }), None),
            Ok(Err(why)) => entry(stamp, None, Some(Note::Entry { key, why: why.into() })),
            Err(error) => {
                let why = error.to_string().into();
                let known = before.and_then(|entry| entry.lease.clone()).filter(|_| !is_no_file(&error));
                match known {
                    Some(lease) => entry(NO_STAMP, Some(lease), Some(Note::Stale { key, why })),
                    None => entry(stamp, None, Some(Note::Entry { key, why })),
                }
            }
        }
    }
}

impl Listing {
    pub(super) fn new(subnets: PathBuf) -> Self {
        Self { subnets, entries: Vec::new(), changed: true }
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
        self.entries.retain(|entry| names.binary_search_by(|name| name.as_str().cmp(&entry.name)).is_ok());
        self.changed |= self.entries.len() != known;
        names.iter().try_for_each(|name| self.look_at(name))
    }

    /// Looks at one file. What cannot be looked at is not gone.
    pub(super) fn look_at(&mut self, name: &str) -> io::Result<()> {
        if name.starts_with(HIDDEN) {
            return Ok(());
        }
        let path = self.subnets.join(name);
        let at = self.entries.binary_search_by(|entry| (*entry.name).cmp(name));
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Of a directory that is moved away while it is read, no file is gone.
                fs::metadata(&self.subnets)?;
                if let Ok(at) = at {
                    self.entries.remove(at);
                    self.changed = true;
                }
                return Ok(());
            }
            metadata => metadata?,
        };
        let before = at.ok().and_then(|at| self.entries.get(at));
        if before.is_some_and(|entry| entry.stamp == stamp(&metadata)) {
            return Ok(());
        }
        let entry = Entry::read(name, &path, &metadata, before);
        self.changed |=
            before.is_none_or(|before| (&before.lease, &before.note) != (&entry.lease, &entry.note));
        match at {
            Ok(at) => self.entries[at] = entry,
            Err(at) => self.entries.insert(at, entry),
        }
        Ok(())
    }

    /// Has anything changed since this was asked last?
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        self.entries.iter().filter_map(|entry| entry.lease.clone()).collect()
    }

    pub(super) fn view(&self) -> View {
        let notes = self.entries.iter().filter_map(|entry| entry.note.as_deref().cloned());
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
