//! A changed configuration while everything runs: the others' leases and modes are not touched.

use super::*;
use crate::config::reload::Changes;

impl Coordinator {
    /// What this file would change, and why it is refused, if it is.
    ///
    /// A target in the middle of a recovery, or away from home, is not changed under its own feet: what is under way
    /// rests on what it was. With `force` it begins again from the ledger, as after a restart of the coordinator.
    pub fn plan_reload(&self, file: &Cluster, force: bool) -> (Changes, Vec<String>) {
        let (next, changes) = self.cluster.reloaded(file);
        let mut refused = Vec::new();
        for name in changes.disturbed.iter().filter(|_| !force) {
            if let Some(why) = self.not_at_home(name) {
                refused.push(format!(
                    "{name} {why}: wait until it serves itself in regular mode (kagectl failback {name}), or use --force"
                ));
            }
        }
        for (vip, state) in &self.vips {
            let owner = state.row.as_ref().map(|row| &row.owner);
            let goes = owner.filter(|owner| !next.agents.contains_key(*owner));
            let stays = next.vips().any(|(known, _)| known == *vip);
            if let Some(owner) = goes.filter(|_| stays) {
                refused.push(format!("[[agent]] {owner} can't be removed: it owns {vip}, which stays"));
            }
        }
        (changes, refused)
    }

    /// Why a target may not be changed now.
    fn not_at_home(&self, name: &TargetName) -> Option<String> {
        let target = self.cluster.targets.get(name)?;
        let view = self.target(name)?;
        if !["starting", "regular"].contains(&view.mode) {
            return Some(format!("is in mode {}", view.mode));
        }
        target.vips.iter().find_map(|vip| {
            let state = self.vips.get(vip)?;
            let home = if target.vm.is_some() { self.wanted_owner(*vip) } else { None };
            let home = home.unwrap_or_else(|| self.home_owner(target));
            let elsewhere = state.row.as_ref().filter(|row| row.owner != home.agent || row.domain != home.domain);
            match (elsewhere, &state.moving) {
                (Some(row), _) => Some(format!("is away from home: {vip} belongs to {}", row.owner)),
                (None, Some(_)) => Some(format!("is being moved: {vip}")),
                (None, None) => None,
            }
        })
    }

    /// Apply it, or change nothing and say why.
    pub(super) fn reload(&mut self, now: Time, command: u64, file: &Cluster, force: bool, actions: &mut Vec<Action>) {
        let (changes, refused) = self.plan_reload(file, force);
        if !refused.is_empty() {
            let why = refused.join("; ");
            self.note(None, Severity::Warning, "reload-refused", format!("nothing was changed: {why}"), actions);
            actions.push(Action::Moved { command, result: Err(why) });
            return;
        }
        let (next, _) = self.cluster.reloaded(file);
        for name in &changes.disturbed {
            // What they were for is not what it was.
            self.jobs.retain(|_, what| !matches!(what, JobFor::Target(target, _) if target == name));
            if next.targets.contains_key(name) {
                self.targets.insert(name.clone(), Dbss::new(now));
            } else {
                self.targets.remove(name);
                self.alerts_over(Some(name));
            }
        }
        for name in next.targets.keys() {
            self.targets.entry(name.clone()).or_insert_with(|| Dbss::new(now));
        }
        self.reload_vips(now, &next, actions);
        self.agents.retain(|name, _| next.agents.contains_key(name));
        self.long_asks.retain(|name, _| next.agents.contains_key(name));
        self.quarantines.retain(|name| next.agents.contains_key(name));
        for name in next.agents.keys() {
            self.agents.entry(name.clone()).or_default();
        }
        self.cluster = next;
        actions.push(Action::Configured);
        self.follow = true;
        self.tell_arrangement();
        for line in changes.applied {
            self.note(None, Severity::Info, "reload", line, actions);
        }
        for line in changes.needs_restart {
            let text = format!("not applied before a restart: {line}");
            self.note(None, Severity::Warning, "reload", text, actions);
        }
        actions.push(Action::Moved { command, result: Ok(()) });
    }

    /// A VIP that is listed no more is superseded when its owner next asks: the owner closes it. Its row stays in the
    /// ledger, so that its epoch goes on if it is ever listed again. One that is new here may have had an owner before,
    /// of whose lease this process knows nothing: the longest is outwaited.
    fn reload_vips(&mut self, now: Time, next: &Cluster, actions: &mut Vec<Action>) {
        let listed: BTreeMap<Vip, &TargetName> = next.vips().collect();
        let gone: Vec<Vip> = self.vips.keys().filter(|vip| !listed.contains_key(vip)).copied().collect();
        for vip in gone {
            self.jobs.retain(|_, what| !matches!(what, JobFor::Vip(known, _) if *known == vip));
            self.vips.remove(&vip);
        }
        let timing = self.cluster.timing;
        let longest = LeaseTiming::patience(timing.long_lease) + LeaseTiming::patience(self.cluster.term);
        let mut new = false;
        for (vip, target) in listed {
            match self.vips.get_mut(&vip) {
                Some(state) => state.target = target.clone(),
                None => {
                    let mut state = VipState::new(target.clone());
                    state.granted_until = now + longest;
                    state.wake = now;
                    self.vips.insert(vip, state);
                    new = true;
                }
            }
        }
        if new {
            actions.push(Action::ReadLedger);
        }
    }
}
