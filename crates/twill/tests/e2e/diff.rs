//! `twill diff` shows what is missing, reports it by its exit code, and changes nothing.

use std::fs;

use lab::{Monitors, Node, Timing, Topology, View, foreign};

use crate::cluster::{self, SOON, VXLAN, VXLAN_DUAL};

/// Runs `twill diff` and returns exit code, lines and errors. With `--offline` it gets the flags of the lab's daemons.
fn diff(lab: &lab::Lab, node: &Node, args: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let (store, cache) = (lab.store.path().display().to_string(), node.cache_dir().display().to_string());
    let offline = ["--store", &store, "--cache-dir", &cache, "--iface=eth0"];
    let more: &[&str] = if args.contains(&"--offline") { &offline } else { &[] };
    let output = node.twill_output(&[&["diff"], args, more].concat());
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    (output.status.code(), lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn offline_diff_shows_the_ops_of_a_daemon_and_applies_none() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN_DUAL);
        let mut daemons = lab.start_all(cluster::FLAGS);
        let (node, peer) = (lab.node(1), lab.node(2));
        foreign::plant(node, &peer.subnet());
        // A node may be ready before it knows the nodes that start with it.
        lab::wait_for("nothing is left to be done", SOON, || {
            diff(&lab, node, &["--offline"]) == (Some(0), vec![], String::new())
        });
        daemons[0].kill9();
        let healthy = View::of(&node.ns);
        let (subnet, subnet6) = (peer.subnet(), peer.subnet6());
        node.ns.run(&format!(
            "ip route del {subnet}; ip route replace {subnet6} via {} dev eth0; ip neigh add 10.244.250.0 lladdr \
             02:00:00:00:0f:01 dev flannel.1 nud permanent; ip link set flannel.1 mtu 1400",
            node.gateway6()
        ));
        let (harmed, leases) = (View::of(&node.ns), lab.store.leases());
        let monitors = Monitors::start(&node.ns);
        let (code, lines, _) = diff(&lab, node, &["--offline"]);
        let [first, first6] = [&subnet, &subnet6].map(|subnet| subnet.split('/').next().unwrap().to_owned());
        assert_eq!(code, Some(1), "{lines:#?}");
        assert!(
            lines[0].starts_with("~ link flannel.1 address ") && lines[0].contains(" mtu 1450 "),
            "{lines:#?}"
        );
        assert_eq!(
            lines[1..],
            [
                format!("+ route {subnet} via {first} dev flannel.1 onlink"),
                format!("~ route {subnet6} via {first6} dev flannel-v6.1 onlink"),
                "- neigh 10.244.250.0 lladdr 02:00:00:00:0f:01 dev flannel.1".to_owned(),
            ]
        );
        assert_eq!(monitors.lines_of_ours(), Vec::<String>::new());
        assert_eq!((harmed.diff(&View::of(&node.ns)), lab.store.leases()), (String::new(), leases));
        daemons[0].restart();
        daemons[0].wait_ready();
        lab::wait_for("the daemon has done it", SOON, || healthy.diff(&View::of(&node.ns)).is_empty());
        assert_eq!(diff(&lab, node, &["--offline"]), (Some(0), vec![], String::new()));
    });
}

#[test]
fn offline_diff_reports_a_missing_lease_and_acquires_none() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(1), VXLAN);
        let (code, lines, error) = diff(&lab, lab.node(1), &["--offline"]);
        assert!(code == Some(2) && lines.is_empty() && error.contains("no lease of this node"), "{error}");
        assert!(lab.store.leases().is_empty());
    });
}

#[test]
fn the_daemon_lists_refused_ops() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        let (code, _, error) = diff(&lab, node, &[]);
        assert!(code == Some(2) && error.contains("is twill daemon running here"), "{error}");
        // A foreign device has our VNI and port.
        node.ns.run("ip link add squatter type vxlan id 1 dev eth0 dstport 8472");
        let _daemon = node.start(cluster::FLAGS);
        lab::wait_for("it is said", SOON, || {
            let (code, lines, _) = diff(&lab, node, &[]);
            code == Some(1) && lines.iter().any(|line| line.starts_with("+ link flannel.1 "))
        });
        let (code, json, _) = diff(&lab, node, &["--json"]);
        let json: serde_json::Value = serde_json::from_str(&json.concat()).unwrap();
        assert_eq!((code, &json["format"], &json["ops"][0]["verb"]), (Some(1), &1.into(), &"add".into()));
        node.ns.run("ip link del squatter");
        lab::wait_for("nothing is left to do", SOON, || diff(&lab, node, &[]).0 == Some(0));
    });
}

/// Without a network config there is no difference to show.
#[test]
fn a_waiting_daemon_names_its_reason() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).twill(env!("CARGO_BIN_EXE_twill")).build();
        let node = lab.node(1);
        let _daemon = node.start(cluster::FLAGS);
        lab::wait_for("it answers", SOON, || fs::exists(node.run_dir().join("twill.sock")).unwrap());
        let (code, _, error) = diff(&lab, node, &[]);
        assert!(code == Some(2) && error.contains("waiting for the network config"), "{error}");
    });
}
