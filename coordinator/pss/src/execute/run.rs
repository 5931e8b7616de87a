//! One step of a transition under way, forwards or backwards.

use super::{Action, How, Ids, JobId, Signal, SignalId};
use crate::{plan::Step, policy::Policy};
use kage_types::{AgentId, Time};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// A signal without answer is sent again after this.
pub(super) const AGAIN: Duration = Duration::from_secs(2);
/// Who was to end a job and did not within its time-out and this is taken to have timed out.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// A look at what is: somebody answers or not.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// Hosts whose agents are gone answer again within this, or others find out what became of them.
pub(super) const FIND: Duration = Duration::from_secs(60);
/// A host that wakes faster is given so long all the same: until it is reached again, the network, a connection that was
/// being tried and TLS take their time too.
const WAKE_LEAST: Duration = Duration::from_secs(4);
/// Magic packets for one wake: UDP is lost, and a board may miss one while it goes to sleep.
pub(super) const WAKE_ATTEMPTS: u32 = 3;

/// A signal sent and not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub id: SignalId,
    pub again: Time,
}

impl Pending {
    pub fn send(now: Time, signal: Signal, ids: &mut Ids, actions: &mut Vec<Action>) -> Self {
        let id = ids.signal();
        actions.push(Action::Signal { id, signal });
        Self { id, again: now + AGAIN }
    }

    pub fn repeat(&mut self, now: Time, signal: impl FnOnce() -> Signal, actions: &mut Vec<Action>) {
        if now >= self.again {
            actions.push(Action::Signal { id: self.id, signal: signal() });
            self.again = now + AGAIN;
        }
    }
}

/// A job given and not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    pub id: JobId,
    pub until: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// The ledger is told that it will be done.
    Intent(Pending),
    /// Is it done already?
    Looking(Job),
    /// It is being done.
    Acting { job: Job, attempt: u32, slot: Time },
    /// A wake attempt ended early: the next goes out when its time is over.
    Resting { attempt: u32, until: Time },
    /// It was done: does it hold? Or it failed: does it hold all the same?
    Checking { job: Job, failed: Option<String> },
    /// The ledger is told that it is done.
    Recording(Pending),
    /// Claimed while something was under way: its end is awaited.
    Leaving(Job),
    /// A live migration that was left: is it where the run leads (`there`), or where it was? Whoever claimed it must know.
    Finding { job: Job, there: bool, until: Time },
    /// The ledger is told where it was found; `undo`: the word for that.
    Reporting { pending: Pending, undo: bool },
}

impl Stage {
    pub fn job(&self) -> Option<Job> {
        match self {
            Stage::Looking(job)
            | Stage::Acting { job, .. }
            | Stage::Checking { job, .. }
            | Stage::Leaving(job)
            | Stage::Finding { job, .. } => Some(*job),
            Stage::Intent(_) | Stage::Resting { .. } | Stage::Recording(_) | Stage::Reporting { .. } => None,
        }
    }

    pub fn deadline(&self) -> (Time, &'static str) {
        match self {
            Stage::Intent(pending) | Stage::Recording(pending) | Stage::Reporting { pending, .. } => {
                (pending.again, "signal to the ledger again")
            }
            Stage::Looking(job)
            | Stage::Acting { job, .. }
            | Stage::Checking { job, .. }
            | Stage::Leaving(job)
            | Stage::Finding { job, .. } => (job.until, "a job's time-out"),
            Stage::Resting { until, .. } => (*until, "next wake attempt"),
        }
    }
}

/// What actions need to know.
pub(super) struct Acting<'a> {
    pub now: Time,
    pub policy: &'a Policy,
    pub usual: BTreeMap<AgentId, Duration>,
    pub ids: &'a mut Ids,
    pub actions: &'a mut Vec<Action>,
}

impl Acting<'_> {
    fn job(&mut self, timeout: Duration) -> Job {
        Job { id: self.ids.job(), until: self.now + timeout + GRACE }
    }

    /// Twice the usual time, all attempts and the last look together (design: power saving).
    fn wake_times(&self, host: &AgentId) -> (Duration, Duration) {
        let usual = self.usual.get(host).copied().unwrap_or(self.policy.limits.wake).max(WAKE_LEAST);
        let look = LOOK.min(usual / 2);
        (usual.saturating_mul(2).saturating_sub(look) / WAKE_ATTEMPTS, look)
    }

    fn limit(&self, step: &Step) -> Duration {
        let limits = self.policy.limits;
        match step {
            Step::MoveVip { .. } => limits.vip,
            Step::Migrate { .. } => limits.migration,
            Step::SuspendVm { .. } | Step::ResumeVm { .. } => limits.vm,
            Step::SuspendHost { .. } => limits.suspend,
            Step::WakeHost { host } => self.wake_times(host).0,
        }
    }

    pub fn act(&mut self, step: &Step, attempt: u32) -> Stage {
        let timeout = self.limit(step);
        let how = match step {
            Step::Migrate { .. } => {
                How::Migration { bandwidth: self.policy.migration_bandwidth, downtime: self.policy.migration_downtime }
            }
            Step::WakeHost { .. } => How::Wake { attempt },
            Step::SuspendHost { .. } => How::Sleep { alarm: self.policy.alarm },
            Step::MoveVip { .. } | Step::SuspendVm { .. } | Step::ResumeVm { .. } => How::Plain,
        };
        let job = self.job(timeout);
        self.actions.push(Action::Do { job: job.id, step: step.clone(), how, timeout });
        Stage::Acting { job, attempt, slot: self.now + timeout }
    }

    fn look(&mut self, step: &Step, timeout: Duration) -> Job {
        let job = self.job(timeout);
        self.actions.push(Action::Look { job: job.id, step: step.clone(), timeout });
        job
    }

    /// Before it is done: it may be so already.
    pub fn look_first(&mut self, step: &Step) -> Stage {
        Stage::Looking(self.look(step, LOOK))
    }

    /// A live migration was left: where did it leave its virtual server?
    pub fn find(&mut self, step: &Step, there: bool, until: Time) -> Stage {
        let step = if there { step.clone() } else { step.inverse() };
        Stage::Finding { job: self.look(&step, LOOK), there, until }
    }

    /// After it was done: it may take a moment to show. After it failed: as it is.
    pub fn check(&mut self, step: &Step, failed: Option<String>) -> Stage {
        let wake = match step {
            Step::WakeHost { host } => Some(self.wake_times(host).1),
            Step::MoveVip { .. }
            | Step::Migrate { .. }
            | Step::SuspendVm { .. }
            | Step::ResumeVm { .. }
            | Step::SuspendHost { .. } => None,
        };
        let timeout = match (&failed, wake) {
            (_, Some(look)) => look,
            (None, None) => self.limit(step),
            (Some(_), None) => LOOK,
        };
        Stage::Checking { job: self.look(step, timeout), failed }
    }
}

/// Long enough for people to want to know that it is under way.
pub(super) fn takes_time(step: &Step) -> bool {
    match step {
        Step::Migrate { .. } | Step::SuspendHost { .. } | Step::WakeHost { .. } => true,
        Step::MoveVip { .. } | Step::SuspendVm { .. } | Step::ResumeVm { .. } => false,
    }
}

/// Is it the answer to this that it waits for?
pub(super) fn waits_for(stage: &Stage, id: SignalId) -> bool {
    match stage {
        Stage::Intent(pending) | Stage::Recording(pending) | Stage::Reporting { pending, .. } => pending.id == id,
        Stage::Looking(_)
        | Stage::Acting { .. }
        | Stage::Resting { .. }
        | Stage::Checking { .. }
        | Stage::Leaving(_)
        | Stage::Finding { .. } => false,
    }
}
