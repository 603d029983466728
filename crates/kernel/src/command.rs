//! Runs the tools that read and write traffic rules. They are found in PATH, read their input from memory, and are
//! killed if they take too long. Their output is not interpreted here.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use plan::text::excerpt;

use crate::error::{Cause, remedy};

/// Maximum time that a tool may run.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of bytes that a tool prints of our own rules.
const MOST: u64 = 1 << 20;
/// Maximum number of bytes that a tool prints of everybody's rules: `iptables-save` with some 100,000 of them.
const MOST_OF_ALL: u64 = 24 << 20;
/// Maximum number of bytes of a tool's error messages, of which two lines are kept.
const MOST_ERRORS: u64 = 64 << 10;
/// Directories of administrators' tools, used if PATH is not set.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the file of the tool of that name; `None` if no directory of PATH has it.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    dirs().into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Returns the directories that are searched for tools.
pub(crate) fn dirs() -> Vec<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_else(|_| USUAL.into());
    path.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect()
}

/// Runs a tool and returns its output, at most 1 MiB. The error holds the tool's error messages. It also fails if the
/// tool is missing, takes too long or prints more.
pub(crate) fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String, Cause> {
    run_up_to(MOST, tool, arguments, input)
}

/// Runs a tool that lists everybody's rules, and returns its output, at most 24 MiB. Fails as [`run`] does.
pub(crate) fn list(tool: &str) -> Result<String, Cause> {
    run_up_to(MOST_OF_ALL, tool, &[], "")
}

fn run_up_to(most: u64, tool: &str, arguments: &[&str], input: &str) -> Result<String, Cause> {
    let failed = |error: &std::io::Error| {
        let text = match error.raw_os_error().map_or("", remedy) {
            "" => error.to_string(),
            remedy => format!("{error}; {remedy}"),
        };
        Cause::Tool { tool: tool.into(), text: text.into() }
    };
    let Some(file) = find(tool) else {
        return Err(Cause::Tool { tool: tool.into(), text: "it is not installed".into() });
    };
    let mut child = Command::new(file)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let (out, err) = (said_by(child.stdout.take(), most), said_by(child.stderr.take(), MOST_ERRORS));
    let (stdin, input) = (child.stdin.take(), input.to_owned());
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let end = Instant::now() + PATIENCE;
    // A tool that has closed its output is about to end. Its children may keep the output open; they are not waited
    // for.
    let out = out.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    if out.as_ref().is_some_and(|out| out.is_cut) {
        child.kill().and_then(|()| child.wait()).map_err(|error| failed(&error))?;
        return Err(failed(&too_much(most)));
    }
    let err = err.recv_timeout(end.saturating_duration_since(Instant::now())).unwrap_or_default();
    match (wait(&mut child, end).map_err(|error| failed(&error))?, out) {
        (true, Some(out)) => Ok(out.text),
        (true, None) => Err(failed(&too_long())),
        (false, _) => Err(Cause::Tool { tool: tool.into(), text: said(&err.text) }),
    }
}

/// Waits for the tool until `end`, then kills it. Returns true if it succeeded.
fn wait(child: &mut Child, end: Instant) -> std::io::Result<bool> {
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Err(too_long());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn too_long() -> std::io::Error {
    std::io::Error::other(format!("it took longer than {} s", PATIENCE.as_secs()))
}

fn too_much(most: u64) -> std::io::Error {
    std::io::Error::other(format!("it printed more than {} MiB and was stopped", most >> 20))
}

/// Output of a tool.
#[derive(Default)]
struct Output {
    text: String,
    /// True if the tool printed more.
    is_cut: bool,
}

/// Reads a stream in a thread of its own. The receiver gets the whole text when the stream ends, or its beginning as
/// soon as it exceeds `most` bytes.
fn said_by(from: Option<impl Read + Send + 'static>, most: u64) -> Receiver<Output> {
    let (told, output) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // An error of the pipe ends the text; only the tool's exit status counts.
        let _ = from.map(|from| from.take(most + 1).read_to_end(&mut bytes));
        let is_cut = bytes.len() as u64 > most;
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        let _ = told.send(Output { text, is_cut });
    });
    output
}

/// Returns the first two lines of the error messages, which name the fault.
fn said(err: &str) -> Box<str> {
    let lines: Vec<&str> = err.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    if lines.is_empty() { "it failed without a message".into() } else { excerpt(lines.join(" ")).into() }
}
