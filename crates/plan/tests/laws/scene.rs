//! Generator of the kernel state for a plan: desired rows kept, missing, faulty or doubled; left-overs of ours; foreign rows.
//! Each row's class is known by construction and never asked of the code under test.

use plan::backend::Backend;
use plan::lease::Leases;
use plan::owned::Owned;
use plan::state::{
    Link, LinkKind, Nexthop, NftChain, NftChainName, NftTable, Route, RoutePath, Rule, State, Sysctl, Vxlan,
};
use plan::{LinkName, Mac, Row, Table};

use super::flannels;
use super::foreign;
use super::half;
use super::kernel::{Device, Kernel, Rows, accept_ra};
use super::left_over;
use super::rules;
use super::tape::Tape;
use super::world::{NEXTHOPS, PROTOCOL, UplinkIs, World, name, v4, world};

/// State of a device under one of our names before the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is as desired.
    Kept,
    /// It is missing.
    New,
    /// It differs in attributes that can be changed in place.
    Changed { mac: bool },
    /// It differs in an attribute that cannot be changed in place.
    Remade,
    /// It is ours but not desired.
    Stale,
    /// It is of another kind, which the underlay does not show.
    Squatted,
}

/// State in which a scene finds the desired rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Find {
    /// Kept, missing, faulty or doubled.
    AnyState,
    AsDesired,
}

/// Plan, and a kernel to apply it to.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) desired: State,
    pub(crate) owned: Owned,
    pub(crate) kernel: Kernel,
    pub(crate) foreign: Rows,
    pub(crate) left_over: Rows,
    pub(crate) fates: Vec<(LinkName, Fate)>,
    /// True if left-overs may be deleted: the leases are listed and the uplink is usable.
    pub(crate) sweeps: bool,
}

impl Scene {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut tape = Tape::new(bytes);
        Self::in_world(&mut tape, Find::AnyState, |_| {})
    }

    /// Returns a scene in which every desired row exists as desired, beside left-overs and foreign rows.
    pub(crate) fn settled(bytes: &[u8]) -> Self {
        let mut tape = Tape::new(bytes);
        Self::in_world(&mut tape, Find::AsDesired, |_| {})
    }

    /// Returns a scene before the leases were listed for the first time.
    pub(crate) fn before_the_leases(bytes: &[u8]) -> Self {
        let mut tape = Tape::new(bytes);
        Self::in_world(&mut tape, Find::AnyState, |world| world.leases = Leases::Unknown)
    }

    fn in_world(tape: &mut Tape, find: Find, adjust: impl Fn(&mut World)) -> Self {
        let mut world = world(tape);
        adjust(&mut world);
        let plan = world.plan();
        let mut scene = Self {
            desired: plan.desired,
            owned: plan.owned,
            kernel: Kernel { rows: Rows::default(), devices: other_devices(world.uplink) },
            foreign: Rows::default(),
            left_over: Rows::default(),
            fates: Vec::new(),
            sweeps: matches!(world.leases, Leases::Listed(_)) && world.is_uplink_fit(),
        };
        scene.want_more(tape, find);
        scene.find_devices(tape, &world, find);
        match find {
            Find::AnyState => scene.find_desired_rows(tape),
            // The traffic rules are drawn below, in any state.
            Find::AsDesired => scene.kernel.rows = Rows::without_traffic_rules(&scene.desired),
        }
        left_over::draw(&mut scene, tape, &world);
        foreign::draw(&mut scene, tape, &world);
        rules::draw(&mut scene, tape, &world);
        flannels::draw(&mut scene, tape, &world);
        scene.settle();
        scene
    }

    /// Adds desired rows that the plan may lack, so that every part of a state is tested.
    fn want_more(&mut self, tape: &mut Tape, find: Find) {
        if tape.once_in(3) {
            let mut nexthops = Vec::new();
            let mut routes = self.desired.routes.to_vec();
            for (id, route) in NEXTHOPS.zip(&mut routes) {
                if let RoutePath::Via { gateway, link, onlink } = route.path
                    && !tape.once_in(3)
                {
                    nexthops.push(Nexthop { id, gateway, link, onlink, protocol: PROTOCOL, unknown: None });
                    route.path = RoutePath::Nexthop(id);
                }
            }
            (self.desired.routes, self.desired.nexthops) = (routes.into(), nexthops.into());
        }
        if tape.once_in(3) {
            let rule = |to| Rule { priority: 5000, to, table: 100, protocol: PROTOCOL, unknown: None };
            self.desired.rules = self.desired.routes.iter().map(|route| rule(route.destination)).collect();
        }
        if tape.once_in(3) {
            let node = ["net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra"];
            let rows = |values: [&str; 2]| {
                let row = |(path, value): (&str, &str)| Sysctl { path: path.into(), value: value.into() };
                node.into_iter().zip(values).map(row).collect::<Vec<_>>()
            };
            self.desired.sysctls = self.desired.sysctls.iter().cloned().chain(rows(["1", "2"])).collect();
            self.kernel.rows.sysctls.extend(rows(["0", "1"]));
        }
        if find == Find::AnyState && self.desired.routes.is_empty() && tape.once_in(3) {
            let down = |link: &Link| Link { up: false, ..link.clone() };
            self.desired.links = self.desired.links.iter().map(down).collect();
        }
    }

    fn find_devices(&mut self, tape: &mut Tape, world: &World, find: Find) {
        for want in &self.desired.links.clone() {
            let fate = if find == Find::AsDesired { Fate::Kept } else { half::fate(tape) };
            self.fates.push((want.name, fate));
            self.kernel.rows.links.extend(half::device(tape, want, fate));
            let value = tape.pick(&["0", "0", "1", "2"]);
            self.kernel.rows.sysctls.push(Sysctl { path: accept_ra(want.name).into(), value: value.into() });
        }
        let unwanted: Vec<LinkName> =
            world.devices.iter().copied().filter(|&device| self.fate(device).is_none()).collect();
        for device in unwanted {
            let sysctl = Sysctl { path: accept_ra(device).into(), value: "1".into() };
            if world.foreign_devices.contains(&device) {
                self.foreign.links.push(other_kind(device));
                self.foreign.sysctls.push(sysctl);
            } else if !tape.once_in(3) {
                self.fates.push((device, Fate::Stale));
                self.left_over.links.push(stale_device(world, device));
                self.left_over.sysctls.push(sysctl);
            }
        }
    }

    fn find_desired_rows(&mut self, tape: &mut Tape) {
        let (desired, rows) = (&self.desired, &mut self.kernel.rows);
        rows.addresses = found(tape, &desired.addresses, Twice::Unlike, half::address);
        rows.fdb = found(tape, &desired.fdb, Twice::Never, half::fdb);
        rows.neighbours = found(tape, &desired.neighbours, Twice::Never, half::neighbour);
        rows.nexthops = found(tape, &desired.nexthops, Twice::Never, half::nexthop);
        rows.routes = found(tape, &desired.routes, Twice::Unlike, half::route);
        rows.rules = found(tape, &desired.rules, Twice::Even, half::rule);
    }

    /// Merges the classes and removes impossible rows, such as a route through a missing device.
    fn settle(&mut self) {
        let links = [&self.kernel.rows.links, &self.foreign.links, &self.left_over.links];
        let there: Vec<LinkName> = links.into_iter().flatten().map(|link| link.name).collect();
        let devices: Vec<LinkName> = self.kernel.devices.iter().map(|device| device.name).collect();
        let is_there = |link: LinkName| there.contains(&link) || devices.contains(&link);
        let mut ids = Vec::new();
        for rows in [&mut self.kernel.rows, &mut self.foreign, &mut self.left_over] {
            rows.nexthops.retain(|row| is_there(row.link));
            ids.extend(rows.nexthops.iter().map(|row| row.id));
        }
        let ours = |row: &Sysctl| there.iter().any(|link| *row.path == *accept_ra(*link));
        for rows in [&mut self.kernel.rows, &mut self.foreign, &mut self.left_over] {
            rows.sysctls.retain(|row| !row.path.starts_with("net/ipv6/conf/flannel") || ours(row));
            rows.addresses.retain(|row| is_there(row.link));
            rows.fdb.retain(|row| is_there(row.link));
            rows.neighbours.retain(|row| is_there(row.link));
            rows.routes.retain(|row| match row.path {
                RoutePath::Via { link, .. } | RoutePath::Link(link) => is_there(link),
                RoutePath::Nexthop(id) => ids.contains(&id),
                _ => true,
            });
        }
        self.kernel.rows.extend(&self.foreign);
        self.kernel.rows.extend(&self.left_over);
    }

    pub(crate) fn fate(&self, link: LinkName) -> Option<Fate> {
        self.fates.iter().find(|(name, _)| *name == link).map(|(_, fate)| *fate)
    }

    /// Returns our devices in the kernel, which may have left-overs.
    pub(crate) fn our_devices(&self) -> Vec<LinkName> {
        let there = |fate| !matches!(fate, Fate::New | Fate::Squatted);
        self.fates.iter().filter(|(_, fate)| there(*fate)).map(|(name, _)| *name).collect()
    }

    pub(crate) fn observed(&self) -> State {
        self.kernel.rows.state()
    }

    pub(crate) fn ops(&self) -> Vec<plan::Op> {
        plan::diff(&self.desired, &self.observed(), &self.owned)
    }

    /// Returns true if the device is deleted, for good or to be recreated.
    pub(crate) fn goes(&self, link: LinkName) -> bool {
        match self.fate(link) {
            Some(Fate::Remade) => true,
            Some(Fate::Stale) => self.sweeps,
            _ => false,
        }
    }

    /// Returns true if the device loses its neighbours.
    pub(crate) fn is_flushed(&self, link: LinkName) -> bool {
        self.goes(link) || self.fate(link) == Some(Fate::Changed { mac: true })
    }

    /// Returns true if the path's next hop object is deleted, and with it the route. A desired object is moved off a device
    /// that is deleted for good.
    pub(crate) fn next_hop_goes(&self, path: RoutePath) -> bool {
        let RoutePath::Nexthop(id) = path else { return false };
        let row = self.kernel.rows.nexthops.iter().find(|row| row.id == id);
        row.is_some_and(|row| match self.fate(row.link) {
            Some(Fate::Stale) => self.sweeps && self.desired.nexthops.iter().all(|row| row.id != id),
            _ => self.goes(row.link),
        })
    }

    /// Returns the expected state after twill was removed: the foreign rows that stand on no device of ours.
    pub(crate) fn expected_without_us(&self) -> State {
        let mut rows = self.foreign.clone();
        rows.sysctls = self.kernel.rows.sysctls.clone();
        // A table of ours stays if it holds a chain of another program.
        let stays = |table: &NftTable| {
            rows.nft_tables.contains(table)
                || rows.nft_chains.iter().any(|chain| chain.family == table.family)
        };
        let tables = self.kernel.rows.nft_tables.iter().filter(|table| stays(table)).cloned();
        rows.nft_tables = tables.collect();
        self.our_devices().into_iter().for_each(|device| rows.drop_link(device));
        rows.state()
    }

    /// Returns the expected state after a hand-over to flannel: what flannel would not have written is gone, and routes
    /// are plain and in the main table.
    pub(crate) fn expected_for_flannel(&self) -> State {
        let mut rows = self.kernel.rows.clone();
        let object = |id| self.kernel.rows.nexthops.iter().find(|row| row.id == id).unwrap();
        let moved = |row: &Route| {
            let path = match row.path {
                RoutePath::Unreachable | RoutePath::Blackhole => return None,
                RoutePath::Nexthop(id) => {
                    let Nexthop { gateway, link, onlink, .. } = *object(id);
                    RoutePath::Via { gateway, link, onlink }
                }
                path => path,
            };
            Some(Route { path, table: 254, ..row.clone() })
        };
        let theirs = &self.foreign;
        let route = |row: &Route| if theirs.routes.contains(row) { Some(row.clone()) } else { moved(row) };
        rows.routes = self.kernel.rows.routes.iter().filter_map(route).collect();
        rows.nexthops.clone_from(&theirs.nexthops);
        rows.rules.clone_from(&theirs.rules);
        rows.nft_elements.clone_from(&theirs.nft_elements);
        let is_filter =
            |chain: &NftChain| [NftChainName::Vxlan, NftChainName::VxlanPods].contains(&chain.chain);
        rows.nft_chains.retain(|chain| !is_filter(chain) || theirs.nft_chains.contains(chain));
        self.left_over.links.iter().for_each(|link| rows.drop_link(link.name));
        rows.state()
    }

    /// Returns the expected final state: the desired rows, and all foreign rows and left-overs that must stay.
    pub(crate) fn expected(&self) -> State {
        let mut others = self.foreign.clone();
        if !self.sweeps {
            others.extend(&self.left_over);
        }
        for &(link, _) in &self.fates {
            if self.goes(link) {
                others.drop_link(link);
            }
            if self.is_flushed(link) {
                others.flush_neighbours(link);
            }
        }
        others.routes.retain(|row| !self.next_hop_goes(row.path));
        let mut rows = Rows::of(&self.desired);
        rows.links.retain(|link| self.fate(link.name) != Some(Fate::Squatted));
        let squatters =
            self.kernel.rows.links.iter().filter(|link| self.fate(link.name) == Some(Fate::Squatted));
        rows.links.extend(squatters.cloned());
        rows.extend(&others);
        rows.state()
    }
}

fn other_devices(uplink: UplinkIs) -> Vec<Device> {
    let mut devices =
        vec![Device { name: name("eth1"), passable: true }, Device { name: name("cni0"), passable: true }];
    if uplink != UplinkIs::Missing {
        devices.push(Device {
            name: name("eth0"),
            passable: matches!(uplink, UplinkIs::Up | UplinkIs::WithoutRoute),
        });
    }
    devices
}

pub(crate) fn other_kind(name: LinkName) -> Link {
    let mac = Mac([0x06, 0, 0, 0, 0, 1]);
    Link { name, kind: LinkKind::Other("dummy".into()), mac, mtu: 1500, up: true, unknown: None }
}

/// Returns a device that is no longer desired, such as that of a family without a lease.
fn stale_device(world: &World, device: LinkName) -> Link {
    // If this config has no VXLAN, the device is of an earlier one.
    let options =
        if let Backend::Vxlan(options) = world.config.backend { options } else { Default::default() };
    let kind = LinkKind::Vxlan(Vxlan {
        vni: options.vni,
        local: v4([192, 0, 2, 1]),
        uplink: Some(world.node.uplink.link),
        port: options.port,
        learning: false,
        gbp: false,
    });
    Link { name: device, kind, mac: Mac([0x06, 0, 0, 0, 0, 2]), mtu: 1450, up: true, unknown: None }
}

/// Number of rows that a kernel may hold under one key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twice {
    Never,
    /// Several rows, if they differ.
    Unlike,
    /// Several rows, even equal ones.
    Even,
}

fn found<T: Row>(
    tape: &mut Tape,
    desired: &Table<T>,
    twice: Twice,
    half: impl Fn(&mut Tape, &T) -> T,
) -> Vec<T> {
    let mut rows = Vec::new();
    for row in desired {
        match tape.below(8) {
            0..=3 => rows.push(row.clone()),
            4 => {}
            5 | 6 => rows.push(half(tape, row)),
            _ => {
                let at = rows.len();
                rows.push(half(tape, row));
                for _ in 0..if twice == Twice::Never { 0 } else { 1 + tape.below(2) } {
                    let other = if tape.once_in(2) { half(tape, row) } else { row.clone() };
                    if twice == Twice::Even || !rows[at..].contains(&other) {
                        rows.push(other);
                    }
                }
                tape.shuffle(&mut rows[at..]);
            }
        }
    }
    rows
}
