//! The coordinator's shell: carries out what the core wants, brings back how it ended.

use super::agent::Input;
use super::clock::{MS, Ns, SEC, ns};
use super::net::{Ask, Down, Up};
use super::sif::{Call, Purpose, rows};
use super::world::{Ev, Sabotage, World};
use kage_agent_core::VoterStore;
use kage_coordinator_core::{Action, Coordinator, Event, JobId, JobResult, SessionId, VipRow};
use kage_sif_core::{Cause, Refusal, Report, Request};
use kage_types::{Term, Time};

/// Where the end of a command goes.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// Which coordinator.
    pub slot: usize,
    /// Which process of it.
    pub process: u64,
    /// Which job.
    pub job: JobId,
}

/// What a coordinator's process is handed.
#[derive(Clone, Debug)]
pub enum Notice {
    /// For the core.
    Core(Event),
    /// On a stream.
    Stream(u64, Up),
    /// SIF answered.
    Sif(Purpose, Box<Result<kage_sif_core::Reply, Refusal>>),
    /// The ledger was read: for a new term (which, asked for when, which try), or for its own sake.
    Rows(Option<(Term, Time, u64)>, Vec<VipRow>),
    /// What an agent has stored.
    State(usize, VoterStore),
    /// No answer to this try for a term.
    TermTimeout(u64),
}

/// Actions that wait for a stalled process.
pub type Step = Vec<Action>;

/// A coordinator's process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub process: u64,
    /// Core.
    pub core: Coordinator,
    busy: Ns,
    /// It gets no time before.
    pub stalled_until: Ns,
    /// The next step waits so long between reading the clock and acting.
    pub stall_step: Ns,
    tick: Ns,
    tries: u64,
    waiting: Option<u64>,
}

impl World {
    /// A process starts.
    pub fn start_coordinator(&mut self, slot: usize) {
        let other = self.repaired && self.coordinators.iter().any(Option::is_some);
        if self.coordinators[slot].is_some() || other {
            return;
        }
        let process = self.fresh();
        let mut core = Coordinator::new(self.coordinator_clocks[slot].at(self.now), self.cluster.clone());
        if let Some(Sabotage::Coordinator(sabotage)) = self.sabotage {
            core.sabotage(sabotage);
        }
        if let Some(journals) = &mut self.journals {
            journals[slot].start(process, self.coordinator_clocks[slot].at(self.now), &self.cluster);
        }
        let process =
            Process { process, core, busy: 0, stalled_until: 0, stall_step: 0, tick: Ns::MAX, tries: 0, waiting: None };
        self.coordinators[slot] = Some(process);
        self.say(|| format!("C{slot} starts"));
        self.step_coordinator(slot, Event::Tick);
    }

    /// A process ends.
    pub fn crash_coordinator(&mut self, slot: usize, silently: bool) {
        let Some(gone) = self.coordinators[slot].take() else { return };
        self.say(|| format!("C{slot} crashes"));
        let ids: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.coordinator_process == gone.process)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.coordinator_open = false;
            if !stream.agent_open {
                self.streams.remove(&id);
            } else if !silently {
                self.send_down(id, Down::End);
            }
        }
    }

    fn slot_of(&mut self, slot: usize, process: u64) -> Option<&mut Process> {
        self.coordinators[slot].as_mut().filter(|coordinator| coordinator.process == process)
    }

    /// Hand something to a process: when it has time for it, if it still runs.
    pub fn coordinator_notice(&mut self, slot: usize, process: u64, notice: Notice) {
        let now = self.now;
        let Some(coordinator) = self.slot_of(slot, process) else { return };
        let free = coordinator.busy.max(coordinator.stalled_until);
        if free > now {
            return self.at(free, Ev::Coordinator(slot, process, Box::new(notice)));
        }
        match notice {
            Notice::Core(event) => {
                let up = if let Event::AgentUp { session, .. } = &event { Some(session.0) } else { None };
                self.step_coordinator(slot, event);
                if let Some(id) = up {
                    let term = self.term_of(slot);
                    self.send_down(id, Down::Assigned(term));
                }
            }
            Notice::Stream(id, message) => self.heard_agent(slot, id, message),
            Notice::Sif(purpose, result) => self.heard_sif(slot, purpose, *result),
            Notice::Rows(None, rows) => self.step_coordinator(slot, Event::LedgerRead { rows }),
            Notice::Rows(Some((term, sent, token)), rows) => {
                if coordinator.waiting.take_if(|waiting| *waiting == token).is_some() {
                    self.checks.acting(now, term, process);
                    let length = self.cluster.term;
                    self.say(|| format!("C{slot} acts under term {term}: {rows:?}"));
                    let orders = self.sif.disk.orders.values().cloned().collect();
                    self.step_coordinator(slot, Event::OrdersRead { orders, now_unix_ms: self.wall() });
                    self.step_coordinator(slot, Event::TermAcquired { term, sent, length, rows });
                }
            }
            Notice::State(agent, store) => {
                let report = Report { highest_term: store.highest_term, epochs: store.epochs };
                let reporter = self.names[agent].clone();
                self.ask_sif(slot, Purpose::Report, Request::ReportVoter { reporter, report });
            }
            Notice::TermTimeout(token) => {
                if coordinator.waiting.take_if(|waiting| *waiting == token).is_some() {
                    self.step_coordinator(slot, Event::TermFailed { reason: "no answer".into() });
                }
            }
        }
    }

    fn term_of(&self, slot: usize) -> Term {
        let time = self.coordinator_clocks[slot].at(self.now);
        self.coordinators[slot].as_ref().map_or(Term(0), |coordinator| coordinator.core.authority(time).0)
    }

    fn heard_agent(&mut self, slot: usize, id: u64, message: Up) {
        let Some(stream) = self.streams.get(&id) else { return };
        let agent = self.names[stream.agent].clone();
        let asks = |agent, via, ask: Ask| Event::Ask {
            agent,
            session: SessionId(id),
            via,
            incarnation: ask.incarnation,
            nonce: ask.nonce,
            heard: ask.heard,
            vips: ask.vips,
            long: ask.long,
            long_surrendered: ask.long_surrendered,
        };
        let event = match message {
            Up::Ask(ask) => asks(agent, None, ask),
            Up::Relayed(origin, ask) => asks(self.names[origin].clone(), Some(agent), ask),
            Up::Report(report) => Event::Report { agent, report },
            Up::End => return,
        };
        self.step_coordinator(slot, event);
    }

    fn heard_sif(&mut self, slot: usize, purpose: Purpose, result: Result<kage_sif_core::Reply, Refusal>) {
        let Some(process) = self.coordinators[slot].as_ref().map(|coordinator| coordinator.process) else { return };
        match purpose {
            Purpose::Acquire { sent, token } => match result {
                Ok(kage_sif_core::Reply::Term { term }) => self.read_ledger(slot, Some((term, sent, token))),
                Err(Refusal::NeedsReports { .. }) => {
                    for agent in 0..self.machines.len() {
                        let reply = Reply { slot, process, job: JobId(0) };
                        let from = self.net.coordinators[slot];
                        self.call(from, agent, Ev::Agent(agent, 0, Box::new(Input::State(reply))));
                    }
                }
                Ok(_) | Err(_) => {}
            },
            Purpose::Renew { term, sent } => {
                let length = self.cluster.term;
                let event = match result {
                    Ok(_) => Event::TermRenewed { term, sent, length },
                    // A ledger that wants reports knows of no term: this one is over, and asking for a new one is what
                    // makes the shell collect them.
                    Err(
                        refusal @ (Refusal::StaleTerm { .. }
                        | Refusal::UnknownTerm { .. }
                        | Refusal::NeedsReports { .. }),
                    ) => Event::TermLost { term, reason: refusal.to_string() },
                    Err(refusal) => Event::TermFailed { reason: refusal.to_string() },
                };
                self.step_coordinator(slot, event);
            }
            Purpose::Job(job) => {
                let result = match result {
                    Ok(kage_sif_core::Reply::Epoch { epoch, .. }) => JobResult::Epoch(epoch),
                    Ok(_) => JobResult::Done,
                    Err(refusal) => JobResult::Failed(refusal.to_string()),
                };
                self.step_coordinator(slot, Event::Job { job, result });
            }
            Purpose::Report => {}
        }
    }

    /// A read of the ledger takes one round trip; it sees what is durable when it arrives.
    fn read_ledger(&mut self, slot: usize, then: Option<(Term, Time, u64)>) {
        let (node, sif) = (self.net.coordinators[slot], self.net.sif);
        let Some(process) = self.coordinators[slot].as_ref().map(|coordinator| coordinator.process) else { return };
        if !self.net.open(node, sif) {
            return;
        }
        let Some(core) = &self.sif.core else { return };
        let rows = rows(core.ledger());
        self.call(sif, node, Ev::Coordinator(slot, process, Box::new(Notice::Rows(then, rows))));
    }

    fn ask_sif(&mut self, slot: usize, what: Purpose, request: Request) {
        let Some(process) = self.coordinators[slot].as_ref().map(|coordinator| coordinator.process) else { return };
        let call = Call { slot, process, what };
        self.call(self.net.coordinators[slot], self.net.sif, Ev::Sif(call, Box::new(request)));
    }

    /// A coordinator's deadline is reached.
    pub fn coordinator_tick(&mut self, slot: usize, process: u64) {
        let now = self.now;
        let Some(coordinator) = self.slot_of(slot, process) else { return };
        if coordinator.tick > now {
            return;
        }
        coordinator.tick = Ns::MAX;
        let free = coordinator.busy.max(coordinator.stalled_until);
        if free > now {
            return self.coordinator_tick_at(slot, free);
        }
        self.step_coordinator(slot, Event::Tick);
    }

    fn coordinator_tick_at(&mut self, slot: usize, time: Ns) {
        if let Some(coordinator) = &mut self.coordinators[slot]
            && coordinator.tick > time
        {
            coordinator.tick = time;
            let process = coordinator.process;
            self.at(time, Ev::CoordinatorTick(slot, process));
        }
    }

    /// One event for the core, and what it wants done: now, or after a stall.
    pub fn step_coordinator(&mut self, slot: usize, event: Event) {
        let now = self.now;
        let clock = self.coordinator_clocks[slot];
        let Some(coordinator) = &mut self.coordinators[slot] else { return };
        let mut actions = Vec::new();
        let journalled = self.journals.is_some().then(|| event.clone());
        coordinator.core.step(clock.at(now), event, &mut actions);
        if let (Some(journals), Some(event)) = (&mut self.journals, journalled) {
            journals[slot].event(clock.at(now), &event, &actions);
            journals[slot].snapshot(coordinator.process, clock.at(now), &coordinator.core);
        }
        let (process, deadline) = (coordinator.process, coordinator.core.deadline());
        let stall = std::mem::take(&mut coordinator.stall_step);
        if stall > 0 {
            coordinator.busy = now + stall;
            self.after(stall, Ev::CoordinatorAct(slot, process, Box::new(actions)));
        } else {
            self.coordinator_acts(slot, actions);
        }
        if let Some((deadline, _)) = deadline {
            self.coordinator_tick_at(slot, clock.when(deadline).max(now + 1));
        }
    }

    /// A stalled step goes on.
    pub fn coordinator_act(&mut self, slot: usize, process: u64, step: Step) {
        if self.slot_of(slot, process).is_some() {
            self.coordinator_acts(slot, step);
        }
    }

    pub(super) fn job_ends(&mut self, slot: usize, after: Ns, job: JobId, result: JobResult) {
        let Some(process) = self.coordinators[slot].as_ref().map(|coordinator| coordinator.process) else { return };
        let notice = Notice::Core(Event::Job { job, result });
        self.after(after, Ev::Coordinator(slot, process, Box::new(notice)));
    }

    fn coordinator_acts(&mut self, slot: usize, actions: Step) {
        let node = self.net.coordinators[slot];
        let clock = self.coordinator_clocks[slot];
        for action in actions {
            let Some(coordinator) = &mut self.coordinators[slot] else { return };
            let process = coordinator.process;
            let (term, sent) = (coordinator.core.authority(clock.at(self.now)).0, clock.at(self.now));
            let unknown = || JobResult::Unknown("no answer in time".into());
            match action {
                Action::Reply { session, origin, grant } => {
                    let message = match origin {
                        Some(origin) => Down::Relayed(self.index(&origin), grant),
                        None => Down::Grant(grant),
                    };
                    self.send_down(session.0, message);
                }
                Action::AcquireTerm => {
                    coordinator.tries += 1;
                    let token = coordinator.tries;
                    coordinator.waiting = Some(token);
                    let request = Request::AcquireTerm { coordinator: format!("C{slot}-{process}") };
                    self.ask_sif(slot, Purpose::Acquire { sent, token }, request);
                    self.after(SEC, Ev::Coordinator(slot, process, Box::new(Notice::TermTimeout(token))));
                }
                Action::RenewTerm { term } => {
                    self.ask_sif(slot, Purpose::Renew { term, sent }, Request::RenewTerm { term });
                }
                Action::ReadLedger => self.read_ledger(slot, None),
                Action::AdvanceEpoch { job, vip, expected, owner, domain, target, cause } => {
                    let cause = cause.as_str().parse().unwrap_or(Cause::Takeover);
                    let request = Request::AdvanceEpoch { term, vip, expected, owner, domain, target, cause };
                    self.say(|| format!("C{slot} {request:?}"));
                    self.watch_advance(slot, &request);
                    self.ask_sif(slot, Purpose::Job(job), request);
                    self.job_ends(slot, 2 * SEC, job, unknown());
                }
                Action::SetLongLease { job, vip, outstanding } => {
                    self.ask_sif(
                        slot,
                        Purpose::Job(job),
                        Request::SetLongLease { term, vip, outstanding, sequence: job.0 },
                    );
                    self.job_ends(slot, 2 * SEC, job, unknown());
                }
                Action::Bar { job, voter, vip, floor } => {
                    let voter = self.index(&voter);
                    let input = Input::Bar(Reply { slot, process, job }, term, vip, floor);
                    self.call(node, voter, Ev::Agent(voter, 0, Box::new(input)));
                    self.job_ends(slot, 500 * MS, job, unknown());
                }
                Action::Command { job, agent, command, timeout } => {
                    self.say(|| format!("C{slot} to {agent}: {command:?} under {term}"));
                    self.watch_command(&agent, &command);
                    let agent = self.index(&agent);
                    let input = Input::Command(Reply { slot, process, job }, term, command);
                    self.call(node, agent, Ev::Agent(agent, 0, Box::new(input)));
                    self.job_ends(slot, ns(timeout), job, unknown());
                }
                Action::Ping { job, address, count, timeout } => self.ping(slot, job, address, count, timeout),
                Action::ReadPower { job, agent, timeout } => {
                    // A power controller is asked out of band, and may be slow. By chance alone it never lies.
                    let read = self.net.delay(&mut self.rng);
                    let there = &self.machines[self.index(&agent)];
                    let off = there.reads.unwrap_or(!there.on);
                    let result = if off { JobResult::Done } else { JobResult::Failed("on".into()) };
                    let (after, result) = if read < ns(timeout) { (read, result) } else { (ns(timeout), unknown()) };
                    self.job_ends(slot, after, job, result);
                }
                Action::Probe { job, address, port, limits, .. } => {
                    self.probe(slot, job, address, port, limits.total);
                }
                Action::Note(note) => {
                    self.say(|| format!("C{slot} {}: {}", note.kind, note.text));
                    self.noted(slot, note);
                }
                Action::PowerOff { job, agent, timeout } => {
                    let machine = self.index(&agent);
                    if self.cluster.agents[&agent].power_off.is_some() && self.machines[machine].reads.is_none() {
                        self.power_off(machine, Ns::MAX);
                    }
                    self.job_ends(slot, (50 * MS).min(ns(timeout)), job, JobResult::Done);
                }
                Action::FenceStorage { job, address, revoke, .. } => self.fence(slot, job, address, revoke),
                Action::PutOrder { job, order } => {
                    self.ask_sif(slot, Purpose::Job(job), Request::PutOrder { term, order });
                    self.job_ends(slot, 2 * SEC, job, unknown());
                }
                Action::ClearOrder { job, scope } => {
                    self.ask_sif(slot, Purpose::Job(job), Request::ClearOrder { term, scope });
                    self.job_ends(slot, 2 * SEC, job, unknown());
                }
                // No target here is a virtual server: nobody reads the tables.
                Action::PutArrangement { job, .. }
                | Action::FunctionRestored { job, .. }
                | Action::TargetVerdict { job, .. }
                | Action::PutClaims { job, .. }
                | Action::MovedTo { job, .. } => self.job_ends(slot, 50 * MS, job, JobResult::Done),
                Action::PutTrouble { .. } => {}
                Action::Configured => {}
                Action::Moved { command, result } => {
                    self.say(|| format!("C{slot} operator's command {command}: {result:?}"));
                    self.answered(command, result);
                }
            }
        }
    }
}
