//! Report about each peer: its path from the last pass and its health from the prober.

use std::time::Duration;

use ipnet::IpNet;
use plan::health::{Finding, Health, PreferredPath};
use plan::{Path, PeerPath};
use serde::{Deserialize, Serialize};

/// Peer in the report: `{"subnet":"10.244.2.0/24","public_ip":"192.0.2.2","path":"vxlan",...,"health":{...}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerReport {
    #[serde(flatten)]
    pub(crate) peer: PeerPath,
    pub(crate) health: PeerHealthReport,
}

/// Health of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerHealthReport {
    /// Finding of the probes, or the state of the path: `healthy`, `tunnel lost`, `waiting`.
    pub(crate) finding: String,
    pub(crate) fault: bool,
    /// Observation, possible cause and remedy.
    pub(crate) reason: Option<String>,
    /// Path that the probes favour.
    pub(crate) preferred_path: Option<PreferredPath>,
    pub(crate) age_seconds: Option<u64>,
    pub(crate) latency_microseconds: Option<u64>,
    pub(crate) loss_per_mille: Option<u16>,
    /// Largest packet between pods that is known to arrive, bytes.
    pub(crate) mtu: Option<u16>,
}

/// Returns the state of a peer as a word, and true if it is a fault. An unreachable or waiting path counts whatever the
/// probes say.
pub(crate) fn state(peer: &PeerPath, finding: Option<&Finding>) -> (&'static str, bool) {
    match (peer.path, finding) {
        (Path::Unreachable, _) => ("unreachable", true),
        (Path::Waiting, _) => ("waiting", true),
        (_, Some(finding)) => (finding.name(), finding.is_fault()),
        (_, None) => (Finding::Unverified.name(), false),
    }
}

/// Returns the health of that peer. `healths` is sorted by subnet; an entry for another node address does not count.
pub(crate) fn health_of<'a>(healths: &'a [Health], peer: &PeerPath) -> Option<&'a Health> {
    let at = healths.binary_search_by_key(&peer.subnet, |health| health.peer.subnet).ok()?;
    healths.get(at).filter(|health| health.peer.node == peer.public_ip)
}

/// Returns true if the peer of that subnet has answered an echo along its present path.
pub(crate) fn has_answered(healths: &[Health], subnet: IpNet) -> bool {
    let at = healths.binary_search_by_key(&subnet, |health| health.peer.subnet);
    at.is_ok_and(|at| healths[at].latency.is_some())
}

/// Returns the reports of the peers; `now` is the time since the prober's start.
pub(crate) fn reported(peers: &[PeerPath], healths: &[Health], now: Duration) -> Vec<PeerReport> {
    let reported = |peer: &PeerPath| {
        let health = health_of(healths, peer);
        PeerReport { peer: peer.clone(), health: health_report(peer, health, now) }
    };
    peers.iter().map(reported).collect()
}

fn health_report(peer: &PeerPath, health: Option<&Health>, now: Duration) -> PeerHealthReport {
    let finding = health.map(|health| health.peer.finding);
    let (name, fault) = state(peer, finding.as_ref());
    let reason = match (peer.path, finding) {
        (Path::Unreachable, _) => {
            Some("it is not on the layer-2 segment of our uplink, and host-gw has no tunnel".into())
        }
        (Path::Waiting, _) => {
            Some("our uplink or tunnel device is missing, or the kernel refused its route".into())
        }
        (_, None | Some(Finding::Healthy)) => None,
        (_, Some(finding)) => Some(finding.to_string()),
    };
    PeerHealthReport {
        finding: name.into(),
        fault,
        reason,
        preferred_path: health.and_then(|health| health.peer.preferred_path),
        age_seconds: health.map(|health| now.saturating_sub(health.since).as_secs()),
        latency_microseconds: health.and_then(|health| health.latency).map(|after| after.as_micros() as u64),
        loss_per_mille: health
            .filter(|health| health.latency.is_some() || health.loss > 0)
            .map(|health| health.loss),
        mtu: health.and_then(|health| health.mtu),
    }
}

/// Counts the peers that probes have switched between direct and a tunnel since `before`, by their present path.
pub(crate) fn switches(before: &[PeerPath], now: &[PeerPath]) -> Vec<(Path, u64)> {
    let is_switch = |then: Path, now: Path| {
        (then == Path::Direct && now.is_tunnel()) || (then.is_tunnel() && now == Path::Direct)
    };
    let to = |path: Path| {
        let has_switched = |peer: &&PeerPath| {
            let at = || before.binary_search_by_key(&peer.subnet, |peer| peer.subnet);
            peer.by_evidence && peer.path == path && at().is_ok_and(|at| is_switch(before[at].path, path))
        };
        (path, now.iter().filter(has_switched).count() as u64)
    };
    Path::all().filter(|path| path.is_tunnel() || *path == Path::Direct).map(to).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use plan::TunnelKind;
    use plan::health::PeerHealth;

    use super::*;

    /// Peer with that number in its addresses.
    pub(crate) fn peer(number: u8, path: Path) -> PeerPath {
        PeerPath {
            subnet: format!("10.244.{number}.0/24").parse().unwrap(),
            public_ip: [192, 0, 2, number].into(),
            path,
            on_link: true,
            tunnel: None,
            by_evidence: true,
            born: 0,
        }
    }

    /// Health of the peer with that number.
    pub(crate) fn health(number: u8, finding: Finding) -> Health {
        let PeerPath { subnet, public_ip: node, .. } = peer(number, Path::Tunnel(TunnelKind::Vxlan));
        Health {
            peer: PeerHealth {
                subnet,
                node,
                uplink: "eth0".parse().unwrap(),
                finding,
                preferred_path: Some(PreferredPath::Direct),
                answers: None,
            },
            since: Duration::from_secs(10),
            latency: Some(Duration::from_micros(210)),
            loss: 15,
            mtu: Some(1450),
        }
    }

    #[test]
    fn each_peer_is_reported_with_its_health() {
        let silent = Finding::Silent { node: [192, 0, 2, 3].into() };
        let peers = [
            (2, Path::Direct),
            (3, Path::Tunnel(TunnelKind::Vxlan)),
            (4, Path::Tunnel(TunnelKind::Vxlan)),
            (5, Path::Unreachable),
        ];
        let peers = peers.map(|(number, path)| peer(number, path));
        let healths = [health(2, Finding::Healthy), health(3, silent), health(5, silent), health(9, silent)];
        let reported = reported(&peers, &healths, Duration::from_secs(75));
        let words: Vec<_> = reported.iter().map(|peer| (&*peer.health.finding, peer.health.fault)).collect();
        assert_eq!(
            words,
            [("healthy", false), ("silent", true), ("unverified", false), ("unreachable", true)]
        );
        assert_eq!(reported[0].health.reason, None);
        assert_eq!(reported[1].health.reason, Some(silent.to_string()));
        assert_eq!(reported[1].health.age_seconds, Some(65));
        assert_eq!(
            reported[2].health,
            PeerHealthReport { finding: "unverified".into(), ..Default::default() }
        );
        let json = serde_json::to_value(&reported[0]).unwrap();
        assert_eq!((&json["path"], &json["health"]["latency_microseconds"]), (&"direct".into(), &210.into()));
        assert_eq!(serde_json::from_value::<PeerReport>(json).unwrap(), reported[0]);
    }

    #[test]
    fn a_switch_is_a_new_path_of_the_same_peer() {
        use Path::{Direct, Waiting};
        const VXLAN: Path = Path::Tunnel(TunnelKind::Vxlan);
        let of = |paths: &[(u8, Path)]| -> Vec<PeerPath> {
            paths.iter().map(|(number, path)| peer(*number, *path)).collect()
        };
        let before = of(&[(2, Direct), (3, VXLAN), (4, VXLAN), (5, VXLAN), (6, Waiting)]);
        let now = of(&[(2, VXLAN), (3, Direct), (4, Direct), (5, VXLAN), (6, VXLAN), (7, Direct)]);
        assert_eq!(switches(&before, &now), [(VXLAN, 1), (Direct, 2)]);
        assert_eq!(switches(&now, &now), [(VXLAN, 0), (Direct, 0)]);
    }
}
