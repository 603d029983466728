//! Tests of the lease directory on a real file system: exclusive leases, no partial lease after a kill, immediate events.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use inotify::{EventMask, Inotify, WatchMask};
use plan::backend::Announced;
use plan::lease::{Lease, Leases};
use plan::subnet_alloc::Requester;
use plan::warning::Warning;
use store::{AcceptableSubnet, Announce, Claim, Dir, View};
use tokio::sync::watch;

const CONFIG: &str = r#"{"Network":"10.3.0.0/16"}"#;
const HOST_GW: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"host-gw"}"#;

fn store(root: &Path) -> Dir {
    fs::write(root.join("config"), CONFIG).unwrap();
    Dir::new(root)
}

fn acquire(root: &Path, host: u8, dice: u64) -> Result<Lease, String> {
    acquire_saying(root, host, dice, |_, _| Announced::HostGw)
}

fn acquire_saying(
    root: &Path,
    host: u8,
    dice: u64,
    announce: impl Fn(Option<&Lease>, &[&Lease]) -> Announced + Send + Sync + 'static,
) -> Result<Lease, String> {
    claim(root, host, AcceptableSubnet::Any { dice }, Box::new(announce))
}

fn claim(root: &Path, host: u8, choice: AcceptableSubnet, announce: Box<Announce>) -> Result<Lease, String> {
    let conf = Dir::new(root).net_conf().unwrap();
    let requester = Requester { public_ip: Some([192, 0, 2, host].into()), ..Requester::default() };
    let claim = Claim { conf, requester, announce, choice, listed: [].into() };
    Dir::new(root).acquire(&claim).map_err(|error| error.to_string())
}

/// Repeats a request for a minute while other nodes hold the lock, as a daemon does.
fn patiently(request: impl Fn() -> Result<Lease, String>) -> Lease {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match request() {
            Err(error) if error.contains("another process holds this lock") && Instant::now() < end => {}
            answer => return answer.unwrap(),
        }
    }
}

#[test]
fn fifty_concurrent_nodes_get_a_subnet_each() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let subnets: BTreeSet<String> = std::thread::scope(|scope| {
        // Every thread has the same random number, so that all want the same subnet.
        let root = root.path();
        let ask = |host| patiently(|| acquire(root, host, 7));
        let askers: Vec<_> = (1..=50).map(|host| scope.spawn(move || ask(host))).collect();
        askers.into_iter().map(|requester| requester.join().unwrap().subnet.to_string()).collect()
    });
    assert_eq!(subnets.len(), 50);
    assert_eq!(fs::read_dir(root.path().join("subnets")).unwrap().count(), 50);
}

#[test]
fn the_announcement_may_depend_on_our_lease_and_on_other_leases() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let mut leases: Vec<Lease> = (1..=3).map(|host| acquire(root.path(), host, 5).unwrap()).collect();
    let ours = leases.remove(0).subnet;
    let others: BTreeSet<_> = leases.iter().map(|lease| lease.subnet).collect();
    acquire_saying(root.path(), 1, 5, move |held, rest| {
        assert_eq!(held.map(|lease| lease.subnet), Some(ours));
        assert_eq!(rest.iter().map(|lease| lease.subnet).collect::<BTreeSet<_>>(), others);
        Announced::HostGw
    })
    .unwrap();
}

#[test]
fn running_nodes_wait_a_limited_time_for_each_other() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let leases: Vec<Lease> = (1..=4).map(|host| acquire(root.path(), host, 5).unwrap()).collect();
    let other = || Announced::Other("other".into());
    std::thread::scope(|scope| {
        for (host, lease) in (1..).zip(&leases) {
            let root = root.path();
            scope.spawn(move || {
                let written = patiently(|| {
                    claim(root, host, AcceptableSubnet::Only(lease.subnet), Box::new(move |_, _| other()))
                });
                assert_eq!(written.announced, other());
            });
        }
    });
    let lock = fs::File::create(root.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let error =
        claim(root.path(), 1, AcceptableSubnet::Only(leases[0].subnet), Box::new(|_, _| Announced::HostGw))
            .unwrap_err();
    assert!(error.contains(".lock: another process holds this lock; retrying"), "{error}");
    // A start does not wait for ever either: it may go on with its leases cache.
    let error = acquire(root.path(), 1, 5).unwrap_err();
    assert!(error.contains(".lock: another process holds this lock; retrying"), "{error}");
}

#[test]
fn nobody_else_can_open_the_lock_or_put_a_file_in_its_place() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let (lock, victim) = (root.path().join(".lock"), root.path().join("victim"));
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode();
    acquire(root.path(), 1, 5).unwrap();
    assert_eq!(mode(&lock), 0o100_600);
    // An earlier version made it for everybody to read.
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
    acquire(root.path(), 1, 5).unwrap();
    assert_eq!(mode(&lock), 0o100_600);
    fs::write(&victim, "").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).unwrap();
    for symbolic in [true, false] {
        fs::remove_file(&lock).unwrap();
        match symbolic {
            true => std::os::unix::fs::symlink(&victim, &lock).unwrap(),
            false => fs::hard_link(&victim, &lock).unwrap(),
        }
        acquire(root.path(), 1, 5).unwrap();
        assert_eq!((mode(&lock), mode(&victim)), (0o100_600, 0o100_644));
    }
}

#[test]
fn our_lease_is_found_again_and_not_rewritten() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let first = acquire(root.path(), 1, 3).unwrap();
    let path = root.path().join("subnets").join(first.subnet.to_string());
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(acquire(root.path(), 1, 99).unwrap().subnet, first.subnet);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read_to_string(&path).unwrap(), HOST_GW.replace(".9", ".1"));
}

/// A lease that does not fit any more is replaced in one step. A peer that sees no lease of ours, even briefly, withdraws its
/// routes to our pods.
#[test]
fn a_lease_that_no_longer_fits_is_replaced_by_a_rename() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let old = acquire(root.path(), 1, 3).unwrap().subnet.to_string();
    let subnets = root.path().join("subnets");
    let mut inotify = Inotify::init().unwrap();
    inotify.watches().add(&subnets, WatchMask::MOVE | WatchMask::DELETE).unwrap();
    let dual = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48"}"#;
    fs::write(root.path().join("config"), dual).unwrap();
    let new = acquire(root.path(), 1, 3).unwrap().subnet.to_string();
    let mut buffer = [0; 4096];
    let events = inotify.read_events(&mut buffer).unwrap();
    let events = events.map(|event| (event.mask, event.cookie, event.name.unwrap().to_str().unwrap()));
    let events: Vec<_> = events.filter(|(.., name)| !name.starts_with('.')).collect();
    let [.., (from, one, moved), (to, other, at)] = events[..] else { panic!("{events:?}") };
    assert_eq!((from, moved, to, at), (EventMask::MOVED_FROM, &*old, EventMask::MOVED_TO, &*new));
    assert_eq!(one, other, "one rename: {events:?}");
    assert!(!events.iter().any(|(mask, ..)| *mask == EventMask::DELETE), "{events:?}");
    let kept: Vec<_> = fs::read_dir(&subnets).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(kept, [new.as_str()]);
    assert_eq!(fs::read_to_string(subnets.join(&new)).unwrap(), HOST_GW.replace(".9", ".1"));
}

/// Process that the test below kills; it does nothing by itself.
#[test]
fn acquire_for_ever() {
    let Some(root) = std::env::var_os("TWILL_TEST_ACQUIRE") else { return };
    for round in 0.. {
        for host in 1..=20 {
            acquire(Path::new(&root), host, round).unwrap();
        }
        for entry in fs::read_dir(Path::new(&root).join("subnets")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn a_kill_at_any_moment_leaves_whole_leases_only() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let mut seen = 0;
    for round in 0..25u64 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "acquire_for_ever"])
            .env("TWILL_TEST_ACQUIRE", root.path())
            .stdout(Stdio::null())
            .spawn();
        let child = Killed(child.unwrap());
        // A reader sees what a kill at that moment would leave.
        let killed_at = Instant::now() + Duration::from_millis(40 + 7 * round);
        while Instant::now() < killed_at {
            seen += whole_leases(root.path()).len();
        }
        drop(child);
        // The directory no longer changes, so its entries are of one moment.
        let owners = whole_leases(root.path());
        let distinct: BTreeSet<_> = owners.iter().collect();
        assert_eq!(distinct.len(), owners.len(), "a node with two leases: {owners:?}");
    }
    assert!(seen > 25, "the kills came too early to prove anything: {seen} leases");
}

/// A process that ends with its owner, even if the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Returns the owners of the leases, and fails if a lease is not complete.
fn whole_leases(root: &Path) -> Vec<Option<Ipv4Addr>> {
    let Ok(entries) = fs::read_dir(root.join("subnets")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let leases = names.filter(|name| !name.starts_with('.')).filter_map(|name| {
        // A lease that was removed after the listing is skipped.
        let content = fs::read(root.join("subnets").join(&name)).ok()?;
        Some(Lease::parse(&name, &content, 0).unwrap().public_ip)
    });
    leases.collect()
}

async fn until(view: &mut watch::Receiver<View>, what: &str, is: impl Fn(&View) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), view.wait_for(|view| is(view))).await.is_ok();
    if !waited {
        panic!("{what}: still {:?}", view.borrow());
    }
}

fn listed(view: &View) -> usize {
    if let Leases::Listed(leases) = &view.leases { leases.len() } else { usize::MAX }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn changes_are_reported_and_a_lost_directory_keeps_the_last_leases() {
    let root = tempfile::tempdir().unwrap();
    let (sender, mut view) = watch::channel(View::default());
    tokio::spawn(store(root.path()).watch(sender));
    until(&mut view, "no directory yet", |view| view.lost.is_some() && view.leases == Leases::Unknown).await;

    let subnets = root.path().join("subnets");
    fs::create_dir(&subnets).unwrap();
    until(&mut view, "empty", |view| listed(view) == 0 && view.lost.is_none()).await;
    for host in 1..=3 {
        acquire(root.path(), host, u64::from(host)).unwrap();
    }
    until(&mut view, "three", |view| listed(view) == 3).await;

    fs::write(subnets.join("10.3.200.0-24"), "{half").unwrap();
    fs::write(subnets.join("10.3.201.0-24"), HOST_GW).unwrap();
    until(&mut view, "a broken and a good one", |view| {
        listed(view) == 4
            && matches!(&view.warnings[..], [Warning::Entry { key, .. }] if &**key == "10.3.200.0-24")
    })
    .await;
    fs::remove_file(subnets.join("10.3.200.0-24")).unwrap();
    until(&mut view, "the broken one gone", |view| view.warnings.is_empty()).await;

    fs::rename(&subnets, root.path().join("away")).unwrap();
    until(&mut view, "lost", |view| view.lost.is_some() && listed(view) == 4).await;
    fs::rename(root.path().join("away"), &subnets).unwrap();
    until(&mut view, "back", |view| view.lost.is_none() && listed(view) == 4).await;
}

/// A directory's leases have no end, and a file that is overwritten looks younger.
#[test]
fn a_lease_that_was_overwritten_while_its_node_was_down_is_its_own_again() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let held = acquire(root.path(), 1, 3).unwrap();
    let subnets = root.path().join("subnets");
    let path = subnets.join(held.subnet.to_string());
    let ours = fs::read_to_string(&path).unwrap();
    for renamed in [false, true] {
        let place = if renamed { subnets.join(".theirs") } else { path.clone() };
        fs::write(&place, HOST_GW).unwrap();
        fs::rename(&place, &path).unwrap();
        let announce = |held: Option<&Lease>, _: &[&Lease]| {
            assert_eq!(held.and_then(|lease| lease.public_ip), Some([192, 0, 2, 1].into()));
            Announced::HostGw
        };
        let (public_ip, previous) = (held.public_ip, Some(held.subnet));
        let requester = Requester { public_ip, previous, held: Some(held.clone()), ..Requester::default() };
        let conf = Dir::new(root.path()).net_conf().unwrap();
        let choice = AcceptableSubnet::Any { dice: 99 };
        let claim = Claim { conf, requester, announce: Box::new(announce), choice, listed: [].into() };
        let again = Dir::new(root.path()).acquire(&claim).unwrap();
        assert_eq!((again.subnet, again.born), (held.subnet, held.born));
        assert_eq!(fs::read_to_string(&path).unwrap(), ours);
    }
}

/// Foreign files are counted by their names, and cost nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_that_are_no_leases_are_named_up_to_fifty_and_counted_beyond() {
    let root = tempfile::tempdir().unwrap();
    let dir = store(root.path());
    let ours = acquire(root.path(), 1, 3).unwrap();
    dir.hold(&ours, &dir.net_conf().unwrap());
    let subnets = root.path().join("subnets");
    let junk = (0..300).map(|n| format!("junk-{n:03}"));
    // Junk in the form of leases: of another network, and more of another length than nodes that change it.
    let strangers = (0..200).map(|n| format!("10.9.{n}.0-24"));
    let cousins = (0..9000).map(|n| format!("10.3.{}.{}-30", n / 64, n % 64 * 4));
    for name in junk.chain(strangers).chain(cousins) {
        fs::write(subnets.join(name), HOST_GW).unwrap();
    }
    let (sender, mut view) = watch::channel(View::default());
    tokio::spawn(dir.watch(sender));
    let told = |view: &View| match &view.warnings[..] {
        [named @ .., Warning::MoreEntries { at_least }] => (named.len(), *at_least),
        named => (named.len(), 0),
    };
    // 1258 more, roughly.
    until(&mut view, "those that may be leases, and ours", |view| listed(view) == 8193).await;
    assert_eq!(told(&view.borrow()), (50, 1000));
    assert!(view.borrow().leases.known().iter().any(|lease| lease.has_same_data(&ours)));
    let Warning::Entry { key, .. } = view.borrow().warnings[0].clone() else { panic!("{view:?}") };
    fs::remove_file(subnets.join(&*key)).unwrap();
    until(&mut view, "one fewer is named", |view| told(view) == (49, 1000)).await;
}

/// Sets the modification time in seconds since 1970. Some file systems store a smaller range than others.
fn set_time(path: &Path, seconds: i64) {
    let since = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since };
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

fn ages(view: &View) -> Vec<(String, u64)> {
    let Leases::Listed(leases) = &view.leases else { return Vec::new() };
    leases.iter().map(|lease| (lease.subnet.to_string(), lease.born)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn leases_are_as_old_as_their_files_were_first_seen_to_be() {
    let root = tempfile::tempdir().unwrap();
    let subnets = root.path().join("subnets");
    fs::create_dir(&subnets).unwrap();
    let years = [-60, -1, 0, 1, 129, 700];
    let path = |k: usize| subnets.join(format!("10.3.{k}.0-24"));
    for (k, years) in years.into_iter().enumerate() {
        fs::write(path(k), HOST_GW).unwrap();
        set_time(&path(k), years * 365 * 86400);
    }
    let (sender, mut view) = watch::channel(View::default());
    tokio::spawn(store(root.path()).watch(sender));
    until(&mut view, "all", |view| listed(view) == years.len()).await;
    let before = ages(&view.borrow());
    let of_file_system: Vec<i64> = (0..years.len()).map(|k| fs::metadata(path(k)).unwrap().mtime()).collect();
    assert!(of_file_system.is_sorted(), "{of_file_system:?}");
    assert!(before.is_sorted_by_key(|(_, born)| *born), "{before:?}");
    assert!(before.windows(2).take(4).all(|pair| pair[0].1 < pair[1].1), "{before:?}");

    (0..years.len()).for_each(|k| set_time(&path(k), 0));
    fs::write(path(0), HOST_GW.replace(".9", ".8")).unwrap();
    fs::write(subnets.join("10.3.99.0-24"), HOST_GW).unwrap();
    until(&mut view, "one more", |view| listed(view) == years.len() + 1).await;
    assert_eq!(ages(&view.borrow())[..years.len()], before);
}

#[test]
fn a_rewritten_lease_keeps_its_age() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let subnet = acquire(root.path(), 1, 3).unwrap().subnet.to_string();
    let path = root.path().join("subnets").join(subnet);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace("host-gw", "vxlan")).unwrap();
    set_time(&path, 12345);
    acquire(root.path(), 1, 3).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 12345);
}

/// A file in place of the directory is reported as such, not as "File exists".
#[test]
fn a_file_in_place_of_the_directory_is_reported() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    fs::write(root.path().join("subnets"), "").unwrap();
    let error = acquire(root.path(), 1, 0).unwrap_err();
    assert!(error.contains("subnets: Not a directory"), "{error}");
}

#[test]
fn a_file_that_is_no_lease_is_not_followed_and_gets_a_warning() {
    let root = tempfile::tempdir().unwrap();
    store(root.path());
    let subnets = root.path().join("subnets");
    fs::create_dir(&subnets).unwrap();
    fs::write(subnets.join("10.3.7.0-24"), vec![b' '; 100_000]).unwrap();
    std::os::unix::fs::symlink("/dev/zero", subnets.join("10.3.8.0-24")).unwrap();
    fs::create_dir(subnets.join("10.3.9.0-24")).unwrap();
    acquire(root.path(), 1, 0).unwrap();
    fs::write(root.path().join("config"), r#"{"Network":"nonsense"}"#).unwrap();
    let error = Dir::new(root.path()).net_conf().unwrap_err().to_string();
    assert!(error.contains("config") && error.contains("Network"), "{error}");
}
