//! Sends a packet to a pod of every peer, through its next hop. Counts the packets that arrive, and those that the kernel could
//! not send because its neighbour table was full.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::Duration;

use lab::Lab;

use super::options::Case;
use super::peers::Peer;

/// UDP port of the packets.
const PORT: u16 = 9;
/// Time without a packet after which the receiver stops.
const SILENCE: Duration = Duration::from_secs(2);
/// Number of packets before a pause, so that the receiver does not lose any.
const BURST: u32 = 20;
/// Pause after each burst.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packets {
    pub(super) arrived: u32,
    /// Packets that the kernel refused at once.
    pub(super) refused: u32,
}

pub(super) fn run(lab: &Lab, case: &Case) -> Result<Packets, String> {
    let (from, to) = (&lab.node(1).ns, &lab.node(2).ns);
    // Node 2 has the addresses of all next hops and all pods.
    to.batch("route add local 172.17.0.0/16 dev lo\nroute add local 10.0.0.0/8 dev lo\n");
    let (listening, listens) = mpsc::channel();
    let peers = case.peers;
    let receiver = to.thread(move || receive(peers, &listening));
    listens.recv().map_err(|_| "node 2 cannot listen".to_owned())?;
    let refused = from.within(|| send(peers)).map_err(|e| format!("sending a packet to each peer: {e}"))?;
    let arrived = receiver.join().map_err(|_| "node 2 stopped listening".to_owned())?;
    let arrived = arrived.map_err(|e| format!("listening on node 2: {e}"))?;
    Ok(Packets { arrived, refused })
}

fn receive(peers: u32, listening: &mpsc::Sender<()>) -> std::io::Result<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    socket.set_read_timeout(Some(SILENCE))?;
    let _ = listening.send(());
    let (mut seen, mut number) = (vec![false; peers as usize], [0; 4]);
    while seen.contains(&false) && socket.recv(&mut number).is_ok() {
        if let Some(one) = seen.get_mut(u32::from_be_bytes(number) as usize) {
            *one = true;
        }
    }
    Ok(u32::try_from(seen.iter().filter(|seen| **seen).count()).unwrap_or(peers))
}

/// Returns the number of refused packets.
fn send(peers: u32) -> std::io::Result<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut refused = 0;
    for number in 0..peers {
        let pod = Ipv4Addr::from(u32::from(Peer(number).subnet()) + 2);
        let sent = socket.send_to(&number.to_be_bytes(), SocketAddr::from((pod, PORT)));
        refused += u32::from(sent.is_err());
        if number % BURST == 0 {
            sleep(PAUSE);
        }
    }
    Ok(refused)
}
