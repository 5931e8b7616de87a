//! Executes one plan at a time: `step(now, event, policy, &mut actions)` and `deadline()`, without I/O.
//!
//! Each step is recorded as intended, and the ledger's acknowledgement awaited, before anything is done; then it is done,
//! looked at, and recorded as done. A plan that gives capacity up is undone as a whole when one step fails; one that
//! brings capacity back goes on with what does not hang on the failure.

mod run;
mod search;
mod transition;

use crate::{
    class::Condition,
    inventory::{Claim, Inventory, WakePath},
    plan::{Direction, Plan, Step},
    policy::Policy,
    units::BytesPerSecond,
};
use kage_types::{AgentId, DomainName, GroupName, Revision, Time};
use search::Search;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};
use transition::{Transition, Wakes};

/// Of something asked for; ends as exactly one [`Event::Ended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// Of something told to the ledger; ends as exactly one [`Event::Recorded`] or [`Event::Refused`]. The same one may be
/// sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignalId(pub u64);

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobResult {
    /// Done; of a look: it is so.
    Done,
    /// Not done, and why; of a look: it is not so.
    Failed(String),
    /// Unknown.
    TimedOut,
}

/// What comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Time went by.
    Tick,
    /// Of [`Action::Do`] and [`Action::Look`].
    Ended {
        /// Which.
        job: JobId,
        /// How.
        result: JobResult,
    },
    /// The ledger has it, durably.
    Recorded {
        /// Which.
        id: SignalId,
        /// The ledger's revision with it.
        revision: Revision,
    },
    /// The ledger will not have it: something was claimed or changed meanwhile.
    Refused {
        /// Which.
        id: SignalId,
        /// Why.
        why: String,
    },
    /// Another controller needs this to bring a service back: let go of it.
    Claimed(Claim),
    /// It is free again.
    Unclaimed(Claim),
    /// Give up giving capacity up.
    Cancel(String),
}

/// How a step is done, beyond what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Nothing to say.
    Plain,
    /// Live migration.
    Migration {
        /// None: the hypervisor's.
        bandwidth: Option<BytesPerSecond>,
        /// The longest pause at its end; none: the hypervisor's.
        downtime: Option<Duration>,
    },
    /// A host goes to sleep. Whoever does it first asks its hypervisor that nothing in service is left on it and arms its
    /// wake path anew; if either fails, so does this, and nothing was done.
    Sleep {
        /// Its own clock (RTC) wakes it after this at the latest, should everything else be lost.
        alarm: Duration,
    },
    /// Done when the host's agent answers.
    Wake {
        /// Which magic packet, from 1.
        attempt: u32,
    },
}

/// What goes out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Tell the ledger.
    Signal {
        /// Which.
        id: SignalId,
        /// What.
        signal: Signal,
    },
    /// Do this.
    Do {
        /// Which.
        job: JobId,
        /// What.
        step: Step,
        /// And how.
        how: How,
        /// It ends within this.
        timeout: Duration,
    },
    /// Is it as the step leaves it? Answer as soon as it is, at the latest after the time-out.
    Look {
        /// Which.
        job: JobId,
        /// The step.
        step: Step,
        /// It ends within this.
        timeout: Duration,
    },
    /// Stop it if it can be stopped. It still ends as one event.
    Abort {
        /// Which.
        job: JobId,
    },
    /// Nothing of ours is under way on it any more.
    Yield(Claim),
    /// For people.
    Note(Note),
}

/// What the ledger is told (thesis: edits of the Operation, Suspend, Live migration and State files).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// This will be done; good only for the generation the plan was made of.
    TransitionBegun {
        /// All of it.
        plan: Plan,
    },
    /// One step will be done, or undone.
    StepBegun {
        /// Index in the plan.
        index: usize,
        /// Taken back.
        undo: bool,
    },
    /// It is done, and was looked at.
    StepDone {
        /// Index in the plan.
        index: usize,
        /// Taken back.
        undo: bool,
    },
    /// The transition is over.
    Committed {
        /// The groups' conditions now.
        conditions: BTreeMap<GroupName, Condition>,
        /// Steps, by index, that could not be done.
        missing: BTreeSet<usize>,
    },
    /// A virtual server whose live migration ended unseen was found: it runs there, and not on those.
    Found {
        /// Which.
        vm: DomainName,
        /// Where.
        host: AgentId,
        /// Looked at, too.
        not_on: BTreeSet<AgentId>,
    },
    /// The transition is over and undone.
    RolledBack {
        /// The groups' conditions now: one with something left is as if it had changed, until a later plan mends it.
        conditions: BTreeMap<GroupName, Condition>,
        /// Steps, by index, that could not be undone or were left to who claimed them.
        left: BTreeSet<usize>,
        /// Why.
        why: String,
    },
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// For the log.
    Info,
    /// Something did not go as planned; nothing to do.
    Warning,
    /// Somebody must look.
    Alert,
}

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A transition has begun.
    Begun,
    /// A step that takes its time is begun.
    StepBegun,
    /// A step is done.
    StepDone,
    /// A step is taken back.
    StepUndone,
    /// A step failed.
    StepFailed,
    /// A host did not wake.
    NoWake,
    /// A step could not be taken back.
    Stuck,
    /// A transition is over.
    Committed,
    /// A transition is undone.
    RolledBack,
    /// Something was claimed: let go.
    Yielded,
    /// A virtual server whose live migration ended unseen was found.
    Found,
    /// The ledger refused.
    Refused,
    /// A step failed that had not failed before: it is tried again later and later.
    Trouble,
    /// So many equal judgements were made: a group's condition should change.
    Judged,
    /// A member that was measured can't be any more: its group can't be judged.
    Unmeasured,
    /// All members of such a group are measured again.
    Measured,
    /// Something stands in the way until somebody does something about it.
    Obstacle,
}

/// A line for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about.
    pub kind: Kind,
    /// The thing, the cause, the next step.
    pub text: String,
}

/// A plan that was not begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotBegun {
    /// Another is being executed.
    Busy,
    /// It was made of an older inventory.
    Stale {
        /// Its generation.
        plan: Revision,
        /// The present one.
        now: Revision,
    },
    /// It is about something that is claimed.
    Claimed(Claim),
}

impl fmt::Display for NotBegun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotBegun::Busy => f.write_str("another transition is under way"),
            NotBegun::Stale { plan, now } => write!(f, "the plan is of generation {plan}, and now is {now}"),
            NotBegun::Claimed(claim) => write!(f, "{claim} is part of a recovery"),
        }
    }
}

/// How a transition ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Which way it went.
    pub direction: Direction,
    /// How.
    pub outcome: Outcome,
    /// The ledger shows it from this revision on; none: it was never told, or refused.
    pub revision: Option<Revision>,
    /// Hosts that did not wake.
    pub no_wake: BTreeSet<AgentId>,
    /// Steps that failed by themselves on the way there, and why.
    #[serde(with = "kage_types::pairs")]
    pub failed: BTreeMap<Step, String>,
    /// Steps that are done.
    pub done: BTreeSet<Step>,
}

/// How a transition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All done.
    Complete,
    /// Some of it could not be done.
    Partial,
    /// Undone as a step failed.
    Failed,
    /// Undone as something was claimed, or capacity wanted again.
    GivenUp,
}

/// How far the ledger knows a step to have come, for a controller that starts again in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recorded {
    /// No word of it.
    Untouched,
    /// Begun, or its undoing was.
    Begun,
    /// Done.
    Done,
    /// Undone.
    Undone,
}

/// Executes plans.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Executor {
    mode: Mode,
    ids: Ids,
    #[serde(default)]
    search: Search,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Mode {
    #[default]
    Idle,
    Busy(Box<Transition>),
}

/// The last numbers given.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Ids {
    job: u64,
    signal: u64,
}

impl Ids {
    pub fn job(&mut self) -> JobId {
        self.job += 1;
        JobId(self.job)
    }

    pub fn signal(&mut self) -> SignalId {
        self.signal += 1;
        SignalId(self.signal)
    }
}

impl Executor {
    /// The plan being executed.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        match &self.mode {
            Mode::Idle => None,
            Mode::Busy(transition) => Some(&transition.plan),
        }
    }

    /// Begin a plan that was made of this inventory.
    ///
    /// # Errors
    /// Why it was not begun; nothing was done then.
    pub fn begin(
        &mut self,
        now: Time,
        plan: Plan,
        inventory: &Inventory,
        policy: &Policy,
        actions: &mut Vec<Action>,
    ) -> Result<(), NotBegun> {
        match &self.mode {
            Mode::Idle => {}
            Mode::Busy(_) => return Err(NotBegun::Busy),
        }
        if plan.generation != inventory.generation {
            return Err(NotBegun::Stale { plan: plan.generation, now: inventory.generation });
        }
        let claimed = |claim: &&Claim| plan.steps.iter().any(|planned| planned.touches(claim));
        if let Some(claim) = inventory.claims.iter().find(claimed) {
            return Err(NotBegun::Claimed(claim.clone()));
        }
        let wakes = wakes(&plan, inventory, policy);
        let transition = Transition::begin(now, plan, wakes, &mut self.ids, actions);
        self.mode = Mode::Busy(Box::new(transition));
        Ok(())
    }

    /// Go on where an earlier controller ended, as the ledger has it: what gave capacity up is undone, what brought it
    /// back is finished. `after` is the last numbers that controller may have used.
    pub fn resume(
        &mut self,
        now: Time,
        plan: Plan,
        recorded: &[Recorded],
        inventory: &Inventory,
        policy: &Policy,
        actions: &mut Vec<Action>,
    ) -> Option<End> {
        let wakes = wakes(&plan, inventory, policy);
        self.mode = Mode::Busy(Box::new(Transition::resume(plan, recorded, wakes)));
        self.step(now, Event::Tick, policy, actions)
    }

    /// What is looked for, by what there is.
    pub fn observe(&mut self, now: Time, inventory: &Inventory) {
        let plan = match &self.mode {
            Mode::Idle => None,
            Mode::Busy(transition) => Some(&transition.plan),
        };
        self.search.observe(now, inventory, plan);
    }

    /// One event. Gives the end of the transition, if this was it.
    pub fn step(&mut self, now: Time, event: Event, policy: &Policy, actions: &mut Vec<Action>) -> Option<End> {
        if self.search.step(now, &event, policy, &mut self.ids, actions) {
            return None;
        }
        match &mut self.mode {
            Mode::Idle => {
                if let Event::Claimed(claim) = event {
                    actions.push(Action::Yield(claim));
                }
                None
            }
            Mode::Busy(transition) => {
                let end = transition.step(now, event, policy, &mut self.ids, actions);
                if end.is_some() {
                    self.mode = Mode::Idle;
                }
                end
            }
        }
    }

    /// When to send [`Event::Tick`] at the latest, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        let transition = match &self.mode {
            Mode::Idle => None,
            Mode::Busy(transition) => transition.deadline(),
        };
        transition.into_iter().chain(self.search.deadline()).min_by_key(|(time, _)| *time)
    }
}

/// What is known of each host that a plan may have to wake, forwards or backwards.
fn wakes(plan: &Plan, inventory: &Inventory, policy: &Policy) -> Wakes {
    let hosts = plan.steps().filter_map(|step| match step {
        Step::SuspendHost { host } | Step::WakeHost { host } => Some(host.clone()),
        Step::MoveVip { .. } | Step::Migrate { .. } | Step::SuspendVm { .. } | Step::ResumeVm { .. } => None,
    });
    let usual = hosts
        .map(|host| {
            let usual = match inventory.hosts.get(&host).map(|host| host.wake) {
                Some(WakePath::Verified(took)) => took,
                Some(WakePath::Unproven | WakePath::Failed | WakePath::None) | None => policy.limits.wake,
            };
            (host, usual)
        })
        .collect();
    let told = inventory.hosts.iter().filter(|(_, host)| host.slept_on).map(|(name, _)| name.clone()).collect();
    Wakes { usual, told }
}
