//! A writer of the store fills it with text: large, many, ever new, with control characters.

use std::time::{Duration, Instant};

use lab::{EtcdSetup, Lab, Timing, Topology};

use super::Watch;
use crate::cluster::{self, SOON, VXLAN, VXLAN_DUAL};

/// Duration of the attack.
const SPAN: Duration = Duration::from_secs(20);
/// Time between two rounds of the attack.
const PAUSE: Duration = Duration::from_millis(50);

/// Returns an invalid lease of some 60 kB, with ever new text and characters that a terminal acts on.
fn junk(turn: usize, key: usize) -> String {
    let fill = format!("{turn}-{key}-\\u001b[2J\\n\\u202e{}", "x".repeat(59_900));
    match key % 3 {
        0 => format!(r#"{{"PublicIP":"{fill}"}}"#),
        1 => format!(
            r#"{{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{{"VtepMAC":"{fill}"}}}}"#
        ),
        _ => format!(r#"{{"PublicIP":{{"{fill}":1}}}}"#),
    }
}

fn names() -> Vec<String> {
    (0..10).map(|key| format!("10.244.{key}.0-24")).collect()
}

fn rewritten(topology: Topology, name: &str, config: &str, flags: &[&str]) {
    let lab = cluster::lab(topology, config);
    let (daemons, pods) = cluster::start_with(&lab, flags);
    cluster::reach_each_other(&pods);
    let watch = Watch::begin(name, lab.node(1), &daemons[0], Some((&pods[0], &pods[2])));
    let begun = Instant::now();
    let mut turns = 0;
    while begun.elapsed() < SPAN {
        let round = Instant::now();
        let leases: Vec<_> =
            names().into_iter().enumerate().map(|(key, name)| (name, junk(turns, key))).collect();
        lab.store.put_leases(&leases);
        turns += 1;
        if turns % 20 == 0 {
            watch.is_quick(lab.node(2));
        }
        std::thread::sleep(PAUSE.saturating_sub(round.elapsed()));
    }
    println!("{turns} rounds of {} keys", names().len());
    watch.end();
    bounded_pages(&lab);
}

/// Asserts that the pages about it are short and harmless.
fn bounded_pages(lab: &Lab) {
    let node = lab.node(1);
    let ready = node.get("/readyz").unwrap();
    assert_eq!(ready.status, 200);
    let status = node.twill(&["status"]);
    for (page, text) in
        [("/readyz", &ready.body), ("/metrics", &node.get("/metrics").unwrap().body), ("status", &status)]
    {
        assert!(text.len() <= 64 << 10, "{page} has {} bytes", text.len());
        let odd = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(odd, None, "{page}");
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest.is_none_or(|longest| longest <= 600), "{page}: a line of {longest:?} characters");
    }
}

#[test]
fn changing_junk_in_a_directory_stays_within_limits() {
    lab::test(Timing::Timed, || rewritten(Topology::flat(3), "words", VXLAN, &[]));
}

#[test]
fn changing_junk_in_etcd_stays_within_limits() {
    lab::test(Timing::Timed, || {
        rewritten(Topology::flat(3).etcd(EtcdSetup::http()), "etcd-words", VXLAN, &[]);
    });
}

#[test]
fn changing_junk_stays_within_limits_in_a_json_log() {
    lab::test(Timing::Timed, || {
        rewritten(Topology::flat(3), "json-words", VXLAN_DUAL, &["--log-format=json", "--v=5"]);
    });
}

/// The leases exist before the daemon starts, and stay.
#[test]
fn sixty_lasting_warnings_fit_a_short_page() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let leases: Vec<_> =
            (0..60).map(|key| (format!("10.244.{}.{}-28", key / 15, key % 15 * 16), junk(0, key))).collect();
        lab.store.put_leases(&leases);
        daemons[0].kill9();
        daemons[0].restart();
        daemons[0].wait_ready();
        let watch = Watch::begin("standing", lab.node(1), &daemons[0], Some((&pods[0], &pods[2])));
        lab::wait_for("it is reported", SOON, || lab.node(1).get("/readyz").unwrap().body.contains("more"));
        // Sixteen simultaneous requests share one page.
        lab.node(1).ns.within(|| {
            std::thread::scope(|scope| {
                (0..16).for_each(|_| _ = scope.spawn(|| lab.node(1).get("/readyz")));
            });
        });
        watch.is_quick(lab.node(2));
        watch.end();
        bounded_pages(&lab);
    });
}

/// Each lease is well formed and has another kind of fault; none hides the node's own.
#[test]
fn peers_that_come_and_go_hide_no_fault_of_the_node() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let (daemons, pods) = cluster::start(&lab);
        cluster::reach_each_other(&pods);
        let node = lab.node(1);
        let watch = Watch::begin("flapping", node, &daemons[0], Some((&pods[0], &pods[2])));
        let lease = |key: usize, turn: usize| {
            let address = format!("203.0.113.{}", (turn + key) % 200 + 1);
            let mac = format!("02:00:00:00:{:02x}:{key:02x}", turn % 250);
            format!(
                r#"{{"PublicIP":"{address}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            )
        };
        for turn in 0..200 {
            let leases: Vec<_> =
                (0..15).map(|key| (format!("10.244.{key}.0-24"), lease(key, turn))).collect();
            lab.store.put_leases(&leases);
            std::thread::sleep(PAUSE);
            if turn == 100 {
                // The node's own fault is reported among all of them.
                lab.store.config(&VXLAN.replace(r#""Type":"vxlan""#, r#""Type":"vxlan","VNI":"x""#));
                lab::wait_for("the config is named", SOON, || daemons[0].log().contains(r#"key "VNI""#));
                lab.store.config(VXLAN);
            }
        }
        watch.is_quick(lab.node(2));
        watch.end();
    });
}
