//! A lab to play in: builds one, explains how to enter it, and removes it when the shell ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use lab::{Lab, Pod, enter};

use crate::backend::Backend;
use crate::demo::topology;
use crate::paint::{QUIET, TITLE, TYPED, drawing, paint};

pub(crate) fn run(backend: Backend) -> ExitCode {
    let lab = topology().build();
    lab.store.config(backend.config());
    let daemons = lab.start_all(&["--iface=eth0"]);
    let pods = lab.pods();
    let doors = enter::work_dir().join("bin");
    if let Err(why) = make_doors(&lab, &pods, &doors) {
        eprintln!("twill-lab: {}: {why}", doors.display());
        return ExitCode::FAILURE;
    }
    println!("{}", paint(TITLE, &format!("━━ {} ━━", backend.title())));
    println!("{}", drawing(&lab));
    print_help(&lab, &pods);
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "bash".into());
    let path = std::env::var("PATH").unwrap_or_default();
    let ended = Command::new(&shell).env("PATH", format!("{}:{path}", doors.display())).status();
    drop(daemons);
    println!("{}", paint(QUIET, "The lab is gone."));
    match ended {
        Ok(_) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("twill-lab: {}: {why}", shell.display());
            ExitCode::FAILURE
        }
    }
}

/// Writes a command for each node and pod that runs its arguments there, with the node's own /run/flannel.
fn make_doors(lab: &Lab, pods: &[Pod], dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    std::os::unix::fs::symlink(topology().executable(), dir.join("twill"))?;
    let door = |name: &str, line: &str| {
        let path = dir.join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\n[ $# -gt 0 ] || set -- env 'PS1={name}# ' bash --norc\nexec {line}\n"),
        )?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    };
    for node in lab.nodes() {
        let view = format!("mount --bind {} /run/flannel && exec \"$@\"", node.run_dir().display());
        door(&node.name, &format!("ip netns exec {} sh -c '{view}' sh \"$@\"", node.name))?;
    }
    pods.iter().try_for_each(|pod| door(&pod.name, &format!("ip netns exec {} \"$@\"", pod.name)))
}

fn print_help(lab: &Lab, pods: &[Pod]) {
    for (node, pod) in lab.nodes().iter().zip(pods) {
        println!("    {} {:15} -> {} {}", node.name, node.ip.to_string(), pod.name, pod.ip());
    }
    let say = |command: &str, what: &str| println!("    {}{what}", paint(TYPED, &format!("{command:44}")));
    println!(
        "\nCommands named node1 to node4 and pod1 to pod4 run their arguments there (the router: ip netns exec router):"
    );
    say("node1", "a shell on node1; or: ip netns exec node1 bash");
    say(&format!("pod1 ping {}", pods[3].ip()), "from pod to pod");
    say("node1 twill status", "the state of its daemon");
    say("node1 ip route", "the routes that it made");
    println!("Break something, and look again:");
    say(&format!("node1 ip route delete {}", lab.node(2).subnet()), "");
    say("node1 ip link delete flannel.1", "(vxlan)");
    say("node1 ip monitor route", "in another shell, to watch the repair");
    println!(
        "Also: the daemons' logs in {}, the store in {}.",
        enter::work_dir().join("log").display(),
        lab.store.place()
    );
    if let Some(door) = enter::door() {
        let way = format!("nsenter {} -t $(pgrep -P {door}) bash", namespaces());
        println!("From another terminal: {}", paint(TYPED, &way));
    }
    println!("{}\n", paint(QUIET, "Leave with exit or Ctrl-D; daemons and namespaces are removed."));
}

/// Returns nsenter's options for the user of this lab. Root may enter all namespaces, other users only those that the
/// lab's user namespace owns.
fn namespaces() -> &'static str {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if map.split_whitespace().nth(1) == Some("0") { "-a" } else { "-U --preserve-credentials -m -n -p" }
}
