//! Runs the body of a `#[test]` inside the lab: outside, the test binary is run again under `enter` for this one test,
//! and whatever is not a clear pass in there is a failure out here. A test must never pass by being skipped.

use std::any::type_name;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::enter;
use crate::wait::patient;

const DEADLINE: Duration = Duration::from_secs(120);
const LOG_TAIL: usize = 30;

/// Whether other tests may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// Measures time: runs alone.
    Timed,
    /// Measures nothing: runs beside other free ones.
    Free,
}

/// Runs `body` inside the lab. Call it directly in the test function, with a closure: the closure's type tells which
/// test to run again.
pub fn test<F: FnOnce()>(timing: Timing, body: F) {
    test_within(DEADLINE, timing, body);
}

/// [`test`] with a deadline of its own, which starts when the test does, not while it waits for its turn.
pub fn test_within<F: FnOnce()>(deadline: Duration, timing: Timing, body: F) {
    if enter::inside() {
        return run_inside(body);
    }
    let path = test_path(type_name::<F>());
    let _turn = turn(timing);
    if let Err(why) = run_again(&path, patient(deadline)) {
        panic!("{path}: {why}");
    }
}

/// "e2e::repair::route_deleted::{{closure}}" -> "repair::route_deleted".
fn test_path(closure: &str) -> String {
    let function = closure.split("::{{closure}}").next().unwrap_or(closure);
    function.split_once("::").map_or(function, |(_, path)| path).to_owned()
}

fn turn(timing: Timing) -> File {
    let exe = std::env::current_exe().expect("own executable");
    let path = exe.with_file_name("twill-lab.lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let locked = if timing == Timing::Timed { file.lock() } else { file.lock_shared() };
    locked.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file
}

fn run_again(path: &str, deadline: Duration) -> Result<(), String> {
    let mut command = enter::command()?;
    // "--include-ignored": whoever got us here has asked for this test already.
    command.args(["--exact", path, "--nocapture", "--include-ignored", "--test-threads=1"]);
    let (output, ended) = captured(command, deadline)?;
    match ended {
        None => Err(format!("not done after {} s; its output:\n{output}", deadline.as_secs())),
        Some(false) => Err(format!("failed in the lab; its output:\n{output}")),
        Some(true) if !output.contains("test result: ok. 1 passed;") => Err(format!(
            "the lab found no test of that name (is lab::test called outside of the test itself?):\n{output}"
        )),
        Some(true) => {
            print!("{output}");
            Ok(())
        }
    }
}

/// The output of both streams, and whether it was a success; None when the deadline killed it.
fn captured(mut command: Command, deadline: Duration) -> Result<(String, Option<bool>), String> {
    let end = Instant::now() + deadline;
    let (reader, writer) = io::pipe().map_err(|e| e.to_string())?;
    command.stdout(writer.try_clone().map_err(|e| e.to_string())?).stderr(writer);
    let mut child = command.spawn().map_err(|e| format!("cannot start setpriv: {e}"))?;
    // The command owns our copies of the pipe's writing end; only without them the pipe ends with the lab.
    drop(command);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(reader).split(b'\n').map_while(Result::ok).try_for_each(|line| tell.send(line))
    });
    let mut output = String::new();
    loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => output.push_str(&(String::from_utf8_lossy(&line) + "\n")),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok((output, None));
            }
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    Ok((output, Some(status.success())))
}

fn run_inside(body: impl FnOnce()) {
    if let Err(why) = enter::settle() {
        panic!("{why}");
    }
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        eprint!("{}", log_tails());
        resume_unwind(panic);
    }
}

/// The last lines of every daemon's log.
fn log_tails() -> String {
    let mut logs: Vec<_> = std::fs::read_dir(enter::work_dir().join("log"))
        .map(|dir| dir.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    logs.sort();
    let tail = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n"))
    };
    logs.iter().map(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timed_test_waits_for_all_others_and_they_for_it() {
        let (first, second) = (turn(Timing::Free), turn(Timing::Free));
        let (tell, told) = mpsc::channel();
        let wait = |timing: Timing| {
            let tell = tell.clone();
            thread::spawn(move || tell.send((timing, turn(timing))));
        };
        let blocked = |told: &mpsc::Receiver<_>| told.recv_timeout(Duration::from_millis(100)).is_err();
        wait(Timing::Timed);
        assert!(blocked(&told), "two free tests are running");
        drop((first, second));
        let (timing, timed) = told.recv_timeout(DEADLINE).expect("its turn");
        assert_eq!(timing, Timing::Timed);
        wait(Timing::Free);
        assert!(blocked(&told), "a timed test is running");
        drop(timed);
        assert_eq!(told.recv_timeout(DEADLINE).expect("its turn").0, Timing::Free);
    }
}
