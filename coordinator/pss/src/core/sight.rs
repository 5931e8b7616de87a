//! A group's load: whom of it is seen, and who is missed.

use super::Pss;
use crate::{
    execute::{Action, Kind, Note, Severity},
    inventory::{Group, Inventory, VmState},
    load::{Load, Usage},
    plan::{GroupStays, Reason},
};
use kage_types::{DomainName, GroupName, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Whom of a group the last judgement saw.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Sight {
    members: BTreeSet<DomainName>,
    /// It was told that one of them is no longer seen.
    told: bool,
}

impl Sight {
    /// This one is not seen. Is that news? One that was never seen has only just begun.
    fn lost(&mut self, vm: &DomainName) -> bool {
        let news = !self.told && self.members.contains(vm);
        self.told |= news;
        news
    }

    /// All of these are. Is that news?
    fn all(&mut self, members: Vec<&DomainName>) -> bool {
        self.members = members.into_iter().cloned().collect();
        std::mem::take(&mut self.told)
    }
}

impl Pss {
    /// Of the members in service; none if one of them can't be measured.
    pub(super) fn load(
        &mut self,
        now: Time,
        inventory: &Inventory,
        name: &GroupName,
        group: &Group,
        actions: &mut Vec<Action>,
    ) -> Option<Load> {
        // One that does not run, and still holds a virtual IP, is missed all the more.
        let holds = |vm: &&DomainName| inventory.vms.get(*vm).is_some_and(|vm| !vm.vips.is_empty());
        let holders: Vec<&DomainName> = group.members.iter().filter(holds).collect();
        if holders.is_empty() {
            self.judged.add(Reason::GroupStays(name.clone(), GroupStays::NobodyServes));
        }
        let mut members = Vec::new();
        for vm in &holders {
            let runs = inventory.vms.get(*vm).is_some_and(|vm| vm.state == VmState::Running);
            match self.usage(now, vm).filter(|_| runs) {
                Some(usage) => members.push(usage),
                None => {
                    self.judged.add(Reason::Unjudged(name.clone(), (*vm).clone()));
                    let text = format!("{vm} can't be measured: {name} can't be judged");
                    if self.sights.entry(name.clone()).or_default().lost(vm) {
                        actions.push(Action::Note(Note { severity: Severity::Warning, kind: Kind::Unmeasured, text }));
                    }
                    return None;
                }
            }
        }
        let load = Load::of(&members)?;
        if self.sights.entry(name.clone()).or_default().all(holders) {
            let text = format!("{name} is measured again, all of it");
            actions.push(Action::Note(Note { severity: Severity::Info, kind: Kind::Measured, text }));
        }
        Some(load)
    }

    pub(super) fn usage(&self, now: Time, vm: &DomainName) -> Option<Usage> {
        self.meters.get(vm)?.usage(now, self.policy.fresh)
    }
}
