//! What befalls frames between the cables: the switch drops some, or a cable becomes a process that carries bare bytes, so that a
//! checksum which was left to the devices is never made. It harms only; what comes of it is for others to see.

use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::node::Node;
use crate::ns::ip_batch;

const LONGEST_FRAME: usize = 1 << 16;
const LOOK: i64 = 20;
const UDP: u8 = 17;
const VXLAN: u16 = 8472;
/// PACKET_OUTGOING
const OUTGOING: u8 = 4;

/// Rules of nft for all that the lab's switches forward; gone when dropped. A port is called as its host.
#[derive(Debug)]
pub struct Filter {
    table: String,
}

impl Filter {
    /// Drops what matches one of these, such as `ether type arp`.
    pub fn drops(matches: &[&str]) -> Self {
        static TABLES: AtomicUsize = AtomicUsize::new(0);
        let filter = Self { table: format!("bridge filter{}", TABLES.fetch_add(1, Ordering::Relaxed)) };
        let table = &filter.table;
        nft(&format!("table {table} {{ chain switch {{ type filter hook forward priority 0; }}; }}"));
        filter.now_drops(matches);
        filter
    }

    /// What it drops from now on, in place of the former.
    pub fn now_drops(&self, matches: &[&str]) {
        let table = &self.table;
        let rules = matches.iter().map(|what| format!("add rule {table} switch {what} counter drop\n"));
        nft(&format!("flush chain {table} switch\n{}", rules.collect::<String>()));
    }

    /// Both ways between two hosts, given by name, what matches.
    pub fn between(one: &str, other: &str, what: &str) -> Self {
        let way = |from: &str, to: &str| format!("iifname {from} oifname {to} {what}");
        Self::drops(&[&way(one, other), &way(other, one)])
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // While a failed test unwinds, a second panic would hide the first one.
        if !thread::panicking() {
            nft(&format!("delete table {}", self.table));
        }
    }
}

/// In the lab's own namespace, where the switches are.
fn nft(script: &str) {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("nft starts");
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    let _ = stdin.write_all(script.as_bytes());
    drop(stdin);
    let out = child.wait_with_output().expect("nft ends");
    assert!(out.status.success(), "{}in:\n{script}", String::from_utf8_lossy(&out.stderr));
}

/// A node's cable that is a process: what is left to the device is never done, but that VXLAN's own checksum is as if it were
/// right. So it is with cards that know nothing of what is inside. An ordinary cable again when dropped.
#[derive(Debug)]
pub struct Relay {
    port: String,
    segment: char,
    over: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl Relay {
    pub fn of(node: &Node) -> Self {
        let (port, segment) = (node.name.clone(), node.segment);
        ip_batch(
            &[],
            &format!(
                "link set {port} nomaster\n\
                 link add {port}r type veth peer name {port}s\n\
                 link set {port}r up\nlink set {port}s master seg{segment} up\n"
            ),
        );
        let over = Arc::new(AtomicBool::new(false));
        let ends = [port.clone(), format!("{port}r")].map(|device| Arc::new(open(&device)));
        let way = |from: usize, to: usize| {
            let (from, to, over) = (Arc::clone(&ends[from]), Arc::clone(&ends[to]), Arc::clone(&over));
            thread::spawn(move || carry(&from, &to, &over))
        };
        let ways = vec![way(0, 1), way(1, 0)];
        Self { port, segment, over, ways }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for way in self.ways.drain(..) {
            let _ = way.join();
        }
        let (port, segment) = (&self.port, self.segment);
        if !thread::panicking() {
            ip_batch(&[], &format!("link delete {port}r\nlink set {port} master seg{segment}\n"));
        }
    }
}

type End = (OwnedFd, LinkAddr);

fn open(device: &str) -> End {
    let mut links = getifaddrs().expect("the list of links").filter(|link| link.interface_name == device);
    let address = links.find_map(|link| link.address?.as_link_addr().copied()).expect("a link-layer address");
    let frames = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
    let frames = frames.expect("a packet socket");
    bind(frames.as_raw_fd(), &address).unwrap_or_else(|e| panic!("{device}: {e}"));
    setsockopt(&frames, sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK)).expect("a socket option");
    (frames, address)
}

fn carry((from, _): &End, (to, address): &End, over: &AtomicBool) {
    let mut frame = vec![0; LONGEST_FRAME];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, Some(source))) = recvfrom::<LinkAddr>(from.as_raw_fd(), &mut frame) else { continue };
        if source.pkttype() != OUTGOING {
            forgo_outer_checksum(&mut frame[..length]);
            // What does not fit the cable is lost, as it is in life.
            let _ = sendto(to.as_raw_fd(), &frame[..length], address, MsgFlags::empty());
        }
    }
}

/// Of UDP over IPv4 it may be left out; over IPv6 it has to be made anew.
fn forgo_outer_checksum(frame: &mut [u8]) {
    let at = match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.get(14) == Some(&0x45) && frame.get(23) == Some(&UDP) => 34,
        Some([0x86, 0xdd]) if frame.get(20) == Some(&UDP) => 54,
        _ => return,
    };
    if frame.get(at + 2..at + 4) != Some(&VXLAN.to_be_bytes()) || frame.len() < at + 8 {
        return;
    }
    frame[at + 6..at + 8].fill(0);
    if at == 54 {
        // Addresses, length and protocol are summed with it; a frame of 60 bytes or more has nothing behind the packet.
        let words =
            frame[22..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let mut sum = words.sum::<u32>() + (frame.len() - at) as u32 + u32::from(UDP);
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let checksum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
        frame[at + 6..at + 8].copy_from_slice(&checksum.to_be_bytes());
    }
}
