//! Checks that the modules of each product crate import each other without circles, in the order of its `LAYERS` file.
//!
//! `crates/twill/LAYERS` lists the top-level modules of `twill`, one layer a line, the lowest layer first. A module may
//! import modules of earlier lines only. The root, lib.rs or main.rs, is above all modules.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::imports::{Import, Source, imports};
use crate::sources;

/// Product crates, whose modules are checked.
const CRATES: [&str; 4] = ["plan", "kernel", "store", "twill"];

/// Imports between the units of one crate. A unit is a top-level module with its children, or the root.
struct Graph {
    units: BTreeSet<String>,
    /// Places of each import, by importing and imported unit.
    edges: BTreeMap<(String, String), Vec<String>>,
}

/// Returns the violations in all product crates, one line each. Fails if a file cannot be read.
pub(crate) fn faults(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for name in CRATES {
        let (graph, top) = read(root, name)?;
        let path = root.join("crates").join(name).join("LAYERS");
        let layers = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let found = circles(&graph).iter().map(|circle| shown(&graph, circle)).collect::<Vec<_>>();
        faults.extend(
            found.into_iter().chain(misplaced(&graph, &layers, top)).map(|fault| format!("{name}: {fault}")),
        );
    }
    Ok(faults)
}

/// Returns the figures of each product crate below `root`, and each import that is part of a circle.
pub(crate) fn report(root: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for name in CRATES {
        let (graph, top) = read(root, name)?;
        let knots = knots(&graph);
        let inside = |edge: &(String, String)| {
            knots.iter().any(|knot| knot.contains(edge.0.as_str()) && knot.contains(edge.1.as_str()))
        };
        let knotted = graph.edges.keys().filter(|edge| inside(edge)).count();
        let (modules, edges) = (graph.units.len(), graph.edges.len());
        write!(text, "{name}: {modules} modules, {edges} edges, ")?;
        if let Ok(layers) = fs::read_to_string(root.join("crates").join(name).join("LAYERS")) {
            write!(text, "{} of them upward, ", upward(&graph, &ranks(&layers, top)).len())?;
        }
        let sizes: Vec<String> = knots.iter().map(|knot| knot.len().to_string()).collect();
        writeln!(text, "{knotted} in circles; circles of modules: {} [{}]", knots.len(), sizes.join(", "))?;
        for ((from, to), places) in graph.edges.iter().filter(|(edge, _)| inside(edge)) {
            writeln!(text, "  {from} -> {to} ({} in all, {})", places.len(), places[0])?;
        }
    }
    Ok(text)
}

/// Reads the graph of a crate; returns with it the name of its root as a unit.
fn read(root: &Path, name: &str) -> anyhow::Result<(Graph, &'static str)> {
    let dir = root.join("crates").join(name).join("src");
    let mut files = Vec::new();
    sources::collect(&dir, &mut files)?;
    files.sort();
    let mut top = "lib";
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let below = path.strip_prefix(&dir).unwrap_or(&path).with_extension("");
        let mut module: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let file = format!("{name}/src/{}.rs", module.join("/"));
        if sources::is_test(&file) {
            continue;
        }
        match module.as_slice() {
            [only] if only == "lib" => module.clear(),
            [only] if only == "main" => {
                top = "main";
                module.clear();
            }
            _ => {}
        }
        found.push(Source { module, file, text });
    }
    let units = found.iter().filter_map(|source| source.module.first().cloned()).collect();
    Ok((Graph::new(units, imports(top, &found)), top))
}

impl Graph {
    fn new(units: BTreeSet<String>, imports: Vec<Import>) -> Self {
        let mut edges: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for Import { from, to, place } in imports {
            edges.entry((from, to)).or_default().push(place);
        }
        Self { units, edges }
    }

    fn imported<'a>(&'a self, from: &'a str) -> impl Iterator<Item = &'a str> {
        self.edges.keys().filter(move |edge| edge.0 == from).map(|edge| edge.1.as_str())
    }

    /// Returns the shortest way from a unit over at least one import to another unit, or back to itself.
    fn way<'a>(&'a self, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
        let mut queue = VecDeque::from([vec![from]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = queue.pop_front() {
            for next in self.imported(way[way.len() - 1]) {
                let further: Vec<&str> = way.iter().copied().chain([next]).collect();
                if next == to {
                    return Some(further);
                }
                if seen.insert(next) {
                    queue.push_back(further);
                }
            }
        }
        None
    }
}

/// Returns the strongly connected components: the largest sets of units in which each imports each other, directly or not.
fn knots(graph: &Graph) -> Vec<BTreeSet<&str>> {
    let mut knots: Vec<BTreeSet<&str>> = Vec::new();
    for from in graph.edges.keys().map(|edge| edge.0.as_str()) {
        if !knots.iter().any(|knot| knot.contains(from)) && graph.way(from, from).is_some() {
            let both = |to: &&str| graph.way(from, to).is_some() && graph.way(to, from).is_some();
            knots.push(graph.edges.keys().map(|edge| edge.0.as_str()).filter(both).collect());
        }
    }
    knots
}

/// Returns the shortest circle of each knot, as a way that ends where it begins.
fn circles(graph: &Graph) -> Vec<Vec<&str>> {
    let shortest = |knot: &BTreeSet<&str>| {
        let circles = graph.units.iter().filter(|unit| knot.contains(unit.as_str()));
        circles.filter_map(|unit| graph.way(unit, unit)).min_by_key(Vec::len)
    };
    knots(graph).iter().filter_map(shortest).collect()
}

fn shown(graph: &Graph, circle: &[&str]) -> String {
    let mut text = String::from("modules import each other in a circle: ");
    for step in circle.windows(2) {
        let place =
            graph.edges.get(&(step[0].to_owned(), step[1].to_owned())).and_then(|places| places.first());
        _ = write!(text, "{} -> {} ({}), ", step[0], step[1], place.map_or("", String::as_str));
    }
    text + "move what both need into a module below them"
}

/// Returns the layer of each module that `layers` lists, counted from the lowest; the root is above all.
fn ranks<'a>(layers: &'a str, top: &'a str) -> BTreeMap<&'a str, usize> {
    let lines = layers.lines().map(|line| line.split('#').next().unwrap_or_default());
    let ranks =
        lines.enumerate().flat_map(|(rank, line)| line.split_whitespace().map(move |module| (module, rank)));
    ranks.chain([(top, usize::MAX)]).collect()
}

/// Returns the edges against the order. An edge from or to a module without a layer is none.
fn upward<'a>(
    graph: &'a Graph,
    ranks: &BTreeMap<&str, usize>,
) -> Vec<(&'a (String, String), &'a Vec<String>)> {
    let is_upward = |(from, to): &(String, String)| {
        ranks.get(from.as_str()).zip(ranks.get(to.as_str())).is_some_and(|(from, to)| to >= from)
    };
    graph.edges.iter().filter(|(edge, _)| is_upward(edge)).collect()
}

/// Returns the edges against the order, and the differences between the listed and the existing modules.
fn misplaced(graph: &Graph, layers: &str, top: &str) -> Vec<String> {
    let ranks = ranks(layers, top);
    let mut faults = Vec::new();
    for ((from, to), places) in upward(graph, &ranks) {
        let place = places.first().map_or("", String::as_str);
        faults.push(format!("{from} imports {to} ({place}), which LAYERS does not list below it"));
    }
    for unit in graph.units.iter().filter(|unit| !ranks.contains_key(unit.as_str())) {
        faults.push(format!("LAYERS does not list {unit}"));
    }
    for listed in ranks.keys().filter(|listed| **listed != top && !graph.units.contains(**listed)) {
        faults.push(format!("LAYERS lists {listed}, which does not exist"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the graph of modules `a` to `d` with the given imports, such as `a>b`.
    fn graph(imports: &[&str]) -> Graph {
        let import = |text: &&str| {
            let (from, to) = text.split_once('>').unwrap();
            Import { from: from.into(), to: to.into(), place: format!("{from}.rs:1") }
        };
        Graph::new(["a", "b", "c", "d"].map(String::from).into(), imports.iter().map(import).collect())
    }

    #[test]
    fn a_planted_circle_is_found_and_shown_with_its_places() {
        assert!(circles(&graph(&["b>a", "c>b", "c>a", "d>a"])).is_empty());
        let planted = graph(&["a>b", "b>c", "c>a", "c>d", "d>c"]);
        let circles = circles(&planted);
        assert_eq!(circles, [["c", "d", "c"]]);
        assert!(shown(&planted, &circles[0]).contains("c -> d (c.rs:1), d -> c (d.rs:1)"));
    }

    #[test]
    fn an_import_against_the_order_is_found() {
        let found = |imports: &[&str], layers: &str| misplaced(&graph(imports), layers, "lib");
        assert_eq!(found(&["b>a", "d>a", "d>c"], "a # values\nb c\n\nd"), [""; 0]);
        assert_eq!(
            found(&["a>b"], "a\nb c\nd"),
            ["a imports b (a.rs:1), which LAYERS does not list below it"]
        );
        assert_eq!(found(&["b>c"], "a\nb c\nd").len(), 1);
        assert_eq!(found(&["a>lib"], "a\nb c\nd").len(), 1);
        assert_eq!(
            found(&[], "a\nb\nd e"),
            ["LAYERS does not list c", "LAYERS lists e, which does not exist"]
        );
    }
}
