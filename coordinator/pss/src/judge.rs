//! When a service group's condition should change: the same class several times running (thesis 3.3.4, 4.2.3).

use crate::{
    class::{Class, Condition, Held, LoadThresholds},
    load::Load,
};
use serde::{Deserialize, Serialize};

/// How many equal judgements running change the condition. Quick to bring capacity back, slow to give it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repeats {
    /// Lc, down to Light.
    pub light: u32,
    /// Mc, to Moderate from either side.
    pub moderate: u32,
    /// Hc, up to Heavy.
    pub heavy: u32,
}

impl Repeats {
    pub(crate) fn of(&self, class: Class) -> u32 {
        match class {
            Class::Light => self.light,
            Class::Moderate => self.moderate,
            Class::Heavy => self.heavy,
        }
    }
}

/// Judgements running that differ from the condition, all on the same side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Run {
    /// The last one agreed with the condition.
    #[default]
    None,
    /// All below the condition, none above `to`.
    Down { to: Class, count: u32 },
    /// All above the condition, none below `to`.
    Up { to: Class, count: u32 },
}

/// What a judgement leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// A member can't be measured: no judgement.
    Unmeasured,
    /// The condition suits the load.
    Suits,
    /// So many more of the same are wanted.
    Waiting {
        /// Which condition.
        to: Condition,
        /// Judgements still missing.
        more: u32,
    },
    /// The condition should change.
    Due {
        /// To this one.
        to: Condition,
    },
}

/// One group's judgements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judge {
    held: Held,
    run: Run,
}

impl Judge {
    /// For a group found in this condition.
    #[must_use]
    pub fn new(condition: Condition) -> Self {
        Self { held: Held::all(condition), run: Run::None }
    }

    /// One round. An unmeasured round ends a run towards less capacity and only interrupts one towards more.
    pub fn round(
        &mut self,
        condition: Condition,
        load: Option<&Load>,
        thresholds: &LoadThresholds,
        repeats: &Repeats,
    ) -> Judgement {
        let Some(load) = load else {
            match self.run {
                Run::Down { .. } => self.run = Run::None,
                Run::None | Run::Up { .. } => {}
            }
            return Judgement::Unmeasured;
        };
        let class = self.held.judge(load, thresholds);
        self.run = match (class.cmp(&condition), self.run) {
            (std::cmp::Ordering::Equal, Run::None | Run::Down { .. } | Run::Up { .. }) => Run::None,
            (std::cmp::Ordering::Less, Run::Down { to, count }) => {
                Run::Down { to: to.max(class), count: count.saturating_add(1) }
            }
            (std::cmp::Ordering::Less, Run::None | Run::Up { .. }) => Run::Down { to: class, count: 1 },
            (std::cmp::Ordering::Greater, Run::Up { to, count }) => {
                Run::Up { to: to.min(class), count: count.saturating_add(1) }
            }
            (std::cmp::Ordering::Greater, Run::None | Run::Down { .. }) => Run::Up { to: class, count: 1 },
        };
        match self.run {
            Run::None => Judgement::Suits,
            Run::Down { to, count } | Run::Up { to, count } => {
                match repeats.of(to).checked_sub(count).filter(|more| *more > 0) {
                    Some(more) => Judgement::Waiting { to, more },
                    None => Judgement::Due { to },
                }
            }
        }
    }

    /// The class of the last measured round.
    #[must_use]
    pub fn class(&self) -> Class {
        self.held.highest()
    }

    /// The arrangement was changed: what was judged before says nothing about it.
    pub fn changed(&mut self) {
        self.run = Run::None;
    }
}
