//! Putting a machine to sleep as a transaction: whether it may, in which order, and what is undone when a step fails.
//! What one step does is the shell's business.

use kage_types::Vip;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, time::Duration};

/// What is going on at a machine that is to sleep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Held or being acquired.
    pub vips: BTreeSet<Vip>,
    /// Domains that are active: running, paused or arriving.
    pub domains: BTreeSet<String>,
}

impl Idle {
    /// May the machine sleep, when these domains may sleep along?
    ///
    /// # Errors
    /// [`NotIdle`]: what is in the way.
    pub fn check(&self, expected: &BTreeSet<String>) -> Result<(), NotIdle> {
        let domains: BTreeSet<String> = self.domains.difference(expected).cloned().collect();
        if self.vips.is_empty() && domains.is_empty() {
            return Ok(());
        }
        Err(NotIdle(Self { vips: self.vips.clone(), domains }))
    }
}

/// Why a machine must not sleep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotIdle(pub Idle);

impl fmt::Display for NotIdle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Idle { vips, domains } = &self.0;
        f.write_str("drain first: this machine")?;
        if !vips.is_empty() {
            let vips: Vec<_> = vips.iter().map(Vip::to_string).collect();
            write!(f, " holds {}", vips.join(", "))?;
        }
        if !vips.is_empty() && !domains.is_empty() {
            f.write_str(" and")?;
        }
        if !domains.is_empty() {
            let domains: Vec<_> = domains.iter().map(String::as_str).collect();
            write!(f, " runs {} (move or stop them, or name them in expect_idle)", domains.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for NotIdle {}

/// One step towards sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SleepStep {
    /// Wake-on-LAN is switched on, and read back.
    ArmWake,
    /// The machine wakes by itself after so long.
    SetAlarm(Duration),
    /// All elements are deleted, and no VIP is taken any more.
    Release,
    /// Sleep; ends after it.
    Sleep,
}

/// What a step left behind that must not stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SleepUndo {
    /// VIPs are taken again.
    Stay,
    /// No alarm.
    ClearAlarm,
}

/// The steps of one sleep, in their order: the way back is sure before the way out is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepPlan {
    steps: Vec<SleepStep>,
    begun: usize,
}

impl SleepPlan {
    /// A sleep that ends by itself after `alarm`; None: by others only.
    #[must_use]
    pub fn new(alarm: Option<Duration>) -> Self {
        let alarm = alarm.map(SleepStep::SetAlarm);
        let steps = [Some(SleepStep::ArmWake), alarm, Some(SleepStep::Release), Some(SleepStep::Sleep)];
        Self { steps: steps.into_iter().flatten().collect(), begun: 0 }
    }

    /// The step to begin now that all before it have succeeded; None: it slept, and is back.
    pub fn next_step(&mut self) -> Option<SleepStep> {
        let step = self.steps.get(self.begun).copied();
        self.begun += usize::from(step.is_some());
        step
    }

    /// What is to be undone, in this order, when the last step begun has failed, or when the machine is back. Each may be
    /// undone whether or not it took effect.
    #[must_use]
    pub fn undo(&self) -> Vec<SleepUndo> {
        let undo = |step: &SleepStep| match step {
            SleepStep::Release => Some(SleepUndo::Stay),
            SleepStep::SetAlarm(_) => Some(SleepUndo::ClearAlarm),
            // A machine that can be woken is none the worse for it.
            SleepStep::ArmWake | SleepStep::Sleep => None,
        };
        self.steps.iter().take(self.begun).rev().filter_map(undo).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let vips = BTreeSet::from(["10.0.0.100".parse().expect("vip")]);
        let busy = Idle { vips, domains: names(&["mail1", "mail2"]) };
        let refused = busy.check(&names(&["mail2", "mail3"])).expect_err("busy").to_string();
        assert_eq!(
            refused,
            "drain first: this machine holds 10.0.0.100 and runs mail1 (move or stop them, or name them in expect_idle)"
        );
        let idle = Idle { vips: BTreeSet::new(), domains: names(&["mail2"]) };
        assert_eq!(idle.check(&names(&["mail2"])), Ok(()));
        assert!(idle.check(&BTreeSet::new()).is_err());
    }

    #[test]
    fn the_way_back_is_sure_before_the_way_out_is_closed() {
        let alarm = Duration::from_secs(3600);
        let mut plan = SleepPlan::new(Some(alarm));
        let mut seen = Vec::new();
        while let Some(step) = plan.next_step() {
            seen.push((step, plan.undo()));
        }
        let both = vec![SleepUndo::Stay, SleepUndo::ClearAlarm];
        assert_eq!(
            seen,
            [
                (SleepStep::ArmWake, vec![]),
                (SleepStep::SetAlarm(alarm), vec![SleepUndo::ClearAlarm]),
                (SleepStep::Release, both.clone()),
                (SleepStep::Sleep, both.clone()),
            ]
        );
        assert_eq!(plan.undo(), both, "back from it, the same is put right");
    }

    #[test]
    fn without_an_alarm_none_is_set_or_cleared() {
        let mut plan = SleepPlan::new(None);
        let steps: Vec<_> = std::iter::from_fn(|| plan.next_step()).collect();
        assert_eq!(steps, [SleepStep::ArmWake, SleepStep::Release, SleepStep::Sleep]);
        assert_eq!(plan.undo(), [SleepUndo::Stay]);
    }
}
