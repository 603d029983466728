//! Reads a namespace with ip and bridge, never with twill's own code. Two [`View`]s are equal if the state is the same, even if a
//! device was recreated in between.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::ns::Ns;
use crate::wait::until;

/// Maximum wait of [`View::of`] for addresses that are tentative.
const SETTLED: Duration = Duration::from_millis(500);
const ROUTES: &str = "route show table all\nrule show\n";
const SHOWS: [(&[&str], &str, &[&str]); 4] = [
    (
        &["ip", "-d", "-j"],
        "link show\naddress show\nneighbour show nud permanent\n",
        &["link", "addr", "neigh"],
    ),
    (&["ip", "-4", "-d", "-j"], ROUTES, &["route4", "rule4"]),
    (&["ip", "-6", "-d", "-j"], ROUTES, &["route6", "rule6"]),
    (&["bridge", "-j"], "fdb show\n", &["fdb"]),
];
/// Fields left out of a view: indexes of what another field names, counters, timers, and fields that a listener changes.
const VOLATILE: [&str; 14] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "nhid",
    "promiscuity",
    "allmulti",
    "stats",
    "stats64",
    "expires",
    "used",
    "updated",
    "valid_life_time",
    "preferred_life_time",
    "br_port_id",
];

/// An object that ip or bridge showed: "link", "addr", "route4", "route6", "rule4", "rule6", "neigh" or "fdb".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub kind: &'static str,
    /// Fields of the object's JSON, without the volatile ones.
    pub fields: Map<String, Value>,
}

impl Row {
    /// Returns a field as text; empty if it is missing or not a string.
    pub fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the device that the row is about; empty if it names none.
    pub fn device(&self) -> &str {
        ["ifname", "dev"]
            .map(|field| self.text(field))
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or("")
    }
}

/// Fields that identify a row among all of its kind.
const NAMES: [&str; 7] = ["ifname", "local", "dst", "mac", "table", "metric", "priority"];

impl Row {
    fn is_tentative(&self) -> bool {
        self.fields.contains_key("tentative")
    }

    fn names(&self) -> (&str, Vec<&Value>) {
        (self.kind, NAMES.iter().filter_map(|name| self.fields.get(*name)).collect())
    }

    fn changes(&self, other: &Self) -> String {
        let names = NAMES.iter().filter_map(|name| Some((*name, self.fields.get(*name)?)));
        let mut text =
            names.fold(format!("{:6}", self.kind), |text, (name, value)| text + &field(name, value));
        let all: BTreeSet<_> = self.fields.keys().chain(other.fields.keys()).collect();
        for key in all.into_iter().filter(|key| self.fields.get(*key) != other.fields.get(*key)) {
            let [was, is] = [self, other].map(|row| row.fields.get(key).map_or("(none)".into(), plain));
            let _ = write!(text, " {key}={was} -> {is}");
        }
        text
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn field(name: &str, value: &Value) -> String {
    format!(" {name}={}", plain(value))
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:6}", self.kind)?;
        self.fields.iter().try_for_each(|(key, value)| f.write_str(&field(key, value)))
    }
}

/// Everything that ip and bridge show of a namespace, in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    rows: Vec<Row>,
}

impl View {
    /// Reads the namespace once no address is tentative any more. Even without duplicate address detection an address
    /// is tentative for a moment. Takes 0.5 s if an address stays tentative, because its link is down.
    pub fn of(ns: &Ns) -> Self {
        let settled = || Some(Self::now(ns)).filter(|view| !view.rows.iter().any(Row::is_tentative));
        until(SETTLED, settled).unwrap_or_else(|| Self::now(ns))
    }

    /// Reads the namespace as it is at this moment.
    pub fn now(ns: &Ns) -> Self {
        let shown = SHOWS.into_iter().flat_map(|(program, lines, kinds)| {
            let answers = batch(ns, program, lines);
            assert_eq!(answers.len(), kinds.len(), "{}: one answer for each of:\n{lines}", program.join(" "));
            kinds.iter().zip(answers).flat_map(|(kind, answer)| rows(kind, &answer)).collect::<Vec<_>>()
        });
        Self::sorted(shown.collect())
    }

    /// Builds a view from recorded output of `ip -d -j` and `bridge -j`; each answer comes with its kind.
    pub fn recorded(answers: &[(&'static str, Value)]) -> Self {
        Self::sorted(answers.iter().flat_map(|(kind, answer)| rows(kind, answer)).collect())
    }

    fn sorted(mut rows: Vec<Row>) -> Self {
        rows.sort_by_cached_key(Row::to_string);
        Self { rows }
    }

    /// Returns all rows, sorted by their text.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// Returns the rows of one kind, such as `route4`.
    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.kind == kind)
    }

    /// Returns the row of the link with this name.
    pub fn link(&self, name: &str) -> Option<&Row> {
        self.of_kind("link").find(|row| row.text("ifname") == name)
    }

    /// Describes how `other` differs, a line per row; empty if both are equal. A row only in `self` is marked "-", a row only in
    /// `other` "+", a changed row "~".
    pub fn diff(&self, other: &Self) -> String {
        let mut lost = self.rows.clone();
        let mut new = other.rows.clone();
        new.retain(|row| lost.iter().position(|own| own == row).map(|at| lost.remove(at)).is_none());
        let mut text = String::new();
        for row in lost {
            match new.iter().position(|other| other.names() == row.names()) {
                Some(at) => {
                    let _ = writeln!(text, "~ {}", row.changes(&new.remove(at)));
                }
                None => {
                    let _ = writeln!(text, "- {row}");
                }
            }
        }
        new.iter().fold(text, |text, row| text + &format!("+ {row}\n"))
    }
}

impl std::fmt::Display for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// Returns the rows of the pod networks 10.244.0.0/16 and fd00:244::/48, without those of the node's own bridge. They are on
/// flannel devices, or are routes inside the networks.
pub fn ours(view: &View) -> impl Iterator<Item = &Row> {
    view.rows().filter(|row| {
        let device = row.device();
        let routed = match row.kind {
            "route4" => row.text("dst").starts_with("10.244."),
            "route6" => row.text("dst").starts_with("fd00:244:"),
            _ => false,
        };
        device.starts_with("flannel") || (routed && device != "cni0")
    })
}

fn batch(ns: &Ns, program: &[&str], lines: &str) -> Vec<Value> {
    let mut command: Command = ns.command(program[0]);
    command.args(&program[1..]).args(["-batch", "-"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("nsenter starts");
    let asked = child.stdin.take().expect("a pipe was asked for").write_all(lines.as_bytes());
    let out = child.wait_with_output().expect("nsenter ends");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(asked.is_ok() && out.status.success(), "{}: {}: {said}", ns.name(), program.join(" "));
    let answers = serde_json::Deserializer::from_slice(&out.stdout).into_iter().collect::<Result<_, _>>();
    answers.unwrap_or_else(|e| panic!("{}: {}: {e}", ns.name(), program.join(" ")))
}

fn rows(kind: &'static str, answer: &Value) -> Vec<Row> {
    let objects = answer.as_array().into_iter().flatten().filter_map(Value::as_object).cloned();
    // A device that vanishes while ip prints it leaves an empty object.
    let objects = objects.filter(|fields| !fields.is_empty());
    let objects = objects.flat_map(|fields| if kind == "addr" { addresses(&fields) } else { vec![fields] });
    let kept = objects.filter(|fields| kind != "fdb" || lasting(fields));
    kept.map(|fields| Row { kind, fields: normal(fields) }).collect()
}

/// Makes one row per address instead of one per link; the link's own fields are in the "link" rows.
fn addresses(link: &Map<String, Value>) -> Vec<Map<String, Value>> {
    let name = link.get("ifname").cloned().unwrap_or_default();
    let infos = link.get("addr_info").and_then(Value::as_array).into_iter().flatten();
    let named = infos.filter_map(|info| {
        let mut fields = info.as_object()?.clone();
        fields.insert("ifname".into(), name.clone());
        Some(fields)
    });
    named.collect()
}

/// Returns true if an FDB entry lasts. Learned entries come and go with traffic, multicast ones with group memberships.
fn lasting(fdb: &Map<String, Value>) -> bool {
    let text = |field: &str| fdb.get(field).and_then(Value::as_str).unwrap_or_default();
    let group = ["33:33:", "01:00:5e:"].iter().any(|prefix| text("mac").starts_with(prefix));
    !group && ["permanent", "static"].contains(&text("state"))
}

fn normal(fields: Map<String, Value>) -> Map<String, Value> {
    let kept =
        fields.into_iter().filter(|(key, _)| !VOLATILE.contains(&key.as_str()) && !key.ends_with("_timer"));
    kept.map(|(key, value)| (key, normal_value(value))).collect()
}

fn normal_value(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(normal(fields)),
        Value::Array(items) => {
            let mut items: Vec<_> = items.into_iter().map(normal_value).collect();
            items.sort_by_cached_key(Value::to_string);
            Value::Array(items)
        }
        other => other,
    }
}
