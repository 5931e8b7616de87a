//! Plans: what is to be done to bring service groups from one condition to another, and why nothing more.

mod draft;
mod fold;
mod report;
mod unfold;

pub(crate) use fold::DAY;
pub use report::{GroupStays, HostStays, Kind, Reason, Report};

use crate::{
    class::Condition,
    inventory::{Claim, Group, Inventory},
    policy::Policy,
    units::{Bytes, Watts},
};
pub use kage_types::Step;
use kage_types::{GroupName, Revision};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A step and its place in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// What.
    pub step: Step,
    /// Steps, by index, all smaller than its own, that must be done first. Others go on side by side.
    pub needs: BTreeSet<usize>,
    /// Groups whose condition hangs on it.
    pub groups: BTreeSet<GroupName>,
    /// What it is about besides: hosts that its virtual servers are on, virtual IPs that they carry along.
    pub about: BTreeSet<Claim>,
}

impl Planned {
    /// Is it about what is claimed, or about something on it?
    #[must_use]
    pub fn touches(&self, claim: &Claim) -> bool {
        self.step.touches(claim) || self.about.contains(claim)
    }
}

/// Which way a plan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Gives capacity up. One step that fails undoes all of it.
    Fold,
    /// Brings capacity back. A step that fails holds up only what hangs on it.
    Unfold,
}

/// What is to be done, in an order in which it could be done one after another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Of the inventory it was made of.
    pub generation: Revision,
    /// Which way.
    pub direction: Direction,
    /// The condition of each group it changes, before and after.
    pub groups: BTreeMap<GroupName, (Condition, Condition)>,
    /// In order.
    pub steps: Vec<Planned>,
    /// Saved once it is done (modelled, from the hosts' figures); for [`Direction::Unfold`]: no longer saved.
    pub watts: Watts,
    /// Memory of the virtual servers it migrates: what it costs.
    pub migrated: Bytes,
}

impl Plan {
    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.steps.is_empty()
    }

    /// The steps alone.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.steps.iter().map(|planned| &planned.step)
    }
}

/// Plan, by nothing but what it is given. Capacity comes back first: while a group wants more, no other gives any up.
#[must_use]
pub fn plan(inventory: &Inventory, policy: &Policy) -> (Plan, Report) {
    let mut report = Report::default();
    let mut plan = unfold::unfold(inventory, policy, &mut report);
    if plan.is_empty() {
        plan = fold::fold(inventory, policy, &mut report);
    }
    if plan.is_empty()
        && let Some(inventory) = not_halfway(inventory, &report)
    {
        plan = unfold::unfold(&inventory, policy, &mut report);
    }
    for (name, group) in &inventory.groups {
        if group.wanted == Condition::Heavy {
            report.add(Reason::GroupStays(name.clone(), GroupStays::NothingToAdd));
        }
    }
    (plan, report)
}

/// Groups that are Light by their State, that more than one member serves, and whose load is too much for one again: they
/// can't be gathered, and are to come back all the way. None: there is no such group.
fn not_halfway(inventory: &Inventory, report: &Report) -> Option<Inventory> {
    let too_much = |name: &GroupName| {
        let stays =
            |reason: &Reason| matches!(reason, Reason::GroupStays(of, GroupStays::TooMuch { .. }) if of == name);
        report.reasons.iter().any(stays)
    };
    let halfway =
        |(name, group): &(&GroupName, &Group)| inventory.judged_from(group) > group.condition && too_much(name);
    let names: Vec<GroupName> = inventory.groups.iter().filter(halfway).map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return None;
    }
    let mut inventory = inventory.clone();
    for (_, group) in inventory.groups.iter_mut().filter(|(name, _)| names.contains(name)) {
        group.wanted = Condition::Moderate;
    }
    Some(inventory)
}

/// Collects steps, and what each needs.
pub(crate) struct Steps {
    steps: Vec<Planned>,
}

impl Steps {
    pub fn new() -> Self {
        Self { steps: Vec::new() }
    }

    /// After all earlier steps about one of which `after` says yes.
    pub fn push(
        &mut self,
        step: Step,
        groups: BTreeSet<GroupName>,
        about: BTreeSet<Claim>,
        after: impl Fn(&Step) -> bool,
    ) {
        let needs = (0..self.steps.len()).filter(|index| after(&self.steps[*index].step)).collect();
        self.steps.push(Planned { step, needs, groups, about });
    }

    pub fn finish(self) -> Vec<Planned> {
        self.steps
    }
}
