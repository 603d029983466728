//! A node in a network namespace with an uplink `eth0`, and helpers that inspect it and build rows and ops.

use std::process::Command;

use kernel::{Kernel, Observed, Outcome};
use plan::config::Config;
use plan::lease::Leases;
use plan::marks::PROTOCOL;
use plan::node::Node;
use plan::owned::{Owned, Sweep};
use plan::state::{Link, LinkKind, MAIN_TABLE, Route, RoutePath, Vxlan};
use plan::underlay::Underlay;
use plan::{LinkName, Mac, Object, Op, State, Verb};
use serde_json::Value;

pub(crate) const OUR_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 1]);

/// Runs a line of shell and returns what it printed.
pub(crate) fn sh(line: &str) -> String {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(out.status.success(), "`{line}`: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs many lines of ip(8) at once, from a file in the lab's directory.
pub(crate) fn ip_batch(lines: &str) {
    let file = lab::enter::work_dir().join("tmp/batch");
    std::fs::write(&file, lines).unwrap();
    sh(&format!("ip -batch {}", file.display()));
}

/// Waits until duplicate address detection is done for new IPv6 addresses.
pub(crate) fn settle() {
    sh("while ip -6 addr show tentative | grep -q inet6; do sleep 0.01; done");
}

/// Returns the parsed output of a line such as `ip -j link` or `bridge -j fdb`.
pub(crate) fn json(line: &str) -> Value {
    let text = sh(line);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{line}` printed {text:?}: {error}"))
}

/// Sets up `eth0` with its addresses, enables IPv6, which the lab has disabled, and opens the kernel.
pub(crate) fn node() -> Kernel {
    sh("for who in all default; do echo 0 > /proc/sys/net/ipv6/conf/$who/disable_ipv6; done
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
        ip link add eth0 type veth peer name wire; ip link set eth0 up; ip link set wire up
        ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0");
    settle();
    Kernel::open().unwrap()
}

/// [`node`] with `flannel.1`, made by ip as flannel makes it.
pub(crate) fn tunnelled() -> Kernel {
    let kernel = node();
    sh("ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 txqueuelen 0 \
            type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning
        ip link set flannel.1 up");
    settle();
    kernel
}

fn networks() -> Vec<ipnet::IpNet> {
    vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()]
}

pub(crate) fn owned() -> Owned {
    Owned {
        links: vec![name("flannel.1"), name("flannel-v6.1")],
        networks: networks(),
        pods: networks().into_iter().map(Into::into).collect(),
        sysctls: vec!["net/ipv6/conf/flannel.1/accept_ra".into(), "net/no/such/file".into()],
        sweep: Sweep::LeftOvers,
        ..Owned::new(name("eth0"), MAIN_TABLE)
    }
}

/// Returns the desired state of a node on which nothing of ours is yet.
pub(crate) fn desired(config: &Config, node: &Node, leases: &Leases, underlay: &Underlay) -> State {
    plan::plan_at_start(config, node, leases, underlay).desired
}

pub(crate) fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// The device that [`tunnelled`] makes.
pub(crate) fn flannel() -> Link {
    let vxlan = Vxlan {
        vni: 1,
        local: [192, 0, 2, 1].into(),
        uplink: Some(name("eth0")),
        port: 8472,
        learning: false,
        gbp: false,
    };
    let kind = LinkKind::Vxlan(vxlan);
    Link { name: name("flannel.1"), kind, mac: OUR_MAC, mtu: 1450, up: true, unknown: None }
}

pub(crate) fn via(destination: &str, gateway: &str, link: &str, onlink: bool) -> Route {
    let path = RoutePath::Via { gateway: gateway.parse().unwrap(), link: name(link), onlink };
    route(destination, path)
}

pub(crate) fn route(destination: &str, path: RoutePath) -> Route {
    let destination = destination.parse().unwrap();
    Route { table: MAIN_TABLE, destination, path, protocol: PROTOCOL, metric: 0, unknown: None }
}

pub(crate) fn op(verb: Verb, object: impl Into<Object>) -> Op {
    Op { verb, object: object.into() }
}

pub(crate) fn add(object: impl Into<Object>) -> Op {
    op(Verb::Add, object)
}

pub(crate) fn replace(object: impl Into<Object>) -> Op {
    op(Verb::Replace, object)
}

pub(crate) fn delete(object: impl Into<Object>) -> Op {
    op(Verb::Delete, object)
}

pub(crate) fn link(link: Link) -> Object {
    Object::Link(Box::new(link))
}

pub(crate) fn up(name: LinkName) -> Op {
    add(Object::LinkUp(name))
}

#[track_caller]
pub(crate) fn applies(kernel: &mut Kernel, ops: &[Op]) {
    let outcomes = kernel.apply(ops);
    assert_eq!(outcomes, vec![Outcome::Done; ops.len()], "{ops:#?}");
}

pub(crate) fn seen(kernel: &mut Kernel) -> Observed {
    kernel.dump(&owned()).unwrap()
}

/// Returns the error of a failed op as text.
#[track_caller]
pub(crate) fn complaint(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed(error) => error.to_string(),
        other => panic!("expected a failure: {other:?}"),
    }
}
