//! Laws that `desired`, `diff` and the parsers keep for any input, tested with ten thousand cases each. The rows of a
//! case are built class by class, so that laws need not ask `owned` what is ours. golden.rs compares complete plans.
#![expect(clippy::unwrap_used, reason = "generators are helpers of tests: a bad literal shall stop the test")]

use std::sync::Arc;

use plan::backend::{Backend, Direct, vxlan};
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::state::{LinkKind, Route, RoutePath};
use plan::subnet_alloc::{self, Requester};
use plan::warning::Warning;
use plan::{HealthInput, Object, Op, Row, Table, Verb};
use proptest::prelude::*;

mod laws {
    pub(crate) mod flannels;
    pub(crate) mod foreign;
    pub(crate) mod half;
    pub(crate) mod judge;
    pub(crate) mod kernel;
    pub(crate) mod left_over;
    pub(crate) mod order;
    pub(crate) mod rules;
    pub(crate) mod scene;
    pub(crate) mod tape;
    pub(crate) mod texts;
    pub(crate) mod world;
}

use laws::judge::{
    deletes_desired, fail, goes_with_its_link, has_true_sign, healthy_routes, held_keys, is_at_desired_key,
    is_one_of_several, is_reachable, is_right_choice, law, names_foreign, unlike,
};
use laws::order::misplaced;
use laws::scene::{Fate, Scene};
use laws::tape::{self, Tape};
use laws::texts;
use laws::world::{self, World};
use plan::health::{Finding, PeerHealth, PreferredPath};
use plan::lease::Leases;

fn config() -> ProptestConfig {
    ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_node_in_the_desired_state_needs_no_op(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = plan::diff(&scene.desired, &scene.desired, &scene.owned);
        law(ops.is_empty(), &scene, &ops, || "seen is desired, and yet there are ops".into())?;
    }

    #[test]
    fn an_applied_plan_gives_the_desired_and_keeps_foreign_rows(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = scene.ops();
        let mut kernel = scene.kernel.clone();
        kernel.apply(&ops).map_err(|error| fail(&scene, &ops, &error))?;
        let (have, expected) = (kernel.rows.state(), scene.expected());
        law(have == expected, &scene, &ops, || unlike(&expected, &have))?;
    }

    #[test]
    fn a_second_pass_has_nothing_to_do(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = scene.ops();
        let mut kernel = scene.kernel.clone();
        kernel.apply(&ops).map_err(|error| fail(&scene, &ops, &error))?;
        let again = plan::diff(&scene.desired, &kernel.rows.state(), &scene.owned);
        law(again.is_empty(), &scene, &ops, || format!("a second round would do {again:?}"))?;
    }

    #[test]
    fn no_op_names_a_foreign_row(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = scene.ops();
        for op in &ops {
            law(!names_foreign(&scene, op), &scene, &ops, || format!("{op} touches a foreign row"))?;
        }
    }

    #[test]
    fn without_leases_rows_are_deleted_only_at_desired_keys(bytes in tape::bytes()) {
        let scene = Scene::before_the_leases(&bytes);
        let ops = scene.ops();
        for op in ops.iter().filter(|op| matches!(op.verb, Verb::Delete | Verb::Recreate)) {
            law(is_at_desired_key(&scene.desired, &op.object), &scene, &ops, || format!("{op} comes too early"))?;
        }
    }

    #[test]
    fn ops_are_sorted_and_each_is_needed(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = scene.ops();
        law(ops.is_sorted_by_key(Op::rank) && ops.is_sorted(), &scene, &ops, || "out of order".into())?;
        law(ops == scene.ops(), &scene, &ops, || "not the same list twice".into())?;
        let mut kernel = scene.kernel.clone();
        for op in &ops {
            let before = kernel.rows.clone();
            kernel.apply_one(op).map_err(|error| fail(&scene, &ops, &error))?;
            let needed = kernel.rows != before || is_one_of_several(&scene, op);
            law(needed, &scene, &ops, || format!("{op} changes nothing"))?;
            law(!deletes_desired(&scene, op), &scene, &ops, || format!("{op}: that row is desired"))?;
            law(!goes_with_its_link(&scene, op), &scene, &ops, || format!("{op}: it goes with its link"))?;
            law(has_true_sign(&scene, op), &scene, &ops, || format!("{op}: that is not what was seen"))?;
        }
    }

    #[test]
    fn what_carries_traffic_exists_before_its_use_and_after_it(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = scene.ops();
        let wrong = misplaced(&ops);
        law(wrong.is_none(), &scene, &ops, || {
            wrong.map(|(op, later)| format!("{op} comes before {later}")).unwrap_or_default()
        })?;
    }

    #[test]
    fn an_uninstall_removes_all_of_ours_and_no_foreign_row(bytes in tape::bytes()) {
        let scene = Scene::settled(&bytes);
        let ops = plan::uninstall(&scene.observed(), &scene.owned);
        let mut kernel = scene.kernel.clone();
        kernel.apply(&ops).map_err(|error| fail(&scene, &ops, &error))?;
        let (have, expected) = (kernel.rows.state(), scene.expected_without_us());
        law(have == expected, &scene, &ops, || unlike(&expected, &have))?;
        let element = ops.iter().find(|op| matches!(op.object, Object::NftElement(_)));
        law(element.is_none(), &scene, &ops, || format!("{element:?} goes with its chain"))?;
    }

    #[test]
    fn a_hand_over_leaves_what_flannel_writes_and_no_other_row_of_ours(bytes in tape::bytes()) {
        let scene = Scene::settled(&bytes);
        let (observed, expected) = (scene.observed(), scene.expected_for_flannel());
        let own: Vec<_> = scene.desired.links.iter().map(|link| link.name).collect();
        // A route can only be moved through a device that is up, to a key that nobody has.
        let is_free = |pair: &[Route]| {
            pair[0].cmp_key(&pair[1]).is_ne() || pair.iter().all(|row| scene.foreign.routes.contains(row))
        };
        let passable = scene.kernel.devices.iter().all(|device| device.passable);
        if !passable || !expected.routes.windows(2).all(is_free) {
            return Ok(());
        }
        let ops = plan::hand_over(&observed, &scene.owned, &own);
        let mut kernel = scene.kernel.clone();
        kernel.apply(&ops).map_err(|error| fail(&scene, &ops, &error))?;
        let have = kernel.rows.state();
        law(have == expected, &scene, &ops, || unlike(&expected, &have))?;
        law(misplaced(&ops).is_none(), &scene, &ops, || format!("wrong order: {:?}", misplaced(&ops)))?;
        let again = plan::hand_over(&have, &scene.owned, &own);
        law(again.is_empty(), &scene, &ops, || format!("a second hand-over would do {again:?}"))?;
    }

    #[test]
    fn healthy_routes_exist_after_every_op(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = scene.ops();
        let mut kernel = scene.kernel.clone();
        let (healthy, held) = (healthy_routes(&scene), held_keys(&scene));
        for op in &ops {
            kernel.apply_one(op).map_err(|error| fail(&scene, &ops, &error))?;
            let have = &kernel.rows.routes;
            let lost = healthy.iter().find(|row| !have.contains(row));
            law(lost.is_none(), &scene, &ops, || format!("{op} takes a route away: {lost:?}"))?;
            let bare = held.iter().find(|row| !have.iter().any(|other| other.cmp_key(row).is_eq()));
            law(bare.is_none(), &scene, &ops, || format!("{op} leaves no route at all: {bare:?}"))?;
            if let Object::Route(row) = &op.object
                && matches!(op.verb, Verb::Add | Verb::Replace)
            {
                let ready = is_reachable(&kernel.rows.state(), &scene.desired, row.path);
                law(ready, &scene, &ops, || format!("{op} comes before its next hop"))?;
            }
        }
    }

    #[test]
    fn a_device_is_recreated_only_if_necessary(bytes in tape::bytes()) {
        let scene = Scene::new(&bytes);
        let ops = scene.ops();
        for op in &ops {
            let Object::Link(link) = &op.object else { continue };
            let right = match scene.fate(link.name) {
                Some(Fate::New) => op.verb == Verb::Add,
                Some(Fate::Changed { .. }) => op.verb == Verb::Replace,
                Some(Fate::Remade) => matches!(op.verb, Verb::Recreate | Verb::Add),
                Some(Fate::Stale) => op.verb == Verb::Delete,
                _ => false,
            };
            law(right, &scene, &ops, || format!("{op} is not what this device needs"))?;
        }
    }

    #[test]
    fn a_walk_of_two_tables_meets_each_key_once(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let [left, right] = [(); 2].map(|()| (0..tape.below(8)).map(|_| world::any_route(&mut tape)).collect::<Table<_>>());
        let mut met = std::collections::BTreeSet::new();
        for (here, there) in left.union(&right) {
            let key = here.iter().chain(there).next().map(Row::key);
            prop_assert!(here.iter().chain(there).all(|row| Some(row.key()) == key), "{here:?} {there:?}");
            prop_assert!(met.insert(key), "{key:?} is met twice: {left:?} {right:?}");
        }
    }

    #[test]
    fn the_order_of_rows_does_not_change_a_table(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let mut rows: Vec<Route> = (0..8).map(|_| world::any_route(&mut tape)).collect();
        let table: Table<Route> = rows.clone().into();
        tape.shuffle(&mut rows);
        prop_assert_eq!(table, rows.into());
    }

    #[test]
    fn the_order_of_leases_does_not_change_the_plan(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let mut world = world::world(&mut tape);
        let plan = world.plan();
        if let Leases::Remembered(leases) | Leases::Listed(leases) = &mut world.leases {
            tape.shuffle(Arc::make_mut(leases));
        }
        let again = world.plan();
        prop_assert_eq!(plan, again);
    }

    #[test]
    fn every_plan_passes_the_check(bytes in tape::bytes()) {
        let world = world::world(&mut Tape::new(&bytes));
        let plan = world.plan();
        prop_assert_eq!(plan.contradiction, None);
    }

    #[test]
    fn health_of_an_unknown_subnet_or_other_uplink_changes_nothing(bytes in tape::bytes()) {
        let mut world = world::world(&mut Tape::new(&bytes));
        let plan = world.plan();
        let nobodys = ["10.244.200.0/24", "10.99.0.0/24", "fd00:244:0:c8::/64"];
        let healths = nobodys.map(|subnet| PeerHealth {
            subnet: subnet.parse().unwrap(),
            node: world::v4([192, 0, 2, 7]),
            uplink: world.node.uplink.link,
            finding: Finding::Silent { node: world::v4([192, 0, 2, 7]) },
            preferred_path: Some(PreferredPath::Direct),
            answers: Some(false),
        });
        world.health.peers.extend(healths);
        let elsewhere = plan.peers.iter().map(|peer| PeerHealth {
            subnet: peer.subnet,
            node: peer.public_ip,
            uplink: "other0".parse().unwrap(),
            finding: Finding::Silent { node: peer.public_ip },
            preferred_path: Some(if peer.path == plan::Path::Direct { PreferredPath::Tunnel } else { PreferredPath::Direct }),
            answers: Some(false),
        });
        world.health.peers.extend(elsewhere);
        prop_assert_eq!(world.plan(), plan);
    }

    #[test]
    fn before_the_leases_are_known_existing_rows_stay(bytes in tape::bytes()) {
        let world = world::world(&mut Tape::new(&bytes));
        let plan = world.plan();
        let mut observed = plan.desired.clone();
        // A waiting peer keeps the direct route in the kernel, or the one that was proven and thus is there.
        let verified = world.config.backend.direct() == Direct::Verified;
        let link = world.node.uplink.link;
        let proven = world.health.peers.iter();
        let proven = proven.filter(|it| verified && (it.preferred_path, it.uplink) == (Some(PreferredPath::Direct), link));
        let proven = proven.map(|health| world::direct(health.subnet, health.node, world.config.table));
        let stood = world.observed.routes.iter().cloned().chain(proven).filter(|route| {
            let RoutePath::Via { gateway, .. } = route.path else { return false };
            let is = |peer: &plan::PeerPath| (peer.subnet, peer.public_ip) == (route.destination, gateway);
            plan.peers.iter().any(|peer| is(peer) && peer.path == plan::Path::Waiting)
        });
        let stood: Vec<_> = stood.collect();
        let stays = |row: &&Route| !stood.iter().any(|route| route.cmp_key(row).is_eq());
        observed.routes = plan.desired.routes.iter().filter(stays).cloned().chain(stood.iter().cloned()).collect();
        let faults = world.health.peers.iter().map(|health| PeerHealth { preferred_path: None, ..health.clone() });
        let health = HealthInput { peers: faults.collect(), ..world.health.clone() };
        let again = World { health, observed, ..world }.plan();
        prop_assert_eq!((again.desired, again.peers), (plan.desired, plan.peers));
    }

    #[test]
    fn a_peer_is_reached_on_its_own_port_or_else_on_ours(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let world = world::world(&mut tape);
        let leases = world::good_leases(&mut tape, &world.config);
        let listed = plan::lease::Leases::Listed(leases.as_slice().into());
        let plan = world.plan_with(&listed);
        let ours = if let Backend::Vxlan(options) = &world.config.backend { options.port } else { 8472 };
        for entry in &plan.desired.fdb {
            let mut vteps = leases.iter().flat_map(|lease| lease.announced.vteps());
            let theirs = vteps.find(|vtep| vtep.mac == entry.mac).unwrap().port.unwrap_or(ours);
            let device = plan.desired.links.iter().find(|link| link.name == entry.link).unwrap();
            let LinkKind::Vxlan(device) = &device.kind else { unreachable!("we make vxlan devices only") };
            prop_assert_eq!(entry.port.unwrap_or(device.port), theirs);
            prop_assert_ne!(entry.port, Some(device.port), "the kernel would not tell it");
        }
    }

    #[test]
    fn nodes_with_different_ports_converge_and_then_stop_writing(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let world = world::world(&mut tape);
        let mut leases = world::good_leases(&mut tape, &world.config);
        let ports: Vec<u16> = leases.iter().map(|_| tape.pick(&[8472, 8472, 8472, 4789, 9999])).collect();
        let announce = |leases: &mut [Lease], at: usize| {
            let backend = Backend::Vxlan(vxlan::VxlanOptions { port: ports[at], ..Default::default() });
            let others = leases.iter().filter(|lease| lease.subnet != leases[at].subnet);
            let others = others.map(|lease| &lease.announced);
            leases[at].announced = backend.announced(world.config.families(), [world::OWN_MAC; 2], others);
        };
        let mut settled = Vec::new();
        for _ in 0..3 {
            settled.clone_from(&leases);
            let mut order: Vec<usize> = (0..ports.len()).collect();
            tape.shuffle(&mut order);
            order.into_iter().for_each(|at| announce(&mut leases, at));
        }
        prop_assert_eq!(&leases, &settled, "after two rounds of all, nothing is left to say");
        let said: Vec<_> = leases.iter().map(|lease| lease.announced.vteps().next().unwrap().port).collect();
        for ours in &ports {
            let heard: Vec<u16> = said.iter().map(|port| port.unwrap_or(*ours)).collect();
            prop_assert_eq!(&heard, &ports);
        }
        let flannels = ports.iter().all(|port| *port == 8472);
        prop_assert!(!flannels || said.iter().all(Option::is_none), "{:?}", said);
    }

    #[test]
    fn a_hostile_lease_changes_no_row_of_the_good_ones(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let world = world::world(&mut tape);
        let mut leases = world::good_leases(&mut tape, &world.config);
        let health = HealthInput { contenders: world::answering(leases.iter()), ..world.health };
        let world = World { health, ..world };
        let plan_for = |leases: &[Lease]| world.plan_with(&Leases::Listed(leases.into()));
        let without = plan_for(&leases);
        leases.push(world::hostile_lease(&mut tape, &world.config, &leases));
        tape.shuffle(&mut leases);
        let with = plan_for(&leases);
        prop_assert_eq!(&with.desired, &without.desired);
        prop_assert_eq!(&with.owned, &without.owned);
        prop_assert!(without.warnings.iter().all(|warning| with.warnings.contains(warning)));
    }

    #[test]
    fn no_text_in_the_store_can_stop_a_plan(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let (mut leases, mut shown) = (Vec::new(), String::new());
        for born in 0..6 {
            let (key, value) = (texts::key(&mut tape), texts::json(&mut tape));
            match Lease::parse(&key, &value, born) {
                Ok(lease) => leases.push(lease),
                Err(why) => shown += &Warning::Entry { key: key.into(), why: why.into() }.to_string(),
            }
        }
        leases.push(texts::any_lease(&mut tape));
        let world = world::world(&mut tape);
        let leases = Leases::Listed(leases.into());
        let plan = world.plan_with(&leases);
        prop_assert_eq!(plan.contradiction, None);
        shown.extend(plan.warnings.iter().map(ToString::to_string));
        prop_assert!(!shown.contains(char::is_control), "{:?}", shown);
    }

    #[test]
    fn no_net_conf_or_subnet_file_can_cause_a_panic(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let texts = [bytes.clone(), texts::json(&mut tape), texts::net_conf(&mut tape)];
        for text in texts {
            match NetConf::parse(&text) {
                Ok(conf) => prop_assert!(conf.ipv4.is_some() || conf.ipv6.is_some()),
                Err(error) => prop_assert!(error.to_string().len() > "network config: ".len()),
            }
            let text = String::from_utf8_lossy(&text);
            _ = plan::subnet_env::previous_subnet(&text);
            _ = plan::subnet_env::previous_subnet(&format!("FLANNEL_SUBNET={text}\nFLANNEL_IPV6_SUBNET={text}"));
        }
    }

    #[test]
    fn a_lease_survives_a_round_trip_through_key_and_value(bytes in tape::bytes()) {
        let lease = texts::any_lease(&mut Tape::new(&bytes));
        let (key, value) = (lease.subnet.to_string(), lease.to_json());
        let back = Lease::parse(&key, value.as_bytes(), lease.born);
        prop_assert_eq!(back, Ok(lease), "{} {}", key, value);
    }

    #[test]
    fn a_chosen_subnet_is_in_the_pool_and_free(bytes in tape::bytes()) {
        let mut tape = Tape::new(&bytes);
        let Ok(conf) = NetConf::parse(texts::pools(&mut tape).as_bytes()) else { return Ok(()) };
        let requester = |tape: &mut Tape, previous| {
            let public_ip = Some(texts::ipv4(tape)).filter(|_| conf.ipv4.is_some());
            Requester { public_ip, public_ipv6: Some([7; 16].into()), previous, ..Requester::default() }
        };
        let nobody = requester(&mut tape, None);
        let Ok(some) = subnet_alloc::choose(&conf, &[], &nobody, tape.byte().into()) else { return Ok(()) };
        let mut leases = texts::neighbouring_leases(&mut tape, some.subnet);
        let previous = tape.once_in(2).then_some(some.subnet);
        let me = requester(&mut tape, previous);
        if tape.once_in(3) && let Some(lease) = leases.first_mut() {
            (lease.public_ip, lease.public_ipv6) = (me.public_ip, me.public_ipv6);
            lease.subnet = tape.pick(&[some.subnet, lease.subnet]);
        }
        // A store has one value per key.
        leases.sort_by_key(|lease| lease.subnet);
        leases.dedup_by_key(|lease| lease.subnet);
        let dice = u64::from(tape.byte()) << tape.below(57);
        let Ok(choice) = subnet_alloc::choose(&conf, &leases, &me, dice) else { return Ok(()) };
        is_right_choice(&conf, &leases, &me, &choice)?;
    }
}
