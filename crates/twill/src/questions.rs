//! What only the thread of rounds can answer: it is asked over a channel and answers with its next look at the kernel.
//! Asking is never a reason to wait for anything but that look.

use std::time::Duration;

use plan::Op;
use tokio::sync::{mpsc, oneshot};

use crate::trigger::{Bell, Cause};

/// A look takes milliseconds, but the daemon may still be waiting for its store.
const PATIENCE: Duration = Duration::from_secs(5);
/// Askers at a time.
const PENDING: usize = 16;

/// Where to ask; any number of askers.
#[derive(Clone)]
pub(crate) struct Questions {
    bell: Bell,
    asked: mpsc::Sender<oneshot::Sender<Vec<Op>>>,
}

/// Where the answers come from.
pub(crate) struct Answers(mpsc::Receiver<oneshot::Sender<Vec<Op>>>);

/// Both ends.
pub(crate) fn channel(bell: Bell) -> (Questions, Answers) {
    let (asked, questions) = mpsc::channel(PENDING);
    (Questions { bell, asked }, Answers(questions))
}

impl Questions {
    /// The steps that the kernel is away from what it should hold; `None` while nobody can tell.
    pub(crate) async fn diff(&self) -> Option<Vec<Op>> {
        let (answer, answered) = oneshot::channel();
        self.asked.try_send(answer).ok()?;
        self.bell.ring(Cause::Asked);
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
    }
}

impl Answers {
    /// Answers all who have asked.
    pub(crate) fn give(&mut self, ops: &[Op]) {
        while let Ok(answer) = self.0.try_recv() {
            // One that has gone away meanwhile needs no answer.
            let _ = answer.send(ops.to_vec());
        }
    }
}
