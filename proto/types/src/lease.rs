//! The figures of the lease protocol and the arithmetic that ties them (docs/safety.md, rules 2, 3, 5).

use crate::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A named set of timings. `normal` is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// The thesis's own waits: 10 s interval, 10 s lease.
    Thesis,
    /// 500 ms probes, 2 s lease.
    #[default]
    Normal,
    /// 100 ms probes, 0.8 s lease.
    Fast,
}

impl Profile {
    /// As written in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Thesis => "thesis",
            Profile::Normal => "normal",
            Profile::Fast => "fast",
        }
    }
}

/// L, K, R, g and ρ of the lease protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseTiming {
    /// L: a grant is good for this long after its request was sent.
    pub lease: Duration,
    /// K: life of an `armed` or `live` element in the kernel.
    pub element: Duration,
    /// R: interval between renewals.
    pub renewal: Duration,
    /// g: how late the kernel's timer may fire.
    pub slack: Duration,
    /// Length of the lease taken before a planned stop of an agent.
    pub long_lease: Duration,
}

/// Timings that can't keep one owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseTimingError {
    /// Rule 3.
    #[error(
        "lease {lease:?} is shorter than 2 x element {element:?} + 2 x slack {slack:?} + renewal {renewal:?}: a stalled owner could outlive its lease"
    )]
    TooShort {
        /// L
        lease: Duration,
        /// K
        element: Duration,
        /// R
        renewal: Duration,
        /// g
        slack: Duration,
    },
    /// Every ordinary delay would then be a lapse.
    #[error("element life {element:?} must be at least twice the renewal interval {renewal:?}")]
    RareRenewal {
        /// K
        element: Duration,
        /// R
        renewal: Duration,
    },
    /// Not a lease but a mistake.
    #[error("{0:?} is too long for a lease: no figure of it may exceed a day")]
    TooLong(Duration),
    /// A long lease that is not long.
    #[error("long lease {long:?} must exceed lease {lease:?} plus element life")]
    ShortLong {
        /// Long lease
        long: Duration,
        /// L
        lease: Duration,
    },
}

/// A target whose lease lasts longer is never taken over.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// ρ: two machines' clocks drift by at most one in this many.
const DRIFT_DIVISOR: u32 = 1000;

impl LeaseTiming {
    /// The timing of a profile.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let ms = Duration::from_millis;
        let (lease, element, renewal) = match profile {
            Profile::Thesis => (ms(10_000), ms(3_500), ms(1_000)),
            Profile::Normal => (ms(2_000), ms(700), ms(200)),
            Profile::Fast => (ms(800), ms(300), ms(80)),
        };
        Self { lease, element, renewal, slack: ms(50), long_lease: ms(30_000) }
    }

    /// Are these figures safe?
    ///
    /// # Errors
    /// The first rule they break.
    pub fn check(&self) -> Result<(), LeaseTimingError> {
        let Self { lease, element, renewal, slack, long_lease } = *self;
        // Whatever a file or a peer says: sums of these must not overflow later.
        let longest = [lease, element, renewal, slack, long_lease].into_iter().max().unwrap_or_default();
        if longest > LONGEST {
            return Err(LeaseTimingError::TooLong(longest));
        }
        if lease < 2 * element + 2 * slack + renewal {
            return Err(LeaseTimingError::TooShort { lease, element, renewal, slack });
        }
        if renewal.is_zero() || element < 2 * renewal {
            return Err(LeaseTimingError::RareRenewal { element, renewal });
        }
        if long_lease < lease + 2 * element {
            return Err(LeaseTimingError::ShortLong { long: long_lease, lease });
        }
        Ok(())
    }

    /// The latest instant at which a renewal may be begun for a grant of `length` whose request was sent at `sent`:
    /// b + L − 2K − 2g (rule 3). The existing element ends by then + K + g, hence the renewed one by b + L.
    #[must_use]
    pub fn renew_until(&self, sent: Time, length: Duration) -> Time {
        (sent + length).before(self.element.saturating_add(self.slack).saturating_mul(2))
    }

    /// Life of the element set for a long lease: it ends K + g before the lease does, so that a delayed later
    /// renewal of it still ends in time.
    #[must_use]
    pub fn long_element(&self) -> Duration {
        let delayed = self.element.saturating_add(self.slack).saturating_mul(3);
        self.long_lease.saturating_sub(delayed).saturating_sub(self.lease)
    }

    /// How long the granter waits after deciding a grant of `length`: L(1 + 2ρ) (rule 2).
    #[must_use]
    pub fn patience(length: Duration) -> Duration {
        length.saturating_add(length.saturating_mul(2) / DRIFT_DIVISOR)
    }

    /// The longest stall of an owner that costs no lapse: K − R.
    #[must_use]
    pub fn stall_tolerance(&self) -> Duration {
        self.element.saturating_sub(self.renewal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_safe() {
        for profile in [Profile::Thesis, Profile::Normal, Profile::Fast] {
            LeaseTiming::of(profile).check().expect("profile");
        }
    }

    #[test]
    fn a_short_lease_is_refused() {
        let timing = LeaseTiming { lease: Duration::from_millis(1600), ..LeaseTiming::of(Profile::Normal) };
        assert!(matches!(timing.check(), Err(LeaseTimingError::TooShort { .. })));
    }

    #[test]
    fn patience_outlasts_a_drifting_lease() {
        assert_eq!(LeaseTiming::patience(Duration::from_secs(2)), Duration::from_millis(2004));
    }
}
