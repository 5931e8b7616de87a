//! The clock of this machine.

use kage_types::Time;

/// CLOCK_BOOTTIME, now.
pub fn now() -> Time {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(clock.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(clock.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Wall clock for people, milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
