//! Two daemons on one node: refused where they would fight, side by side where they would not.

use std::fs;
use std::process::{Child, Stdio};

use lab::{Node, Timing, Topology, View, eyes};

use crate::cluster::{self, SOON, VXLAN};

/// A process that goes with its owner, a failed test included.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a daemon beside the first one, with a store of its own that holds `config`.
fn second(node: &Node, config: &str, flags: &[&str]) -> std::process::Command {
    let store = node.run_dir().with_file_name(format!("second-store-{}", node.index));
    fs::create_dir_all(&store).unwrap();
    fs::write(store.join("config"), config).unwrap();
    let store = format!("--store={}", store.display());
    let mut args = vec!["daemon", &store, "--cache-dir=", "--iface=eth0"];
    args.extend_from_slice(flags);
    node.twill_command(&args)
}

#[test]
fn with_the_same_file_network_or_vni_it_is_refused() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let _first = lab.start_all(cluster::FLAGS);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        let own_file = "--subnet-file=/run/flannel/second.env";
        let own_socket = "--socket=/run/flannel/second.sock";
        let around = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"host-gw"}}"#;
        let vni_1 = r#"{"Network":"10.250.0.0/16","Backend":{"Type":"vxlan"}}"#;
        for (config, flags, word) in [
            (VXLAN, &[][..], "another daemon writes"),
            (VXLAN, &[own_file], "--socket"),
            (VXLAN, &[own_file, own_socket], "another daemon of this node has network 10.244.0.0/16"),
            (around, &[own_file, own_socket], "another daemon of this node has network 10.244.0.0/16"),
            (vni_1, &[own_file, own_socket], "another daemon of this node has VNI 1"),
        ] {
            let output = second(node, config, flags).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(word), "{said}");
            assert!(node.twill(&["status"]).contains("ready"), "the first one still answers");
        }
        assert_eq!(before.diff(&View::of(&node.ns)), "");
        assert_eq!(node.get("/readyz").unwrap().status, 200);
    });
}

#[test]
fn with_others_both_work_and_neither_touches_the_other() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let (mut daemons, pods) = cluster::start(&lab);
        let node = lab.node(1);
        let before = View::of(&node.ns);
        let config = r#"{"Network":"10.250.0.0/16","Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#;
        let mut command = second(
            node,
            config,
            &["--subnet-file=/run/flannel/second.env", "--socket=/run/flannel/second.sock"],
        );
        let beside = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        lab::wait_for("the second is ready", SOON, || node.run_dir().join("second.env").exists());
        let now = View::of(&node.ns);
        assert!(now.link("flannel.7").is_some());
        let of_first = |view: &View| {
            eyes::ours(view)
                .filter(|row| row.device() != "flannel.7")
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(of_first(&before), of_first(&now));
        daemons[0].kill9();
        daemons[0].restart();
        daemons[0].wait_ready();
        assert_eq!(now.diff(&View::of(&node.ns)), "");
        drop(beside);
        assert!(pods[0].ping(pods[1].ip()).is_some());
    });
}
