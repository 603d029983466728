//! Whole plans as readable files: each folder of golden/ holds a node's inputs and the expected plan. `GOLDEN=update` writes
//! the expected files again; read the difference before you commit it. The tests start nothing.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test: a file that is not right shall stop it"
)]

use std::fmt;
use std::path::{Path, PathBuf};

use plan::config::Config;
use plan::lease::{Lease, Leases};
use plan::node::Node;
use plan::other_daemons::OtherDaemons;
use plan::underlay::Underlay;
use plan::warning::Warning;
use plan::{HealthInput, Memory, Situation, State};
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Content of `config.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs {
    config: Config,
    node: Node,
    underlay: Underlay,
    #[serde(default)]
    health: HealthInput,
    #[serde(default)]
    others: OtherDaemons,
    #[serde(default)]
    memory: Memory,
}

/// Content of `leases.json`: values as in etcd by the last part of their keys, the oldest first.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of leases")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[test]
fn every_case_gives_the_plan_of_its_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "there is no case in {}", root.display());
    let update = std::env::var_os("GOLDEN").is_some_and(|value| value == "update");
    let mut failed = Vec::new();
    for case in &cases {
        for (file, text) in outputs(case) {
            let path = case.join(file);
            if update {
                std::fs::write(&path, text).unwrap();
                continue;
            }
            let expected = std::fs::read_to_string(&path).ok();
            if expected.as_deref() != Some(&*text) {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                println!("{name}:\n{}", difference(&expected.unwrap_or_default(), &text));
                failed.push(name);
            }
        }
    }
    assert!(
        failed.is_empty(),
        "not as expected, see above: {failed:#?}\nGOLDEN=update accepts what came instead"
    );
}

/// Returns the plan of a case in the form of its expected files.
fn outputs(case: &Path) -> [(&'static str, String); 3] {
    let Inputs { config, node, underlay, health, others, memory } = read(case, "config.json");
    let observed: State = read(case, "seen.json");
    let (leases, unreadable) = leases(read(case, "leases.json"));
    let scope = plan::scope(&config, &node, &leases, &others, &memory, std::iter::empty());
    let plan = plan::plan(&Situation {
        health: &health,
        others: &others,
        observed: &observed,
        memory: &memory,
        ..Situation::at_start(&config, &node, &leases, &scope, &underlay)
    });
    assert_eq!(plan.contradiction, None, "{}", case.display());
    let mut warnings = [plan.warnings, unreadable].concat();
    warnings.sort();
    [("wanted.json", rows(&plan.desired)), ("ops.txt", lines(&plan.ops)), ("notes.txt", lines(&warnings))]
}

fn read<T: DeserializeOwned>(case: &Path, file: &str) -> T {
    let path = case.join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Parses the leases; `null` means that they are not known yet. An invalid entry becomes a warning, as in the store.
fn leases(entries: Option<Entries>) -> (Leases, Vec<Warning>) {
    let Some(Entries(entries)) = entries else { return (Leases::Unknown, Vec::new()) };
    let (mut leases, mut warnings) = (Vec::new(), Vec::new());
    for (born, (key, value)) in (1..).zip(entries) {
        match Lease::parse(&key, value.to_string().as_bytes(), born) {
            Ok(lease) => leases.push(lease),
            Err(why) => warnings.push(Warning::Entry { key: key.into(), why: why.into() }),
        }
    }
    (Leases::Listed(leases.into()), warnings)
}

fn lines<T: ToString>(items: &[T]) -> String {
    items.iter().map(|item| item.to_string() + "\n").collect()
}

/// Prints a state as JSON with one row per line and without empty tables.
fn rows(state: &State) -> String {
    let State { sysctls, links, addresses, fdb, neighbours, nexthops, routes, rules, .. } = state;
    let tables = [
        table("sysctls", sysctls),
        table("links", links),
        table("addresses", addresses),
        table("fdb", fdb),
        table("neighbours", neighbours),
        table("nexthops", nexthops),
        table("routes", routes),
        table("rules", rules),
        table("nft_tables", &state.nft_tables),
        table("nft_chains", &state.nft_chains),
        table("nft_elements", &state.nft_elements),
        table("iptables", &state.iptables),
    ];
    let tables: Vec<String> = tables.into_iter().flatten().collect();
    if tables.is_empty() { "{}\n".into() } else { format!("{{\n{}\n}}\n", tables.join(",\n")) }
}

fn table<T: Serialize>(name: &str, rows: &[T]) -> Option<String> {
    let rows: Vec<String> =
        rows.iter().map(|row| format!("    {}", serde_json::to_string(row).unwrap())).collect();
    (!rows.is_empty()).then(|| format!("  \"{name}\": [\n{}\n  ]", rows.join(",\n")))
}

/// Returns the lines that only one side has, in their order: `-` for expected ones, `+` for actual ones.
fn difference(expected: &str, have: &str) -> String {
    let only = |sign: char, these: &str, those: &str| {
        let those: Vec<&str> = those.lines().collect();
        let lines = these.lines().filter(|line| !those.contains(line));
        lines.map(|line| format!("  {sign} {line}\n")).collect::<String>()
    };
    let text = only('-', expected, have) + &only('+', have, expected);
    if text.is_empty() { "  no file, or the same lines in another order or number\n".into() } else { text }
}
