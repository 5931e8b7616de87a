//! The operator has a backup server serve (`kagectl failover`), and power saving goes on meanwhile.

use super::{
    beyond::until_asleep_at_home,
    matrix::{BUSY, QUIET, SETTLED, Victim, quiet},
    world::Night,
};
use kage_coordinator_core::Event;
use kage_sif_core::{Request, Signal};
use kage_types::{DomainName, TargetName};

/// Longer than two transitions take, and what is undone of them.
const LONG: u64 = 60_000;

impl Night {
    fn mode_of(&self, name: &TargetName) -> (&'static str, &'static str) {
        let view = self.msbs.as_ref().and_then(|msbs| msbs.core.target(name));
        view.map_or(("", ""), |view| (view.mode, view.step))
    }

    /// False: it is refused, as it has nothing to be moved, or nobody to move it to.
    pub(super) fn fail_over(&mut self, vm: &DomainName) -> bool {
        let Some((target, _)) = self.target_of(vm) else { return false };
        self.say(format_args!("the operator moves {target} to its backup server"));
        let (command, back, force) = (1, false, false);
        self.step_msbs(Event::Move { command, target: target.clone(), back, force });
        self.until(20_000, |night| night.mode_of(&target).1 == "moved-by-operator").is_some()
    }

    fn forget_claims(&mut self, name: &TargetName) {
        let time = kage_types::Time::from_millis(self.now);
        let Some(term) = self.msbs.as_ref().map(|msbs| msbs.core.authority(time).0) else { return };
        self.say("SIF forgets what is claimed");
        let signal = Signal::PutClaims { term, by: name.to_string(), why: String::new(), claims: [].into() };
        self.ask_sif(Request::Signal(signal), |_, _| {});
    }

    fn fail_back(&mut self, name: &TargetName) -> Result<(), String> {
        self.say(format_args!("the operator moves {name} back"));
        for command in 2..12 {
            self.step_msbs(Event::Move { command, target: name.clone(), back: true, force: false });
            if self.until(20_000, |night| night.mode_of(name).0 == "regular").is_some() {
                return Ok(());
            }
        }
        let what = format!("{name} does not take its place again: {:?}", self.mode_of(name));
        Err(self.failure.clone().unwrap_or(what))
    }
}

/// Through both transitions, and back.
pub(super) fn until_moved_back(night: &mut Night, vm: &DomainName, victim: Victim) -> Result<(), String> {
    let Some((name, double)) = night.target_of(vm) else { return Err(format!("{vm} is no target")) };
    if victim == Victim::MovedForgotten {
        night.run(5_000);
        night.forget_claims(&name);
    }
    for load in [QUIET, BUSY] {
        quiet(night, load);
        night.run(LONG);
    }
    let served = |night: &Night| night.held.keys().all(|vip| night.served(*vip));
    if night.until(SETTLED, served).is_none() {
        return Err(night.failure.clone().unwrap_or_else(|| "a virtual IP is served by nobody".into()));
    }
    night.fail_back(&name)?;
    until_asleep_at_home(night, &name, &double)
}
