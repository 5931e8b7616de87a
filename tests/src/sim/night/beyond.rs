//! A virtual server beyond repair (thesis ch. 4, verdict *down*): its starts fail until the operator has repaired it.

use super::{
    matrix::{BUSY, SETTLED, Victim, quiet},
    world::{GUEST_BOOT, Night, Run},
};
use kage_coordinator_core::{Event, config::Further};
use kage_types::{Condition, DomainName, TargetName};

impl Night {
    pub(super) fn target_of(&self, vm: &DomainName) -> Option<(TargetName, DomainName)> {
        let of = |(_, target): &(&TargetName, &kage_coordinator_core::config::Target)| target.domain() == Some(vm);
        self.cluster.targets.iter().find(of).map(|(name, target)| (name.clone(), target.backup.domain.clone()))
    }

    fn further_of(&self, double: &DomainName) -> Option<Further> {
        let mut backups = self.cluster.targets.values().map(|target| &target.backup);
        backups.find(|backup| backup.domain == *double)?.further.clone()
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

/// It does not answer any more, and the agent beside it does: it is restarted, and nothing boots.
fn service_dies(night: &mut Night, double: &DomainName) -> Result<(), String> {
    let before = night.vms.get(double).cloned();
    night.say(format_args!("the services in {double} are dead"));
    night.sick.insert(double.clone());
    if night.until(20_000, |night| !night.sick.contains(double)).is_none() {
        return Err(night.failure.clone().unwrap_or_else(|| format!("no service in {double} was restarted")));
    }
    night.run(2_000);
    if night.vms.get(double) != before.as_ref()
        && night.vms.get(double).is_some_and(|places| {
            places.values().any(|run| matches!(run, Run::Runs(from) if *from > night.now - 20_000))
        })
    {
        return Err(format!("{double} was booted, and not only its service restarted"));
    }
    Ok(())
}

/// The host that it serves on loses its power for a minute: the further one takes over, and gives back.
fn host_dies(night: &mut Night, name: &TargetName, double: &DomainName) -> Result<(), String> {
    let (Some(host), Some(further)) = (night.runs_on(double).cloned(), night.further_of(double)) else {
        return Err(format!("{double} runs nowhere"));
    };
    let held_by = |night: &Night, domain: &DomainName| {
        let by = |vip: &_| night.speaker(*vip).and_then(|held| held.domain.as_ref()) == Some(domain);
        night.held.keys().filter(|vip| by(vip)).count()
    };
    let all = held_by(night, double);
    night.lose_power(&host, Some(60_000));
    if night.until(30_000, |night| held_by(night, &further.domain) >= all).is_none() {
        return Err(night.failure.clone().unwrap_or_else(|| format!("{} does not take over", further.domain)));
    }
    if night.until(SETTLED, |night| held_by(night, double) >= all && unsettled(night, name).is_none()).is_none() {
        return Err(night.failure.clone().unwrap_or_else(|| {
            let what = unsettled(night, name).unwrap_or_default();
            format!("{double} does not get back what {} has taken over: {what}", further.domain)
        }));
    }
    Ok(())
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
    match victim {
        Victim::BeyondService => service_dies(night, &double)?,
        Victim::BeyondFurther => host_dies(night, &name, &double)?,
        Victim::Beyond | Victim::BeyondCoordinator | Victim::BeyondHost | Victim::BeyondDouble => {}
        Victim::Vm
        | Victim::Host
        | Victim::Source
        | Victim::Base
        | Victim::CutHost
        | Victim::CutSource
        | Victim::CutBase
        | Victim::CutArrived
        | Victim::CutUnsaid
        | Victim::CutLeft
        | Victim::Moved
        | Victim::MovedForgotten
        | Victim::Agent
        | Victim::Coordinator
        | Victim::Saving
        | Victim::Sif => {}
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
        let alone = night.vms.get(double).is_some_and(|places| places.len() == 1);
        let further = night.further_of(double).and_then(|further| night.run_of(&further.domain, &further.agent));
        there == Some(Run::Paused) && alone && further == Some(Run::Paused)
    };
    if night.until(SETTLED, asleep).is_none() {
        let what = format!("{double} does not sleep at home: {:?}", places(night, double));
        return Err(night.failure.clone().unwrap_or(what));
    }
    Ok(())
}
