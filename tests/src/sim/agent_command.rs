//! Commands of a coordinator to an agent, and their ends.

use super::agent::{Ending, Input};
use super::clock::{MS, Ns, SEC, ns};
use super::coordinator::Reply;
use super::machine::Errand;
use super::world::{Ev, World};
use super::writing::Released;
use kage_agent_core::{CommandId, CommandResult, OwnerEvent, Place};
use kage_coordinator_core::{AgentCommand, JobResult};
use kage_types::{DomainName, Term};

/// A machine that goes lets the coordinator hear that it has released (`agent/src/daemon/sleep.rs`).
const HANDOVER: Ns = 700 * MS;
/// And waits so long for services that must not run without a lease (`agent/src/daemon/stop.rs`).
const RELEASE: Ns = 3500 * MS;

impl World {
    pub(super) fn command(&mut self, machine: usize, reply: Reply, term: Term, command: AgentCommand) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let failed = |why: &str| JobResult::Failed(why.to_owned());
        if agent.stopping && !matches!(command, AgentCommand::Release { .. }) {
            return self.answer(machine, reply, failed("stopping"));
        }
        if let AgentCommand::PauseVm { domain } | AgentCommand::ResumeVm { domain } = &command
            && !agent.owner.takes(domain, term, reply.job.0)
        {
            return self.answer(machine, reply, failed("overtaken"));
        }
        match command {
            AgentCommand::Hold { ask, domain } => {
                let command = agent.command(Ending::Reply(reply));
                let place = domain.map_or(Place::Host, Place::Vm);
                self.step_owner(machine, OwnerEvent::Hold { command, term, ask, place });
            }
            AgentCommand::Release { ask } => {
                let command = agent.command(Ending::Released(reply, term, ask.vip));
                self.step_owner(machine, OwnerEvent::Release { command, term, ask });
            }
            AgentCommand::PauseVm { domain } if term >= agent.owner.highest_term() => {
                agent.owner.saw_term(term);
                let command = agent.command(Ending::Paused(reply, domain.clone()));
                self.step_owner(machine, OwnerEvent::ReleaseVm { command, domain });
            }
            AgentCommand::ResumeVm { domain } if term >= agent.owner.highest_term() => {
                agent.owner.saw_term(term);
                let takes = self.rng.range(30 * MS, 150 * MS);
                self.tell_libvirt(machine, takes, domain, true, reply);
            }
            AgentCommand::Reboot if term >= agent.owner.highest_term() => {
                agent.owner.saw_term(term);
                self.answer(machine, reply, JobResult::Done);
                let by_chance = self.rng.range(2 * SEC, 8 * SEC);
                let down = self.machines[machine].boot_takes.unwrap_or(by_chance);
                self.handle(machine, Input::Plan(Ending::Down(down)));
            }
            AgentCommand::ProbeVip { vip, listen } => {
                let answers = self.probe_sees
                    && (0..self.machines.len()).any(|other| {
                        other != machine
                            && self.machines[other].up()
                            && self.machines[other].kernel.live_until(self.now, vip).is_some()
                            && self.net.open(machine, other)
                            && self.net.open(other, machine)
                    });
                let answers = answers || self.strangers.contains(&vip);
                let result = JobResult::Answered(answers.then(|| "52:54:00:00:00:00".to_owned()));
                self.answer_after(machine, ns(listen), reply, result);
            }
            AgentCommand::RestartService { service } if term >= agent.owner.highest_term() => {
                let takes = self.rng.range(100 * MS, 400 * MS);
                let boot = self.machines[machine].boots;
                self.after(takes, Ev::Errand(machine, boot, Errand::Restart(service), reply));
            }
            AgentCommand::Wake { mac } => {
                let known = |name: &kage_types::AgentId| self.cluster.agents[name].mac.as_ref() == Some(&mac);
                let woken = self.names.iter().position(known).filter(|woken| self.machines[*woken].wakes);
                if let Some(woken) = woken.filter(|woken| self.net.open(machine, *woken)) {
                    self.power_on(woken);
                }
                self.answer(machine, reply, JobResult::Done);
            }
            AgentCommand::Prepare { .. } => self.answer(machine, reply, JobResult::Done),
            // No target here is a virtual server.
            AgentCommand::StartVm { .. }
            | AgentCommand::DestroyVm { .. }
            | AgentCommand::RebootVm { .. }
            | AgentCommand::FindVm { .. }
            | AgentCommand::MigrateVm { .. } => self.answer(machine, reply, failed("no such virtual server")),
            AgentCommand::PauseVm { .. }
            | AgentCommand::ResumeVm { .. }
            | AgentCommand::RestartService { .. }
            | AgentCommand::Reboot => {
                self.answer(machine, reply, failed("term is over"));
            }
        }
    }

    /// What is being stopped is waited for.
    fn handover(&self, machine: usize) -> Ns {
        if self.quiet(machine, None) { HANDOVER } else { HANDOVER + RELEASE }
    }

    fn tell_libvirt(&mut self, machine: usize, takes: Ns, domain: DomainName, runs: bool, reply: Reply) {
        let boot = self.machines[machine].boots;
        let before = self.machines[machine].vm_ends.get(&domain).map_or(0, |end| end.saturating_sub(self.now));
        let at = self.libvirt_call(machine, before + takes);
        self.machines[machine].vm_ends.insert(domain.clone(), at);
        self.at(at, Ev::Errand(machine, boot, Errand::Vm(domain, runs), reply));
    }

    pub(super) fn command_done(&mut self, machine: usize, command: CommandId, result: &CommandResult) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let Some(ending) = agent.commands.remove(&command) else { return };
        if let (Ending::Released(_, term, _), Ok(())) = (&ending, result) {
            let known = self.machines[machine].disk.term();
            self.checks.acknowledged(self.now, self.names[machine].as_str(), *term, known);
        }
        match ending {
            // Answered when nobody here writes any more.
            Ending::Released(reply, _, vip) if result.is_ok() && !self.quiet(machine, Some(vip)) => {
                if let Some(agent) = &mut self.machines[machine].agent {
                    agent.releasing.push(Released { vip, reply });
                }
            }
            Ending::Reply(reply) | Ending::Released(reply, ..) => {
                let result = match result {
                    Ok(()) => JobResult::Done,
                    Err(refused) => JobResult::Failed(refused.to_string()),
                };
                self.answer(machine, reply, result);
            }
            Ending::Paused(reply, domain) => match result {
                Ok(()) => self.tell_libvirt(machine, 25 * MS, domain, false, reply),
                Err(refused) => self.answer(machine, reply, JobResult::Failed(refused.to_string())),
            },
            Ending::Stop(length) => self.stop_agent(machine, length),
            Ending::Sleep(length) => self.after(self.handover(machine), Ev::Sleep(machine, length)),
            Ending::Down(length) => self.after(self.handover(machine), Ev::Down(machine, length)),
        }
    }
}
