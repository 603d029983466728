//! Runs the tools by which rules are read and written: found in PATH, fed from memory, ended when they take too long. It
//! knows nothing of what they say.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Cause;

/// No rules take so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where administrators' tools are, whatever PATH says.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The tool of that name.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_else(|_| USUAL.into());
    path.split(':').map(|dir| PathBuf::from(dir).join(name)).find(|file| file.is_file())
}

/// Gives what it prints. The error holds what it says of its failure.
pub(crate) fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String, Cause> {
    let failed = |error: &std::io::Error| Cause::Tool { tool: tool.into(), text: error.to_string().into() };
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
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (talks, silent) = mpsc::channel();
    thread::scope(|scope| {
        let (until_out, until_err) = (talks.clone(), talks);
        let out = scope.spawn(move || text(stdout, until_out));
        let err = scope.spawn(move || text(stderr, until_err));
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        let ended = wait(&mut child, &silent);
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        match ended {
            Ok(true) => Ok(out),
            Ok(false) => Err(Cause::Tool { tool: tool.into(), text: said(&err) }),
            Err(error) => Err(failed(&error)),
        }
    })
}

/// Did it succeed? A tool that is `silent`, since it has closed all that it writes to, is about to end.
fn wait(child: &mut Child, silent: &Receiver<Talks>) -> std::io::Result<bool> {
    let end = Instant::now() + PATIENCE;
    // Nothing is ever sent.
    let _ = silent.recv_timeout(PATIENCE);
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::other(format!("it took longer than {} s", PATIENCE.as_secs())));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Whoever has one may still say something.
enum Talks {}

fn text(from: Option<impl Read>, _: Sender<Talks>) -> String {
    let mut bytes = Vec::new();
    // What it could still say is enough.
    let _ = from.map(|mut from| from.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first lines, which name the fault.
fn said(err: &str) -> Box<str> {
    let lines: Vec<&str> = err.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    if lines.is_empty() { "it failed without a word".into() } else { lines.join(" ").into() }
}
