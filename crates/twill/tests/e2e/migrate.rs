//! Follows docs/migrating-from-flannel.md, there and back, on every node of a cluster in etcd, under a ping. The commands are
//! read from the page: a change of the page changes the test. flannel is represented by its recorded state, or by a real one if
//! `FLANNELD` in the environment names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lab::{Daemon, EtcdSetup, Lab, Node, PingStream, Timing, Topology};

use crate::cluster::{self, SOON};
use crate::recording::Recording;
use crate::takeover::{self, Before};

/// Returns the lines of the `sh` blocks below a heading; blocks of `sh example` are for the reader only.
fn page(heading: &str) -> Vec<&'static str> {
    let text = include_str!("../../../../docs/migrating-from-flannel.md");
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks.flat_map(str::lines).collect()
}

/// A node, and the daemons that run on it.
struct Host<'lab> {
    node: &'lab Node,
    /// The node's /etc/default/twill, with flanneld's flags.
    options: PathBuf,
    /// A directory that contains `twill`.
    path: &'lab Path,
    flanneld: Option<Daemon<'lab>>,
    twill: Option<Daemon<'lab>>,
}

impl<'lab> Host<'lab> {
    /// Runs a line of the page: systemctl as systemd would, any other command in a shell of the node. Returns the
    /// output. It fills in the node's options file and cache directory, which the page cannot know.
    fn run(&mut self, line: &str) -> String {
        match line {
            "systemctl disable --now flanneld" => self.stop_flanneld(),
            "systemctl enable --now flanneld" => self.start_flanneld(),
            "systemctl disable --now twill" => assert!(self.twill.take().unwrap().terminate().success()),
            "systemctl enable --now twill" => self.start_twill(),
            line => return self.shell(line),
        }
        String::new()
    }

    fn shell(&self, line: &str) -> String {
        let mut line = line.replace("/etc/default/twill", &self.options.display().to_string());
        if line.starts_with("twill uninstall") || line.starts_with("twill diff --offline") {
            line += &format!(" --cache-dir={}", self.node.cache_dir().display());
        }
        let script = format!("PATH={}:$PATH\n{line}", self.path.display());
        let output = self.node.command(&["sh", "-c", &script]).output().unwrap();
        let [said, complaint] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        // `twill diff --offline` is the only command that the page expects to exit with another code.
        let expected = i32::from(line.starts_with("twill diff --offline"));
        assert_eq!(output.status.code(), Some(expected), "{line}: {said}{complaint}");
        said.into_owned()
    }

    /// Returns the variables of the options file.
    fn environment(&self) -> Vec<String> {
        fs::read_to_string(&self.options).unwrap().lines().map(str::to_owned).collect()
    }

    fn start_flanneld(&mut self) {
        let Some(flanneld) = flanneld() else { return };
        let line = [vec!["env".to_owned()], self.environment(), vec![flanneld]].concat();
        let daemon = self.node.start_other(line);
        daemon.wait_ready();
        self.flanneld = Some(daemon);
    }

    fn stop_flanneld(&mut self) {
        if let Some(mut flanneld) = self.flanneld.take() {
            assert!(flanneld.terminate().success(), "{}", flanneld.log());
        }
    }

    fn start_twill(&mut self) {
        let variables = self.environment();
        let under: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
        let daemon = self.node.start_under(&under, &[]);
        daemon.wait_ready();
        self.twill = Some(daemon);
    }
}

fn flanneld() -> Option<String> {
    std::env::var("FLANNELD").ok().filter(|path| !path.is_empty())
}

/// Sets up a cluster that flannel runs, or has run a moment ago.
fn flannels<'lab>(lab: &'lab Lab, recording: &Recording, path: &'lab Path) -> Vec<Host<'lab>> {
    let host = |node: &'lab Node| {
        let options = node.run_dir().with_extension("options");
        let etcd = lab.etcd().endpoint();
        let text = format!(
            "FLANNELD_ETCD_ENDPOINTS={etcd}\nFLANNELD_IFACE=eth0\nFLANNELD_HEALTHZ_IP=127.0.0.1\n\
             FLANNELD_HEALTHZ_PORT={}\n",
            lab::HEALTHZ_PORT
        );
        fs::write(&options, text).unwrap();
        Host { node, options, path, flanneld: None, twill: None }
    };
    let mut hosts: Vec<Host> = lab.nodes().iter().map(host).collect();
    if flanneld().is_some() {
        hosts.iter_mut().for_each(Host::start_flanneld);
    } else {
        for (name, value) in recording.leases() {
            let granted = lab.etcd().ctl(&["lease", "grant", "86400"]);
            let lease = format!("--lease={}", granted.split(' ').nth(1).unwrap());
            lab.etcd().ctl(&["put", &lease, &format!("/coreos.com/network/subnets/{name}"), &value]);
        }
        lab.nodes().iter().for_each(|node| recording.recreate(node));
    }
    hosts
}

/// Returns keys and values of the leases; asserts that each has an etcd lease, whichever daemon wrote it last.
fn leases(lab: &Lab) -> BTreeMap<String, String> {
    let leases = lab.etcd().leases();
    assert!(leases.values().all(|entry| entry.lease != 0), "{leases:?}");
    leases.into_iter().map(|(key, entry)| (key, entry.value)).collect()
}

fn routes_of_peers(lab: &Lab, node: &Node) -> usize {
    let peers = lab.nodes().iter().filter(|peer| peer.index != node.index);
    let routes = node.ns.run("ip route");
    peers.filter(|peer| routes.contains(&format!("{} via", peer.subnet()))).count()
}

/// Follows the page until twill runs on one node; all other nodes run either daemon.
fn there(lab: &Lab, host: &mut Host, before: &Before) {
    for line in page("Before") {
        let said = host.run(line);
        let (rules, routes): (Vec<&str>, Vec<&str>) =
            said.lines().partition(|line| line.starts_with("+ nft "));
        assert!(routes.len() == 2 && routes.iter().all(|line| line.starts_with("~ route ")), "{routes:#?}");
        assert!(rules.iter().any(|line| line.contains(" forward {")), "{rules:#?}");
        assert_eq!(takeover::look(host.node), *before, "nothing is changed by it");
    }
    let said: BTreeMap<&str, String> = page("There").into_iter().map(|line| (line, host.run(line))).collect();
    let status = &said["twill status"];
    assert!(
        status.contains("ready") && status.contains("store     in sync") && !status.contains("\nwarnings:"),
        "{status}"
    );
    for peer in lab.nodes().iter().filter(|peer| peer.index != host.node.index) {
        assert!(status.contains(&peer.subnet()), "{status}");
    }
    assert_eq!(said["twill diff"], "");
    assert_eq!(said["ip route"].matches("proto 84").count(), 2, "{}", said["ip route"]);
    assert_eq!(takeover::look(host.node), *before, "{}", host.node.name);
}

fn back(host: &mut Host, before: &Before) {
    let lines = page("Back");
    let (last, lines) = lines.split_last().unwrap();
    lines.iter().for_each(|line| _ = host.run(line));
    assert_eq!(takeover::look(host.node), *before, "{}: what flannel finds", host.node.name);
    let files = fs::read_dir(host.node.run_dir()).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(files.collect::<BTreeSet<_>>(), BTreeSet::from(["subnet.env".into()]));
    // Only these routes show that twill was here.
    assert_eq!(ours(host.node), 2, "what docs/wire.md says of routes");
    host.run(last);
}

/// Returns the number of routes with our protocol number.
fn ours(node: &Node) -> usize {
    node.ns.run("ip route").matches("proto 84").count()
}

fn migrate(case: &'static str) {
    let recording = Recording::of(case);
    let lab = cluster::lab(Topology::flat(3).etcd(EtcdSetup::http()), &recording.config());
    let path = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(
        Topology::flat(0).twill(env!("CARGO_BIN_EXE_twill")).executable(),
        path.path().join("twill"),
    )
    .unwrap();
    let mut hosts = flannels(&lab, &recording, path.path());
    let pods = lab.pods();
    for node in lab.nodes() {
        lab::wait_for("flannel has its routes", SOON, || routes_of_peers(&lab, node) == 2);
    }
    let pings = [(0, 1), (1, 2), (2, 0)].map(|(from, to)| PingStream::start(&pods[from].ns, pods[to].ip()));
    lab::wait_for("pods talk by flannel", SOON, || pings.iter().all(|ping| ping.received() > 10));
    let (words, before) = (leases(&lab), lab.nodes().iter().map(takeover::look).collect::<Vec<_>>());
    for (host, before) in hosts.iter_mut().zip(&before) {
        there(&lab, host, before);
    }
    assert_eq!(leases(&lab), words, "the leases are flannel's");
    let received: Vec<u64> = pings.iter().map(PingStream::received).collect();
    lab::wait_for("pods talk by twill", SOON, || {
        pings.iter().zip(&received).all(|(ping, before)| ping.received() > before + 10)
    });
    for (host, before) in hosts.iter_mut().zip(&before) {
        back(host, before);
    }
    let received: Vec<u64> = pings.iter().map(PingStream::received).collect();
    lab::wait_for("pods talk by flannel again", SOON, || {
        pings.iter().zip(&received).all(|(ping, before)| ping.received() > before + 50)
    });
    for (host, before) in hosts.iter().zip(&before) {
        assert_eq!(takeover::look(host.node), *before, "{}: as it was", host.node.name);
        assert_eq!(routes_of_peers(&lab, host.node), 2);
        if flanneld().is_some() {
            assert_eq!(
                ours(host.node),
                if case == "vxlan" { 0 } else { 2 },
                "which ones flannel writes anew"
            );
        }
    }
    assert_eq!(leases(&lab), words);
    hosts.iter_mut().for_each(Host::stop_flanneld);
    for report in pings.map(PingStream::stop) {
        assert_eq!(report.lost, 0, "{case}: {report:?}");
    }
}

#[test]
fn vxlan() {
    lab::test(Timing::Free, || migrate("vxlan"));
}

#[test]
fn host_gw() {
    lab::test(Timing::Free, || migrate("host-gw"));
}
