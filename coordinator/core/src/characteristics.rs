//! What was measured of each target (thesis table 2.1): the figures that predictions are made from.

use kage_types::{ServiceName, TargetName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Of all targets; kept by the coordinator in `characteristics.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Characteristics {
    /// Each by name.
    pub targets: BTreeMap<TargetName, Figures>,
}

/// Of one target. What is absent was not measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Trs: from Wake-on-LAN to the first good probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trs: Option<Measured>,
    /// Trr: from the order to reboot to the first good probe after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trr: Option<Measured>,
    /// Tvs: from the order to resume the double to its first good answer at its own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tvs: Option<Measured>,
    /// Tna: a ping of the target when it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tna: Option<Measured>,
    /// Tnd: a ping when it is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tnd: Option<Measured>,
    /// Tsw: from the order to restart a service to its first good probe.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tsw: BTreeMap<ServiceName, Measured>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Median of the runs, rounded up.
    pub median_ms: u64,
    /// The worst of them.
    pub worst_ms: u64,
    /// How many.
    pub runs: u32,
    /// When the last ended.
    pub unix_ms: u64,
    /// How it was measured, from where.
    pub conditions: String,
}

impl Measured {
    /// Of these runs; none if there are none.
    #[must_use]
    pub fn of(mut runs: Vec<Duration>, unix_ms: u64, conditions: String) -> Option<Self> {
        runs.sort();
        let worst = *runs.last()?;
        let ms = |duration: Duration| u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let median = (runs[(runs.len() - 1) / 2] + runs[runs.len() / 2]) / 2;
        let count = u32::try_from(runs.len()).unwrap_or(u32::MAX);
        Some(Self { median_ms: ms(median), worst_ms: ms(worst), runs: count, unix_ms, conditions })
    }
}

impl Characteristics {
    /// What was measured now replaces what was measured before; the rest stays.
    pub fn learn(&mut self, target: TargetName, new: Figures) {
        let known = self.targets.entry(target).or_default();
        let Figures { trs, trr, tvs, tna, tnd, tsw } = new;
        for (known, new) in [
            (&mut known.trs, trs),
            (&mut known.trr, trr),
            (&mut known.tvs, tvs),
            (&mut known.tna, tna),
            (&mut known.tnd, tnd),
        ] {
            if new.is_some() {
                *known = new;
            }
        }
        known.tsw.extend(tsw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between() {
        let ms = Duration::from_millis;
        let measured = Measured::of(vec![ms(30), ms(10), ms(20), ms(90)], 5, "lab".into()).expect("runs");
        assert_eq!((measured.median_ms, measured.worst_ms, measured.runs), (25, 90, 4));
        assert_eq!(Measured::of(Vec::new(), 5, String::new()), None);
    }

    #[test]
    fn what_was_not_measured_again_stays() {
        let target: TargetName = "mail".parse().expect("name");
        let one = |ms| Measured::of(vec![Duration::from_millis(ms)], 1, String::new());
        let mut all = Characteristics::default();
        all.learn(target.clone(), Figures { trs: one(9), tna: one(1), ..Figures::default() });
        all.learn(target.clone(), Figures { tna: one(2), ..Figures::default() });
        assert_eq!(all.targets[&target], Figures { trs: one(9), tna: one(2), ..Figures::default() });
    }
}
