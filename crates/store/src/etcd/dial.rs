//! Connection to one etcd server: TCP, with TLS if the endpoint begins with `https://`. A connection that ends is not renewed
//! here: a session is one connection from one source address.

use std::io;
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::Channel;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Endpoint, Uri};
use tower::{ServiceExt, service_fn};

use super::{EtcdOptions, tls, words};

/// Timeout for finding the protocol of a server whose reply was not understood.
const DIAGNOSIS: Duration = Duration::from_millis(500);

/// Socket of a session. It serves to check if its source address is still this node's, and to shut the connection down.
#[derive(Debug)]
pub(super) struct Line {
    socket: Socket,
    source: SocketAddr,
}

impl Line {
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
    pub(super) fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects to the server of an endpoint such as `https://10.0.0.5:2379`; without a scheme it is plain HTTP.
///
/// Returns an error if the endpoint is not a URL, or if the connection or the TLS handshake fails.
pub(super) async fn dial(endpoint: &str, options: &EtcdOptions) -> Result<(Channel, Arc<Line>), String> {
    let (uri, is_tls) = parse(endpoint)?;
    let tcp = connect(&uri).await?;
    let socket = SockRef::from(&tcp).try_clone().map_err(|error| error.to_string())?;
    let source = tcp.local_addr().map_err(|error| error.to_string())?;
    let io: Box<dyn Io> = if is_tls {
        let config = tls::config(options)?;
        match tokio_rustls::TlsConnector::from(config).connect(name(&uri)?, tcp).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2) => Box::new(stream),
            Ok(_) => return Err("it does not speak HTTP/2 over TLS. Is it etcd's client port?".into()),
            Err(error) => return Err(words::with_advice(tls::refusal(&error))),
        }
    } else {
        Box::new(tcp)
    };
    let once = Arc::new(Mutex::new(Some(TokioIo::new(io))));
    let connector = service_fn(move |_: Uri| {
        let io = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(io.ok_or_else(|| io::Error::other("the connection was closed")))
    });
    let channel = Endpoint::from(uri).connect_with_connector(connector).await;
    let channel = channel.map_err(|error| words::transport(&error))?;
    Ok((Channel::Tonic(channel), Arc::new(Line { socket, source })))
}

/// Adds advice to the error `why`. A second connection finds out if the protocol is wrong or our certificate refused.
pub(super) async fn diagnose(endpoint: &str, options: &EtcdOptions, why: String) -> String {
    let Ok((uri, is_tls)) = parse(endpoint) else { return why };
    if is_tls && let Ok(Some(alert)) = timeout(DIAGNOSIS, alert(&uri, options)).await {
        return words::with_advice(alert);
    }
    let advice = match timeout(DIAGNOSIS, answer(&uri, is_tls)).await {
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
    let (config, tcp) = (tls::config(options).ok()?, connect(uri).await.ok()?);
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
async fn answer(uri: &Uri, is_tls: bool) -> Option<[u8; 5]> {
    let mut tcp = connect(uri).await.ok()?;
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

async fn connect(uri: &Uri) -> Result<TcpStream, String> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let io = http.oneshot(uri.clone()).await.map_err(|error| words::deepest(&error))?;
    Ok(io.into_inner())
}

/// Returns the name that the server's certificate must have.
fn name(uri: &Uri) -> Result<ServerName<'static>, String> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|error| format!("host {host:?}: {error}"))
}
