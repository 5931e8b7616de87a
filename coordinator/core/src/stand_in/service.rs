//! A service inside it does not answer, and the machine around it does: it is restarted by the agent in there, as those of
//! any target are, before the whole is started anew.

use super::{
    Stage, StandInJob,
    watch::{Ill, Order, Round, Trouble},
};
use crate::{
    core::{Act, Coordinator},
    dbss::{PROBE_AGAIN, RESTART_PATIENCE, RESTART_TIMEOUT},
    event::{Action, AgentCommand, JobId, JobResult, Severity},
    placement::describe,
};
use kage_types::{AgentId, DomainName, ServiceName, Time};
use serde::{Deserialize, Serialize};

/// How far a restart is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// Its agent is at it; not looked at before.
    Ordered { job: JobId, not_before: Time },
    /// Does it answer by then?
    Looking { until: Time },
}

/// Is there a service whose restart may help?
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Restarts {
    /// This one, by this agent.
    Service(AgentId, ServiceName),
    /// Its agent may be about to find this coordinator.
    NotYet,
    /// More than services are in trouble, nobody is there to restart them, or it did not help.
    No,
}

impl Coordinator {
    /// Of its trouble, as the last round has shown it.
    pub(super) fn may_be_restarted(&self, now: Time, domain: &DomainName) -> Restarts {
        let stage = self.stand_ins.get(domain).map(|stand| &stand.stage);
        let Some(Stage::Serving { trouble: Some(trouble), .. }) = stage else { return Restarts::No };
        let Ill::Services(down) = &trouble.ill else { return Restarts::No };
        let targets = self.stood_in_for(domain);
        let restarts = |service: &ServiceName| {
            let mut all = targets.iter().flat_map(|(_, target)| &target.services);
            all.all(|known| known.name != *service || known.restart)
        };
        let Some(first) = down.first().filter(|_| down.is_disjoint(&trouble.tried) && down.iter().all(restarts)) else {
            return Restarts::No;
        };
        // One agent at most is in there, whichever target names it.
        let mut doubles = targets.iter().flat_map(|(_, target)| target.doubles());
        match doubles.find_map(|(double, _, guest)| guest.filter(|_| double == domain)) {
            Some(guest) if self.connected(now, guest) => Restarts::Service(guest.clone(), first.clone()),
            Some(guest) if !self.fell_silent(now, guest) => Restarts::NotYet,
            Some(_) | None => Restarts::No,
        }
    }

    /// Withheld by an order, or used up: then it is not restarted.
    pub(super) fn restart_inside(
        &mut self,
        now: Time,
        domain: &DomainName,
        agent: &AgentId,
        service: ServiceName,
        actions: &mut Vec<Action>,
    ) {
        let Some(owner) = self.owner_of_stand_in(domain) else { return };
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        let Some(budget) = self.cluster.targets.get(&by).map(|target| target.budget) else { return };
        self.say_trouble(domain, &owner, actions);
        if self.hold_back(&by, Act::Restart, "its backup server is in trouble", actions) {
            return;
        }
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let Stage::Serving { trouble: Some(trouble), .. } = &stand.stage else { return };
        let mut trouble = trouble.clone();
        trouble.tried.insert(service.clone());
        if !stand.restarts.entry(service.clone()).or_default().take_restart(now, 0, &budget) {
            let text = format!(
                "{service} in {domain} was restarted {} times within {:?} and is down again: restarts do not cure it",
                budget.restarts, budget.within
            );
            self.note_stand_in(domain, Severity::Alert, "restarts-used-up", text, actions);
            return self.cure(now, domain, Order::Reset, actions);
        }
        let text = format!("{service} in {domain} on {} is restarted", owner.agent);
        self.note_stand_in(domain, Severity::Info, "double-restarting", text, actions);
        let job = self.stand_in_job(domain, StandInJob::Restarted);
        let command = AgentCommand::RestartService { service: service.clone() };
        actions.push(Action::Command { job, agent: agent.clone(), command, timeout: RESTART_TIMEOUT });
        // Tsw runs from the order on.
        let not_before = now + self.cluster.detection.settle;
        let step = Step::Ordered { job, not_before };
        self.enter_stage(now, domain, Stage::Restarting { service, step, round: Round::begin(not_before), trouble });
    }

    #[allow(clippy::too_many_arguments, reason = "the stage's own parts")]
    pub(super) fn restarting(
        &mut self,
        now: Time,
        domain: &DomainName,
        service: ServiceName,
        step: Step,
        round: Round,
        trouble: Trouble,
        actions: &mut Vec<Action>,
    ) {
        let again = now + self.cluster.detection.interval;
        let Some(owner) = self.owner_of_stand_in(domain) else { return };
        if !self.is_needed(&owner) {
            let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
            return self.go_home(now, domain, by, owner.agent);
        }
        if self.fell_silent(now, &owner.agent) {
            // Lost with its real server, maybe: no restart of a service is waited for.
            let stage = Stage::Serving { round: Round::begin(now), trouble: Some(trouble) };
            return self.enter_stage(now, domain, stage);
        }
        let until = match step {
            Step::Ordered { .. } => return self.wake_stand_in(domain, again),
            Step::Looking { until } => until,
        };
        let (mut round, judged) = self.look_at(now, domain, &owner, round, actions);
        if let Some(judged) = judged {
            let Some(bad) = judged else {
                self.answers_again(domain, &owner, actions);
                let stage = Stage::Serving { round: Round::begin(again), trouble: None };
                return self.enter_stage(now, domain, stage);
            };
            let still = match &bad.ill {
                Ill::Services(down) => down.contains(&service),
                Ill::Machine => true,
            };
            if !(still && now < until && self.cluster.detection.push) {
                // Another one's turn, or the next rung.
                let trouble = Some(Trouble { ill: bad.ill, ..trouble });
                self.enter_stage(now, domain, Stage::Serving { round: Round::begin(again), trouble });
                return self.remedy(now, domain, actions);
            }
            round = Round::begin(now + PROBE_AGAIN);
        }
        let wake = round.wake();
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            stand.stage = Stage::Restarting { service, step, round, trouble };
            stand.wake = stand.wake.min(wake);
        }
    }

    pub(super) fn restarted(
        &mut self,
        now: Time,
        domain: &DomainName,
        done: JobId,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let push = self.cluster.detection.push;
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let Stage::Restarting { service, step, round, .. } = &mut stand.stage else { return };
        let Step::Ordered { job, not_before } = *step else { return };
        if job != done {
            return;
        }
        // A restart that took longer is looked at at once.
        let next = now.max(not_before);
        let (next, until) = match result {
            // It says so itself, and does so at once: one last look, and no patience.
            JobResult::Failed(_) if push => (now, now),
            JobResult::Done
            | JobResult::Failed(_)
            | JobResult::Unknown(_)
            | JobResult::Epoch(_)
            | JobResult::Barred(_)
            | JobResult::Check(_)
            | JobResult::Answered(_) => (next, next + RESTART_PATIENCE),
        };
        (*step, *round, stand.wake) = (Step::Looking { until }, Round::begin(next), now);
        if *result != JobResult::Done {
            let text = format!("{service} in {domain} could not be restarted: {}", describe(result));
            self.note_stand_in(domain, Severity::Warning, "restart-failed", text, actions);
        }
    }

    /// The agent in there says that a process is gone: no probe need find out.
    pub(crate) fn stand_in_service_down(
        &mut self,
        now: Time,
        agent: &AgentId,
        service: &ServiceName,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        let Some((domain, _)) = self.inside_double(agent) else { return };
        let offers = |(_, target): &(_, crate::config::Target)| target.services.iter().any(|it| it.name == *service);
        if !self.stood_in_for(&domain).iter().any(offers) {
            return;
        }
        let Some(stand) = self.stand_ins.get_mut(&domain) else { return };
        match &mut stand.stage {
            Stage::Serving { trouble, .. } => {
                let text = format!("service {service} in {domain} is down: {detail}");
                let fresh = || Trouble { ill: Ill::default(), ..Trouble::begin(now, text.clone()) };
                let trouble = trouble.get_or_insert_with(fresh);
                trouble.ill.add(service.clone());
                let spent = trouble.spent;
                self.note_stand_in(&domain, Severity::Warning, "service-down", text, actions);
                if !spent {
                    self.remedy(now, &domain, actions);
                }
            }
            // What is being restarted goes down and comes up; what is on its way is looked at when it is there.
            Stage::Restarting { .. }
            | Stage::Leaving { .. }
            | Stage::Migrating { .. }
            | Stage::Looking { .. }
            | Stage::Relieving
            | Stage::Relieved { .. }
            | Stage::Curing { .. } => {}
        }
    }
}
