//! Thesis ch. 4: the target is a virtual server. Its real server's agent holds its lease and acts on it; SIF is told of
//! what is done about it (A1 to A5).

use super::*;
use crate::core::Signal;
use kage_types::{Claim, DomainName};

impl Coordinator {
    /// The target as it is supervised now: a virtual server by the agent of the real server that it is on (A3), which is not
    /// always the configured one.
    pub(crate) fn as_it_is(&self, target: &Target) -> Target {
        Target { agent: self.host_of(target), ..target.clone() }
    }

    /// A1, A2: suspended on purpose. Nothing is seen of it and nothing concluded; asked again at the next check.
    pub(crate) fn rests(&mut self, now: Time, name: &TargetName, target: &Target) -> bool {
        if !self.is_suspended(target) {
            return false;
        }
        match self.dbss(name).mode {
            Mode::ServiceRecovery { .. } | Mode::NetworkExamination { .. } => self.enter_regular(now, name),
            Mode::Starting | Mode::Regular { .. } => {}
            Mode::BackupServer { .. }
            | Mode::TargetServerRecovery { .. }
            | Mode::Returning { .. }
            | Mode::Ended { .. } => return false,
        }
        self.dbss(name).forget_evidence(now);
        self.wake_at(name, now + self.cluster.detection.interval);
        true
    }

    /// How long it has been silent. A virtual server has no lease of its own: since it is being examined, unless its real
    /// server has been silent for longer.
    pub(crate) fn silent_as(&mut self, now: Time, name: &TargetName, target: &Target) -> Duration {
        let silent = self.silent(now, &target.agent);
        if target.vm.is_none() { silent } else { silent.max(now.since(self.dbss(name).since)) }
    }

    /// Who restarts its services, if anybody can: of a virtual server the agent inside.
    pub(crate) fn restarter(target: &Target) -> Option<AgentId> {
        match &target.vm {
            None => Some(target.agent.clone()),
            Some(vm) => vm.guest.clone(),
        }
    }

    /// Reboots it: a virtual server is reset by its real server, since its guest may not hear.
    pub(crate) fn reboot_command(target: &Target) -> AgentCommand {
        match target.domain() {
            None => AgentCommand::Reboot,
            Some(domain) => AgentCommand::RebootVm { domain: domain.clone(), force: true },
        }
    }

    /// Background job 2 of a virtual server: it is started where it is, by force. While its real server is away there is
    /// nobody to do it: the wait goes on, and it is started when that is back.
    pub(crate) fn start_virtual_server(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        domain: &DomainName,
        attempt: u32,
        actions: &mut Vec<Action>,
    ) -> Background {
        let until = now + target.start_wait;
        if !self.connected(now, &target.agent) {
            if attempt == 1 {
                let text = format!("its real server {} is away: {domain} is started when that is back", target.agent);
                self.note(Some(name.clone()), Severity::Warning, "waking", text, actions);
            }
            // The wait is for the host, and counts for nothing.
            return Background::AwaitReboot { job: Job::Return, until, left: true };
        }
        let text = format!("{domain} is down: started on {} (attempt {attempt})", target.agent);
        self.note(Some(name.clone()), Severity::Info, "waking", text, actions);
        actions.push(Action::PutTrouble { target: name.clone(), stage: "waking".into(), detail: domain.to_string() });
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Wake));
        let hangs = attempt > 1;
        let command = if hangs {
            AgentCommand::RebootVm { domain: domain.clone(), force: true }
        } else {
            AgentCommand::StartVm { domain: domain.clone() }
        };
        actions.push(Action::Command { job, agent: target.agent.clone(), command, timeout: Duration::from_secs(20) });
        Background::Waking { attempt, until }
    }

    /// On confirmation: power saving lets go of what the recovery needs.
    pub(crate) fn claim(&mut self, name: &TargetName, target: &Target, why: &str) {
        let Some(domain) = target.domain() else { return };
        let mut claims: BTreeSet<Claim> = self.vips_of(target).into_iter().map(Claim::Vip).collect();
        claims.insert(Claim::Vm(domain.clone()));
        self.signal(Signal::Claims { target: name.clone(), why: why.to_owned(), claims });
    }

    /// A4: the backup server serves.
    pub(crate) fn function_restored(&mut self, target: &Target) {
        if let Some(place) = target.domain().cloned() {
            let (backup, host) = (target.backup.domain.clone(), target.backup.agent.clone());
            self.signal(Signal::FunctionRestored { place, backup, host });
        }
    }

    /// A5. The recovery is over either way.
    pub(crate) fn verdict(&mut self, name: &TargetName, target: &Target, recovered: bool) {
        let Some(place) = target.domain().cloned() else { return };
        let host = if recovered { self.host_of(target) } else { target.backup.agent.clone() };
        self.signal(Signal::TargetVerdict { place, recovered, host });
        self.unclaim(name, target);
    }

    /// The recovery is over, or was none.
    pub(crate) fn unclaim(&mut self, name: &TargetName, target: &Target) {
        if target.vm.is_some() {
            self.signal(Signal::Claims { target: name.clone(), why: String::new(), claims: BTreeSet::new() });
        }
    }
}
