//! Comparison of our plans with recordings of a real flannel: entries in etcd, and the kernel state of three nodes.
//! The recordings are in recordings/<case>/, taken with ip(8) and bridge(8). Everything must be equal except the
//! differences that are named here one by one. The tests read no real kernel.
#![expect(clippy::unwrap_used, reason = "helpers of a test: a recording that cannot be read shall stop it")]

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use plan::backend::{Backend, SourceFilter};
use plan::config::Config;
use plan::lease::{Lease, Leases};
use plan::netconf::NetConf;
use plan::node::Node;
use plan::state::{
    Address, FdbEntry, Link, LinkKind, MAIN_TABLE, Neighbour, Route, RoutePath, State, Sysctl, Vxlan,
};
use plan::subnet_env::{SubnetEnv, previous_subnet};
use plan::underlay::{AddressFacts, LinkFacts, RouteFacts, Underlay};
use plan::uplink::{self, Ask};
use plan::warning::{NodeFault, PeerFault, Warning};
use plan::{Family, LinkName, Mac, Object, Plan, Verb};
use serde_json::Value;

/// `rtm_protocol` of flannel's routes: `boot`.
const FLANNELS: u8 = 3;

#[test]
fn vxlan_matches_flannel() {
    each_node("vxlan", |node| node.is_as_planned(&[]));
}

#[test]
fn vxlan_with_options_matches_flannel() {
    each_node("vxlan-options", |node| node.is_as_planned(&[]));
}

/// Direct routing with nodes 1 and 2 on one segment and node 3 behind a router gives flannel's state.
#[test]
fn vxlan_with_direct_routing_matches_flannel() {
    each_node("vxlan-directrouting", |node| node.is_as_planned(&[]));
}

#[test]
fn host_gw_matches_flannel() {
    each_node("host-gw", |node| node.is_as_planned(&[]));
}

/// A peer behind a router gets an `unreachable` route and a warning. flannel has no route to it, as the kernel refused it;
/// packets to its pods follow the default route.
#[test]
fn host_gw_makes_a_peer_behind_a_router_unreachable() {
    each_node("host-gw-l3", |node| {
        let beyond: &[&str] = match node.name {
            "node3" => &["10.244.33.0/24", "10.244.64.0/24"],
            _ => &["10.244.5.0/24"],
        };
        node.is_as_planned(beyond);
    });
}

#[test]
fn vxlan_in_dual_stack_matches_flannel() {
    each_node("vxlan-dual", |node| node.is_as_planned(&[]));
}

#[test]
fn host_gw_in_dual_stack_matches_flannel() {
    each_node("host-gw-dual", |node| node.is_as_planned(&[]));
}

#[test]
fn alloc_plans_no_kernel_state() {
    each_node("alloc", |node| {
        node.is_as_planned(&[]);
        assert_eq!(node.plan().desired, State::default());
    });
}

fn each_node(case: &'static str, test: impl Fn(&Recorded)) {
    for name in ["node1", "node2", "node3"] {
        test(&Recorded::read(case, name));
    }
}

/// Node of a recording: the daemon's inputs, and flannel's results.
struct Recorded {
    case: &'static str,
    name: &'static str,
    place: PathBuf,
    conf: NetConf,
    /// Keys and values of the leases, as in etcd.
    entries: Vec<(String, String)>,
    leases: Vec<Lease>,
    underlay: Underlay,
    own: Lease,
    node: Node,
}

impl Recorded {
    fn read(case: &'static str, name: &'static str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(case);
        let place = root.join(name);
        let text = std::fs::read_to_string(root.join("net-conf.json")).unwrap();
        // flannel uses direct routes without verification.
        let text = text.replace(r#""DirectRouting":true"#, r#""DirectRouting":true,"VerifyDirect":false"#);
        let conf = NetConf::parse(text.as_bytes()).unwrap();
        let entries = entries(&std::fs::read_to_string(root.join("etcd.txt")).unwrap());
        assert_eq!(entries.len(), 3, "{case} has three nodes");
        let leases: Vec<Lease> =
            entries.iter().map(|(key, value)| Lease::parse(key, value.as_bytes(), 1).unwrap()).collect();
        let underlay = underlay(&place, &conf.config());
        let uplink = uplink::choose(&conf.config(), &underlay, &Ask::default()).unwrap().uplink;
        let own = leases.iter().find(|lease| lease.public_ip == uplink.ipv4).unwrap().clone();
        let [vtep, vtep_v6] = Family::ALL.map(|family| {
            let tunnels = devices(&place).into_iter().filter(|device| device.kind_name() == "vxlan");
            let mut of_it = tunnels.filter(|device| Family::of(device.local()) == family);
            of_it.next().map(|device| device.mac())
        });
        let node = Node { uplink, subnet: own.subnet, vtep, vtep_v6 };
        Self { case, name, place, conf, entries, leases, underlay, own, node }
    }

    fn plan(&self) -> Plan {
        let leases = Leases::Listed(self.leases.as_slice().into());
        let mut config = self.conf.config();
        if let Backend::Vxlan(options) = &mut config.backend {
            // flannel has no source filter.
            options.source_filter = SourceFilter::Off;
        }
        plan::plan_at_start(&config, &self.node, &leases, &self.underlay)
    }

    /// Compares everything. `beyond` are the subnets that flannel omits without a message.
    fn is_as_planned(&self, beyond: &[&str]) {
        let plan = self.plan();
        self.has_the_notes(&plan, beyond);
        self.has_the_state(&plan, beyond);
        self.is_taken_over_in_place(&plan, beyond);
        self.has_the_file();
        self.has_the_lease();
    }

    fn has_the_notes(&self, plan: &Plan, beyond: &[&str]) {
        let about = |warning: &Warning| match warning {
            Warning::Peer { subnet, fault: PeerFault::NotOnLink { .. } } => subnet.to_string(),
            Warning::Node(NodeFault::NoPeerOnLink { uplink, .. }) => uplink.to_string(),
            other => other.to_string(),
        };
        let nobody = if beyond.len() + 1 == self.leases.len() { &["eth0"][..] } else { &[] };
        let warnings: Vec<String> = plan.warnings.iter().map(about).collect();
        assert_eq!(warnings, [nobody, beyond].concat(), "{}", self.place.display());
    }

    /// Compares devices, addresses, neighbours, FDB entries and routes; only the routes' protocol may differ.
    fn has_the_state(&self, plan: &Plan, beyond: &[&str]) {
        let (state, observed, place) = (&plan.desired, self.observed(), self.place.display());
        assert_eq!(state.links, observed.links, "{place}");
        assert_eq!(state.addresses, observed.addresses, "{place}");
        assert_eq!(state.neighbours, observed.neighbours, "{place}");
        assert_eq!(state.fdb, observed.fdb, "{place}");
        let refused = |route: &&Route| route.path == RoutePath::Unreachable;
        let refused: Vec<String> =
            state.routes.iter().filter(refused).map(|route| route.destination.to_string()).collect();
        assert_eq!(refused, beyond, "{place}");
        let as_flannels = |route: &Route| Route { protocol: FLANNELS, ..route.clone() };
        let others = state.routes.iter().filter(|route| route.path != RoutePath::Unreachable);
        assert_eq!(others.map(as_flannels).collect::<Vec<_>>(), observed.routes.to_vec(), "{place}");
        assert_eq!((&state.nexthops, &state.rules), (&observed.nexthops, &observed.rules), "{place}");
    }

    /// Checks that the first pass on a flannel node changes the routes' protocol in place and nothing else.
    fn is_taken_over_in_place(&self, plan: &Plan, beyond: &[&str]) {
        let observed = self.observed();
        let (mut replaced, mut added) = (0, 0);
        for op in plan::diff(&plan.desired, &observed, &plan.owned) {
            match (op.verb, &op.object) {
                (Verb::Replace, Object::Route(_)) => replaced += 1,
                (Verb::Add, Object::Route(route)) if route.path == RoutePath::Unreachable => added += 1,
                _ => assert_eq!(op.to_string(), "", "{}", self.place.display()),
            }
        }
        assert_eq!((replaced, added), (observed.routes.len(), beyond.len()), "{}", self.place.display());
    }

    /// Compares subnet.env. flannel subtracts 50 bytes for an IPv6 underlay, too, but the kernel's device has 70
    /// bytes less. So full-size packets of its pods do not fit. Our value is the smaller device's MTU.
    fn has_the_file(&self) {
        let (config, mut recorded) = (self.conf.config(), self.text("subnet.env"));
        if config.ipv6.is_some() && matches!(config.backend, Backend::Vxlan(_)) {
            assert!(recorded.contains("FLANNEL_MTU=1450\n"), "{recorded}");
            recorded = recorded.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=1430");
        }
        let mtu = self.conf.backend.pod_mtu(&self.node.uplink);
        assert_eq!(SubnetEnv::new(&config, &self.node.subnet, mtu, false).to_string(), recorded);
        assert_eq!(previous_subnet(&recorded), Some(self.own.subnet));
    }

    /// Compares our lease byte for byte. It does so for a node with its device, and for a node that lost it. flannel
    /// never writes its port; we write one that is not the default.
    fn has_the_lease(&self) {
        let drawn = [Mac([0x02, 0, 0, 0, 0, 1]), Mac([0x02, 0, 0, 0, 0, 2])];
        let bare = Underlay { links: Vec::new(), ..self.underlay.clone() };
        let config = self.conf.config();
        let others = self.leases.iter().filter(|lease| **lease != self.own).map(|lease| &lease.announced);
        let (key, recorded) =
            self.entries.iter().find(|(key, _)| *key == self.own.subnet.to_string()).unwrap();
        let expected = match self.case {
            "vxlan-options" => recorded.replace(r#"{"VNI":42,"#, r#"{"VNI":42,"Port":4789,"#),
            _ => recorded.clone(),
        };
        for (held, underlay) in [(None, &self.underlay), (Some(&self.own.announced), &bare)] {
            let macs = self.conf.backend.macs(held, underlay, drawn);
            let announced = self.conf.backend.announced(config.families(), macs, others.clone());
            let uplink = &self.node.uplink;
            let lease = Lease {
                born: 0,
                written: 0,
                subnet: previous_subnet(&self.text("subnet.env")).unwrap(),
                public_ip: uplink.ipv4,
                public_ipv6: uplink.ipv6,
                announced,
            };
            let entry = (&lease.subnet.to_string(), &lease.to_json());
            assert_eq!(entry, (key, &expected), "{}", self.place.display());
        }
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.place.join(file)).unwrap()
    }

    /// Returns flannel's objects as a `State`.
    fn observed(&self) -> State {
        let devices = devices(&self.place);
        let ours: Vec<&Device> = devices.iter().filter(|device| device.kind_name() == "vxlan").collect();
        let names: Vec<LinkName> = ours.iter().map(|device| device.name()).collect();
        let config = self.conf.config();
        State {
            sysctls: names.iter().map(|name| accept_ra(*name)).collect(),
            links: ours.iter().map(|device| device.link()).collect(),
            addresses: addresses(&self.place).into_iter().filter_map(|row| row.on(&names)).collect(),
            fdb: fdb(&self.place, &names),
            neighbours: neighbours(&self.place, &names),
            routes: routes(&self.place, &config).iter().filter_map(|row| row.row(&config)).collect(),
            ..State::default()
        }
    }
}

/// Returns the sysctl that flannel sets as well (flannel-compat 6.1); it is not in the recordings.
fn accept_ra(link: LinkName) -> Sysctl {
    Sysctl { path: format!("net/ipv6/conf/{link}/accept_ra").into(), value: "0".into() }
}

/// Parses the output of `etcdctl get --prefix`, lines of keys and values in turn, and keeps the leases.
fn entries(text: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines.chunks(2).filter_map(|pair| {
        let key = pair[0].strip_prefix("/coreos.com/network/subnets/")?;
        Some((key.to_owned(), pair[1].to_owned()))
    });
    pairs.collect()
}

fn underlay(place: &Path, config: &Config) -> Underlay {
    let routes = routes(place, config);
    let outside = routes.iter().filter(|route| route.is_unicast_in_main() && !route.is_inside(config));
    Underlay {
        links: devices(place).iter().map(Device::facts).collect(),
        addresses: addresses(place).into_iter().map(|address| address.0).collect(),
        routes: outside.map(RecordedRoute::facts).collect(),
        ..Underlay::default()
    }
}

fn read(place: &Path, file: &str) -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(place.join(file)).unwrap()).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

fn name_in(value: &Value, key: &str) -> LinkName {
    text(value, key).parse().unwrap()
}

fn number(value: &Value, key: &str) -> u32 {
    value[key].as_u64().unwrap().try_into().unwrap()
}

fn has_flag(value: &Value, flag: &str) -> bool {
    value["flags"].as_array().unwrap().iter().any(|item| item == flag)
}

/// Element of `ip -d -j link`.
struct Device(Value);

fn devices(place: &Path) -> Vec<Device> {
    read(place, "link.json").into_iter().map(Device).collect()
}

impl Device {
    fn name(&self) -> LinkName {
        name_in(&self.0, "ifname")
    }

    fn kind_name(&self) -> &str {
        self.0["linkinfo"]["info_kind"].as_str().unwrap_or_default()
    }

    fn mac(&self) -> Mac {
        text(&self.0, "address").parse().unwrap()
    }

    fn local(&self) -> IpAddr {
        let data = &self.0["linkinfo"]["info_data"];
        data["local"].as_str().unwrap_or_else(|| text(data, "local6")).parse().unwrap()
    }

    fn facts(&self) -> LinkFacts {
        LinkFacts {
            name: self.name(),
            kind: self.kind_name().into(),
            mac: self.mac(),
            mtu: number(&self.0, "mtu"),
            up: has_flag(&self.0, "UP"),
            carrier: has_flag(&self.0, "LOWER_UP"),
            ..LinkFacts::default()
        }
    }

    fn link(&self) -> Link {
        let data = &self.0["linkinfo"]["info_data"];
        let kind = LinkKind::Vxlan(Vxlan {
            vni: number(data, "id"),
            local: self.local(),
            uplink: Some(name_in(data, "link")),
            port: number(data, "port").try_into().unwrap(),
            learning: data["learning"].as_bool().unwrap(),
            gbp: data["gbp"].as_bool().unwrap_or(false),
        });
        let LinkFacts { name, mac, mtu, up, .. } = self.facts();
        Link { name, kind, mac, mtu, up, unknown: None }
    }
}

/// Address of `ip -j addr`.
struct RecordedAddress(AddressFacts);

fn addresses(place: &Path) -> Vec<RecordedAddress> {
    let mut addresses = Vec::new();
    for device in read(place, "addr.json") {
        for info in device["addr_info"].as_array().unwrap() {
            let prefix = number(info, "prefixlen").try_into().unwrap();
            addresses.push(RecordedAddress(AddressFacts {
                link: name_in(&device, "ifname"),
                address: IpNet::new(text(info, "local").parse().unwrap(), prefix).unwrap(),
                permanent: number(info, "valid_life_time") == u32::MAX,
                temporary: info["temporary"] == true,
                deprecated: info["deprecated"] == true,
                tentative: false,
                duplicate: false,
            }));
        }
    }
    addresses
}

impl RecordedAddress {
    /// Returns the row if it is on one of these devices and is not the kernel's own link-local address.
    fn on(self, links: &[LinkName]) -> Option<Address> {
        let AddressFacts { link, address, .. } = self.0;
        let own = matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local());
        (links.contains(&link) && !own).then_some(Address { link, address, unknown: None })
    }
}

fn fdb(place: &Path, links: &[LinkName]) -> plan::Table<FdbEntry> {
    let rows = read(place, "fdb.json").into_iter().map(|row| {
        let permanent = row["state"] == "permanent" && has_flag(&row, "self");
        (name_in(&row, "ifname"), permanent, row)
    });
    let ours = rows.filter(|(link, ..)| links.contains(link)).map(|(link, permanent, row)| {
        assert!(permanent, "{row}");
        let remote = text(&row, "dst").parse().unwrap();
        FdbEntry { link, mac: text(&row, "mac").parse().unwrap(), remote, port: None, unknown: None }
    });
    ours.collect()
}

fn neighbours(place: &Path, links: &[LinkName]) -> plan::Table<Neighbour> {
    let rows = read(place, "neigh.json").into_iter();
    let ours = rows.filter(|row| links.contains(&name_in(row, "dev"))).map(|row| {
        assert_eq!(row["state"][0], "PERMANENT");
        Neighbour {
            link: name_in(&row, "dev"),
            address: text(&row, "dst").parse().unwrap(),
            mac: text(&row, "lladdr").parse().unwrap(),
            unknown: None,
        }
    });
    ours.collect()
}

/// Element of `ip -d -j route`, for IPv4 with `show table all`.
struct RecordedRoute(Family, Value);

fn routes(place: &Path, config: &Config) -> Vec<RecordedRoute> {
    let routes = config.families().flat_map(|family| {
        let file = if family == Family::Ipv4 { "route4.json" } else { "route6.json" };
        read(place, file).into_iter().map(move |route| RecordedRoute(family, route))
    });
    routes.collect()
}

impl RecordedRoute {
    fn is_unicast_in_main(&self) -> bool {
        self.1["type"] == "unicast" && self.is_in_main()
    }

    /// Returns true for a route of the main table. The output omits the table if only one was requested.
    fn is_in_main(&self) -> bool {
        self.1["table"].as_str().is_none_or(|table| table == "main")
    }

    fn is_inside(&self, config: &Config) -> bool {
        config.network(self.0).is_some_and(|network| network.contains(&self.destination()))
    }

    fn destination(&self) -> IpNet {
        let text = text(&self.1, "dst");
        match (text, self.0) {
            ("default", Family::Ipv4) => "0.0.0.0/0".parse().unwrap(),
            ("default", Family::Ipv6) => "::/0".parse().unwrap(),
            _ => text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap())),
        }
    }

    fn gateway(&self) -> Option<IpAddr> {
        self.1["gateway"].as_str().map(|gateway| gateway.parse().unwrap())
    }

    fn facts(&self) -> RouteFacts {
        RouteFacts {
            destination: self.destination(),
            gateway: self.gateway(),
            link: Some(name_in(&self.1, "dev")),
            ..RouteFacts::default()
        }
    }

    /// Returns the row of a route in the main table into the pod network. A route with a metric is a different one; for IPv6
    /// the metric 1024 means none.
    fn row(&self, config: &Config) -> Option<Route> {
        let usual = if self.0 == Family::Ipv4 { Value::Null } else { 1024.into() };
        if !self.is_in_main() || !self.is_inside(config) || self.1["metric"] != usual {
            return None;
        }
        assert!(self.is_unicast_in_main() && self.1["protocol"] == "boot");
        let (gateway, link) = (self.gateway().unwrap(), name_in(&self.1, "dev"));
        let path = RoutePath::Via { gateway, link, onlink: has_flag(&self.1, "onlink") };
        let destination = self.destination();
        Some(Route { table: MAIN_TABLE, destination, path, protocol: FLANNELS, metric: 0, unknown: None })
    }
}
