//! Tests of the monitor: which changes wake it and which do not.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use kernel::{Change, Event, Filter, Kernel, Watch};
use lab::Timing::{Free, Timed};
use plan::state::{Address, Link, Neighbour, Nexthop, Route, Rule, Sysctl};

use crate::scene::*;

const SOON: Duration = Duration::from_secs(5);

/// A watch with the filter of a first dump, and a thread of its own that waits on it.
struct Ear {
    filter: Filter,
    events: Receiver<Event>,
    /// CPU time of the waiting thread, in ns.
    cpu: Box<dyn Fn() -> u64>,
}

fn ear(kernel: &mut Kernel) -> Ear {
    let mut watch = Watch::open(kernel).unwrap();
    let filter = watch.filter();
    filter.set(&seen(kernel).interest).unwrap();
    let (tell, events) = mpsc::channel();
    let (tell_id, id) = mpsc::channel();
    thread::spawn(move || {
        tell_id.send(nix::unistd::gettid()).unwrap();
        while tell.send(watch.wait().unwrap()).is_ok() {}
    });
    let id = id.recv().unwrap();
    let cpu = move || {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).unwrap();
        stat.split_whitespace().next().unwrap().parse().unwrap()
    };
    // The node's own link-local addresses appear with a delay.
    while events.recv_timeout(Duration::from_millis(700)).is_ok() {}
    Ear { filter, events, cpu: Box::new(cpu) }
}

impl Ear {
    /// Asserts that `line` causes an event about that change, and about that device if one is given.
    #[track_caller]
    fn hears(&self, change: Change, link: Option<&str>, line: &str) {
        self.quiet();
        sh(line);
        let event = Event { change, link: link.map(name) };
        let heard = lab::until(SOON, || self.events.try_iter().any(|heard| heard == event).then_some(()));
        assert!(heard.is_some(), "`{line}` brought no {event:?}");
        while self.events.recv_timeout(Duration::from_millis(100)).is_ok() {}
    }

    /// Asserts that no event is pending.
    #[track_caller]
    fn quiet(&self) {
        let event = self.events.recv_timeout(Duration::from_millis(150));
        assert!(event.is_err(), "{event:?}");
    }
}

#[test]
fn changes_of_our_objects_wake() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let ear = ear(&mut kernel);
        ear.hears(Change::of::<Link>(), Some("flannel.1"), "ip link set flannel.1 mtu 1400");
        ear.hears(Change::of::<Link>(), Some("eth0"), "ip link set eth0 mtu 1499");
        ear.hears(Change::of::<Address>(), None, "ip addr add 10.244.1.0/32 dev flannel.1");
        ear.hears(Change::of::<Address>(), None, "ip addr add fd00:10:244:1::/128 dev flannel.1");
        ear.hears(Change::of::<Address>(), None, "ip addr add 192.0.2.5/24 dev eth0");
        ear.hears(
            Change::of::<Neighbour>(),
            None,
            "ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        );
        ear.hears(Change::of::<Neighbour>(), None, "ip neigh del 10.244.2.0 dev flannel.1");
        ear.hears(
            Change::of::<Neighbour>(),
            None,
            "bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2",
        );
        ear.hears(Change::of::<Neighbour>(), None, "bridge fdb del 02:00:00:00:00:02 dev flannel.1");
        ear.hears(Change::of::<Route>(), None, "ip route add 10.244.2.0/24 via 192.0.2.2");
        ear.hears(Change::of::<Route>(), None, "ip route del 10.244.2.0/24");
        ear.hears(Change::of::<Route>(), None, "ip -6 route add fd00:10:244:2::/64 via 2001:db8::2");
        ear.hears(Change::of::<Nexthop>(), None, "ip nexthop add id 5 via 192.0.2.5 dev eth0");
        ear.hears(Change::of::<Rule>(), None, "ip rule add to 10.244.0.0/16 lookup 7777");
        ear.hears(Change::of::<Rule>(), None, "ip -6 rule add to fd00:10:244::/48 lookup 7777");
        for setting in [
            "ipv4/conf/flannel.1/forwarding",
            "ipv4/conf/flannel.1/rp_filter",
            "ipv4/conf/eth0/forwarding",
            "ipv6/conf/flannel.1/forwarding",
            "ipv4/ip_forward",
        ] {
            let change = format!("sysctl -qw net/{setting}=0; sysctl -qw net/{setting}=1");
            ear.hears(Change::of::<Sysctl>(), None, &change);
        }
        ear.hears(
            Change::of::<Link>(),
            Some("moved"),
            "ip link set flannel.1 down; ip link set flannel.1 name moved",
        );
    });
}

/// Our own writes cause no event. Deleted neighbours and FDB entries do, since the kernel does not say who deleted
/// them.
#[test]
fn our_own_writes_wake_nobody() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let ear = ear(&mut kernel);
        let neighbour = plan::state::Neighbour {
            link: name("flannel.1"),
            address: [10, 244, 2, 0].into(),
            mac: plan::Mac([2, 0, 0, 0, 0, 2]),
            unknown: None,
        };
        let route = via("10.244.2.0/24", "10.244.2.0", "flannel.1", true);
        let six = via("fd00:10:244:2::/64", "2001:db8::2", "eth0", false);
        applies(&mut kernel, &[add(neighbour)]);
        ear.quiet();
        let mac = plan::Mac([2, 0, 0, 0, 0, 2]);
        let fdb = |remote: [u8; 4]| plan::state::FdbEntry {
            link: name("flannel.1"),
            mac,
            remote: remote.into(),
            port: None,
            unknown: None,
        };
        for remote in [[192, 0, 2, 2], [192, 0, 2, 3]] {
            applies(&mut kernel, &[replace(fdb(remote))]);
            ear.quiet();
        }
        ear.hears(
            Change::of::<Neighbour>(),
            None,
            "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.4",
        );
        ear.hears(Change::of::<Neighbour>(), None, "bridge fdb del 02:00:00:00:00:02 dev flannel.1");
        for row in [route.clone(), six] {
            applies(&mut kernel, &[add(row.clone())]);
            ear.quiet();
            applies(&mut kernel, &[delete(row)]);
            ear.quiet();
        }
        applies(&mut kernel, &[add(route)]);
        ear.hears(
            Change::of::<Route>(),
            None,
            "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        );
        ear.quiet();
        let smaller = Link { mtu: 1400, ..flannel() };
        applies(&mut kernel, &[replace(link(smaller))]);
        assert_eq!(ear.events.recv_timeout(SOON).unwrap().change, Change::of::<Link>());
    });
}

#[test]
fn foreign_changes_wake_nobody() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let ear = ear(&mut kernel);
        sh("ip link add flannel.10 type bridge; ip link set flannel.10 up; ip addr add 10.9.0.1/24 dev flannel.10
            ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:09 dev flannel.10 nud permanent
            ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
            ip link add br0 type bridge; ip link set br0 up; ip link set flannel.10 master br0
            sysctl -qw net/ipv4/conf/br0/forwarding=1 net/ipv4/conf/br0/rp_filter=1
            ip link del flannel.10; ip link del br0");
        // The bridge's address brings and takes a connected route in the main table, which the underlay is read from.
        let woken: Vec<_> = ear
            .events
            .try_iter()
            .map(|event| event.change)
            .filter(|change| *change != Change::of::<Route>())
            .collect();
        assert_eq!(woken, []);
        for table in [7777, 200] {
            let route = format!("10.244.2.0/24 via 192.0.2.2 table {table}");
            sh(&format!("ip route add {route}; ip route del {route}"));
            ear.quiet();
        }
    });
}

#[test]
fn a_filter_is_replaced_while_the_watch_waits() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let ear = ear(&mut kernel);
        // The new device has an index that the filter does not know, so its name decides.
        let made = "ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472";
        ear.hears(Change::of::<Link>(), Some("flannel.1"), made);
        sh("ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent");
        ear.quiet();
        ear.filter.set(&seen(&mut kernel).interest).unwrap();
        ear.hears(Change::of::<Neighbour>(), None, "ip neigh del 10.244.2.0 dev flannel.1");

        sh("ip route add 10.244.3.0/24 via 192.0.2.3 table 7777");
        ear.quiet();
        let long = plan::owned::Owned { table: 7777, ..owned() };
        ear.filter.set(&kernel.dump(&long).unwrap().interest).unwrap();
        ear.hears(Change::of::<Route>(), None, "ip route del 10.244.3.0/24 via 192.0.2.3 table 7777");
        ear.hears(
            Change::of::<Route>(),
            None,
            "ip -6 route add fd00:10:244:2::/64 via 2001:db8::2 table 7777",
        );
        ear.hears(Change::of::<Route>(), None, "ip route add 198.51.100.0/24 via 192.0.2.3");
        sh(
            "ip route add 10.244.3.0/24 via 192.0.2.3 table 7778; ip route add 10.244.3.0/24 via 192.0.2.3 table 200",
        );
        ear.quiet();
    });
}

#[test]
fn a_storm_of_foreign_neighbours_costs_little_cpu_time() {
    lab::test(Timed, || {
        let mut kernel = tunnelled();
        sh("ip link add eth1 type bridge; ip link set eth1 up; ip addr add 198.18.0.1/15 dev eth1");
        let ear = ear(&mut kernel);
        ear.quiet();
        let changes = 50_000;
        let lines: String = (0..changes)
            .map(|k| {
                format!(
                    "neigh replace 198.18.1.{} lladdr 02:00:00:00:{:02x}:{:02x} dev eth1 nud permanent\n",
                    1 + k % 200,
                    k / 200 % 256,
                    k % 251
                )
            })
            .collect();
        let (before, start) = ((ear.cpu)(), Instant::now());
        ip_batch(&lines);
        let (took, cost) = (start.elapsed(), Duration::from_nanos((ear.cpu)() - before));
        println!("{changes} foreign changes in {took:?} cost {cost:?}");
        ear.quiet();
        assert!(cost < Duration::from_millis(3), "of {took:?}");
        ear.hears(
            Change::of::<Neighbour>(),
            None,
            "ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        );
    });
}

#[test]
fn an_overrun_is_reported() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let mut watch = Watch::open(&kernel).unwrap();
        watch.filter().set(&seen(&mut kernel).interest).unwrap();
        // The watch does not receive while its socket overflows.
        let lines: String = (0..60_000)
            .map(|k| {
                format!(
                    "neigh replace 10.244.2.{} lladdr 02:00:00:00:00:{:02x} dev flannel.1 nud permanent\n",
                    1 + k % 200,
                    k % 251
                )
            })
            .collect();
        ip_batch(&lines);
        assert_eq!(watch.wait().unwrap(), Event { change: Change::Overrun, link: None });
        while watch.wait().unwrap().change != Change::of::<Neighbour>() {}
    });
}
