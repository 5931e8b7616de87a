//! What an agent's cores want done, and what its kernel thread does.

use super::agent::{Agent, Input, Question, Write};
use super::checks::Broken;
use super::clock::{MS, Ns, SEC};
use super::coordinator::{Notice, Reply};
use super::net::{Ask, Up};
use super::world::{Ev, World};
use kage_agent_core::{KernelOp, KernelOutcome, OwnerAction, OwnerEvent, Place, VoterAction, VoterEvent, VoterStore};
use kage_coordinator_core::{AgentReport, Event, JobResult};
use kage_types::{Epoch, Vip};
use std::time::Duration;

/// When an opening is announced: `agent/src/guard/announce.rs`.
const ANNOUNCED: [Ns; 3] = [0, 200 * MS, SEC];

impl World {
    /// Carry out what the owner wants.
    pub(super) fn act(&mut self, machine: usize, actions: Vec<OwnerAction>) {
        for action in actions {
            let routine = matches!(
                action,
                OwnerAction::Ask { .. }
                    | OwnerAction::AskVoters { .. }
                    | OwnerAction::Store(_)
                    | OwnerAction::PutAddress(_)
                    | OwnerAction::Kernel { change: KernelOp::Renew { .. }, .. }
            );
            if self.tracing() && !routine {
                let time = self.machines[machine].clock.at(self.now);
                self.say_of(machine, || format!("[{time}] {action:?}"));
            }
            match action {
                OwnerAction::Ask { nonce, heard, vips, long, long_surrendered } => {
                    let time = self.machines[machine].clock.at(self.now);
                    let Some(agent) = &mut self.machines[machine].agent else { return };
                    agent.unanswered.get_or_insert(time);
                    let incarnation = agent.process;
                    self.send_up(machine, Up::Ask(Ask { nonce, heard, vips, long, long_surrendered, incarnation }));
                }
                OwnerAction::AskVoters { nonce, heard, vips } => {
                    let process = self.process(machine);
                    for voter in 0..self.machines.len() {
                        if !self.cluster.agents[&self.names[voter]].voter {
                            continue;
                        }
                        if voter == machine {
                            self.own_question(machine, nonce, vips.clone());
                        } else {
                            let input = Input::Vote(machine, process, nonce, heard, vips.clone());
                            self.call(machine, voter, Ev::Agent(voter, 0, Box::new(input)));
                        }
                    }
                }
                OwnerAction::Kernel { op, change, .. } => {
                    let Some(agent) = &mut self.machines[machine].agent else { return };
                    let vip = change.vip();
                    let epoch = agent.owner.vips().find(|view| view.vip == vip).map_or(Epoch(0), |view| view.epoch);
                    agent.kernel.push_back((op, change, epoch));
                    if agent.kernel.len() == 1 {
                        self.kernel_begins(machine);
                    }
                }
                OwnerAction::Opened { ask } => {
                    self.lease_opened(machine, ask.vip);
                    self.send_up(machine, Up::Report(AgentReport::Opened(ask)));
                }
                OwnerAction::Lost { ask, reason, place } => {
                    if place == Place::Host {
                        self.lease_lost(machine, ask.vip, &reason);
                    }
                    self.checks.lost(self.now, self.names[machine].as_str(), ask.vip, &reason, self.calm);
                    let report = AgentReport::Lost { ask, reason: format!("{reason:?}") };
                    self.send_up(machine, Up::Report(report));
                }
                OwnerAction::Store(held) => {
                    let here = &mut self.machines[machine];
                    // Best effort: now and then the disk keeps the older one.
                    if self.rng.percent(self.chances.keeps) {
                        here.disk.held = (here.boots, held);
                    }
                }
                OwnerAction::Remember { version, memory } => self.write(machine, version, Write::Memory(memory)),
                OwnerAction::Done { command, result } => self.command_done(machine, command, &result),
                OwnerAction::Announce { vip, .. } => {
                    for pause in ANNOUNCED {
                        self.after(pause, Ev::Announced(machine, vip));
                    }
                }
                OwnerAction::PutAddress(_) | OwnerAction::DropAddress(_) | OwnerAction::KernelTrouble { .. } => {}
            }
        }
    }

    /// Carry out what the voter wants.
    pub(super) fn act_voter(&mut self, machine: usize, actions: Vec<VoterAction>) {
        for action in actions {
            if !matches!(action, VoterAction::Consent { .. } | VoterAction::Relay { .. }) {
                self.say_of(machine, || format!("voter {action:?}"));
            }
            match action {
                VoterAction::Store { version, store } => self.write(machine, version, Write::Voter(store)),
                VoterAction::Relay { id } => self.relayed_ask(machine, id),
                VoterAction::Consent { id, vips, .. } => match self.question_of(machine, id) {
                    Some(Question::Own(nonce)) => {
                        let voter = self.names[machine].clone();
                        self.step_owner(machine, OwnerEvent::Consent { voter, nonce, vips });
                    }
                    Some(Question::Vote(from, process, nonce, ..)) => {
                        let voter = self.names[machine].clone();
                        let input = Input::Owner(OwnerEvent::Consent { voter, nonce, vips });
                        self.call(machine, from, Ev::Agent(from, process, Box::new(input)));
                    }
                    Some(Question::Bar(..)) | None => {}
                },
                VoterAction::Barred { id, last_consent_age } => {
                    if let Some(Question::Bar(reply, term)) = self.question_of(machine, id) {
                        if let Some(agent) = &mut self.machines[machine].agent {
                            agent.owner.saw_term(term);
                        }
                        self.answer(machine, reply, JobResult::Barred(last_consent_age));
                    }
                }
                VoterAction::Refuse { id, reason } => {
                    if let Some(Question::Bar(reply, _)) = self.question_of(machine, id) {
                        self.answer(machine, reply, JobResult::Failed(reason));
                    }
                }
            }
        }
    }

    pub(super) fn write(&mut self, machine: usize, version: u64, write: Write) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        agent.writes.push_back((version, write));
        let process = agent.process;
        if agent.writes.len() == 1 {
            self.write_begins(machine, process);
        }
    }

    fn write_begins(&mut self, machine: usize, process: u64) {
        let delay = self.rng.range(MS / 2, 6 * MS) + self.rng.range(0, self.machines[machine].slow_disk.max(1));
        self.after(delay, Ev::Stored(machine, process));
    }

    /// What was to be written is on the disk.
    pub(super) fn stored(&mut self, machine: usize, process: u64) {
        let now = self.now;
        let here = &mut self.machines[machine];
        let Some(agent) = here.agent.as_mut().filter(|agent| agent.process == process) else { return };
        let free = agent.busy.max(here.stalled_until);
        if free > now || here.asleep.is_some() {
            return self.at(free.max(now + 100 * MS), Ev::Stored(machine, process));
        }
        let Some((version, write)) = agent.writes.pop_front() else { return };
        let ok = !self.rng.percent(self.chances.disk_fails);
        let step = match write {
            Write::Voter(_) => Some(true),
            Write::Memory(_) => Some(false),
            Write::Assignment(..) | Write::Writers(_) => None,
        };
        if ok {
            self.machines[machine].disk.keep(write);
        }
        if self.machines[machine].agent.as_ref().is_some_and(|agent| !agent.writes.is_empty()) {
            self.write_begins(machine, process);
        }
        match step {
            Some(true) => self.step_voter(machine, VoterEvent::Stored { version, ok }),
            Some(false) => self.step_owner(machine, OwnerEvent::Remembered { version, ok }),
            None => {}
        }
        self.timers(machine);
    }

    // ---- the kernel thread ----

    /// The head of the queue is looked at: too late, or its effect comes after a while.
    fn kernel_begins(&mut self, machine: usize) {
        loop {
            let now = self.now;
            let here = &mut self.machines[machine];
            let time = here.clock.at(now);
            let Some(agent) = &mut here.agent else { return };
            let process = agent.process;
            let Some((op, change, _)) = agent.kernel.front() else { return };
            let late = match change {
                KernelOp::Open { not_after, .. } | KernelOp::Renew { not_after, .. } => time > *not_after,
                KernelOp::Arm { .. } | KernelOp::Close { .. } => false,
            };
            if !late {
                let open = matches!(change, KernelOp::Open { .. });
                let mut delay = self.rng.range(20_000, 900_000);
                if let Some((_, stall)) = here.stall_op.take_if(|(only_open, _)| open || !*only_open) {
                    delay += stall;
                }
                return self.after(delay, Ev::Kernel(machine, process));
            }
            let op = *op;
            agent.kernel.pop_front();
            // Told by a later event, as from another thread.
            let input = Input::Owner(OwnerEvent::Kernel { op, outcome: KernelOutcome::TooLate, at: time });
            self.after(20_000, Ev::Agent(machine, process, Box::new(input)));
        }
    }

    /// The transaction takes effect.
    pub(super) fn kernel_effect(&mut self, machine: usize, process: u64) {
        let now = self.now;
        let here = &mut self.machines[machine];
        if here.agent.as_ref().is_none_or(|agent| agent.process != process) {
            return;
        }
        let free = here.stalled_until.max(here.kernel_stalled_until);
        if free > now || here.asleep.is_some() {
            return self.at(free.max(now + MS), Ev::Kernel(machine, process));
        }
        let Some((op, change, epoch)) = here.agent.as_mut().and_then(|agent| agent.kernel.pop_front()) else { return };
        let outcome = self.apply(machine, &change, epoch);
        let at = self.machines[machine].clock.at(now);
        if self.machines[machine].agent.as_ref().is_some_and(|agent| !agent.kernel.is_empty()) {
            self.kernel_begins(machine);
        }
        self.kernel_outcome(machine, process, op, outcome, at);
    }

    fn apply(&mut self, machine: usize, change: &KernelOp, epoch: Epoch) -> KernelOutcome {
        let slack = super::clock::ns(self.cluster.timing.slack);
        let late = match self.rng.range(0, 4) {
            0 => self.rng.range(0, slack),
            1 => slack,
            _ => 0,
        };
        let vip = change.vip();
        let here = &mut self.machines[machine];
        let before = here.kernel.live_until(self.now, vip);
        let outcome = here.kernel.apply(self.now, &here.clock, change, Duration::from_nanos(late));
        let after = here.kernel.live_until(self.now, vip);
        if !matches!(change, KernelOp::Renew { .. }) || outcome != KernelOutcome::Done {
            self.say_of(machine, || format!("kernel {change:?}: {outcome:?}"));
        }
        self.checks.element(self.now, vip, before, after);
        match change {
            KernelOp::Open { .. } if outcome == KernelOutcome::Done => {
                self.check_owners(machine, vip);
                self.check_opening(machine, vip, epoch);
            }
            KernelOp::Renew { life, .. } if outcome == KernelOutcome::Done => {
                let clock = self.machines[machine].clock;
                let wanted = clock.when(clock.at(self.now) + *life);
                self.checks.refreshed(self.now, self.names[machine].as_str(), vip, after, wanted);
                self.check_owners(machine, vip);
            }
            KernelOp::Open { .. } | KernelOp::Renew { .. } | KernelOp::Arm { .. } | KernelOp::Close { .. } => {}
        }
        outcome
    }

    /// Never two owners: nobody else's packets pass now.
    pub(super) fn check_owners(&mut self, machine: usize, vip: Vip) {
        self.checks.looked(Broken::TwoOwners);
        for (other, there) in self.machines.iter().enumerate() {
            if other != machine && there.up() && there.kernel.live_until(self.now, vip).is_some() {
                self.checks.two_owners(self.now, vip, self.names[machine].as_str(), self.names[other].as_str());
            }
        }
    }

    fn check_opening(&mut self, machine: usize, vip: Vip, epoch: Epoch) {
        self.checks.looked(Broken::WrongTakeover);
        self.watch_opening(machine, vip);
        for (other, there) in self.machines.iter().enumerate() {
            let lease = there.agent.as_ref().and_then(|agent| agent.owner.lease_until(vip));
            if other != machine && there.up() && lease.is_some_and(|lease| lease > there.clock.at(self.now)) {
                self.checks.wrong_takeover(self.now, vip, self.names[machine].as_str(), self.names[other].as_str());
            }
        }
        self.checks.opened(self.now, vip, epoch, machine);
    }

    // ---- processes and machines ----

    pub(super) fn process(&self, machine: usize) -> u64 {
        self.machines[machine].agent.as_ref().map_or(0, |agent| agent.process)
    }

    /// The process ends. What the kernel was doing is done, or not; so with the disk.
    pub(super) fn end_process(&mut self, machine: usize, power: bool) {
        let Some(agent) = self.machines[machine].agent.take() else { return };
        let Agent { kernel, writes, stream, .. } = agent;
        if !power
            && let Some((_, change, epoch)) = kernel.front()
            && self.machines[machine].stalled_until.max(self.machines[machine].kernel_stalled_until) <= self.now
            && self.rng.percent(50)
        {
            self.apply(machine, change, *epoch);
        }
        if let Some((_, write)) = writes.front()
            && self.rng.percent(50)
        {
            self.machines[machine].disk.keep(write.clone());
        }
        if let Some(stream) = stream {
            self.agent_end_gone(stream, power);
        }
    }

    /// The agent's process dies.
    pub fn crash_agent(&mut self, machine: usize, down: Ns) {
        if self.machines[machine].up() {
            self.say_of(machine, || "agent crashes".into());
            self.end_process(machine, false);
            self.after(down, Ev::StartAgent(machine));
        }
    }

    pub(super) fn stop_agent(&mut self, machine: usize, down: Ns) {
        self.say_of(machine, || "agent stops as planned".into());
        // Its last act: what waits for the disk is written.
        let here = &mut self.machines[machine];
        if let Some(agent) = &mut here.agent {
            for (_, write) in std::mem::take(&mut agent.writes) {
                here.disk.keep(write);
            }
        }
        self.end_process(machine, false);
        self.after(down, Ev::StartAgent(machine));
    }

    /// A planned stop that waited long enough.
    pub(super) fn stop_anyway(&mut self, machine: usize) {
        if self.machines[machine].agent.as_ref().is_some_and(|agent| agent.stopping) {
            self.stop_agent(machine, SEC);
        }
    }

    // ---- answers to a coordinator ----

    pub(super) fn answer(&mut self, machine: usize, reply: Reply, result: JobResult) {
        let notice = Notice::Core(Event::Job { job: reply.job, result });
        let event = Ev::Coordinator(reply.slot, reply.process, Box::new(notice));
        self.call(machine, self.net.coordinators[reply.slot], event);
    }

    pub(super) fn answer_after(&mut self, machine: usize, delay: Ns, reply: Reply, result: JobResult) {
        let notice = Notice::Core(Event::Job { job: reply.job, result });
        let event = Ev::Coordinator(reply.slot, reply.process, Box::new(notice));
        self.after(delay, Ev::Arrive(machine, self.net.coordinators[reply.slot], Box::new(event)));
    }

    pub(super) fn answer_state(&mut self, machine: usize, reply: Reply, store: VoterStore) {
        let event = Ev::Coordinator(reply.slot, reply.process, Box::new(Notice::State(machine, store)));
        self.call(machine, self.net.coordinators[reply.slot], event);
    }
}
