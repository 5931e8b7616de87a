//! Plans: what is to be done to bring service groups from one condition to another, and why nothing more.

mod draft;
mod fold;
mod report;
mod unfold;

pub(crate) use fold::DAY;
pub use report::{GroupStays, HostStays, Kind, Reason, Report};

use crate::{
    class::Condition,
    inventory::{Claim, Inventory},
    policy::Policy,
    units::{Bytes, Watts},
};
use kage_types::{AgentId, DomainName, GroupName, Revision, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// One thing done to one thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A virtual IP goes from one virtual server to another.
    MoveVip {
        /// The address.
        vip: Vip,
        /// Its holder.
        from: DomainName,
        /// Its next holder.
        to: DomainName,
    },
    /// Live migration.
    Migrate {
        /// The virtual server.
        vm: DomainName,
        /// Its host.
        from: AgentId,
        /// Its next host.
        to: AgentId,
    },
    /// A virtual server that serves no more is paused.
    SuspendVm {
        /// The virtual server.
        vm: DomainName,
        /// Its host.
        host: AgentId,
    },
    /// It goes on.
    ResumeVm {
        /// The virtual server.
        vm: DomainName,
        /// Its host.
        host: AgentId,
    },
    /// An emptied host goes to sleep.
    SuspendHost {
        /// The host.
        host: AgentId,
    },
    /// It is woken.
    WakeHost {
        /// The host.
        host: AgentId,
    },
}

impl Step {
    /// What takes it back.
    #[must_use]
    pub fn inverse(&self) -> Step {
        match self.clone() {
            Step::MoveVip { vip, from, to } => Step::MoveVip { vip, from: to, to: from },
            Step::Migrate { vm, from, to } => Step::Migrate { vm, from: to, to: from },
            Step::SuspendVm { vm, host } => Step::ResumeVm { vm, host },
            Step::ResumeVm { vm, host } => Step::SuspendVm { vm, host },
            Step::SuspendHost { host } => Step::WakeHost { host },
            Step::WakeHost { host } => Step::SuspendHost { host },
        }
    }

    /// Is it about what is claimed?
    #[must_use]
    pub fn touches(&self, claim: &Claim) -> bool {
        match (self, claim) {
            (Step::MoveVip { vip, .. }, Claim::Vip(claimed)) => vip == claimed,
            (Step::MoveVip { from, to, .. }, Claim::Vm(vm)) => from == vm || to == vm,
            (Step::Migrate { vm, .. } | Step::SuspendVm { vm, .. } | Step::ResumeVm { vm, .. }, Claim::Vm(claimed)) => {
                vm == claimed
            }
            (Step::Migrate { from, to, .. }, Claim::Host(host)) => from == host || to == host,
            (
                Step::SuspendVm { host, .. }
                | Step::ResumeVm { host, .. }
                | Step::SuspendHost { host }
                | Step::WakeHost { host },
                Claim::Host(claimed),
            ) => host == claimed,
            (Step::MoveVip { .. }, Claim::Host(_))
            | (Step::SuspendHost { .. } | Step::WakeHost { .. }, Claim::Vm(_) | Claim::Vip(_))
            | (Step::Migrate { .. } | Step::SuspendVm { .. } | Step::ResumeVm { .. }, Claim::Vip(_)) => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::MoveVip { vip, from, to } => write!(f, "virtual IP {vip}: {from} -> {to}"),
            Step::Migrate { vm, from, to } => write!(f, "live migration of {vm}: {from} -> {to}"),
            Step::SuspendVm { vm, host } => write!(f, "suspend {vm} on {host}"),
            Step::ResumeVm { vm, host } => write!(f, "resume {vm} on {host}"),
            Step::SuspendHost { host } => write!(f, "suspend host {host}"),
            Step::WakeHost { host } => write!(f, "wake host {host}"),
        }
    }
}

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
    for (name, group) in &inventory.groups {
        if group.wanted == Condition::Heavy {
            report.add(Reason::GroupStays(name.clone(), GroupStays::NothingToAdd));
        }
    }
    (plan, report)
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
