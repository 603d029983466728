//! Tests of leases in a real etcd, checked with etcdctl: written keys, the watch, and harmless events.

#![cfg(feature = "etcd")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod hostile;
mod proxy;
mod schemes;
mod tls;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use plan::backend::Announced;
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::subnet_alloc::Requester;
use plan::warning::Warning;
use store::{AcceptableSubnet, Claim, Etcd, EtcdOptions, StoreError, View};
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(10);
const CONFIG: &str = r#"{"Network":"10.3.0.0/16"}"#;
const LEASE: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"host-gw"}"#;

/// An etcd for one test, on a port of its own.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
    scheme: &'static str,
    /// Additional arguments of etcd.
    args: Vec<String>,
}

impl Server {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(args: &[&str]) -> Self {
        let server = Self::start_in(tempfile::tempdir().unwrap(), "http", args);
        server.ctl(&["put", "/coreos.com/network/config", CONFIG]);
        server
    }

    /// Starts an etcd without any key.
    fn start_in(dir: tempfile::TempDir, scheme: &'static str, args: &[&str]) -> Self {
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        let port = free_port();
        let child = run(dir.path(), &format!("{scheme}://127.0.0.1:{port}"), &args);
        let server = Self { dir, port, child, scheme, args };
        server.wait();
        server
    }

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    fn wait(&self) {
        let end = Instant::now() + SOON;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < end, "etcd does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = run(self.dir.path(), &self.url(), &self.args);
        self.wait();
    }

    fn ctl(&self, args: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(args);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", &format!("/coreos.com/network/subnets/{key}"), value]);
    }

    /// Returns the last parts of the keys of all leases.
    fn keys(&self) -> Vec<String> {
        let text = self.ctl(&["get", "--prefix", "/coreos.com/network/subnets/", "--keys-only"]);
        text.lines()
            .filter_map(|line| line.rsplit('/').next())
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn field(&self, key: &str, name: &str) -> i64 {
        let text = self.ctl(&["get", "-w", "fields", &format!("/coreos.com/network/subnets/{key}")]);
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("\"{name}\" : ")));
        line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
    }

    fn etcd(&self) -> Etcd {
        self.etcd_of(vec![self.url()])
    }

    fn etcd_of(&self, endpoints: Vec<String>) -> Etcd {
        Etcd::new(self.options(endpoints))
    }

    fn options(&self, endpoints: Vec<String>) -> EtcdOptions {
        EtcdOptions {
            endpoints,
            prefix: "/coreos.com/network".into(),
            cafile: "".into(),
            certfile: "".into(),
            keyfile: "".into(),
            username: String::new(),
            password: String::new(),
            backend: None,
            renew_margin: Duration::from_secs(3600),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a port that nobody uses, each one once. It is below the ports that the kernel gives to clients and to
/// listeners of port 0.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16;
    let mut all =
        std::iter::repeat_with(|| 10_000 + first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000);
    all.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(done.success(), "kill -s {name}");
}

/// Returns the etcd command, or the one in `ETCD`. The process ends with the test, however that ends.
fn etcd_command() -> Command {
    let program = std::env::var_os("ETCD").filter(|path| !path.is_empty()).unwrap_or_else(|| "etcd".into());
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL").arg(program);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run(dir: &Path, url: &str, args: &[String]) -> Child {
    let mut command = etcd_command();
    command.current_dir(dir).arg("--data-dir").arg(dir.join("data")).args(args);
    // No peer connects, so the kernel may choose the port.
    command.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
    command.args(["--listen-peer-urls", "http://127.0.0.1:0", "--log-level", "error"]);
    command.spawn().unwrap()
}

fn conf() -> NetConf {
    NetConf::parse(CONFIG.as_bytes()).unwrap()
}

fn claim(host: u8, choice: AcceptableSubnet) -> Claim {
    let requester = Requester { public_ip: Some([192, 0, 2, host].into()), ..Requester::default() };
    let conf = conf();
    Claim { conf, requester, announce: Box::new(|_, _| Announced::HostGw), choice, listed: [].into() }
}

/// Repeats a request for [`SOON`] while the server of a busy machine answers too late.
async fn patiently<T>(request: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let end = Instant::now() + SOON;
    loop {
        match request().await {
            Err(error) if error.to_string().contains("no answer within") && Instant::now() < end => {}
            answer => return answer,
        }
    }
}

/// Acquires a lease. A server of a busy machine may answer late, and a daemon tries again.
async fn acquire(etcd: &Etcd, host: u8, dice: u64) -> Lease {
    acquire_again(etcd, host, dice).await.0
}

/// Returns with the lease how often the request failed before.
async fn acquire_again(etcd: &Etcd, host: u8, dice: u64) -> (Lease, usize) {
    let end = Instant::now() + SOON;
    let mut failures = 0;
    loop {
        match etcd.acquire(&claim(host, AcceptableSubnet::Any { dice })).await {
            Ok(lease) => return (lease, failures),
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        failures += 1;
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn until(view: &mut watch::Receiver<View>, what: &str, good: impl Fn(&View) -> bool) -> View {
    let found = tokio::time::timeout(SOON, view.wait_for(good)).await.map(|view| view.unwrap().clone());
    found.unwrap_or_else(|_| panic!("{what}: {:?}", view.borrow()))
}

fn watched(etcd: &Etcd) -> watch::Receiver<View> {
    let (sender, view) = watch::channel(View::default());
    tokio::spawn(etcd.clone().watch(sender));
    view
}

#[test]
fn a_lease_has_flannels_form_and_is_not_written_again() {
    let server = Server::start();
    block_on(async {
        let lease = acquire(&server.etcd(), 1, 0).await;
        let key = lease.subnet.to_string();
        assert_eq!(server.keys(), std::slice::from_ref(&key));
        let value = server.ctl(&["get", "--print-value-only", &format!("/coreos.com/network/subnets/{key}")]);
        assert_eq!(value, "{\"PublicIP\":\"192.0.2.1\",\"PublicIPv6\":null,\"BackendType\":\"host-gw\"}\n");
        let id = server.field(&key, "Lease");
        let ttl = server.ctl(&["lease", "timetolive", &format!("{id:x}")]);
        assert!(ttl.contains("granted with TTL(86400s)"), "{ttl}");
        let again = acquire(&server.etcd(), 1, 5).await;
        assert_eq!((again, server.field(&key, "Version")), (lease, 1));
    });
}

#[test]
fn fifty_concurrent_nodes_get_a_subnet_each() {
    let server = Server::start();
    block_on(async {
        // All nodes have the same random number, so that they want the same subnets.
        let asks = (1..=50).map(|host| {
            let etcd = server.etcd();
            tokio::spawn(async move { acquire_again(&etcd, host, 7).await })
        });
        let (mut subnets, mut failures) = (BTreeSet::new(), 0);
        for ask in asks.collect::<Vec<_>>() {
            let (lease, failed) = ask.await.unwrap();
            subnets.insert(lease.subnet.to_string());
            failures += failed;
        }
        assert_eq!(subnets.len(), 50);
        assert_eq!(subnets, server.keys().into_iter().collect());
        let leases = server.ctl(&["lease", "list"]);
        let count = leases.split_whitespace().nth(1).and_then(|count| count.parse::<usize>().ok()).unwrap();
        // A lease whose grant was not answered in time is unknown to its node, and ends by itself.
        let most = 50 + failures;
        assert!(
            (50..=most).contains(&count),
            "those of lost races are given back, {failures} failed: {leases}"
        );
    });
}

#[test]
fn a_reserved_lease_stays_without_a_ttl() {
    let server = Server::start();
    block_on(async {
        server.put("10.3.77.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
        let lease = acquire(&server.etcd(), 1, 0).await;
        assert_eq!(lease.subnet.to_string(), "10.3.77.0-24");
        assert_eq!((server.field("10.3.77.0-24", "Lease"), server.field("10.3.77.0-24", "Version")), (0, 2));
    });
}

#[test]
fn a_lease_that_does_not_fit_moves_and_keeps_its_ttl() {
    let server = Server::start();
    block_on(async {
        let granted = server.ctl(&["lease", "grant", "500"]);
        let id = granted.split(' ').nth(1).unwrap().to_owned();
        server.ctl(&[
            "put",
            "--lease",
            &id,
            "/coreos.com/network/subnets/10.9.1.0-24",
            &LEASE.replace(".9\"", ".1\""),
        ]);
        let lease = acquire(&server.etcd(), 1, 0).await;
        let key = lease.subnet.to_string();
        assert!(key.starts_with("10.3."), "{key}");
        assert_eq!(server.keys(), std::slice::from_ref(&key));
        assert_eq!(format!("{:x}", server.field(&key, "Lease")), id);
        let ttl = server.ctl(&["lease", "timetolive", &id]);
        assert!(ttl.contains("granted with TTL(500s)"), "{ttl}");
        // A rewritten lease keeps it as well.
        let other = Claim {
            announce: Box::new(|_, _| Announced::Nothing),
            ..claim(1, AcceptableSubnet::Any { dice: 0 })
        };
        patiently(async || server.etcd().acquire(&other).await).await.unwrap();
        assert_eq!((server.field(&key, "Version"), format!("{:x}", server.field(&key, "Lease"))), (2, id));
        assert!(server.ctl(&["lease", "list"]).starts_with("found 1 leases"), "none was granted beside it");
    });
}

#[test]
fn an_unreadable_lease_is_a_warning_and_keeps_its_subnet() {
    let server = Server::start();
    block_on(async {
        let etcd = server.etcd();
        server.put("10.3.1.0-24", LEASE);
        let mut view = watched(&etcd);
        until(&mut view, "the lease", |view| view.leases.known().len() == 1).await;
        let huge = LEASE.replace('}', &format!(",\"Pad\":\"{}\"}}", "x".repeat(100_000)));
        for (key, value) in [("10.3.2.0-24", "{half"), ("x&y", "{}"), ("10.3.3.0-24", &huge)] {
            server.put(key, value);
        }
        let reported = until(&mut view, "three warnings", |view| view.warnings.len() == 3).await;
        assert!(reported.warnings.iter().all(|warning| matches!(warning, Warning::Entry { .. })));
        assert_eq!(reported.leases.known().len(), 1, "the good one stays");
        // Foreign keys beside ours are ignored.
        server.ctl(&["put", "/coreos.com/network/other", "x"]);
        server.ctl(&["put", "/coreos.com/network/subnetsx", "x"]);
        let conf = plan::netconf::NetConf::parse(
            br#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.2.0","SubnetMax":"10.3.4.0"}"#,
        )
        .unwrap();
        let lease = patiently(async || {
            etcd.acquire(&Claim { conf: conf.clone(), ..claim(1, AcceptableSubnet::Any { dice: 0 }) }).await
        })
        .await
        .unwrap();
        assert_eq!(lease.subnet.to_string(), "10.3.4.0-24");
        server.put("10.3.2.0-24", LEASE);
        until(&mut view, "it is a lease again", |view| view.warnings.len() == 2).await;
    });
}

/// An invalid entry takes no other node's subnet, even if its key covers the whole network.
#[test]
fn an_invalid_entry_takes_no_lease_and_does_not_count_as_older() {
    let server = Server::start();
    block_on(async {
        server.put("10.3.0.0-16", "nonsense");
        let lease = acquire(&server.etcd(), 1, 0).await;
        let key = lease.subnet.to_string();
        server.put(&format!("{key}&fd00::-64"), "nonsense");
        server.put("10.3.9.0-24&fd00:0:0:1:0::-64", LEASE);
        assert_eq!(acquire(&server.etcd(), 1, 5).await.subnet, lease.subnet);
        let mut view = watched(&server.etcd());
        let reported = until(&mut view, "three warnings", |view| view.warnings.len() == 3).await;
        assert!(
            reported.warnings.iter().any(|warning| warning
                .to_string()
                .contains("another spelling of 10.3.9.0-24&fd00:0:0:1::-64"))
        );
    });
}

#[test]
fn a_user_without_write_permission_leaves_no_etcd_lease() {
    let server = Server::start();
    block_on(async {
        for line in [
            "user add root:pw",
            "role add r",
            "user add u:pw",
            "user grant-role u r",
            "user grant-role root root",
            "role grant-permission r read --prefix=true /coreos.com/network/",
            "auth enable",
        ] {
            server.ctl(&line.split(' ').collect::<Vec<_>>());
        }
        let mut options = server.options(vec![server.url()]);
        (options.username, options.password) = ("u".into(), "pw".into());
        let refused = Etcd::new(options)
            .acquire(&claim(1, AcceptableSubnet::Any { dice: 0 }))
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("permission denied. Grant this user"), "{refused}");
        let leases = server.ctl(&["--user", "root:pw", "lease", "list"]);
        assert!(leases.starts_with("found 0 leases"), "{leases}");
    });
}

#[test]
fn a_list_of_many_pages_is_complete() {
    let server = Server::start();
    block_on(async {
        for block in (0..2300).collect::<Vec<_>>().chunks(100) {
            let puts: String = block
                .iter()
                .map(|n| {
                    format!(
                        "put /coreos.com/network/subnets/10.{}.{}.0-24 {LEASE:?}\n",
                        10 + n / 250,
                        n % 250
                    )
                })
                .collect();
            let mut txn = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &server.url(), "txn"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut txn.stdin.take().unwrap(), format!("\n{puts}\n\n").as_bytes())
                .unwrap();
            assert!(txn.wait().unwrap().success());
        }
        let conf = NetConf::parse(br#"{"Network":"10.0.0.0/8"}"#).unwrap();
        let leases = server.etcd().leases(&conf).await.unwrap();
        let subnets: BTreeSet<_> = leases.iter().map(|lease| lease.subnet).collect();
        assert_eq!((leases.len(), subnets.len()), (2300, 2300));
    });
}

#[test]
fn a_watch_resumes_at_its_revision_or_reads_the_list_again() {
    let mut server = Server::start();
    block_on(async {
        let etcd = server.etcd();
        server.put("10.3.1.0-24", LEASE);
        let mut view = watched(&etcd);
        until(&mut view, "the first", |view| view.leases.known().len() == 1).await;
        assert_eq!(etcd.stats().lists(), 1);
        server.kill();
        let lost = until(&mut view, "lost", |view| view.lost.is_some()).await;
        assert_eq!(lost.leases.known().len(), 1, "what is known stays");
        server.restart();
        server.put("10.3.2.0-24", LEASE);
        until(&mut view, "the second", |view| view.leases.known().len() == 2 && view.lost.is_none()).await;
        assert_eq!(etcd.stats().lists(), 1, "the history was enough");
        // The history is compacted while the store is not watched.
        server.kill();
        until(&mut view, "lost", |view| view.lost.is_some()).await;
        let (own, hidden) = (server.port, free_port());
        server.port = hidden;
        server.restart();
        server.ctl(&["del", "/coreos.com/network/subnets/10.3.1.0-24"]);
        server.put("10.3.3.0-24", LEASE);
        let revision = server.field("10.3.3.0-24", "Revision").to_string();
        server.ctl(&["compact", &revision]);
        server.kill();
        server.port = own;
        server.restart();
        let reported = until(&mut view, "what happened meanwhile", |view| view.lost.is_none()).await;
        let reported =
            if reported.leases.known().iter().any(|lease| lease.subnet.to_string() == "10.3.1.0-24") {
                until(&mut view, "the re-read list", |view| {
                    view.leases.known().iter().all(|lease| lease.subnet.to_string() != "10.3.1.0-24")
                })
                .await
            } else {
                reported
            };
        assert_eq!(reported.leases.known().len(), 2);
        assert_eq!(etcd.stats().lists(), 2);
        // A new, empty etcd starts at the same address.
        server.kill();
        std::fs::remove_dir_all(server.dir.path().join("data")).unwrap();
        server.restart();
        let emptied =
            until(&mut view, "emptied", |view| view.lost.is_none() && view.leases.known().is_empty()).await;
        assert!(emptied.conf.unwrap().unwrap_err().contains("no key /coreos.com/network/config"));
        assert!(emptied.history.unwrap().revision < reported.history.unwrap().revision);
    });
}

/// A watch that resumes receives the changes of the last revision again. They are not counted twice.
#[test]
fn a_resumed_watch_counts_no_entry_twice() {
    let mut server = Server::start();
    block_on(async {
        let etcd = server.etcd();
        let more = |view: &View| {
            let count = |warning: &Warning| {
                if let Warning::MoreEntries { at_least } = warning { Some(*at_least) } else { None }
            };
            view.warnings.iter().find_map(count)
        };
        (1..=51).for_each(|number| server.put(&format!("junk{number}"), "x"));
        server.put("10.3.1.0-24", LEASE);
        let mut view = watched(&etcd);
        until(&mut view, "50 names and another one", |view| more(view) == Some(1)).await;
        for leases in [1, 0] {
            if leases == 1 {
                server.put("junk52", "x");
            } else {
                server.ctl(&["del", "/coreos.com/network/subnets/10.3.1.0-24"]);
            }
            let is_applied = |view: &View| more(view) == Some(2) && view.leases.known().len() == leases;
            until(&mut view, "the change", is_applied).await;
            server.kill();
            until(&mut view, "lost", |view| view.lost.is_some()).await;
            server.restart();
            server.put("10.3.2.0-24", LEASE);
            let is_later = |view: &View| view.leases.known().len() == leases + 1;
            let later = until(&mut view, "a later change", is_later).await;
            assert_eq!(more(&later), Some(2));
            server.ctl(&["del", "/coreos.com/network/subnets/10.3.2.0-24"]);
        }
        assert_eq!(etcd.stats().lists(), 1);
    });
}

#[test]
fn a_dead_server_is_passed_over_and_a_mute_one_is_reported() {
    let server = Server::start();
    block_on(async {
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let [mute_url, dead_url] = [mute.local_addr().unwrap(), dead].map(|at| format!("http://{at}"));
        let etcd = server.etcd_of(vec![dead_url.clone(), mute_url.clone(), server.url()]);
        assert_eq!(etcd.leases(&conf()).await.unwrap().len(), 0);
        let error = server.etcd_of(vec![dead_url, mute_url]).leases(&conf()).await.unwrap_err().to_string();
        assert!(error.contains("Connection refused") && error.contains("no answer within 1.5 s"), "{error}");
    });
}

#[test]
fn a_lease_is_kept_alive_without_a_write() {
    let server = Server::start();
    block_on(async {
        let etcd = server.etcd();
        let lease = acquire(&etcd, 1, 0).await;
        let key = lease.subnet.to_string();
        // The key is attached to an etcd lease with a short TTL.
        let granted = server.ctl(&["lease", "grant", "3"]);
        let id = granted.split(' ').nth(1).unwrap().to_owned();
        // A node that starts from its cache holds its lease without acquiring it.
        let etcd = server.etcd();
        etcd.set_own_lease(&lease.subnet, &conf());
        let mut view = watched(&etcd);
        until(&mut view, "our lease", |view| view.leases.known().len() == 1).await;
        server.ctl(&["put", "--lease", &id, &format!("/coreos.com/network/subnets/{key}"), &lease.to_json()]);
        let (version, end) = (server.field(&key, "Version"), Instant::now() + Duration::from_secs(7));
        while Instant::now() < end {
            assert_eq!(server.keys(), std::slice::from_ref(&key), "it has ended");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(
            (server.field(&key, "Version"), format!("{:x}", server.field(&key, "Lease"))),
            (version, id)
        );
    });
}
