//! Tests with foreign data below `subnets/`, and with servers that refuse some requests. Neither prevents a start or costs
//! unbounded memory.

use std::io::Write;
use std::process::{Command, Stdio};

use plan::netconf::NetConf;
use plan::warning::Warning;
use store::{AcceptableSubnet, Claim, Etcd, EtcdOptions};

use crate::{CONFIG, LEASE, Server, block_on, claim, patiently, until, watched};

impl Server {
    /// Writes a value larger than etcdctl can send.
    async fn put_large(&self, key: &str, bytes: usize) {
        let mut client = etcd_client::Client::connect([self.url()], None).await.unwrap();
        let key = format!("/coreos.com/network/subnets/{key}");
        client.put(key, vec![b'x'; bytes], None).await.unwrap();
    }

    /// Writes many keys in few transactions.
    fn put_many(&self, keys: impl Iterator<Item = String>) {
        for block in keys.collect::<Vec<_>>().chunks(128) {
            let puts: String = block
                .iter()
                .map(|key| format!("put /coreos.com/network/subnets/{key} {LEASE:?}\n"))
                .collect();
            let mut txn = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &self.url(), "txn"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            txn.stdin.take().unwrap().write_all(format!("\n{puts}\n\n").as_bytes()).unwrap();
            assert!(txn.wait().unwrap().success());
        }
    }

    /// Creates a user `u` with these permissions, and returns the options to log in as this user.
    fn as_user(&self, grants: &[&str]) -> EtcdOptions {
        for line in [
            "user add root:pw",
            "user grant-role root root",
            "role add r",
            "user add u:pw",
            "user grant-role u r",
        ] {
            self.ctl(&line.split(' ').collect::<Vec<_>>());
        }
        for grant in grants {
            let args: Vec<_> =
                ["role", "grant-permission", "r"].into_iter().chain(grant.split(' ')).collect();
            self.ctl(&args);
        }
        self.ctl(&["auth", "enable"]);
        let mut options = self.options(vec![self.url()]);
        (options.username, options.password) = ("u".into(), "pw".into());
        options
    }
}

#[test]
fn a_server_that_refuses_the_list_is_left_for_the_next_one() {
    let (bad, good) = (Server::start(), Server::start());
    let mut options = bad.as_user(&["read /coreos.com/network/config"]);
    good.as_user(&["--prefix=true readwrite /coreos.com/network/"]);
    options.endpoints = vec![bad.url(), good.url()];
    block_on(async {
        // The server that is tried first is chosen at random.
        for _ in 0..8 {
            let etcd = Etcd::new(options.clone());
            let mut answers = Vec::new();
            for _ in 0..2 {
                answers.push(etcd.leases(&crate::conf()).await);
            }
            assert!(answers.iter().any(Result::is_ok), "{answers:?}");
            let mut view = watched(&Etcd::new(options.clone()));
            until(&mut view, "the store answers", |view| view.conf.is_some()).await;
        }
    });
}

/// A server that allows reads only is left, and the lease is written to the next one.
#[test]
fn a_server_that_refuses_the_write_is_left_for_the_next_one() {
    let (bad, good) = (Server::start(), Server::start());
    let mut options = bad.as_user(&["--prefix=true read /coreos.com/network/"]);
    good.as_user(&["--prefix=true readwrite /coreos.com/network/"]);
    options.endpoints = vec![bad.url(), good.url()];
    block_on(async {
        for _ in 0..8 {
            let etcd = Etcd::new(options.clone());
            let first = etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await;
            let second = etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await;
            assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        }
    });
}

/// A user who may read the config, and read and write the leases, needs no other permission.
#[test]
fn the_minimal_permissions_are_enough() {
    let server = Server::start();
    let options = server.as_user(&[
        "read /coreos.com/network/config /coreos.com/network/subnets0",
        "--prefix=true readwrite /coreos.com/network/subnets/",
    ]);
    block_on(async {
        let etcd = Etcd::new(options);
        let lease = patiently(async || etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await)
            .await
            .unwrap();
        etcd.set_own_lease(&lease.subnet, &etcd.net_conf().await.unwrap());
        let mut view = watched(&etcd);
        until(&mut view, "the lease", |view| view.leases.known().len() == 1 && view.own_until.is_some())
            .await;
        server.ctl(&["--user=root:pw", "del", &format!("/coreos.com/network/subnets/{}", lease.subnet)]);
        until(&mut view, "it is gone", |view| view.leases.known().is_empty()).await;
        let again = patiently(async || etcd.acquire(&claim(1, AcceptableSubnet::Only(lease.subnet))).await)
            .await
            .unwrap();
        assert_eq!(again.subnet, lease.subnet);
        until(&mut view, "it is back", |view| view.leases.known().len() == 1).await;
    });
}

#[test]
fn megabytes_of_junk_do_not_hide_leases() {
    let server = Server::start_with(&["--max-request-bytes=10000000"]);
    server.put("10.3.1.0-24", LEASE);
    block_on(async {
        for n in 0..46 {
            server.put_large(&format!("10.3.{}.0-24", 100 + n), 1_400_000).await;
        }
        // Each of the two values is larger than the largest reply; the lease behind them must still be found.
        server.put_large("10.3.150.0-24", 6_000_000).await;
        server.put_large("nonsense", 6_000_000).await;
        server.put("10.3.2.0-24", LEASE);
        let etcd = server.etcd();
        assert_eq!(etcd.leases(&crate::conf()).await.unwrap().len(), 2);
        let lease = patiently(async || etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await)
            .await
            .unwrap();
        let mut view = watched(&etcd);
        let reported = until(&mut view, "three leases", |view| view.leases.known().len() == 3).await;
        for key in ["10.3.145.0-24", "10.3.150.0-24", "nonsense"] {
            let warning = reported
                .warnings
                .iter()
                .find(|warning| matches!(warning, Warning::Entry { key: k, .. } if **k == *key));
            assert!(warning.unwrap().to_string().contains("bytes"), "{warning:?}");
        }
        // Large values arrive during the watch, and one replaces our own lease.
        server.put_large("10.3.151.0-24", 6_000_000).await;
        server.put_large(&lease.subnet.to_string(), 6_000_000).await;
        until(&mut view, "it is named", |view| view.warnings.len() == 50).await;
        server.put("10.3.90.0-24", LEASE);
        until(&mut view, "and all goes on", |view| view.leases.known().len() == 3 && view.lost.is_none())
            .await;
        let mut again = claim(1, AcceptableSubnet::Only(lease.subnet));
        again.requester.previous = Some(lease.subnet);
        patiently(async || etcd.acquire(&again).await).await.unwrap();
        until(&mut view, "ours is back", |view| view.leases.known().len() == 4).await;
    });
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Entries that are not leases of this network are counted and cost nothing more.
#[test]
fn junk_is_named_up_to_fifty_and_counted_beyond() {
    let server = Server::start();
    let conf = NetConf::parse(CONFIG.as_bytes()).unwrap();
    block_on(async {
        let etcd = server.etcd();
        let lease = patiently(async || etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await)
            .await
            .unwrap();
        etcd.set_own_lease(&lease.subnet, &conf);
        let mut view = watched(&etcd);
        until(&mut view, "ours", |view| view.leases.known().len() == 1).await;
        server.put_many((0..300).map(|n| format!("junk-{n:04}")));
        let count = |view: &store::View| {
            let more = view.warnings.iter().find_map(|warning| match warning {
                Warning::MoreEntries { at_least } => Some(*at_least),
                _ => None,
            });
            (view.warnings.len(), more.unwrap_or_default())
        };
        until(&mut view, "250 more, roughly", |view| count(view) == (51, 200)).await;
        // Junk in the form of leases: of another network, of an invalid length, and of a family that is off.
        server.put_many((0..200).map(|n| format!("10.9.{n}.0-24")));
        server.put_many((0..200).map(|n| format!("10.3.9.{n}-32")));
        until(&mut view, "650 more", |view| count(view) == (51, 600)).await;
        assert_eq!(view.borrow().leases.known().len(), 1);
        // A new instance finds the same.
        let again = server.etcd();
        again.set_own_lease(&lease.subnet, &conf);
        let mut other = watched(&again);
        until(&mut other, "the same", |view| count(view) == (51, 600)).await;
        server.ctl(&["del", "--prefix", "/coreos.com/network/subnets/junk"]);
        server.ctl(&["del", "--prefix", "/coreos.com/network/subnets/10.9."]);
        server.ctl(&["del", "--prefix", "/coreos.com/network/subnets/10.3.9."]);
        for view in [&mut view, &mut other] {
            until(view, "nothing more", |view| count(view) == (0, 0)).await;
            assert_eq!(view.borrow().leases.known().len(), 1);
        }
        // Counted entries change and are deleted.
        server.put_many((0..60).map(|n| format!("10.3.9.{n}-32")));
        until(&mut view, "junk again", |view| count(view) == (51, 10)).await;
        server.put("10.3.9.0-24", LEASE);
        until(&mut view, "a lease", |view| view.leases.known().len() == 2).await;
    });
}

#[test]
fn forty_thousand_junk_keys_cost_little_memory() {
    let server = Server::start();
    let conf = NetConf::parse(CONFIG.as_bytes()).unwrap();
    server.put_many((0..20_000).map(|n| format!("10.3.{}.{}-32", n / 250, n % 250)));
    server.put_many((0..20_000).map(|n| format!("10.3.9.0-24&fd00:0:0:{n:x}::-64")));
    block_on(async {
        let etcd = server.etcd();
        let before = resident();
        let lease = patiently(async || etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await)
            .await
            .unwrap();
        etcd.set_own_lease(&lease.subnet, &conf);
        let mut view = watched(&etcd);
        until(&mut view, "ours", |view| view.leases.known().iter().any(|one| one.subnet == lease.subnet))
            .await;
        // The list is read page by page; of its entries, 8192 that could be leases stay in memory.
        let cost = resident().saturating_sub(before);
        assert!(cost < 20 << 20, "{} MB", cost >> 20);
        let known = view.borrow().leases.known().len();
        assert!(known <= 8193, "{known}");
    });
}

/// Leases of another `SubnetLen` belong to nodes that have not changed yet.
#[test]
fn leases_of_another_subnet_len_are_peers_and_impossible_ones_take_nothing() {
    let server = Server::start();
    block_on(async {
        let etcd = server.etcd();
        for key in ["10.3.0.0-16", "10.0.0.0-8", "10.3.128.0-17", "10.3.64.0-26", "10.3.128.0-23"] {
            server.put(key, LEASE);
        }
        let conf =
            NetConf::parse(br#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.128.0","SubnetMax":"10.3.130.0"}"#);
        let conf = conf.unwrap();
        let lease = patiently(async || {
            etcd.acquire(&Claim { conf: conf.clone(), ..claim(1, AcceptableSubnet::Any { dice: 7 }) }).await
        })
        .await
        .unwrap();
        assert_eq!(lease.subnet.to_string(), "10.3.130.0-24");
        etcd.set_own_lease(&lease.subnet, &conf);
        let mut view = watched(&etcd);
        let reported = until(&mut view, "ours and two others", |view| view.leases.known().len() == 3).await;
        assert_eq!(reported.warnings.len(), 3, "{:?}", reported.warnings);
    });
}
