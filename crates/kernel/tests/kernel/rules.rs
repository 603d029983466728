//! Tests of policy rules.

use kernel::Outcome;
use lab::Timing::Free;
use plan::marks::PROTOCOL;
use plan::owned::Owned;
use plan::state::Rule;

use crate::scene::*;

fn rule(to: &str) -> Rule {
    Rule { priority: 500, to: to.parse().unwrap(), table: 7777, protocol: PROTOCOL, unknown: None }
}

fn rows(kernel: &mut kernel::Kernel) -> Vec<Rule> {
    let owned = Owned { table: 7777, ..owned() };
    kernel.dump(&owned).unwrap().state.rules.to_vec()
}

#[test]
fn our_rules_equal_those_that_ip_adds() {
    lab::test(Free, || {
        let mut kernel = node();
        let want = ["10.244.0.0/16", "fd00:10:244::/48"].map(rule);
        applies(&mut kernel, &want.clone().map(add));
        assert_eq!(rows(&mut kernel), want);
        let made = sh("ip rule; ip -6 rule");
        assert!(made.contains("500:\tfrom all to 10.244.0.0/16 lookup 7777 proto 84"), "{made}");
        assert_eq!(kernel.apply(&want.clone().map(add)), vec![Outcome::Already; 2]);
        applies(&mut kernel, &want.clone().map(delete));
        assert_eq!(kernel.apply(&want.clone().map(delete)), vec![Outcome::Gone; 2]);
        sh("ip rule add to 10.244.0.0/16 lookup 7777 priority 500 proto 84
            ip -6 rule add to fd00:10:244::/48 lookup 7777 priority 500 proto 84");
        assert_eq!(rows(&mut kernel), want);
        assert_eq!(sh("ip rule; ip -6 rule"), made);
    });
}

#[test]
fn rules_with_extra_conditions_are_unknown_foreign_ones_ignored() {
    lab::test(Free, || {
        let mut kernel = node();
        for (words, told) in [
            ("from 10.244.1.0/24 lookup 7777", "from"),
            ("iif eth0 lookup 7777", "iif"),
            ("oif eth0 lookup 7777", "oif"),
            ("fwmark 5 lookup 7777", "fwmark"),
            ("tos 4 lookup 7777", "tos"),
            ("ipproto udp lookup 7777", "ipproto"),
            ("ipproto udp sport 5 lookup 7777", "sport, ipproto"),
            ("uidrange 0-0 lookup 7777", "uidrange"),
            ("lookup 7777 suppress_prefixlength 5", "suppress_prefixlength"),
            ("prohibit", "action 8"),
        ] {
            sh(&format!("ip rule add priority 500 to 10.244.0.0/16 {words} proto 84"));
            let read = rows(&mut kernel);
            assert_eq!(read.len(), 1, "{words}: {read:?}");
            assert_eq!(read[0].unknown.as_deref(), Some(told), "{words}");
            sh("ip rule del priority 500");
        }
        sh("ip rule add not to 10.244.0.0/16 lookup 7777 priority 500 proto 84");
        assert_eq!(rows(&mut kernel)[0].unknown.as_deref(), Some("not"));
        sh("ip rule del priority 500; ip rule add to 10.244.0.0/16 lookup 42 proto 3; ip rule add to 10.9.0.0/16 lookup 7777
            ip rule add from 10.244.0.0/16 lookup 7777; ip rule add to 10.244.3.0/24 lookup 7777 priority 9 proto 3");
        let to: Vec<_> =
            rows(&mut kernel).iter().map(|row| (row.priority, row.to.to_string(), row.protocol)).collect();
        assert_eq!(to, [(9, "10.244.3.0/24".to_owned(), 3)]);
    });
}
