//! Everything that is not a clear pass inside is a failure outside.

use std::time::Duration;

use lab::Timing;

#[test]
#[should_panic(expected = "failed in the lab")]
fn a_body_that_panics() {
    lab::test(Timing::Free, || panic!("on purpose"));
}

#[test]
#[should_panic(expected = "not done after")]
fn a_body_that_hangs() {
    lab::test_within(Duration::from_secs(1), Timing::Free, || std::thread::sleep(Duration::from_secs(60)));
}

fn helper() {
    lab::test(Timing::Free, || {});
}

#[test]
#[should_panic(expected = "the lab found no test of that name")]
fn a_body_that_belongs_to_no_test() {
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
