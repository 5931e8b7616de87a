//! Points of a journal, as people give them, and times as people read them.

use super::Wall;
use jiff::{Timestamp, civil, tz::TimeZone};
use kage_types::Time;

/// A point of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// An event's number.
    Event(u64),
    /// On the journal's own clock.
    Clock(Time),
    /// On the wall clock, milliseconds since 1970.
    Wall(u64),
}

impl Moment {
    /// `4711` (event), `25045.350` (seconds of the journal's clock), `2026-11-22T21:35:00Z`, `2026-11-22 22:35:00.5`, or,
    /// with today's date, `22:35:00`.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str, zone: &TimeZone, today: civil::Date) -> Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Event(number));
        }
        if let Some((seconds, rest)) = text.split_once('.')
            && let Ok(seconds) = seconds.parse::<u64>()
            && !rest.is_empty()
            && rest.len() <= 9
            && rest.bytes().all(|byte| byte.is_ascii_digit())
        {
            let nanos: u64 = format!("{rest:0<9}").parse().map_err(|_| format!("{text:?} is no time"))?;
            return Ok(Self::Clock(Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))));
        }
        let wall = |at: Timestamp| u64::try_from(at.as_millisecond()).ok().map(Self::Wall);
        let civil = || {
            let time = text.parse::<civil::DateTime>().ok();
            let time = time.or_else(|| Some(today.to_datetime(text.parse::<civil::Time>().ok()?)));
            time?.to_zoned(zone.clone()).ok().map(|zoned| zoned.timestamp())
        };
        text.parse::<Timestamp>().ok().or_else(civil).and_then(wall).ok_or_else(|| {
            format!(
                "{text:?} is no point of a journal: give a time (22:35:00, \"2026-11-22 22:35:00\", \
                 2026-11-22T21:35:00Z), seconds of the journal's clock (25045.350) or the number of an event (4711)"
            )
        })
    }

    /// Is it before this event? A time whose clock is not known is never.
    pub(crate) fn is_before(self, seq: u64, now: Time, wall: Option<Wall>) -> bool {
        match self {
            Self::Event(number) => seq > number,
            Self::Clock(time) => now > time,
            Self::Wall(unix_ms) => wall.is_some_and(|wall| wall.at(now) > unix_ms),
        }
    }
}

/// Date and time, to the millisecond.
#[must_use]
pub fn stamp(unix_ms: u64, zone: &TimeZone) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "?".into(), |at| at.to_zoned(zone.clone()).strftime("%F %T%.3f").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read() {
        let parse = |text: &str| Moment::parse(text, &TimeZone::UTC, civil::date(2026, 11, 22));
        assert_eq!(parse("4711"), Ok(Moment::Event(4711)));
        assert_eq!(parse("25045.35"), Ok(Moment::Clock(Time::from_millis(25_045_350))));
        let wall = Ok(Moment::Wall(1_795_386_961_665));
        for text in ["2026-11-22T22:36:01.665Z", "2026-11-22 22:36:01.665", "22:36:01.665"] {
            assert_eq!(parse(text), wall, "{text}");
        }
        for text in ["", "yesterday", "1.2.3", "-5", "25:00:00"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(stamp(1_795_386_961_665, &TimeZone::UTC), "2026-11-22 22:36:01.665");
    }
}
