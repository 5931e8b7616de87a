//! Load class with thresholds and dead bands: thesis fig. 3.5 (four thresholds) and fig. 4.5 (two).

use crate::{load::Load, units::Percent};
pub use kage_types::{Class, Condition};
use serde::{Deserialize, Serialize};

/// Regions of a load between the thresholds (fig. 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Region {
    /// Below Light load.
    L,
    /// Dead band between Light load and Moderate load1.
    Ml,
    /// From Moderate load1.
    M,
    /// Dead band between Moderate load2 and Heavy load.
    Hm,
    /// From Heavy load.
    H,
}

/// Thresholds of one kind of load. Lower bounds belong to the region above: L < Light load ≤ ML < Moderate load1 ≤ M <
/// Moderate load2 ≤ HM < Heavy load ≤ H.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// "Light load": below it, Light. The way down.
    pub light: Percent,
    /// "Moderate load1" (chapter 4: "Moderate load"): from it, Moderate. The way up.
    pub moderate1: Percent,
    /// None: no Heavy class, as in chapter 4.
    pub heavy: Option<HeavyThresholds>,
}

/// The two upper thresholds of chapter 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeavyThresholds {
    /// "Moderate load2": below it, Heavy is over.
    pub moderate2: Percent,
    /// "Heavy load": from it, Heavy.
    pub heavy: Percent,
}

impl Thresholds {
    /// Which region is it in?
    #[must_use]
    pub fn region(&self, load: Percent) -> Region {
        if load < self.light {
            return Region::L;
        }
        if load < self.moderate1 {
            return Region::Ml;
        }
        match self.heavy {
            Some(upper) if load >= upper.heavy => Region::H,
            Some(upper) if load >= upper.moderate2 => Region::Hm,
            Some(_) | None => Region::M,
        }
    }
}

/// The class for a load in `region` when `held` was its class before: thesis 3.3.3 as a total rule. Nothing skips
/// Moderate; a dead band keeps the class of a neighbour.
#[must_use]
pub fn classify(held: Class, region: Region) -> Class {
    match (region, held) {
        (Region::L, Class::Light | Class::Moderate) => Class::Light,
        (Region::L, Class::Heavy) => Class::Moderate,
        (Region::Ml, Class::Light) => Class::Light,
        (Region::Ml, Class::Moderate | Class::Heavy) => Class::Moderate,
        (Region::M, Class::Light | Class::Moderate | Class::Heavy) => Class::Moderate,
        (Region::Hm, Class::Light | Class::Moderate) => Class::Moderate,
        (Region::Hm, Class::Heavy) => Class::Heavy,
        (Region::H, Class::Light) => Class::Moderate,
        (Region::H, Class::Moderate | Class::Heavy) => Class::Heavy,
    }
}

/// Thresholds of the three kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadThresholds {
    /// For Lm.
    pub memory: Thresholds,
    /// For Lc.
    pub cpu: Thresholds,
    /// For Ln.
    pub network: Thresholds,
}

/// The classes last held, one for each kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    memory: Class,
    cpu: Class,
    network: Class,
}

impl Held {
    /// All the same.
    #[must_use]
    pub fn all(class: Class) -> Self {
        Self { memory: class, cpu: class, network: class }
    }

    /// One judgement. The group takes the highest (fig. 3.6); so it is Light only if all three are (thesis 4.2.3).
    pub fn judge(&mut self, load: &Load, thresholds: &LoadThresholds) -> Class {
        self.memory = classify(self.memory, thresholds.memory.region(load.memory));
        self.cpu = classify(self.cpu, thresholds.cpu.region(load.cpu));
        self.network = classify(self.network, thresholds.network.region(load.network));
        self.highest()
    }

    /// The group's class.
    #[must_use]
    pub fn highest(&self) -> Class {
        self.memory.max(self.cpu).max(self.network)
    }
}
