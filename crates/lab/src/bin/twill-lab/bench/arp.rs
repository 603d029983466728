//! Answers ARP for peers on the segment. Each peer has its own MAC: otherwise the daemon would report that one machine answers
//! for all.

use std::os::fd::{AsRawFd, OwnedFd};

use lab::Node;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};

use super::peers::{Peer, Place};

/// EtherType of ARP.
const ARP: [u8; 2] = [0x08, 0x06];
/// Start of a request: Ethernet, IPv4, length of both addresses, operation.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
/// Start of a reply, of the same shape.
const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

/// Answers at `node`, on a new thread, until its uplink is gone.
pub(super) fn answer(node: &Node, peers: u32) -> Result<(), String> {
    let open = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
    let opened = node.ns.within(|| open().and_then(|frames| Ok((frames, if_nametoindex("eth0")?))));
    let (frames, index) = opened.map_err(|error| format!("{}: {error}", node.name))?;
    std::thread::spawn(move || serve(&frames, index as usize, peers));
    Ok(())
}

fn serve(frames: &OwnedFd, index: usize, peers: u32) {
    let mut frame = [0; 2048];
    while let Ok((length, Some(at))) = recvfrom::<LinkAddr>(frames.as_raw_fd(), &mut frame) {
        if at.ifindex() == index
            && let Some(reply) = reply(&frame[..length], peers)
        {
            let _ = sendto(frames.as_raw_fd(), &reply, &at, MsgFlags::empty());
        }
    }
}

fn reply(frame: &[u8], peers: u32) -> Option<Vec<u8>> {
    if frame.get(12..14)? != ARP || frame.get(14..22)? != REQUEST {
        return None;
    }
    let (asker, target) = (frame.get(22..32)?, frame.get(38..42)?);
    let address = u32::from_be_bytes(target.try_into().ok()?);
    let number = address.checked_sub(u32::from(Peer(0).address(Place::First))).filter(|n| *n < peers)?;
    let mac: Vec<u8> =
        Peer(number).mac().split(':').map_while(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Some([&asker[..6], &mac, &ARP, &REPLY, &mac, target, asker].concat())
}
