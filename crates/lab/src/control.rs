//! The control of every measurement. A thread of the lab sleeps 10 ms at a time and records how late it wakes up. It
//! does not depend on twill. A limit missed while the control was on time is the product's failure. A limit missed
//! while the control was late proves nothing: the machine was starved, and the test is measured again. No limit is
//! raised here.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::wait::patient;

/// Time between two wake-ups.
const TICK: Duration = Duration::from_millis(10);
/// Lateness of one wake-up that is ignored: the timers of an idle virtual machine are as late.
const SLACK: Duration = Duration::from_millis(1);
/// Shortest window that is judged. In a shorter one, a few wake-ups could miss a starved machine. Besides, a program
/// may wait because of a result that is some seconds old.
const SHORTEST: Duration = Duration::from_secs(5);
/// Lateness in thousandths of the window from which the machine counts as starved. Over 5 s, an idle machine of two
/// cores has 1 to 4. Two busy processes per core make it 40 to 190.
const STARVED: u32 = 10;

/// Lateness of the control in a window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lateness {
    window: Duration,
    total: Duration,
    worst: Duration,
}

impl Lateness {
    /// Returns true if the machine was starved: a process that wanted to run had to wait for the processor.
    pub(crate) fn is_starved(&self) -> bool {
        self.total * 1000 >= self.window * STARVED
    }
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |span: Duration| span.as_secs_f64() * 1000.0;
        write!(
            f,
            "the control was {:.0} ms late in {:.1} s, {:.0} ms at worst",
            ms(self.total),
            self.window.as_secs_f64(),
            ms(self.worst)
        )
    }
}

#[derive(Debug)]
struct Ticks {
    begun: Instant,
    due: Instant,
    /// Wake-ups later than [`SLACK`]: the time when each was due, and its lateness beyond [`SLACK`].
    late: Vec<(Instant, Duration)>,
}

/// A running control; it ends with the process.
#[derive(Clone, Debug)]
pub(crate) struct Control(Arc<Mutex<Ticks>>);

impl Control {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        let control = Self(Arc::new(Mutex::new(Ticks { begun: now, due: now + TICK, late: Vec::new() })));
        let of = control.clone();
        let tick = move || {
            loop {
                let due = of.ticks().due;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                of.ticks().woken(Instant::now());
            }
        };
        thread::Builder::new().name("control".into()).spawn(tick).expect("a thread for the control");
        control
    }

    /// Returns the lateness since `start`, but over at least the last [`SHORTEST`].
    pub(crate) fn since(&self, start: Instant) -> Lateness {
        self.ticks().since(start, Instant::now())
    }

    fn ticks(&self) -> MutexGuard<'_, Ticks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticks {
    fn woken(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.due).saturating_sub(SLACK);
        if !late.is_zero() {
            self.late.push((self.due, late));
        }
        self.due = now + TICK;
    }

    fn since(&self, start: Instant, now: Instant) -> Lateness {
        let earliest = now.checked_sub(SHORTEST).unwrap_or(start).min(start).max(self.begun);
        // A wake-up that is due and has not come yet counts as late.
        let pending = (self.due, now.saturating_duration_since(self.due).saturating_sub(SLACK));
        let late = || {
            let inside = |(due, late): &(Instant, Duration)| {
                (*due + SLACK + *late).checked_duration_since(earliest).map(|in_window| in_window.min(*late))
            };
            self.late.iter().chain([&pending]).filter_map(inside)
        };
        Lateness {
            window: now.saturating_duration_since(earliest),
            total: late().sum(),
            worst: late().max().unwrap_or_default(),
        }
    }
}

/// Returns the control of this process; starts it at the first call.
pub(crate) fn control() -> &'static Control {
    static CONTROL: OnceLock<Control> = OnceLock::new();
    CONTROL.get_or_init(Control::start)
}

/// A missed limit: its name with the product's figure, and the lateness of the control.
#[derive(Clone, Debug)]
struct Miss {
    what: String,
    control: Lateness,
}

static MISSES: Mutex<Vec<Miss>> = Mutex::new(Vec::new());

/// Records that the work that began at `start` has missed its limit.
pub(crate) fn missed(what: String, start: Instant) {
    let control = control().since(start);
    MISSES.lock().unwrap_or_else(PoisonError::into_inner).push(Miss { what, control });
}

/// Returns why a failure of this test proves nothing: the last limit that was missed on a starved machine.
pub(crate) fn excuse() -> Option<String> {
    excused(&MISSES.lock().unwrap_or_else(PoisonError::into_inner))
}

fn excused(misses: &[Miss]) -> Option<String> {
    let starved = misses.iter().rev().find(|miss| miss.control.is_starved())?;
    Some(format!("{}; {}", starved.what.replace('\n', " "), starved.control))
}

/// Returns true if something that is over took less time than its limit. Every claim about time is made here or by
/// [`in_time`]. If it fails on a starved machine, the test is measured again.
pub fn is_in_time(what: &str, took: Duration, limit: Duration) -> bool {
    let limit = patient(limit);
    if took >= limit {
        missed(
            format!("{what} took {took:.3?} of {limit:?}"),
            Instant::now().checked_sub(took).unwrap_or(Instant::now()),
        );
    }
    took < limit
}

/// Panics with `what` unless it took less time than its limit; see [`is_in_time`].
pub fn in_time(what: &str, took: Duration, limit: Duration) {
    assert!(is_in_time(what, took, limit), "{what} took {took:.3?}, the limit is {:?}", patient(limit));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ticks(begun: Instant, late: &[(u32, u32)]) -> Ticks {
        let mut ticks = Ticks { begun, due: begun + TICK, late: Vec::new() };
        for (at, by) in late {
            ticks.due = begun + *at * MS;
            ticks.woken(begun + (at + by) * MS);
        }
        ticks.due = begun + Duration::from_secs(3600);
        ticks
    }

    #[test]
    fn lateness_is_counted_in_its_window() {
        let begun = Instant::now();
        let ticks = ticks(begun, &[(100, 21), (11_500, 6), (11_900, 1), (12_500, 11), (12_600, 31)]);
        let since = |start: u32, now: u32| ticks.since(begun + start * MS, begun + now * MS);
        let all = since(0, 20_000);
        assert_eq!((all.window, all.total, all.worst), (20_000 * MS, 65 * MS, 30 * MS));
        let last = since(12_000, 17_000);
        assert_eq!((last.window, last.total, last.worst), (5000 * MS, 40 * MS, 30 * MS));
        // A window that begins during a late wake-up counts the rest of that lateness.
        assert_eq!(since(11_504, 17_000).total, 42 * MS);
        // A short window is extended, but not to before the control's start.
        assert_eq!(since(16_990, 17_000), last);
        assert_eq!(since(490, 500).window, 500 * MS);
    }

    #[test]
    fn an_overdue_wake_up_counts_as_late() {
        let begun = Instant::now();
        let mut ticks = ticks(begun, &[]);
        ticks.due = begun + 1000 * MS;
        let lateness = ticks.since(begun, begun + 2001 * MS);
        assert_eq!((lateness.total, lateness.worst), (1000 * MS, 1000 * MS));
        assert!(lateness.is_starved());
    }

    #[test]
    fn the_last_limit_missed_with_a_late_control_is_excused() {
        let miss = |what: &str, total: u32| Miss {
            what: what.into(),
            control: Lateness { window: 2000 * MS, total: total * MS, worst: total.min(7) * MS },
        };
        assert_eq!(excused(&[]), None);
        assert_eq!(excused(&[miss("on time", 19)]), None);
        let both = excused(&[miss("first", 300), miss("the repair took 1.2 s", 20), miss("on time", 0)]);
        assert_eq!(
            both.as_deref(),
            Some("the repair took 1.2 s; the control was 20 ms late in 2.0 s, 7 ms at worst")
        );
    }

    #[test]
    fn a_running_control_wakes_up() {
        let control = Control::start();
        let first = control.ticks().due;
        assert!(
            crate::wait::until(Duration::from_secs(10), || (control.ticks().due > first).then_some(()))
                .is_some()
        );
    }

    #[test]
    fn a_limit_is_missed_when_it_is_reached() {
        assert!(is_in_time("quick", 999 * MS, 1000 * MS));
        assert!(!is_in_time("slow", patient(1000 * MS), 1000 * MS));
        let misses = MISSES.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(misses.iter().any(|miss| miss.what.starts_with("slow took")));
        assert!(!misses.iter().any(|miss| miss.what.starts_with("quick")));
    }
}
