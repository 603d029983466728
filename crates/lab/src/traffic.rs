//! Opens new TCP connections from pod to pod at a steady rate: the traffic under which flannel refreshes neighbours.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::pod::Pod;

/// TCP port of the connections.
const PORT: u16 = 7070;
/// Maximum time to connect, and to wait for the far side's close.
const PATIENCE: Duration = Duration::from_secs(1);

/// Counts of connections, and the time they took in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficReport {
    pub made: u64,
    pub failed: u64,
    pub took: Duration,
}

/// Running traffic.
#[derive(Debug)]
pub struct Traffic {
    connector: JoinHandle<TrafficReport>,
    acceptor: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Traffic {
    /// Opens `per_second` connections a second for `span`. The far side closes each first, then the near side.
    pub fn start(from: &Pod, to: &Pod, per_second: u32, span: Duration) -> Self {
        let target = SocketAddr::from((to.ip(), PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let listener =
            to.ns.within(|| TcpListener::bind((any, PORT)).expect("one traffic per pod at a time"));
        listener.set_nonblocking(true).expect("a socket option");
        let over = Arc::clone(&stop);
        let acceptor = thread::spawn(move || accept(&listener, &over));
        let connector = from.ns.thread(move || connect(target, per_second, span));
        Self { connector, acceptor, stop }
    }

    /// Waits until the traffic ends and returns the counts.
    pub fn finish(self) -> TrafficReport {
        let report = self.connector.join().expect("the connector ends");
        self.stop.store(true, Ordering::Relaxed);
        self.acceptor.join().expect("the acceptor ends");
        report
    }
}

/// Accepts and closes connections. Closing first keeps TIME_WAIT on this side, so the connector never runs out of ports.
fn accept(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => drop(stream),
            Err(_) => thread::sleep(Duration::from_micros(200)),
        }
    }
}

fn connect(target: SocketAddr, per_second: u32, span: Duration) -> TrafficReport {
    let (start, step) = (Instant::now(), Duration::from_secs(1) / per_second);
    let mut report = TrafficReport { made: 0, failed: 0, took: Duration::ZERO };
    let mut due = start;
    while start.elapsed() < span {
        match TcpStream::connect_timeout(&target, PATIENCE).and_then(closed_by_peer) {
            Ok(()) => report.made += 1,
            Err(_) => report.failed += 1,
        }
        due += step;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    report.took = start.elapsed();
    report
}

fn closed_by_peer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read(&mut [0]).map(|_| ())
}
