//! Captures packets and returns them as tcpdump prints them. Debian's tcpdump changes its user when it runs as root, which a user
//! namespace of one user forbids. Therefore a packet socket feeds it the bytes; only tcpdump decodes them.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::enter;
use crate::lines::{Line, Lines};
use crate::ns::Ns;
use crate::wait::until;

/// Maximum wait for a packet in milliseconds, after which the feeder checks whether the capture is over.
const QUIET: i64 = 20;
/// Maximum size of a packet in bytes.
const LONGEST_PACKET: usize = 1 << 18;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    lines: Lines,
    over: Arc<AtomicBool>,
    feeder: JoinHandle<()>,
}

impl Capture {
    /// Starts a capture on `device`. `args` are further arguments of tcpdump, such as `["-T", "vxlan", "udp"]`. Every packet
    /// after the return is captured.
    pub fn start(ns: &Ns, device: &str, args: &[&str]) -> Self {
        let (packets, index) = ns.within(|| open(device));
        let mut command = tcpdump();
        command.args(["-r", "-", "-nn", "-e", "-l"]).args(args).stdin(Stdio::piped());
        let mut lines = Lines::start(command);
        let stdin = lines.stdin().expect("a pipe was asked for");
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let feeder = thread::spawn(move || feed(&packets, index, &stop, stdin));
        let reading = lines.wait_for(Duration::from_secs(5), |line| line.contains("reading from"));
        assert!(reading, "tcpdump says: {:?}", lines.all());
        Self { lines, over, feeder }
    }

    /// Returns the packets so far, one line each; tcpdump's line about an inner packet is joined to its outer packet.
    pub fn packets(&self) -> Vec<String> {
        joined(&self.lines.all())
    }

    /// Returns true if a packet, seen already or within `limit`, satisfies `wanted`.
    pub fn wait_for(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> bool {
        until(limit, || self.packets().iter().any(|packet| wanted(packet)).then_some(())).is_some()
    }

    /// Ends the capture and returns all packets.
    pub fn stop(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.feeder.join();
        joined(&self.lines.finish())
    }
}

/// Builds the tcpdump command. Reading a pipe needs no rights, so in a user namespace tcpdump runs as nobody in a nested one.
fn tcpdump() -> Command {
    let mut command = Command::new(if enter::own_user() { "unshare" } else { "tcpdump" });
    command.args(if enter::own_user() { ["--user", "tcpdump"] } else { ["-Z", "root"] });
    command
}

fn open(device: &str) -> (OwnedFd, usize) {
    let index = if_nametoindex(device).unwrap_or_else(|e| panic!("{device}: {e}"));
    let flags = SockFlag::SOCK_CLOEXEC;
    let packets =
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).expect("a packet socket");
    setsockopt(&packets, sockopt::ReceiveTimeout, &TimeVal::milliseconds(QUIET)).expect("a socket option");
    (packets, index as usize)
}

/// Writes a pcap header, then each packet of `device`, until the capture is over and no packet is left. A write fails only if
/// tcpdump is gone, which its missing lines will show.
fn feed(packets: &OwnedFd, device: usize, over: &AtomicBool, mut pcap: ChildStdin) {
    let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, LONGEST_PACKET as u32, 1];
    let mut alive = pcap.write_all(&header.map(u32::to_ne_bytes).concat()).is_ok();
    let mut buffer = vec![0; LONGEST_PACKET];
    while alive {
        match recvfrom::<LinkAddr>(packets.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) if from.ifindex() == device => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let record = [now.as_secs() as u32, now.subsec_micros(), length as u32, length as u32];
                let written = pcap.write_all(&record.map(u32::to_ne_bytes).concat());
                alive = written.and_then(|()| pcap.write_all(&buffer[..length])).is_ok();
            }
            Ok(_) => {}
            Err(_) if over.load(Ordering::Relaxed) => break,
            Err(_) => {}
        }
    }
}

fn joined(lines: &[Line]) -> Vec<String> {
    let mut packets: Vec<String> = Vec::new();
    for text in lines.iter().map(|line| line.text.as_str()).filter(|text| !text.is_empty()) {
        match packets.last_mut() {
            _ if is_stamped(text) => packets.push(text.to_owned()),
            Some(packet) => {
                packet.push(' ');
                packet.push_str(text.trim_start());
            }
            None => {}
        }
    }
    packets
}

/// Returns true if the line begins with a time such as "03:12:45.123456 ". The line of an inner packet may begin with a MAC
/// address, which has no such dot.
fn is_stamped(text: &str) -> bool {
    text.as_bytes().get(8) == Some(&b'.') && text.as_bytes().get(2) == Some(&b':')
}
