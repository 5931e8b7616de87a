//! Each machine's CLOCK_BOOTTIME against true time.

use kage_types::Time;
use std::time::Duration;

/// True time in nanoseconds since the world began. Known to nobody in it.
pub type Ns = u64;

/// One millisecond.
pub const MS: Ns = 1_000_000;
/// One second.
pub const SEC: Ns = 1_000_000_000;

/// Nanoseconds of a duration.
#[must_use]
pub fn ns(duration: Duration) -> Ns {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A clock that began at another time and runs a little wrong.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: i128,
    drift_ppb: i128,
}

impl Clock {
    /// A clock that shows `shows` at `now` and gains `drift_ppb` nanoseconds a second.
    #[must_use]
    pub fn new(now: Ns, shows: Ns, drift_ppb: i64) -> Self {
        let drift_ppb = i128::from(drift_ppb);
        Self { offset: i128::from(shows) - run(i128::from(now), drift_ppb), drift_ppb }
    }

    /// What it shows at this true time.
    #[must_use]
    pub fn at(&self, now: Ns) -> Time {
        let shows = self.offset + run(i128::from(now), self.drift_ppb);
        Time::from_nanos(u64::try_from(shows.max(0)).unwrap_or(u64::MAX))
    }

    /// The true time from which on it shows this or more.
    #[must_use]
    pub fn when(&self, shows: Time) -> Ns {
        if shows == Time::FAR {
            return Ns::MAX;
        }
        let wanted = i128::from(shows.as_nanos()) - self.offset;
        let scale = 1_000_000_000 + self.drift_ppb;
        let guess = (wanted * 1_000_000_000).div_euclid(scale) - 1;
        let mut found = u64::try_from(guess.max(0)).unwrap_or(u64::MAX);
        while self.at(found) < shows {
            found += 1;
        }
        found
    }

    /// The same clock after a restart of its machine.
    #[must_use]
    pub fn restarted(&self, now: Ns) -> Self {
        let drift_ppb = i64::try_from(self.drift_ppb).unwrap_or(0);
        Self::new(now, SEC, drift_ppb)
    }
}

fn run(now: i128, drift_ppb: i128) -> i128 {
    now + now * drift_ppb / 1_000_000_000
}
