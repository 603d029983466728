//! Harms to frames between nodes: the switch drops some, or a cable becomes a process that carries bare bytes. On such a cable a
//! checksum that was left to the device is never computed.

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

/// Maximum size of a frame in bytes.
const LONGEST_FRAME: usize = 1 << 16;
/// Maximum wait for a frame in milliseconds, after which the relay checks whether it is over.
const LOOK: i64 = 20;
const UDP: u8 = 17;
/// UDP port of tunnels.
const VXLAN: u16 = 8472;
/// Type of a frame that this host sends: `PACKET_OUTGOING` of packet(7).
const OUTGOING: u8 = 4;

/// An nft table that filters everything that the lab's switches forward; removed when dropped. A port is named after its host.
#[derive(Debug)]
pub struct Filter {
    table: String,
}

impl Filter {
    /// Drops frames that match one of `matches`, such as `ether type arp`.
    pub fn drops(matches: &[&str]) -> Self {
        static TABLES: AtomicUsize = AtomicUsize::new(0);
        let filter = Self { table: format!("bridge filter{}", TABLES.fetch_add(1, Ordering::Relaxed)) };
        let table = &filter.table;
        nft(&format!("table {table} {{ chain switch {{ type filter hook forward priority 0; }}; }}"));
        filter.now_drops(matches);
        filter
    }

    /// Replaces the rules: from now on the filter drops frames that match one of `matches`.
    pub fn now_drops(&self, matches: &[&str]) {
        let table = &self.table;
        let rules = matches.iter().map(|what| format!("add rule {table} switch {what} counter drop\n"));
        nft(&format!("flush chain {table} switch\n{}", rules.collect::<String>()));
    }

    /// Drops frames that match `what`, both ways between two hosts given by name.
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

/// Runs an nft script in the lab's own namespace, where the switches are.
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

/// A node's cable that runs through a process, as if the cards did not understand inner packets. Checksums left to the device are
/// never computed; only VXLAN's own outer checksum is made acceptable. It becomes an ordinary cable again when dropped.
#[derive(Debug)]
pub struct Relay {
    port: String,
    segment: char,
    over: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Puts a relay in place of the node's cable.
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
            // A frame that does not fit the cable is lost, as in a real network.
            let _ = sendto(to.as_raw_fd(), &frame[..length], address, MsgFlags::empty());
        }
    }
}

/// Makes the outer UDP checksum of a VXLAN frame acceptable: zero for IPv4, a correct one for IPv6.
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
        // The pseudo-header (addresses, length, protocol) is summed, too. A frame of 60 bytes or more has no padding behind the
        // packet.
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
