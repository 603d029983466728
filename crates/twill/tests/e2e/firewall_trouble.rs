//! A node without the tools that rules need, or with foreign objects in the way. The message is clear, an alternative is used if
//! there is one, and nothing foreign is lost.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lab::{Iptables, Lab, Node, Protocol, Timing, Topology, Witness, seen_source};

use crate::cluster::{self, FLAGS, SOON};
use crate::traffic::{MASQ, Manager, OUTSIDES, has_chains, lines, of_node, rules, tables};

/// Returns a PATH with these tools only, and with one tool in place of another.
fn path_with(tools: &[&str], posing: Option<(&str, &str)>) -> String {
    let dir: PathBuf = lab::enter::work_dir().join("tools");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    for (name, tool) in tools.iter().map(|tool| (*tool, *tool)).chain(posing) {
        let real = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|place| Path::new(place).join(tool));
        symlink(real.into_iter().find(|file| file.exists()).unwrap(), dir.join(name)).unwrap();
    }
    format!("PATH={}", dir.display())
}

const IPTABLES: [&str; 12] = [
    "iptables-nft",
    "iptables-nft-save",
    "iptables-nft-restore",
    "ip6tables-nft",
    "ip6tables-nft-save",
    "ip6tables-nft-restore",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];

/// Program that has the rules, if any, and a part of the message. Pods are masqueraded only with such a program.
struct Expected {
    who: Option<&'static str>,
    said: &'static str,
}

fn lacking(path: &str, manager: Manager, expected: &Expected) {
    let lab = cluster::lab(Topology::flat(1).outside(), &manager.config("vxlan"));
    let node = lab.node(1);
    let mut daemon = node.start_under(&["env", path], MASQ);
    daemon.wait_ready();
    let pod = node.pod();
    let is = |who: &str| {
        if who == "nftables" { has_chains(&node.ns) } else { !lines(&node.ns, Iptables::Nft).is_empty() }
    };
    lab::wait_for(&format!("{manager:?}: {:?}: {}", expected.who, rules(&node.ns)), SOON, || {
        ["nftables", "iptables-nft"].iter().all(|who| is(who) == (expected.who == Some(who)))
    });
    let mut status = String::new();
    let is_said = lab::until(SOON, || {
        status = node.twill(&["status"]);
        status.contains(expected.said).then_some(())
    });
    assert!(is_said.is_some(), "{manager:?}: no \"{}\" in:\n{status}", expected.said);
    let _witness = Witness::start(lab.outside());
    let seen = OUTSIDES.map(|to| seen_source(&pod.ns, Protocol::Udp, to).map(|seen| seen.ip()));
    let own = of_node(node);
    assert_eq!(seen, own.map(|own| expected.who.map(|_| own)), "{manager:?}");
    assert!(daemon.is_alive());
}

#[test]
fn without_an_nft_binary_iptables_has_the_rules() {
    lab::test(Timing::Free, || {
        let path = path_with(&IPTABLES, None);
        for manager in [Manager::Auto, Manager::Nft] {
            lacking(&path, manager, &Expected { who: Some("iptables-nft"), said: "nftables cannot be used" });
        }
    });
}

/// Every call of nft fails, as on a kernel without nf_tables.
#[test]
fn iptables_has_the_rules_if_nft_always_fails() {
    lab::test(Timing::Free, || {
        let path = path_with(&IPTABLES, Some(("nft", "false")));
        for manager in [Manager::Auto, Manager::Nft] {
            lacking(
                &path,
                manager,
                &Expected { who: Some("iptables-nft"), said: "nftables cannot be used (nft:" },
            );
        }
    });
}

#[test]
fn without_an_iptables_binary_nftables_has_the_rules() {
    lab::test(Timing::Free, || {
        let path = path_with(&["nft"], None);
        lacking(&path, Manager::Auto, &Expected { who: Some("nftables"), said: "nftables" });
        lacking(&path, Manager::Nft, &Expected { who: Some("nftables"), said: "EnableNFTables is true" });
        let said = "there is no iptables on this node";
        lacking(&path, Manager::Iptables, &Expected { who: Some("nftables"), said });
    });
}

#[test]
fn without_both_tools_a_warning_says_so() {
    lab::test(Timing::Free, || {
        let path = path_with(&[], None);
        let lab = cluster::lab(Topology::flat(1), &Manager::Auto.config("vxlan"));
        let node = lab.node(1);
        let mut daemon = node.start_under(&["env", &path], MASQ);
        let why = "neither nftables nor iptables can be used";
        lab::wait_for("it is said", SOON, || {
            let ready = node.get("/readyz").map_or(String::new(), |reply| reply.body);
            ready.contains(why) && node.twill(&["status"]).contains(why) && daemon.log().contains(why)
        });
        assert!(daemon.is_alive());
    });
}

/// Masquerading was not requested, and nothing refuses pods' packets: the network works without rules.
#[test]
fn without_both_tools_and_without_need_the_network_works() {
    lab::test(Timing::Free, || {
        let path = path_with(&[], None);
        let lab = cluster::lab(Topology::flat(2), &Manager::Auto.config("vxlan"));
        let _daemons = [1, 2].map(|k| lab.node(k).start_under(&["env", &path], FLAGS));
        cluster::reach_each_other(&lab.pods());
    });
}

fn in_background(node: &Node, line: &str) -> Child {
    let mut command = node.ns.command("sh");
    command.args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn legacy_is_complete(lab: &Lab) -> bool {
    lab.nodes().iter().all(|node| {
        lines(&node.ns, Iptables::Legacy).iter().filter(|line| line.starts_with("-A")).count() == 20
    })
}

/// iptables-legacy has one lock for the whole node, which a program may hold for long. Work that needs no lock goes on.
#[test]
fn an_iptables_lock_held_for_15_s_delays_only_the_rules() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), &Manager::Iptables.config("vxlan"));
        for node in lab.nodes() {
            Iptables::Legacy.run(&node.ns, "-t mangle -A FORWARD -m mark --mark 0x77 -j RETURN");
        }
        let daemons = lab.start_all(MASQ);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        lab::wait_for("all rules", SOON, || legacy_is_complete(&lab));
        let node = lab.node(1);
        let holder = in_background(node, "exec flock -F /run/xtables.lock sleep 60");
        let is_held = || !node.ns.output("flock -n /run/xtables.lock true").status.success();
        lab::wait_for("it is held", SOON, is_held);
        let held = Instant::now();
        // This tool uses another lock.
        node.ns.run("XTABLES_LOCKFILE=/run/other.lock iptables-legacy -t nat -F");
        lab::wait_for("it is said", Duration::from_secs(12), || {
            daemons[0].log().lines().any(|line| line.contains("lock") && line.contains("iptables-legacy"))
        });
        println!("said {:?} after the lock was taken", held.elapsed());
        let route = lab.node(2).subnet();
        node.ns.run(&format!("ip route del {route}"));
        let deleted = Instant::now();
        lab::wait_for("the route is back", SOON, || node.ns.run("ip route").contains(&route));
        let took = deleted.elapsed();
        println!("a route came back {took:?} after it was deleted");
        cluster::reach_each_other(&pods);
        let rest = Duration::from_secs(15).saturating_sub(held.elapsed());
        lab::holds_for("no rule yet", rest, || !legacy_is_complete(&lab));
        end(holder);
        let released = Instant::now();
        lab::wait_for("all rules again", Duration::from_secs(35), || legacy_is_complete(&lab));
        println!("all rules again {:?} after the lock was released", released.elapsed());
        for (node, daemon) in lab.nodes().iter().zip(&daemons) {
            let mangle = node.ns.run("iptables-legacy -w -t mangle -S FORWARD");
            assert!(mangle.contains("--mark 0x77"), "{mangle}");
            lab::wait_for(&daemon.log(), SOON, || {
                node.get("/readyz").is_some_and(|ready| ready.status == 200)
            });
        }
        lab::in_time("a route beside a held lock", took, Duration::from_secs(1));
    });
}

#[test]
fn a_foreign_chain_in_our_table_stays_and_is_reported() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1).outside(), &Manager::Nft.config("vxlan"));
        let (node, _witness) = (lab.node(1), Witness::start(lab.outside()));
        node.ns.run("nft 'table ip flannel-ipv4 { chain mine { ip saddr 192.0.2.1 counter drop; }; }'");
        let daemon = node.start(MASQ);
        daemon.wait_ready();
        let pod = node.pod();
        lab::wait_for("it is said", SOON, || {
            let status = node.twill(&["status"]);
            status.contains("chain mine in nftables' table ip flannel-ipv4 is none of ours")
        });
        assert!(OUTSIDES.iter().all(|to| seen_source(&pod.ns, Protocol::Udp, *to).is_some()));
        let mine = || {
            tables(&node.ns).contains("chain mine")
                && tables(&node.ns).contains("ip saddr 192.0.2.1 counter drop")
        };
        assert!(mine(), "{}", tables(&node.ns));
        // The chain stays even when all of ours goes.
        lab.store.config(&Manager::Iptables.config("host-gw"));
        lab::wait_for("ours go", SOON, || !has_chains(&node.ns));
        assert!(mine(), "{}", tables(&node.ns));
    });
}

/// A running program owns the table, so that no second one may touch it.
#[test]
fn a_foreign_table_of_our_name_is_reported_until_it_is_gone() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), &Manager::Nft.config("vxlan"));
        let node = lab.node(1);
        let owner = in_background(node, "exec nft -i");
        let line = b"add table ip flannel-ipv4 { flags owner; }\n";
        std::io::Write::write_all(&mut owner.stdin.as_ref().unwrap(), line).unwrap();
        lab::wait_for("it is owned", SOON, || tables(&node.ns).contains("flags owner"));
        let daemon = node.start(MASQ);
        daemon.wait_ready();
        let says = |text: &str| text.contains("another process owns table ip flannel-ipv4");
        lab::wait_for("log and status say it", SOON, || {
            says(&daemon.log()) && says(&node.twill(&["status"]))
        });
        assert!(tables(&node.ns).contains("flags owner"));
        assert!(!lines(&node.ns, Iptables::Nft).is_empty(), "{}", rules(&node.ns));
        end(owner);
        lab::wait_for("ours are there", Duration::from_secs(35), || {
            tables(&node.ns).contains("10.244.0.0/16 accept") && lines(&node.ns, Iptables::Nft).is_empty()
        });
        lab::wait_for("the warning is over", SOON, || !says(&node.twill(&["status"])));
    });
}
