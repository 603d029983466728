//! Time of the judges: whole milliseconds since the daemon's start.

use std::num::NonZeroU16;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A time in milliseconds since the daemon's start, from the highest 16 bits to the lowest. Six bytes hold it and `None`, where
/// an `Option<Duration>` takes 16. A judge of 360 to 640 bytes keeps 23 to 42 times, so this saves a third of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(NonZeroU16, u16, u16);

impl From<Duration> for Time {
    fn from(since_start: Duration) -> Self {
        let millis = since_start.as_millis();
        Self(NonZeroU16::MIN.saturating_add((millis >> 32) as u16), (millis >> 16) as u16, millis as u16)
    }
}

impl From<Time> for Duration {
    fn from(Time(high, middle, low): Time) -> Self {
        let high = u64::from(high.get() - 1) << 32;
        Self::from_millis(high | u64::from(middle) << 16 | u64::from(low))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self::from(Duration::from(self) + duration)
    }
}

/// Time between two times; zero if the first one is earlier.
impl Sub for Time {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        Duration::from(self).saturating_sub(earlier.into())
    }
}
