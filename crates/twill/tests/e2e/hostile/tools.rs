//! A tool that prints without end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lab::{Timing, Topology};

use super::Watch;
use crate::cluster::{self, FLAGS, SOON, VXLAN};

/// As the real one until that file is there, then 300 MB of what looks like the beginning of an answer.
const TOOL: &str = r#"#!/bin/sh
case "$*" in *list*) if [ -e FLAG ]; then printf '{"nftables":[{"x":"'; exec head -c 300000000 /dev/zero; fi ;; esac
exec /usr/sbin/nft "$@"
"#;

#[test]
fn nft_that_prints_without_end_is_told_and_not_read() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN);
        let node = lab.node(1);
        let dir = node.run_dir().join("bin");
        fs::create_dir(&dir).unwrap();
        let flag = node.run_dir().join("now");
        let tool = dir.join("nft");
        fs::write(&tool, TOOL.replace("FLAG", "/run/flannel/now")).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        let path = "PATH=/run/flannel/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let daemon = node.start_under(&["env", path], &[FLAGS, &["--ip-masq"]].concat());
        daemon.wait_ready();
        let others = [lab.node(2).start(FLAGS), lab.node(3).start(FLAGS)];
        others.iter().for_each(lab::Daemon::wait_ready);
        let pods = lab.pods();
        cluster::reach_each_other(&pods);
        let watch = Watch::begin("nft", node, &daemon, Some((&pods[0], &pods[2])));
        fs::write(&flag, "").unwrap();
        node.ns.run("nft delete chain ip flannel-ipv4 forward");
        lab::wait_for("it is told", SOON, || {
            node.twill(&["status"]).contains("it printed more than 1 MiB and was stopped")
        });
        std::thread::sleep(Duration::from_secs(2));
        watch.end();
        fs::remove_file(&flag).unwrap();
    });
}
