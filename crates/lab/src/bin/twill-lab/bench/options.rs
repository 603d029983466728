//! Options of `twill-lab bench`, from the command line.

use std::path::PathBuf;

use lexopt::Arg::{Long, Value};
use lexopt::{Parser, ValueExt as _};

pub(crate) const HELP: &str = "\
twill-lab bench: measures a daemon among thousands of peers that are leases only; docs/benchmarks.md explains the results.

Usage: twill-lab bench scale [OPTION...]   from its start until the kernel holds all peers, then single changes
       twill-lab bench churn [OPTION...]   nodes that come and go, and restarts
       twill-lab bench probe [OPTION...]   peers that answer: the cost of probing them, and `twill status`

         --peers 1000,5000        numbers of peers (scale: 1000,5000,10000,20000,50000; churn: 5000, restarts 10000; probe: 5000)
         --store dir,etcd         stores of the leases (scale: both; churn: dir)
         --backend vxlan,host-gw  (both)
         --families ipv4,dual     (scale: both; churn: ipv4)
         --runs N                 runs of each, of which the medians are shown (scale: 3), or restarts (churn: 5)
         --keys TEXT              more keys of the config's Backend, such as '\"VxlanSourceFilter\":\"off\"'
         --against 'CMD ARG...'   then measure another daemon with flannel's flags (store: etcd unless given)
         --json FILE              append a line of JSON for each run";

/// Maximum number of peers. A Go flanneld supports no more, and the bench would run out of subnets and addresses.
const MOST: u32 = 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Scale,
    Churn,
    Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Dir,
    Etcd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Vxlan,
    HostGw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    Ipv4,
    Dual,
}

/// A type whose values are selected by name.
pub(crate) trait Named: Copy + PartialEq + 'static {
    const NAMES: &'static [(&'static str, Self)];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    fn all() -> Vec<Self> {
        Self::NAMES.iter().map(|(_, value)| *value).collect()
    }

    fn list(text: &str) -> Result<Vec<Self>, String> {
        let one = |part: &str| {
            let found = Self::NAMES.iter().find(|(name, _)| *name == part).map(|(_, value)| *value);
            found.ok_or_else(|| {
                let names: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
                format!("it is none of {}", names.join(", "))
            })
        };
        text.split(',').map(one).collect()
    }
}

impl Named for StoreKind {
    const NAMES: &'static [(&'static str, Self)] = &[("dir", Self::Dir), ("etcd", Self::Etcd)];
}

impl Named for Backend {
    const NAMES: &'static [(&'static str, Self)] = &[("vxlan", Self::Vxlan), ("host-gw", Self::HostGw)];
}

impl Named for Families {
    const NAMES: &'static [(&'static str, Self)] = &[("ipv4", Self::Ipv4), ("dual", Self::Dual)];
}

/// A combination to measure.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(super) store: StoreKind,
    pub(super) backend: Backend,
    pub(super) families: Families,
    pub(super) peers: u32,
    /// More keys of the config's `Backend` object.
    pub(super) keys: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(super) what: What,
    /// Numbers of peers; `None` if each part uses its own.
    peers: Option<Vec<u32>>,
    stores: Vec<StoreKind>,
    backends: Vec<Backend>,
    families: Vec<Families>,
    pub(super) runs: usize,
    keys: String,
    /// Words of another daemon's command line; empty without one.
    pub(super) against: Vec<String>,
    pub(super) json: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments after `bench`; returns `None` if they ask for help.
    pub(crate) fn parse(args: &mut Parser) -> Result<Option<Self>, lexopt::Error> {
        let what = match args.next()? {
            Some(Long("help")) => return Ok(None),
            Some(Value(name)) if name == "scale" => What::Scale,
            Some(Value(name)) if name == "churn" => What::Churn,
            Some(Value(name)) if name == "probe" => What::Probe,
            Some(other) => return Err(other.unexpected()),
            None => return Err("bench needs a part: scale, churn or probe".into()),
        };
        let mut options = Self::usual(what);
        let mut stores = None;
        while let Some(arg) = args.next()? {
            match arg {
                Long("peers") => options.peers = Some(args.value()?.parse_with(numbers)?),
                Long("store") => stores = Some(args.value()?.parse_with(StoreKind::list)?),
                Long("backend") => options.backends = args.value()?.parse_with(Backend::list)?,
                Long("families") => options.families = args.value()?.parse_with(Families::list)?,
                Long("runs") => options.runs = args.value()?.parse_with(runs)?,
                Long("keys") => options.keys = args.value()?.string()?,
                Long("against") => options.against = words(&args.value()?.string()?),
                Long("json") => options.json = Some(args.value()?.into()),
                Long("help") => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        if stores.is_none() && !options.against.is_empty() {
            // The second daemon supports etcd only.
            stores = Some(vec![StoreKind::Etcd]);
        }
        options.stores = stores.unwrap_or(options.stores);
        Ok(Some(options))
    }

    fn usual(what: What) -> Self {
        let scale = what == What::Scale;
        Self {
            what,
            peers: None,
            stores: if scale { StoreKind::all() } else { vec![StoreKind::Dir] },
            backends: Backend::all(),
            families: if scale { Families::all() } else { vec![Families::Ipv4] },
            runs: if scale { 3 } else { 5 },
            keys: String::new(),
            against: Vec::new(),
            json: None,
        }
    }

    /// Returns every combination, with the numbers `usual` of peers if none were given.
    pub(super) fn cases(&self, usual: &[u32]) -> Vec<Case> {
        let mut cases = Vec::new();
        let sizes = self.peers.as_deref().unwrap_or(usual);
        for &store in &self.stores {
            for &backend in &self.backends {
                for &families in &self.families {
                    let keys = &self.keys;
                    let case = |&peers| Case { store, backend, families, peers, keys: keys.clone() };
                    cases.extend(sizes.iter().map(case));
                }
            }
        }
        cases
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn runs(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&runs| runs > 0).ok_or_else(|| "give a whole number from 1".to_owned())
}

fn numbers(text: &str) -> Result<Vec<u32>, String> {
    let one = |part: &str| part.parse().ok().filter(|peers| (100..=MOST).contains(peers));
    text.split(',').map(|part| one(part).ok_or_else(|| format!("{part}: give 100 to {MOST}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, lexopt::Error> {
        Options::parse(&mut Parser::from_args(line.split(' '))).map(|given| given.expect("no help"))
    }

    #[test]
    fn the_cases_cover_every_combination_of_the_options() {
        let usual = options("scale").expect("no option needed");
        assert_eq!(usual.cases(&[1, 2, 3]).len(), 2 * 2 * 2 * 3);
        let part = options("scale --peers 100,200 --store dir --backend vxlan --families ipv4,dual");
        let part = part.expect("a part");
        let cases = part.cases(&[1]);
        let reported: Vec<_> = cases.iter().map(|case| (case.families.name(), case.peers)).collect();
        assert_eq!(reported, [("ipv4", 100), ("ipv4", 200), ("dual", 100), ("dual", 200)]);
    }

    #[test]
    fn a_comparison_with_flanneld_uses_etcd() {
        let given = options("scale --against flanneld").expect("an option");
        assert!(given.cases(&[1]).iter().all(|case| case.store == StoreKind::Etcd));
    }

    #[test]
    fn invalid_options_are_rejected() {
        for line in ["", "lots", "scale --peers 7", "scale --peers ten", "scale --runs 0", "scale --store s3"]
        {
            assert!(options(line).is_err(), "{line}");
        }
    }
}
