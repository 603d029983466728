//! The directory's leases in memory, updated file by file: a change among ten thousand leases costs one read.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plan::lease::{Lease, Leases};
use plan::subnet::Subnet;
use plan::subnet_alloc::LengthMatch;
use plan::warning::Warning;

use super::{HIDDEN, is_not_a_file, read};
use crate::bounds::{self, Bounds, MAX_NAMED, Scope};
use crate::view::View;

#[derive(Debug)]
pub(super) struct Listing {
    subnets: PathBuf,
    /// Entries, sorted by name; a `BTreeMap` would take twice the memory.
    entries: Vec<Entry>,
    bounds: Bounds,
    /// Our lease's file, until a look at the directory misses it.
    own: Option<Own>,
    /// True if the leases or warnings have changed since `take_changed`.
    changed: bool,
    /// Leases of `entries` as they were given out last; `None` if they may have changed since.
    shared: Option<Arc<[Lease]>>,
}

/// Name of our lease's file, and its age as an earlier look found it. A file that is overwritten looks younger.
pub(super) type Own = (Box<str>, u64);

#[derive(Debug)]
struct Entry {
    name: Box<str>,
    stamp: Stamp,
    /// Modification time of the file when it was first seen, as returned by [`age`].
    born: u64,
    length_match: LengthMatch,
    /// Last lease that was read from the file.
    lease: Option<Lease>,
    /// Warning about the file's current content.
    warning: Option<Box<Warning>>,
}

/// Inode, change time (seconds and nanoseconds) and size of a file, by which a change is detected. A rename brings a new inode,
/// and the change time cannot be set.
type Stamp = (u64, i64, i64, u64);

/// Stamp that no file has.
const NO_STAMP: Stamp = (0, 0, 0, 0);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.size())
}

/// Returns the modification time in nanoseconds, offset so that times before 1970 sort before later ones.
fn age(metadata: &Metadata) -> u64 {
    let since_1970 = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    since_1970.cast_unsigned() ^ (1 << 63)
}

impl Entry {
    /// Reads the file. If it cannot be read at present, its previous lease stays, with a warning.
    fn read(name: &str, path: &Path, metadata: &Metadata, before: Option<&Self>, known: Option<u64>) -> Self {
        let stamp = stamp(metadata);
        // The age stays that of the first read. A rewrite or a jump of the clock does not make a new lease.
        let born = before.map(|entry| entry.born).or(known).unwrap_or_else(|| age(metadata));
        let key: Box<str> = name.into();
        let entry = |stamp, lease, warning: Option<Warning>| Self {
            name: name.into(),
            stamp,
            born,
            length_match: before.map_or(LengthMatch::Own, |entry| entry.length_match),
            lease,
            warning: warning.map(Box::new),
        };
        match read(path).map(|content| bounds::read(name, &content, born)) {
            Ok(Ok(lease)) => entry(stamp, Some(Lease { written: age(metadata), ..lease }), None),
            Ok(Err(why)) => entry(stamp, None, Some(Warning::Entry { key, why })),
            Err(error) => {
                let why = error.to_string().into();
                let known = before.and_then(|entry| entry.lease.clone()).filter(|_| !is_not_a_file(&error));
                match known {
                    Some(lease) => entry(NO_STAMP, Some(lease), Some(Warning::Stale { key, why })),
                    None => entry(stamp, None, Some(Warning::Entry { key, why })),
                }
            }
        }
    }
}

impl Listing {
    pub(super) fn new(subnets: PathBuf, scope: Option<Scope>, own: Option<Own>) -> Self {
        let (entries, bounds) = (Vec::new(), Bounds::new(scope));
        Self { subnets, entries, bounds, own, changed: true, shared: None }
    }

    /// Checks every file that may be a lease, and reads new and changed ones. It judges other files by their names.
    ///
    /// Returns an error if the directory or a file cannot be examined.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        let names = self.names()?;
        let known = self.entries.len();
        let is_there = |there: &str| names.binary_search_by(|name| name.as_str().cmp(there)).is_ok();
        let Self { entries, bounds, .. } = self;
        entries.retain(|entry| {
            let stays = is_there(&entry.name);
            if !stays {
                bounds.release(entry.length_match);
            }
            stays
        });
        self.own = self.own.take().filter(|(own, _)| is_there(own));
        if self.entries.len() != known {
            self.change();
        }
        names.iter().try_for_each(|name| self.refresh_file(name))
    }

    /// Returns the sorted names of all files that may be leases, and counts the others. Files that are named already stay
    /// named, so that the report does not change with the order of the directory.
    fn names(&mut self) -> io::Result<Vec<String>> {
        let mut junk: BTreeMap<(bool, Box<str>), Box<str>> = BTreeMap::new();
        let (mut names, mut more) = (Vec::new(), 0);
        let mut counts = self.bounds.begin();
        for file in fs::read_dir(&self.subnets)? {
            let file = file?.file_name();
            let Some(name) = file.to_str().filter(|name| !name.starts_with(HIDDEN)) else { continue };
            let is_known = self.entries.binary_search_by(|entry| (*entry.name).cmp(name)).is_ok();
            let expected = if is_known { Ok(()) } else { self.bounds.expect(name, &mut counts) };
            let Err(why) = expected else {
                names.push(name.to_owned());
                continue;
            };
            junk.insert((!self.bounds.names(name), name.into()), why);
            if junk.len() > MAX_NAMED {
                junk.pop_last();
                more += 1;
            }
        }
        let junk = junk.into_iter().map(|((_, name), why)| (name, why)).collect();
        if self.bounds.set_junk(junk, more) {
            self.change();
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Sets the definition of a lease for all further looks.
    pub(super) fn limit(&mut self, scope: Option<Scope>) {
        self.bounds.set_scope(scope);
    }

    /// Returns true if leases were left out for lack of room and there is room again.
    pub(super) fn has_room_again(&self) -> bool {
        self.bounds.has_room_again()
    }

    /// Checks one file and reads it if it has changed. A file that cannot be examined is an error and stays in the listing.
    pub(super) fn refresh_file(&mut self, name: &str) -> io::Result<()> {
        if name.starts_with(HIDDEN) {
            return Ok(());
        }
        let path = self.subnets.join(name);
        let at = self.entries.binary_search_by(|entry| (*entry.name).cmp(name));
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A file is missing only if its directory exists; the directory may be moved away at this moment.
                fs::metadata(&self.subnets)?;
                if let Ok(at) = at {
                    self.bounds.release(self.entries.remove(at).length_match);
                    self.change();
                } else if self.bounds.unname(name) {
                    self.change();
                }
                self.own = self.own.take().filter(|(own, _)| **own != *name);
                return Ok(());
            }
            metadata => metadata?,
        };
        let before = at.ok().and_then(|at| self.entries.get(at));
        if before.is_some_and(|entry| entry.stamp == stamp(&metadata)) {
            return Ok(());
        }
        if before.is_none()
            && let Err(why) = self.bounds.expect(name, &mut self.bounds.expected())
        {
            self.name_junk(name, why);
            return Ok(());
        }
        let own = self.own.as_ref().filter(|(own, _)| **own == *name);
        let entry = Entry::read(name, &path, &metadata, before, own.map(|(_, born)| *born));
        let is_news =
            before.is_none_or(|before| (&before.lease, &before.warning) != (&entry.lease, &entry.warning));
        match at {
            Ok(at) => self.entries[at] = entry,
            Err(at) => match self.bounds.admit(name, entry.lease.as_ref()) {
                Ok(length_match) => self.entries.insert(at, Entry { length_match, ..entry }),
                Err(why) => {
                    self.name_junk(name, why);
                    return Ok(());
                }
            },
        }
        if is_news {
            self.change();
        }
        Ok(())
    }

    /// Names a file that is no lease, if there is room; the next look at all files counts it.
    fn name_junk(&mut self, name: &str, why: Box<str>) {
        if !self.bounds.names(name) && self.bounds.junk_counts().0 < MAX_NAMED {
            self.bounds.add_junk(name, why);
            self.change();
        }
    }

    fn change(&mut self) {
        (self.changed, self.shared) = (true, None);
    }

    /// Returns true if anything has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Returns the leases, by file name. It is the same list until one changes.
    pub(super) fn leases(&mut self) -> Arc<[Lease]> {
        let leases = self.entries.iter().filter_map(|entry| entry.lease.clone());
        self.shared.get_or_insert_with(|| leases.collect()).clone()
    }

    /// Returns the lease of a subnet.
    pub(super) fn lease(&self, subnet: &Subnet) -> Option<&Lease> {
        self.entries.iter().find_map(|entry| entry.lease.as_ref().filter(|lease| lease.subnet == *subnet))
    }

    pub(super) fn view(&mut self) -> View {
        let leases = Leases::Listed(self.leases());
        let warnings = self.entries.iter().filter_map(|entry| entry.warning.as_deref());
        View { leases, warnings: self.bounds.warnings(warnings, Warning::clone), ..View::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_deleted_only_while_its_directory_exists() {
        let root = tempfile::tempdir().unwrap();
        let (subnets, away) = (root.path().join("subnets"), root.path().join("away"));
        fs::create_dir(&subnets).unwrap();
        let (name, lease) = ("10.3.7.0-24", r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw"}"#);
        fs::write(subnets.join(name), lease).unwrap();
        let mut listing = Listing::new(subnets.clone(), None, None);
        listing.refresh().unwrap();
        assert!(listing.take_changed());
        fs::rename(&subnets, &away).unwrap();
        assert_eq!(listing.refresh_file(name).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!((listing.leases().len(), listing.take_changed()), (1, false));
        fs::rename(&away, &subnets).unwrap();
        fs::remove_file(subnets.join(name)).unwrap();
        listing.refresh_file(name).unwrap();
        assert_eq!((listing.leases().len(), listing.take_changed()), (0, true));
    }

    /// The age that an earlier run knew counts for the file that this run finds. A file made later has its own.
    #[test]
    fn our_lease_has_the_age_that_an_earlier_run_knew_until_it_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let (name, text) = ("10.3.7.0-24", r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw"}"#);
        let path = root.path().join(name);
        fs::write(&path, text).unwrap();
        let mut listing = Listing::new(root.path().to_owned(), None, Some((name.into(), 7)));
        listing.refresh().unwrap();
        assert_eq!(listing.leases()[0].born, 7);
        fs::remove_file(&path).unwrap();
        listing.refresh_file(name).unwrap();
        fs::write(&path, text).unwrap();
        listing.refresh().unwrap();
        assert!(listing.leases()[0].born > 7);
    }

    #[test]
    fn the_list_is_shared_until_a_lease_changes() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let lease = r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw"}"#;
            fs::write(root.path().join(name), lease).unwrap();
        };
        write("10.3.7.0-24");
        let mut listing = Listing::new(root.path().to_owned(), None, None);
        listing.refresh().unwrap();
        let first = listing.leases();
        listing.refresh().unwrap();
        assert!(Arc::ptr_eq(&first, &listing.leases()));
        write("10.3.8.0-24");
        listing.refresh().unwrap();
        assert_eq!((first.len(), listing.leases().len()), (1, 2));
    }
}
