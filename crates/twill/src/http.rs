//! HTTP servers. TCP has `/healthz` and `/readyz` as in flannel (flannel-compat 9), and `/metrics`. The unix socket has
//! `/status` and `/diff`, for `twill` itself. Both read the report and ask the reconcile loop.

mod connection_limit;

use std::convert::Infallible;
use std::fmt::Write;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use plan::text::printed;
use rustix::fs::Mode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::warn;

use crate::diff::{self, Difference};
use crate::diff_requests::DiffRequests;
use crate::errno::{WithRemedy, WithSocketRemedy};
use crate::flags::Flags;
use crate::locks;
use crate::metrics::Metrics;
use crate::report::{Report, ReportSender};
use connection_limit::{Busy, ConnectionLimit, Service, Slot};

/// Maximum number of connections to the port from other addresses than this node's own.
const MAX_FOREIGN: usize = 48;
/// Maximum number of connections to the port from this node's own addresses, where probes come from.
const MAX_OWN: usize = 16;
/// Maximum number of connections to the unix socket.
const MAX_LOCAL: usize = 16;
/// Maximum time within which a client has to send its request header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum duration of a connection, from its acceptance to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of bytes of a request that are read.
const MAX_REQUEST_BYTES: usize = 16 << 10;
/// Maximum length of the answer to `/readyz`, bytes.
const MAX_READYZ_BYTES: usize = 64 << 10;

/// Listening sockets, with the handler of their requests.
pub(crate) struct Servers {
    tcp: Option<TcpListener>,
    unix: UnixListener,
    pub(crate) socket: PathBuf,
    handler: Handler,
}

/// Handler of requests, with the data for its answers.
#[derive(Clone)]
struct Handler {
    metrics: Arc<Metrics>,
    report_sender: ReportSender,
    diff_requests: DiffRequests,
    ready: Arc<Ready>,
    origin: Origin,
}

/// Last answer to `/readyz`, built once for each report and shared by all clients.
#[derive(Default)]
struct Ready(Mutex<Option<Page>>);

/// Answer to `/readyz`, with the report that it was made from.
struct Page {
    of: Arc<Report>,
    readiness: Result<(), String>,
    body: Bytes,
}

impl Ready {
    fn answer(&self, report: &Arc<Report>) -> Response<Full<Bytes>> {
        let readiness = report.readiness();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.as_ref().filter(|page| Arc::ptr_eq(&page.of, report) && page.readiness == readiness);
        let body = known.map(|page| page.body.clone()).unwrap_or_else(|| {
            let first = match &readiness {
                Ok(()) => "twill is ready".into(),
                Err(why) => format!("not ready: {}", printed(why)),
            };
            Bytes::from(readyz_body(&first, report))
        });
        let status = if readiness.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        *last = Some(Page { of: report.clone(), readiness, body: body.clone() });
        answer(status, TEXT, body)
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Origin of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Anyone who reaches the TCP port.
    Network,
    /// Anyone who reaches the TCP port from an address that has opened many connections in this second.
    Crowd,
    /// Root on this node, by the unix socket.
    Local,
}

/// Binds the addresses that the flags name. Returns an error if one cannot be bound, so that a port in use ends the
/// start.
pub(crate) async fn bind(
    flags: &Flags,
    metrics: &Arc<Metrics>,
    report_sender: &ReportSender,
    diff_requests: DiffRequests,
) -> anyhow::Result<Servers> {
    let tcp = match (&*flags.healthz_ip, flags.healthz_port) {
        (_, 0) => None,
        (ip, port) => {
            let what = || format!("listening on {ip}:{port} (--healthz-ip, --healthz-port)");
            Some(bind_tcp(ip, port).await.with_context(what)?)
        }
    };
    let unix = bind_unix(&flags.socket)
        .await
        .with_context(|| format!("listening on {} (--socket)", flags.socket.display()))?;
    let (metrics, report_sender) = (metrics.clone(), report_sender.clone());
    let handler =
        Handler { metrics, report_sender, diff_requests, ready: Arc::default(), origin: Origin::Local };
    Ok(Servers { tcp, unix, socket: flags.socket.clone(), handler })
}

async fn bind_tcp(ip: &str, port: u16) -> anyhow::Result<TcpListener> {
    // tokio would resolve a host name on a thread that it keeps, and that thread would not be confined.
    let addresses: Vec<SocketAddr> = (ip, port).to_socket_addrs()?.collect();
    TcpListener::bind(&*addresses).await.map_err(|error| {
        let daemon = locks::daemon_on_port(port).filter(|_| error.kind() == ErrorKind::AddrInUse);
        match daemon {
            Some(daemon) => anyhow!("{daemon} listens there: give one of them another --healthz-port"),
            None => anyhow!("{}", WithSocketRemedy(&error)),
        }
    })
}

async fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // A killed daemon leaves its socket behind, and a running one answers. Any other file is not ours.
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            bail!("a file that is no socket is there: remove it, or give this daemon another --socket");
        }
        Ok(_) => match UnixStream::connect(path).await {
            Ok(stream) => {
                bail!("{} listens there: stop it, or give this daemon another --socket", owner(&stream))
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error.into()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // The socket is never open to others, not even for a moment. A mode that is set later could hit a link put there
    // meanwhile.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    Ok(listener?)
}

/// Describes the process at the other end of a unix socket. A process of another pid namespace has no pid here.
fn owner(stream: &UnixStream) -> String {
    let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
    let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0) else {
        return "a process of another pid namespace".into();
    };
    locks::daemon_with_pid(pid)
        .map_or_else(|| format!("the process with pid {pid}"), |daemon| daemon.to_string())
}

impl Servers {
    /// Answers requests for the life of the process.
    pub(crate) async fn run(self) {
        let (local, network) = (self.handler.clone(), Handler { origin: Origin::Network, ..self.handler });
        // Clients from elsewhere must not keep a probe of this node, or root, from its answer.
        let [others, own, root] = [MAX_FOREIGN, MAX_OWN, MAX_LOCAL].map(ConnectionLimit::new);
        let tcp = async {
            let Some(tcp) = self.tcp else { return std::future::pending().await };
            let (mut refused, mut flooded) = (false, None);
            loop {
                let accepted = until(flooded, tcp.accept()).await;
                if flooded.is_some_and(|flooded| Instant::now() >= flooded) {
                    flooded = None;
                    // Without a filter every address is admitted already.
                    let _ = kernel::admit_requests(&tcp);
                }
                let Some(accepted) = accepted else { continue };
                let Some((stream, from)) = patiently(accepted, &mut refused).await else { continue };
                let from = from.ip().to_canonical();
                let (limit, source) =
                    if is_own(&stream, from) { (&own, None) } else { (&others, Some(from)) };
                let taken = limit.take(source, |slot, busy, service| {
                    let origin = if service == Service::Full { Origin::Network } else { Origin::Crowd };
                    start(stream, Handler { origin, ..network.clone() }, slot, busy)
                });
                if let Err(flood) = taken
                    && flooded.is_none()
                    // If the kernel refuses the filter, further connections are closed one by one.
                    && kernel::drop_requests(&tcp, &flood.sources).is_ok()
                {
                    flooded = Some(flood.until);
                }
                // Connections that are open are answered before the next one is accepted.
                tokio::task::yield_now().await;
            }
        };
        let unix = async {
            let mut refused = false;
            loop {
                let Some((stream, _)) = patiently(self.unix.accept().await, &mut refused).await else {
                    continue;
                };
                // Connections without an address are never too many in a second.
                let _ = root.take(None, |slot, busy, _| start(stream, local.clone(), slot, busy));
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(tcp, unix);
    }
}

/// Returns true if the client is this node itself. A connection to one of its own addresses comes from that address, or
/// from a loopback address.
fn is_own(stream: &TcpStream, from: IpAddr) -> bool {
    from.is_loopback() || stream.local_addr().is_ok_and(|own| own.ip().to_canonical() == from)
}

/// Returns the result of `future`, or `None` if it is not there at that time.
async fn until<T>(time: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match time {
        Some(time) => tokio::time::timeout_at(time.into(), future).await.ok(),
        None => Some(future.await),
    }
}

async fn patiently<A>(accepted: std::io::Result<A>, refused: &mut bool) -> Option<A> {
    if let Err(error) = &accepted {
        // The process has most likely run out of file descriptors, so the next attempt would fail at once.
        if !*refused {
            warn!("cannot accept connections, retrying: {}", WithRemedy(error));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    *refused = accepted.is_err();
    accepted.ok()
}

/// Answers requests on that connection, in a task of its own.
fn start<S>(stream: S, handler: Handler, slot: Slot, busy: Busy) -> tokio::task::AbortHandle
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = async move {
        let _slot = slot;
        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve_client(stream, handler, busy)).await;
    };
    tokio::spawn(connection).abort_handle()
}

async fn serve_client(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Handler, busy: Busy) {
    let answer = service_fn(|request: Request<Incoming>| {
        let (handler, busy) = (handler.clone(), busy.clone());
        async move {
            busy.store(true, Ordering::Relaxed);
            let answer = handler.handle(&request).await;
            busy.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_REQUEST_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    // A client may close the connection at any time.
    let _ = connection.await;
}

impl Handler {
    async fn handle(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match (self.origin, request.uri().path()) {
            (Origin::Network | Origin::Crowd, "/healthz") => {
                answer(StatusCode::OK, TEXT, "twill is running\n")
            }
            (Origin::Network | Origin::Crowd, "/readyz") => {
                self.ready.answer(&self.report_sender.borrow().clone())
            }
            (Origin::Crowd, "/metrics") => {
                let why = "this address has opened too many connections in this second: try again later\n";
                answer(StatusCode::TOO_MANY_REQUESTS, TEXT, why)
            }
            (Origin::Network, "/metrics") => {
                let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                answer(StatusCode::OK, open_metrics, self.metrics.text())
            }
            (Origin::Local, "/status") => {
                let report = self.report_sender.borrow().clone();
                let json = serde_json::to_string(&report.current()).unwrap_or_default();
                answer(StatusCode::OK, "application/json", json)
            }
            (Origin::Local, "/diff") => match self.diff_requests.diff().await {
                Some(ops) => {
                    let difference = Difference { format: diff::FORMAT, ops };
                    let json = serde_json::to_string(&difference).unwrap_or_default();
                    answer(StatusCode::OK, "application/json", json)
                }
                None => {
                    let why = self.report_sender.borrow().readiness().err();
                    let why = why.unwrap_or_else(|| "the reconcile loop is stalled".into());
                    answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not available: {why}\n"))
                }
            },
            _ => answer(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        }
    }
}

/// Returns the text: the readiness in the first line, then a lost store and the warnings. Peers never change the
/// readiness.
fn readyz_body(readiness: &str, report: &Report) -> String {
    /// Maximum number of warnings in the answer.
    const LINES: usize = 50;
    let mut body = format!("{readiness}\n");
    if let Some(lost) = &report.store_lost {
        let _ = writeln!(body, "store is lost; the last known leases stay in force: {lost}");
    }
    let mut shown = 0;
    for warning in report.warnings.iter().take(LINES) {
        let line = warning.to_string();
        // Room for the last line is kept.
        if body.len() + line.len() > MAX_READYZ_BYTES - 100 {
            break;
        }
        let _ = writeln!(body, "{line}");
        shown += 1;
    }
    if report.warnings.len() > shown {
        let _ = writeln!(body, "and {} more", report.warnings.len() - shown);
    }
    body
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

/// Answers one connection as a daemon does that has just started.
#[cfg(fuzzing)]
pub(crate) async fn fuzz(stream: tokio::io::DuplexStream, local: bool) {
    let (cause_sender, _trigger) = crate::trigger::channel();
    // Without a receiver `/diff` is answered at once.
    let (diff_requests, _) = crate::diff_requests::channel(cause_sender);
    let origin = if local { Origin::Local } else { Origin::Network };
    let (metrics, report_sender) = (Arc::new(Metrics::new()), crate::report::new_sender());
    let handler = Handler { metrics, report_sender, diff_requests, ready: Arc::default(), origin };
    serve_client(stream, handler, Busy::default()).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::new_sender;
    use crate::report::warnings::tests::warning;

    #[test]
    fn the_first_line_is_the_readiness_and_at_most_fifty_warnings_follow() {
        let warnings = (0..1000).map(|number| warning(format!("peer {number}: silent"))).collect();
        let lost = Some("refused".to_owned());
        let report = Report { warnings, store_lost: lost, ..Report::clone(&new_sender().borrow()) };
        let body = readyz_body("twill is ready", &report);
        let lines: Vec<&str> = body.lines().collect();
        assert_eq!((lines[0], lines[2], lines[51]), ("twill is ready", "peer 0: silent", "peer 49: silent"));
        assert!(lines[1].starts_with("store is lost"));
        assert_eq!(lines[52..], ["and 950 more"]);
    }

    #[test]
    fn readyz_has_at_most_64_kib_and_is_built_once_per_report() {
        let long = |number| warning(format!("{number} {}", "\u{1f600}".repeat(490)));
        let warnings = (0..50).map(long).collect();
        let report = Arc::new(Report { warnings, ..Report::clone(&new_sender().borrow()) });
        let body = readyz_body("twill is ready", &report);
        assert!(body.len() <= MAX_READYZ_BYTES && body.len() > MAX_READYZ_BYTES / 2, "{}", body.len());
        assert!(body.lines().last().unwrap().ends_with(" more"), "{body}");
        let ready = Ready::default();
        let built = || ready.0.lock().unwrap().as_ref().map(|page| page.body.as_ptr());
        ready.answer(&report);
        let first = built();
        ready.answer(&report);
        assert_eq!(built(), first);
        ready.answer(&Arc::new(Report::clone(&report)));
        assert_ne!(built(), first);
    }
}
