//! Runs a program and reads its output line by line as it appears. Capture, monitors and ping use it.

use std::io::{BufRead, BufReader, pipe};
use std::process::{Child, ChildStdin, Command};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::missed;
use crate::wait::patient;

/// A line and the time when it was read.
#[derive(Clone, Debug)]
pub struct Line {
    pub at: Instant,
    pub text: String,
}

type Shared = Arc<(Mutex<Vec<Line>>, Condvar)>;

/// A running program and its output so far on both streams; killed when dropped.
#[derive(Debug)]
pub struct Lines {
    child: Child,
    shared: Shared,
    reader: Option<JoinHandle<()>>,
}

impl Lines {
    /// Starts the program and reads both of its output streams together.
    pub fn start(mut command: Command) -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        command.stdout(writer.try_clone().expect("a second descriptor of the pipe")).stderr(writer);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let shared = Shared::default();
        let into = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            for text in BufReader::new(reader).lines().map_while(Result::ok) {
                into.0.lock().unwrap_or_else(PoisonError::into_inner).push(Line { at: Instant::now(), text });
                into.1.notify_all();
            }
        });
        Self { child, shared, reader: Some(reader) }
    }

    /// Returns all lines so far.
    pub fn all(&self) -> Vec<Line> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns true if a line, printed already or within `limit`, satisfies `wanted`.
    pub fn wait_for(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> bool {
        let start = Instant::now();
        let lines = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |lines: &mut Vec<Line>| !lines.iter().any(|line| wanted(&line.text));
        let waited = self.shared.1.wait_timeout_while(lines, patient(limit), missing);
        let found = !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        if !found {
            missed(format!("a line did not appear within {:.1} s", patient(limit).as_secs_f64()), start);
        }
        found
    }

    /// Returns the program's standard input, if it is a pipe and was not taken yet.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits until the program ends by itself, and returns all its lines.
    pub fn finish(mut self) -> Vec<Line> {
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.all()
    }

    /// Sends `signal`, waits until the program ends, and returns all its lines.
    pub fn stop(self, signal: Signal) -> Vec<Line> {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        self.finish()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
