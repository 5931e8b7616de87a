//! Quantities with their unit, in whole numbers: the same on every machine and in every replay.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// From MiB.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Bytes(mib.saturating_mul(1 << 20))
    }

    /// From GiB.
    #[must_use]
    pub const fn gib(gib: u64) -> Self {
        Bytes(gib.saturating_mul(1 << 30))
    }

    /// Sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Bytes(self.0.saturating_add(other.0))
    }

    /// Difference, not below zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BytesPerSecond(pub u64);

impl BytesPerSecond {
    /// What a link of so many Mbit/s carries, both ways together: Nrat of (4.3). The thesis counts 128 × 10³ KB/s for
    /// 1,000 Mbit/s (256 × 10³ both ways), which are 1,024; here a Mbit is 10⁶ bits, as link speeds are named.
    #[must_use]
    pub const fn rated(mbit_per_second: u64) -> Self {
        BytesPerSecond(mbit_per_second.saturating_mul(1_000_000 / 8 * 2))
    }
}

/// A share, in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Percent(pub u32);

impl Percent {
    /// 100 %.
    pub const WHOLE: Percent = Percent::of(100);

    /// From whole percents.
    #[must_use]
    pub const fn of(percent: u32) -> Self {
        Percent(percent.saturating_mul(100))
    }

    /// `part` / `whole` × 100; none if there is no whole.
    #[must_use]
    pub fn ratio(part: u128, whole: u128) -> Option<Self> {
        let hundredths = part.checked_mul(10_000)?.checked_div(whole)?;
        Some(Percent(u32::try_from(hundredths).unwrap_or(u32::MAX)))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}

/// Power, in milliwatts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Watts(pub u64);

impl Watts {
    /// From whole watts.
    #[must_use]
    pub const fn of(watts: u64) -> Self {
        Watts(watts.saturating_mul(1000))
    }

    /// Sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Watts(self.0.saturating_add(other.0))
    }

    /// Difference, not below zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Watts(self.0.saturating_sub(other.0))
    }

    /// Drawn for so long.
    #[must_use]
    pub fn over(self, time: Duration) -> Energy {
        Energy(u128::from(self.0).saturating_mul(time.as_millis()))
    }
}

impl fmt::Display for Watts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} W", self.0 / 1000, self.0 % 1000 / 100)
    }
}

/// Energy, in microjoules (milliwatts × milliseconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Energy(pub u128);

impl Energy {
    /// Sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Energy(self.0.saturating_add(other.0))
    }

    /// Difference, not below zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Energy(self.0.saturating_sub(other.0))
    }

    /// Whole watt-hours.
    #[must_use]
    pub const fn watt_hours(self) -> u128 {
        self.0 / 3_600_000_000
    }
}

/// As on the bill.
impl fmt::Display for Energy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wh = self.watt_hours();
        write!(f, "{}.{:03} kWh", wh / 1000, wh % 1000)
    }
}
