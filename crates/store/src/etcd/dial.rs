//! Connection to one etcd server: TCP, with TLS if the endpoint begins with `https://`. A connection that ends is not renewed
//! here: a session is one connection from one source address.

use std::io;
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::Channel;
use futures_util::future::select_ok;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

use super::{EtcdOptions, error_text, tls};

/// Timeout for finding the protocol of a server whose reply was not understood.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_millis(500);
/// Timeout for the resolution of a host name. The resolver asks the second name server after 5 s.
const RESOLUTION: Duration = Duration::from_secs(6);
/// Maximum time until the next address of a host is tried beside one that has not answered yet.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// Socket of a session. It serves to check if its source address is still this node's, and to shut the connection down.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    source: SocketAddr,
}

impl Connection {
    /// Returns false if the source address was removed from this node, so that no reply can arrive any more.
    pub(super) fn has_source(&self) -> bool {
        let probe = UdpSocket::bind(SocketAddr::new(self.source.ip(), 0));
        match (self.source, probe) {
            // A link-local address can be bound with its interface only, so it is not checked.
            (SocketAddr::V6(source), _) if source.scope_id() != 0 => true,
            (_, Err(error)) => error.kind() != io::ErrorKind::AddrNotAvailable,
            (_, Ok(_)) => true,
        }
    }

    /// Shuts the connection down, so that every request on it fails at once.
    pub(super) fn shut_down(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Reason why there is no connection.
pub(super) struct Failure {
    pub(super) why: String,
    /// True if an answer did not come in time.
    pub(super) timed_out: bool,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, timed_out: false }
    }
}

impl Failure {
    fn hanging(why: String) -> Self {
        Self { why, timed_out: true }
    }
}

/// Returns the words for a server that did not answer within this time.
pub(super) fn timeout_text(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs_f32())
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects to the server of an endpoint such as `https://10.0.0.5:2379`; without a scheme it is plain HTTP. `limit` is the
/// timeout of the connection and that of the TLS handshake; the resolution of the host name has its own.
///
/// Returns an error if the endpoint is not a URL, or if the connection or the TLS handshake fails.
pub(super) async fn dial(
    endpoint: &str,
    options: &EtcdOptions,
    limit: Duration,
) -> Result<(Channel, Arc<Connection>), Failure> {
    let (uri, is_tls) = parse(endpoint)?;
    let tcp = connect(&uri, limit).await?;
    let socket = SockRef::from(&tcp).try_clone().map_err(|error| error.to_string())?;
    let source = tcp.local_addr().map_err(|error| error.to_string())?;
    let io: Box<dyn Io> = if is_tls {
        let config = tls::config(options)?;
        let handshake = tokio_rustls::TlsConnector::from(config).connect(name(&uri)?, tcp);
        match timeout(limit, handshake).await.map_err(|_| Failure::hanging(timeout_text(limit)))? {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2) => Box::new(stream),
            Ok(_) => {
                return Err("it does not speak HTTP/2 over TLS. Is it etcd's client port?".to_owned().into());
            }
            Err(error) => return Err(error_text::with_advice(tls::refusal(&error)).into()),
        }
    } else {
        Box::new(tcp)
    };
    let once = Arc::new(Mutex::new(Some(TokioIo::new(io))));
    let connector = service_fn(move |_: Uri| {
        let io = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(io.ok_or_else(|| io::Error::other("the connection was closed")))
    });
    let channel = timeout(limit, Endpoint::from(uri).connect_with_connector(connector)).await;
    let channel = channel.map_err(|_| Failure::hanging(timeout_text(limit)))?;
    let channel = channel.map_err(|error| error_text::transport(&error))?;
    Ok((Channel::Tonic(channel), Arc::new(Connection { socket, source })))
}

/// Adds advice to the error `why`. A second connection finds out if the protocol is wrong or our certificate refused.
pub(super) async fn diagnose(endpoint: &str, options: &EtcdOptions, why: String) -> String {
    let Ok((uri, is_tls)) = parse(endpoint) else { return why };
    if is_tls && let Ok(Some(alert)) = timeout(DIAGNOSIS_TIMEOUT, alert(&uri, options)).await {
        return error_text::with_advice(alert);
    }
    let advice = match timeout(DIAGNOSIS_TIMEOUT, first_reply_bytes(&uri, is_tls)).await {
        // A TLS record of version 3 begins so: an alert or a handshake message.
        Ok(Some([21 | 22, 3, ..])) if !is_tls => "It speaks TLS: write https:// in --etcd-endpoints",
        Ok(Some([b'H', b'T', b'T', b'P', b'/'])) if is_tls => {
            "It does not speak TLS: write http:// in --etcd-endpoints"
        }
        _ => return why,
    };
    format!("{why}. {advice}")
}

/// Returns the TLS alert with which the server ends a connection after a successful handshake. Servers that do not accept our
/// certificate do so.
async fn alert(uri: &Uri, options: &EtcdOptions) -> Option<String> {
    let (config, tcp) = (tls::config(options).ok()?, connect(uri, DIAGNOSIS_TIMEOUT).await.ok()?);
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name(uri).ok()?, tcp).await.ok()?;
    let mut byte = [0];
    loop {
        match stream.read(&mut byte).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(tls::refusal(&error)),
        }
    }
}

/// Returns the first bytes of the reply to a harmless request, by TLS or by plain HTTP.
async fn first_reply_bytes(uri: &Uri, is_tls: bool) -> Option<[u8; 5]> {
    let mut tcp = connect(uri, DIAGNOSIS_TIMEOUT).await.ok()?;
    if is_tls {
        tcp.write_all(b"GET /version HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n").await.ok()?;
    } else {
        tcp.write_all(&tls::hello()?).await.ok()?;
    }
    let mut answer = [0; 5];
    tcp.read_exact(&mut answer).await.ok()?;
    Some(answer)
}

/// Returns the URL of an endpoint, and true if it uses TLS.
fn parse(endpoint: &str) -> Result<(Uri, bool), String> {
    let full = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let uri: Uri = full.parse().map_err(|error| format!("not a URL: {error}"))?;
    match uri.scheme_str() {
        Some("https") => Ok((uri, true)),
        Some("http") => Ok((uri, false)),
        other => Err(format!("scheme {:?} is neither http nor https", other.unwrap_or_default())),
    }
}

async fn connect(uri: &Uri, limit: Duration) -> Result<TcpStream, Failure> {
    first(&resolve(uri).await?, limit).await
}

/// Connects to the first of these addresses that answers. Each one has at least the time `limit`.
async fn first(addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, Failure> {
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let next = NEXT_ADDRESS.min(limit / count);
    let attempts = addresses.iter().zip(0_u32..).map(|(&address, nth)| {
        Box::pin(async move {
            sleep(next * nth).await;
            TcpStream::connect(address).await
        })
    });
    let limit = limit + next * (count - 1);
    match timeout(limit, select_ok(attempts)).await {
        Ok(Ok((tcp, _))) => {
            tcp.set_nodelay(true).map_err(|error| error.to_string())?;
            Ok(tcp)
        }
        Ok(Err(error)) => Err(error.to_string().into()),
        Err(_) if count == 1 => Err(Failure::hanging(timeout_text(limit))),
        Err(_) => {
            let all: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
            Err(Failure::hanging(format!("{} from any of {}", timeout_text(limit), all.join(", "))))
        }
    }
}

/// Returns the addresses of the endpoint's host, at least one.
async fn resolve(uri: &Uri) -> Result<Vec<SocketAddr>, Failure> {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let unresolved = || {
        let (name, limit) = (host(uri), RESOLUTION.as_secs());
        format!(
            "the name {name} was not resolved within {limit} s: check the name servers in /etc/resolv.conf"
        )
    };
    let found = timeout(RESOLUTION, lookup_host((host(uri), port))).await;
    let found = found.map_err(|_| Failure::hanging(unresolved()))?.map_err(|error| error.to_string())?;
    match found.collect::<Vec<_>>() {
        none if none.is_empty() => Err(format!("the name {} has no address", host(uri)).into()),
        addresses => Ok(addresses),
    }
}

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// Returns the name that the server's certificate must have.
fn name(uri: &Uri) -> Result<ServerName<'static>, String> {
    let host = host(uri);
    ServerName::try_from(host.to_owned()).map_err(|error| format!("host {host:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a listener that answers no connection, since its queue is full, and the connections that fill it.
    fn dead() -> (Socket, Vec<Socket>, SocketAddr) {
        use socket2::{Domain, Type};
        let tcp = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = tcp();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let at = listener.local_addr().unwrap().as_socket().unwrap();
        let filling = std::iter::repeat_with(|| {
            let socket = tcp();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&at.into());
            socket
        });
        let filling = filling.take(8).collect();
        (listener, filling, at)
    }

    #[test]
    fn an_address_that_does_not_answer_holds_up_the_next_one_for_a_moment() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let live = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (_listener, _filling, dead) = dead();
        let limit = Duration::from_millis(1500);
        runtime.block_on(async {
            let live = live.local_addr().unwrap();
            let begun = std::time::Instant::now();
            let tcp = first(&[dead, live], limit).await.ok().unwrap();
            assert_eq!(tcp.peer_addr().unwrap(), live);
            assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
            let Failure { why, timed_out } = first(&[dead], limit).await.err().unwrap();
            assert_eq!((why.as_str(), timed_out), ("no answer within 1.5 s", true));
            let Failure { why, .. } = first(&[dead, dead], limit).await.err().unwrap();
            assert_eq!(why, format!("no answer within 1.8 s from any of {dead}, {dead}"));
        });
    }
}
