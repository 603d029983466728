//! Runs the tools by which rules are read and written: found in PATH, fed from memory, ended when they take too long. It
//! knows nothing of what they say.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Cause, remedy};

/// No rules take so long.
const PATIENCE: Duration = Duration::from_secs(3);
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

/// Gives what it prints. The error holds what it says of its failure.
pub(crate) fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String, Cause> {
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
    let (out, err) = (said_by(child.stdout.take()), said_by(child.stderr.take()));
    let (stdin, input) = (child.stdin.take(), input.to_owned());
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let end = Instant::now() + PATIENCE;
    // Whoever has closed all that it writes to is about to end. What its own children hold open is not waited for.
    let out = out.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    let err = err.recv_timeout(end.saturating_duration_since(Instant::now())).unwrap_or_default();
    match (wait(&mut child, end).map_err(|error| failed(&error))?, out) {
        (true, Some(out)) => Ok(out),
        (true, None) => Err(failed(&too_long())),
        (false, _) => Err(Cause::Tool { tool: tool.into(), text: said(&err) }),
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

/// All that it says there, once it is silent.
fn said_by(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (told, text) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What it could still say is enough.
        let _ = from.map(|mut from| from.read_to_end(&mut bytes));
        let _ = told.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    text
}

/// The first lines, which name the fault.
fn said(err: &str) -> Box<str> {
    let lines: Vec<&str> = err.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    if lines.is_empty() { "it failed without a word".into() } else { lines.join(" ").into() }
}
