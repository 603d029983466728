//! Leases that no honest node writes, all at once. Each is named with its reason and left out, and no other peer
//! suffers.

use std::time::Duration;

use lab::{Lab, PingStream, Timing, Topology, View};

use crate::cluster::{self, HOST_GW, SOON, VXLAN, lease_name};

/// Time longer than a fault of this node itself takes to turn readiness off.
const A_WHILE: Duration = Duration::from_secs(6);

/// Subnet, address and VTEP MAC to announce, and a part of the message about them.
struct Hostile {
    subnet: String,
    public_ip: String,
    mac: String,
    said: String,
}

impl Hostile {
    fn new(subnet: impl Into<String>, said: impl Into<String>) -> Self {
        let (public_ip, mac) = ("192.168.100.66".into(), "02:00:00:00:66:66".into());
        Self { subnet: subnet.into(), public_ip, mac, said: said.into() }
    }

    fn at(self, public_ip: &impl ToString) -> Self {
        Self { public_ip: public_ip.to_string(), ..self }
    }

    fn with_mac(self, mac: &str) -> Self {
        Self { mac: mac.into(), ..self }
    }

    fn json(&self, backend: &str) -> String {
        let data = format!(r#""BackendData":{{"VNI":1,"VtepMAC":"{}"}}"#, self.mac);
        let (public_ip, comma) = (&self.public_ip, if backend == "vxlan" { "," } else { "" });
        let data = if backend == "vxlan" { data } else { String::new() };
        format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"{backend}"{comma}{data}}}"#)
    }
}

/// Returns hostile leases for node 1, with node 2 as the good peer. Each is left out only for its own fault.
fn hostile(lab: &Lab) -> Vec<Hostile> {
    let (node, peer) = (lab.node(1), lab.node(2));
    let (ours, theirs) = (node.subnet(), peer.subnet());
    let half = |subnet: &str| subnet.replace("/24", "/25");
    let no_host = |subnet: &str, address: &str| {
        Hostile::new(subnet, format!("it announces {address}, which no node can have")).at(&address)
    };
    vec![
        Hostile::new("10.99.1.0/24", "outside our network"),
        Hostile::new("10.0.0.0/8", "outside our network"),
        Hostile::new("10.244.1.7/24", "host bits set"),
        Hostile::new(half(&theirs), format!("overlaps that of {theirs}, whose node answers")),
        Hostile::new(half(&ours), format!("overlaps ours, {ours}")),
        Hostile::new("10.244.0.0/16", "no SubnetLen gives a subnet of that length"),
        Hostile::new("10.244.2.0/24", format!("announces our own address {}", node.ip)).at(&node.ip),
        Hostile::new("10.244.3.0/24", "names no public IPv4 address").at(&"0.0.0.0"),
        no_host("10.244.4.0/24", "127.0.0.1"),
        no_host("10.244.5.0/24", "224.0.0.9"),
        no_host("10.244.6.0/24", "192.168.100.255"),
        no_host("10.244.7.0/24", "255.255.255.255"),
        no_host("10.244.8.0/24", "10.244.77.1"),
        Hostile::new("10.244.9.0/24", r#"key "PublicIP": "192.168.100.300": invalid IP address"#)
            .at(&"192.168.100.300"),
    ]
}

fn hostile_vteps(lab: &Lab) -> Vec<Hostile> {
    let mac = |k: usize| View::of(&lab.node(k).ns).link("flannel.1").unwrap().text("address").to_owned();
    let (ours, theirs) = (mac(1), mac(2));
    vec![
        Hostile::new("10.244.10.0/24", format!("VTEP MAC {ours} is ours too")).with_mac(&ours),
        Hostile::new("10.244.11.0/24", "01:00:5e:00:00:01 is not a unicast address")
            .with_mac("01:00:5e:00:00:01"),
        Hostile::new("10.244.12.0/24", "00:00:00:00:00:00 is not a unicast address")
            .with_mac("00:00:00:00:00:00"),
        Hostile::new("10.244.13.0/24", format!("VTEP MAC {theirs} is that of {} too", lab.node(2).subnet()))
            .with_mac(&theirs),
        Hostile::new("10.244.14.0/24", r#""0a:00:00:00:00" is not a MAC address such as"#)
            .with_mac("0a:00:00:00:00"),
    ]
}

fn cost_nobody_else_anything((config, backend): (&str, &str), more: fn(&Lab) -> Vec<Hostile>) {
    let lab = cluster::lab(Topology::flat(2), config);
    let (mut daemons, pods) = cluster::start(&lab);
    let node = lab.node(1);
    let hostile: Vec<Hostile> = hostile(&lab).into_iter().chain(more(&lab)).collect();
    let before = View::of(&node.ns);
    let ping = PingStream::start(&pods[0].ns, pods[1].ip());
    lab::wait_for("the pings run", SOON, || ping.received() > 5);
    for lease in &hostile {
        lab.store.put_lease(&lease_name(&lease.subnet), &lease.json(backend));
    }
    lab.store.put_lease("10.244.16.0-24", "{half a lease");
    let named = |status: &str, lease: &Hostile| {
        let names = [format!("peer {}: ", lease.subnet), format!("{:?}: ", lease_name(&lease.subnet))];
        status.lines().any(|line| names.iter().any(|name| line.contains(name)) && line.contains(&lease.said))
    };
    let unnamed = || {
        let status = node.twill(&["status"]);
        let unnamed = hostile.iter().filter(|lease| !named(&status, lease)).map(|lease| lease.subnet.clone());
        (unnamed.collect::<Vec<_>>(), status)
    };
    if lab::until(SOON, || unnamed().0.is_empty().then_some(())).is_none() {
        panic!("not named with their reasons: {:#?}", unnamed());
    }
    assert!(unnamed().1.contains(r#""10.244.16.0-24": key must be a string at line 1 column 2"#));
    lab::holds_for("the node is ready", A_WHILE, || node.get("/readyz").unwrap().status == 200);
    assert_eq!(before.diff(&View::of(&node.ns)), "", "nothing of them is in the kernel");
    // A restart among them finds no other subnet either: pods have addresses already.
    daemons[0].kill9();
    daemons[0].restart();
    daemons[0].wait_ready();
    lab::wait_for("named again", SOON, || unnamed().0.is_empty());
    assert_eq!(before.diff(&View::of(&node.ns)), "");
    let report = ping.stop();
    assert_eq!(report.lost, 0, "{report:?}");
}

#[test]
fn invalid_vxlan_leases_are_named_and_change_nothing() {
    lab::test(Timing::Free, || cost_nobody_else_anything((VXLAN, "vxlan"), hostile_vteps));
}

#[test]
fn invalid_host_gw_leases_are_named_and_change_nothing() {
    lab::test(Timing::Free, || cost_nobody_else_anything((HOST_GW, "host-gw"), |_| Vec::new()));
}
