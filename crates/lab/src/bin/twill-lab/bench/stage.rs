//! Nodes of the bench: node 1 runs the daemon, node 2 has every peer's address, node 3 takes the yardstick. Their
//! uplinks are on one segment wide enough for all.

use std::path::PathBuf;

use lab::{Daemon, EtcdSetup, Lab, Node, Topology};

use super::options::{Case, StoreKind};
use super::peers::{Peer, Place, config};

/// Daemon that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Twill,
    /// A different daemon, by the words of its command line, to which flags are added.
    Other(Vec<String>),
}

impl Who {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Twill => "twill".into(),
            Self::Other(line) => {
                let program = line.first().map(PathBuf::from).unwrap_or_default();
                program.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
        }
    }
}

pub(super) fn build(case: &Case, nodes: usize) -> Lab {
    let topology = Topology::flat(nodes);
    let topology = if case.store == StoreKind::Etcd { topology.etcd(EtcdSetup::http()) } else { topology };
    let lab = topology.build();
    lab.nodes().iter().for_each(widen);
    fill(&lab, case);
    lab
}

/// Builds two nodes. Node 1 reaches every peer through node 2, so it has one neighbour for any number of peers.
pub(super) fn build_routed(case: &Case) -> Lab {
    let lab = Topology::flat(2).build();
    lab.node(1).ns.run(&format!("ip route add 172.16.0.0/12 via {}", lab.node(2).ip));
    fill(&lab, case);
    lab
}

fn fill(lab: &Lab, case: &Case) {
    lab.store.config(&config(case));
    let leases: Vec<_> = (0..case.peers).map(|n| Peer(n).lease(case, Place::First)).collect();
    lab.store.put_leases(&leases);
}

/// Gives the node a first address on the wide segment; the usual one leads to etcd.
fn widen(node: &Node) {
    let k = node.index;
    node.ns.batch(&format!(
        "address flush dev eth0 scope global\naddress add 172.16.0.{k}/12 dev eth0\n\
         address add {}/24 dev eth0\naddress add fd00:ac::{k}/64 dev eth0\n\
         route replace default via 192.168.100.1 dev eth0\n",
        node.ip
    ));
}

pub(super) fn start<'lab>(lab: &'lab Lab, node: &'lab Node, who: &Who) -> Daemon<'lab> {
    match who {
        Who::Twill => node.start(&["--iface=eth0"]),
        Who::Other(line) => {
            let mut line = line.clone();
            line.extend(["--iface=eth0".to_owned(), format!("--etcd-endpoints={}", lab.store.place())]);
            line.extend(["--healthz-ip=127.0.0.1", "--healthz-port=8081"].map(str::to_owned));
            node.start_other(line)
        }
    }
}
