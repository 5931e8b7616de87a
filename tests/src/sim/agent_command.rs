//! Commands of a coordinator to an agent, and their ends.

use super::agent::{Ending, Input};
use super::clock::{MS, SEC, ns};
use super::coordinator::Reply;
use super::world::{Ev, MAIL, NAMES, World};
use kage_agent_core::{CommandId, CommandResult, OwnerEvent, Place};
use kage_coordinator_core::{AgentCommand, JobResult};
use kage_types::Term;

impl World {
    pub(super) fn command(&mut self, machine: usize, reply: Reply, term: Term, command: AgentCommand) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let failed = |why: &str| JobResult::Failed(why.to_owned());
        if agent.stopping && !matches!(command, AgentCommand::Release { .. }) {
            return self.answer(machine, reply, failed("stopping"));
        }
        match command {
            AgentCommand::Hold { ask, domain } => {
                let command = agent.command(Ending::Reply(reply));
                let place = domain.map_or(Place::Host, Place::Vm);
                self.step_owner(machine, OwnerEvent::Hold { command, term, ask, place });
            }
            AgentCommand::Release { ask } => {
                let command = agent.command(Ending::Released(reply, term));
                self.step_owner(machine, OwnerEvent::Release { command, term, ask });
            }
            AgentCommand::PauseVm { domain } if term >= agent.owner.highest_term() => {
                agent.owner.saw_term(term);
                let command = agent.command(Ending::Reply(reply));
                self.step_owner(machine, OwnerEvent::ReleaseVm { command, domain });
            }
            AgentCommand::ResumeVm { .. } if term >= agent.owner.highest_term() => {
                agent.owner.saw_term(term);
                let result = if self.rng.percent(95) { JobResult::Done } else { failed("libvirt") };
                let delay = self.rng.range(30 * MS, 150 * MS);
                self.answer_after(machine, delay, reply, result);
            }
            AgentCommand::Reboot if term >= agent.owner.highest_term() => {
                agent.owner.saw_term(term);
                self.answer(machine, reply, JobResult::Done);
                let down = self.rng.range(2 * SEC, 8 * SEC);
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
                let result = JobResult::Answered(answers.then(|| "52:54:00:00:00:00".to_owned()));
                self.answer_after(machine, ns(listen), reply, result);
            }
            AgentCommand::RestartService { .. } | AgentCommand::Wake { .. } | AgentCommand::Prepare { .. } => {
                if let AgentCommand::Wake { .. } = command {
                    self.power_on(MAIL);
                }
                self.answer(machine, reply, JobResult::Done);
            }
            AgentCommand::PauseVm { .. } | AgentCommand::ResumeVm { .. } | AgentCommand::Reboot => {
                self.answer(machine, reply, failed("term is over"));
            }
        }
    }

    pub(super) fn command_done(&mut self, machine: usize, command: CommandId, result: &CommandResult) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let Some(ending) = agent.commands.remove(&command) else { return };
        if let (Ending::Released(_, term), Ok(())) = (&ending, result) {
            let known = self.machines[machine].disk.term();
            self.checks.acknowledged(self.now, NAMES[machine], *term, known);
        }
        match ending {
            Ending::Reply(reply) | Ending::Released(reply, _) => {
                let result = match result {
                    Ok(()) => JobResult::Done,
                    Err(refused) => JobResult::Failed(refused.to_string()),
                };
                self.answer(machine, reply, result);
            }
            Ending::Stop(length) => self.stop_agent(machine, length),
            Ending::Sleep(length) => self.after(MS, Ev::Sleep(machine, length)),
            Ending::Down(length) => self.after(MS, Ev::Down(machine, length)),
        }
    }
}
