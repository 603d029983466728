//! Warnings that come with a plan. Each has one fault, its subject, and a remedy, in plain words. Warnings are values;
//! the daemon decides who sees them, where and how often.

mod firewall;
mod node;
mod peer;
mod store;

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fault::{Severity, Words};
use crate::name::LinkName;
use crate::state::{NftTable, Route};
pub use firewall::FirewallFault;
pub use node::{Cure, Diversion, Extent, NodeFault};
pub use peer::PeerFault;
pub use store::StoreFault;

/// Warning: a single fault and its subject, such as `{"peer":{"subnet":"10.244.3.0/24","fault":"misaligned"}}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warning {
    /// Fault of this node.
    Node(NodeFault),
    /// Fault of the peer that holds this subnet.
    Peer { subnet: IpNet, fault: PeerFault },
    /// Entry of the datastore that is no lease.
    Entry { key: Box<str>, why: Box<str> },
    /// Entries beyond those that are named, at least this many.
    MoreEntries { at_least: u64 },
    /// Entry of the datastore that was a lease and cannot be read any more.
    Stale { key: Box<str>, why: Box<str> },
    /// Fault of the datastore as a whole.
    Store(StoreFault),
    /// File of ours that cannot be written, and that only a later run needs.
    Unwritable { path: Box<str>, why: Box<str>, loss: Box<str> },
    /// Object that looks like flannel's and may belong to another program.
    Unclaimed(Unclaimed),
}

/// Object that is left alone, though it may be a left-over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unclaimed {
    Route(Route),
    Device(LinkName),
    /// Chain in our nftables table.
    Chain(NftTable, Box<str>),
}

impl Warning {
    /// Returns the kind of fault, such as `peer-not-on-link`. It is the same for all subjects.
    pub fn reason(&self) -> String {
        match self {
            Self::Node(NodeFault::Firewall(fault)) => format!("firewall-{}", variant(fault)),
            Self::Node(fault) => format!("node-{}", variant(fault)),
            Self::Peer { fault: PeerFault::Probed(finding), .. } => format!("peer-{}", variant(finding)),
            Self::Peer { fault, .. } => format!("peer-{}", variant(fault)),
            Self::Store(fault) => format!("store-{}", variant(fault)),
            Self::Unclaimed(what) => format!("unclaimed-{}", variant(what)),
            Self::Entry { .. } => "entry".into(),
            Self::MoreEntries { .. } => "more-entries".into(),
            Self::Stale { .. } => "stale".into(),
            Self::Unwritable { .. } => "unwritable".into(),
        }
    }

    /// Returns the effect on readiness. A peer's fault never has one (ARCHITECTURE.md, invariant 13).
    pub fn severity(&self) -> Severity {
        match self {
            Self::Node(fault) => fault.severity(),
            Self::Store(fault) => fault.severity(),
            Self::Peer { .. }
            | Self::Entry { .. }
            | Self::MoreEntries { .. }
            | Self::Stale { .. }
            | Self::Unwritable { .. }
            | Self::Unclaimed(_) => Severity::Warning,
        }
    }

    /// Returns the words of the fault, with the subject in front.
    pub fn words(&self) -> Words {
        match self {
            Self::Node(fault) => fault.words(),
            Self::Peer { subnet, fault } => fault.words().about(format_args!("peer {subnet}")),
            Self::Entry { key, why } => Words::new(format!("store entry {key:?}: {why}; left out")),
            Self::MoreEntries { at_least } => Words::new(format!(
                "store: {at_least} more entries, or somewhat over, are no leases; left out"
            ))
            .remedy("Delete what is no node's"),
            Self::Stale { key, why } => Words::new(format!(
                "store entry {key:?} cannot be read: {why}; what it said before stays in force"
            )),
            Self::Store(fault) => fault.words().about("store"),
            Self::Unwritable { path, why, loss } => {
                Words::new(format!("{path} cannot be written: {why}; {loss}"))
            }
            Self::Unclaimed(what) => what.words(),
        }
    }
}

/// Returns the name of an enum's variant as serde writes it.
fn variant(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        Ok(Value::Object(fields)) => fields.into_iter().next().map(|(name, _)| name).unwrap_or_default(),
        _ => String::new(),
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words().fmt(f)
    }
}

impl Unclaimed {
    /// Returns the problem, and the command that removes the object.
    pub fn words(&self) -> Words {
        let (what, command) = match self {
            Self::Route(row) => {
                let what = row.to_string();
                let command = what.replacen("route ", "ip route del ", 1);
                (what, command)
            }
            Self::Device(link) => (format!("device {link}"), format!("ip link del {link}")),
            Self::Chain(table, chain) => {
                let table = table.name();
                return Words::new(format!(
                    "chain {chain} in nftables' table {table} is none of ours and stays"
                ))
                .remedy(format!("If nothing needs it: nft delete chain {table} {chain}"));
            }
        };
        Words::new(format!(
            "{what} is in the pod network and belongs to no peer; it is left, since it may not be flannel's"
        ))
        .remedy(format!("If nothing needs it: {command}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::*;
    use crate::family::Family;
    use crate::health::Finding;
    use crate::mac::Mac;
    use crate::passage::Payload;
    use crate::state::{MAIN_TABLE, RoutePath, Variant};

    /// Makes a warning of each kind, with the words by which docs/reference/messages.md lists it. A kind without a
    /// line does not compile.
    macro_rules! kinds {
        ($($kind:pat => $warning:expr, $words:literal;)*) => {
            fn words(warning: &Warning) -> &'static str {
                match warning {
                    $($kind => $words,)*
                    Warning::Peer {
                        fault: PeerFault::Probed(Finding::Healthy | Finding::Unverified | Finding::NoEcho), ..
                    } => "no fault",
                }
            }

            fn one_of_each() -> Vec<Warning> {
                vec![$($warning),*]
            }
        };
    }

    kinds! {
        Warning::Node(NodeFault::UplinkMissing(_)) => node(NodeFault::UplinkMissing(link())), "does not exist; nothing is changed";
        Warning::Node(NodeFault::UplinkDown(_)) => node(NodeFault::UplinkDown(link())), "is down; routes through it wait";
        Warning::Node(NodeFault::UplinkWithoutCarrier(_)) =>
            node(NodeFault::UplinkWithoutCarrier(link())), "has no carrier, so nothing leaves this node";
        Warning::Node(NodeFault::UplinkWithoutFamily { .. }) =>
            node(NodeFault::UplinkWithoutFamily { uplink: link(), family: Family::Ipv6 }), "is configured; nothing is withdrawn";
        Warning::Node(NodeFault::UplinkWithoutAddress { .. }) =>
            node(NodeFault::UplinkWithoutAddress { uplink: link(), address: ip() }), "has lost our address";
        Warning::Node(NodeFault::AddressTaken { .. }) =>
            node(NodeFault::AddressTaken { uplink: link(), address: ip(), mac: Mac([2, 0, 0, 0, 0, 7]) }), "a second machine";
        Warning::Node(NodeFault::UplinkWithoutRoute { .. }) =>
            node(NodeFault::UplinkWithoutRoute { uplink: link(), address: ip(), extent: Extent::AllPeers }), "but no route to its segment";
        Warning::Node(NodeFault::UplinkAmongPods { .. }) =>
            node(NodeFault::UplinkAmongPods { uplink: link(), address: net(), pods: "a".into() }), "nodes and pods may get one address";
        Warning::Node(NodeFault::InterfaceAmongPods { .. }) =>
            node(NodeFault::InterfaceAmongPods { link: link(), address: net(), pods: "a".into() }), "that network is out of reach";
        Warning::Node(NodeFault::ForeignDevice { .. }) =>
            node(NodeFault::ForeignDevice { name: link(), kind: "bridge".into(), extent: Extent::AllPeers }), "device, not vxlan";
        Warning::Node(NodeFault::NotLeased(_)) => node(NodeFault::NotLeased(Family::Ipv6)), "that family is off";
        Warning::Node(NodeFault::NoPeerOnLink { .. }) =>
            node(NodeFault::NoPeerOnLink { uplink: link(), family: Family::Ipv4, peer_on: Some((ip(), link())) }), "so host-gw reaches none by";
        Warning::Node(NodeFault::TooNarrow { .. }) =>
            node(NodeFault::TooNarrow { uplink: link(), family: Family::Ipv6, outer: 1280, inner: 1280, needs: 1350, alone: None }),
            "bytes inside the tunnel and";
        Warning::Node(NodeFault::NotInternalIp { .. }) =>
            node(NodeFault::NotInternalIp { uplink: link(), address: ip(), node_ip: ip(), on: Some(link()) }), "Kubernetes knows this node by";
        Warning::Node(NodeFault::SysctlRefused { .. }) =>
            node(NodeFault::SysctlRefused { path: "a/b".into(), value: "0".into(), why: "no".into() }), "the kernel refuses sysctl";
        Warning::Node(NodeFault::Firewall(FirewallFault::NftUnusable { .. })) =>
            firewall(FirewallFault::NftUnusable { why: "no".into() }), "so iptables has the traffic rules";
        Warning::Node(NodeFault::Firewall(FirewallFault::Unfiltered { .. })) =>
            firewall(FirewallFault::Unfiltered { why: "no".into() }), "so VXLAN packets from unknown senders are neither";
        Warning::Node(NodeFault::Firewall(FirewallFault::IptablesMissing)) => firewall(FirewallFault::IptablesMissing), "there is no iptables on this node";
        Warning::Node(NodeFault::Firewall(FirewallFault::Nothing)) => firewall(FirewallFault::Nothing), "so nothing is accepted that others drop";
        Warning::Node(NodeFault::Firewall(FirewallFault::NoMasquerade)) => firewall(FirewallFault::NoMasquerade), "so nothing is masqueraded";
        Warning::Node(NodeFault::Firewall(FirewallFault::Foreign { .. })) => firewall(FirewallFault::Foreign { keeper: "another daemon of this node".into() }), "keeps the traffic rules, so this one makes none";
        Warning::Node(NodeFault::Firewall(FirewallFault::Unlocked(_))) => firewall(FirewallFault::Unlocked("no".into())), "because they cannot be locked";
        Warning::Node(NodeFault::Firewall(FirewallFault::ForwardRefused { .. })) =>
            firewall(FirewallFault::ForwardRefused { variant: Variant::Nft, family: Family::Ipv4, what: "policy DROP".into() }), "so the accept rules are there too";
        Warning::Node(NodeFault::Firewall(FirewallFault::PodsRefused { .. })) => firewall(FirewallFault::PodsRefused {
            place: "chain a".into(), what: "policy drop".into(), uncertainty: None, payload: Payload::Any, from: ip(), to: ip(), remedy: "b".into()
        }), "Accept the pods' network ahead of it";
        Warning::Node(NodeFault::Firewall(FirewallFault::TunnelRefused { .. })) => firewall(FirewallFault::TunnelRefused {
            place: "chain a".into(), what: "policy drop".into(), from: ip(), port: 8472, remedy: "b".into()
        }), "this node refuses the tunnel packets of its peers";
        Warning::Node(NodeFault::Firewall(FirewallFault::OwnTunnelRefused { .. })) => firewall(FirewallFault::OwnTunnelRefused {
            place: "chain a".into(), what: "policy drop".into(), to: ip(), port: 8472, remedy: "b".into()
        }), "this node refuses its own tunnel packets";
        Warning::Node(NodeFault::Firewall(FirewallFault::EchoRefused { .. })) => firewall(FirewallFault::EchoRefused {
            place: "chain a".into(), what: "policy drop".into(), from: ip(), to: ip(), remedy: "b".into()
        }), "this node refuses echoes between nodes";
        Warning::Node(NodeFault::Firewall(FirewallFault::ForwardOff { .. })) =>
            firewall(FirewallFault::ForwardOff { variant: Variant::Nft, family: Family::Ipv4, what: "policy DROP".into() }), "accepts nothing ahead of it";
        Warning::Node(NodeFault::Firewall(FirewallFault::Unread(_))) => firewall(FirewallFault::Unread("no".into())), "may go unseen";
        Warning::Node(NodeFault::Firewall(FirewallFault::Stranger(_))) => firewall(FirewallFault::Stranger(ip())), "and no peer has that address";
        Warning::Node(NodeFault::Firewall(FirewallFault::PodSender(_))) => firewall(FirewallFault::PodSender(ip())), "sends VXLAN packets with our VNI";
        Warning::Node(NodeFault::SysctlUnset { .. }) =>
            node(NodeFault::SysctlUnset { path: "a/b".into(), value: "1".into(), is: "0".into() }), "and --set-sysctls=false leaves it so";
        Warning::Node(NodeFault::BridgeNetfilterMissing) => node(NodeFault::BridgeNetfilterMissing), "br_netfilter is not loaded";
        Warning::Node(NodeFault::BridgeNetfilterOff { .. }) =>
            node(NodeFault::BridgeNetfilterOff { path: "a/b".into() }), "is 0, so rules for traffic do not see";
        Warning::Node(NodeFault::Firewalld { .. }) =>
            node(NodeFault::Firewalld { port: Some(8472), networks: [net()].into() }), "firewalld runs here";
        Warning::Node(NodeFault::NeighboursLimited { .. }) =>
            node(NodeFault::NeighboursLimited { path: "a/b".into(), limit: 1024, enough: 4096 }), "neighbours at most";
        Warning::Node(NodeFault::NothingVerified) => node(NodeFault::NothingVerified), "but --probe=off sends no probes";
        Warning::Node(NodeFault::NoProbeSocket { .. }) =>
            node(NodeFault::NoProbeSocket { why: "no".into(), direct: true }), "this daemon cannot open a socket to probe peers";
        Warning::Node(NodeFault::Diverted(_)) => node(NodeFault::Diverted(Box::new(Diversion {
            from: ip(), to: ip(), expected: link(), by: "a".into(), fate: "b".into(), cure: Cure::Rule, network: net(),
            extent: Extent::AllPeers
        }))), "do not leave through";
        Warning::Node(NodeFault::SourceChecked { .. }) =>
            node(NodeFault::SourceChecked { uplink: link(), from: ip(), to: ip(), back: None }), "this node drops packets of peers that come in by";
        Warning::Peer { fault: PeerFault::OutsideNetwork, .. } => peer(PeerFault::OutsideNetwork), "lies outside our network";
        Warning::Peer { fault: PeerFault::BadLength, .. } => peer(PeerFault::BadLength), "no SubnetLen gives";
        Warning::Peer { fault: PeerFault::Misaligned, .. } => peer(PeerFault::Misaligned), "has host bits set";
        Warning::Peer { fault: PeerFault::OverlapsOurs(_), .. } => peer(PeerFault::OverlapsOurs(net())), "subnet overlaps ours";
        Warning::Peer { fault: PeerFault::OverlapsUplink { .. }, .. } =>
            peer(PeerFault::OverlapsUplink { uplink: link(), with: net() }), "a network of the nodes on";
        Warning::Peer { fault: PeerFault::Overlaps(_), .. } =>
            peer(PeerFault::Overlaps(net())), "subnet overlaps that of";
        Warning::Peer { fault: PeerFault::NoPublicAddress(_), .. } =>
            peer(PeerFault::NoPublicAddress(Family::Ipv4)), "its lease names no public";
        Warning::Peer { fault: PeerFault::BadPublicAddress(_), .. } =>
            peer(PeerFault::BadPublicAddress(ip())), "which no node can have";
        Warning::Peer { fault: PeerFault::OurPublicAddress(_), .. } =>
            peer(PeerFault::OurPublicAddress(ip())), "it announces our own address";
        Warning::Peer { fault: PeerFault::NoVtep(_), .. } => peer(PeerFault::NoVtep(Family::Ipv4)), "VTEP MAC that can be read; left out";
        Warning::Peer { fault: PeerFault::BadVtepMac(_), .. } =>
            peer(PeerFault::BadVtepMac(Mac::default())), "is not a unicast address";
        Warning::Peer { fault: PeerFault::OurVtepMac(_), .. } => peer(PeerFault::OurVtepMac(Mac::default())), "is ours too";
        Warning::Peer { fault: PeerFault::SharedVtepMac { .. }, .. } =>
            peer(PeerFault::SharedVtepMac { mac: Mac::default(), with: net() }), "is that of";
        Warning::Peer { fault: PeerFault::UnusableVni(_), .. } => peer(PeerFault::UnusableVni(7)), "which is one VNI too many";
        Warning::Peer { fault: PeerFault::BadPort(_), .. } => peer(PeerFault::BadPort(53)), "which is another service's";
        Warning::Peer { fault: PeerFault::OtherBackend { .. }, .. } =>
            peer(PeerFault::OtherBackend { theirs: "".into(), ours: "vxlan".into() }), "left out until both agree";
        Warning::Peer { fault: PeerFault::NotOnLink { .. }, .. } =>
            peer(PeerFault::NotOnLink { next_hop: ip(), uplink: link() }), "is not on the layer-2 segment of";
        Warning::Peer { fault: PeerFault::Probed(Finding::NextHopSilent { .. }), .. } =>
            probed(Finding::NextHopSilent { next_hop: ip(), uplink: link() }), "next hop silent:";
        Warning::Peer { fault: PeerFault::Probed(Finding::Silent { .. }), .. } => probed(Finding::Silent { node: ip() }), "silent:";
        Warning::Peer { fault: PeerFault::Probed(Finding::EchoLost { .. }), .. } =>
            probed(Finding::EchoLost { node: ip() }), "echo lost:";
        Warning::Peer { fault: PeerFault::Probed(Finding::Flapping { .. }), .. } =>
            probed(Finding::Flapping { node: ip() }), "flapping:";
        Warning::Peer { fault: PeerFault::Probed(Finding::Refused { .. }), .. } =>
            probed(Finding::Refused { node: ip(), by: ip() }), "refused:";
        Warning::Peer { fault: PeerFault::Probed(Finding::TunnelLost { .. }), .. } =>
            probed(Finding::TunnelLost { node: ip(), port: 8472 }), "tunnel lost:";
        Warning::Peer { fault: PeerFault::Probed(Finding::PodAddressesLost { .. }), .. } =>
            probed(Finding::PodAddressesLost { next_hop: ip(), uplink: link() }), "pod addresses lost:";
        Warning::Peer { fault: PeerFault::Probed(Finding::Diverted { .. }), .. } =>
            probed(Finding::Diverted { node: ip() }), "diverted:";
        Warning::Peer { fault: PeerFault::Probed(Finding::NoWayBack { .. }), .. } =>
            probed(Finding::NoWayBack { node: ip() }), "no way back:";
        Warning::Peer { fault: PeerFault::Probed(Finding::ProxyArp { .. }), .. } =>
            probed(Finding::ProxyArp { next_hop: ip(), mac: Mac::default(), also: ip() }), "proxy ARP:";
        Warning::Peer { fault: PeerFault::Probed(Finding::DuplicateAddress { .. }), .. } =>
            probed(Finding::DuplicateAddress { next_hop: ip(), macs: [Mac::default(); 2] }), "duplicate address:";
        Warning::Peer { fault: PeerFault::Probed(Finding::LostAbove { .. }), .. } =>
            probed(Finding::LostAbove { mtu: 1400 }), "large packets lost:";
        Warning::Peer { fault: PeerFault::Probed(Finding::Fragmented { .. }), .. } =>
            probed(Finding::Fragmented { mtu: 1400 }), "fragmented:";
        Warning::Peer { fault: PeerFault::Probed(Finding::ChecksumFault { .. }), .. } =>
            probed(Finding::ChecksumFault { node: ip() }), "checksum fault:";
        Warning::Entry { .. } => Warning::Entry { key: "a".into(), why: "b".into() }, "store entry";
        Warning::MoreEntries { .. } => Warning::MoreEntries { at_least: 9 }, "more entries, or somewhat over";
        Warning::Stale { .. } =>
            Warning::Stale { key: "a".into(), why: "b".into() }, "what it said before stays in force";
        Warning::Store(StoreFault::PeersMissing) => Warning::Store(StoreFault::PeersMissing), "more than half of the peers at once";
        Warning::Store(StoreFault::OwnLeaseGone { .. }) =>
            Warning::Store(StoreFault::OwnLeaseGone { why: "a".into() }), "our lease is gone and cannot be taken again";
        Warning::Store(StoreFault::OwnLeaseStale { .. }) =>
            Warning::Store(StoreFault::OwnLeaseStale { why: "a".into() }), "our lease differs from what this node announces and cannot";
        Warning::Store(StoreFault::OwnLeaseOver) => Warning::Store(StoreFault::OwnLeaseOver), "our lease has expired";
        Warning::Store(StoreFault::OwnLeaseTaken { .. }) =>
            Warning::Store(StoreFault::OwnLeaseTaken { subnet: "a".into(), holder: "b".into() }), "holds our lease";
        Warning::Store(StoreFault::OwnLeaseContested { .. }) =>
            Warning::Store(StoreFault::OwnLeaseContested { subnet: "a".into(), theirs: "b".into() }), "is overwritten by another writer";
        Warning::Store(StoreFault::ConfigUnusable { .. }) =>
            Warning::Store(StoreFault::ConfigUnusable { why: "a".into() }), "the last good network config stays in force";
        Warning::Store(StoreFault::ConfigRefused { .. }) =>
            Warning::Store(StoreFault::ConfigRefused { what: "a".into() }), "cannot change under running pods";
        Warning::Unwritable { .. } =>
            Warning::Unwritable { path: "/a".into(), why: "b".into(), loss: "c".into() }, "cannot be written:";
        Warning::Unclaimed(Unclaimed::Route(_)) => Warning::Unclaimed(Unclaimed::Route(route())), "If nothing needs it: ip route del";
        Warning::Unclaimed(Unclaimed::Device(_)) => Warning::Unclaimed(Unclaimed::Device(link())), "If nothing needs it: ip link del";
        Warning::Unclaimed(Unclaimed::Chain(..)) =>
            Warning::Unclaimed(Unclaimed::Chain(NftTable { family: Family::Ipv4 }, "mine".into())), "If nothing needs it: nft delete chain";
    }

    fn node(fault: NodeFault) -> Warning {
        Warning::Node(fault)
    }

    fn firewall(fault: FirewallFault) -> Warning {
        node(NodeFault::Firewall(fault))
    }

    fn probed(finding: Finding) -> Warning {
        peer(PeerFault::Probed(finding))
    }

    fn peer(fault: PeerFault) -> Warning {
        Warning::Peer { subnet: net(), fault }
    }

    fn link() -> LinkName {
        "eth0".parse().unwrap()
    }

    fn ip() -> IpAddr {
        [192, 0, 2, 1].into()
    }

    fn net() -> IpNet {
        "10.244.3.0/24".parse().unwrap()
    }

    fn route() -> Route {
        let path = RoutePath::Via { gateway: ip(), link: link(), onlink: false };
        Route { table: MAIN_TABLE, destination: net(), path, protocol: 3, metric: 0, unknown: None }
    }

    #[test]
    fn the_documents_list_every_warning_and_no_other() {
        let text = include_str!("../../../docs/reference/messages.md");
        let (_, section) = text.split_once("\n## Warnings\n").unwrap();
        let lines = section.lines().take_while(|line| !line.starts_with("## "));
        let listed: Vec<&str> =
            lines.filter_map(|line| line.strip_prefix("#### `")?.split('`').next()).collect();
        let warnings = one_of_each();
        let expected: Vec<&str> = warnings.iter().map(words).collect();
        assert_eq!(listed, expected);
        let reasons: BTreeSet<String> = warnings.iter().map(Warning::reason).collect();
        assert_eq!(reasons.len(), warnings.len(), "{reasons:?}");
        assert!(
            reasons.contains("peer-not-on-link")
                && reasons.contains("peer-next-hop-silent")
                && reasons.contains("store-peers-missing"),
            "{reasons:?}"
        );
        for (warning, words) in warnings.iter().zip(expected) {
            assert!(warning.to_string().contains(words), "{words:?} are no words of: {warning}");
        }
    }

    #[test]
    fn every_warning_has_a_problem_and_its_remedy_is_a_sentence() {
        for warning in one_of_each() {
            let Words { problem, remedy } = warning.words();
            assert!(!problem.is_empty() && !problem.ends_with('.'), "{warning}");
            let Some(remedy) = remedy else {
                assert_eq!(warning.to_string(), problem);
                continue;
            };
            assert!(remedy.starts_with(char::is_uppercase) && !remedy.ends_with('.'), "{remedy}");
            let end = if problem.ends_with('?') { " " } else { ". " };
            assert_eq!(warning.to_string(), format!("{problem}{end}{remedy}"));
        }
    }

    #[test]
    fn only_the_listed_faults_end_readiness() {
        let of = |severity: Severity| {
            let warnings = one_of_each().into_iter().filter(|warning| warning.severity() == severity);
            warnings.map(|warning| warning.reason()).collect::<Vec<String>>()
        };
        assert_eq!(
            of(Severity::Blocking),
            [
                "node-uplink-missing",
                "node-uplink-down",
                "node-uplink-without-carrier",
                "node-uplink-without-family",
                "node-uplink-without-address",
                "node-uplink-without-route",
                "node-uplink-among-pods",
                "node-foreign-device",
                "node-not-leased",
                "node-too-narrow",
                "node-diverted",
                "store-own-lease-taken",
            ]
        );
        assert_eq!(of(Severity::Unready), ["firewall-no-masquerade"]);
    }

    #[test]
    fn a_node_that_forwards_nothing_is_not_ready() {
        let [value, why] = ["1", "no"].map(Box::<str>::from);
        for (path, severity) in
            [("net/ipv4/ip_forward", Severity::Unready), ("net/ipv6/conf/eth0/accept_ra", Severity::Warning)]
        {
            let (value, why, path) = (value.clone(), why.clone(), Box::<str>::from(path));
            let unset = NodeFault::SysctlUnset { path: path.clone(), value: value.clone(), is: "0".into() };
            assert_eq!(unset.severity(), severity, "{path}");
            assert_eq!(NodeFault::SysctlRefused { path, value, why }.severity(), severity);
        }
    }

    #[test]
    fn readiness_stays_if_one_family_or_some_peers_are_left() {
        let (uplink, family, extent) = (link(), Family::Ipv6, Extent::SomePeers);
        let alone = Some(Family::Ipv4);
        for fault in [
            NodeFault::TooNarrow { uplink, family, outer: 1300, inner: 1280, needs: 1350, alone },
            NodeFault::UplinkWithoutRoute { uplink, address: ip(), extent },
            NodeFault::ForeignDevice { name: link(), kind: "bridge".into(), extent },
        ] {
            assert_eq!(fault.severity(), Severity::Warning, "{fault}");
        }
    }
}
