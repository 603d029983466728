//! Kinds and numbers of tunnels, and the names of their devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::marks::{IPV4_DEVICE, IPV6_DEVICE};
use crate::name::LinkName;

/// Kind of a tunnel. Users see its label, such as `vxlan`, in status, metrics and JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "Box<str>")]
pub enum TunnelKind {
    Vxlan,
}

/// Names of a kind of tunnel.
struct Names {
    label: &'static str,
    /// Config key of the number that tells the tunnels of this kind apart.
    number: &'static str,
    /// Prefixes of the devices' names, for IPv4 and for IPv6; the number follows.
    devices: [&'static str; 2],
}

const VXLAN: Names = Names { label: "vxlan", number: "VNI", devices: [IPV4_DEVICE, IPV6_DEVICE] };

impl TunnelKind {
    pub const ALL: [Self; 1] = [Self::Vxlan];

    fn names(self) -> &'static Names {
        match self {
            Self::Vxlan => &VXLAN,
        }
    }

    /// Returns the name of the kind, which is also the name of its backend type.
    pub fn label(self) -> &'static str {
        self.names().label
    }

    /// Returns the config key of the number that tells the tunnels of this kind apart.
    pub fn number(self) -> &'static str {
        self.names().number
    }

    /// Returns the largest number whose device names fit in the 15 bytes of an interface name.
    pub(crate) fn largest(self, ipv6: bool) -> u32 {
        let [ipv4_device, ipv6_device] = self.names().devices;
        let longest = if ipv6 { ipv4_device.len().max(ipv6_device.len()) } else { ipv4_device.len() };
        10_u32.saturating_pow(15_usize.saturating_sub(longest) as u32) - 1
    }
}

impl From<TunnelKind> for &'static str {
    fn from(kind: TunnelKind) -> Self {
        kind.label()
    }
}

impl TryFrom<Box<str>> for TunnelKind {
    type Error = String;

    fn try_from(label: Box<str>) -> Result<Self, String> {
        let kind = Self::ALL.into_iter().find(|kind| kind.label() == &*label);
        kind.ok_or_else(|| format!("{label:?} is no kind of tunnel"))
    }
}

/// Tunnel of this node, as text `VNI 1`. It has a device per family, which one daemon of the node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TunnelId {
    pub kind: TunnelKind,
    pub number: u32,
}

impl TunnelId {
    /// Returns the name of the device of the family.
    pub fn device(self, family: Family) -> LinkName {
        LinkName::numbered(self.kind.names().devices[family as usize], self.number)
    }

    /// Returns the tunnel of a device by its name, if the name has the form of ours.
    pub fn of_device(name: LinkName) -> Option<Self> {
        let number = |prefix: &str| name.as_str().strip_prefix(prefix)?.parse().ok();
        let of_kind = |kind: TunnelKind| {
            let number = kind.names().devices.into_iter().find_map(number)?;
            Some(Self { kind, number })
        };
        TunnelKind::ALL.into_iter().find_map(of_kind)
    }
}

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.number(), self.number)
    }
}

impl FromStr for TunnelId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let of_kind = |kind: TunnelKind| {
            let number = text.strip_prefix(kind.number())?.strip_prefix(' ')?.parse().ok()?;
            Some(Self { kind, number })
        };
        TunnelKind::ALL.into_iter().find_map(of_kind).ok_or_else(|| format!("{text:?} is no tunnel"))
    }
}

impl From<TunnelId> for String {
    fn from(id: TunnelId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for TunnelId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Returns the family that a device of ours carries, by its name.
pub(crate) fn family_of_device(name: LinkName) -> Family {
    let carries_ipv4 = |kind: TunnelKind| name.as_str().starts_with(kind.names().devices[0]);
    if TunnelKind::ALL.into_iter().any(carries_ipv4) { Family::Ipv4 } else { Family::Ipv6 }
}
