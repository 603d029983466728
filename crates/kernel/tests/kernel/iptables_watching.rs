//! Tests of the watch of iptables-legacy, which sends no notifications: relevant changes are reported soon, others
//! never.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use kernel::LegacyWatch;
use lab::Timing::Timed;

use crate::iptables_scene::{JUMP, calls, count_calls};
use crate::scene::sh;

const SOON: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_millis(1200);

/// Sends one message for each return of the watch.
fn watch() -> Receiver<()> {
    let (tell, told) = mpsc::channel();
    let mut watch = LegacyWatch::new(1);
    thread::spawn(move || {
        loop {
            watch.wait();
            if tell.send(()).is_err() {
                return;
            }
        }
    });
    told
}

#[test]
fn only_relevant_changes_are_reported_and_within_a_second() {
    lab::test(Timed, || {
        count_calls("xtables-legacy-multi");
        let told = watch();
        assert!(told.recv_timeout(LONG).is_err(), "nothing is there");
        assert_eq!(calls(), 0, "while nothing is there no process is started");
        sh("iptables-legacy -t mangle -L");
        assert!(lab::until(SOON, || told.try_recv().ok()).is_some(), "a table more");
        sh("for t in iptables-legacy ip6tables-legacy; do $t -N FLANNEL-FWD; $t -A INPUT -j ACCEPT; done");
        while told.recv_timeout(LONG).is_ok() {}
        for (line, matters) in [
            ("-P FORWARD DROP", true),
            ("-P FORWARD ACCEPT", true),
            (&format!("-A FORWARD {JUMP}"), true),
            ("-A FLANNEL-FWD -j ACCEPT", true),
            ("-D FLANNEL-FWD 1", true),
            ("-D FORWARD 1", true),
            ("-A OUTPUT -j ACCEPT", true),
            ("-N THEIRS", false),
            ("-L", false),
        ] {
            for tool in ["iptables-legacy", "ip6tables-legacy"] {
                if tool == "ip6tables-legacy" && line.contains("FLANNEL")
                    || tool.starts_with("ip6") && line.starts_with("-D")
                {
                    continue;
                }
                sh(&format!("{tool} {line}"));
                assert_eq!(lab::until(SOON, || told.try_recv().ok()).is_some(), matters, "{tool} {line}");
                assert!(told.recv_timeout(LONG).is_err(), "{tool} {line}: once is enough");
            }
        }
        sh("ping -q -c 2 -i 0.2 127.0.0.1");
        assert!(told.recv_timeout(LONG).is_err(), "packets are no change");
    });
}
