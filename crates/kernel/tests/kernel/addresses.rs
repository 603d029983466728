//! Tests of the addresses of our devices.

use kernel::Outcome;
use lab::Timing::Free;
use plan::state::Address;

use crate::scene::*;

fn address(text: &str) -> Address {
    Address { link: name("flannel.1"), address: text.parse().unwrap(), unknown: None }
}

fn rows(kernel: &mut kernel::Kernel) -> Vec<Address> {
    let rows = seen(kernel).state.addresses.to_vec();
    // The kernel adds the link-local address itself.
    rows.into_iter().filter(|row| !row.address.to_string().starts_with("fe80:")).collect()
}

#[test]
fn our_addresses_equal_those_that_ip_adds() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let want = ["10.244.1.0/32", "fd00:10:244:1::/128"].map(address);
        applies(&mut kernel, &want.clone().map(add));
        assert_eq!(rows(&mut kernel), want);
        settle();
        let made = sh("ip -o addr show dev flannel.1 | grep -v fe80:");
        sh("ip addr flush dev flannel.1 to 10.244.0.0/16; ip addr del fd00:10:244:1::/128 dev flannel.1");
        assert_eq!(rows(&mut kernel), []);
        sh("ip addr add 10.244.1.0/32 dev flannel.1; ip addr add fd00:10:244:1::/128 dev flannel.1");
        assert_eq!(rows(&mut kernel), want);
        settle();
        assert_eq!(sh("ip -o addr show dev flannel.1 | grep -v fe80:"), made);
        // A second addition changes nothing and does not fail.
        applies(&mut kernel, &want.clone().map(add));
        assert_eq!(rows(&mut kernel), want);
        let ops = [want.clone(), want].concat().into_iter().map(delete).collect::<Vec<_>>();
        assert_eq!(kernel.apply(&ops), [Outcome::Done, Outcome::Done, Outcome::Gone, Outcome::Gone]);
    });
}

#[test]
fn the_kernels_own_link_local_address_is_a_row() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let rows = seen(&mut kernel).state.addresses.to_vec();
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert!(rows[0].address.to_string().starts_with("fe80:") && rows[0].unknown.is_none(), "{rows:?}");
    });
}

#[test]
fn an_address_with_more_attributes_is_unknown_and_can_be_deleted() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        for (line, told) in [
            ("10.244.1.0 peer 10.244.9.9/32", "peer 10.244.9.9"),
            ("10.244.1.0/32 valid_lft 900 preferred_lft 900", "finite lifetime"),
            ("10.244.1.0/32 scope link", "scope 253"),
            ("10.244.1.0/24 noprefixroute", "noprefixroute"),
            ("10.244.1.0/24 metric 7", "metric"),
            ("10.244.1.0/24 brd +", "broadcast"),
            ("10.244.1.0/32 label flannel.1:x", "label"),
            ("fd00:10:244:1::1 peer fd00:10:244:1::2/128", "peer fd00:10:244:1::2"),
            ("fd00:10:244:1::1/128 nodad", "nodad"),
            ("fd00:10:244:1::1/128 home", "home"),
            ("fd00:10:244:1::1/64 mngtmpaddr", "mngtmpaddr"),
            ("fd00:10:244:1::1/64 preferred_lft 0", "deprecated"),
        ] {
            sh(&format!("ip addr add {line} dev flannel.1"));
            let read = rows(&mut kernel);
            assert_eq!(read.len(), 1, "{line}: {read:?}");
            assert_eq!(read[0].unknown.as_deref(), Some(told), "{line}");
            applies(&mut kernel, &[delete(read[0].clone())]);
        }
        sh("ip addr add 10.244.1.1/24 dev flannel.1; ip addr add 10.244.1.2/24 dev flannel.1");
        assert_eq!(rows(&mut kernel)[1].unknown.as_deref(), Some("secondary"));
    });
}
