//! Tests of the peers' sets of the largest clusters, with more addresses than one message holds in a user namespace. No
//! rule refers to a set before it is complete.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use lab::Lines;
use lab::Timing::Free;
use nix::sys::signal::Signal;
use plan::State;

use crate::nft_scene::*;
use crate::scene::*;

fn of_a_crowd(peers: u32) -> State {
    let mut wanted = wanted(Wish::default());
    let ipv4 = (0..peers).map(|peer| element(Ipv4Addr::from(0xac10_0000 + peer)));
    let ipv6 =
        (0..peers).map(|peer| element(Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(peer) + 9)));
    wanted.nft_elements = wanted.nft_elements.iter().cloned().chain(ipv4).chain(ipv6).collect();
    wanted
}

#[test]
fn fifty_thousand_peers_are_added_and_removed() {
    lab::test(Free, || {
        let crowd = of_a_crowd(50_000);
        let mut kernel = settled(&crowd);
        round(&mut kernel, &wanted(Wish::default()));
        round(&mut kernel, &crowd);
    });
}

#[test]
fn a_set_is_complete_before_a_rule_refers_to_it() {
    lab::test(Free, || {
        let crowd = of_a_crowd(1500);
        let mut command = Command::new("nft");
        let monitor = Lines::start({
            command.arg("monitor");
            command
        });
        // The monitor prints nothing until it receives a change.
        let hears = |line: &str| line.contains("dummy");
        lab::wait_for("the monitor listens", Duration::from_secs(5), || {
            sh("nft 'add table ip dummy; delete table ip dummy'");
            monitor.all().iter().any(|line| hears(&line.text))
        });
        let mut kernel = settled(&crowd);
        sh("nft 'flush chain ip flannel-ipv4 vxlan; flush chain ip flannel-ipv4 vxlan-pods; delete set ip flannel-ipv4 vteps;
                 add set ip flannel-ipv4 vteps { type ipv4_addr; flags interval; };
                 add rule ip flannel-ipv4 vxlan ip saddr @vteps counter'");
        sh("nft add table ip harmed");
        kernel.forget_firewall();
        round(&mut kernel, &crowd);
        sh("nft add table ip over");
        assert!(monitor.wait_for(Duration::from_secs(5), |line| line.contains("table ip over")));
        let lines: Vec<_> = monitor.stop(Signal::SIGTERM).into_iter().map(|line| line.text).collect();
        for part in lines.split(|line| line.contains("table ip harmed")) {
            let looks = part.iter().position(|line| line.contains("@vteps")).expect("a rule looks");
            let last = part.iter().rposition(|line| line.starts_with("add element ip flannel-ipv4 vteps"));
            assert!(last.expect("elements") < looks, "{}", part[looks]);
        }
    });
}
