//! Checks the dependencies of all crates against deny.toml and the invariants of ARCHITECTURE.md, by `cargo metadata`
//! and `cargo tree`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;
use spdx::{Expression, LicenseReq, ParseMode};

/// Maximum number of packages that `twill` is built from, with all features.
const PACKAGES: usize = 280;
/// Maximum number of direct dependencies of `plan`; none of them can do I/O.
const PLAN: usize = 4;
/// Crates of ours, each with the packages that only it may depend on (ARCHITECTURE.md, invariant 3).
const ONLY: [(&str, &[&str]); 2] = [
    ("kernel", &["netlink-sys", "netlink-packet-core", "netlink-packet-route", "rtnetlink", "neli"]),
    ("store", &["etcd-client", "kube", "k8s-openapi", "inotify"]),
];
/// Packages that `plan` must not depend on.
const IMPURE: [&str; 7] = ["tokio", "libc", "nix", "rand", "getrandom", "chrono", "time"];

/// Random number generator that no crate of ours may depend on, since the clock seeds it. Nodes that boot in the same
/// instant would draw the same MAC.
const CLOCK_DICE: &str = "fastrand";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Kind of the dependency: `None` for a normal one, else `dev` or `build`.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
struct Sources {
    #[serde(rename = "allow-registry")]
    registries: Vec<String>,
}

/// Returns the violations, one line each. Fails if cargo fails, or if its output or deny.toml cannot be read.
pub(crate) fn faults(root: &Path) -> anyhow::Result<Vec<String>> {
    let metadata: Metadata =
        serde_json::from_slice(&cargo(root, &["metadata", "--format-version=1", "--locked"])?)?;
    let policy: Policy = toml::from_str(&fs::read_to_string(root.join("deny.toml")).context("deny.toml")?)?;
    let mut faults = foreign(&metadata, &policy)?;
    faults.extend(own(&metadata));
    let tree =
        ["tree", "-p", "twill", "-e", "normal,build", "--all-features", "--prefix", "none", "--locked"];
    let tree = String::from_utf8(cargo(root, &tree)?)?;
    let packages: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(" (").next()).collect();
    if packages.len() > PACKAGES {
        faults.push(format!("twill needs {} packages, more than {PACKAGES}", packages.len()));
    }
    Ok(faults)
}

fn cargo(root: &Path, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output =
        Command::new(env!("CARGO")).args(args).current_dir(root).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// Checks licence, source and ban of each package that is not ours.
fn foreign(metadata: &Metadata, policy: &Policy) -> anyhow::Result<Vec<String>> {
    let mut allowed = Vec::new();
    for text in &policy.licenses.allow {
        allowed
            .push(Expression::parse(text)?.requirements().map(|found| found.req.clone()).collect::<Vec<_>>());
    }
    let allowed: BTreeSet<LicenseReq> = allowed.into_iter().flatten().collect();
    let mut faults = Vec::new();
    for package in metadata.packages.iter().filter(|package| package.source.is_some()) {
        let name = &package.name;
        let licence = package.license.as_deref().unwrap_or_default();
        let expression = Expression::parse_mode(licence, ParseMode::LAX);
        if !expression.is_ok_and(|expression| expression.evaluate(|needed| allowed.contains(needed))) {
            faults.push(format!("{name} has licence {licence:?}, which deny.toml does not allow"));
        }
        let source = package.source.as_deref().unwrap_or_default();
        if !policy.sources.registries.iter().any(|registry| source.ends_with(registry.as_str())) {
            faults.push(format!("{name} comes from {source}, which deny.toml does not allow"));
        }
        if policy.bans.deny.iter().any(|ban| ban.name == *name) {
            faults.push(format!("{name} is banned by deny.toml"));
        }
    }
    Ok(faults)
}

/// Checks the dependencies between our own crates, and which packages each of them uses.
fn own(metadata: &Metadata) -> Vec<String> {
    let ours = metadata.packages.iter().filter(|package| package.source.is_none());
    let normal = |package: &Package| -> BTreeSet<String> {
        let kept = package.dependencies.iter().filter(|dependency| dependency.kind.is_none());
        kept.map(|dependency| dependency.name.clone()).collect()
    };
    let ours: BTreeMap<&str, BTreeSet<String>> =
        ours.map(|package| (package.name.as_str(), normal(package))).collect();
    let mut faults = Vec::new();
    for (name, dependencies) in &ours {
        for (owner, kept) in ONLY.iter().filter(|(owner, _)| owner != name) {
            for package in kept.iter().filter(|package| dependencies.contains(**package)) {
                faults.push(format!("{name} depends on {package}, which is {owner}'s alone"));
            }
        }
    }
    for (name, _) in ours.iter().filter(|(_, dependencies)| dependencies.contains(CLOCK_DICE)) {
        faults.push(format!("{name} depends on {CLOCK_DICE}, which draws from the clock: use getrandom"));
    }
    if let Some(plan) = ours.get("plan") {
        if plan.len() > PLAN {
            faults.push(format!("plan has {} dependencies, more than {PLAN}", plan.len()));
        }
        for package in IMPURE.iter().filter(|package| plan.contains(**package)) {
            faults.push(format!("plan depends on {package} and is no longer pure"));
        }
    }
    faults
}
