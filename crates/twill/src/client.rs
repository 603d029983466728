//! HTTP client for the daemon of this node, over its unix socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::locks;

/// Maximum time to connect to the daemon and to receive its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the body of the daemon's answer to `GET path`. Errors are those of [`fetch`].
pub(crate) fn get(socket: &Path, path: &str) -> anyhow::Result<Bytes> {
    runtime()?.block_on(fetch(socket, path))
}

/// Returns a runtime for the requests of one command.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Returns the body of the daemon's answer to `GET path`. Returns an error if the daemon cannot be reached, does not
/// answer within [`ANSWER_TIMEOUT`], or answers with an error status.
pub(crate) async fn fetch(socket: &Path, path: &str) -> anyhow::Result<Bytes> {
    let shown = socket.display();
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask(socket, path)).await;
    answer.with_context(|| format!("the daemon does not answer on {shown}"))?.with_context(|| {
        let running = locks::subnet_files();
        let hint = if running.is_empty() {
            "is twill daemon running here, and are you root?".into()
        } else {
            format!(
                "are you root? A daemon runs here with --subnet-file {}",
                running.join(" and one with --subnet-file ")
            )
        };
        format!("cannot reach the daemon on {shown}; {hint}")
    })
}

async fn ask(socket: &Path, path: &str) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", "twill").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}
