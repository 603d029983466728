//! State that a real flannel left behind, from `plan/tests/recordings`: to compare a node with, or to restore on a node. It knows
//! nothing about twill.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use lab::view::Row;
use lab::{Lab, Node, View, view};
use serde_json::Value;

/// A recorded case, of three nodes.
pub(crate) struct Recording {
    pub(crate) case: &'static str,
    dir: PathBuf,
}

impl Recording {
    pub(crate) fn of(case: &'static str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plan/tests/recordings").join(case);
        Self { case, dir }
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file))
            .unwrap_or_else(|error| panic!("{}/{file}: {error}", self.case))
    }

    pub(crate) fn config(&self) -> String {
        // flannel routes directly by addresses alone.
        let plain = r#""DirectRouting":true"#;
        self.read("net-conf.json").replace(plain, &format!(r#"{plain},"VerifyDirect":false"#))
    }

    /// Returns names and values of the leases, as they were in etcd.
    pub(crate) fn leases(&self) -> Vec<(String, String)> {
        let entries = self.read("etcd.txt");
        let pairs = entries.lines().zip(entries.lines().skip(1));
        let leases = pairs.filter_map(|(key, value)| {
            Some((key.strip_prefix("/coreos.com/network/subnets/")?.to_owned(), value.to_owned()))
        });
        leases.collect()
    }

    /// Puts the leases in the store, so that subnets and MACs are the recorded ones.
    pub(crate) fn fill(&self, lab: &Lab) {
        let leases = self.leases();
        assert_eq!(leases.len(), lab.nodes().len());
        leases.iter().for_each(|(name, value)| lab.store.put_lease(name, value));
    }

    pub(crate) fn subnet_env(&self, node: &Node) -> String {
        self.read(&format!("node{}/subnet.env", node.index))
    }

    /// Returns the state of the recorded node.
    pub(crate) fn view(&self, node: &Node) -> View {
        let kinds = ["link", "addr", "route4", "route6", "neigh", "fdb"];
        let answers = kinds.into_iter().filter_map(|kind| Some((kind, self.json(node, kind)?)));
        View::recorded(&answers.collect::<Vec<_>>())
    }

    /// Returns a recorded list; `None` if there was nothing to record.
    fn json(&self, node: &Node, kind: &str) -> Option<Value> {
        let text = fs::read_to_string(self.dir.join(format!("node{}/{kind}.json", node.index))).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Gives the node's kernel and subnet file the state that flannel left.
    pub(crate) fn recreate(&self, node: &Node) {
        let list = |kind: &str| match self.json(node, kind) {
            Some(Value::Array(rows)) => rows,
            _ => Vec::new(),
        };
        let mut lines = String::new();
        for link in list("link").iter().filter(|link| text(link, "ifname").starts_with("flannel")) {
            device(&mut lines, link);
        }
        for link in list("addr").iter().filter(|link| text(link, "ifname").starts_with("flannel")) {
            for address in
                link["addr_info"].as_array().into_iter().flatten().filter(|info| info["scope"] == "global")
            {
                let (name, local, length) =
                    (text(link, "ifname"), text(address, "local"), &address["prefixlen"]);
                let _ = writeln!(lines, "address add {local}/{length} dev {name}");
            }
            let _ = writeln!(lines, "link set {} up", text(link, "ifname"));
        }
        for row in list("neigh").iter().filter(|row| text(row, "dev").starts_with("flannel")) {
            let (dst, mac, dev) = (text(row, "dst"), text(row, "lladdr"), text(row, "dev"));
            let _ = writeln!(lines, "neighbour add {dst} lladdr {mac} dev {dev} nud permanent");
        }
        for row in [list("route4"), list("route6")].iter().flatten().filter(|row| is_flannels_route(row)) {
            route(&mut lines, row);
        }
        node.ns.batch(&lines);
        // The sysctl is not in the output of ip, so it was not recorded.
        for link in list("link").iter().filter(|link| text(link, "ifname").starts_with("flannel")) {
            let name = text(link, "ifname").replace('.', "/");
            node.ns.sysctl(&[(&format!("net.ipv6.conf.{name}.accept_ra"), "0")]);
        }
        for row in list("fdb")
            .iter()
            .filter(|row| text(row, "ifname").starts_with("flannel") && row.get("dst").is_some())
        {
            let (mac, dev, dst) = (text(row, "mac"), text(row, "ifname"), text(row, "dst"));
            node.ns.run(&format!("bridge fdb add {mac} dev {dev} dst {dst}"));
        }
        for (file, program) in [
            ("nft.txt", "nft -f"),
            ("iptables-save.txt", "iptables-restore"),
            ("ip6tables-save.txt", "ip6tables-restore"),
        ] {
            let path = self.dir.join(format!("node{}/{file}", node.index));
            // iptables' rules are in nft's list too, in a form that nft does not read back.
            let by_iptables = file == "nft.txt" && path.with_file_name("iptables-save.txt").exists();
            if path.exists() && !by_iptables {
                node.ns.run(&format!("{program} {}", path.display()));
            }
        }
        fs::write(node.run_dir().join("subnet.env"), self.subnet_env(node)).unwrap();
    }
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

fn device(lines: &mut String, link: &Value) {
    let (name, mac, mtu, data) =
        (text(link, "ifname"), text(link, "address"), &link["mtu"], &link["linkinfo"]["info_data"]);
    let local = data["local"].as_str().or(data["local6"].as_str()).unwrap();
    let gbp = if data["gbp"] == true { " gbp" } else { "" };
    let _ = writeln!(
        lines,
        "link add {name} address {mac} mtu {mtu} txqueuelen 0 type vxlan id {} local {local} dev eth0 dstport {} nolearning{gbp}",
        data["id"], data["port"]
    );
}

fn is_flannels_route(row: &Value) -> bool {
    row["protocol"] == "boot"
        && ["10.244.", "fd00:244:"].iter().any(|prefix| text(row, "dst").starts_with(prefix))
}

fn route(lines: &mut String, row: &Value) {
    let dst = text(row, "dst");
    let _ = match (row["gateway"].as_str(), text(row, "type")) {
        (Some(gateway), _) => {
            let onlink = row["flags"].as_array().is_some_and(|flags| flags.contains(&"onlink".into()));
            let onlink = if onlink { " onlink" } else { "" };
            writeln!(lines, "route add {dst} via {gateway} dev {}{onlink}", text(row, "dev"))
        }
        (None, kind) => writeln!(lines, "route add {kind} {dst}"),
    };
}

/// Returns the pod network's rows as text, without intended differences. These are our route protocol and the name of
/// the main table. The latter is only in a list of all tables.
pub(crate) fn objects(view: &View) -> Vec<String> {
    let plain = |row: &Row| {
        let mut row = row.clone();
        row.fields.retain(|key, _| key != "protocol" && key != "table");
        row.to_string()
    };
    let rows = view::ours(view).filter(|row| row.text("table") != "local").map(plain);
    let mut rows: Vec<String> = rows.filter(|row| !row.contains("fe80::")).collect();
    rows.sort();
    rows
}
