//! Leases in a directory of this machine: `config` and `subnets/<key>`, with the tree and JSON of etcd. Sample:
//! `subnets/10.3.7.0-24` with the content `{"PublicIP":"192.0.2.9","BackendType":"host-gw"}`.
//!
//! NFS is not supported: the store relies on flock, atomic rename and inotify.

mod listing;

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};
use plan::backend::Backend;
use plan::lease::Lease;
use plan::netconf::NetConf;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::bounds::Scope;
use crate::claim::{AcceptableSubnet, Claim};
use crate::stats::ConnectionStats;
use crate::view::{MAX_BYTES, StoreError, View};
use listing::{Listing, Own};

/// Time between two reads of the whole directory, since the event queue of inotify may overflow.
const RELIST_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two attempts while the directory cannot be read.
const RETRY: Duration = Duration::from_secs(1);
/// Maximum time that a running node waits for the directory's lock: enough for a write or two.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);
/// Maximum time that a node without a lease waits for the directory's lock: enough for the writes of many nodes.
const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of events that are handled together.
const BATCH: usize = 1024;
/// Time between two attempts to take the lock.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Open flags that follow no symbolic link and do not wait for a pipe's other end.
const OPEN_FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;
/// First character of names that are never leases.
const HIDDEN: char = '.';

/// A lease directory.
#[derive(Clone, Debug)]
pub struct Dir {
    root: PathBuf,
    /// Backend that replaces the one in the config.
    backend: Option<Backend>,
    stats: Arc<ConnectionStats>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Listing that was read to take our lease at the start. The watch begins with it and reads only later changes.
    read: Option<Listing>,
    /// Our lease's file, as far as it is known.
    own: Option<Own>,
    /// Definition of a lease. The networks of the config in force do not change while the daemon runs.
    scope: Option<Scope>,
}

impl Dir {
    /// Creates a store of this directory without accessing it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), backend: None, stats: Arc::default(), shared: Arc::default() }
    }

    /// Returns this store with a backend type that overrides the config's; `None` overrides nothing.
    pub fn with_backend(self, backend: Option<Backend>) -> Self {
        Self { backend, ..self }
    }

    fn subnets(&self) -> PathBuf {
        self.root.join("subnets")
    }

    /// Returns a text that identifies the store, for messages and for the cache, e.g. `directory /var/lib/twill/store`.
    pub fn identity(&self) -> String {
        let path = std::path::absolute(&self.root).unwrap_or_else(|_| self.root.clone());
        format!("directory {}", path.display())
    }

    /// Returns the counters about the directory.
    pub fn stats(&self) -> Arc<ConnectionStats> {
        self.stats.clone()
    }

    /// Reads all leases of the config's networks once.
    ///
    /// Returns an error if the directory cannot be read.
    pub fn leases(&self, conf: &NetConf) -> Result<Arc<[Lease]>, StoreError> {
        let mut listing = Listing::new(self.subnets(), Some(Scope::of(conf)), None);
        listing.refresh().map_err(|error| StoreError::new(self.subnets().display(), error))?;
        Ok(listing.leases())
    }

    /// Reads the network config.
    ///
    /// Returns an error if the file cannot be read or is invalid.
    pub fn net_conf(&self) -> Result<NetConf, StoreError> {
        let path = self.root.join("config");
        // The config may be a symbolic link, as to a ConfigMap; only the administrator writes there.
        let text =
            read_with(libc::O_NONBLOCK, &path).map_err(|error| StoreError::new(path.display(), error))?;
        NetConf::parse_imposing(self.backend.as_ref(), &text)
            .map_err(|error| StoreError::new(path.display(), error))
    }

    /// Writes our lease, unless it stands there already as it should. It holds the directory's lock, writes a
    /// temporary file and renames it. A kill at any moment leaves no partial lease.
    ///
    /// Returns an error if the directory cannot be read or written, or if no acceptable subnet is available.
    pub fn acquire(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let subnets = self.subnets();
        // The directory itself is never created. A missing one may be a late mount, not a new store.
        match fs::create_dir(&subnets) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(StoreError::new(subnets.display(), error));
            }
            _ => {}
        }
        let _lock = self.lock(&claim.choice)?;
        let mut listing = Listing::new(subnets.clone(), Some(claim.scope()), own(claim));
        listing.refresh().map_err(|error| StoreError::new(subnets.display(), error))?;
        let chosen = claim.choose_lease(&listing.leases()).map_err(|why| why.at(subnets.display()))?;
        let path = subnets.join(chosen.lease.subnet.to_string());
        let stale: Vec<_> = chosen.stale.iter().map(|subnet| subnets.join(subnet.to_string())).collect();
        let json = chosen.lease.to_json();
        // A peer that sees no lease of ours, even briefly, withdraws its routes to our pods. So a lease that does not fit gets
        // its new content first, and then its new name in one step.
        let place = stale.last().unwrap_or(&path);
        if read(place).ok().as_deref() != Some(json.as_bytes()) {
            write_atomically(&subnets, place, json.as_bytes())
                .map_err(|error| StoreError::new(place.display(), error))?;
        }
        for old in &stale {
            info!(path = %old.display(), "moving our lease: it does not fit the network config");
            rename(&subnets, old, &path).map_err(|error| StoreError::new(old.display(), error))?;
        }
        info!(subnet = %chosen.lease.subnet, origin = ?chosen.origin, "our lease is in the store");
        let lease = chosen.lease;
        listing
            .refresh_file(&lease.subnet.to_string())
            .map_err(|error| StoreError::new(path.display(), error))?;
        let lease = listing
            .lease(&lease.subnet)
            .filter(|there| there.has_same_data(&lease))
            .cloned()
            .unwrap_or(lease);
        if let AcceptableSubnet::Any { .. } = claim.choice {
            self.shared().read = Some(listing);
        }
        Ok(lease)
    }

    /// Records that this lease is ours, and that the networks of this config define which files are leases.
    pub fn hold(&self, lease: &Lease, conf: &NetConf) {
        let mut shared = self.shared();
        shared.own = own_file(lease);
        shared.scope = Some(Scope { own: Some(lease.subnet), ..Scope::of(conf) });
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panic while the lock was held left complete values.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock of the directory. A node without a lease waits for [`LONG_PATIENCE`], then may go on with its
    /// leases cache. A running node waits for [`LOCK_TIMEOUT`]. Many nodes may have to write at once, and no event would
    /// follow the last write.
    fn lock(&self, choice: &AcceptableSubnet) -> Result<File, StoreError> {
        let path = self.root.join(".lock");
        let patience = match choice {
            AcceptableSubnet::Any { .. } => LONG_PATIENCE,
            AcceptableSubnet::Only(_) => LOCK_TIMEOUT,
        };
        let locked = open_lock(&path).and_then(|file| lock_with_timeout(&file, patience).map(|()| file));
        locked.map_err(|error| StoreError::new(path.display(), error))
    }

    /// Keeps the view up to date and never returns. While the directory cannot be read, the view keeps the last good leases.
    pub async fn watch(self, view: watch::Sender<View>) {
        let listing = Arc::new(Mutex::new(self.listing()));
        loop {
            let Err(error) = self.follow(&listing, &view).await;
            self.stats.count_restart();
            let why = error.to_string();
            if view.borrow().lost.as_ref() != Some(&why) {
                warn!("store is lost; the last known leases stay in force: {why}");
                view.send_modify(|view| view.lost = Some(why));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Returns the listing with which the watch begins.
    fn listing(&self) -> Listing {
        let mut shared = self.shared();
        let (scope, own) = (shared.scope.clone(), shared.own.clone());
        match shared.read.take() {
            Some(mut read) => {
                read.limit(scope);
                read
            }
            None => Listing::new(self.subnets(), scope, own),
        }
    }

    /// Follows the directory until an error.
    async fn follow(
        &self,
        listing: &Arc<Mutex<Listing>>,
        view: &watch::Sender<View>,
    ) -> Result<std::convert::Infallible, StoreError> {
        let subnets = self.subnets();
        let lost = |error: io::Error| StoreError::new(subnets.display(), error);
        let mut events = self.events()?;
        let mut changes = DirChanges { all: true, ..DirChanges::default() };
        loop {
            if changes.moved {
                events = self.events()?;
            }
            let (is_list, is_back) = (changes.moved || changes.all, view.borrow().lost.is_some());
            let read = run_blocking(listing, move |listing| {
                changes.read(listing)?;
                Ok((listing.take_changed() || is_back).then(|| listing.view()))
            });
            let new = read.await.map_err(lost)?;
            if is_list {
                self.stats.count_list();
            }
            self.stats.record_message();
            self.publish(new, view);
            changes = DirChanges::wait(&mut events).await.map_err(lost)?;
        }
    }

    /// Publishes a new view, if there is one, with the config.
    fn publish(&self, new: Option<View>, view: &watch::Sender<View>) {
        let conf = Some(self.net_conf().map_err(|error| error.to_string()));
        if view.borrow().lost.is_some() {
            info!("store is back");
        }
        match new {
            Some(new) => _ = view.send_replace(View { conf, ..new }),
            None => {
                view.send_if_modified(|view| {
                    let differs = view.conf != conf;
                    view.conf = conf;
                    differs
                });
            }
        }
    }

    /// Starts to watch the directory and its `subnets`.
    fn events(&self) -> Result<EventStream<[u8; 4096]>, StoreError> {
        let changed = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB;
        let gone = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let refused = |path: &Path, error| StoreError::new(path.display(), explain_inotify_limit(error));
        let inotify = Inotify::init().map_err(|error| refused(&self.root, error))?;
        for dir in [self.subnets(), self.root.clone()] {
            inotify.watches().add(&dir, changed | gone).map_err(|error| refused(&dir, error))?;
        }
        inotify.into_event_stream([0; 4096]).map_err(|error| refused(&self.root, error))
    }
}

/// Returns our lease's file for the listing from which a claim is chosen. While the daemon runs, the claim says whether
/// the file was there.
fn own(claim: &Claim) -> Option<Own> {
    let was_there = |subnet| claim.listed.iter().any(|lease| lease.subnet == subnet);
    let held = claim.requester.held.as_ref().filter(|held| match claim.choice {
        AcceptableSubnet::Any { .. } => true,
        AcceptableSubnet::Only(_) => was_there(held.subnet),
    });
    held.and_then(own_file)
}

/// Returns the name and age of a lease's file, if the age is known.
fn own_file(lease: &Lease) -> Option<Own> {
    (lease.born > 0).then(|| (lease.subnet.to_string().into(), lease.born))
}

/// Opens the lock file, and creates it if it is missing. A foreign file in its place is removed first. Other users may
/// not even read it, since a process that can open a file can lock it.
fn open_lock(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_dir() && !is_ours(&there)) {
        warn!("replacing {}, which is not the lock file of a daemon", path.display());
        fs::remove_file(path)?;
    }
    let mut options = File::options();
    let file = options.write(true).create(true).mode(0o600).custom_flags(OPEN_FLAGS).open(path)?;
    let metadata = file.metadata()?;
    if !is_ours(&metadata) {
        return Err(io::Error::other("it is no regular file of root or of this daemon's user"));
    }
    // An earlier version let everybody read it.
    if metadata.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Returns true if only root or our own user can have made the file.
fn is_ours(file: &Metadata) -> bool {
    file.is_file() && file.nlink() == 1 && [0, rustix::process::geteuid().as_raw()].contains(&file.uid())
}

/// Tries to take the lock until the time is over.
fn lock_with_timeout(file: &File, patience: Duration) -> io::Result<()> {
    let end = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(LOCK_POLL_INTERVAL),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other(
                    "another process holds this lock; retrying. If it stays locked, end the process that `fuser` names",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
}

/// Runs `work` on the listing where it may wait for the disk. The watch shares its thread with the servers.
async fn run_blocking<T: Send + 'static>(
    listing: &Arc<Mutex<Listing>>,
    work: impl FnOnce(&mut Listing) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let listing = listing.clone();
    // A panic while the lock was held left a listing that the next look corrects.
    let work = move || work(&mut listing.lock().unwrap_or_else(PoisonError::into_inner));
    spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Changes of the directory that were not read yet.
#[derive(Default)]
struct DirChanges {
    /// Names of files that may have changed.
    names: BTreeSet<String>,
    /// True if any file may have changed.
    all: bool,
    /// True if the watched directory may no longer be the one of that name.
    moved: bool,
}

impl DirChanges {
    /// Waits for events, and takes those that have arrived. No event reports that another directory takes the name of a
    /// parent directory, so after [`RELIST_INTERVAL`] that counts as possible.
    async fn wait(events: &mut EventStream<[u8; 4096]>) -> io::Result<Self> {
        let mut changes = Self::default();
        match tokio::time::timeout(RELIST_INTERVAL, events.next()).await {
            Err(_) => changes.moved = true,
            Ok(event) => {
                changes.add(event)?;
                for _ in 0..BATCH {
                    let Some(event) = events.next().now_or_never() else { break };
                    changes.add(event)?;
                }
            }
        }
        Ok(changes)
    }

    fn add(&mut self, event: NextEvent) -> io::Result<()> {
        let Some(event) = event.transpose()? else {
            self.moved = true;
            return Ok(());
        };
        if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
            self.moved = true;
        } else if let Some(name) = event.name {
            // A name that is not UTF-8 is never a lease.
            self.names.extend(name.into_string().ok());
        } else {
            self.all = true;
        }
        Ok(())
    }

    /// Reads what has changed into the listing.
    fn read(&self, listing: &mut Listing) -> io::Result<()> {
        if self.all || self.moved {
            return listing.refresh();
        }
        self.names.iter().try_for_each(|name| listing.refresh_file(name))?;
        if listing.has_room_again() { listing.refresh() } else { Ok(()) }
    }
}

type NextEvent = Option<io::Result<Event<std::ffi::OsString>>>;

/// Explains an error about a limit of inotify, which the kernel's own text does not mention.
fn explain_inotify_limit(error: io::Error) -> io::Error {
    let limit = match error.raw_os_error() {
        Some(libc::ENOSPC) => "max_user_watches",
        Some(libc::EMFILE) => "max_user_instances",
        _ => return error,
    };
    io::Error::other(format!(
        "it cannot be watched, because a limit of inotify is reached: raise sysctl fs.inotify.{limit}"
    ))
}

/// Returns true if the error means that there is no regular file, not that it cannot be read at present.
fn is_not_a_file(error: &io::Error) -> bool {
    error.kind() == ErrorKind::InvalidData
        || matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ELOOP | libc::ENXIO))
}

/// Returns a regular file's content, of at most [`MAX_BYTES`] bytes. A symbolic link, pipe or device of that name is an
/// error.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_with(OPEN_FLAGS, path)
}

fn read_with(flags: libc::c_int, path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let unfit = |why: String| io::Error::new(ErrorKind::InvalidData, why);
    if !metadata.is_file() {
        return Err(unfit("not a regular file".into()));
    }
    if metadata.len() > MAX_BYTES {
        return Err(unfit(format!("{} bytes are more than any lease or config has", metadata.len())));
    }
    let mut content = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// Writes a temporary file, syncs it and renames it. The caller must hold the lock, as the temporary name is shared. A
/// rewritten lease keeps its modification time.
fn write_atomically(dir: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = dir.join(format!("{HIDDEN}new"));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(&beside)?;
    file.write_all(content)?;
    if let Ok(modified) = fs::symlink_metadata(path).and_then(|old| old.modified()) {
        file.set_modified(modified)?;
    }
    file.sync_all()?;
    rename(dir, &beside, path)
}

/// Renames a file and syncs the directory, so that the new name survives a crash.
fn rename(dir: &Path, from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_inotify_is_not_reported_as_a_full_disk() {
        for (errno, words) in [
            (
                libc::ENOSPC,
                "it cannot be watched, because a limit of inotify is reached: raise sysctl fs.inotify.max_user_watches",
            ),
            (
                libc::EMFILE,
                "it cannot be watched, because a limit of inotify is reached: raise sysctl fs.inotify.max_user_instances",
            ),
            (libc::EACCES, "Permission denied (os error 13)"),
        ] {
            assert_eq!(explain_inotify_limit(io::Error::from_raw_os_error(errno)).to_string(), words);
        }
    }
}
