//! Faults of the traffic rules, each with its severity and its remedy.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::fault::{Severity, Words};
use crate::passage::Payload;
use crate::state::Variant;
use crate::underlay::Uncertainty;

/// Fault of the traffic rules, or a finding that they made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallFault {
    NftUnusable {
        why: Box<str>,
    },
    /// The source filter, which only nftables can enforce, does nothing.
    Unfiltered {
        why: Box<str>,
    },
    IptablesMissing,
    /// Neither nftables nor iptables can be used.
    Nothing,
    /// Neither of them can be used, but pods are to be masqueraded.
    NoMasquerade,
    /// Rules kept by another daemon of this node.
    Foreign {
        keeper: Box<str>,
    },
    /// The rules cannot be locked, so it is unknown whether another daemon keeps them.
    Unlocked(Box<str>),
    /// The config demands nftables, but iptables refuses forwarded packets.
    ForwardRefused {
        variant: Variant,
        family: Family,
        what: Box<str>,
    },
    /// Packets between pods are refused on their way through this node, or may be.
    PodsRefused {
        place: Box<str>,
        what: Box<str>,
        uncertainty: Option<Uncertainty>,
        payload: Payload,
        from: IpAddr,
        to: IpAddr,
        remedy: Box<str>,
    },
    /// Tunnel packets of peers are refused when they reach this node.
    TunnelRefused {
        place: Box<str>,
        what: Box<str>,
        from: IpAddr,
        port: u16,
        remedy: Box<str>,
    },
    /// Tunnel packets of this node are refused before they leave it.
    OwnTunnelRefused {
        place: Box<str>,
        what: Box<str>,
        to: IpAddr,
        port: u16,
        remedy: Box<str>,
    },
    /// Echoes, by which nodes probe each other, are refused on this node.
    EchoRefused {
        place: Box<str>,
        what: Box<str>,
        from: IpAddr,
        to: IpAddr,
        remedy: Box<str>,
    },
    /// iptables refuses forwarded packets, and flags forbid us to accept any.
    ForwardOff {
        variant: Variant,
        family: Family,
        what: Box<str>,
    },
    /// Existing rules cannot be read.
    Unread(Box<str>),
    /// Sender of VXLAN packets that is no peer.
    Stranger(IpAddr),
    /// Pod that sends VXLAN packets with our VNI.
    PodSender(IpAddr),
}

impl FirewallFault {
    /// Returns the effect on readiness. Every fault decides it here.
    pub fn severity(&self) -> Severity {
        match self {
            Self::NoMasquerade => Severity::Unready,
            Self::NftUnusable { .. }
            | Self::Unfiltered { .. }
            | Self::IptablesMissing
            | Self::Nothing
            | Self::Foreign { .. }
            | Self::Unlocked(_)
            | Self::ForwardRefused { .. }
            | Self::PodsRefused { .. }
            | Self::TunnelRefused { .. }
            | Self::OwnTunnelRefused { .. }
            | Self::EchoRefused { .. }
            | Self::ForwardOff { .. }
            | Self::Unread(_)
            | Self::Stranger(_)
            | Self::PodSender(_) => Severity::Warning,
        }
    }

    /// Returns the problem and the remedy.
    pub fn words(&self) -> Words {
        match self {
            Self::NftUnusable { why } => {
                Words::new(format!("nftables cannot be used ({why}), so iptables has the traffic rules"))
            }
            Self::Unfiltered { why } => Words::new(format!(
                "nftables cannot be used ({why}), so VXLAN packets from unknown senders are neither counted nor dropped"
            ))
            .remedy("Install nft, or set VxlanSourceFilter to off"),
            Self::IptablesMissing => {
                Words::new("there is no iptables on this node, so nftables has the traffic rules")
                    .remedy("If another firewall here drops forwarded packets, install iptables")
            }
            Self::Nothing => Words::new(
                "neither nftables nor iptables can be used, so nothing is accepted that others drop",
            )
            .remedy("Install nft or iptables, or switch the rules off (--iptables-forward-rules=false)"),
            Self::NoMasquerade => {
                Words::new("neither nftables nor iptables can be used, so nothing is masqueraded")
                    .remedy("Install nft or iptables, or switch it off (--ip-masq=false)")
            }
            Self::Foreign { keeper } => foreign(keeper),
            Self::Unlocked(why) => Words::new(format!(
                "the traffic rules are left as they are, because they cannot be locked against another daemon of this node: {why}"
            )),
            Self::ForwardRefused { variant, family, what } => forward_refused(*variant, *family, what),
            Self::ForwardOff { variant, family, what } => forward_off(*variant, *family, what),
            Self::PodsRefused { place, what, uncertainty, payload, from, to, remedy } => {
                let (refuses, because) = certainty(uncertainty.as_ref());
                let (packets, rule) = (packets(*payload), format!("{place} has {what}{because}"));
                Words::new(format!("this node {refuses} {packets} of pods, such as from {from} to {to}: {rule}"))
                    .remedy(format!("Accept the pods' network ahead of it: {remedy}"))
            }
            Self::TunnelRefused { place, what, from, port, remedy } => {
                tunnel_refused(place, what, *from, *port).remedy(ahead(remedy))
            }
            Self::OwnTunnelRefused { place, what, to, port, remedy } => {
                own_tunnel_refused(place, what, *to, *port).remedy(ahead(remedy))
            }
            Self::EchoRefused { place, what, from, to, remedy } => {
                echo_refused(place, what, *from, *to).remedy(ahead(remedy))
            }
            Self::Unread(what) => Words::new(format!(
                "rules cannot be read, so what refuses pods' packets may go unseen: {what}. It is tried again every 10 s"
            )),
            Self::Stranger(address) => Words::new(format!(
                "{address} sends VXLAN packets to this node, or through it to a peer, and no peer has that address: it is a \
                 node behind an address translation, or somebody who forges pod traffic"
            )),
            Self::PodSender(address) => Words::new(format!(
                "pod {address} sends VXLAN packets with our VNI, by which it can pass for any other pod"
            ))
            .remedy("Look at that pod; with VxlanSourceFilter drop its packets are dropped"),
        }
    }
}

fn foreign(keeper: &str) -> Words {
    Words::new(format!(
        "{keeper} keeps the traffic rules, so this one makes none: what it forwards is neither accepted nor masqueraded"
    ))
    .remedy("Give one of them --iptables-forward-rules=false and --ip-masq=false")
}

fn forward_refused(variant: Variant, family: Family, what: &str) -> Words {
    Words::new(format!(
        "EnableNFTables is true, but the {family} FORWARD chain of {variant} has {what}, so the accept rules are there too"
    ))
    .remedy("Drop EnableNFTables to have all rules in one place")
}

fn forward_off(variant: Variant, family: Family, what: &str) -> Words {
    Words::new(format!(
        "this node refuses packets of pods: the {family} FORWARD chain of {variant} has {what}, and \
         --iptables-forward-rules=false accepts nothing ahead of it"
    ))
    .remedy("Accept the pods' network there, or leave the flag out")
}

fn tunnel_refused(place: &str, what: &str, from: IpAddr, port: u16) -> Words {
    Words::new(format!(
        "this node refuses the tunnel packets of its peers, such as from {from} to UDP port {port}: {place} has {what}"
    ))
}

fn own_tunnel_refused(place: &str, what: &str, to: IpAddr, port: u16) -> Words {
    Words::new(format!(
        "this node refuses its own tunnel packets to peers, such as to {to}, UDP port {port}: {place} has {what}"
    ))
}

fn echo_refused(place: &str, what: &str, from: IpAddr, to: IpAddr) -> Words {
    Words::new(format!(
        "this node refuses echoes between nodes, such as from {from} to {to}, so that probes fail here or on the peers: \
         {place} has {what}"
    ))
}

/// Returns the remedy for a refusal of packets between nodes.
fn ahead(commands: &str) -> String {
    format!("Accept them ahead of it: {commands}")
}

/// Returns the verb of a refusal, which says how certain it is, and the clause that follows it.
fn certainty(uncertainty: Option<&Uncertainty>) -> (&'static str, String) {
    match uncertainty {
        None => ("refuses", ", which the accept rules of this daemon do not undo".into()),
        Some(Uncertainty::Condition) => {
            ("may refuse", ", whose condition this daemon cannot evaluate".into())
        }
        Some(Uncertainty::Unless(rule)) => (
            "may refuse",
            format!(
                "; an earlier rule may let them pass, whose condition this daemon cannot evaluate: {rule}"
            ),
        ),
    }
}

fn packets(payload: Payload) -> &'static str {
    match payload {
        Payload::Any => "packets",
        Payload::Tcp => "TCP packets",
        Payload::Udp | Payload::Tunnel(_) => "UDP packets",
        Payload::Echo(_) => "echoes",
    }
}
