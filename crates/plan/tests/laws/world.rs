//! Generator of a plan's inputs: config, node, underlay and leases, valid ones and hostile ones. It makes no statement about
//! the plan.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use plan::backend::vxlan::{self, Vtep};
use plan::backend::{Announced, Backend, Direct, SourceFilter};
use plan::config::Config;
use plan::health::{Finding, PeerHealth, PreferredPath};
use plan::lease::{Lease, Leases};
use plan::lease_conflicts::{Contender, Standing};
use plan::left_overs::LeftOvers;
use plan::node::{Node, Uplink};
use plan::other_daemons::{FirewallKeeper, OtherDaemons};
use plan::owned::Writer;
use plan::state::{Route, RoutePath};
use plan::subnet::Subnet;
use plan::underlay::{AddressFacts, LinkFacts, RouteFacts, Underlay};
use plan::{Family, HealthInput, LinkName, Mac, Memory, Plan, Situation, State};

use super::left_over;
use super::rules;
use super::tape::Tape;

/// Our protocol number of routes, rules and next hops, and our ids of next hops (docs/wire.md). They are repeated here to
/// detect a mistake in the code under test.
pub(crate) const PROTOCOL: u8 = 84;
pub(crate) const NEXTHOPS: std::ops::RangeInclusive<u32> = 0x7477_0000..=0x747f_ffff;

/// VNI of peers whose config is newer than ours.
const OTHER_VNI: u32 = 7;
/// VNI that is too long for a device name.
const HUGE_VNI: u32 = 12_000_000;

/// Networks of an earlier config, one per family.
pub(crate) const FORMER_NETWORKS: [&str; 2] = ["10.88.0.0/16", "fd00:88::/48"];

pub(crate) const OWN_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);

/// State of the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UplinkIs {
    Up,
    Down,
    WithoutAddress,
    WithoutRoute,
    Missing,
}

/// Generated set of inputs.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) node: Node,
    pub(crate) leases: Leases,
    pub(crate) health: HealthInput,
    pub(crate) others: OtherDaemons,
    pub(crate) memory: Memory,
    /// State of which the plan keeps the direct routes.
    pub(crate) observed: State,
    pub(crate) underlay: Underlay,
    pub(crate) uplink: UplinkIs,
    /// Names of our devices under this config.
    pub(crate) devices: Vec<LinkName>,
    /// Devices of another kind under our names.
    pub(crate) foreign_devices: Vec<LinkName>,
}

impl World {
    /// Returns the plan for this world.
    pub(crate) fn plan(&self) -> Plan {
        self.plan_with(&self.leases)
    }

    /// Returns the plan for this world with other leases.
    pub(crate) fn plan_with(&self, leases: &Leases) -> Plan {
        let Self { config, node, health, others, memory, observed, underlay, .. } = self;
        let scope = plan::scope(config, node, leases, others, memory, std::iter::empty());
        let scope = &scope;
        plan::plan(&Situation { config, node, leases, health, others, scope, observed, underlay, memory })
    }

    /// Returns true if the uplink is usable. A tunnel needs no route to the uplink's own segment.
    pub(crate) fn is_uplink_fit(&self) -> bool {
        let tunnels_only = match &self.config.backend {
            Backend::Vxlan(options) => options.direct == Direct::Never,
            Backend::HostGw => false,
            Backend::Alloc => true,
        };
        self.uplink == UplinkIs::Up || (self.uplink == UplinkIs::WithoutRoute && tunnels_only)
    }
}

pub(crate) fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

pub(crate) fn v4(octets: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(octets).into()
}

/// Returns `fd00:244:0:<subnet>::<host>`, an address of the IPv6 pod network.
pub(crate) fn pod6(subnet: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, 0, subnet, 0, 0, 0, host)
}

pub(crate) fn net4(octets: [u8; 4], len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(octets.into(), len)
}

pub(crate) fn net6(address: Ipv6Addr, len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(address, len)
}

/// Returns the pod subnet number `at` of both families.
pub(crate) fn subnet(at: u8) -> (Ipv4Net, Ipv6Net) {
    (net4([10, 244, at, 0], 24), net6(pod6(at.into(), 0), 64))
}

pub(crate) fn world(tape: &mut Tape) -> World {
    let config = config(tape);
    let (node, others, mut memory) = node(tape);
    memory.former.links.retain(|device| {
        if left_over::is_v6(*device) { config.ipv6.is_some() } else { config.ipv4.is_some() }
    });
    let uplink = tape.pick(&[
        UplinkIs::Up,
        UplinkIs::Up,
        UplinkIs::Up,
        UplinkIs::Up,
        UplinkIs::Up,
        UplinkIs::WithoutAddress,
        UplinkIs::WithoutRoute,
        UplinkIs::Down,
        UplinkIs::Missing,
    ]);
    let leases = match tape.below(8) {
        0 => Leases::Unknown,
        1 => Leases::Remembered(leases(tape, &config, &node).into()),
        _ => Leases::Listed(leases(tape, &config, &node).into()),
    };
    let devices = devices(&config, &memory.former, &leases);
    let current = devices.iter().copied().filter(|device| !memory.former.links.contains(device));
    let foreign_devices: Vec<LinkName> = current.filter(|_| tape.once_in(8)).collect();
    let underlay = underlay(tape, uplink, &foreign_devices);
    let peers = peer_healths(tape);
    let observed = State { routes: standing(tape, config.table).into(), ..State::default() };
    let contenders = answering(leases.known().iter().filter(|lease| lease.written < HOSTILE));
    let health = HealthInput { peers, contenders };
    World {
        config,
        node,
        leases,
        health,
        others,
        memory,
        observed,
        underlay,
        uplink,
        devices,
        foreign_devices,
    }
}

fn config(tape: &mut Tape) -> Config {
    let options = vxlan::VxlanOptions {
        vni: tape.pick(&[1, 1, 42]),
        port: tape.pick(&[8472, 4789]),
        mtu: tape.pick(&[None, Some(1400)]),
        gbp: tape.once_in(4),
        learning: tape.once_in(4),
        direct: tape.pick(&[Direct::Never, Direct::OnLink, Direct::Verified]),
        direct_mtu: false,
        source_filter: tape.pick(&[SourceFilter::Off, SourceFilter::Count, SourceFilter::Drop]),
    };
    let vxlan = Backend::Vxlan(options);
    let backend = tape.pick(&[vxlan.clone(), vxlan.clone(), vxlan, Backend::HostGw, Backend::Alloc]);
    let (ipv4, ipv6) = tape.pick(&[(true, false), (true, true), (true, true), (false, true)]);
    Config {
        ipv4: ipv4.then(|| net4([10, 244, 0, 0], 16)),
        ipv6: ipv6.then(|| net6(pod6(0, 0), 48)),
        table: tape.pick(&[254, 254, 254, 100]),
        firewall: rules::options(tape),
        blackhole: tape.once_in(3),
        ..Config::new(backend)
    }
}

fn node(tape: &mut Tape) -> (Node, OtherDaemons, Memory) {
    let (ipv4, ipv6) = subnet(1);
    let (leased4, leased6) =
        tape.pick(&[(true, true), (true, true), (true, true), (true, false), (false, true)]);
    let keeper = || FirewallKeeper::Other("pid 812".into());
    let firewall = if tape.once_in(16) { keeper() } else { FirewallKeeper::Us };
    let others = OtherDaemons { tunnels: Vec::new(), firewall };
    let node = Node {
        uplink: Uplink {
            ipv4: Some([192, 0, 2, 1].into()),
            ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            ..Uplink::new(name("eth0"), tape.pick(&[1500, 9000]))
        },
        subnet: Subnet { ipv4: leased4.then_some(ipv4), ipv6: leased6.then_some(ipv6) },
        vtep: Some(OWN_MAC),
        vtep_v6: Some(Mac([0x02, 0, 0, 0, 0, 0x06])),
    };
    let former = LeftOvers {
        firewall: true,
        links: tape.pick(&[vec![], vec![], vec![name("flannel.9"), name("flannel-v6.9")]]),
        networks: tape.pick(&[vec![], FORMER_NETWORKS.map(|network| network.parse().unwrap()).into()]),
        subnets: tape.pick(&[vec![], vec![left_over::nobodys(false, 35), left_over::nobodys(true, 35)]]),
        tables: tape.pick(&[vec![], vec![], vec![254, 100]]),
        writer: tape.pick(&[Writer::Twill, Writer::Flannel]),
    };
    (node, others, Memory::of(former))
}

/// Returns the names of our devices, as flannel names them. They are repeated here so that the tests do not ask the code under
/// test.
fn devices(config: &Config, former: &LeftOvers, leases: &Leases) -> Vec<LinkName> {
    let announced = |vni: u32| {
        leases
            .known()
            .iter()
            .any(|lease| lease.announced.tunnels(&config.backend).any(|theirs| theirs.number == vni))
    };
    let mut vnis = Vec::new();
    if let Backend::Vxlan(options) = &config.backend {
        vnis.push(options.vni);
    }
    // Peers of a host-gw node may announce any of these.
    let theirs = [OTHER_VNI].into_iter().filter(|&vni| announced(vni));
    vnis.extend(theirs.filter(|_| config.backend != Backend::Alloc));
    let name_of = |prefix: &str, vni: &u32| name(&format!("{prefix}{vni}"));
    let mut names = former.links.clone();
    names.extend(vnis.iter().filter(|_| config.ipv4.is_some()).map(|vni| name_of("flannel.", vni)));
    names.extend(vnis.iter().filter(|_| config.ipv6.is_some()).map(|vni| name_of("flannel-v6.", vni)));
    names
}

fn underlay(tape: &mut Tape, uplink: UplinkIs, foreign_devices: &[LinkName]) -> Underlay {
    let link = |name: LinkName, kind: &str, up: bool| LinkFacts {
        name,
        kind: kind.into(),
        mac: Mac([0x02, 0, 0, 0, 0, 0xee]),
        mtu: 1500,
        up,
        carrier: up,
        ..LinkFacts::default()
    };
    let mut links = vec![link(name("lo"), "", true), link(name("eth1"), "", true)];
    if uplink != UplinkIs::Missing {
        links.push(link(name("eth0"), "veth", uplink != UplinkIs::Down));
    }
    links.extend(foreign_devices.iter().map(|&device| link(device, "dummy", true)));
    let own = [IpNet::new_assert(v4([192, 0, 2, 1]), 24), net6(underlay6(0, 1), 64).into()];
    let lost = usize::from(matches!(uplink, UplinkIs::WithoutAddress | UplinkIs::Missing)) * 2;
    let addresses = own.into_iter().skip(lost).map(|address| AddressFacts {
        link: name("eth0"),
        address,
        permanent: true,
        temporary: false,
        deprecated: false,
        tentative: false,
        duplicate: false,
    });
    Underlay {
        addresses: addresses.collect(),
        links,
        routes: routes(tape, uplink != UplinkIs::WithoutRoute),
        beside: Vec::new(),
        firewall: rules::facts(tape),
        sysctls: Vec::new(),
        lookups: Vec::new(),
    }
}

/// Returns the health of some peers and of unused subnets; two may be about the same subnet.
fn peer_healths(tape: &mut Tape) -> Vec<PeerHealth> {
    let link = name("eth0");
    let [node, next_hop] = [v4([192, 0, 2, 7]); 2];
    let findings = [
        Finding::Healthy,
        Finding::Unverified,
        Finding::NextHopSilent { next_hop, uplink: link },
        Finding::Silent { node },
        Finding::TunnelLost { node, port: 8472 },
        Finding::LostAbove { mtu: 1400 },
    ];
    let ways = [None, Some(PreferredPath::Direct), Some(PreferredPath::Tunnel)];
    let health = |tape: &mut Tape| PeerHealth {
        subnet: any_subnet(tape),
        node: v4([192, 0, 2, tape.below(8) as u8]),
        uplink: if tape.once_in(4) { name("eth1") } else { link },
        finding: tape.pick(&findings),
        preferred_path: tape.pick(&ways),
        answers: None,
    };
    (0..tape.below(6)).map(|_| health(tape)).collect()
}

/// Returns direct routes, to the nodes of the subnets or to other ones.
fn standing(tape: &mut Tape, table: u32) -> Vec<Route> {
    let route = |tape: &mut Tape| {
        let subnet = any_subnet(tape);
        direct(subnet, v4([192, 0, 2, tape.below(8) as u8]), table)
    };
    (0..tape.below(4)).map(|_| route(tape)).collect()
}

/// Returns a route to a pod subnet that leads straight to a node.
pub(crate) fn direct(destination: IpNet, gateway: IpAddr, table: u32) -> Route {
    let path = RoutePath::Via { gateway, link: name("eth0"), onlink: false };
    Route { table, destination, path, protocol: PROTOCOL, metric: 0, unknown: None }
}

fn any_subnet(tape: &mut Tape) -> IpNet {
    let (ipv4, ipv6) = subnet(tape.below(9) as u8);
    if tape.once_in(3) { ipv6.into() } else { ipv4.into() }
}

/// Returns `2001:db8:0:<segment>::<host>`.
fn underlay6(segment: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, segment, 0, 0, 0, host)
}

/// Returns routes to the peers' addresses: on the segment, behind a router, or through another device.
fn routes(tape: &mut Tape, connected: bool) -> Vec<RouteFacts> {
    let route = |destination: IpNet, gateway: Option<IpAddr>, link: &str| RouteFacts {
        destination,
        gateway,
        link: Some(name(link)),
        ..RouteFacts::default()
    };
    let segments = [
        route(net4([192, 0, 2, 0], 24).into(), None, "eth0"),
        route(net6(underlay6(0, 0), 64).into(), None, "eth0"),
    ];
    let all = [
        route(net4([0, 0, 0, 0], 0).into(), Some(v4([192, 0, 2, 254])), "eth0"),
        route(net4([192, 0, 2, 3], 32).into(), Some(v4([192, 0, 2, 254])), "eth0"),
        route(net4([192, 0, 2, 4], 32).into(), None, "eth1"),
        route(net4([198, 51, 100, 5], 32).into(), None, "eth0"),
        route(net6(underlay6(0, 3), 128).into(), Some(underlay6(0, 0xfe).into()), "eth0"),
    ];
    let mut routes: Vec<RouteFacts> = all.into_iter().filter(|_| !tape.once_in(4)).collect();
    routes.extend(segments.into_iter().filter(|_| connected));
    tape.shuffle(&mut routes);
    routes
}

fn leases(tape: &mut Tape, config: &Config, node: &Node) -> Vec<Lease> {
    let mut leases = good_leases(tape, config);
    for _ in 0..tape.pick(&[0, 0, 1, 2]) {
        let bad = hostile_lease(tape, config, &leases);
        leases.push(bad);
    }
    if !tape.once_in(4) {
        leases.push(own_lease(config, node));
    }
    tape.shuffle(&mut leases);
    leases
}

/// Time at which a hostile lease was written: after all others.
const HOSTILE: u64 = 9;

/// Returns contenders for these leases whose pod subnets answer.
pub(crate) fn answering<'a>(leases: impl Iterator<Item = &'a Lease>) -> Vec<Contender> {
    let key = |lease: &Lease, family| Some((lease.subnet.of(family)?, lease.public(family)?));
    let keys = leases.flat_map(|lease| Family::ALL.map(|family| key(lease, family))).flatten();
    let mut contenders: Vec<_> = keys
        .map(|(subnet, public_ip)| Contender { subnet, public_ip, standing: Standing::Answers })
        .collect();
    contenders.sort_unstable();
    contenders
}

/// Returns valid leases without conflicts.
pub(crate) fn good_leases(tape: &mut Tape, config: &Config) -> Vec<Lease> {
    let count = tape.below(6) as u8;
    (2..2 + count).map(|at| good_lease(tape, config, at)).collect()
}

pub(crate) fn good_lease(tape: &mut Tape, config: &Config, at: u8) -> Lease {
    let (ipv4, ipv6) = subnet(at);
    let one_family = config.ipv4.is_some() && tape.once_in(6);
    let segment = tape.below(2) as u16;
    let public_ip = if segment == 0 { [192, 0, 2, at] } else { [198, 51, 100, at] };
    let port = tape.pick(&[None, None, Some(8472), Some(4789), Some(9999)]);
    Lease {
        born: tape.below(4).try_into().unwrap(),
        written: tape.below(8).try_into().unwrap(),
        subnet: Subnet { ipv4: Some(ipv4), ipv6: Some(ipv6).filter(|_| !one_family) },
        public_ip: Some(public_ip.into()),
        public_ipv6: Some(underlay6(segment, at.into())),
        announced: match tape.below(8) {
            0 if config.backend != Backend::Alloc => Announced::HostGw,
            1 if config.backend != Backend::Alloc => vteps(Some(OTHER_VNI), port, at),
            // flannel before 0.14 writes no VNI.
            2 if matches!(config.backend, Backend::Vxlan(_)) => vteps(None, port, at),
            _ => announced(config, port, at),
        },
    }
}

fn vteps(vni: Option<u32>, port: Option<u16>, at: u8) -> Announced {
    let vtep = |family| Some(Vtep { vni, port, mac: Mac([0x0a, family, 0, 0, 0, at]) });
    Announced::Vxlan { ipv4: vtep(4), ipv6: vtep(6) }
}

fn announced(config: &Config, port: Option<u16>, at: u8) -> Announced {
    match &config.backend {
        Backend::Vxlan(options) => vteps(Some(options.vni), port, at),
        Backend::HostGw => Announced::HostGw,
        Backend::Alloc => Announced::Nothing,
    }
}

fn own_lease(config: &Config, node: &Node) -> Lease {
    Lease {
        born: 0,
        written: 0,
        subnet: node.subnet,
        public_ip: node.uplink.ipv4,
        public_ipv6: node.uplink.ipv6,
        announced: announced(config, None, 1),
    }
}

/// Returns a lease with one fault that excludes it in both families, if only the nodes of valid leases answer. It was
/// written last.
pub(crate) fn hostile_lease(tape: &mut Tape, config: &Config, good: &[Lease]) -> Lease {
    let at = 20 + tape.below(4) as u8;
    let mut lease =
        Lease { announced: announced(config, None, at), written: HOSTILE, ..good_lease(tape, config, at) };
    let vteps = matches!(config.backend, Backend::Vxlan(_));
    match tape.below(if vteps { 13 } else { 8 }) {
        0 => {
            lease.subnet =
                both(net4([10, 99, 0, 0], 24), net6(Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 0), 64));
        }
        1 => lease.subnet = both(net4([10, 244, 20, 7], 24), net6(pod6(20, 7), 64)),
        2 => lease.subnet = around_ours(tape),
        3 => overlap(tape, &mut lease, good),
        4 => (lease.public_ip, lease.public_ipv6) = (None, None),
        5 => bad_address(tape, &mut lease),
        6 => (lease.public_ip, lease.public_ipv6) = (Some([192, 0, 2, 1].into()), Some(underlay6(0, 1))),
        7 => lease.announced = other_backend(tape, config),
        8 => lease.announced = Announced::Vxlan { ipv4: None, ipv6: None },
        9 => {
            set_vteps(
                &mut lease,
                None,
                tape.pick(&[Mac([1, 0, 0, 0, 0, 1]), Mac::default(), Mac([0xff; 6])]),
            );
        }
        10 => {
            let v6 = Vtep { vni: Some(vni_of(config)), port: None, mac: Mac([0x02, 0, 0, 0, 0, 0x06]) };
            let v4 = Vtep { mac: OWN_MAC, ..v6 };
            lease.announced = Announced::Vxlan { ipv4: Some(v4), ipv6: Some(v6) };
        }
        11 => share_mac(tape, &mut lease, good),
        _ => set_vteps(&mut lease, Some(HUGE_VNI), Mac([0x0a, 0, 0, 0, 0, 99])),
    }
    lease
}

fn vni_of(config: &Config) -> u32 {
    if let Backend::Vxlan(options) = &config.backend { options.vni } else { 0 }
}

fn both(ipv4: Ipv4Net, ipv6: Ipv6Net) -> Subnet {
    Subnet { ipv4: Some(ipv4), ipv6: Some(ipv6) }
}

fn around_ours(tape: &mut Tape) -> Subnet {
    match tape.below(4) {
        0 => both(net4([10, 244, 0, 0], 22), net6(pod6(0, 0), 62)),
        1 => both(net4([10, 244, 1, 128], 25), net6(pod6(1, 0), 65)),
        2 => both(net4([10, 244, 0, 0], 16), net6(pod6(0, 0), 48)),
        _ => both(net4([10, 244, 1, 0], 24), net6(pod6(1, 0), 64)),
    }
}

/// Moves the subnet around or inside that of a valid lease, or around or inside ours if there is none. The lease is younger.
fn overlap(tape: &mut Tape, lease: &mut Lease, good: &[Lease]) {
    lease.born = 9;
    let of_both = |lease: &&Lease| lease.subnet.ipv6.is_some();
    let others: Vec<u8> =
        good.iter().filter(of_both).map(|lease| lease.subnet.ipv4.unwrap().addr().octets()[2]).collect();
    let at = if others.is_empty() { 1 } else { tape.pick(&others) };
    lease.subnet = if tape.once_in(2) {
        both(net4([10, 244, at & !1, 0], 23), net6(pod6((at & !1).into(), 0), 63))
    } else {
        both(net4([10, 244, at, 128], 25), net6(pod6(at.into(), 0), 65))
    };
}

fn bad_address(tape: &mut Tape, lease: &mut Lease) {
    let v4 = tape.pick(&[[0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 5], [255; 4], [0; 4]]);
    let v6 =
        tape.pick(&[Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)]);
    (lease.public_ip, lease.public_ipv6) = (Some(v4.into()), Some(v6));
}

fn other_backend(tape: &mut Tape, config: &Config) -> Announced {
    let other = match config.backend {
        Backend::Vxlan(_) => Announced::Nothing,
        _ => Announced::Vxlan { ipv4: None, ipv6: None },
    };
    tape.pick(&[other, Announced::Other("wireguard".into()), Announced::Other("\u{202e}".into())])
}

fn set_vteps(lease: &mut Lease, other_vni: Option<u32>, mac: Mac) {
    if let Announced::Vxlan { ipv4, ipv6 } = &mut lease.announced {
        for vtep in ipv4.iter_mut().chain(ipv6) {
            *vtep = Vtep { vni: other_vni.or(vtep.vni), mac, ..*vtep };
        }
    }
}

/// Gives the lease the MAC addresses of a valid lease, as a cloned machine has. If there is none, the MAC address is invalid.
fn share_mac(tape: &mut Tape, lease: &mut Lease, good: &[Lease]) {
    lease.born = 9;
    let with_vteps =
        |lease: &&Lease| lease.subnet.ipv6.is_some() && lease.announced.macs().iter().all(Option::is_some);
    let of_both: Vec<&Lease> = good.iter().filter(with_vteps).collect();
    if of_both.is_empty() {
        set_vteps(lease, None, Mac::default());
    } else {
        lease.announced = tape.pick(&of_both).announced.clone();
    }
}

/// Returns a route in any form to one of few destinations, so that many routes share a key.
pub(crate) fn any_route(tape: &mut Tape) -> Route {
    let gateway = v4([192, 0, 2, 7]);
    let link = tape.pick(&["eth0", "flannel.1"]).parse().unwrap();
    let path = match tape.below(6) {
        0 => RoutePath::Via { gateway, link, onlink: tape.once_in(2) },
        1 => RoutePath::Nexthop(*NEXTHOPS.start()),
        2 => RoutePath::Link(link),
        3 => RoutePath::Unreachable,
        4 => RoutePath::Blackhole,
        _ => RoutePath::Other,
    };
    Route {
        table: tape.pick(&[254, 100]),
        destination: tape.pick(&["10.244.1.0/24", "10.244.2.0/24", "fd00:244:0:1::/64"]).parse().unwrap(),
        path,
        protocol: tape.pick(&[PROTOCOL, 3]),
        metric: tape.pick(&[0, u32::MAX]),
        unknown: None,
    }
}
