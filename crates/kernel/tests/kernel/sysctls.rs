//! Tests of sysctls, and of the ones that remain writable if `/proc/sys` is read-only.

use kernel::Outcome;
use lab::Timing::Free;
use plan::Setting;
use plan::owned::Owned;
use plan::state::Sysctl;

use crate::scene::*;

const PATHS: [&str; 4] = [
    "net/ipv4/conf/flannel.1/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/flannel.1/accept_ra",
    "net/no/such/file",
];

fn to(path: &str, value: &str) -> plan::Op {
    let row = Sysctl { path: path.into(), value: value.into() };
    replace(plan::Object::Sysctl(Setting { row, was: Some("0".into()) }))
}

/// Reads a sysctl with cat(1), without the crate.
fn value(path: &str) -> String {
    sh(&format!("cat /proc/sys/{path}")).trim().into()
}

/// Mounts `/proc/sys` read-only, as a container runtime does.
fn make_read_only() {
    sh("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys");
    assert_eq!(sh("touch /proc/sys/net/ipv4/ip_forward 2>&1 || true").matches("Read-only").count(), 1);
}

#[test]
fn sysctl_rows_and_facts_hold_the_same_values() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        sh("echo 1 > /proc/sys/net/ipv4/conf/flannel.1/rp_filter; echo 0 > /proc/sys/net/ipv4/ip_forward");
        let owned = Owned { sysctls: PATHS.map(Into::into).into(), ..owned() };
        let seen = kernel.dump(&owned).unwrap();
        assert_eq!(PATHS.map(|path| seen.underlay.sysctl(path)), [Some("1"), Some("0"), Some("1"), None]);
        assert_eq!(seen.underlay.sysctls, seen.state.sysctls.to_vec());
        applies(&mut kernel, &[to(PATHS[0], "2"), to(PATHS[1], "1")]);
        assert_eq!(
            PATHS.map(|path| kernel.dump(&owned).unwrap().underlay.sysctl(path).map(str::to_owned))[..2],
            [Some("2".to_owned()), Some("1".to_owned())]
        );
        assert_eq!((value(PATHS[0]), value(PATHS[1])), ("2".into(), "1".into()));
    });
}

#[test]
fn rp_filter_is_set_by_netlink_where_the_file_is_read_only() {
    lab::test(Free, || {
        let mut kernel = tunnelled();
        let device = |line: &str| json(&format!("ip -j -d {line} show dev flannel.1"));
        make_read_only();
        let before = device("link");
        let others = || {
            sh(
                "cd /proc/sys/net/ipv4/conf; grep . flannel.1/* all/rp_filter default/rp_filter eth0/rp_filter",
            )
        };
        let untouched = others();
        for wanted in ["2", "1", "0", "2"] {
            applies(&mut kernel, &[to(PATHS[0], wanted)]);
            assert_eq!(value(PATHS[0]), wanted);
        }
        let said = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with("flannel.1/rp_filter:")).map(str::to_owned).collect()
        };
        assert_eq!(said(&others()), said(&untouched), "and nothing else");
        assert_eq!(device("link"), before);
        let outcomes = kernel.apply(&[
            to(PATHS[1], "1"),
            to(PATHS[2], "0"),
            to("net/ipv4/conf/all/rp_filter", "2"),
            to("net/ipv4/conf/gone/rp_filter", "2"),
            to(PATHS[0], "1"),
        ]);
        for outcome in &outcomes[..3] {
            assert!(matches!(outcome, Outcome::Failed(error) if error.is_denial()), "{outcome:?}");
            assert!(complaint(outcome).contains("Read-only file system"), "{outcome:?}");
        }
        assert!(complaint(&outcomes[3]).contains("No such file"), "{outcomes:?}");
        assert_eq!(
            (&outcomes[4], value(PATHS[0])),
            (&Outcome::Done, "1".into()),
            "one that fails stops no other"
        );
    });
}
