//! How well a store is heard, for metrics: written by whoever hears it, read at any time, and no reason to look at anything.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counted since the start.
#[derive(Debug, Default)]
pub struct Pulse {
    heard: Mutex<Option<Instant>>,
    restarts: AtomicU64,
    lists: AtomicU64,
}

impl Pulse {
    /// How long ago the store last said anything; `None` before it ever did.
    pub fn age(&self) -> Option<Duration> {
        self.heard.lock().ok()?.map(|at| at.elapsed())
    }

    /// How often a watch had to be begun anew.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// How often the whole list was read.
    pub fn lists(&self) -> u64 {
        self.lists.load(Relaxed)
    }

    pub(crate) fn beat(&self) {
        if let Ok(mut heard) = self.heard.lock() {
            *heard = Some(Instant::now());
        }
    }

    pub(crate) fn count_restart(&self) {
        self.restarts.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_list(&self) {
        self.lists.fetch_add(1, Relaxed);
    }
}
