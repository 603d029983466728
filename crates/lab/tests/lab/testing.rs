//! Every result inside the lab except a clear pass is a failure outside.

use std::process::{Child, Command};
use std::time::Duration;

use lab::Timing;

#[test]
#[should_panic(expected = "failed in the lab")]
fn a_body_that_panics_fails_the_test() {
    lab::test(Timing::Free, || panic!("on purpose"));
}

#[test]
#[should_panic(expected = "not done after")]
fn a_body_that_hangs_fails_at_its_deadline() {
    lab::test_within(Duration::from_secs(1), Timing::Free, || std::thread::sleep(Duration::from_secs(60)));
}

fn helper() {
    lab::test(Timing::Free, || {});
}

#[test]
#[should_panic(expected = "the lab found no test of that name")]
fn a_body_outside_of_a_test_fails() {
    helper();
}

#[test]
fn a_body_runs_in_the_lab() {
    lab::test(Timing::Free, || {
        assert!(lab::enter::inside());
        assert_eq!(std::process::id(), 1);
        assert!(std::env::temp_dir().starts_with(lab::enter::work_dir()));
    });
}

struct Burner(Child);

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets the control run only when nothing else wants to. The scheduler serves a thread that sleeps most of the time almost at
/// once, however many others are busy.
fn starve_the_control() {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let is_control = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "control")
    };
    let control = tasks.into_iter().find(is_control).expect("the control runs");
    let idle = Command::new("chrt").args(["--idle", "--pid", "0"]).arg(control.file_name()).output();
    assert!(idle.as_ref().is_ok_and(|output| output.status.success()), "{idle:?}");
}

/// Starts four processes per core that burn CPU, and returns them after three seconds.
fn burners() -> Vec<Burner> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let burn = |_| Burner(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh"));
    let burners = (0..4 * cores).map(burn).collect();
    starve_the_control();
    lab::holds_for("they burn", Duration::from_secs(3), || true);
    burners
}

/// The machine is really starved here; the failure shows the figures of the product and of the control.
#[test]
#[should_panic(expected = "missed a limit in each of 3 measurements on a starved machine:\n\
                           the repair took 1.500s of 1s; the control was ")]
fn a_limit_missed_on_a_starved_machine_is_measured_three_times() {
    lab::test(Timing::Timed, || {
        let _burners = burners();
        lab::in_time("the repair", Duration::from_millis(1500), Duration::from_secs(1));
    });
}

/// The failure is not a matter of time, so the test fails at once.
#[test]
#[should_panic(expected = "failed in the lab")]
fn a_wrong_result_on_a_starved_machine_fails_at_once() {
    lab::test(Timing::Timed, || {
        let _burners = burners();
        lab::in_time("the repair", Duration::from_secs(1), Duration::from_secs(2));
        panic!("on purpose");
    });
}
