//! Runs the body of a `#[test]` inside the lab. Outside, the test binary is run again under `enter` for this one test. Any result
//! but a clear pass in there is a failure out here: a test never passes by being skipped.

use std::any::type_name;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{self, Command, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::{control, excuse};
use crate::enter;
use crate::wait::patient;

/// Maximum time of a test that sets none of its own.
const DEADLINE: Duration = Duration::from_secs(120);
/// Number of lines shown of each daemon's log.
const LOG_TAIL: usize = 30;
/// Maximum number of measurements of one test; if the last one is starved, too, the test fails.
const MEASUREMENTS: usize = 3;
/// Exit code of a lab whose test missed a limit on a starved machine: EX_TEMPFAIL of sysexits.h.
const STARVED: i32 = 75;
/// Start of the output line in which such a lab says what was missed.
const STARVED_LINE: &str = "starved: ";
/// Number of labs per core that run free tests at the same time: such tests mostly wait.
const LABS_PER_CORE: usize = 3;

/// Rule for running a test beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// The test runs alone: its limits are below a second or two, or it needs the whole machine.
    Timed,
    /// The test mostly waits, and runs beside other free ones. If it misses a limit on a starved machine it is measured again,
    /// alone.
    Free,
}

/// Runs `body` inside the lab. Call it directly in the test function, with a closure: the closure's type names the test to run
/// again.
pub fn test<F: FnOnce()>(timing: Timing, body: F) {
    test_within(DEADLINE, timing, body);
}

/// Same as [`test`], with its own deadline. The deadline starts with the test, not while the test waits for its turn.
pub fn test_within<F: FnOnce()>(deadline: Duration, timing: Timing, body: F) {
    if enter::inside() {
        return run_inside(body);
    }
    let path = test_path(type_name::<F>());
    let once = |timing| {
        let asked = Instant::now();
        let _turn = Turn::take(timing);
        let begun = Instant::now();
        let ended = run_again(&path, patient(deadline));
        let [took, waited] = [begun.elapsed(), begun - asked].map(|span| span.as_secs_f64());
        record(&format!("{took:.1} s {timing:?} {path} (waited {waited:.1} s)"));
        ended
    };
    let measured = measure(timing, once, |figures| {
        let line = format!("measured again: {path}: {figures}");
        record(&line);
        // The test runner captures print! and eprint!, but the person who runs the tests has to see this.
        let _ = writeln!(io::stderr(), "{line}");
    });
    if let Err(why) = measured {
        panic!("{path}: {why}");
    }
}

/// Reason why a lab did not pass.
enum Failure {
    /// A wrong result, or a limit missed while the control was on time.
    Real(String),
    /// A limit missed on a starved machine: the figures, and the output.
    Starved(String, String),
}

/// Calls `once`, and again while the machine is starved, from the second time on alone. Reports the figures before each
/// repetition. Returns an error for a real failure, or after [`MEASUREMENTS`] starved measurements.
fn measure(
    timing: Timing,
    mut once: impl FnMut(Timing) -> Result<(), Failure>,
    mut report: impl FnMut(&str),
) -> Result<(), String> {
    let mut all = Vec::new();
    loop {
        let timing = if all.is_empty() { timing } else { Timing::Timed };
        match once(timing) {
            Ok(()) => return Ok(()),
            Err(Failure::Real(why)) => return Err(why),
            Err(Failure::Starved(figures, output)) => {
                all.push(figures.clone());
                if all.len() == MEASUREMENTS {
                    let all = all.join("\n");
                    return Err(format!(
                        "missed a limit in each of {MEASUREMENTS} measurements on a starved machine:\n{all}\n\
                         the output of the last one:\n{output}"
                    ));
                }
                report(&figures);
            }
        }
    }
}

/// Appends a line to `lab.log` beside the test binary: the seconds of each test, and repeated measurements.
fn record(line: &str) {
    let file = File::options().append(true).create(true).open(beside("lab.log"));
    // The log is for people; a full disk is reported by the code that needs the disk.
    let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
}

fn beside(name: &str) -> PathBuf {
    std::env::current_exe().expect("own executable").with_file_name(name)
}

/// Returns the test's path: "e2e::repair::route_deleted::{{closure}}" -> "repair::route_deleted".
fn test_path(closure: &str) -> String {
    let function = closure.split("::{{closure}}").next().unwrap_or(closure);
    function.split_once("::").map_or(function, |(_, path)| path).to_owned()
}

/// The right to run now, until dropped.
struct Turn {
    _lock: File,
    /// Seat of a free test; timed tests run alone anyway.
    _seat: Option<Seat>,
}

impl Turn {
    fn take(timing: Timing) -> Self {
        let seat = (timing == Timing::Free).then(Seat::take);
        let path = beside("twill-lab.lock");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let locked = if timing == Timing::Timed { file.lock() } else { file.lock_shared() };
        locked.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { _lock: file, _seat: seat }
    }
}

static SEATED: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// A place for one lab in this process. The number of places does not depend on the test runner's threads.
struct Seat;

impl Seat {
    fn take() -> Self {
        let seats = LABS_PER_CORE * thread::available_parallelism().map_or(1, usize::from);
        let seated = SEATED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seated =
            FREED.wait_while(seated, |seated| *seated >= seats).unwrap_or_else(PoisonError::into_inner);
        *seated += 1;
        Self
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *SEATED.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

fn run_again(path: &str, deadline: Duration) -> Result<(), Failure> {
    let mut command = enter::command().map_err(Failure::Real)?;
    // "--include-ignored": the caller has selected this test already.
    command.args(["--exact", path, "--nocapture", "--include-ignored", "--test-threads=1"]);
    let control = control();
    let start = Instant::now();
    let (output, ended) = captured(command, deadline).map_err(Failure::Real)?;
    match ended {
        None => {
            let why = format!("not done after {} s", deadline.as_secs());
            let lateness = control.since(start);
            if lateness.is_starved() {
                return Err(Failure::Starved(format!("{why}; {lateness}"), output));
            }
            Err(Failure::Real(format!("{why}; its output:\n{output}")))
        }
        Some(status) if status.code() == Some(STARVED) => {
            let figures = output.lines().rev().find_map(|line| line.strip_prefix(STARVED_LINE));
            Err(Failure::Starved(figures.unwrap_or("it does not name the late limit").to_owned(), output))
        }
        Some(status) if !status.success() => {
            Err(Failure::Real(format!("failed in the lab; its output:\n{output}")))
        }
        Some(_) if !output.contains("test result: ok. 1 passed;") => Err(Failure::Real(format!(
            "the lab found no test of that name (is lab::test called outside of the test itself?):\n{output}"
        ))),
        Some(_) => {
            print!("{output}");
            Ok(())
        }
    }
}

/// Returns the output of both streams and the exit status; `None` if the deadline killed the process.
fn captured(mut command: Command, deadline: Duration) -> Result<(String, Option<ExitStatus>), String> {
    let end = Instant::now() + deadline;
    let (reader, writer) = io::pipe().map_err(|e| e.to_string())?;
    command.stdout(writer.try_clone().map_err(|e| e.to_string())?).stderr(writer);
    let mut child = command.spawn().map_err(|e| format!("cannot start setpriv: {e}"))?;
    // The command owns our copies of the pipe's writing end. Until they are closed, the pipe does not end with the
    // lab.
    drop(command);
    let (report, reports) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(reader).split(b'\n').map_while(Result::ok).try_for_each(|line| report.send(line))
    });
    let mut output = String::new();
    loop {
        match reports.recv_timeout(end.saturating_duration_since(Instant::now())) {
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
    Ok((output, Some(status)))
}

fn run_inside(body: impl FnOnce()) {
    if let Err(why) = enter::settle() {
        panic!("{why}");
    }
    // A kernel that shares the processor by session gives each lab with its own session a full share. The call fails if there is
    // one already.
    let _ = nix::unistd::setsid();
    control();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        eprint!("{}", log_tails());
        if let Some(figures) = excuse() {
            println!("{STARVED_LINE}{figures}");
            process::exit(STARVED);
        }
        resume_unwind(panic);
    }
}

/// Returns the last lines of every daemon's log.
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
    fn a_timed_test_runs_alone() {
        let (first, second) = (Turn::take(Timing::Free), Turn::take(Timing::Free));
        let (report, reports) = mpsc::channel();
        let wait = |timing: Timing| {
            let report = report.clone();
            thread::spawn(move || report.send((timing, Turn::take(timing))));
        };
        let blocked = |reports: &mpsc::Receiver<_>| reports.recv_timeout(Duration::from_millis(100)).is_err();
        wait(Timing::Timed);
        assert!(blocked(&reports), "two free tests are running");
        drop((first, second));
        let (timing, timed) = reports.recv_timeout(DEADLINE).expect("its turn");
        assert_eq!(timing, Timing::Timed);
        wait(Timing::Free);
        assert!(blocked(&reports), "a timed test is running");
        drop(timed);
        assert_eq!(reports.recv_timeout(DEADLINE).expect("its turn").0, Timing::Free);
    }

    fn starved(figures: &str) -> Result<(), Failure> {
        Err(Failure::Starved(figures.into(), "its output".into()))
    }

    /// Runs [`measure`] with these results. Returns its result, the timings that it asked for, and the figures that it reported.
    fn measured(results: Vec<Result<(), Failure>>) -> (Result<(), String>, Vec<Timing>, Vec<String>) {
        let (mut results, mut timings, mut reports) = (results.into_iter(), Vec::new(), Vec::new());
        let once = |timing| {
            timings.push(timing);
            results.next().expect("no more measurements than that")
        };
        let ended = measure(Timing::Free, once, |figures| reports.push(figures.to_owned()));
        (ended, timings, reports)
    }

    #[test]
    fn a_late_control_repeats_the_measurement_alone() {
        let (ended, timings, reports) = measured(vec![starved("first"), starved("second"), Ok(())]);
        assert_eq!(ended, Ok(()));
        assert_eq!(timings, [Timing::Free, Timing::Timed, Timing::Timed]);
        assert_eq!(reports, ["first", "second"]);
    }

    #[test]
    fn a_test_fails_with_all_figures_after_three_late_controls() {
        let (ended, timings, reports) = measured(vec![starved("first"), starved("second"), starved("third")]);
        let why = ended.expect_err("three times starved");
        assert!(["first", "second", "third", "its output"].iter().all(|part| why.contains(part)), "{why}");
        assert_eq!((timings.len(), reports.len()), (MEASUREMENTS, MEASUREMENTS - 1));
    }

    #[test]
    fn a_limit_missed_with_a_control_on_time_fails_at_once() {
        let (ended, timings, reports) = measured(vec![Err(Failure::Real("too slow".into()))]);
        assert_eq!((ended, timings.len(), reports.len()), (Err("too slow".into()), 1, 0));
        let (ended, timings, reports) =
            measured(vec![starved("first"), Err(Failure::Real("too slow".into()))]);
        assert_eq!((ended, timings.len(), reports.len()), (Err("too slow".into()), 2, 1));
    }
}
