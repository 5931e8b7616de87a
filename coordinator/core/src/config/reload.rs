//! What a changed file changes: for people before it is applied, and what of it can be applied without a restart.

use super::{Cluster, Machine, Quarantine, Target};
use kage_types::{AgentId, TargetName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The difference between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// One line each: added, removed, changed.
    pub applied: Vec<String>,
    /// What stays as it is until coordinator (and SIF) are restarted, and why.
    pub needs_restart: Vec<String>,
    /// Targets that are there no more, or are not what they were.
    pub disturbed: Vec<TargetName>,
}

impl Changes {
    /// Is there nothing to be done?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.needs_restart.is_empty()
    }
}

impl Cluster {
    /// This configuration with what of `file` can be applied while it runs, and the difference.
    ///
    /// Timings, voters and addresses stay: leases given under one set of figures are outwaited by the same, and a
    /// majority of other voters need not meet the one that consented (docs/safety.md, rules 2 and 6).
    #[must_use]
    pub fn reloaded(&self, file: &Self) -> (Self, Changes) {
        let mut changes = Changes::default();
        let mut next = Self {
            profile: self.profile,
            timing: self.timing,
            detection: self.detection,
            on_coordinator_loss: self.on_coordinator_loss,
            coordinator: self.coordinator,
            sif: self.sif,
            term: self.term,
            supervise: self.supervise,
            ..file.clone()
        };
        let mut keeps = |what: &str, differs: bool, why: &str| {
            if differs {
                changes.needs_restart.push(format!("{what}: {why}"));
            }
        };
        let figures = "leases already given are outwaited by the figures they were given under";
        keeps("[cluster] profile", self.profile != file.profile, figures);
        keeps("[lease]", self.profile == file.profile && self.timing != file.timing, figures);
        let coverage = "who may renew without a coordinator must not change while one of both rules may be in use";
        keeps("[cluster] on_coordinator_loss", self.on_coordinator_loss != file.on_coordinator_loss, coverage);
        keeps("[coordinator] listen", self.coordinator != file.coordinator, "its socket is open");
        keeps("[sif] listen", self.sif != file.sif, "restart SIF first");
        keeps("[sif] term", self.term != file.term, "restart SIF first");
        if self.name != file.name {
            changes.applied.push(format!("[cluster] name: {} is now {}", self.name, file.name));
        }
        for (key, before, after) in [
            ("storage_fence", &self.storage_fence, &file.storage_fence),
            ("storage_unfence", &self.storage_unfence, &file.storage_unfence),
        ] {
            if before != after {
                changes.applied.push(format!("[coordinator] {key}: changed"));
            }
        }
        let fields = quarantine_differs(&self.quarantine, &file.quarantine);
        if !fields.is_empty() {
            changes.applied.push(format!("[quarantine]: changed: {}", fields.join(", ")));
        }
        self.agents_changed(&mut next.agents, &mut changes);
        self.targets_changed(&next.targets, &mut changes);
        listed("[[host]]", &self.hosts, &next.hosts, &mut changes);
        listed("[[group]]", &self.groups, &next.groups, &mut changes);
        if self.groups.is_empty() != next.groups.is_empty() {
            let why = "power saving begins and ends with kage-coordinator";
            changes.needs_restart.push(format!("the first or last [[group]]: {why}"));
        }
        if self.saving != next.saving {
            changes.applied.push("[pss]: changed".to_owned());
        }
        (next, changes)
    }

    fn agents_changed(&self, next: &mut BTreeMap<AgentId, Machine>, changes: &mut Changes) {
        let why = "a majority of other voters need not meet the one that consents now";
        for (name, machine) in &self.agents {
            match next.get_mut(name) {
                None if machine.voter => {
                    changes.needs_restart.push(format!("[[agent]] {name}: removed, and it is a voter: {why}"));
                    next.insert(name.clone(), machine.clone());
                }
                None => changes.applied.push(format!("[[agent]] {name}: removed")),
                Some(new) => {
                    if new.voter != machine.voter {
                        changes.needs_restart.push(format!("[[agent]] {name}: voter = {}: {why}", new.voter));
                        new.voter = machine.voter;
                    }
                    let fields = machine_differs(machine, new);
                    if !fields.is_empty() {
                        changes.applied.push(format!("[[agent]] {name}: changed: {}", fields.join(", ")));
                    }
                }
            }
        }
        for (name, machine) in next.iter_mut().filter(|(name, _)| !self.agents.contains_key(*name)) {
            changes.applied.push(format!("[[agent]] {name}: added"));
            if std::mem::take(&mut machine.voter) {
                changes.needs_restart.push(format!("[[agent]] {name}: voter = true: {why}"));
            }
        }
    }

    fn targets_changed(&self, next: &BTreeMap<TargetName, Target>, changes: &mut Changes) {
        for (name, target) in &self.targets {
            match next.get(name) {
                None => {
                    changes.applied.push(format!("[[target]] {name}: removed"));
                    changes.disturbed.push(name.clone());
                }
                Some(new) if new != target => {
                    let fields = target_differs(target, new).join(", ");
                    changes.applied.push(format!("[[target]] {name}: changed: {fields}"));
                    changes.disturbed.push(name.clone());
                }
                Some(_) => {}
            }
        }
        for name in next.keys().filter(|name| !self.targets.contains_key(*name)) {
            changes.applied.push(format!("[[target]] {name}: added"));
        }
    }
}

fn listed<K: Ord + std::fmt::Display, V: PartialEq>(
    heading: &str,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    changes: &mut Changes,
) {
    for (name, value) in old {
        match new.get(name) {
            None => changes.applied.push(format!("{heading} {name}: removed")),
            Some(there) if there != value => changes.applied.push(format!("{heading} {name}: changed")),
            Some(_) => {}
        }
    }
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        changes.applied.push(format!("{heading} {name}: added"));
    }
}

/// Names of the fields whose values differ: none is forgotten, as the compiler wants all of them.
macro_rules! differing {
    ($old:expr, $new:expr, $type:ident { $($field:ident),+ $(,)? }) => {{
        let $type { $($field),+ } = $old;
        let mut fields = Vec::new();
        $(if *$field != $new.$field { fields.push(stringify!($field)); })+
        fields
    }};
}

fn machine_differs(old: &Machine, new: &Machine) -> Vec<&'static str> {
    differing!(old, new, Machine { address, failure_domain, voter, mac, guard, power_status, power_off })
}

fn quarantine_differs(old: &Quarantine, new: &Quarantine) -> Vec<&'static str> {
    differing!(old, new, Quarantine { lapses, within, hold, hold_limit })
}

fn target_differs(old: &Target, new: &Target) -> Vec<&'static str> {
    differing!(
        old,
        new,
        Target {
            agent,
            vm,
            address,
            vips,
            backup,
            services,
            failback,
            failback_hours,
            healthy_for,
            reboot_wait,
            start_wait,
            budget,
        }
    )
}
