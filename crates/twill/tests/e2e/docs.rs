//! docs/reference/metrics.md lists the metrics of a running daemon. Lists that need no daemon are tested beside the
//! code. Flags and commands are in src/flags.rs, log lines in src/logging.rs, warnings in plan's warning.rs.

use std::collections::BTreeSet;

use lab::{Timing, Topology};

use crate::cluster::{self, SOON, VXLAN};

/// Name, type and label names of a metric family.
type Family = (String, String, Vec<String>);

/// Returns the first three cells of the rows below "## Metrics".
fn documented() -> BTreeSet<Family> {
    let text = include_str!("../../../../docs/reference/metrics.md");
    let (_, section) = text.split_once("\n## Metrics\n").unwrap();
    let rows =
        section.lines().take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with("| `"));
    let family = |row: &str| {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let labels = cells[2].split(", ").filter(|label| *label != "none");
        let labels = labels.map(|label| label.trim_matches('`').to_owned());
        (cells[0].trim_matches('`').to_owned(), cells[1].to_owned(), labels.collect())
    };
    rows.map(family).collect()
}

/// Returns the families in `/metrics` by the names of their samples: those of a counter end in `_total`.
fn shown(text: &str) -> BTreeSet<Family> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let family = |(name, kind): (&str, &str)| {
        let end = if kind == "counter" { "_total" } else { "" };
        let sample = format!("{name}{end}{{");
        let mut labels: Vec<String> = text
            .lines()
            .filter_map(|line| Some(line.strip_prefix(&sample)?.split_once('}')?.0))
            .flat_map(|labels| labels.split(','))
            .map(|label| label.split('=').next().unwrap().to_owned())
            .collect();
        labels.sort();
        labels.dedup();
        (format!("{name}{end}"), kind.to_owned(), labels)
    };
    types.map(family).collect()
}

#[test]
fn every_metric_is_listed_and_no_other() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN);
        let node = lab.node(1);
        // A foreign device has our VNI and port, so that the kernel refuses something, too.
        node.ns.run("ip link add squatter type vxlan id 1 dev eth0 dstport 8472");
        // This lease causes a warning.
        lab.store.put_lease("nobody", "{}");
        // This peer cannot be reached.
        let far = r#"{"PublicIP":"203.0.113.7","PublicIPv6":null,"BackendType":"host-gw"}"#;
        lab.store.put_lease("10.244.7.0-24", far);
        let _daemon = node.start(cluster::FLAGS);
        let metrics = || node.get("/metrics").map(|reply| reply.body).unwrap_or_default();
        lab::wait_for("something was refused", SOON, || metrics().contains("twill_failed_ops_total{"));
        node.ns.run("ip link del squatter");
        lab::wait_for("something was done", SOON, || metrics().contains("twill_ops_total{"));
        lab::wait_for("there is a warning", SOON, || metrics().contains("twill_warnings{"));
        lab::wait_for("a peer is at fault", SOON, || metrics().contains("twill_peer_fault{"));
        assert_eq!(shown(&metrics()), documented());
    });
}
