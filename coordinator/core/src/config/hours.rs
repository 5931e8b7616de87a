//! Hours of the week in which something may be done by itself, in UTC.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Minutes of a day.
const DAY: u16 = 24 * 60;
/// Milliseconds of a minute.
const MINUTE_MS: u64 = 60_000;
/// As written, Monday first.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// 1 January 1970 was a Thursday.
const EPOCH_DAY: u64 = 3;
const WANTED: &str = "write a window as \"22:00-06:00\", \"Sat,Sun 00:00-24:00\" or \"Mon-Fri 01:30-04:00\" (UTC)";

/// Some windows; none: always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours(Vec<Window>);

/// A window on some days of the week. One that ends before it begins ends on the next day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// On which it begins: a bit each, Monday first.
    days: u8,
    /// Minutes since midnight.
    from: u16,
    /// The first minute after it.
    to: u16,
}

/// The day of the week, Monday is 0, and the minute of that day.
fn day_and_minute(unix_ms: u64) -> (u64, u16) {
    let minutes = unix_ms / MINUTE_MS;
    let (day, minute) = (minutes / u64::from(DAY), minutes % u64::from(DAY));
    ((day + EPOCH_DAY) % 7, u16::try_from(minute).unwrap_or(0))
}

impl Window {
    /// Days on which it begins (a bit each, Monday first); minutes of the day at which it begins and is over, 0 to 1440,
    /// not after its beginning: on the next day.
    #[must_use]
    pub fn parts(self) -> (u8, u16, u16) {
        (self.days, self.from, self.to)
    }

    fn over_midnight(self) -> bool {
        self.to <= self.from
    }

    fn begins_on(self, weekday: u64) -> bool {
        self.days & (1 << weekday) != 0
    }

    fn open(self, weekday: u64, minute: u16) -> bool {
        let begun = self.begins_on(weekday) && minute >= self.from && (minute < self.to || self.over_midnight());
        let still = self.begins_on((weekday + 6) % 7) && self.over_midnight() && minute < self.to;
        begun || still
    }
}

impl Hours {
    /// Of these windows.
    #[must_use]
    pub fn new(windows: Vec<Window>) -> Self {
        Self(windows)
    }

    /// They.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.0
    }

    /// Is there no limit?
    #[must_use]
    pub fn is_always(&self) -> bool {
        self.0.is_empty()
    }

    /// Is it allowed at this time, milliseconds since 1970?
    #[must_use]
    pub fn open(&self, unix_ms: u64) -> bool {
        let (weekday, minute) = day_and_minute(unix_ms);
        self.is_always() || self.0.iter().any(|window| window.open(weekday, minute))
    }

    /// When the next window after this time begins, milliseconds since 1970. None: it is always allowed.
    #[must_use]
    pub fn next_opening(&self, unix_ms: u64) -> Option<u64> {
        let midnight = unix_ms - unix_ms % (u64::from(DAY) * MINUTE_MS);
        let begins = |ahead: u64| {
            let day = midnight.saturating_add(ahead * u64::from(DAY) * MINUTE_MS);
            let on = self.0.iter().filter(move |window| window.begins_on(day_and_minute(day).0));
            on.map(move |window| day.saturating_add(u64::from(window.from) * MINUTE_MS))
        };
        (0..=7).flat_map(begins).filter(|at| *at > unix_ms).min()
    }
}

/// `Mon 22:00 UTC`.
#[must_use]
pub fn day_and_time(unix_ms: u64) -> String {
    let (weekday, minute) = day_and_minute(unix_ms);
    let day = usize::try_from(weekday).ok().and_then(|day| DAYS.get(day)).copied().unwrap_or("?");
    format!("{day} {:02}:{:02} UTC", minute / 60, minute % 60)
}

fn time(text: &str) -> Result<u16, String> {
    let wrong = || format!("{text:?} is no time of day: {WANTED}");
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    let two = |digits: &str| (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(());
    two(hours).and(two(minutes)).ok_or_else(wrong)?;
    let (hours, minutes): (u16, u16) = (hours.parse().map_err(|_| wrong())?, minutes.parse().map_err(|_| wrong())?);
    let total = hours * 60 + minutes;
    if minutes > 59 || total > DAY {
        return Err(format!("{text:?} is no time of day: give 00:00 to 24:00"));
    }
    Ok(total)
}

fn day(text: &str) -> Result<u8, String> {
    let found = DAYS.iter().position(|day| day.eq_ignore_ascii_case(text));
    found.and_then(|day| u8::try_from(day).ok()).ok_or_else(|| format!("{text:?} is no day: use {}", DAYS.join(", ")))
}

/// `Mon`, `Sat,Sun`, `Mon-Fri`, `Fri-Mon`.
fn days(text: &str) -> Result<u8, String> {
    let mut bits = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        bits |= 1 << at;
        while at != last {
            at = (at + 1) % 7;
            bits |= 1 << at;
        }
    }
    Ok(bits)
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let (first, second, more) = (words.next(), words.next(), words.next());
        let (on, times) = match (first, second, more) {
            (Some(times), None, _) => (0b111_1111, times),
            (Some(on), Some(times), None) => (days(on)?, times),
            _ => return Err(WANTED.to_owned()),
        };
        let (from, to) = times.split_once('-').ok_or(WANTED)?;
        let (from, to) = (time(from)?, time(to)?);
        if from == DAY {
            return Err("24:00 begins no window: write 00:00 of the day after".to_owned());
        }
        if from == to {
            return Err("it ends when it begins: for whole days write 00:00-24:00".to_owned());
        }
        Ok(Self { days: on, from, to })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = DAYS.iter().enumerate().filter(|(day, _)| self.days & (1 << day) != 0).map(|(_, name)| *name);
        let on: Vec<&str> = on.collect();
        if on.len() < DAYS.len() {
            write!(f, "{} ", on.join(","))?;
        }
        write!(f, "{:02}:{:02}-{:02}:{:02}", self.from / 60, self.from % 60, self.to / 60, self.to % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sunday 22 November 2026, 22:36:01 UTC.
    const SUNDAY: u64 = 1_795_386_961_665;
    const HOUR: u64 = 60 * MINUTE_MS;

    fn hours(windows: &[&str]) -> Hours {
        Hours::new(
            windows.iter().map(|text| text.parse().unwrap_or_else(|reason| panic!("{text}: {reason}"))).collect(),
        )
    }

    #[test]
    fn windows_are_read_and_written_back() {
        for (text, again) in [
            ("22:00-06:00", "22:00-06:00"),
            ("Sat,Sun 00:00-24:00", "Sat,Sun 00:00-24:00"),
            ("fri-mon 01:30-04:00", "Mon,Fri,Sat,Sun 01:30-04:00"),
            ("Mon-Sun 05:00-05:01", "05:00-05:01"),
        ] {
            assert_eq!(text.parse::<Window>().map(|window| window.to_string()), Ok(again.to_owned()));
        }
        for (text, why) in [
            ("", "write a window"),
            ("22:00", "write a window"),
            ("night", "write a window"),
            ("22:00-6:00", "\"6:00\" is no time of day"),
            ("22:00-06:60", "give 00:00 to 24:00"),
            ("22:00-24:01", "give 00:00 to 24:00"),
            ("24:00-06:00", "begins no window"),
            ("22:00-22:00", "whole days"),
            ("Son 22:00-23:00", "no day: use Mon"),
            ("Sat Sun 22:00-23:00", "write a window"),
            ("+1:00-02:00", "no time of day"),
        ] {
            let reason = text.parse::<Window>().expect_err(text);
            assert!(reason.contains(why), "{text}: {reason}");
        }
    }

    #[test]
    fn a_window_over_midnight_is_of_the_day_on_which_it_begins() {
        assert_eq!(day_and_time(SUNDAY), "Sun 22:36 UTC");
        let night = hours(&["22:00-06:00"]);
        assert!(night.open(SUNDAY) && night.open(SUNDAY + 7 * HOUR) && !night.open(SUNDAY + 8 * HOUR));
        let sunday = hours(&["Sun 22:00-06:00"]);
        assert!(sunday.open(SUNDAY) && sunday.open(SUNDAY + 7 * HOUR), "into Monday");
        assert!(!sunday.open(SUNDAY - 24 * HOUR) && !sunday.open(SUNDAY + 24 * HOUR));
        let monday = hours(&["Mon 22:00-06:00"]);
        assert!(!monday.open(SUNDAY) && !monday.open(SUNDAY + 2 * HOUR) && monday.open(SUNDAY + 24 * HOUR));
        assert!(Hours::default().open(SUNDAY) && Hours::default().next_opening(SUNDAY).is_none());
    }

    #[test]
    fn the_next_opening_is_known() {
        let opens = |windows: &[&str]| hours(windows).next_opening(SUNDAY).map(day_and_time);
        assert_eq!(opens(&["22:00-06:00"]).as_deref(), Some("Mon 22:00 UTC"));
        assert_eq!(opens(&["22:00-06:00", "Mon-Fri 12:30-13:00"]).as_deref(), Some("Mon 12:30 UTC"));
        assert_eq!(opens(&["Sun 22:00-23:00"]).as_deref(), Some("Sun 22:00 UTC"), "in a week");
        assert_eq!(opens(&["23:00-23:30"]).as_deref(), Some("Sun 23:00 UTC"), "today");
        let whole = hours(&["Sat,Sun 00:00-24:00"]);
        assert!(whole.open(SUNDAY) && !whole.open(SUNDAY + 2 * HOUR));
    }
}
