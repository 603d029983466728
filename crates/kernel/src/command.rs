//! Runs the tools by which rules are read and written: found in PATH, fed from memory, ended when they take too long. It
//! knows nothing of what they say.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use plan::text::excerpt;

use crate::error::{Cause, remedy};

/// No rules take so long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of bytes that a tool prints of our own rules.
const MOST: u64 = 1 << 20;
/// Maximum number of bytes that a tool prints of everybody's rules: `iptables-save` with some 100,000 of them.
const MOST_OF_ALL: u64 = 24 << 20;
/// Maximum number of bytes of its error messages, of which two lines are kept.
const MOST_ERRORS: u64 = 64 << 10;
/// Where administrators' tools are, if no PATH says it.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The tool of that name.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    dirs().into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Where tools are looked for.
pub(crate) fn dirs() -> Vec<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_else(|_| USUAL.into());
    path.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect()
}

/// Gives what it prints, at most 1 MiB. The error holds what it says of its failure.
pub(crate) fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String, Cause> {
    run_up_to(MOST, tool, arguments, input)
}

/// Gives what it prints of the rules of all, at most 24 MiB.
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
    // Whoever has closed all that it writes to is about to end. What its own children hold open is not waited for.
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

/// Did it succeed?
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
    /// There was more.
    is_cut: bool,
}

/// All that it says there, once it is silent, or its beginning as soon as that is more than `most` bytes.
fn said_by(from: Option<impl Read + Send + 'static>, most: u64) -> Receiver<Output> {
    let (told, output) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // An error of the pipe ends the text; how the tool itself ended is what counts.
        let _ = from.map(|from| from.take(most + 1).read_to_end(&mut bytes));
        let is_cut = bytes.len() as u64 > most;
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        let _ = told.send(Output { text, is_cut });
    });
    output
}

/// The first lines, which name the fault.
fn said(err: &str) -> Box<str> {
    let lines: Vec<&str> = err.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    if lines.is_empty() { "it failed without a word".into() } else { excerpt(lines.join(" ")).into() }
}
