//! Tests of neighbours and FDB entries.

use kernel::Outcome;
use lab::Timing::Free;
use plan::Mac;
use plan::state::{FdbEntry, Neighbour};

use crate::scene::*;

const PEER: Mac = Mac([0x02, 0, 0, 0, 0, 2]);

fn neighbour(address: &str) -> Neighbour {
    Neighbour { link: name("flannel.1"), address: address.parse().unwrap(), mac: PEER, unknown: None }
}

fn entry(mac: Mac, remote: &str) -> FdbEntry {
    FdbEntry { link: name("flannel.1"), mac, remote: remote.parse().unwrap(), port: None, unknown: None }
}

fn shown(line: &str) -> Vec<String> {
    let mut lines: Vec<_> = sh(line).lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

#[test]
fn our_neighbours_equal_those_that_ip_adds() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let want = ["10.244.2.0", "fd00:10:244:2::"].map(neighbour);
        applies(&mut kernel, &want.clone().map(add));
        assert_eq!(seen(&mut kernel).state.neighbours.to_vec(), want);
        let made =
            shown("ip neigh show dev flannel.1 nud permanent; ip -6 neigh show dev flannel.1 nud permanent");
        assert_eq!(made[0], "10.244.2.0 lladdr 02:00:00:00:00:02 PERMANENT", "{made:?}");
        sh("ip neigh del 10.244.2.0 dev flannel.1; ip neigh del fd00:10:244:2:: dev flannel.1");
        assert_eq!(seen(&mut kernel).state.neighbours.to_vec(), []);
        sh("ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
            ip neigh add fd00:10:244:2:: lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent");
        assert_eq!(seen(&mut kernel).state.neighbours.to_vec(), want);
        let other = Neighbour { mac: Mac([2, 0, 0, 0, 0, 3]), ..neighbour("10.244.2.0") };
        applies(&mut kernel, &[replace(other.clone())]);
        assert_eq!(seen(&mut kernel).state.neighbours[0], other);
        let ops = [delete(other.clone()), delete(other), delete(want[1].clone())];
        assert_eq!(kernel.apply(&ops), [Outcome::Done, Outcome::Gone, Outcome::Done]);
    });
}

#[test]
fn neighbours_that_are_not_permanent_are_unknown() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        for state in ["reachable", "stale", "noarp"] {
            sh(&format!("ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud {state}"));
            let rows = seen(&mut kernel).state.neighbours.to_vec();
            assert_eq!(rows.len(), 1, "{rows:?}");
            assert_eq!(rows[0].unknown.as_deref(), Some(state));
            assert_eq!((rows[0].address, rows[0].mac), ("10.244.2.0".parse().unwrap(), PEER));
        }
        sh("ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent extern_learn");
        assert_eq!(seen(&mut kernel).state.neighbours[0].unknown.as_deref(), Some("flags 0x10"));
        // Our entry replaces any other one.
        applies(&mut kernel, &[replace(neighbour("10.244.2.0"))]);
        assert_eq!(seen(&mut kernel).state.neighbours.to_vec(), [neighbour("10.244.2.0")]);
    });
}

#[test]
fn derived_entries_and_those_of_other_devices_are_left_out() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
            ip addr add 10.244.1.0/32 dev flannel.1
            ip route add 224.0.0.0/4 dev flannel.1; ping -c1 -W1 -I flannel.1 224.0.0.9 || true");
        assert!(sh("ip neigh show dev flannel.1 nud noarp").contains("224.0.0.9"));
        assert_eq!(seen(&mut kernel).state.neighbours.to_vec(), []);
    });
}

#[test]
fn our_fdb_entries_equal_those_that_bridge_adds() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip link add flannel-v6.1 type vxlan id 1 dev eth0 local 2001:db8::1 dstport 8472 nolearning
            bridge fdb flush dev flannel.1 2>/dev/null || true");
        let v6 = FdbEntry { link: name("flannel-v6.1"), ..entry(PEER, "2001:db8::2") };
        let want = [v6, entry(PEER, "192.0.2.2")];
        applies(&mut kernel, &want.clone().map(add));
        assert_eq!(seen(&mut kernel).state.fdb.to_vec(), want);
        let made = shown("bridge fdb show dev flannel.1; bridge fdb show dev flannel-v6.1");
        assert_eq!(made[0], "02:00:00:00:00:02 dst 192.0.2.2 self permanent", "{made:?}");
        sh(
            "bridge fdb del 02:00:00:00:00:02 dev flannel.1; bridge fdb del 02:00:00:00:00:02 dev flannel-v6.1",
        );
        assert_eq!(seen(&mut kernel).state.fdb.to_vec(), []);
        sh("bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2
            bridge fdb add 02:00:00:00:00:02 dev flannel-v6.1 dst 2001:db8::2");
        assert_eq!(seen(&mut kernel).state.fdb.to_vec(), want);
        applies(&mut kernel, &[replace(entry(PEER, "192.0.2.3"))]);
        assert_eq!(seen(&mut kernel).state.fdb[1], entry(PEER, "192.0.2.3"));
        let ops = [entry(PEER, "192.0.2.3"), entry(PEER, "192.0.2.3")].map(delete);
        assert_eq!(kernel.apply(&ops), [Outcome::Done, Outcome::Gone]);
    });
}

#[test]
fn fdb_entries_in_another_form_are_unknown_and_get_replaced() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        for (line, told) in [
            ("dst 192.0.2.2 vni 9", "vni"),
            ("dst 192.0.2.2 via eth0", "via"),
            ("dst 192.0.2.2 dynamic", "learned"),
            ("dst 192.0.2.2 extern_learn", "flags 0x12"),
            ("dst 192.0.2.2 port 9999 vni 9", "vni"),
        ] {
            sh(&format!("bridge fdb add 02:00:00:00:00:02 dev flannel.1 {line}"));
            let read = seen(&mut kernel).state.fdb.to_vec();
            assert_eq!(read.len(), 1, "{line}: {read:?}");
            assert_eq!(read[0].unknown.as_deref(), Some(told), "{line}");
            assert_eq!((read[0].mac, read[0].remote), (PEER, "192.0.2.2".parse().unwrap()));
            applies(&mut kernel, &[replace(entry(PEER, "192.0.2.2"))]);
            let now = seen(&mut kernel).state.fdb.to_vec();
            assert_eq!(now, [entry(PEER, "192.0.2.2")], "{line}");
            applies(&mut kernel, &[delete(now[0].clone())]);
            // An entry of another shape can be deleted, too.
            sh(&format!("bridge fdb add 02:00:00:00:00:02 dev flannel.1 {line}"));
            let odd = seen(&mut kernel).state.fdb[0].clone();
            applies(&mut kernel, &[delete(odd)]);
            assert_eq!(seen(&mut kernel).state.fdb.to_vec(), [], "{line}");
        }
    });
}

#[test]
fn an_fdb_entry_names_its_port_only_if_it_is_not_the_devices() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let on = |port| FdbEntry { port, ..entry(PEER, "192.0.2.2") };
        let shown = || shown("bridge fdb show dev flannel.1 | grep 02:00:00:00:00:02");
        let line = |port: &str| vec![format!("02:00:00:00:00:02 dst 192.0.2.2{port} self permanent")];
        applies(&mut kernel, &[add(on(Some(4789)))]);
        assert_eq!(
            (shown(), seen(&mut kernel).state.fdb.to_vec()),
            (line(" port 4789"), vec![on(Some(4789))])
        );
        applies(&mut kernel, &[replace(on(Some(9999)))]);
        assert_eq!(
            (shown(), seen(&mut kernel).state.fdb.to_vec()),
            (line(" port 9999"), vec![on(Some(9999))])
        );
        applies(&mut kernel, &[replace(on(None))]);
        assert_eq!((shown(), seen(&mut kernel).state.fdb.to_vec()), (line(""), vec![on(None)]));
        sh("bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 port 4789");
        assert_eq!(seen(&mut kernel).state.fdb.to_vec(), [on(Some(4789))]);
        sh("bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 port 8472");
        assert_eq!(seen(&mut kernel).state.fdb.to_vec(), [on(None)], "the device's own is told by none");
        for (right, wrong) in [(None, Some(4789)), (Some(4789), None), (Some(4789), Some(9999))] {
            applies(&mut kernel, &[replace(on(right)), delete(on(wrong))]);
            let left = seen(&mut kernel).state.fdb.to_vec();
            assert_eq!(left, [on(right)], "the kernel does nothing, and says that it did");
            applies(&mut kernel, &[delete(on(right))]);
            assert_eq!(seen(&mut kernel).state.fdb.to_vec(), []);
        }
    });
}

#[test]
fn deleting_an_fdb_entry_keeps_other_remotes_of_the_mac() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        // The kernel allows several destinations only for the all-zero MAC, which stands for unknown ones.
        let to = |remote, port| FdbEntry { port, ..entry(Mac::default(), remote) };
        let all = [to("192.0.2.2", None), to("192.0.2.2", Some(4789)), to("192.0.2.3", None)];
        sh("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.2
            bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.2 port 4789
            bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.3");
        assert_eq!(seen(&mut kernel).state.fdb.to_vec(), all);
        applies(&mut kernel, &[delete(all[2].clone()), delete(all[0].clone())]);
        assert_eq!(seen(&mut kernel).state.fdb.to_vec(), all[1..2]);
    });
}
