//! The servers: `/healthz`, `/readyz` and `/metrics` on TCP as flannel has them (flannel-compat 9), `/status` and `/diff`
//! on the unix socket for `twill` alone. They read the board, ask the rounds, and change nothing.

use std::convert::Infallible;
use std::fmt::Write;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::Mode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::diff::{self, Difference};
use crate::errno::Why;
use crate::flags::Flags;
use crate::locks;
use crate::metrics::Metrics;
use crate::questions::Questions;
use crate::report::{Board, Report};

/// Connections at a time, on the port and on the socket.
const CONVERSATIONS: usize = 64;
/// The longest that one may last.
const CONVERSATION: Duration = Duration::from_secs(60);

/// Listening sockets with what they answer from.
pub(crate) struct Servers {
    tcp: Option<TcpListener>,
    unix: UnixListener,
    pub(crate) socket: PathBuf,
    answers: Answers,
}

#[derive(Clone)]
struct Answers {
    metrics: Arc<Metrics>,
    board: Board,
    questions: Questions,
    side: Side,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Anyone who reaches the port.
    Network,
    /// Root on this node.
    Local,
}

/// Binds what the flags name, so that a port in use is an error at start and not later.
pub(crate) async fn bind(
    flags: &Flags,
    metrics: &Arc<Metrics>,
    board: &Board,
    questions: Questions,
) -> anyhow::Result<Servers> {
    let address = (&*flags.healthz_ip, flags.healthz_port);
    let tcp = match address {
        (_, 0) => None,
        address => Some(bind_tcp(address).await.with_context(|| {
            format!("listening on {}:{} (--healthz-ip, --healthz-port)", address.0, address.1)
        })?),
    };
    let unix = bind_unix(&flags.socket)
        .await
        .with_context(|| format!("listening on {} (--socket)", flags.socket.display()))?;
    let (metrics, board) = (metrics.clone(), board.clone());
    let answers = Answers { metrics, board, questions, side: Side::Local };
    Ok(Servers { tcp, unix, socket: flags.socket.clone(), answers })
}

async fn bind_tcp((ip, port): (&str, u16)) -> anyhow::Result<TcpListener> {
    TcpListener::bind((ip, port)).await.map_err(|error| {
        let rival = locks::rival_on_port(port).filter(|_| error.kind() == ErrorKind::AddrInUse);
        match rival {
            Some(rival) => anyhow!("{rival} listens there: give one of them another --healthz-port"),
            None => error.into(),
        }
    })
}

async fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // A killed daemon leaves its socket behind; a living one answers, and whatever else is there is not ours.
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
    // Never open to others, be it for a moment. A name that is set right afterwards may be a link to elsewhere by then.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    Ok(listener?)
}

/// The process at the other end of a unix socket, in words. Of another pid namespace it has no pid here.
fn owner(stream: &UnixStream) -> String {
    let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
    let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0) else {
        return "a process of another pid namespace".into();
    };
    locks::rival_with_pid(pid)
        .map_or_else(|| format!("the process with pid {pid}"), |rival| rival.to_string())
}

impl Servers {
    /// Answers for ever.
    pub(crate) async fn run(self) {
        let (local, network) = (self.answers.clone(), Answers { side: Side::Network, ..self.answers });
        // Idle strangers on the port must not keep root from its answer.
        let [places, local_places] = [CONVERSATIONS; 2].map(|most| Arc::new(Semaphore::new(most)));
        let tcp = async {
            let Some(tcp) = self.tcp else { return std::future::pending().await };
            let mut refused = false;
            loop {
                let accepted = tcp.accept().await;
                refused = admit(accepted, &places, network.clone(), refused).await;
            }
        };
        let unix = async {
            let mut refused = false;
            loop {
                let accepted = self.unix.accept().await;
                refused = admit(accepted, &local_places, local.clone(), refused).await;
            }
        };
        tokio::join!(tcp, unix);
    }
}

/// Takes a connection, one of so many at a time. `refused`: the one before could not be taken. Returns that of this one.
async fn admit<S, A>(
    accepted: std::io::Result<(S, A)>,
    places: &Arc<Semaphore>,
    answers: Answers,
    refused: bool,
) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = places.clone().acquire_owned().await;
    match accepted {
        Ok((stream, _)) => {
            tokio::spawn(async move {
                let _place = place;
                // Whoever says nothing for so long is sent away.
                let _ = tokio::time::timeout(CONVERSATION, converse(stream, answers)).await;
            });
            false
        }
        // Out of descriptors, most likely: the next attempt fails at once, too.
        Err(error) => {
            if !refused {
                warn!("connections to this daemon cannot be taken, trying again: {}", Why(&error));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            true
        }
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, answers: Answers) {
    let answer = service_fn(|request: Request<Incoming>| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answers.to(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), answer);
    // A client that goes away is its own affair.
    let _ = connection.await;
}

impl Answers {
    async fn to(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let text = "text/plain; charset=utf-8";
        match (self.side, request.uri().path()) {
            (Side::Network, "/healthz") => answer(StatusCode::OK, text, "twill is running\n"),
            (Side::Network, "/readyz") => {
                let report = self.board.borrow().clone();
                match report.readiness() {
                    Ok(()) => answer(StatusCode::OK, text, readyz_body("twill is ready", &report)),
                    Err(why) => answer(
                        StatusCode::SERVICE_UNAVAILABLE,
                        text,
                        readyz_body(&format!("not ready: {why}"), &report),
                    ),
                }
            }
            (Side::Network, "/metrics") => {
                let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                answer(StatusCode::OK, open_metrics, self.metrics.text())
            }
            (Side::Local, "/status") => {
                let report = self.board.borrow().clone();
                let json = serde_json::to_string(&report.told()).unwrap_or_default();
                answer(StatusCode::OK, "application/json", json)
            }
            (Side::Local, "/diff") => match self.questions.diff().await {
                Some(ops) => {
                    let difference = Difference { format: diff::FORMAT, ops };
                    let json = serde_json::to_string(&difference).unwrap_or_default();
                    answer(StatusCode::OK, "application/json", json)
                }
                None => {
                    let why = self.board.borrow().readiness().err();
                    let why = why.unwrap_or_else(|| "the rounds hang".into());
                    answer(StatusCode::SERVICE_UNAVAILABLE, text, format!("nobody can tell yet: {why}\n"))
                }
            },
            _ => answer(StatusCode::NOT_FOUND, text, "not found\n"),
        }
    }
}

/// The verdict in the first line, then what else is to be known: peers never change the verdict.
fn readyz_body(verdict: &str, report: &Report) -> String {
    const LINES: usize = 50;
    let mut body = format!("{verdict}\n");
    if let Some(lost) = &report.store_lost {
        let _ = writeln!(body, "store is lost, the last known leases stay in force: {lost}");
    }
    for note in report.notes.iter().take(LINES) {
        let _ = writeln!(body, "{note}");
    }
    if report.notes.len() > LINES {
        let _ = writeln!(body, "and {} more", report.notes.len() - LINES);
    }
    body
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::board;

    #[test]
    fn the_first_line_is_the_verdict_and_a_thousand_notes_are_fifty_lines() {
        let notes = (0..1000).map(|number| format!("peer {number}: silent")).collect();
        let lost = Some("refused".to_owned());
        let report = Report { notes, store_lost: lost, ..Report::clone(&board().borrow()) };
        let body = readyz_body("twill is ready", &report);
        let lines: Vec<&str> = body.lines().collect();
        assert_eq!((lines[0], lines[2], lines[51]), ("twill is ready", "peer 0: silent", "peer 49: silent"));
        assert!(lines[1].starts_with("store is lost"));
        assert_eq!(lines[52..], ["and 950 more"]);
    }
}
