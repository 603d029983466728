//! A program of the administrator's that prints without end stands in PATH for a tool of the firewall.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lab::{Timing, Topology};

use super::{MEMORY, REPAIR, peak};
use crate::cluster::{self, SOON, VXLAN};

/// An nft prints output without end, then errors without end; then an iptables-save prints more rules than any node has.
#[test]
fn a_tool_that_prints_without_end_costs_no_memory() {
    lab::test(Timing::Timed, || {
        prints("nft", "exec yes '{\"nftables\":[]}'", "nft: it printed more than 1 MiB and was stopped");
        prints("nft", "exec yes 'Error: no' >&2", "nft: Error: no Error: no");
        let rule = "exec yes -- '-A FORWARD -j ACCEPT'";
        prints("iptables-nft-save", rule, "it printed more than 24 MiB and was stopped");
        let no_text = "exec yes \"$(printf '\\377\\377\\377')\"";
        prints("iptables-nft-save", no_text, "it printed more than 24 MiB and was stopped");
    });
}

fn prints(tool: &str, script: &str, said: &str) {
    let lab = cluster::lab(Topology::flat(2), VXLAN);
    let node = lab.node(1);
    let tools = lab::enter::work_dir().join("endless");
    fs::create_dir_all(&tools).unwrap();
    let file = tools.join(tool);
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("PATH={}:{}", tools.display(), std::env::var("PATH").unwrap());
    let daemon = node.start_under(&["env", &path], cluster::FLAGS);
    let peer = lab.node(2).start(cluster::FLAGS);
    peer.wait_ready();
    lab::wait_for(&format!("the log has \"{said}\""), SOON, || daemon.log().contains(said));
    let subnet = lab.node(2).subnet();
    let is_there = || node.ns.run("ip route show proto 84").contains(&subnet);
    lab::wait_for("the peer's route is there", SOON, is_there);
    let memory = peak(&daemon);
    println!("{tool}, {script}: {} KiB at the peak", memory >> 10);
    assert!(memory < MEMORY, "{} KiB at the peak", memory >> 10);
    node.ns.run(&format!("ip route del {subnet}"));
    lab::wait_for("the route is back", REPAIR, is_there);
}
