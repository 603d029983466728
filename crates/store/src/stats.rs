//! Counters about the connection to a store, for the metrics. The task that watches the store writes them; any thread may read
//! them, and a change triggers nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Time of the last message from a store, and counts since the start of the process.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    last_message: Mutex<Option<Instant>>,
    restarts: AtomicU64,
    lists: AtomicU64,
}

impl ConnectionStats {
    /// Returns the time since the store last answered or sent an event; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.last_message.lock().ok()?.map(|at| at.elapsed())
    }

    /// Returns the number of times that a watch was restarted.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// Returns the number of times that the whole list was read.
    pub fn lists(&self) -> u64 {
        self.lists.load(Relaxed)
    }

    /// Records that the store has answered or sent an event.
    pub(crate) fn record_message(&self) {
        if let Ok(mut last_message) = self.last_message.lock() {
            *last_message = Some(Instant::now());
        }
    }

    pub(crate) fn count_restart(&self) {
        self.restarts.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_list(&self) {
        self.lists.fetch_add(1, Relaxed);
    }
}
