//! The operator's moves, and the double's sleep.

use super::*;
use crate::core::span;

/// For a double to be resumed, or started.
const RESUME: Duration = Duration::from_secs(10);

impl Coordinator {
    pub(crate) fn operator_move(
        &mut self,
        now: Time,
        command: u64,
        name: &TargetName,
        back: bool,
        force: bool,
        actions: &mut Vec<Action>,
    ) {
        let checked = self.check_move(now, name, back, force);
        // Nothing is taken from a target that serves before its double is seen to run. A single writer's double is
        // resumed after the release, not before.
        if let Ok(target) = &checked
            && !back
            && target.writers().is_none()
            && self.connected(now, &target.agent)
        {
            let (agent, domain) = (self.double_host(target), self.double_of(target).clone());
            let job = self.job(JobFor::Ready { target: name.clone(), command, force });
            let resume = AgentCommand::ResumeVm { domain };
            actions.push(Action::Command { job, agent, command: resume, timeout: RESUME });
            return;
        }
        let result = checked.map(|target| self.begin_operator_move(now, name, &target, back, actions));
        actions.push(Action::Moved { command, result });
    }

    /// The double was resumed for a fail-over, or could not be.
    pub(crate) fn double_ready(
        &mut self,
        now: Time,
        command: u64,
        name: &TargetName,
        force: bool,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let checked = self.check_move(now, name, false, force).and_then(|target| {
            if *result == JobResult::Done {
                return Ok(target);
            }
            let (agent, domain) = (self.double_host(&target), self.double_of(&target));
            let why = describe(result);
            Err(format!("{name} stays where it is: its double {domain} on {agent} can't be resumed: {why}"))
        });
        if checked.is_err()
            && let Some(target) = self.cluster.targets.get(name).cloned()
        {
            self.suspend_double(&target, name, actions);
        }
        let result = checked.map(|target| self.begin_operator_move(now, name, &target, false, actions));
        actions.push(Action::Moved { command, result });
    }

    fn check_move(&mut self, now: Time, name: &TargetName, back: bool, force: bool) -> Result<Target, String> {
        let Some(target) = self.cluster.targets.get(name).cloned() else {
            let known: Vec<&str> = self.cluster.targets.keys().map(TargetName::as_str).collect();
            return Err(format!("there is no target {name:?}; the configuration has: {}", known.join(", ")));
        };
        if !self.in_authority(now) {
            return Err("this coordinator has no valid term: is SIF up? (kagectl status)".into());
        }
        let to = if back { self.home_owner(&target) } else { self.at_backup(&target) };
        if self.all_settled_on(&target, &to) {
            return Err(format!("{name} is already served by {}", to.agent));
        }
        if !self.connected(now, &to.agent) {
            return Err(format!("the agent of {} does not answer: bring it up first", to.agent));
        }
        if let Some((until, why)) = self.quarantined(&to.agent).filter(|_| !force) {
            return Err(format!(
                "{} is in quarantine for another {}: {why}; `kagectl quarantine off {}` ends that, --force moves all the \
                 same",
                to.agent,
                span(until.since(now)),
                to.agent
            ));
        }
        let healthy = self.dbss(name).services_good(target.services.len());
        if back && !healthy && !force {
            return Err(format!(
                "the services of {name} do not answer on its own address: repair them, or use --force"
            ));
        }
        Ok(target)
    }

    fn begin_operator_move(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        back: bool,
        actions: &mut Vec<Action>,
    ) {
        let reachable = self.connected(now, &target.agent);
        let cause = if back { Cause::Failback } else { Cause::Failover };
        let words = format!("{} asked for by the operator", cause.as_str());
        let about = Some(name.clone());
        self.note(about, Severity::Info, if back { "failback" } else { "failover" }, words, actions);
        if back {
            // A new start: what was used up before it does not count any more.
            self.dbss(name).budgets = Budgets::default();
            self.begin_return(now, name, target, cause, actions);
        } else {
            self.claim_moved(name, target);
            self.move_all(now, target, &self.at_backup(target), cause, reachable);
            self.enter(now, name, Mode::BackupServer { why: Why::Operator { reachable } });
        }
    }

    /// Its last VIP has left: the double sleeps again.
    pub(crate) fn suspend_double(&mut self, target: &Target, name: &TargetName, actions: &mut Vec<Action>) {
        let backup = self.at_backup(target);
        // One that is supervised itself goes home before it sleeps.
        if self.stands_in(self.double_of(target)) {
            return;
        }
        if !self.wanted(&backup) {
            self.pause(&backup, name, actions);
        }
    }
}
