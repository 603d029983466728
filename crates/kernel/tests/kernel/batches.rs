//! Tests of many ops in one call.

use std::time::Instant;

use kernel::Outcome;
use lab::Timing::{Free, Timed};
use plan::state::{Address, FdbEntry, Neighbour, Route};
use plan::{Mac, Object, Op};

use crate::scene::*;

#[test]
fn a_failed_op_does_not_stop_the_others() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let gateways = ["10.244.1.0", "10.244.2.0", "203.0.113.9", "10.244.4.0", "10.244.5.0"];
        let mut ops: Vec<Op> = gateways
            .iter()
            .enumerate()
            .map(|(k, gateway)| add(via(&format!("10.244.{}.0/24", k + 1), gateway, "flannel.1", k != 2)))
            .collect();
        ops.insert(1, add(via("10.244.9.0/24", "10.244.9.0", "flannel.9", true)));
        let outcomes = kernel.apply(&ops);
        assert_eq!(
            complaint(&outcomes[3]),
            "+ route 10.244.3.0/24 via 203.0.113.9 dev flannel.1: Network is unreachable (os error 101): \
             Nexthop has invalid gateway"
        );
        assert_eq!(
            complaint(&outcomes[1]),
            "+ route 10.244.9.0/24 via 10.244.9.0 dev flannel.9 onlink: there is no device flannel.9"
        );
        let done = outcomes.iter().filter(|outcome| **outcome == Outcome::Done).count();
        assert_eq!((done, outcomes.len()), (4, 6));
        assert_eq!(seen(&mut kernel).state.routes.len(), 4);
        assert_eq!(
            kernel.apply(&[delete(via("10.244.9.0/24", "10.244.9.0", "flannel.9", true))]),
            [Outcome::Gone]
        );
    });
}

#[test]
fn a_large_batch_reports_the_failure_of_every_op() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let bad = |k: u32| {
            add(via(&format!("10.244.{}.{}/32", k / 250, k % 250), "203.0.113.9", "flannel.1", false))
        };
        let ops: Vec<Op> = (0..2000).map(bad).collect();
        for (op, outcome) in ops.iter().zip(kernel.apply(&ops)) {
            let told = complaint(&outcome);
            assert!(told.starts_with(&op.to_string()), "{told}");
            assert!(told.ends_with("Nexthop has invalid gateway"), "{told}");
        }
        // The socket still works after all these errors.
        applies(&mut kernel, &[add(via("10.244.2.0/24", "10.244.2.0", "flannel.1", true))]);
    });
}

#[test]
fn a_batch_may_mix_kinds_of_ops() {
    lab::test(Free, || {
        let mut kernel = node();
        let mac = Mac([2, 0, 0, 0, 0, 2]);
        let link_name = name("flannel.1");
        let address = Address { link: link_name, address: "10.244.1.0/32".parse().unwrap(), unknown: None };
        let neighbour =
            Neighbour { link: link_name, address: "10.244.2.0".parse().unwrap(), mac, unknown: None };
        let fdb = FdbEntry { link: link_name, mac, remote: [192, 0, 2, 2].into(), port: None, unknown: None };
        let want = via("10.244.2.0/24", "10.244.2.0", "flannel.1", true);
        let sysctl = plan::state::Sysctl { path: owned().sysctls[0].clone(), value: "0".into() };
        let mut ops = vec![
            add(link(flannel())),
            add(sysctl),
            add(address),
            up(link_name),
            add(fdb),
            add(neighbour),
            add(want),
        ];
        assert!(ops.is_sorted(), "the order of a round");
        applies(&mut kernel, &ops);
        let state = seen(&mut kernel).state;
        assert_eq!(
            (state.links.len(), state.fdb.len(), state.neighbours.len(), state.routes.len()),
            (1, 1, 1, 1)
        );
        ops.retain(|op| !matches!(op.object, Object::LinkUp(_) | Object::Sysctl(_)));
        ops.reverse();
        applies(&mut kernel, &ops.into_iter().map(|op| delete(op.object)).collect::<Vec<_>>());
        assert_eq!(seen(&mut kernel).state.links.len(), 0);
    });
}

#[test]
fn five_thousand_peers_are_written_and_deleted_in_time() {
    lab::test(Timed, || {
        let mut kernel = tunnelled();
        let mut owned = owned();
        owned.networks[0] = "10.0.0.0/8".parse().unwrap();
        let link = name("flannel.1");
        let subnet = |k: u32| std::net::Ipv4Addr::from(0x0a01_0000 + (k << 8));
        let mac = |k: u32| Mac([2, 0, 0, 1, (k >> 8) as u8, k as u8]);
        let fdb = (0..5000).map(|k| FdbEntry {
            link,
            mac: mac(k),
            remote: (0xc612_0000 + k).to_be_bytes().into(),
            port: None,
            unknown: None,
        });
        let neighbours =
            (0..5000).map(|k| Neighbour { link, address: subnet(k).into(), mac: mac(k), unknown: None });
        let routes: Vec<Route> = (0..5000)
            .map(|k| via(&format!("{}/24", subnet(k)), &subnet(k).to_string(), "flannel.1", true))
            .collect();
        let timed = |what: &str, kernel: &mut kernel::Kernel, ops: &[Op]| {
            let start = Instant::now();
            applies(kernel, ops);
            println!("{what}: {:?}", start.elapsed());
            start.elapsed()
        };
        timed("5000 FDB entries", &mut kernel, &fdb.map(add).collect::<Vec<_>>());
        timed("5000 neighbours", &mut kernel, &neighbours.map(add).collect::<Vec<_>>());
        timed("5000 routes", &mut kernel, &routes.iter().cloned().map(add).collect::<Vec<_>>());
        let start = Instant::now();
        let state = kernel.dump(&owned).unwrap().state;
        println!("dump: {:?}", start.elapsed());
        assert_eq!((state.fdb.len(), state.neighbours.len()), (5000, 5000));
        assert_eq!(state.routes.to_vec(), routes);
        assert_eq!(sh("ip -4 route show table main proto 84 | wc -l").trim(), "5000");
        let took = timed("5000 deletes", &mut kernel, &routes.into_iter().map(delete).collect::<Vec<_>>());
        lab::in_time("5000 deletes", took, std::time::Duration::from_secs(5));
        assert_eq!(kernel.dump(&owned).unwrap().state.routes.len(), 0);
    });
}
