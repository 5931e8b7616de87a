//! How a transition ends: what the ledger and people are told.

use super::{Phase, State, Transition, note};
use crate::{
    class::Condition,
    execute::{Action, Kind, Outcome, Severity, Signal},
    plan::Plan,
};
use kage_types::GroupName;
use std::collections::{BTreeMap, BTreeSet};

impl Transition {
    /// Nothing is under way and nothing can be begun: the end of this phase.
    pub(super) fn over(&self, actions: &mut Vec<Action>) -> Option<(Signal, Outcome)> {
        let (signal, outcome) = match &self.phase {
            Phase::Announcing(_) | Phase::Closing { .. } => return None,
            Phase::Forward => self.committed(),
            Phase::Backward { why, given_up } => {
                let left = self.indices(|state| matches!(state, State::Stuck | State::Left));
                let outcome = if *given_up { Outcome::GivenUp } else { Outcome::Failed };
                let conditions = self.conditions(&left, true);
                (Signal::RolledBack { conditions, left, why: why.clone() }, outcome)
            }
        };
        let (severity, kind, text) = match &signal {
            Signal::RolledBack { left, why, .. } if left.is_empty() => {
                (Severity::Warning, Kind::RolledBack, format!("transition undone: {why}"))
            }
            Signal::RolledBack { left, why, .. } => {
                (Severity::Warning, Kind::RolledBack, format!("transition undone but for {}: {why}", self.names(left)))
            }
            Signal::Committed { missing, .. } if missing.is_empty() => {
                (Severity::Info, Kind::Committed, format!("transition done: {}", changes(&self.plan)))
            }
            Signal::Committed { missing, .. } => {
                (Severity::Warning, Kind::Committed, format!("transition done but for {}", self.names(missing)))
            }
            Signal::TransitionBegun { .. }
            | Signal::StepBegun { .. }
            | Signal::StepDone { .. }
            | Signal::Found { .. } => return None,
        };
        note(severity, kind, text, actions);
        Some((signal, outcome))
    }

    fn committed(&self) -> (Signal, Outcome) {
        let missing = self.indices(|state| *state != State::Done);
        let conditions = self.conditions(&missing, false);
        let outcome = if missing.is_empty() { Outcome::Complete } else { Outcome::Partial };
        (Signal::Committed { conditions, missing }, outcome)
    }

    /// Before or after, as those are that hang on one of these steps; all others the other way round.
    fn conditions(&self, these: &BTreeSet<usize>, after: bool) -> BTreeMap<GroupName, Condition> {
        let these = these.iter().filter_map(|index| self.plan.steps.get(*index));
        let hang: BTreeSet<&GroupName> = these.flat_map(|planned| &planned.groups).collect();
        let change = |(name, (from, to)): (&GroupName, &(Condition, Condition))| {
            (name.clone(), if hang.contains(name) == after { *to } else { *from })
        };
        self.plan.groups.iter().map(change).collect()
    }

    fn indices(&self, is: impl Fn(&State) -> bool) -> BTreeSet<usize> {
        self.steps.iter().enumerate().filter(|(_, state)| is(state)).map(|(index, _)| index).collect()
    }

    fn names(&self, indices: &BTreeSet<usize>) -> String {
        let names: Vec<String> =
            indices.iter().filter_map(|index| Some(self.plan.steps.get(*index)?.step.to_string())).collect();
        names.join(", ")
    }
}

/// Each group's change.
pub(super) fn changes(plan: &Plan) -> String {
    let changes: Vec<String> =
        plan.groups.iter().map(|(name, (before, after))| format!("{name} {before} -> {after}")).collect();
    if changes.is_empty() { "no group changes its condition".into() } else { changes.join(", ") }
}
