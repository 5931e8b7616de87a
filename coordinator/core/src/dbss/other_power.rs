//! Proof by power that a virtual server does not run where it may be besides: what is off runs nothing. The same rule as for
//! owners of virtual IPs: a reading counts as long as its machine was not heard of since.

use super::*;
use crate::core::Signal;

impl Coordinator {
    /// Read it, where it can be: of one that does not answer, and could not be told to pull the plug.
    pub(crate) fn read_other_power(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        actions: &mut Vec<Action>,
    ) {
        let Some(other) = self.other_unanswering(now, target) else { return };
        let readable = self.cluster.agents.get(&other).is_some_and(|machine| machine.power_status.is_some());
        let reads = |what: &JobFor| matches!(what, JobFor::Target(of, TargetJob::OtherPower(..)) if of == name);
        if !readable || self.jobs.values().any(reads) {
            return;
        }
        let job = self.job(JobFor::Target(name.clone(), TargetJob::OtherPower(other.clone(), now)));
        let timeout = self.cluster.detection.probe_timeout;
        actions.push(Action::ReadPower { job, agent: other, timeout });
    }

    /// What power saving has in hand it sees the end of itself, and who sleeps on purpose is woken.
    fn other_unanswering(&self, now: Time, target: &Target) -> Option<AgentId> {
        let domain = target.domain()?;
        if self.tables.as_ref()?.migrating(domain).is_some() {
            return None;
        }
        let other = self.may_run_at(domain, &target.agent)?;
        (self.cluster.agents.contains_key(&other) && self.fell_silent(now, &other)).then_some(other)
    }

    pub(crate) fn other_power_read(
        &mut self,
        now: Time,
        name: &TargetName,
        other: &AgentId,
        asked: Time,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(target) = self.cluster.targets.get(name).map(|target| self.as_it_is(target)) else { return };
        let Some(domain) = target.domain().cloned() else { return };
        // Heard of since, it is on again.
        let silent_since = now.before(self.silent(now, other)) < asked;
        let asked_for = self.other_unanswering(now, &target).as_ref() == Some(other);
        if *result != JobResult::Done || !silent_since || !asked_for || !self.in_authority(now) {
            return;
        }
        let text = format!("{domain} does not run on {other}: its power reads off");
        self.note(Some(name.clone()), Severity::Info, "switched-off", text, actions);
        let not_on = BTreeSet::from([other.clone()]);
        self.signal(Signal::MovedTo { vm: domain, host: target.agent, not_on });
    }
}
