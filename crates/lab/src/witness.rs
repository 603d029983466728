//! A test server that sends each client the address from which it sees it, and a client for that server. It serves
//! UDP and TCP over IPv4 and IPv6, and records what it receives.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::ns::Ns;
use crate::wait::patient;

/// Port of every witness, for UDP and TCP.
const PORT: u16 = 7071;
/// Maximum wait for input, after which a witness checks whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// Maximum time for an answer of a witness.
const ANSWER: Duration = Duration::from_secs(1);

/// Protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
}

/// A received datagram, or an accepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub protocol: Protocol,
    pub source: SocketAddr,
    /// Text of the datagram; empty for a connection.
    pub text: String,
}

type Log = Arc<Mutex<Vec<Received>>>;

/// A running server on port [`Witness::port`] of every address that its namespace has when it starts. On a TCP connection it
/// sends the client's address in a line, such as `192.168.100.11:4567`, and then echoes every byte.
#[derive(Debug)]
pub struct Witness {
    received: Log,
    over: Arc<AtomicBool>,
}

impl Witness {
    /// Starts a witness in `ns`. Panics if the namespace has one already.
    pub fn start(ns: &Ns) -> Self {
        let any = (Ipv6Addr::UNSPECIFIED, PORT);
        let addresses = addresses(ns);
        let (udp, tcp) = ns.within(|| {
            // Each address has a socket: a wildcard socket would answer from the address that the return route suggests.
            let sockets = addresses.iter().map(|address| UdpSocket::bind((*address, PORT)));
            (sockets.collect::<Result<Vec<_>, _>>(), TcpListener::bind(any))
        });
        let (udp, tcp) = (udp.expect("one witness per namespace"), tcp.expect("one witness per namespace"));
        tcp.set_nonblocking(true).expect("a socket option");
        let witness = Self { received: Log::default(), over: Arc::default() };
        for socket in udp {
            socket.set_read_timeout(Some(LOOK)).expect("a socket option");
            let (received, over) = (Arc::clone(&witness.received), Arc::clone(&witness.over));
            thread::spawn(move || answer_datagrams(&socket, &received, &over));
        }
        let (received, over) = (Arc::clone(&witness.received), Arc::clone(&witness.over));
        thread::spawn(move || accept(&tcp, &received, &over));
        witness
    }

    /// Returns the port of every witness, the same for UDP and TCP.
    pub const fn port() -> u16 {
        PORT
    }

    /// Returns everything received so far, the oldest first.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of received datagrams with exactly this text.
    pub fn count(&self, text: &str) -> usize {
        self.received()
            .iter()
            .filter(|received| received.protocol == Protocol::Udp && received.text == text)
            .count()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Returns all addresses of the namespace except link-local ones.
fn addresses(ns: &Ns) -> Vec<IpAddr> {
    let shown = ns.run("ip -o addr show scope global; ip -o addr show scope host");
    let words = shown.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Converts an IPv4-mapped address to IPv4: a dual-stack socket sees an IPv4 client at a mapped address.
fn plain(source: SocketAddr) -> SocketAddr {
    SocketAddr::new(source.ip().to_canonical(), source.port())
}

fn record(received: &Log, protocol: Protocol, source: SocketAddr, text: String) {
    received.lock().unwrap_or_else(PoisonError::into_inner).push(Received { protocol, source, text });
}

fn answer_datagrams(socket: &UdpSocket, received: &Log, over: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        record(received, Protocol::Udp, plain(from), text);
        // A client without a return route receives nothing, as in a real network.
        let _ = socket.send_to(format!("{}\n", plain(from)).as_bytes(), from);
    }
}

fn accept(listener: &TcpListener, received: &Log, over: &Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, from)) => {
                record(received, Protocol::Tcp, plain(from), String::new());
                let over = Arc::clone(over);
                thread::spawn(move || echo(stream, plain(from), &over));
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Sends the client its address, then echoes bytes until the client or the witness is gone.
fn echo(mut stream: TcpStream, from: SocketAddr, over: &AtomicBool) {
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(LOOK)));
    let mut alive = ready.and_then(|()| stream.write_all(format!("{from}\n").as_bytes())).is_ok();
    let mut buffer = [0; 64];
    while alive && !over.load(Ordering::Relaxed) {
        alive = match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
    }
}

/// Returns the address from which the witness at `to` sees a client in `from`. `None` means no answer within a
/// second.
pub fn seen_source(from: &Ns, protocol: Protocol, to: IpAddr) -> Option<SocketAddr> {
    from.within(|| match protocol {
        Protocol::Udp => ask_by_datagram(unspecified(to), to),
        Protocol::Tcp => ask_by_connection(to),
    })
}

/// Same as [`seen_source`], for a UDP client bound to the address and port `own`.
pub fn seen_source_of(from: &Ns, own: SocketAddr, to: IpAddr) -> Option<SocketAddr> {
    from.within(|| ask_by_datagram(own, to))
}

/// Sends the datagram `knock` from a new port to the witness at `to`, without waiting for an answer.
pub fn knock(from: &Ns, to: IpAddr) {
    from.within(|| {
        let socket = UdpSocket::bind(unspecified(to)).expect("a free port");
        // A send error means that the path is closed, which the caller does not need to know.
        let _ = socket.send_to(b"knock", (to, PORT));
    });
}

fn unspecified(like: IpAddr) -> SocketAddr {
    let any: IpAddr = if like.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    (any, 0).into()
}

fn ask_by_datagram(own: SocketAddr, to: IpAddr) -> Option<SocketAddr> {
    let socket = UdpSocket::bind(own).unwrap_or_else(|e| panic!("{own}: {e}"));
    socket.connect((to, PORT)).ok()?;
    socket.set_read_timeout(Some(patient(ANSWER))).ok()?;
    socket.send(b"who am I?").ok()?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer).ok()?;
    String::from_utf8_lossy(&buffer[..length]).trim().parse().ok()
}

fn ask_by_connection(to: IpAddr) -> Option<SocketAddr> {
    let stream = TcpStream::connect_timeout(&(to, PORT).into(), patient(ANSWER)).ok()?;
    stream.set_read_timeout(Some(patient(ANSWER))).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.trim().parse().ok()
}
