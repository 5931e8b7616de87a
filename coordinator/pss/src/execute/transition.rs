//! A plan under way.

mod claims;
mod ending;

use super::{
    Action, End, Event, Ids, JobResult, Kind, Note, Outcome, Recorded, Severity, Signal, SignalId,
    run::{Acting, FIND, Pending, Stage, WAKE_ATTEMPTS, takes_time, waits_for},
};
use crate::{
    inventory::Claim,
    plan::{Direction, Plan, Step},
    policy::Policy,
};
use kage_types::{AgentId, Revision, Time};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Where a step is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Not begun.
    Waiting,
    /// Under way; `undo`: taken back.
    Run { undo: bool, stage: Stage },
    /// Done.
    Done,
    /// Did not succeed; what of it there was is still to be taken back, or can stay.
    Failed,
    /// Taken back.
    Undone,
    /// What it needs could not be done.
    Skipped,
    /// Left to who claimed it.
    Left,
    /// Could not be taken back.
    Stuck,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    /// The ledger is told of the plan.
    Announcing(Pending),
    /// Steps are done.
    Forward,
    /// Steps are taken back.
    Backward { why: String, given_up: bool },
    /// The ledger is told of the end.
    Closing { pending: Pending, signal: Box<Signal>, outcome: Outcome },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transition {
    pub plan: Plan,
    usual: BTreeMap<AgentId, Duration>,
    /// Hosts that did not wake before: it was told.
    #[serde(default)]
    told: BTreeSet<AgentId>,
    /// An earlier controller began it: look before anything is done.
    resumed: bool,
    phase: Phase,
    steps: Vec<State>,
    no_wake: BTreeSet<AgentId>,
    /// On the way there.
    #[serde(with = "kage_types::pairs")]
    failures: BTreeMap<Step, String>,
    /// Not yielded yet.
    claims: BTreeSet<Claim>,
}

/// What is known of wakes when it begins.
pub(super) struct Wakes {
    /// The usual time of each host that may have to be woken.
    pub usual: BTreeMap<AgentId, Duration>,
    /// Hosts of which it was told already that they do not wake.
    pub told: BTreeSet<AgentId>,
}

fn note(severity: Severity, kind: Kind, text: String, actions: &mut Vec<Action>) {
    actions.push(Action::Note(Note { severity, kind, text }));
}

impl Transition {
    pub fn begin(now: Time, plan: Plan, wakes: Wakes, ids: &mut Ids, actions: &mut Vec<Action>) -> Self {
        let pending = Pending::send(now, Signal::TransitionBegun { plan: plan.clone() }, ids, actions);
        let what = match plan.direction {
            Direction::Fold => format!("saves {} (modelled), migrates {}", plan.watts, plan.migrated),
            Direction::Unfold => format!("migrates {}", plan.migrated),
        };
        let text = format!("transition begun ({} steps): {}; {what}", plan.steps.len(), ending::changes(&plan));
        note(Severity::Info, Kind::Begun, text, actions);
        let steps = vec![State::Waiting; plan.steps.len()];
        Self::new(plan, wakes, false, Phase::Announcing(pending), steps)
    }

    pub fn resume(plan: Plan, recorded: &[Recorded], wakes: Wakes) -> Self {
        let phase = match plan.direction {
            Direction::Fold => Phase::Backward { why: "the controller was started again".into(), given_up: true },
            Direction::Unfold => Phase::Forward,
        };
        let mut steps = vec![State::Waiting; plan.steps.len()];
        for (state, recorded) in steps.iter_mut().zip(recorded) {
            *state = match (recorded, plan.direction) {
                (Recorded::Untouched, Direction::Fold | Direction::Unfold) => State::Waiting,
                (Recorded::Undone, Direction::Fold) => State::Undone,
                (Recorded::Begun, Direction::Fold) => State::Failed,
                (Recorded::Undone | Recorded::Begun, Direction::Unfold) => State::Waiting,
                (Recorded::Done, Direction::Fold | Direction::Unfold) => State::Done,
            };
        }
        Self::new(plan, wakes, true, phase, steps)
    }

    fn new(plan: Plan, Wakes { usual, told }: Wakes, resumed: bool, phase: Phase, steps: Vec<State>) -> Self {
        let (no_wake, failures, claims) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        Self { plan, usual, told, resumed, phase, steps, no_wake, failures, claims }
    }

    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        let phase = match &self.phase {
            Phase::Announcing(pending) | Phase::Closing { pending, .. } => {
                Some((pending.again, "signal to the ledger again"))
            }
            Phase::Forward | Phase::Backward { .. } => None,
        };
        let runs = self.steps.iter().filter_map(|state| match state {
            State::Run { stage, .. } => Some(stage.deadline()),
            State::Waiting
            | State::Done
            | State::Failed
            | State::Undone
            | State::Skipped
            | State::Left
            | State::Stuck => None,
        });
        phase.into_iter().chain(runs).min_by_key(|(time, _)| *time)
    }

    pub fn step(
        &mut self,
        now: Time,
        event: Event,
        policy: &Policy,
        ids: &mut Ids,
        actions: &mut Vec<Action>,
    ) -> Option<End> {
        match event {
            Event::Tick => self.tick(now, policy, ids, actions),
            Event::Ended { job, result } => {
                if let Some(index) = self.running(|stage| stage.job().is_some_and(|there| there.id == job)) {
                    self.ended(index, &result, &mut self.acting(now, policy, ids, actions));
                }
            }
            Event::Recorded { id, revision } => {
                if let Some(end) = self.recorded(now, id, revision, policy, ids, actions) {
                    return Some(end);
                }
            }
            Event::Refused { id, why } => {
                if let Some(end) = self.refused(id, &why, actions) {
                    return Some(end);
                }
            }
            Event::Claimed(claim) => self.claimed(claim, actions),
            Event::Unclaimed(claim) => {
                self.claims.remove(&claim);
            }
            Event::Cancel(why) => match (self.plan.direction, &self.phase) {
                (Direction::Fold, Phase::Announcing(_) | Phase::Forward) => {
                    self.phase = Phase::Backward { why, given_up: true };
                }
                (Direction::Fold, Phase::Backward { .. } | Phase::Closing { .. }) | (Direction::Unfold, _) => {}
            },
        }
        self.advance(now, policy, ids, actions);
        self.yields(actions);
        None
    }

    fn acting<'a>(&self, now: Time, policy: &'a Policy, ids: &'a mut Ids, actions: &'a mut Vec<Action>) -> Acting<'a> {
        Acting { now, policy, usual: self.usual.clone(), ids, actions }
    }

    fn running(&self, is: impl Fn(&Stage) -> bool) -> Option<usize> {
        self.steps.iter().position(|state| matches!(state, State::Run { stage, .. } if is(stage)))
    }

    /// What a run does: the step, or what takes it back.
    fn does(&self, index: usize, undo: bool) -> Option<Step> {
        let step = &self.plan.steps.get(index)?.step;
        Some(if undo { step.inverse() } else { step.clone() })
    }

    fn set(&mut self, index: usize, state: State) {
        if let Some(there) = self.steps.get_mut(index) {
            *there = state;
        }
    }

    /// Signals without answer again, and jobs whose time is over.
    fn tick(&mut self, now: Time, policy: &Policy, ids: &mut Ids, actions: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Announcing(pending) => {
                pending.repeat(now, || Signal::TransitionBegun { plan: self.plan.clone() }, actions);
            }
            Phase::Closing { pending, signal, .. } => pending.repeat(now, || (**signal).clone(), actions),
            Phase::Forward | Phase::Backward { .. } => {}
        }
        for index in 0..self.steps.len() {
            let Some(State::Run { undo, stage }) = self.steps.get_mut(index) else { continue };
            let undo = *undo;
            match stage {
                Stage::Intent(pending) => pending.repeat(now, || Signal::StepBegun { index, undo }, actions),
                Stage::Recording(pending) => pending.repeat(now, || Signal::StepDone { index, undo }, actions),
                Stage::Reporting { pending, undo } => {
                    let undo = *undo;
                    pending.repeat(now, || Signal::StepDone { index, undo }, actions);
                }
                Stage::Resting { attempt, until } => {
                    let attempt = *attempt;
                    if now >= *until
                        && let Some(step) = self.does(index, undo)
                    {
                        let stage = self.acting(now, policy, ids, actions).act(&step, attempt);
                        self.set(index, State::Run { undo, stage });
                    }
                }
                Stage::Looking(job)
                | Stage::Acting { job, .. }
                | Stage::Checking { job, .. }
                | Stage::Leaving(job)
                | Stage::Finding { job, .. } => {
                    if now >= job.until {
                        self.ended(index, &JobResult::TimedOut, &mut self.acting(now, policy, ids, actions));
                    }
                }
            }
        }
    }

    /// A job of this step ended.
    fn ended(&mut self, index: usize, result: &JobResult, acting: &mut Acting<'_>) {
        let Some(State::Run { undo, stage }) = self.steps.get(index).cloned() else { return };
        let Some(step) = self.does(index, undo) else { return };
        let failed = match result {
            JobResult::Done => None,
            JobResult::Failed(why) => Some(why.clone()),
            JobResult::TimedOut => Some("no answer in time".to_owned()),
        };
        let next = match (stage, failed) {
            (Stage::Looking(_), None) | (Stage::Checking { .. }, None) => {
                let pending = Pending::send(acting.now, Signal::StepDone { index, undo }, acting.ids, acting.actions);
                Stage::Recording(pending)
            }
            (Stage::Looking(_), Some(_)) => acting.act(&step, 1),
            (Stage::Acting { .. }, None) => acting.check(&step, None),
            (Stage::Acting { attempt, slot, .. }, Some(why)) => match &step {
                Step::WakeHost { .. } if attempt < WAKE_ATTEMPTS => {
                    if acting.now >= slot {
                        acting.act(&step, attempt + 1)
                    } else {
                        Stage::Resting { attempt: attempt + 1, until: slot }
                    }
                }
                Step::WakeHost { .. }
                | Step::MoveVip { .. }
                | Step::Migrate { .. }
                | Step::SuspendVm { .. }
                | Step::ResumeVm { .. }
                | Step::SuspendHost { .. } => acting.check(&step, Some(why)),
            },
            (Stage::Checking { failed, .. }, Some(why)) => {
                let why = failed.unwrap_or_else(|| format!("it was done and does not hold: {why}"));
                self.failed(index, undo, &step, &why, acting);
                return;
            }
            (Stage::Leaving(_), _) if matches!(step, Step::Migrate { .. }) => {
                acting.find(&step, true, acting.now + FIND)
            }
            (Stage::Finding { there, .. }, None) => {
                let undo = undo == there;
                let pending = Pending::send(acting.now, Signal::StepDone { index, undo }, acting.ids, acting.actions);
                Stage::Reporting { pending, undo }
            }
            (Stage::Finding { there, until, .. }, Some(_)) if acting.now < until => acting.find(&step, !there, until),
            (Stage::Leaving(_) | Stage::Finding { .. }, _) => {
                self.set(index, State::Left);
                return;
            }
            (stage @ (Stage::Intent(_) | Stage::Resting { .. } | Stage::Recording(_) | Stage::Reporting { .. }), _) => {
                stage
            }
        };
        self.set(index, State::Run { undo, stage: next });
    }

    fn failed(&mut self, index: usize, undo: bool, step: &Step, why: &str, acting: &mut Acting<'_>) {
        if let Step::WakeHost { host } = step {
            self.no_wake.insert(host.clone());
            if !self.told.contains(host) {
                let text = format!("{host} does not wake after {WAKE_ATTEMPTS} magic packets ({why}): look at it");
                note(Severity::Alert, Kind::NoWake, text, acting.actions);
            }
        }
        if undo {
            let text = format!("{step} failed and can't be undone further ({why}): put it right by hand");
            note(Severity::Alert, Kind::Stuck, text, acting.actions);
            self.set(index, State::Stuck);
            return;
        }
        note(Severity::Warning, Kind::StepFailed, format!("{step} failed: {why}"), acting.actions);
        self.failures.insert(step.clone(), why.to_owned());
        let half_done = match step {
            // Somebody must hold the address, and the virtual server run somewhere, before anything else is done.
            Step::MoveVip { .. } | Step::Migrate { .. } => true,
            Step::SuspendVm { .. } | Step::ResumeVm { .. } | Step::SuspendHost { .. } | Step::WakeHost { .. } => false,
        };
        match (self.plan.direction, half_done) {
            (Direction::Fold, true | false) => {
                self.set(index, State::Failed);
                match self.phase {
                    Phase::Announcing(_) | Phase::Forward => {
                        self.phase = Phase::Backward { why: format!("{step}: {why}"), given_up: false };
                    }
                    Phase::Backward { .. } | Phase::Closing { .. } => {}
                }
            }
            (Direction::Unfold, true) => {
                let stage = intent(acting.now, index, true, acting.ids, acting.actions);
                self.set(index, State::Run { undo: true, stage });
            }
            (Direction::Unfold, false) => self.set(index, State::Failed),
        }
    }

    fn recorded(
        &mut self,
        now: Time,
        id: SignalId,
        revision: Revision,
        policy: &Policy,
        ids: &mut Ids,
        actions: &mut Vec<Action>,
    ) -> Option<End> {
        match &self.phase {
            Phase::Announcing(pending) if pending.id == id => self.phase = Phase::Forward,
            Phase::Closing { pending, outcome, .. } if pending.id == id => {
                let outcome = *outcome;
                return Some(self.end(outcome, Some(revision)));
            }
            Phase::Announcing(_) | Phase::Closing { .. } | Phase::Forward | Phase::Backward { .. } => {}
        }
        let index = self.running(|stage| waits_for(stage, id))?;
        let Some(State::Run { undo, stage }) = self.steps.get(index).cloned() else { return None };
        let step = self.does(index, undo)?;
        match stage {
            Stage::Intent(_) => {
                let look = undo || self.resumed;
                if !look && takes_time(&step) {
                    note(Severity::Info, Kind::StepBegun, format!("begun: {step}"), actions);
                }
                let mut acting = self.acting(now, policy, ids, actions);
                let stage = if look { acting.look_first(&step) } else { acting.act(&step, 1) };
                self.set(index, State::Run { undo, stage });
            }
            Stage::Recording(_) => self.settled(index, undo, &step, actions),
            Stage::Reporting { undo: word, .. } => {
                let found = if word == undo { step } else { step.inverse() };
                note(Severity::Info, Kind::Yielded, format!("left to a recovery, and found: {found}"), actions);
                self.set(index, State::Left);
            }
            Stage::Looking(_)
            | Stage::Acting { .. }
            | Stage::Resting { .. }
            | Stage::Checking { .. }
            | Stage::Leaving(_)
            | Stage::Finding { .. } => {}
        }
        None
    }

    /// Done or undone, and the ledger knows.
    fn settled(&mut self, index: usize, undo: bool, step: &Step, actions: &mut Vec<Action>) {
        let (state, kind) = match (undo, self.plan.direction) {
            (false, Direction::Fold | Direction::Unfold) => (State::Done, Kind::StepDone),
            (true, Direction::Fold) => (State::Undone, Kind::StepUndone),
            (true, Direction::Unfold) => (State::Failed, Kind::StepUndone),
        };
        note(Severity::Info, kind, format!("done: {step}"), actions);
        self.set(index, state);
    }

    /// Begin whatever can be begun, and end when nothing is left.
    fn advance(&mut self, now: Time, policy: &Policy, ids: &mut Ids, actions: &mut Vec<Action>) {
        match &self.phase {
            Phase::Announcing(_) | Phase::Closing { .. } => return,
            Phase::Forward => self.forward(now, policy, ids, actions),
            Phase::Backward { .. } => self.backward(now, policy, ids, actions),
        }
        if self.steps.iter().any(|state| matches!(state, State::Run { .. })) {
            return;
        }
        let Some((signal, outcome)) = self.over(actions) else { return };
        let pending = Pending::send(now, signal.clone(), ids, actions);
        self.phase = Phase::Closing { pending, signal: Box::new(signal), outcome };
    }

    fn forward(&mut self, now: Time, policy: &Policy, ids: &mut Ids, actions: &mut Vec<Action>) {
        for index in 0..self.steps.len() {
            if self.steps.get(index) != Some(&State::Waiting) {
                continue;
            }
            let Some(planned) = self.plan.steps.get(index) else { continue };
            let needs: Vec<&State> = planned.needs.iter().filter_map(|need| self.steps.get(*need)).collect();
            let hopeless = |state: &&State| match state {
                State::Failed | State::Undone | State::Skipped | State::Left | State::Stuck => true,
                State::Waiting | State::Run { .. } | State::Done => false,
            };
            if needs.iter().any(hopeless) {
                self.set(index, State::Skipped);
            } else if needs.iter().all(|state| **state == State::Done) && self.slot(index, policy) {
                let stage = intent(now, index, false, ids, actions);
                self.set(index, State::Run { undo: false, stage });
            }
        }
    }

    fn backward(&mut self, now: Time, policy: &Policy, ids: &mut Ids, actions: &mut Vec<Action>) {
        for index in (0..self.steps.len()).rev() {
            match self.steps.get(index) {
                // Announced, not acted on: it need not be.
                Some(State::Run { undo: false, stage: Stage::Intent(_) }) => {
                    self.set(index, State::Waiting);
                    continue;
                }
                Some(State::Done | State::Failed) => {}
                Some(
                    State::Waiting | State::Run { .. } | State::Undone | State::Skipped | State::Left | State::Stuck,
                )
                | None => continue,
            }
            let hang: Vec<&State> = (self.plan.steps.iter().zip(&self.steps))
                .filter(|(planned, _)| planned.needs.contains(&index))
                .map(|(_, state)| state)
                .collect();
            if hang.contains(&&State::Stuck) {
                self.set(index, State::Stuck);
            } else if hang.contains(&&State::Left) {
                self.set(index, State::Left);
            } else if hang.iter().all(|state| matches!(state, State::Waiting | State::Undone | State::Skipped))
                && self.slot(index, policy)
            {
                let stage = intent(now, index, true, ids, actions);
                self.set(index, State::Run { undo: true, stage });
            }
        }
    }

    /// May it begin, by the number of live migrations at the same time?
    fn slot(&self, index: usize, policy: &Policy) -> bool {
        let migrates = |index: usize| {
            matches!(self.plan.steps.get(index).map(|planned| &planned.step), Some(Step::Migrate { .. }))
        };
        let runs = |index: &usize| matches!(self.steps.get(*index), Some(State::Run { .. }));
        let under_way = (0..self.steps.len()).filter(runs).filter(|index| migrates(*index)).count();
        !migrates(index) || under_way < usize::try_from(policy.migrations).unwrap_or(usize::MAX)
    }

    fn end(&self, outcome: Outcome, revision: Option<Revision>) -> End {
        let done = self.plan.steps().zip(&self.steps).filter(|(_, state)| **state == State::Done);
        End {
            direction: self.plan.direction,
            outcome,
            revision,
            no_wake: self.no_wake.clone(),
            failed: self.failures.clone(),
            done: done.map(|(step, _)| step.clone()).collect(),
        }
    }
}

fn intent(now: Time, index: usize, undo: bool, ids: &mut Ids, actions: &mut Vec<Action>) -> Stage {
    Stage::Intent(Pending::send(now, Signal::StepBegun { index, undo }, ids, actions))
}
