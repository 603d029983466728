//! Runs the tools that read and write traffic rules. They are found in PATH, read their input from memory, and are
//! killed if they take too long. Their output is not interpreted here.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use plan::text::excerpt;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Cause, remedy};

/// Maximum time that a tool may run.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of bytes that a tool prints of our own rules.
const MAX_OUTPUT: u64 = 1 << 20;
/// Maximum number of bytes that a tool prints of everybody's rules: `iptables-save` with some 100,000 of them.
const MAX_LIST_OUTPUT: u64 = 24 << 20;
/// Maximum number of bytes of a tool's error messages, of which two lines are kept.
const MAX_ERROR_OUTPUT: u64 = 64 << 10;
/// Directories of administrators' tools, used if PATH is not set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the file of the tool of that name; `None` if no directory of PATH has it.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    dirs().into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Returns the directories that are searched for tools.
pub(crate) fn dirs() -> Vec<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.into());
    path.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect()
}

/// Runs a tool and returns its output, at most 1 MiB. The error holds the tool's error messages. It also fails if the
/// tool is missing, takes too long or prints more.
pub(crate) fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String, Cause> {
    run_up_to(MAX_OUTPUT, tool, arguments, input)
}

/// Runs a tool that lists everybody's rules, and returns its output, at most 24 MiB. Fails as [`run`] does.
pub(crate) fn list(tool: &str) -> Result<String, Cause> {
    run_up_to(MAX_LIST_OUTPUT, tool, &[], "")
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
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let (out, err) =
        (read_in_thread(child.stdout.take(), most), read_in_thread(child.stderr.take(), MAX_ERROR_OUTPUT));
    let (stdin, input) = (child.stdin.take(), input.to_owned());
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let end = Instant::now() + TIMEOUT;
    let patience = || end.saturating_duration_since(Instant::now());
    // A tool that has closed its output is about to end.
    let out = out.recv_timeout(patience()).ok();
    let is_cut = out.as_ref().is_some_and(|out| out.is_cut);
    let err = out.as_ref().filter(|_| !is_cut).and_then(|_| err.recv_timeout(patience()).ok());
    let status = if err.is_some() { wait(&mut child, end) } else { kill(&mut child) };
    match (status.map_err(|error| failed(&error))?.success(), out, err) {
        _ if is_cut => Err(failed(&too_much(most))),
        (true, Some(out), _) => Ok(text(out.bytes)),
        (_, _, Some(err)) => Err(Cause::Tool { tool: tool.into(), text: first_lines(&text(err.bytes)) }),
        (_, _, None) => Err(failed(&too_long())),
    }
}

/// Waits for the tool until `end`, then kills it, which is an error.
fn wait(child: &mut Child, end: Instant) -> std::io::Result<ExitStatus> {
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            kill(child)?;
            return Err(too_long());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Kills the tool, and the processes that it has left behind with its output. The tool must not have been waited for:
/// until then no other process group can have its number.
fn kill(child: &mut Child) -> std::io::Result<ExitStatus> {
    kill_process_group(Pid::from_child(child), Signal::KILL)?;
    child.wait()
}

fn too_long() -> std::io::Error {
    std::io::Error::other(format!("it took longer than {} s", TIMEOUT.as_secs()))
}

fn too_much(most: u64) -> std::io::Error {
    std::io::Error::other(format!("it printed more than {} MiB and was stopped", most >> 20))
}

/// Output of a tool.
struct Output {
    bytes: Vec<u8>,
    /// True if the tool printed more.
    is_cut: bool,
}

/// Reads a stream in a thread of its own. The receiver gets all of it when the stream ends, or its beginning as soon as
/// it exceeds `most` bytes.
fn read_in_thread(from: Option<impl Read + Send + 'static>, most: u64) -> Receiver<Output> {
    let (sender, output) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // An error of the pipe ends the text; only the tool's exit status counts.
        let _ = from.map(|from| from.take(most + 1).read_to_end(&mut bytes));
        let is_cut = bytes.len() as u64 > most;
        let _ = sender.send(Output { bytes, is_cut });
    });
    output
}

/// Returns the bytes as text, without copying them. Each byte that is not UTF-8, as in the comment of somebody's rule,
/// becomes a question mark.
fn text(mut bytes: Vec<u8>) -> String {
    let mut at = 0;
    while let Err(error) = str::from_utf8(&bytes[at..]) {
        at += error.valid_up_to();
        let end = error.error_len().map_or(bytes.len(), |length| at + length);
        bytes[at..end].fill(b'?');
        at = end;
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// Returns the first two lines of the error messages, which name the fault.
fn first_lines(err: &str) -> Box<str> {
    let lines: Vec<&str> = err.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    if lines.is_empty() { "it failed without a message".into() } else { excerpt(lines.join(" ")).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_a_tool_leaves_behind_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        for stream in ["", ">/dev/null"] {
            let file = dir.path().join("pid");
            let script = format!("sleep 1000 {stream} & echo $! >{}; echo done", file.display());
            let done = run("sh", &["-c", &script], "");
            assert_eq!(done.ok().as_deref(), (!stream.is_empty()).then_some("done\n"), "{stream}");
            let pid = std::fs::read_to_string(&file).unwrap();
            let stat = format!("/proc/{}/stat", pid.trim());
            let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
            let end = Instant::now() + TIMEOUT;
            while lives() {
                assert!(Instant::now() < end, "process {pid} is still there");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn text_is_made_of_any_bytes_in_their_place() {
        for (bytes, expected) in [
            (b"a\xff\xfe\xc3\xa4\xc3".to_vec(), "a??\u{e4}?"),
            (b"\xe2\x82(".to_vec(), "??("),
            (b"*nat\n".to_vec(), "*nat\n"),
        ] {
            let place = bytes.as_ptr();
            let text = text(bytes);
            assert_eq!((text.as_ptr(), &*text), (place, expected));
        }
    }
}
