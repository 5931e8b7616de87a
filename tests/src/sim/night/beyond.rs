//! A virtual server beyond repair (thesis ch. 4, verdict *down*): its starts fail until the operator has repaired it.

use super::{
    matrix::{BUSY, SETTLED, Victim, quiet},
    world::{GUEST_BOOT, Night, Run},
};
use kage_coordinator_core::Event;
use kage_types::{Condition, DomainName, TargetName};

impl Night {
    pub(super) fn target_of(&self, vm: &DomainName) -> Option<(TargetName, DomainName)> {
        let of = |(_, target): &(&TargetName, &kage_coordinator_core::config::Target)| target.domain() == Some(vm);
        self.cluster.targets.iter().find(of).map(|(name, target)| (name.clone(), target.backup.domain.clone()))
    }

    fn is_given_up(&self, name: &TargetName) -> bool {
        let view = self.msbs.as_ref().and_then(|msbs| msbs.core.target(name));
        view.is_some_and(|view| view.mode == "ended")
    }

    /// Its process ends, and none of its starts succeeds.
    pub(super) fn ruin(&mut self, vm: &DomainName) {
        self.broken.insert(vm.clone());
        self.kill_vm(vm);
    }

    /// The operator has repaired it: it runs where it was, and is started again.
    fn repair(&mut self, vm: &DomainName, name: &TargetName) -> Result<(), String> {
        self.broken.remove(vm);
        let host = self.sif.disk.shared.tables.displaced.get(vm).cloned();
        let host = host.filter(|host| self.is_on(host)).ok_or_else(|| format!("{vm} can't be started where it was"))?;
        self.say(format_args!("{vm} is repaired, and runs on {host}"));
        self.vms.entry(vm.clone()).or_default().insert(host, Run::Runs(self.now + GUEST_BOOT));
        self.run(GUEST_BOOT + 6_000);
        for command in 0..10 {
            self.step_msbs(Event::Move { command, target: name.clone(), back: true, force: false });
            let back = self.until(20_000, |night| !night.is_given_up(name));
            if back.is_some() {
                return Ok(());
            }
        }
        Err(format!("{vm} does not take its place again"))
    }
}

/// What must be so while it is given up; none: it is.
fn unsettled(night: &Night, name: &TargetName) -> Option<String> {
    let tables = &night.sif.disk.shared.tables;
    if !night.is_given_up(name) {
        return Some(format!("{name} is not given up"));
    }
    if let Some((claim, row)) = tables.claims.first_key_value() {
        return Some(format!("{claim} is claimed by {} ({})", row.by, row.why));
    }
    if tables.transition.is_some() {
        return Some("a transition is under way".into());
    }
    night.held.keys().find(|vip| !night.served(**vip)).map(|vip| format!("{vip} is served by nobody"))
}

/// Where it runs or sleeps.
fn places(night: &Night, vm: &DomainName) -> Vec<String> {
    let places = night.vms.get(vm).into_iter().flatten();
    places.map(|(host, run)| format!("{run:?} on {host}")).collect()
}

/// From the verdict to the return, with something more that fails while its double is on its way.
pub(super) fn until_repaired(night: &mut Night, vm: &DomainName, victim: Victim) -> Result<(), String> {
    let Some((name, double)) = night.target_of(vm) else { return Err(format!("{vm} is no target")) };
    let told = |night: &Night, what: String| night.failure.clone().unwrap_or(what);
    if night.until(SETTLED, |night| night.is_given_up(&name)).is_none() {
        return Err(told(night, format!("{name} is not given up")));
    }
    if let Some((_, to)) =
        night.until(20_000, |night| night.migrations.contains_key(&double)).and(night.migrations.get(&double).cloned())
    {
        night.run(500);
        if victim == Victim::BeyondCoordinator {
            night.crash_msbs(3_000);
        } else if victim == Victim::BeyondHost {
            night.lose_power(&to, Some(60_000));
        } else if victim == Victim::BeyondDouble {
            night.kill_vm(&double);
        }
    }
    night.run(5_000);
    if night.until(SETTLED, |night| unsettled(night, &name).is_none()).is_none() {
        let what = unsettled(night, &name).unwrap_or_default();
        return Err(told(night, format!("given up, and not at rest: {what}")));
    }
    quiet(night, BUSY);
    night.until(SETTLED, |night| night.all_in(Condition::Moderate) && night.settled());
    night.repair(vm, &name)?;
    until_asleep_at_home(night, &name, &double)
}

/// The double of one that serves again.
pub(super) fn until_asleep_at_home(night: &mut Night, name: &TargetName, double: &DomainName) -> Result<(), String> {
    let asleep = |night: &Night| {
        let home = night.cluster.targets.get(name).map(|target| target.backup.agent.clone());
        let there = home.and_then(|home| night.run_of(double, &home));
        there == Some(Run::Paused) && night.vms.get(double).is_some_and(|places| places.len() == 1)
    };
    if night.until(SETTLED, asleep).is_none() {
        let what = format!("{double} does not sleep at home: {:?}", places(night, double));
        return Err(night.failure.clone().unwrap_or(what));
    }
    Ok(())
}
