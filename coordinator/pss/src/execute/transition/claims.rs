//! What others say about a transition: the ledger's refusals, and claims, at which we let go.

use super::{Phase, State, Transition, note};
use crate::{
    execute::{
        Action, End, Kind, Outcome, Severity, SignalId,
        run::{Stage, waits_for},
    },
    inventory::Claim,
    plan::Direction,
};

impl Transition {
    pub(super) fn refused(&mut self, id: SignalId, why: &str, actions: &mut Vec<Action>) -> Option<End> {
        let refusal = |what: String, actions: &mut Vec<Action>| {
            note(Severity::Warning, Kind::Refused, format!("the ledger refuses {what}: {why}"), actions);
        };
        match &self.phase {
            Phase::Announcing(pending) if pending.id == id => {
                refusal("the transition".into(), actions);
                return Some(self.end(Outcome::GivenUp, None));
            }
            Phase::Closing { pending, outcome, .. } if pending.id == id => {
                let outcome = *outcome;
                refusal("the end of the transition".into(), actions);
                return Some(self.end(outcome, None));
            }
            Phase::Announcing(_) | Phase::Closing { .. } | Phase::Forward | Phase::Backward { .. } => {}
        }
        let index = self.running(|stage| waits_for(stage, id))?;
        let Some(State::Run { undo, stage }) = self.steps.get(index).cloned() else { return None };
        let step = self.does(index, undo)?;
        refusal(step.to_string(), actions);
        match stage {
            // What is done is done, whether it is written down or not.
            Stage::Recording(_) => self.settled(index, undo, &step, actions),
            Stage::Intent(_) => {
                self.set(index, if undo { State::Left } else { self.not_begun() });
                self.give_up(format!("the ledger refuses {step}: {why}"));
            }
            Stage::Reporting { .. } => self.set(index, State::Left),
            Stage::Looking(_)
            | Stage::Acting { .. }
            | Stage::Resting { .. }
            | Stage::Checking { .. }
            | Stage::Leaving(_)
            | Stage::Finding { .. } => {}
        }
        None
    }

    /// What a step becomes that will not be begun: nothing to undo, and what needs it is not done either.
    fn not_begun(&self) -> State {
        match self.plan.direction {
            Direction::Fold => State::Waiting,
            Direction::Unfold => State::Left,
        }
    }

    fn give_up(&mut self, why: String) {
        match (self.plan.direction, &self.phase) {
            (Direction::Fold, Phase::Announcing(_) | Phase::Forward) => {
                self.phase = Phase::Backward { why, given_up: true };
            }
            (Direction::Fold, Phase::Backward { .. } | Phase::Closing { .. }) | (Direction::Unfold, _) => {}
        }
    }

    /// Hands off everything about it; what else was given up is brought back.
    pub(super) fn claimed(&mut self, claim: Claim, actions: &mut Vec<Action>) {
        let touched: Vec<usize> = self.touched(&claim).collect();
        for index in &touched {
            let Some(state) = self.steps.get(*index).cloned() else { continue };
            let next = match (state, self.plan.direction) {
                // It only looks.
                (state @ State::Run { stage: Stage::Finding { .. }, .. }, _) => state,
                (State::Run { undo, stage }, _) => match stage.job() {
                    Some(job) => {
                        actions.push(Action::Abort { job: job.id });
                        State::Run { undo, stage: Stage::Leaving(job) }
                    }
                    None => match stage {
                        Stage::Intent(_) if !undo => self.not_begun(),
                        stage @ Stage::Reporting { .. } => State::Run { undo, stage },
                        Stage::Intent(_)
                        | Stage::Resting { .. }
                        | Stage::Recording(_)
                        | Stage::Looking(_)
                        | Stage::Acting { .. }
                        | Stage::Checking { .. }
                        | Stage::Leaving(_)
                        | Stage::Finding { .. } => State::Left,
                    },
                },
                (State::Waiting, Direction::Fold | Direction::Unfold) => self.not_begun(),
                (State::Done | State::Failed, Direction::Fold) => State::Left,
                (state @ (State::Done | State::Failed), Direction::Unfold) => state,
                (state @ (State::Undone | State::Skipped | State::Left | State::Stuck), _) => state,
            };
            self.set(*index, next);
        }
        if !touched.is_empty() {
            note(Severity::Info, Kind::Yielded, format!("{claim} is part of a recovery: let go"), actions);
            self.give_up(format!("{claim} is part of a recovery"));
        }
        self.claims.insert(claim);
    }

    fn touched(&self, claim: &Claim) -> impl Iterator<Item = usize> {
        let touches: Vec<bool> = self.plan.steps.iter().map(|planned| planned.touches(claim)).collect();
        touches.into_iter().enumerate().filter_map(|(index, touches)| touches.then_some(index))
    }

    /// Say so once nothing is under way on it.
    pub(super) fn yields(&mut self, actions: &mut Vec<Action>) {
        let leaving = |index: usize| matches!(self.steps.get(index), Some(State::Run { stage: Stage::Leaving(_), .. }));
        let free: Vec<Claim> = self.claims.iter().filter(|claim| !self.touched(claim).any(leaving)).cloned().collect();
        for claim in free {
            self.claims.remove(&claim);
            actions.push(Action::Yield(claim));
        }
    }
}
