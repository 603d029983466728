//! A killed lab leaves nothing behind, and a running one does not touch the host.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Timing, Topology, until, wait_for};

const VICTIM: &str = "LAB_VICTIM";

/// Returns the processes whose environment has `mark`, each with its network namespace.
fn marked(mark: &str) -> Vec<(String, String)> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let marked = processes.filter(|dir| {
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
    });
    let named = marked.filter_map(|dir| {
        let name = fs::read_to_string(dir.join("comm")).ok()?;
        Some((name.trim().to_owned(), net_of(&dir)?))
    });
    named.collect()
}

fn net_of(process: &std::path::Path) -> Option<String> {
    Some(fs::read_link(process.join("ns/net")).ok()?.display().to_string())
}

fn all_nets() -> BTreeSet<String> {
    fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| net_of(&entry.path())).collect()
}

#[test]
fn a_killed_lab_leaves_nothing_behind() {
    if std::env::var_os(VICTIM).is_some() {
        return lab::test(Timing::Free, || {
            let lab = Topology::flat(2).build();
            let mut sleeper = lab.node(2).ns.command("sleep").arg("600").spawn().expect("sleep starts");
            sleeper.wait().expect("killed with the lab");
        });
    }
    let mark = format!("{VICTIM}={}", std::process::id());
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count();
    let (before, own) = (mounts(), net_of("/proc/self".as_ref()).expect("own namespace"));
    let mut victim = Command::new(std::env::current_exe().expect("own executable"));
    victim.args(["--exact", "enter::a_killed_lab_leaves_nothing_behind", "--nocapture"]);
    victim.env(VICTIM, std::process::id().to_string()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut victim = victim.spawn().expect("the victim starts");

    let up = || {
        let all = marked(&mark);
        all.iter().any(|(name, _)| name == "sleep").then_some(all)
    };
    let all = until(Duration::from_secs(20), up).expect("the victim's lab comes up");
    let nets: BTreeSet<_> = all.into_iter().map(|(_, net)| net).filter(|net| *net != own).collect();
    assert!(nets.len() >= 2, "the lab's own network and a node's: {nets:?}");
    assert!(nets.is_subset(&all_nets()));

    victim.kill().expect("kill -9");
    victim.wait().expect("dead");
    let limit = Duration::from_secs(5);
    wait_for("all processes of the lab gone", limit, || marked(&mark).is_empty());
    wait_for("all namespaces of the lab gone", limit, || all_nets().is_disjoint(&nets));
    assert_eq!(mounts(), before, "no mount is left");
}

/// The lab has its own /dev/shm: libfaketime keeps a semaphore there, named after the process id, which many labs share.
#[test]
fn shared_memory_is_the_labs_own() {
    let name = format!("/dev/shm/lab-{}", std::process::id());
    if !lab::enter::inside() {
        fs::write(&name, "the host's").expect("/dev/shm is there");
    }
    let ended = std::panic::catch_unwind(|| {
        lab::test(Timing::Free, || {
            let names: Vec<_> =
                fs::read_dir("/dev/shm").expect("/dev/shm").flatten().map(|entry| entry.path()).collect();
            assert!(names.is_empty(), "{names:?}");
            fs::write("/dev/shm/own", "the lab's").expect("it can be written");
        });
    });
    if !lab::enter::inside() {
        assert!(!fs::exists("/dev/shm/own").expect("/dev/shm"), "the lab writes into the host's /dev/shm");
        fs::remove_file(name).expect("our own file");
    }
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn the_hosts_network_is_invisible_in_the_lab() {
    let host = fs::read_to_string("/proc/self/net/dev").expect("devices");
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).build();
        let links = lab.node(1).ns.run("ip -o link | wc -l");
        assert_eq!(links.trim(), "2", "lo and eth0");
        let own = Command::new("ip").args(["-br", "link"]).output().expect("ip");
        let own = String::from_utf8_lossy(&own.stdout).into_owned();
        let names: BTreeSet<_> = own.lines().filter_map(|line| line.split(['@', ' ']).next()).collect();
        assert_eq!(names, BTreeSet::from(["lo", "node1", "segA"]));
    });
    let after = fs::read_to_string("/proc/self/net/dev").expect("devices");
    let names = |text: &str| {
        text.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(names(&host), names(&after));
}
