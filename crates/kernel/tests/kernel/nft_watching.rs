//! Tests of the monitor of traffic rules: changes of our rules are reported, the thousands of others are not.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use kernel::Kernel;
use lab::Timing::Free;
use plan::Family;
use plan::backend::SourceFilter;

use crate::nft_scene::*;
use crate::nftables::{forge, storm};
use crate::scene::*;

const SOON: Duration = Duration::from_secs(5);

/// A watch with a thread of its own that waits on it.
struct Ear(Receiver<Instant>);

impl Ear {
    fn open() -> Self {
        Self::beside(&Kernel::open().unwrap())
    }

    fn beside(kernel: &Kernel) -> Self {
        let mut watch = kernel.watch_firewall().unwrap();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || while watch.wait().is_ok() && tell.send(Instant::now()).is_ok() {});
        Self(told)
    }

    /// Waits until no more reports arrive, and returns their number.
    fn rest(&self) -> usize {
        let mut count = 0;
        while self.0.recv_timeout(Duration::from_millis(150)).is_ok() {
            count += 1;
        }
        count
    }

    #[track_caller]
    fn hears(&self, line: &str) {
        self.rest();
        sh(line);
        assert!(lab::until(SOON, || self.0.try_recv().ok()).is_some(), "`{line}` woke nobody");
    }

    #[track_caller]
    fn sleeps(&self, line: &str) {
        self.rest();
        sh(line);
        assert_eq!(self.rest(), 0, "`{line}` woke");
    }
}

#[test]
fn only_relevant_changes_wake() {
    lab::test(Free, || {
        settled(&wanted(Wish::default()));
        let ear = Ear::open();
        for table in ["ip flannel-ipv4", "ip6 flannel-ipv6"] {
            let peer = if table.starts_with("ip6") { "2001:db8::2" } else { "192.0.2.2" };
            ear.hears(&format!("nft delete element {table} vteps {{ {peer} }}"));
            ear.hears(&format!("nft insert rule {table} forward tcp dport 22 drop"));
            ear.hears(&format!("nft flush chain {table} postrtg"));
            ear.hears(&format!("nft delete chain {table} postrtg"));
            let filters = format!("flush chain {table} vxlan; flush chain {table} vxlan-pods");
            ear.hears(&format!("nft '{filters}; delete set {table} vteps'"));
            ear.hears(&format!("nft 'delete set {table} keeper'"));
            ear.hears(&format!("nft delete table {table}"));
            ear.hears(&format!("nft add table {table}"));
        }
        ear.hears("nft flush ruleset");
        for tool in ["iptables-nft", "ip6tables-nft"] {
            ear.hears(&format!("{tool} -A FORWARD -j ACCEPT"));
            ear.hears(&format!("{tool} -P FORWARD DROP"));
            ear.hears(&format!("{tool} -t nat -A POSTROUTING -j ACCEPT"));
            ear.hears(&format!("{tool} -N FLANNEL-FWD"));
            ear.hears(&format!("{tool} -A FLANNEL-FWD -j ACCEPT"));
            ear.hears(&format!("{tool} -t nat -N FLANNEL-POSTRTG"));
            ear.hears(&format!("{tool} -t nat -A FLANNEL-POSTRTG -j ACCEPT"));
            ear.hears(&format!("{tool} -D FORWARD -j ACCEPT"));
            ear.hears(&format!("{tool} -A INPUT -j ACCEPT"));
            ear.hears(&format!("{tool} -A OUTPUT -j ACCEPT"));
            ear.sleeps(&format!("{tool} -t nat -N KUBE-SERVICES; {tool} -t nat -A KUBE-SERVICES -j ACCEPT"));
            ear.hears(&format!("{tool} -t mangle -A FORWARD -j ACCEPT"));
            ear.hears(&format!("{tool} -t mangle -A INPUT -j ACCEPT"));
        }
        ear.hears("nft add table inet firewalld");
        ear.sleeps("nft add chain inet firewalld filter_FORWARD");
        ear.hears("nft delete table inet firewalld");
        ear.sleeps("nft add table inet other");
        ear.sleeps("nft add table ip6 flannel-ipv4");
    });
}

#[test]
fn our_own_change_of_a_peer_causes_no_event() {
    lab::test(Free, || {
        let mut kernel = settled(&wanted(Wish::default()));
        look(&mut kernel);
        let ear = Ear::beside(&kernel);
        let peer = element([192, 0, 2, 77]);
        for change in [add(peer.clone()), delete(peer)] {
            applies(&mut kernel, &[change]);
            assert_eq!(ear.rest(), 0);
            let known = look_again(&mut kernel).0;
            assert_eq!(known, look(&mut kernel).0);
        }
        ear.hears("nft 'add element ip flannel-ipv4 vteps { 192.0.2.78 }'");
    });
}

#[test]
fn keeping_rules_in_force_causes_no_event() {
    lab::test(Free, || {
        let mut kernel = settled(&wanted(Wish { filter: SourceFilter::Drop, ..Wish::default() }));
        look(&mut kernel);
        let ear = Ear::beside(&kernel);
        kernel.keep_rules(&Family::ALL).unwrap();
        assert_eq!(ear.rest(), 0);
        ear.hears("nft flush set ip flannel-ipv4 keeper");
    });
}

#[test]
fn thousands_of_foreign_rules_cause_no_event() {
    lab::test(Free, || {
        let mut kernel = settled(&wanted(Wish::default()));
        let ear = Ear::open();
        storm(100, 1000);
        assert_eq!(ear.rest(), 0);
        ear.hears("nft flush chain ip flannel-ipv4 forward");
        round(&mut kernel, &wanted(Wish::default()));
    });
}

#[test]
fn packets_from_unknown_senders_cause_no_event() {
    lab::test(Free, || {
        let mut kernel = settled(&wanted(Wish { filter: SourceFilter::Count, ..Wish::default() }));
        // A set like ours, except that its elements expire during the test.
        sh("nft 'flush chain ip flannel-ipv4 vxlan; flush chain ip flannel-ipv4 vxlan-pods;
                 delete set ip flannel-ipv4 strangers;
                 add set ip flannel-ipv4 strangers {
                     type ipv4_addr; size 1024; flags dynamic,timeout; timeout 300ms; gc-interval 100ms; };
                 add rule ip flannel-ipv4 vxlan udp dport 8472 update @strangers { ip saddr counter }'");
        let ear = Ear::open();
        let there = || sh("nft list set ip flannel-ipv4 strangers").contains("127.0.0.7");
        for host in 1..8 {
            forge(&format!("127.0.0.{host}"), 1);
        }
        assert!(there());
        lab::wait_for("the stranger is forgotten", SOON, || !there());
        assert_eq!(ear.rest(), 0);
        ear.hears("nft flush chain ip flannel-ipv4 vxlan");
        round(&mut kernel, &wanted(Wish::default()));
    });
}
