//! A network config that cannot be used while the daemon starts. A config that breaks later is tested in `store`.

use std::time::Duration;

use lab::{Timing, Topology};

use crate::cluster::{FLAGS, SOON, VXLAN};

/// Time longer than the interval at which the config is read again.
const A_WHILE: Duration = Duration::from_millis(2500);

/// Broken configs, and a part of the message about each.
const BROKEN: [(&str, &str); 7] = [
    ("{\n  \"Network\": \"10.244.0.0/16\",\n  \"Backend\": {\"Type\" \"vxlan\"}\n}", "line 3 column 22"),
    ("", "line 1 column 0"),
    (r#"{"Network":10}"#, r#"key "Network": invalid type: integer `10`, expected a string"#),
    (
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":"one"}}"#,
        r#"key "Backend": key "VNI": invalid type: string "one", expected u32"#,
    ),
    (
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#,
        r#""wireguard" is none of the backends twill has: vxlan, auto, host-gw, alloc"#,
    ),
    (
        r#"{"Network":"10.244.0.0/16","EnableIPv4":false}"#,
        "EnableIPv4 and EnableIPv6 are both false: enable one of them",
    ),
    (
        r#"{"Network":"10.244.0.0/16","SubnetMin":"10.9.1.0"}"#,
        r#"keys "SubnetMin", "SubnetMax": 10.9.1.0 is outside 10.244.0.0/16"#,
    ),
];

#[test]
fn at_the_start_a_broken_config_is_reported_once_and_waited_for() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).twill(env!("CARGO_BIN_EXE_twill")).build();
        let node = lab.node(1);
        let file = lab.store.path().join("config");
        let said = |word: &str| {
            format!("waiting for the network config: {}: network config: {word}", file.display())
        };
        let mut daemon = None;
        for (text, word) in BROKEN {
            lab.store.config(text);
            daemon.get_or_insert_with(|| node.start(FLAGS));
            lab::wait_for(word, SOON, || {
                node.get("/readyz").is_some_and(|reply| reply.status == 503 && reply.body.contains(word))
            });
        }
        let daemon = daemon.unwrap();
        lab::holds_for("it waits", A_WHILE, || node.get("/readyz").unwrap().status == 503);
        assert_eq!(node.get("/healthz").unwrap().status, 200, "a restart would not help");
        assert_eq!(node.subnet_env(), None);
        let log = daemon.log();
        for (_, word) in BROKEN {
            let lines = log.lines().filter(|line| line.contains("waiting") && line.contains(word));
            assert_eq!(lines.count(), 1, "{word}: {log}");
        }
        assert!(log.contains(&said("keys")), "{log}");
        lab.store.config(VXLAN);
        daemon.wait_ready();
    });
}
