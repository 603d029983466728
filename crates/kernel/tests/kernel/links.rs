//! Tests of devices.

use kernel::Outcome;
use lab::Timing::Free;
use plan::Mac;
use plan::state::{Link, LinkKind, Vxlan};
use serde_json::json;

use crate::scene::*;

fn ours(change: impl FnOnce(&mut Link, &mut Vxlan)) -> Link {
    let mut link = flannel();
    let LinkKind::Vxlan(mut vxlan) = link.kind.clone() else { panic!("a vxlan") };
    change(&mut link, &mut vxlan);
    Link { kind: LinkKind::Vxlan(vxlan), ..link }
}

fn ipv6() -> Link {
    ours(|link, vxlan| {
        link.name = name("flannel-v6.1");
        link.mtu = 1430;
        vxlan.local = "2001:db8::1".parse().unwrap();
    })
}

#[test]
fn a_device_of_ours_is_shown_by_ip_and_read_as_made() {
    lab::test(Free, || {
        let mut kernel = node();
        let gbp = ours(|link, vxlan| {
            link.name = name("flannel.7");
            (vxlan.vni, vxlan.port, vxlan.gbp, vxlan.learning) = (7, 4789, true, true);
        });
        for want in [flannel(), ipv6(), gbp] {
            applies(&mut kernel, &[add(link(want.clone()))]);
            let mut owned = owned();
            owned.links = vec![want.name];
            let down = kernel.dump(&owned).unwrap().state.links.to_vec();
            assert_eq!(down, [Link { up: false, ..want.clone() }]);
            applies(&mut kernel, &[up(want.name)]);
            assert_eq!(kernel.dump(&owned).unwrap().state.links.to_vec(), std::slice::from_ref(&want));

            let shown = json(&format!("ip -d -j link show {}", want.name))[0].clone();
            let LinkKind::Vxlan(vxlan) = want.kind else { panic!("a vxlan") };
            let data = &shown["linkinfo"]["info_data"];
            assert_eq!(shown["address"], "02:00:00:00:00:01");
            assert_eq!(shown["mtu"], want.mtu);
            assert_eq!(shown.get("txqlen").unwrap_or(&json!(0)), &json!(0), "{shown}");
            assert_eq!(
                (&data["id"], &data["port"], &data["link"]),
                (&json!(vxlan.vni), &json!(vxlan.port), &json!("eth0"))
            );
            let local = if vxlan.local.is_ipv4() { &data["local"] } else { &data["local6"] };
            assert_eq!(*local, vxlan.local.to_string());
            assert_eq!(
                (&data["learning"], data.get("gbp").is_some()),
                (&json!(vxlan.learning), vxlan.gbp),
                "{data}"
            );
            assert_eq!((&data["ttl"], data.get("tos")), (&json!(0), None), "{data}");
        }
    });
}

#[test]
fn a_device_made_by_ip_is_read() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("ip link add flannel-v6.1 address 02:00:00:00:00:01 \
                type vxlan id 1 dev eth0 local 2001:db8::1 dstport 8472 nolearning
            ip link set flannel-v6.1 up");
        assert_eq!(seen(&mut kernel).state.links.to_vec(), [ipv6(), flannel()]);
        sh("ip link del flannel-v6.1; ip link add flannel-v6.1 type bridge");
        let other = &seen(&mut kernel).state.links[0];
        assert_eq!(other.kind, LinkKind::Other("bridge".into()));
    });
}

#[test]
fn attributes_that_flannel_does_not_set_are_unknown() {
    lab::test(Free, || {
        let mut kernel = node();
        for (option, told) in [
            ("group 239.1.1.1", "remote 239.1.1.1"),
            ("remote 192.0.2.9", "remote 192.0.2.9"),
            ("ttl 5", "ttl"),
            ("ttl inherit", "ttl inherit"),
            ("tos 4", "tos"),
            ("proxy", "proxy"),
            ("rsc", "rsc"),
            ("l2miss", "l2miss"),
            ("l3miss", "l3miss"),
            ("ageing 60", "ageing"),
            ("maxaddress 10", "maxaddr"),
            ("srcport 1000 2000", "srcport"),
            ("noudpcsum", "udpcsum"),
            ("udp6zerocsumtx", "udp6zerocsumtx"),
            ("udp6zerocsumrx", "udp6zerocsumrx"),
            ("remcsumtx", "remcsumtx"),
            ("remcsumrx", "remcsumrx"),
            ("df set", "df"),
        ] {
            sh(&format!(
                "ip link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning {option}"
            ));
            let unknown = seen(&mut kernel).state.links[0].unknown.clone();
            assert_eq!(unknown.as_deref(), Some(told), "{option}");
            sh("ip link del flannel.1");
        }
        for (options, told) in [
            ("id 1 dev eth0 local 2001:db8::1 flowlabel 5", "flowlabel"),
            ("external", "external"),
            ("external gpe", "external, gpe, arp off"),
        ] {
            sh(&format!("ip link add flannel.1 type vxlan dstport 8472 nolearning {options}"));
            assert_eq!(seen(&mut kernel).state.links[0].unknown.as_deref(), Some(told));
            sh("ip link del flannel.1");
        }
        // Later changes of a device can keep packets from it as well.
        sh("ip link add br9 type bridge");
        for (options, told) in [("arp off", "arp off"), ("master br9", "has a master")] {
            sh("ip link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning");
            sh(&format!("ip link set flannel.1 {options}"));
            assert_eq!(seen(&mut kernel).state.links[0].unknown.as_deref(), Some(told));
            sh("ip link del flannel.1");
        }
    });
}

#[test]
fn mtu_mac_local_and_learning_change_in_place() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2");
        let index = json("ip -j link show flannel.1")[0]["ifindex"].clone();
        let want = ours(|link, vxlan| {
            (link.mtu, link.mac) = (1400, Mac([2, 0, 0, 0, 0, 9]));
            (vxlan.local, vxlan.learning) = ([192, 0, 2, 7].into(), true);
        });
        applies(&mut kernel, &[replace(link(want.clone()))]);
        let state = seen(&mut kernel).state;
        assert_eq!(state.links.to_vec(), [want]);
        assert_eq!(state.fdb.len(), 1);
        assert_eq!(json("ip -j link show flannel.1")[0]["ifindex"], index);
        sh(
            "ip link add flannel-v6.1 mtu 1430 type vxlan id 1 dev eth0 local 2001:db8::1 dstport 8472 nolearning",
        );
        let want = Link { mtu: 1300, up: false, ..ipv6() };
        applies(&mut kernel, &[replace(link(want.clone()))]);
        assert_eq!(seen(&mut kernel).state.links[0], want);
    });
}

#[test]
fn adding_an_existing_device_succeeds_only_if_equal() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let other_port = ours(|_, vxlan| vxlan.port = 4789);
        let same_vni = ours(|link, _| link.name = name("flannel.2"));
        let no_uplink = ours(|link, vxlan| {
            link.name = name("flannel.3");
            vxlan.uplink = Some(name("eth9"));
        });
        let ops = [flannel(), other_port, same_vni, no_uplink].map(|want| add(link(want)));
        let outcomes = kernel.apply(&ops);
        assert_eq!(outcomes[0], Outcome::Already);
        let [_, differs, vni, uplink] = &outcomes[..] else { panic!("four outcomes") };
        assert!(complaint(differs).contains("differs: link flannel.1 "), "{differs:?}");
        assert!(complaint(vni).contains("VNI already exists"), "{vni:?}");
        assert!(complaint(uplink).contains("there is no device eth9"), "{uplink:?}");
    });
}

#[test]
fn a_missing_module_is_reported_with_the_remedy() {
    lab::test(Free, || {
        let mut kernel = node();
        let want = Link { kind: LinkKind::Other("wormhole".into()), ..flannel() };
        let outcome = &kernel.apply(&[add(link(want))])[0];
        assert_eq!(
            complaint(outcome),
            "+ link flannel.1 address 02:00:00:00:00:01 mtu 1450 type wormhole: Operation not supported (os error 95): \
             Unknown device type; this kernel has no vxlan: run modprobe vxlan, install the kernel's package of modules, \
             or use the backend host-gw, which needs no module"
        );
    });
}

#[test]
fn deleting_a_device_twice_reports_it_gone() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let ops = [delete(link(flannel())), delete(link(flannel()))];
        assert_eq!(kernel.apply(&ops), [Outcome::Done, Outcome::Gone]);
        assert_eq!(seen(&mut kernel).state.links.len(), 0);
        let outcome = &kernel.apply(&[up(name("flannel.1"))])[0];
        assert!(complaint(outcome).contains("No such device"), "{outcome:?}");
    });
}

#[test]
fn a_device_recreated_in_a_pass_is_found_by_later_ops() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let other_port = ours(|_, vxlan| vxlan.port = 4789);
        let row = via("10.244.2.0/24", "10.244.2.0", "flannel.1", true);
        applies(
            &mut kernel,
            &[
                op(plan::Verb::Recreate, link(flannel())),
                add(link(other_port.clone())),
                up(name("flannel.1")),
                add(row.clone()),
            ],
        );
        let state = seen(&mut kernel).state;
        assert_eq!((state.links.to_vec(), state.routes.to_vec()), (vec![other_port], vec![row]));
    });
}

#[test]
fn sysctls_are_read_and_written() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("echo 1 > /proc/sys/net/ipv6/conf/flannel.1/accept_ra");
        let [row] = &seen(&mut kernel).state.sysctls.to_vec()[..] else {
            panic!("one of two files is there")
        };
        assert_eq!((&*row.path, &*row.value), ("net/ipv6/conf/flannel.1/accept_ra", "1"));
        let missing = plan::state::Sysctl { path: "net/no/such/file".into(), value: "1".into() };
        let off = plan::state::Sysctl { value: "0".into(), ..row.clone() };
        let outcomes = kernel.apply(&[add(missing), replace(off.clone())]);
        assert!(
            complaint(&outcomes[0]).contains("sysctl net/no/such/file = 1: No such file"),
            "{outcomes:?}"
        );
        assert_eq!(outcomes[1], Outcome::Done);
        assert_eq!(seen(&mut kernel).state.sysctls.to_vec(), [off]);
    });
}
