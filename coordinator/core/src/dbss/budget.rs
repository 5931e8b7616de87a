//! How often each rung (restart, reboot, backup) may be used within a window before the next one is.

use crate::config::Budget;
use kage_types::Time;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// What was used, and when. Survives changes of mode; a new coordinator begins with none used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Budgets {
    /// By service.
    restarts: BTreeMap<usize, Vec<Time>>,
    reboots: Vec<Time>,
    takeovers: Vec<Time>,
}

fn recent(used: &[Time], now: Time, within: Duration) -> usize {
    used.iter().filter(|at| now.since(**at) < within).count()
}

/// Use one, if there is one left.
fn take(used: &mut Vec<Time>, now: Time, allowed: u32, within: Duration) -> bool {
    used.retain(|at| now.since(*at) < within);
    let left = used.len() < usize::try_from(allowed).unwrap_or(usize::MAX);
    if left {
        used.push(now);
    }
    left
}

impl Budgets {
    pub fn take_restart(&mut self, now: Time, service: usize, budget: &Budget) -> bool {
        take(self.restarts.entry(service).or_default(), now, budget.restarts, budget.within)
    }

    pub fn take_reboot(&mut self, now: Time, budget: &Budget) -> bool {
        take(&mut self.reboots, now, budget.reboots, budget.within)
    }

    /// A takeover is never refused: clients come first. What is limited is how often it is undone.
    pub fn count_takeover(&mut self, now: Time, budget: &Budget) {
        self.takeovers.retain(|at| now.since(*at) < budget.within);
        self.takeovers.push(now);
    }

    /// Hold-down: until when the target may not take its place again by itself.
    pub fn held_down(&self, now: Time, budget: &Budget) -> Option<Time> {
        let allowed = usize::try_from(budget.takeovers).unwrap_or(usize::MAX);
        let used = recent(&self.takeovers, now, budget.within);
        // It ends when the oldest of those that fill the budget is out of the window.
        let oldest = self.takeovers.len().checked_sub(allowed)?;
        (used >= allowed).then(|| self.takeovers.get(oldest).map_or(now, |at| *at + budget.within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { restarts: 2, reboots: 1, takeovers: 2, within: Duration::from_secs(60) };

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    #[test]
    fn a_rung_is_free_again_when_its_uses_are_out_of_the_window() {
        let mut budgets = Budgets::default();
        let taken: Vec<bool> = [0, 10, 20, 59, 61, 65, 71].map(|s| budgets.take_restart(at(s), 0, &BUDGET)).into();
        assert_eq!(taken, [true, true, false, false, true, false, true]);
        assert!(budgets.take_restart(at(20), 1, &BUDGET), "another service has its own");
        assert!(budgets.take_reboot(at(0), &BUDGET) && !budgets.take_reboot(at(30), &BUDGET));
    }

    #[test]
    fn hold_down_ends_when_the_oldest_takeover_is_out_of_the_window() {
        let mut budgets = Budgets::default();
        budgets.count_takeover(at(0), &BUDGET);
        assert_eq!(budgets.held_down(at(1), &BUDGET), None);
        budgets.count_takeover(at(10), &BUDGET);
        assert_eq!(budgets.held_down(at(11), &BUDGET), Some(at(60)));
        budgets.count_takeover(at(20), &BUDGET);
        assert_eq!(budgets.held_down(at(59), &BUDGET), Some(at(70)));
        assert_eq!(budgets.held_down(at(70), &BUDGET), None);
    }
}
