//! Never two writers (docs/safety.md): what a single writer's move waits for beside the lease. The lease says who may
//! answer on the virtual IP; a machine that is only cut off goes on writing to storage that it still reaches.

use crate::{
    config::Writers,
    core::{Coordinator, JobFor, VipJob},
    dbss::unfenced,
    event::{Action, AgentCommand, Cause, Severity},
    placement::{FENCE_TIMEOUT, Freed, LET_GO, Move, Owner, RELEASE_PATIENCE, Stage, Try, VipState},
};
use kage_types::{AskVip, Epoch, TargetName, Time, Vip};

impl Coordinator {
    /// Is it certain that nobody else writes, so that the new owner may run its services? Does what makes it so.
    pub(crate) fn one_writer(
        &mut self,
        now: Time,
        vip: Vip,
        state: &VipState,
        moving: &mut Move,
        writers: &Writers,
        actions: &mut Vec<Action>,
    ) -> bool {
        // One and the same virtual server goes on elsewhere, or its group serves with several at once.
        if moving.cause == Cause::Arranged {
            return true;
        }
        let home = self.cluster.targets.get(&state.target).and_then(crate::config::Target::domain);
        if moving.to.domain.as_ref() == home {
            return self.double_is_quiet(now, vip, state, moving, actions);
        }
        if self.follows_another(state, moving) {
            if !self.other_is_quiet(now, vip, state, moving, actions) {
                return false;
            }
            // Who leaves is that other, beside which the target had been made sure of.
            let backup = self.cluster.targets.get(&state.target).map(|target| &target.backup.domain);
            if moving.from.as_ref().is_some_and(|(from, _)| from.domain.as_ref() == backup) {
                return true;
            }
        }
        // Released, or told again and asking already; or dead, for certain.
        let proved = moving.proved(state.last_grant);
        if moving.freed == Freed::Yes || proved {
            return true;
        }
        let planned = moving.planned;
        let Some(target) = self.cluster.targets.get(&state.target) else {
            return false;
        };
        let (owner, address) = (target.agent.clone(), target.address);
        let begun_earlier = moving.from.is_none();
        let epoch = state.row.as_ref().map_or(Epoch(0), |row| Epoch(row.epoch.0.saturating_sub(1)));
        let Stage::Securing(securing) = &mut moving.stage else {
            return false;
        };
        // Begun under an earlier term, it is not known any more who owned it. Beside the double only the target writes: it
        // is asked to let go of every earlier epoch, and answers when nothing behind the VIP runs there.
        if begun_earlier && securing.writers.left == Try::Done {
            return true;
        }
        if begun_earlier && securing.writers.left.due(now) {
            let job = self.job(JobFor::Vip(vip, VipJob::LetGo));
            let command = AgentCommand::Release { ask: AskVip { vip, epoch } };
            actions.push(Action::Command { job, agent: owner.clone(), command, timeout: LET_GO });
            securing.writers.left = Try::Running(job);
        }
        if planned && now < securing.since + RELEASE_PATIENCE {
            return false;
        }
        // Only an owner that is known is switched off, and not one that answers: it has released, or is about to. After a
        // restart in between, its power is read.
        let silent = securing.release.failed_since(securing.since);
        let off = !begun_earlier && self.cluster.agents.get(&owner).is_some_and(|machine| machine.power_off.is_some());
        if let Some(service) = &writers.unfenced {
            if now >= securing.since + RELEASE_PATIENCE && !std::mem::replace(&mut securing.writers.told, true) {
                self.note(Some(state.target.clone()), Severity::Alert, "held", unfenced(service), actions);
            }
            return false;
        }
        // It was switched on again after it had read off, and found voters that let it write.
        if securing.writers.power == Try::Done {
            securing.writers.power = Try::Idle { not_before: now };
        }
        let timeout = FENCE_TIMEOUT;
        if writers.power && (silent || !off) && securing.writers.power.due(now) {
            let job = self.job(JobFor::Vip(vip, if off { VipJob::PowerOff } else { VipJob::PowerRead(now) }));
            actions.push(if off {
                Action::PowerOff { job, agent: owner, timeout }
            } else {
                Action::ReadPower { job, agent: owner, timeout }
            });
            securing.writers.power = Try::Running(job);
        }
        if writers.storage && securing.writers.storage.due(now) {
            let job = self.job(JobFor::Vip(vip, VipJob::FenceStorage));
            actions.push(Action::FenceStorage { job, address, revoke: true, timeout });
            securing.writers.storage = Try::Running(job);
        }
        (!writers.power || securing.writers.power == Try::Done)
            && (!writers.storage || securing.writers.storage == Try::Done)
    }

    /// Does it go to the further backup server? Then there is one more that may write.
    fn follows_another(&self, state: &VipState, moving: &Move) -> bool {
        let further = self.cluster.targets.get(&state.target).and_then(|target| target.backup.further.as_ref());
        further.is_some_and(|further| moving.to.domain.as_ref() == Some(&further.domain))
    }

    /// The backup server that the further one relieves is suspended before, whatever else it serves: all of it leaves.
    fn other_is_quiet(
        &mut self,
        now: Time,
        vip: Vip,
        state: &VipState,
        moving: &mut Move,
        actions: &mut Vec<Action>,
    ) -> bool {
        // This owner has it already.
        if moving.from.is_none() && moving.freed == Freed::Yes {
            return true;
        }
        let Some(target) = self.cluster.targets.get(&state.target) else { return false };
        let domain = target.backup.domain.clone();
        let other = Owner { agent: target.backup.agent.clone(), domain: Some(domain.clone()) };
        let Some(other) = self.certain_place(&domain, other) else { return false };
        let Stage::Securing(securing) = &mut moving.stage else {
            return false;
        };
        if securing.writers.quiet.due(now) {
            let job = self.job(JobFor::Vip(vip, VipJob::Quiet));
            self.pausing.insert(other.clone(), job);
            let command = AgentCommand::PauseVm { domain };
            actions.push(Action::Command { job, agent: other.agent, command, timeout: FENCE_TIMEOUT });
            securing.writers.quiet = Try::Running(job);
        }
        securing.writers.quiet == Try::Done
    }

    /// A service writes by whatever VIP its machine holds: its double runs once all of them are clear of the target.
    pub(crate) fn others_clear(&self, vip: Vip, state: &VipState, moving: &Move) -> bool {
        let home = self.cluster.targets.get(&state.target).and_then(crate::config::Target::domain);
        if moving.cause == Cause::Arranged || moving.to.domain.as_ref() == home {
            return true;
        }
        let clear = |other: &VipState| match &other.moving {
            None => other.only_its_owner_is_left() && other.settled_on(&moving.to),
            Some(other) => other.to == moving.to && (other.clear || matches!(other.stage, Stage::Holding { .. })),
        };
        self.vips.iter().all(|(at, other)| *at == vip || other.target != state.target || clear(other))
    }

    /// The other VIPs of this target may have waited for this one.
    pub(crate) fn wake_siblings(&mut self, now: Time, vip: Vip, target: &TargetName) {
        for (_, other) in self.vips.iter_mut().filter(|(at, other)| **at != vip && other.target == *target) {
            other.wake = other.wake.min(now);
        }
    }

    /// On the way back, and when it is placed for the first time, the double is suspended before the target is told to
    /// hold.
    fn double_is_quiet(
        &mut self,
        now: Time,
        vip: Vip,
        state: &VipState,
        moving: &mut Move,
        actions: &mut Vec<Action>,
    ) -> bool {
        // This owner has it already.
        if moving.from.is_none() && moving.freed == Freed::Yes {
            return true;
        }
        // As far as the ledger knows the double never had it. But the ledger may be new, or a restored one, and the double
        // may run all the same: it is suspended as on every other way home.
        let first = moving.cause == Cause::First;
        let Some(target) = self.cluster.targets.get(&state.target) else {
            return false;
        };
        let double = self.at_backup(target);
        let domain = self.double_of(target).clone();
        if self.wanted_elsewhere(&double, &state.target) {
            // It serves others too and can't be suspended: then its release is what counts. One that never had it has
            // nothing to release.
            return first || moving.freed == Freed::Yes;
        }
        let Stage::Securing(securing) = &mut moving.stage else {
            return false;
        };
        // A double that is being left serves until it has released.
        if moving.from.is_some() && moving.freed == Freed::No && now < securing.since + RELEASE_PATIENCE {
            return false;
        }
        if securing.writers.quiet.due(now) {
            let job = self.job(JobFor::Vip(vip, VipJob::Quiet));
            self.pausing.insert(double.clone(), job);
            let command = AgentCommand::PauseVm { domain };
            actions.push(Action::Command { job, agent: double.agent, command, timeout: FENCE_TIMEOUT });
            securing.writers.quiet = Try::Running(job);
        }
        securing.writers.quiet == Try::Done
    }
}
