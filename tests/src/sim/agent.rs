//! An agent's shell, as in production: one task that owns Owner and Voter, one thread for the kernel, a disk.

use super::clock::{MS, Ns, SEC};
use super::coordinator::Reply;
use super::net::{Ask, Up};
use super::world::{Ev, Sabotage, World};
use super::writing::Released;
use kage_agent_core::{
    Adopted, Assignment, CommandId, KernelOp, KernelOutcome, OnCoordinatorLoss, OpId, Owner, OwnerAction, OwnerEvent,
    OwnerMemory, Place, Voter, VoterAction, VoterEvent, VoterStore, WriterEvent, WriterMemory, Writers,
};
use kage_coordinator_core::{AgentCommand, AgentReport, JobResult, config};
use kage_types::{AskVip, DomainName, Epoch, Grant, Nonce, Term, Time, Vip};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// What survives the process; `held` is void after a reboot.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The voter's.
    pub voter: VoterStore,
    /// The owner's.
    pub memory: OwnerMemory,
    /// What the writers' core wants kept.
    pub writers: WriterMemory,
    /// The last assignment, with its term.
    pub assignment: Option<(Term, Assignment)>,
    /// At which boot, what was held.
    pub held: (u64, Vec<Adopted>),
}

/// Whose remote call it was.
#[derive(Clone, Debug)]
pub enum Question {
    /// An owner's, by index; its process, nonce, heard, what for.
    Vote(usize, u64, Nonce, Nonce, Vec<AskVip>),
    /// Of this agent itself.
    Own(Nonce),
    /// A coordinator's.
    Bar(Reply, Term),
}

/// A process.
#[derive(Debug)]
pub struct Agent {
    /// Its number, and incarnation.
    pub process: u64,
    /// Core.
    pub owner: Owner,
    /// Core.
    pub voter: Voter,
    /// In the middle of a step until then.
    pub busy: Ns,
    /// The next tick that counts.
    pub tick: Ns,
    /// The stream in use.
    pub stream: Option<u64>,
    /// Assigned by it.
    pub session: bool,
    /// Since when an own request has not been answered.
    pub unanswered: Option<Time>,
    /// The kernel thread's queue; the head was checked and waits for its effect.
    pub kernel: VecDeque<(OpId, KernelOp, Epoch)>,
    questions: BTreeMap<u64, Question>,
    last_question: u64,
    /// Answers to these are passed on: by asker and nonce.
    pub relays: BTreeMap<(usize, Nonce), u64>,
    pub(super) commands: BTreeMap<CommandId, Ending>,
    last_command: u64,
    /// What is on its way to the disk.
    pub writes: VecDeque<(u64, Write)>,
    /// It is about to stop, sleep or go down: no new VIP.
    pub stopping: bool,
    /// Core.
    pub writers: Writers,
    /// Releases whose answer waits for the writers.
    pub releasing: Vec<Released>,
}

/// What must be on the disk before an answer.
#[derive(Clone, Debug)]
pub enum Write {
    /// The voter's.
    Voter(VoterStore),
    /// The owner's.
    Memory(OwnerMemory),
    /// What is held back: nobody waits for it.
    Writers(WriterMemory),
    /// The keeper's: nobody waits for it.
    Assignment(Term, Assignment),
}

/// What the end of a command leads to.
#[derive(Clone, Debug)]
pub enum Ending {
    /// Answer a coordinator.
    Reply(Reply),
    /// The same, and it was a release of this VIP under this term.
    Released(Reply, Term, Vip),
    /// The same, when this double is suspended too.
    Paused(Reply, DomainName),
    /// The process stops, for so long.
    Stop(Ns),
    /// The machine sleeps.
    Sleep(Ns),
    /// The machine goes down.
    Down(Ns),
}

/// What an agent's process is handed.
#[derive(Clone, Debug)]
pub enum Input {
    /// For the core.
    Owner(OwnerEvent),
    /// For the writers' core.
    Writer(WriterEvent),
    /// First on a stream.
    Assigned(u64, Term),
    /// On a stream.
    Answer(u64, Grant),
    /// A relayed question was answered.
    RelayedGrant(usize, Grant),
    /// Who asks (index, process), nonce, heard, what for.
    Vote(usize, u64, Nonce, Nonce, Vec<AskVip>),
    /// A coordinator bars.
    Bar(Reply, Term, Vip, Epoch),
    /// A coordinator asks for what is stored.
    State(Reply),
    /// A coordinator commands.
    Command(Reply, Term, AgentCommand),
    /// Local: stop, sleep or go down.
    Plan(Ending),
    /// Local: something the coordinator is to hear of.
    Tell(AgentReport),
    /// A stream ended.
    StreamEnd(u64),
    /// This stream should have brought an assignment by now.
    Unassigned(u64),
}

/// Actions that wait for a stalled process.
#[derive(Clone, Debug)]
pub enum Step {
    /// The owner's.
    Owner(Vec<OwnerAction>),
    /// The voter's.
    Voter(Vec<VoterAction>),
}

impl Disk {
    /// The highest term that a process which starts now knows.
    pub(super) fn term(&self) -> Term {
        let assigned = self.assignment.as_ref().map_or(Term(0), |assignment| assignment.0);
        self.memory.term.max(self.voter.highest_term).max(assigned)
    }

    /// Written.
    pub(super) fn keep(&mut self, write: Write) {
        match write {
            Write::Voter(store) => self.voter = store,
            Write::Memory(memory) => self.memory = memory,
            Write::Writers(memory) => self.writers = memory,
            Write::Assignment(term, assignment) => self.assignment = Some((term, assignment)),
        }
    }
}

impl Agent {
    fn question(&mut self, question: Question) -> u64 {
        self.last_question += 1;
        self.questions.insert(self.last_question, question);
        self.last_question
    }

    pub(super) fn command(&mut self, ending: Ending) -> CommandId {
        self.last_command += 1;
        let command = CommandId(self.last_command);
        self.commands.insert(command, ending);
        command
    }
}

impl World {
    /// The assignment as the coordinator's shell makes it.
    #[must_use]
    pub fn assignment(&self) -> Assignment {
        let loss = match self.cluster.on_coordinator_loss {
            config::OnCoordinatorLoss::Voters => OnCoordinatorLoss::Voters,
            config::OnCoordinatorLoss::Keep => OnCoordinatorLoss::Keep,
            config::OnCoordinatorLoss::Lapse => OnCoordinatorLoss::Lapse,
        };
        Assignment {
            vips: self.vips.iter().copied().collect(),
            timing: self.cluster.timing,
            voters: self.cluster.voters().map(|name| (name.clone(), String::new())).collect(),
            on_coordinator_loss: loss,
        }
    }

    /// The process starts over what the disk holds and the kernel has.
    pub fn start_agent(&mut self, machine: usize) {
        if self.machines[machine].asleep.is_some() {
            // Its service manager sleeps too.
            return self.after(100 * MS, Ev::StartAgent(machine));
        }
        if self.machines[machine].agent.is_some() || !self.machines[machine].up() {
            return;
        }
        let process = self.fresh();
        let now = self.now;
        let sabotage = self.sabotage;
        let time = self.machines[machine].clock.at(now);
        let writers = self.writers(machine, time, self.machines[machine].disk.writers.clone());
        let here = &mut self.machines[machine];
        let disk = here.disk.clone();
        let mut memory = disk.memory.clone();
        memory.term = disk.term();
        let mut owner = Owner::new(memory);
        if let Some(Sabotage::Agent(sabotage)) = sabotage {
            owner.sabotage(sabotage);
        }
        // The machine's own VIPs are asked for again after a reboot; a VM's are not.
        let keeps = |held: &&Adopted| held.place == Place::Host || disk.held.0 == here.boots;
        let adopted: Vec<Adopted> = disk
            .held
            .1
            .iter()
            .filter(keeps)
            .map(|held| {
                let end = here.kernel.live_until(now, held.vip).unwrap_or(now);
                Adopted { remaining: here.clock.at(end).since(time), ..held.clone() }
            })
            .collect();
        // Elements without a known epoch are closed before anything is asked for.
        let strays: Vec<Vip> = here.kernel.elements.keys().copied().collect();
        for vip in strays.into_iter().filter(|vip| adopted.iter().all(|held| held.vip != *vip)) {
            here.kernel.elements.remove(&vip);
        }
        here.agent = Some(Agent {
            process,
            owner,
            voter: Voter::new(time, disk.voter),
            busy: 0,
            tick: Ns::MAX,
            stream: None,
            session: false,
            unanswered: None,
            kernel: VecDeque::new(),
            questions: BTreeMap::new(),
            last_question: 0,
            relays: BTreeMap::new(),
            commands: BTreeMap::new(),
            last_command: 0,
            writes: VecDeque::new(),
            stopping: false,
            writers,
            releasing: Vec::new(),
        });
        self.say_of(machine, || format!("agent starts, adopts {adopted:?}"));
        if let Some((_, assignment)) = disk.assignment {
            self.step_owner(machine, OwnerEvent::Assigned(assignment));
        }
        if !adopted.is_empty() {
            self.step_owner(machine, OwnerEvent::Adopt(adopted));
        }
        let live = |agent: &Agent| -> Vec<Vip> {
            let open = agent.owner.vips().filter(|view| view.state == "live" && view.place == Place::Host);
            open.map(|view| view.vip).collect()
        };
        for vip in self.machines[machine].agent.as_ref().map(live).unwrap_or_default() {
            self.lease_opened(machine, vip);
        }
        let delay = self.rng.range(MS, 200 * MS);
        self.after(delay, Ev::Connect(machine, process));
    }

    /// Hand something to a process: when it has time for it, if it still runs.
    pub fn agent_input(&mut self, machine: usize, process: u64, input: Input) {
        let here = &self.machines[machine];
        let Some(agent) = here.agent.as_ref().filter(|agent| agent.process == process || process == 0) else {
            return;
        };
        let process = agent.process;
        let free = agent.busy.max(here.stalled_until);
        if here.asleep.is_some() {
            let later = self.now + SEC;
            return self.at(later, Ev::Agent(machine, process, Box::new(input)));
        }
        if free > self.now {
            return self.at(free, Ev::Agent(machine, process, Box::new(input)));
        }
        self.handle(machine, input);
    }

    /// An agent's deadline is reached.
    pub fn agent_tick(&mut self, machine: usize, process: u64) {
        let now = self.now;
        let here = &mut self.machines[machine];
        let Some(agent) = here.agent.as_mut().filter(|agent| agent.process == process) else {
            return;
        };
        if agent.tick > now || here.asleep.is_some() {
            return;
        }
        agent.tick = Ns::MAX;
        let free = agent.busy.max(here.stalled_until);
        if free > now {
            // What waits in its queue comes first, as in the driver's loop.
            return self.tick_at(machine, free + 1_000);
        }
        let limit = Duration::from_secs(1).max(3 * self.cluster.timing.renewal);
        let silent = agent.unanswered.is_some_and(|since| here.clock.at(now).since(since) > limit);
        if let Some(stream) = agent.stream.filter(|_| silent) {
            self.agent_leaves(machine, stream);
        }
        self.step_owner(machine, OwnerEvent::Tick);
        self.timers(machine);
    }

    fn tick_at(&mut self, machine: usize, time: Ns) {
        if let Some(agent) = &mut self.machines[machine].agent
            && agent.tick > time
        {
            agent.tick = time;
            let process = agent.process;
            self.at(time, Ev::AgentTick(machine, process));
        }
    }

    /// As the driver's loop: what it was handed, then what is due.
    pub(super) fn handle(&mut self, machine: usize, input: Input) {
        self.take(machine, input);
        self.timers(machine);
    }

    pub(super) fn timers(&mut self, machine: usize) {
        if !self.fences() {
            return;
        }
        self.writers_due(machine);
        let here = &self.machines[machine];
        if let Some(deadline) = here.agent.as_ref().and_then(|agent| agent.writers.deadline()) {
            let time = here.clock.when(deadline);
            self.tick_at(machine, time.max(self.now + 1));
        }
    }

    fn take(&mut self, machine: usize, input: Input) {
        let now = self.now;
        let (is_voter, time) = (self.cluster.agents[&self.names[machine]].voter, self.machines[machine].clock.at(now));
        let assignment = if matches!(input, Input::Assigned(..)) { Some(self.assignment()) } else { None };
        let Some(agent) = &mut self.machines[machine].agent else { return };
        match input {
            Input::Owner(event) => self.step_owner(machine, event),
            Input::Writer(event) => self.step_writers(machine, event),
            Input::Assigned(stream, term) => {
                let Some(assignment) = assignment else { return };
                agent.owner.saw_term(term);
                let session = agent.stream == Some(stream) && !std::mem::replace(&mut agent.session, true);
                // Written after the driver was told, as the keeper does.
                let write = Write::Assignment(term, assignment.clone());
                self.step_owner(machine, OwnerEvent::Assigned(assignment));
                self.write(machine, 0, write);
                if session {
                    self.step_owner(machine, OwnerEvent::Session(true));
                }
            }
            Input::Answer(stream, grant) => {
                if agent.stream == Some(stream) {
                    agent.unanswered = None;
                }
                self.step_owner(machine, OwnerEvent::Answer { grant, relayed: false });
            }
            Input::RelayedGrant(origin, grant) => {
                if let Some(process) = agent.relays.remove(&(origin, grant.nonce)) {
                    let input = Input::Owner(OwnerEvent::Answer { grant, relayed: true });
                    self.call(machine, origin, Ev::Agent(origin, process, Box::new(input)));
                }
            }
            Input::Vote(from, process, nonce, heard, vips) => {
                if !is_voter || agent.owner.assignment().is_none() {
                    return;
                }
                let reaches_coordinator = agent.owner.reaches_coordinator(time);
                let id = agent.question(Question::Vote(from, process, nonce, heard, vips.clone()));
                let from = self.names[from].clone();
                self.step_voter(machine, VoterEvent::Vote { id, from, nonce, vips, reaches_coordinator });
            }
            Input::Bar(reply, term, vip, floor) => {
                if term < agent.owner.highest_term() {
                    return self.answer(machine, reply, JobResult::Failed("term is over".into()));
                }
                let id = agent.question(Question::Bar(reply, term));
                self.step_voter(machine, VoterEvent::Bar { id, term, vip, floor });
            }
            Input::State(reply) => {
                let mut store = agent.voter.remembered().clone();
                store.highest_term = store.highest_term.max(agent.owner.highest_term());
                self.answer_state(machine, reply, store);
            }
            Input::Command(reply, term, command) => self.command(machine, reply, term, command),
            Input::Tell(report) => self.tell(machine, report),
            Input::Plan(ending) => {
                agent.stopping = true;
                let what = match &ending {
                    Ending::Reply(_) | Ending::Released(..) | Ending::Paused(..) => return,
                    Ending::Stop(_) => ("agent", false),
                    Ending::Sleep(_) => ("suspend", true),
                    Ending::Down(_) => ("reboot", true),
                };
                let stop = matches!(ending, Ending::Stop(_));
                let command = agent.command(ending);
                let report = AgentReport::GoingDown { machine: what.1, what: what.0.into() };
                self.send_up(machine, Up::Report(report));
                let event = if stop { OwnerEvent::PrepareStop { command } } else { OwnerEvent::ReleaseAll { command } };
                self.step_owner(machine, event);
                // Nobody waits for ever for a stop; an inhibitor of sleep has its limit too, but nothing sleeps
                // here with an element left (rule 9).
                let process = self.machines[machine].agent.as_ref().map_or(0, |agent| agent.process);
                if stop {
                    self.after(3 * SEC, Ev::Agent(machine, process, Box::new(Input::StreamEnd(u64::MAX))));
                }
            }
            Input::Unassigned(stream) => {
                if agent.stream == Some(stream) && !agent.session {
                    self.agent_leaves(machine, stream);
                }
            }
            Input::StreamEnd(u64::MAX) => self.stop_anyway(machine),
            Input::StreamEnd(stream) => {
                if agent.stream == Some(stream) {
                    self.agent_leaves(machine, stream);
                }
            }
        }
    }

    /// One event for the owner's core, and what it wants done: now, or after a stall.
    pub fn step_owner(&mut self, machine: usize, event: OwnerEvent) {
        let now = self.now;
        let here = &mut self.machines[machine];
        let stall = std::mem::take(&mut here.stall_step);
        let Some(agent) = &mut here.agent else { return };
        let mut actions = Vec::new();
        agent.owner.step(here.clock.at(now), event, &mut actions);
        let process = agent.process;
        if stall > 0 {
            agent.busy = now + stall;
            self.after(stall, Ev::AgentAct(machine, process, Box::new(Step::Owner(actions))));
        } else {
            self.act(machine, actions);
        }
        let here = &self.machines[machine];
        if let Some(deadline) = here.agent.as_ref().and_then(|agent| agent.owner.deadline()) {
            let time = here.clock.when(deadline.0);
            self.tick_at(machine, time.max(now));
        }
    }

    /// One event for the voter's core.
    pub fn step_voter(&mut self, machine: usize, event: VoterEvent) {
        let now = self.now;
        let here = &mut self.machines[machine];
        let Some(agent) = &mut here.agent else { return };
        let mut actions = Vec::new();
        agent.voter.step(here.clock.at(now), event, &mut actions);
        self.act_voter(machine, actions);
    }

    /// A stalled step goes on.
    pub fn agent_act(&mut self, machine: usize, process: u64, step: Step) {
        let here = &self.machines[machine];
        if here.agent.as_ref().is_none_or(|agent| agent.process != process) {
            return;
        }
        if here.stalled_until > self.now {
            return self.at(here.stalled_until, Ev::AgentAct(machine, process, Box::new(step)));
        }
        match step {
            Step::Owner(actions) => self.act(machine, actions),
            Step::Voter(actions) => self.act_voter(machine, actions),
        }
        self.timers(machine);
    }

    pub(super) fn question_of(&mut self, machine: usize, id: u64) -> Option<Question> {
        self.machines[machine].agent.as_mut().and_then(|agent| agent.questions.remove(&id))
    }

    pub(super) fn own_question(&mut self, machine: usize, nonce: Nonce, vips: Vec<AskVip>) {
        let now = self.now;
        let here = &mut self.machines[machine];
        let Some(agent) = &mut here.agent else { return };
        if agent.owner.reaches_coordinator(here.clock.at(now)) {
            return;
        }
        let id = agent.question(Question::Own(nonce));
        let from = self.names[machine].clone();
        self.step_voter(machine, VoterEvent::Vote { id, from, nonce, vips, reaches_coordinator: false });
    }

    pub(super) fn relayed_ask(&mut self, machine: usize, id: u64) {
        let Some(Question::Vote(origin, process, nonce, heard, vips)) = self.question_of(machine, id) else { return };
        if let Some(agent) = &mut self.machines[machine].agent {
            agent.relays.insert((origin, nonce), process);
            while agent.relays.len() > 64 {
                agent.relays.pop_first();
            }
        }
        let ask = Ask { nonce, heard, vips, long: false, long_surrendered: false, incarnation: process };
        self.send_up(machine, Up::Relayed(origin, ask));
    }

    /// How an outcome of the kernel reaches the driver.
    pub(super) fn kernel_outcome(&mut self, machine: usize, process: u64, op: OpId, outcome: KernelOutcome, at: Time) {
        self.agent_input(machine, process, Input::Owner(OwnerEvent::Kernel { op, outcome, at }));
    }
}
