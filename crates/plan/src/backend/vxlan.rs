//! Backend vxlan (flannel-compat 6.1): one device per family. Each peer has a neighbour, an FDB entry and a route
//! through its VTEP address. Neighbour and FDB entry are permanent. Packets and `ip` output must be exactly as with
//! flannel.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::tunnel::{Direct, Encapsulation, End, Endpoint, PeerRows, Properties, SourceFilter};
use crate::family::Family;
use crate::fields::Fields;
use crate::mac::Mac;
use crate::marks::PROTOCOL;
use crate::name::LinkName;
use crate::state::{FdbEntry, LinkKind, Neighbour, Route, RoutePath, Vxlan};
use crate::tunnel_id::{TunnelId, TunnelKind};

/// UDP port of a network config that names none. It is the kernel's default, which flannel gets by sending no port.
pub const DEFAULT_PORT: u16 = 8472;

/// VNI of a network config that names none.
pub const DEFAULT_VNI: u32 = 1;

/// Properties of the tunnel. The overhead is that of outer Ethernet, IP, UDP and VXLAN headers. flannel takes 50 bytes for
/// IPv6, too (flannel-faults 44).
pub(super) const PROPERTIES: Properties =
    Properties { link_kind: "vxlan", overhead: [50, 70], placed, reach };

fn placed(tunnel: &Encapsulation, local: IpAddr, uplink: LinkName) -> LinkKind {
    match &tunnel.attributes {
        LinkKind::Vxlan(vxlan) => LinkKind::Vxlan(Vxlan { local, uplink: Some(uplink), ..vxlan.clone() }),
        other => other.clone(),
    }
}

fn reach(tunnel: &Encapsulation, peer: &Endpoint, port: Option<u16>, table: u32) -> PeerRows {
    let link = tunnel.device_name(Family::of(peer.local));
    let (vtep, mac) = (peer.subnet.network(), peer.mac);
    let (destination, path) = (peer.subnet, RoutePath::Via { gateway: vtep, link, onlink: true });
    let port = port.filter(|&port| Some(port) != tunnel.port);
    PeerRows {
        neighbour: Some(Neighbour { link, address: vtep, mac, unknown: None }),
        fdb: Some(FdbEntry { link, mac, remote: peer.local, port, unknown: None }),
        route: Route { table, destination, path, protocol: PROTOCOL, metric: 0, unknown: None },
    }
}

/// Options of the `Backend` object (flannel-compat 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VxlanOptions {
    pub vni: u32,
    pub port: u16,
    /// MTU of the outer packet in bytes; `None` means the uplink's.
    pub mtu: Option<u32>,
    pub gbp: bool,
    pub learning: bool,
    pub direct: Direct,
    /// True if pods have the uplink's MTU, and the tunnel's device reports where that is too much.
    pub direct_mtu: bool,
    pub source_filter: SourceFilter,
}

impl Default for VxlanOptions {
    fn default() -> Self {
        Self {
            vni: DEFAULT_VNI,
            port: DEFAULT_PORT,
            mtu: None,
            gbp: false,
            learning: false,
            direct: Direct::Never,
            direct_mtu: false,
            source_filter: SourceFilter::default(),
        }
    }
}

fn source_filter(fields: &Fields) -> Result<SourceFilter, String> {
    match fields.get::<String>("VxlanSourceFilter")?.as_deref() {
        None => Ok(SourceFilter::default()),
        Some("count") => Ok(SourceFilter::Count),
        Some("drop") => Ok(SourceFilter::Drop),
        Some("off") => Ok(SourceFilter::Off),
        Some(other) => Err(format!("key \"VxlanSourceFilter\": {other:?} is not count, drop or off")),
    }
}

/// Reads the `Backend` object's keys; `named` is the default of the object's type.
fn direct(fields: &Fields, named: Direct) -> Result<Direct, String> {
    let keys = ["DirectRouting", "VerifyDirect"];
    let [routing, verify] = keys.map(|key| fields.get::<bool>(key));
    let (routing, verify) = (routing?, verify?);
    if named == Direct::Verified {
        let against = keys.iter().zip([routing, verify]).find(|(_, value)| *value == Some(false));
        return match against {
            Some((key, _)) => Err(format!(
                "key {key:?}: false is against Type auto, which is verified direct routing: write Type vxlan"
            )),
            None => Ok(named),
        };
    }
    Ok(match (routing.unwrap_or(false), verify.unwrap_or(true)) {
        (false, _) => Direct::Never,
        (true, false) => Direct::OnLink,
        (true, true) => Direct::Verified,
    })
}

impl VxlanOptions {
    /// Reads the `Backend` object; `named` is the direct routing of its type. A zero port or MTU means the default. The
    /// error names the key.
    pub fn parse(fields: &Fields, named: Direct) -> Result<Self, String> {
        let vni: u32 = fields.get("VNI")?.unwrap_or(DEFAULT_VNI);
        if vni >= 1 << 24 {
            return Err(format!("key \"VNI\": {vni} does not fit in 24 bits"));
        }
        let mtu: Option<u32> = fields.get("MTU")?;
        let mtu = mtu.filter(|&mtu| mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| !(118..=65535).contains(mtu)) {
            return Err(format!("key \"MTU\": {mtu} is not between 118 and 65535"));
        }
        let direct = direct(fields, named)?;
        let direct_mtu = fields.get("DirectMTU")?.unwrap_or(false);
        if direct_mtu && direct == Direct::Never {
            return Err(
                "key \"DirectMTU\": without direct routing no packet of that size arrives: write Type auto"
                    .into(),
            );
        }
        Ok(Self {
            vni,
            port: fields.get("Port")?.filter(|&port: &u16| port != 0).unwrap_or(DEFAULT_PORT),
            mtu,
            gbp: fields.get("GBP")?.unwrap_or(false),
            learning: fields.get("Learning")?.unwrap_or(false),
            direct,
            direct_mtu,
            source_filter: source_filter(fields)?,
        })
    }

    /// Returns the tunnel with these options.
    pub(super) fn encapsulation(&self) -> Encapsulation {
        let Self { vni, port, mtu, gbp, learning, direct, direct_mtu, source_filter } = *self;
        let (local, uplink) = (Ipv4Addr::UNSPECIFIED.into(), None);
        Encapsulation {
            id: id(vni),
            port: Some(port),
            mtu,
            direct,
            direct_mtu,
            source_filter,
            attributes: LinkKind::Vxlan(Vxlan { vni, local, uplink, port, learning, gbp }),
        }
    }

    /// Returns the VTEP to announce in one family. A lease names no port while all nodes use the default port, so that it
    /// equals flannel's.
    pub(super) fn vtep(&self, mac: Mac, mut others: impl Iterator<Item = Vtep>) -> Vtep {
        let names_port = self.port != DEFAULT_PORT || others.any(|vtep| !vtep.has_default_port());
        let (vni, port) = (Some(self.vni).filter(|&vni| vni != 0), names_port.then_some(self.port));
        Vtep { vni, port, mac }
    }
}

fn id(vni: u32) -> TunnelId {
    TunnelId { kind: TunnelKind::Vxlan, number: vni }
}

/// Backend data of a vxlan node for one family, such as `{"VNI":1,"Port":4789,"VtepMAC":"c6:d2:32:6f:8f:44"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Vtep {
    /// VNI of the node's device. `None` means the reader's own VNI; flannel before 0.14 names none.
    #[serde(rename = "VNI", skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// UDP port on which the node listens; `None` if the lease does not name it. flannel's leases never do.
    #[serde(rename = "Port", skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// MAC of the VTEP. It is the last key and the only text, so that flannel finds it again in its annotation
    /// (flannel-compat 5.5).
    #[serde(rename = "VtepMAC")]
    pub mac: Mac,
}

impl Vtep {
    /// Reads backend data; `None` if it names no MAC. The error names the key.
    pub(super) fn parse(data: &Fields) -> Result<Option<Self>, String> {
        // In Go a missing number, null and 0 are the same, and no flannel compares a peer's VNI.
        let vni: Option<u32> = data.get("VNI")?.filter(|&vni| vni != 0);
        if let Some(vni) = vni.filter(|&vni| vni >= 1 << 24) {
            return Err(format!("key \"VNI\": {vni} does not fit in 24 bits"));
        }
        let port = data.get("Port")?.filter(|&port: &u16| port != 0);
        let mac: Option<Mac> = data.parsed("VtepMAC")?;
        Ok(mac.map(|mac| Self { vni, port, mac }))
    }

    /// Returns the end of the tunnel, for a reader whose own VNI is `own`.
    pub(super) fn end(self, own: u32) -> End {
        End { id: id(self.vni.unwrap_or(own)), mac: Some(self.mac), port: self.port }
    }

    /// Returns the VTEP with its default port named, or left out, as in `other`. Both forms mean the same.
    pub(super) fn spelled_as(self, other: Self) -> Self {
        let both = self.has_default_port() && other.has_default_port();
        if both { Self { port: other.port, ..self } } else { self }
    }

    fn has_default_port(self) -> bool {
        self.port.is_none_or(|port| port == DEFAULT_PORT)
    }
}
