//! Requests from other threads to the reconcile thread, over a channel. The next reconcile pass answers them; a request
//! waits for nothing else.

use std::time::Duration;

use plan::Op;
use tokio::sync::{mpsc, oneshot};

use crate::trigger::{Cause, CauseSender};

/// Maximum time to wait for an answer. A reconcile pass takes milliseconds, but the daemon may still be waiting for its
/// store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of requests that wait at the same time.
const PENDING: usize = 16;

/// Sending end of the channel; any number of clones may exist.
#[derive(Clone)]
pub(crate) struct DiffRequests {
    cause_sender: CauseSender,
    requests: mpsc::Sender<oneshot::Sender<Vec<Op>>>,
}

/// Receiving end of the channel, owned by the reconcile loop.
pub(crate) struct DiffResponder(mpsc::Receiver<oneshot::Sender<Vec<Op>>>);

/// Creates both ends of the channel.
pub(crate) fn channel(cause_sender: CauseSender) -> (DiffRequests, DiffResponder) {
    let (requests, received) = mpsc::channel(PENDING);
    (DiffRequests { cause_sender, requests }, DiffResponder(received))
}

impl DiffRequests {
    /// Returns the ops that would bring the kernel to its desired state, from a new reconcile pass. Returns `None` if
    /// [`PENDING`] requests wait already, or if no pass answers within [`ANSWER_TIMEOUT`].
    pub(crate) async fn diff(&self) -> Option<Vec<Op>> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(answer).ok()?;
        self.cause_sender.send(Cause::Diff);
        tokio::time::timeout(ANSWER_TIMEOUT, answered).await.ok()?.ok()
    }
}

impl DiffResponder {
    /// Sends `ops` to everyone who waits for an answer.
    pub(crate) fn answer(&mut self, ops: &[Op]) {
        while let Ok(answer) = self.0.try_recv() {
            // The receiver may have gone away meanwhile and needs no answer then.
            let _ = answer.send(ops.to_vec());
        }
    }
}
