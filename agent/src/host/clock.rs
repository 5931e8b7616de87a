//! The clock that goes on while the host sleeps.

use kage_types::Time;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// A smaller difference is the two clocks being read one after the other, with a stall in between.
const SMALLEST_JUMP: Duration = Duration::from_millis(200);

/// CLOCK_BOOTTIME: nanoseconds since this machine started, sleep included.
#[must_use]
pub fn now() -> Time {
    Time::from_nanos(nanos(clock_gettime(ClockId::Boottime)))
}

/// Notices that the host was suspended: CLOCK_BOOTTIME went on, CLOCK_MONOTONIC did not.
#[derive(Debug, Clone)]
pub struct SleepDetector {
    asleep: Duration,
}

impl SleepDetector {
    /// Sleeps up to now don't count.
    #[must_use]
    pub fn new() -> Self {
        Self { asleep: asleep() }
    }

    /// How long the host slept since the last call, if it did (at least 0.2 s). All leases are void then
    /// (safety rule 9).
    pub fn slept(&mut self) -> Option<Duration> {
        self.advance(asleep())
    }

    fn advance(&mut self, asleep: Duration) -> Option<Duration> {
        let slept = asleep.saturating_sub(self.asleep);
        if slept < SMALLEST_JUMP {
            return None;
        }
        self.asleep = asleep;
        Some(slept)
    }
}

impl Default for SleepDetector {
    fn default() -> Self {
        Self::new()
    }
}

/// All the time this machine has been asleep. BOOTTIME is read first: a stall between the two makes it smaller, never
/// larger, so that a stall is not taken for a sleep.
fn asleep() -> Duration {
    let boottime = nanos(clock_gettime(ClockId::Boottime));
    let monotonic = nanos(clock_gettime(ClockId::Monotonic));
    Duration::from_nanos(boottime.saturating_sub(monotonic))
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_the_uptime_and_rises() {
        let uptime = std::fs::read_to_string("/proc/uptime").expect("proc");
        let uptime: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("number");
        let first = now();
        assert!((first.as_nanos() as f64 / 1e9 - uptime).abs() < 1.0);
        assert!(now() >= first);
    }

    #[test]
    fn a_sleep_is_told_once_and_a_stall_never() {
        let mut detector = SleepDetector::new();
        assert_eq!(detector.slept(), None);
        let before = detector.asleep;
        assert_eq!(detector.advance(before + Duration::from_millis(10)), None);
        assert_eq!(detector.advance(before + Duration::from_secs(3)), Some(Duration::from_secs(3)));
        assert_eq!(detector.advance(before + Duration::from_secs(3)), None);
    }
}
