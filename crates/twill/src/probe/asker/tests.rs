//! What the loop does with what it knows, without any peer.

use plan::PeerPath;
use plan::input::{Former, Node, Uplink};
use plan::lease::Subnet;

use super::*;

fn path(path: Path) -> PeerPath {
    PeerPath {
        subnet: "10.244.2.0/24".parse().unwrap(),
        public_ip: [192, 0, 2, 2].into(),
        path,
        on_link: true,
        tunnel: None,
        by_evidence: true,
    }
}

fn targets(uplink: &str) -> Targets {
    let node = Node {
        uplink: Uplink::new(uplink.parse().unwrap(), 1500),
        subnet: Subnet { ipv4: None, ipv6: None },
        vtep: None,
        vtep_v6: None,
        former: Former::default(),
        foreign_vnis: Vec::new(),
        foreign_firewall: false,
        by_nexthop: false,
    };
    let peers = Arc::new(vec![path(Path::Direct)]);
    Targets { node: Some(node), mac: None, peers, suspect: false, links: 0, mtu: 1500 }
}

struct Loop {
    asker: Asker,
    targets: watch::Sender<Targets>,
    healths: watch::Receiver<Healths>,
    _wake: UnixStream,
}

fn new() -> Loop {
    let (targets, heard) = watch::channel(targets("none0"));
    let (tell, healths) = watch::channel(Healths::default());
    let (_wake, woken) = UnixStream::pair().unwrap();
    let bell = crate::trigger::channel().0;
    let asker = Asker::new(Pace::OnChange, bell, (heard, woken), tell, Post::new([1, 2]));
    Loop { asker, targets, healths, _wake }
}

#[test]
fn a_way_that_was_chosen_by_evidence_is_always_watched() {
    let later = Duration::from_secs(3600);
    let local = Arc::new(Local { uplink: "eth0".parse().unwrap(), mtu: 1500 });
    let asked = |peer: PeerPath, pace| {
        Peer::new(Shared::from(peer), local.clone(), Duration::ZERO).is_asked_on(pace, later)
    };
    assert!(asked(path(Path::Direct), Pace::OnChange));
    assert!(!asked(path(Path::Vxlan), Pace::OnChange));
    assert!(!asked(PeerPath { by_evidence: false, ..path(Path::Direct) }, Pace::OnChange));
    assert!(asked(path(Path::Vxlan), Pace::Periodic));
}

#[test]
fn what_is_known_of_another_uplink_is_not_told() {
    let mut all = new();
    all.asker.follow();
    all.asker.publish(true, Duration::ZERO);
    let of_this = all.healths.borrow_and_update().clone();
    all.asker.follow();
    assert!(!all.healths.has_changed().unwrap(), "nothing is new");
    all.targets.send_replace(targets("none1"));
    all.asker.follow();
    assert!(all.healths.has_changed().unwrap());
    assert_eq!((of_this.len(), all.healths.borrow().len()), (1, 1));
}

#[test]
fn once_nobody_asks_nothing_is_known() {
    let mut all = new();
    all.asker.follow();
    all.asker.publish(true, Duration::ZERO);
    assert_eq!(all.healths.borrow().len(), 1);
    drop(all.asker);
    assert!(all.healths.borrow().is_empty());
}
