//! The suspended doubles: one may stand in for several targets, so it sleeps only when nobody needs it any more.

use crate::{
    core::{Coordinator, JobFor},
    event::{Action, AgentCommand, JobId, JobResult, Severity},
    placement::{Owner, VipState, describe},
};
use kage_types::{AgentId, DomainName, TargetName, Time};
use std::time::Duration;

/// Time-out of suspending a double.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

impl Coordinator {
    /// Of one that moves itself it does not matter where it was.
    fn needs(&self, state: &VipState, double: &Owner) -> bool {
        let wherever = double.domain.as_ref().is_some_and(|domain| self.stands_in(domain));
        let is = |agent: &AgentId, domain: &Option<DomainName>| {
            *domain == double.domain && (wherever || *agent == double.agent)
        };
        state.row.as_ref().is_some_and(|row| is(&row.owner, &row.domain))
            || state.moving.as_ref().is_some_and(|moving| is(&moving.to.agent, &moving.to.domain))
    }

    /// Does it own a virtual IP of any target, or is one on its way to it?
    pub(crate) fn wanted(&self, double: &Owner) -> bool {
        self.vips.values().any(|state| self.needs(state, double))
    }

    /// Does another target than this one need it?
    pub(crate) fn wanted_elsewhere(&self, double: &Owner, target: &TargetName) -> bool {
        self.vips.values().filter(|state| state.target != *target).any(|state| self.needs(state, double))
    }

    /// Suspend it. Who wants it meanwhile resumes it afterwards: the two commands never race.
    pub(crate) fn pause(&mut self, double: &Owner, target: &TargetName, actions: &mut Vec<Action>) {
        let Some(domain) = double.domain.clone().filter(|_| !self.pausing.contains_key(double)) else {
            return;
        };
        let job = self.job(JobFor::Pause(double.clone(), target.clone()));
        self.pausing.insert(double.clone(), job);
        let (agent, command) = (double.agent.clone(), AgentCommand::PauseVm { domain });
        actions.push(Action::Command { job, agent, command, timeout: PAUSE_TIMEOUT });
    }

    pub(crate) fn pause_done(
        &mut self,
        now: Time,
        double: &Owner,
        target: TargetName,
        job: JobId,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        if self.pausing.get(double) != Some(&job) {
            return;
        }
        self.pausing.remove(double);
        self.wake_moves_to(now, double);
        self.stand_ins.values_mut().for_each(|stand_in| stand_in.wake = now);
        let name = double.domain.as_ref().map_or_else(String::new, ToString::to_string);
        if *result == JobResult::Done {
            let text = format!("{name} on {} is suspended again", double.agent);
            self.note(Some(target), Severity::Info, "double-suspended", text, actions);
        } else {
            let text = format!("{name} on {} could not be suspended: {}", double.agent, describe(result));
            self.note(Some(target), Severity::Warning, "command-failed", text, actions);
        }
    }
}
